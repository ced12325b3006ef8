"""No number from half a model: a folder's weights are all there, whole and its own, or it is refused in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import PROJECT, TINY
from transformers import AutoModelForCausalLM

from pipelines.cli.main import run
from pipelines.models import find, load, weights
from pipelines.records.cells import Model, Refusal

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "vocab_size": 257,
    "tie_word_embeddings": True,
}
UP = "model.layers.1.mlp.up_proj.weight"
CODE = {
    "AutoConfig": "configuration_my.My",
    "AutoModelForCausalLM": "modeling_my.My",
    "AutoTokenizer": ["tok.My", None],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "whole"
    load.model(Model("r", "random", shape=tuple(SHAPE.items())), "float32", "cpu").save_pretrained(path)
    load.byte_tokenizer().save_pretrained(path)
    return path


class Folder:
    """A copy of a folder, to be spoilt."""

    def __init__(self, source, path):
        shutil.copytree(source, path)
        self.path, self.file = path, path / "model.safetensors"
        self.weights = load_file(self.file)

    def hold(self, held):
        save_file({name: weight.clone() for name, weight in held.items()}, self.file, {"format": "pt"})

    def add(self, **more):
        self.hold({**self.weights, **{name.replace("__", "."): weight for name, weight in more.items()}})

    def say(self, **keys):
        config = find.read_config(self.path / "config.json")
        (self.path / "config.json").write_text(json.dumps({**config, **keys}))

    def shard(self):
        """Its weights in two files with an index; returns the second."""
        names = sorted(self.weights)
        parts = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in (0, 1)}
        for file, held in parts.items():
            save_file({name: self.weights[name].clone() for name in held}, self.path / file, {"format": "pt"})
        index = {name: file for file, held in parts.items() for name in held}
        (self.path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        self.file.unlink()
        return self.path / "model-00002-of-00002.safetensors"

    def torch(self):
        """Its weights as torch writes them; returns the file."""
        self.file.unlink()
        torch.save(self.weights, self.path / "pytorch_model.bin")
        return self.path / "pytorch_model.bin"


@pytest.fixture
def folder(whole, tmp_path):
    return Folder(whole, tmp_path / "m")


def built(folder, dtype="float32"):
    load.model.cache_clear()
    return load.model(Model("m", str(folder.path), allow_pickle=True), dtype, "cpu")


def logits(model):
    with torch.no_grad():
        return model(torch.arange(16)[None]).logits


def layers_gone(f):
    f.hold(
        {
            name: weight
            for name, weight in f.weights.items()
            if not name.startswith(("model.layers.2", "model.layers.3"))
        }
    )


def one_gone(f):
    f.hold({name: weight for name, weight in f.weights.items() if name != UP})


def cut(file, count):
    file.write_bytes(file.read_bytes()[:-count])


def header_spoilt(f):
    body = bytearray(f.file.read_bytes())
    body[8:12] = b"xxxx"
    f.file.write_bytes(bytes(body))


def tensor_too_short(f):
    body = f.file.read_bytes()
    f.file.write_bytes(body.replace(b"[257,32]", b"[259,32]"))


def not_a_number(f):
    weight = f.weights[UP].clone()
    weight[0, 0] = float("nan")
    f.hold({**f.weights, UP: weight})


def holes(f):
    f.hold({n: torch.zeros_like(w) if n.startswith("model.layers.3.") else w for n, w in f.weights.items()})


def adapter(f):
    base = {"base_model_name_or_path": "owner/base", "peft_type": "LORA", "target_modules": ["q_proj"], "r": 2}
    (f.path / "adapter_config.json").write_text(json.dumps(base))


def adapter_alone(f):
    adapter(f)
    f.file.unlink()


def index_of_another(f):
    f.shard()
    index = find.read_config(f.path / "model.safetensors.index.json")
    index["weight_map"]["model.layers.4.mlp.up_proj.weight"] = "model-00001-of-00002.safetensors"
    (f.path / "model.safetensors.index.json").write_text(json.dumps(index))


def quantised(method, **keys):
    return lambda f: f.say(quantization_config={"quant_method": method, **keys})


FAULTS = {
    "layers gone": (layers_gone, "num_hidden_layers 4, and 2 of these layers have no weights.*model.layers.2"),
    "a layer too many in the config": (lambda f: f.say(num_hidden_layers=5), "num_hidden_layers 5, and 1 of these"),
    "a weight gone": (one_gone, f"1 of the 39 weights of LlamaForCausalLM are not in its files .{UP}"),
    "layers left over": (
        lambda f: f.say(num_hidden_layers=2),
        "18 weights in its files that LlamaForCausalLM does not have .*model.layers.2.* and 15 more",
    ),
    "other shapes": (
        lambda f: f.say(intermediate_size=40),
        r"12 weights .*\[32, 48\] in the file, \[32, 40\] by the config",
    ),
    "fewer rows": (lambda f: f.say(vocab_size=300), r"embed_tokens.weight \[257, 32\] in the file, \[300, 32\]"),
    "no head": (lambda f: f.say(tie_word_embeddings=False), "1 of the 39 weights .*lm_head.weight"),
    "a head of its own": (
        lambda f: f.add(lm_head__weight=torch.ones(257, 32)),
        "ties lm_head.weight to model.embed_tokens",
    ),
    "a classifier's": (lambda f: f.add(score__weight=torch.ones(2, 32)), r"1 weight in its files .*\(score.weight\)"),
    "a bias that the config has not": (
        lambda f: f.add(model__layers__0__self_attn__q_proj__bias=torch.ones(32)),
        "1 weight in its files .*q_proj.bias",
    ),
    "not finite": (not_a_number, f"{UP} holds numbers that are not finite"),
    "holes": (holes, "every matrix of model.layers.3 is zero"),
    "cut off": (lambda f: cut(f.file, 1000), "1,000 bytes are missing at its end"),
    "empty": (lambda f: f.file.write_bytes(b""), "is empty"),
    "a pointer": (lambda f: f.file.write_text("version https://git-lfs.github.com/spec/v1\noid x\n"), "git lfs pull"),
    "a pointer for the tokenizer": (
        lambda f: (f.path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid x\n"),
        "tokenizer.json is a pointer",
    ),
    "a web page": (lambda f: f.file.write_text("<!DOCTYPE html> not found"), "its header cannot be read"),
    "a spoilt header": (header_spoilt, "its header cannot be read"),
    "a header of another": (tensor_too_short, "a tensor of F32 .259, 32. in 32896 bytes"),
    "a shard gone": (lambda f: f.shard().unlink(), "1 of the 2 files of weights .*model-00002-of-00002.safetensors"),
    "a shard cut off": (lambda f: cut(f.shard(), 8), "model-00002-of-00002.safetensors is damaged: 8 bytes"),
    "an index of another": (index_of_another, "1 of the 39 tensors that the index"),
    "an index that is none": (
        lambda f: (f.shard(), (f.path / "model.safetensors.index.json").write_text("{}")),
        "has no weight_map",
    ),
    "torch's, cut off": (lambda f: cut(f.torch(), 1000), "pytorch_model.bin is damaged: it is cut off"),
    "under another name": (
        lambda f: f.torch().rename(f.path / "consolidated.00.pth"),
        "it has consolidated.00.pth, and transformers reads none",
    ),
    "a GGUF file beside": (
        lambda f: f.file.rename(f.path / "m.gguf"),
        "it has m.gguf, .* give the .gguf file itself",
    ),
    "nothing": (lambda f: f.file.unlink(), "it has no weights at all"),
    "an adapter beside": (adapter, "holds a whole model and an adapter"),
    "an adapter alone": (adapter_alone, "holds an adapter of owner/base and no weights .*merge_and_unload"),
    "code of its own": (
        lambda f: f.say(model_type="my_model", auto_map=CODE),
        r"model_type 'my_model' .*\(configuration_my.py, modeling_my.py, tok.py\).*trust_remote_code=True",
    ),
    "an unknown type": (lambda f: f.say(model_type="my_model"), "do not load .*my_model"),
    "an encoder-decoder": (lambda f: f.say(model_type="t5", d_model=32), "do not load .*T5Config"),
    "awq": (quantised("awq", bits=4), "do not load .*gptqmodel.* quantised .awq.: install what reads that"),
    "bitsandbytes": (quantised("bitsandbytes", load_in_4bit=True), "do not load .*bitsandbytes.* not quantised"),
    "compressed-tensors": (quantised("compressed-tensors"), "do not load .*compressed-tensors"),
    "exl2": (quantised("exl2"), "quantised as exl2, which transformers does not read"),
    "no method": (lambda f: f.say(quantization_config={"bits": 4}), "quantised as no quant_method"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_is_not_whole_is_refused(folder, fault):
    spoil, sentence = FAULTS[fault]
    spoil(folder)
    with pytest.raises(Refusal, match=f"(?s)^model m: .*{sentence}") as refused:
        built(folder)
    assert len(str(refused.value)) < 700, "a sentence, not a report"


def older_buffers(f):
    f.add(
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4),
        model__layers__0__self_attn__masked_bias=torch.tensor(-1e4),
        model__layers__0__self_attn__bias=torch.ones(1, 1, 8, 8),
    )


def further_layer(f):
    f.say(num_nextn_predict_layers=1)
    f.add(model__layers__4__mlp__up_proj__weight=torch.ones(48, 32))


def of_the_base_class(f):
    f.hold({name.removeprefix("model."): weight for name, weight in f.weights.items()})


def untied(f):
    f.say(tie_word_embeddings=False)
    f.add(lm_head__weight=f.weights["model.embed_tokens.weight"])


SOUND = {
    "as saved": lambda f: None,
    "in shards": lambda f: f.shard(),
    "as torch writes": lambda f: f.torch(),
    "the head twice": lambda f: f.add(lm_head__weight=f.weights["model.embed_tokens.weight"]),
    "an untied head": untied,
    "only the head": lambda f: f.hold(
        {"lm_head.weight": f.weights["model.embed_tokens.weight"]}
        | {name: weight for name, weight in f.weights.items() if "embed" not in name}
    ),
    "tables of older versions": older_buffers,
    "a layer that predicts further tokens": further_layer,
    "a part that sees": lambda f: f.add(vision_tower__encoder__layers__0__weight=torch.ones(2, 2)),
    "without the head's prefix": of_the_base_class,
    "code that transformers has too": lambda f: f.say(auto_map=CODE),
    "other files beside": lambda f: (f.path / "training_args.bin").write_bytes(b""),
}


@pytest.mark.parametrize("state", SOUND)
def test_a_whole_model_is_loaded_as_it_is(folder, whole, state):
    SOUND[state](folder)
    reference = logits(AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32))
    assert torch.equal(logits(built(folder)), reference)


def test_an_adapter_beside_is_refused_though_nothing_here_would_attach_it(folder, monkeypatch):
    """With peft transformers attaches it without a word; without peft it is left out without a word."""
    adapter(folder)
    monkeypatch.setattr("transformers.utils.import_utils.is_peft_available", lambda: False)
    with pytest.raises(Refusal, match="adapter"):
        built(folder)


def test_a_folder_of_an_adapter_without_a_config_names_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    with pytest.raises(Refusal, match="holds an adapter of owner/base"):
        find.describe(Model("m", str(tmp_path)))


def test_an_adapter_of_the_hub_names_its_base(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))

    def fetched(repository, file, revision):
        if file != "adapter_config.json":
            raise Refusal("404")
        return tmp_path / file, "commit"

    monkeypatch.setattr(find, "_hub_file", fetched)
    with pytest.raises(Refusal, match="holds an adapter of owner/base"):
        find.describe(Model("m", "owner/adapter"))


def test_numbers_too_large_for_a_dtype_are_refused_and_kept_in_another(folder):
    folder.hold({**folder.weights, UP: folder.weights[UP] + 1e5})
    built(folder)
    with pytest.raises(Refusal, match=f"{UP} holds numbers that are not finite .in float16.*dtype=float32"):
        built(folder, "float16")


def test_quantised_weights_that_are_computed_with_in_another_dtype_are_refused(folder):
    quantised("fp8", weight_block_size=[16, 16])(folder)  # which transformers unpacks where there is no GPU
    assert built(folder).dtype == torch.float32
    with pytest.raises(Refusal, match=r"quantised .fp8., .* in float32 here, not in bfloat16; give dtype=float32"):
        built(folder, "bfloat16")


def test_a_tokenizer_of_another_model_is_refused(whole, folder):
    load.tokenizer(Model("m", str(whole)))
    folder.say(vocab_size=200)
    with pytest.raises(Refusal, match="257 tokens, and its config says vocab_size 200"):
        load.tokenizer(Model("m", str(folder.path), allow_pickle=True))


def test_code_that_comes_with_a_tokenizer_is_neither_run_nor_asked_about(folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    settings = {"auto_map": {"AutoTokenizer": ["tok.My", None]}, "tokenizer_class": "My"}
    (folder.path / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder.path / "tok.py").write_text("raise SystemExit('run')\n")
    (folder.path / "tokenizer.json").unlink()
    with pytest.raises(Refusal, match="its tokenizer does not load"):
        load.tokenizer(Model("m", str(folder.path), allow_pickle=True))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rope_scaling": {"rope_type": "yarn"}}, "'factor'"),
        ({"layer_types": ["nonsense"] * 4}, "layer_types.* but got .'nonsense'"),
        ({"dtype": "float99"}, "no attribute 'float99'"),
    ],
    ids=["yarn without a factor", "layer types", "dtype"],
)
def test_a_config_that_transformers_does_not_take_is_blamed_and_not_the_tokenizer(folder, wrong, said):
    folder.say(**wrong)
    with pytest.raises(Refusal, match=f"does not take its config.json .*{said}.*; correct it"):
        load.tokenizer(Model("m", str(folder.path), allow_pickle=True))


def test_a_config_alone_is_enough_for_what_only_plans(folder):
    model = Model("m", str(folder.path), allow_pickle=True)
    folder.file.unlink()
    weights.check(model, needed=False)
    with pytest.raises(Refusal, match="no weights at all"):
        weights.check(model)


@pytest.mark.slow
def test_half_a_model_is_refused_before_anything_runs_and_the_doctor_finds_it(tmp_path, capsys):
    half = Folder(TINY, tmp_path / "half")
    half.hold({n: w for n, w in half.weights.items() if not any(f"layers.{number}." in n for number in range(4, 8))})
    given = (f"model={half.path}", f"store={tmp_path / 'store'}")
    assert run(["grid", *given, "length=512", "limit=1"]) == 2
    assert "4 of these layers have no weights" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    assert run(["doctor", *given, "--only", "numeric"]) == 1
    printed = capsys.readouterr().out
    assert "W02" in printed and "4 of these layers have no weights" in printed


@pytest.mark.slow
def test_a_hub_id_gives_the_weights_of_its_revision_and_no_adapter_of_it(whole, tmp_path):
    """A cache as huggingface_hub fills it, without a network: three revisions of one repository."""
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    for number, revision in enumerate(("main", "v1", "adapted")):
        (repository / "refs" / revision).write_text(str(number) * 40)
        held = Folder(whole, repository / "snapshots" / (str(number) * 40))
        held.hold({**held.weights, UP: held.weights[UP] + number})
        if revision == "adapted":
            adapter(held)
            lora = {
                f"base_model.model.{UP.replace('.weight', '')}.lora_{part}.weight": torch.zeros(1, 1) for part in "AB"
            }
            save_file(lora, held.path / "adapter_model.safetensors", {"format": "pt"})
    script = (
        "from pipelines.models import find, load\n"
        "for path in ('owner/name', 'owner/name@v1', 'owner/name@adapted', 'owner/name@nope'):\n"
        "    try:\n"
        "        model = find.describe(find.requested('m', path))[0]\n"
        f"        print(model.fingerprint, float(load.model(model, 'float32', 'cpu').get_parameter({UP!r}).mean()))\n"
        "    except ValueError as reason:\n"
        "        print(type(reason).__name__, reason)\n"
    )
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **offline}, check=True
    )
    main, tagged, adapted, absent = ran.stdout.splitlines()
    assert main.startswith(f"owner/name@{'0' * 40} ") and tagged.startswith(f"owner/name@{'1' * 40} ")
    assert float(tagged.split()[1]) - float(main.split()[1]) == pytest.approx(1, abs=1e-4)
    assert adapted.startswith("Refusal") and "adapter" in adapted
    assert absent.startswith("Unreachable") and "at revision nope" in absent


class Planted:
    """What runs code when it is unpickled."""

    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return (open, (self.witness, "w"))


def test_a_pickle_is_read_only_where_that_is_said_and_then_runs_nothing(folder, tmp_path):
    weights_file = folder.torch()
    with pytest.raises(Refusal, match=r"pickles \(pytorch_model.bin\).*model.allow_pickle=true"):
        load.check(Model("m", str(folder.path)))
    torch.save({**folder.weights, "x": Planted(tmp_path / "ran")}, weights_file)
    with pytest.raises(Refusal, match="its weights do not load"):
        built(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/tmp/elsewhere.safetensors"])
def test_weights_outside_the_models_folder_are_refused(folder, name):
    (folder.path / "model.safetensors").rename(folder.path / "kept")
    (folder.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(Refusal, match="which lies elsewhere"):
        load.check(Model("m", str(folder.path)))
