"""`ropewalk export`: the files it writes are the model that was measured, in the engine's words."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import PROJECT
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from pipelines.choices.compose import expand
from pipelines.choices.config import Workbench
from pipelines.choices.sweep import cell_of
from pipelines.cli.deployment import RECORD
from pipelines.cli.main import run
from pipelines.models import find, gguf_files, header, load
from pipelines.records.cells import Model, Result
from pipelines.records.results import Store
from rope.config import geometry_of
from rope.dialects import ENGINES, from_llama_cpp
from rope.patch import patched
from rope.strategies import plan

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_STORE", str(tmp_path / "store"))
    return Store.at()


def chosen(*overrides) -> Workbench:
    (choice,) = expand(["cluster=cpu", *overrides])
    return choice


def measured(store, *overrides):
    """A cell as a grid would have left it."""
    cell = cell_of(chosen(*overrides))
    store.save(cell, Result(cell.id, "ok", {"nll": 1.0}))
    return cell


def test_a_cell_is_selected_by_its_id_a_prefix_of_it_or_its_label(store, capsys):
    cell = measured(store, "model=random", "strategy=yarn", "factor=8", "length=1024")
    measured(store, "model=random", "strategy=linear", "length=1024")
    outputs = set()
    for name in (cell.id, cell.id[:6], "random: yarn factor=8.0 @1024 perplexity"):
        assert run(["export", name, "--to", "llama.cpp"]) == 0
        outputs.add(capsys.readouterr().out)
    assert len(outputs) == 1 and "--rope-scaling yarn --rope-scale 8 --yarn-orig-ctx 256" in outputs.pop()
    record = json.loads((store.root / "exports" / cell.id / RECORD).read_text())
    assert (record["strategy"], record["options"], record["length"]) == ("yarn", {"factor": 8.0}, 1024)
    script = store.root / "exports" / cell.id / "serve.sh"
    assert os.access(script, os.X_OK) and record["command"] in script.read_text()


def test_an_unknown_cell_is_refused_with_the_last_ones(store, capsys):
    assert run(["export", "abc", "--to", "vllm"]) == 2
    assert "there is no finished cell in" in capsys.readouterr().err
    cells = [measured(store, "model=random", f"strategy={name}", "length=1024") for name in ("yarn", "ntk")]
    failed = replace(cells[0], seed=7)
    store.save(failed, Result(failed.id, "failed", error="no"))
    assert run(["export", "zzz", "--to", "vllm"]) == 2
    output = capsys.readouterr().err
    assert "there is no finished cell 'zzz'" in output and failed.id not in output
    assert all(f"{cell.id}  {cell.label}" in output for cell in cells)
    assert run(["export", "random: yarn @1024 perplexity", "--to", "vllm"]) == 0
    other = replace(cells[0], limit=3)
    store.save(other, Result(other.id, "ok"))
    capsys.readouterr()
    assert run(["export", "random: yarn @1024 perplexity", "--to", "vllm"]) == 2
    message = capsys.readouterr().err
    assert "matches 2 cells; give the id of one" in message
    assert (
        f"{cells[0].id}  {cells[0].label}  limit=null" in message and f"{other.id}  {other.label}  limit=3" in message
    )


def test_a_cell_whose_model_or_strategy_is_another_by_now_is_refused(store, capsys):
    cell = cell_of(chosen("model=random", "strategy=yarn", "length=1024"))
    elsewhere = replace(cell, model=replace(cell.model, fingerprint="other"))
    bent = tuple((layers, replace(p, inv_freq=tuple(2 * f for f in p.inv_freq))) for layers, p in cell.plans)
    for changed, says in ((elsewhere, "with other files of random"), (replace(cell, plans=bent), "an older yarn")):
        store.save(changed, Result(changed.id, "ok"))
        assert run(["export", changed.id, "--to", "vllm"]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "give --to ENGINE: one or more of transformers,"),
        (["abc"], "give --to ENGINE"),
        (["abc", "--to", "mlx"], "--to mlx: there is no such engine; there are transformers, "),
        (["--to", "vllm"], "give one CELL (an id, or a name in quotes) or overrides"),
        (["abc", "strategy=yarn", "--to", "vllm"], "not both"),
        (["abc", "def", "--to", "vllm"], "give one CELL"),
        (["abc", "--to", "vllm", "--json"], "ropewalk export has no option --json; it has --help, --config-dir, --to"),
        (["model=random", "strategy=yarn,ntk", "length=1024", "--to", "vllm"], "make 2 combinations"),
        (["model=random", "strategy=yran", "length=1024", "--to", "vllm"], "did you mean yarn?"),
        (["model=random", "strategy=yarn", "factor=0.5", "length=1024", "--to", "vllm"], "factor=0.5: give"),
        (["model=models/tiny", "length=1024", "--to", "transformers", "out=models/tiny"], "the model itself, which"),
        (["model=random", "strategy=yarn", "length=1024", "--to", "vllm", "out=models/tiny"], "something else than"),
    ],
)
def test_a_bad_command_line_is_refused_in_a_sentence(store, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(PROJECT)
    assert run(["export", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.fixture(scope="module")
def random_folder(tiny_folder, tmp_path_factory):
    """A random Llama whose attention is less sharp than that of `tiny_folder`, which blows roundings up."""
    folder = tmp_path_factory.mktemp("random")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(tiny_folder)
    config.initializer_range = 0.05
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def logits(model, length):
    with torch.no_grad():
        return model(torch.arange(length)[None] * 7 % 250).logits


@pytest.mark.parametrize("engine", ["transformers", "transformers-v4"])
@pytest.mark.parametrize("strategy", ["yarn", "ntk", "dynamic_ntk", "resonance", "truncated"])
def test_an_exported_folder_gives_our_logits(store, random_folder, tmp_path, strategy, engine):
    length, out = 640, tmp_path / "out"
    choice = chosen(
        "model=local", f"model.path={random_folder}", "model.name=t", f"strategy={strategy}", f"length={length}"
    )
    model = AutoModelForCausalLM.from_pretrained(random_folder, dtype=torch.float32).eval()
    with patched(model, cell_of(choice).plans):
        ours = logits(model, length)
    for _ in range(2):  # and once more over the first
        assert (
            run(
                [
                    "export",
                    f"model={random_folder}",
                    f"strategy={strategy}",
                    f"length={length}",
                    "--to",
                    engine,
                    f"out={out}",
                ]
            )
            == 0
        )
    served = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(served, length), ours, atol=1e-5, rtol=0)
    assert (logits(model, length) - ours).abs().max() > 1e-3
    before, after = random_folder / "model.safetensors", out / "model.safetensors"
    assert after.read_bytes() == before.read_bytes() and after.stat().st_ino == before.stat().st_ino
    assert (out / "config.json").stat().st_ino != (random_folder / "config.json").stat().st_ino
    assert (out / "tokenizer.json").is_file()


def test_a_random_model_is_exported_with_its_weights(store, tmp_path):
    out = tmp_path / "out"
    assert run(["export", "model=random", "strategy=linear", "length=512", "--to", "transformers", f"out={out}"]) == 0
    cell = cell_of(chosen("model=random", "strategy=linear", "length=512"))
    model = load.model(cell.model, "float32", "cpu")
    with patched(model, cell.plans):
        ours = logits(model, 512)
    served = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(served, 512), ours, atol=1e-5, rtol=0)


def test_every_engine_at_once_lists_what_is_not_supported(store, capsys):
    request = ["export", "model=models/tiny", "strategy=yarn", "length=2048", "--to"]
    assert run([*request, "all"]) == 0
    output = capsys.readouterr().out
    assert "not possible" not in output
    root = store.root / "exports" / "tiny_yarn_2048"
    assert {folder.name for folder in root.iterdir()} == set(ENGINES)
    line = next(line for line in output.splitlines() if "vllm serve" in line).strip()
    words = shlex.split(line)
    assert Path(words[2]).resolve() == PROJECT / "models" / "tiny"
    assert json.loads(words[4])["rope_parameters"]["factor"] == 4.0
    assert run(["export", "model=models/tiny", "strategy=self_extend", "length=2048", "--to", "all"]) == 2
    assert (
        "changes attention itself, not frequencies alone; the closest supported alternative is "
        in capsys.readouterr().out
    )


def test_a_list_needs_a_gguf_file_for_llama_cpp(store, capsys):
    assert run(["export", "model=models/tiny", "strategy=truncated", "length=1024", "--to", "llama.cpp"]) == 2
    output = capsys.readouterr().out
    assert "within a GGUF file, and tiny is none: give model=FILE.gguf; the closest" in output


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A GGUF file of small tensors that declares a scaling of its own."""
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (
        ("block_count", 1),
        ("context_length", 512),
        ("embedding_length", 64),
        ("attention.head_count", 2),
        ("rope.dimension_count", 32),
    ):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.rope.freq_base", 10_000.0)
    writer.add_string("llama.rope.scaling.type", "linear")
    writer.add_float32("llama.rope.scaling.factor", 2.0)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    weights = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    writer.add_tensor(
        "token_embd.weight",
        gguf.quantize(weights, gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(64, dtype=np.float32))
    writer.add_tensor("rope_freqs.weight", np.full(16, 3.0, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("strategy", ["yarn", "resonance", "ntk", "none"])
def test_a_gguf_copy_says_the_plan_on_top_of_the_files_own_scaling(store, capsys, gguf_file, tmp_path, strategy):
    import gguf

    out = tmp_path / "out"
    assert (
        run(["export", f"model={gguf_file}", f"strategy={strategy}", "length=2048", "--to", "llama.cpp", f"out={out}"])
        == 0
    )
    output = capsys.readouterr().out
    assert "in the place of llama.rope.scaling.type" in output and "rope_freqs.weight of small.gguf" in output
    (copy,) = out.glob("*.gguf")
    assert f"llama-server -m {copy} -c 2048" in output
    found, before = gguf.GGUFReader(copy), gguf.GGUFReader(gguf_file)
    tensors = {tensor.name: tensor for tensor in found.tensors}
    assert (tensors["token_embd.weight"].data == before.tensors[0].data).all()
    assert tensors["token_embd.weight"].tensor_type == before.tensors[0].tensor_type
    assert header.read(copy).keys["tokenizer.ggml.tokens"] == ["a", "b"]
    keys = {key.removeprefix("llama."): value for key, value in header.read(copy).keys.items() if "." in key}
    assert keys["context_length"] == 2048
    factors = tensors["rope_freqs.weight"].data.tolist() if "rope_freqs.weight" in tensors else []
    assert factors, "whatever acts on top of a list is a list"
    _, config = find.describe(Model("small", str(gguf_file)))
    assert geometry_of(config)["all"].native(512).inv_freq[0] == pytest.approx(1 / 6), "the file's 2 times its list's 3"
    heard = from_llama_cpp([], gguf_files.header_config(header.read(gguf_file)), keys, factors)["all"].plan(2048)
    expected = plan(strategy, geometry_of(config)["all"], 2048)
    np.testing.assert_allclose(heard.inv_freq, expected.inv_freq, rtol=1e-6)
    assert heard.attention_factor == pytest.approx(expected.attention_factor, rel=1e-6)


def test_a_hub_models_config_is_written_alone(store, capsys, tmp_path, monkeypatch):
    config = {
        "model_type": "llama",
        "head_dim": 32,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "rope_theta": 1e4,
        "max_position_embeddings": 512,
    }
    described = (Model("owner/name", "owner/name", "c0ffee", fingerprint="owner/name@c0ffee"), config)
    monkeypatch.setattr(find, "describe", lambda model: described)
    out = tmp_path / "out"
    request = ["export", "model=owner/name", "strategy=yarn", "length=2048", f"out={out}", "--to"]
    assert run([*request, "transformers"]) == 0
    assert json.loads((out / "config.json").read_text())["rope_parameters"]["rope_type"] == "yarn"
    loading = f'from_pretrained("owner/name", revision="c0ffee", config=AutoConfig.from_pretrained("{out}"))'
    assert loading in capsys.readouterr().out
    assert run([*request, "vllm"]) == 0
    assert "vllm serve owner/name --revision c0ffee --hf-overrides" in capsys.readouterr().out


def test_words_need_no_torch(tmp_path):
    script = (
        "import sys; from pipelines.cli.main import run; "
        "code = run(['export', 'model=models/tiny', 'strategy=yarn', 'length=2048', '--to', 'all']); "
        "print(code, [name for name in ('torch', 'transformers', 'ray', 'lm_eval') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=True,
        env={**os.environ, "ROPEWALK_STORE": str(tmp_path)},
    )
    assert ran.stdout.splitlines()[-1] == "0 []"
