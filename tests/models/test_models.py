"""Models by folder, GGUF file, package, hub id and random shape."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from support import CONF

from pipelines.models import find, load
from pipelines.records.cells import Model, Refusal

SHAPE = (
    ("hidden_size", 64),
    ("intermediate_size", 96),
    ("max_position_embeddings", 128),
    ("num_attention_heads", 4),
    ("num_hidden_layers", 1),
    ("num_key_value_heads", 2),
    ("vocab_size", 257),
)
RANDOM = Model("random", "random", shape=SHAPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    load.model(RANDOM, "float32", "cpu").save_pretrained(path)
    load.byte_tokenizer().save_pretrained(path)
    return path


def test_a_plain_tokenizer_neither_cuts_nor_pads(folder, tmp_path):
    for file in ("config.json", "tokenizer_config.json"):
        (tmp_path / file).write_text((folder / file).read_text())
    limits = {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 16},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps({**find.read_config(folder / "tokenizer.json"), **limits}))
    plain = find.plain_tokenizer(Model("limits", str(tmp_path)))
    assert [len(plain("a" * length)["input_ids"]) for length in (2, 9)] == [2, 9]


def test_a_random_model_is_the_same_every_time_and_another_with_another_seed():
    def weights(model):
        load.model.cache_clear()
        return load.model(model, "float32", "cpu").model.layers[0].self_attn.q_proj.weight

    other = Model("random", "random", shape=(*SHAPE, ("seed", 1)))
    assert weights(RANDOM).equal(weights(RANDOM))
    assert not weights(RANDOM).equal(weights(other))
    assert find.describe(RANDOM)[0].fingerprint != find.describe(other)[0].fingerprint


def test_a_folder_is_known_by_what_it_holds_not_by_its_name(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    first, config = find.describe(Model("a", str(folder)))
    assert find.describe(Model("b", str(copy)))[0].fingerprint == first.fingerprint
    assert config["max_position_embeddings"] == 128
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert find.describe(Model("b", str(copy)))[0].fingerprint != first.fingerprint


def test_the_last_model_stays_loaded(folder):
    model, _ = find.describe(Model("a", str(folder)))
    assert load.model(model, "float32", "cpu") is load.model(model, "float32", "cpu")
    assert str(load.model(model, "bfloat16", "cpu").dtype) == "torch.bfloat16"


def test_bytes_survive_the_byte_tokenizer():
    tokenizer = load.byte_tokenizer()
    text = "naïve\n\tΩ 12"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode()) and tokenizer.decode(ids) == text


@pytest.mark.parametrize("untied", [False, True])
def test_a_gguf_header_is_read_into_the_keys_of_a_config(tmp_path, untied):
    import gguf

    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(128)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(32)
    writer.add_token_list([f"t{n}" for n in range(8)])
    writer.add_tensor("token_embd.weight", np.zeros((8, 128), np.float32))
    for block in range(2):
        writer.add_tensor(f"blk.{block}.attn_norm.weight", np.zeros(128, np.float32))
    if untied:
        writer.add_tensor("output.weight", np.zeros((8, 128), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    _, config = find.describe(Model("small", str(path)))
    assert config == {
        "model_type": "llama",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
        "head_dim": 32,
        "rope_theta": 500000.0,
        "partial_rotary_factor": 1.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 1.0},
        "vocab_size": 8,
        "tie_word_embeddings": not untied,
    }


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("./nowhere", "no file or folder"),
        ("nowhere.gguf", "no file or folder"),
        ("package://no_such_package/model.gguf", "not installed"),
    ],
)
def test_a_model_that_is_not_there_is_refused(path, sentence):
    with pytest.raises(Refusal, match=sentence):
        find.describe(Model("m", path))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"config\.json"):
        find.describe(Model("m", str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Refusal, match="JSON"):
        find.describe(Model("m", str(tmp_path)))
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(Refusal, match=r"\.gguf"):
        find.describe(Model("m", str(tmp_path / "weights.bin")))


def test_a_folder_whose_weights_do_not_load_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    with pytest.raises(Refusal, match="weights"):
        load.model(Model("m", str(tmp_path)), "float32", "cpu")
    with pytest.raises(Refusal, match="tokenizer"):
        load.tokenizer(Model("m", str(tmp_path)))


def test_an_unreachable_hub_model_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Refusal, match="hub"):
        find.describe(Model("m", "owner/no-such-model", "0" * 40))


@pytest.mark.hub
@pytest.mark.parametrize(
    ("name", "theta", "limit"),
    [
        ("llama3_8b", 500000.0, 8192),
        ("llama31_8b", 500000.0, 131072),
        ("llama32_1b", 500000.0, 131072),
        ("llama2_7b", 10000.0, 4096),
        ("mistral_7b", 10000.0, 32768),
        ("qwen25_7b", 1000000.0, 131072),
    ],
)
def test_the_pinned_hub_configs_are_what_conf_says(name, theta, limit):
    from omegaconf import OmegaConf

    from rope.config import geometry_of

    if os.environ.get("ROPEWALK_TEST_HUB") != "1":
        pytest.skip("needs the Hugging Face hub and access to gated models: ROPEWALK_TEST_HUB=1 runs it")
    chosen = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    try:
        _, config = find.describe(Model(name, chosen.path, chosen.revision))
    except Refusal as reason:
        pytest.skip(str(reason))
    [geometry] = geometry_of(config, chosen.trained_length).values()
    assert (geometry.base, config["max_position_embeddings"]) == (theta, limit)
    assert geometry.trained_length == chosen.trained_length


def test_files_that_changed_since_a_launch_began_are_refused_when_they_are_read(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    model, _ = find.describe(Model("a", str(copy)))
    load.model.cache_clear()
    assert load.tokenizer(model) is load.tokenizer(model)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    for read in (load.tokenizer, lambda model: load.model(model, "float32", "cpu")):
        with pytest.raises(Refusal, match="not those that this launch began with"):
            read(model)


def test_a_tokenizer_that_was_read_is_forgotten_when_its_file_changes(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    model = Model("a", str(copy))
    before = find.plain_tokenizer(model), load.tokenizer(model)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "a"}))
    after = find.plain_tokenizer(model), load.tokenizer(model)
    assert [one.bos_token_id for one in before] != [one.bos_token_id for one in after]
