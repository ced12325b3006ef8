"""GGUF files: read as llama.cpp reads them, whole or not at all, and converted to what llama.cpp computes."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.models import conversion, digest, find, gguf_files, header, load
from pipelines.records.cells import Model, Refusal
from pipelines.records.places import SITE
from rope.config import geometry_of
from rope.llama_cpp_rules import table
from rope.patch import patched

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = (np.arange(160) * 37 % 250).tolist()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "cache"))


def model_of(model_type="llama", **config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**tiny_gguf.SIZES, **config})).eval()


def tiny(folder, architecture="llama", keys=None, name="tiny.gguf", **more):
    return tiny_gguf.write(folder / name, model_of(), architecture, keys, **more)


def config_of(path):
    return find.describe(Model("m", str(path)))[1]


def scores(model, ids=IDS):
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1).numpy()


def split(path, count=2):
    """The parts that a file is split into, as llama-gguf-split writes them."""
    import gguf

    reader = gguf.GGUFReader(path)
    files = []
    for number in range(count):
        files.append(path.with_name(f"parts-{number + 1:05}-of-{count:05}.gguf"))
        writer = gguf.GGUFWriter(files[-1], "llama")
        for field in reader.fields.values() if number == 0 else ():
            if field.name != "general.architecture" and not field.name.startswith("GGUF."):
                kinds = field.types
                writer.add_key_value(field.name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        tiny_gguf.close(writer)
    return files


FACTORS = [
    ({}, 1),
    ({"rope.scale_linear": 4.0}, 4),
    ({"rope.scaling.factor": 4.0}, 4),
    ({"rope.scaling.factor": 0.0}, 1),
    ({"rope.scale_linear": 4.0, "rope.scaling.factor": 2.0}, 2),
    ({"rope.scale_linear": 4.0, "rope.scaling.factor": 0.0}, 1),
    ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, 1),
    ({"rope.scaling.type": "none", "rope.scale_linear": 4.0}, 1),
    ({"rope.scaling.type": "linear", "rope.scale_linear": 4.0}, 4),
    ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}, 1),
    ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_beta_fast": 2.0}, 1),
    ({"rope.scaling.attn_factor": 1.5}, 1),
    ({"rope.freq_base": None, "rope.dimension_count": None}, 1),
    ({"rope.freq_base": 5e5, "attention.key_length": None, "attention.value_length": None}, 1),
]


@pytest.mark.parametrize(("keys", "factor"), FACTORS)
def test_a_scaling_is_read_as_llama_cpp_computes_it(keys, factor, tmp_path):
    path = tiny(tmp_path, keys=keys)
    (geometry,) = geometry_of(config_of(path)).values()
    plan = geometry.native(64)
    assert plan.inv_freq[0] == pytest.approx(1 / factor)
    assert geometry.base == (keys.get("rope.freq_base") or 10_000.0)
    if find_spec("cyllama") is not None:
        model = model_of()
        with patched(model, (("all", plan),)):
            np.testing.assert_allclose(scores(model), tiny_gguf.llama_cpp_scores(path, IDS), atol=3e-4)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"rope.scaling.type": "dynamic"}, "'dynamic', on which llama.cpp aborts"),
        ({"rope.scaling.factor": 0.5}, "makes every pair faster"),
        ({"block_count": None}, "does not say llama.block_count"),
        ({"block_count": 8}, "has tensors of 2 layers of 8"),
        ({"general": None, "context_length": None}, "does not say llama.context_length"),
    ],
)
def test_a_header_that_llama_cpp_refuses_is_refused_in_a_sentence(keys, sentence, tmp_path):
    with pytest.raises(Refusal, match=sentence):
        config_of(tiny(tmp_path, keys=keys))


def test_lists_are_read_where_the_architecture_reads_them(tmp_path):
    rising = np.linspace(1, 4, 8)
    path = tiny(tmp_path, tensors={"rope_freqs.weight": rising})
    plain, listed = (geometry_of(it)["all"].native(64).inv_freq for it in (model_of().config, config_of(path)))
    np.testing.assert_allclose(np.array(plain) / listed, rising, rtol=1e-6)
    qwen = tiny_gguf.write(tmp_path / "q.gguf", model_of("qwen2"), "qwen2", tensors={"rope_freqs.weight": rising})
    with pytest.raises(Refusal, match=r"rope_freqs\.weight, which llama\.cpp does not read in a qwen2"):
        config_of(qwen)


def test_the_two_lists_of_phi_are_read_as_longrope(tmp_path):
    lists = {"rope_factors_long.weight": np.linspace(1, 8, 8), "rope_factors_short.weight": np.linspace(1, 2, 8)}
    keys = {"rope.scaling.original_context_length": 256, "rope.scaling.attn_factor": 1.25}
    model = model_of("phi3", max_position_embeddings=1024)
    path = tiny_gguf.write(tmp_path / "phi.gguf", model, "phi3", keys, tensors=lists)
    (geometry,) = geometry_of(config_of(path)).values()
    for length, name in ((256, "rope_factors_short.weight"), (300, "rope_factors_long.weight")):
        plan = geometry.native(length)
        expected = np.array(geometry_of(model.config)["all"].native(32).inv_freq) / lists[name]
        np.testing.assert_allclose(plan.inv_freq, expected, rtol=1e-6)
        assert plan.attention_factor == 1.25
        if find_spec("cyllama") is not None:
            with patched(model, (("all", plan),)):
                ids = (IDS * 2)[:length]
                np.testing.assert_allclose(scores(model, ids), tiny_gguf.llama_cpp_scores(path, ids), atol=3e-4)


GEMMA = {"attention.sliding_window": 16, "rope.freq_base": 1e6, "rope.scaling.type": "linear"}


@pytest.mark.parametrize(
    ("keys", "full", "local"),
    [
        ({}, [5, 11], 1e4),
        ({"attention.sliding_window_pattern": 3}, [2, 5, 8, 11], 1e4),
        ({"attention.sliding_window_pattern": [True, False] * 6}, [1, 3, 5, 7, 9, 11], 1e4),
        ({"rope.freq_base_swa": 5e3}, [5, 11], 5e3),
    ],
)
def test_gemma_3_has_a_base_and_a_scale_for_each_kind_of_layer(keys, full, local, tmp_path):
    sizes = {"num_hidden_layers": 12, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
    said = {**GEMMA, "rope.scaling.factor": 8.0, "rope.freq_base_swa": None, **keys}
    path = tiny_gguf.write(tmp_path / "gemma.gguf", model_of("gemma3_text", **sizes), "gemma3", said)
    config = config_of(path)
    assert [layer for layer, kind in enumerate(config["layer_types"]) if kind == "full_attention"] == full
    geometries = geometry_of(config)
    assert {kind: it.base for kind, it in geometries.items()} == {"full_attention": 1e6, "sliding_attention": local}
    first = {kind: it.native(64).inv_freq[0] for kind, it in geometries.items()}
    assert first == {"full_attention": 1 / 8, "sliding_attention": 1.0}
    model, _ = find.describe(Model("gemma", str(path)))
    loaded = load.model(model, "float32", "cpu")
    assert geometry_of(loaded.config) == geometries
    listed = isinstance(keys.get("attention.sliding_window_pattern"), list)  # cyllama's llama.cpp is older than that
    if find_spec("cyllama") is not None and not listed:
        np.testing.assert_allclose(scores(loaded), tiny_gguf.llama_cpp_scores(path, IDS), atol=1e-2)


ROTATING = [name for name, rules in table()[0].items() if rules.rope != "none" and name not in ("baichuan", "bert")]
"""transformers' BERT does not rotate; of Baichuan those of some sizes do not."""


@pytest.mark.parametrize("architecture", ROTATING)
def test_what_a_file_says_counts_whatever_a_class_of_transformers_takes_for_granted(architecture):
    rules = table()[0][architecture]
    keys = {
        "attention.head_count": 4,
        "embedding_length": 96,
        "attention.key_length": 16,
        "rope.freq_base": 12_345.0,
        "rope.scaling.factor": 4.0,
        "context_length": 72,
        "block_count": 12,
        "vocab_size": 257,
        "attention.sliding_window": 16,
    }
    said = {"general.architecture": architecture, **{f"{architecture}.{key}": value for key, value in keys.items()}}
    gguf = header.Header(said, ("token_embd.weight",))
    if rules.own_rules == "layers of several kinds":
        with pytest.raises(Refusal, match="rotate in several ways"):
            gguf_files.with_scaling(gguf_files.header_config(gguf), gguf, "x.gguf")
        return
    config = gguf_files.with_scaling(gguf_files.header_config(gguf), gguf, "x.gguf")
    for layer_type, geometry in geometry_of(config).items():
        base, factor = 12_345.0, 4
        if layer_type == "sliding_attention":
            base = rules.local.base if isinstance(rules.local.base, float) else base
            factor = factor if rules.local.scale == "file" else 1
        assert (geometry.base, geometry.rotated, geometry.trained_length) == (base, 16, 72)
        assert geometry.native(72).inv_freq[0] == 1 / factor


def test_numbers_by_layer_are_read(tmp_path):
    keys = {"attention.head_count_kv": [2, 1], "feed_forward_length": [96, 48], "attention.head_count": [4, 4]}
    path = tiny(tmp_path, keys={**keys, "attention.key_length": None})
    config = config_of(path)
    with pytest.raises(Refusal, match=r"gives attention\.head_count_kv, feed_forward_length layer by layer"):
        load.materialise(Model("m", str(path)))
    assert (config["num_key_value_heads"], config["intermediate_size"], config["head_dim"]) == (2, 96, 16)


def test_a_split_model_is_read_whole_whichever_part_is_given(tmp_path):
    whole = tiny(tmp_path)
    first, second = split(whole)
    assert config_of(first) == config_of(second) == config_of(whole)
    fingerprints = {find.describe(Model("m", str(path)))[0].fingerprint for path in (first, second)}
    assert len(fingerprints) == 1
    model, _ = find.describe(Model("m", str(second)))
    np.testing.assert_allclose(scores(load.model(model, "float32", "cpu")), scores(model_of()), atol=1e-5)


def test_parts_that_are_missing_or_of_another_model_are_refused(tmp_path):
    first, second = split(tiny(tmp_path))
    moved = second.rename(tmp_path / "moved.gguf")
    with pytest.raises(Refusal, match=r"parts-00002-of-00002\.gguf is not beside it"):
        config_of(first)
    with pytest.raises(Refusal, match="is not named so"):
        config_of(moved)
    second.write_bytes(first.read_bytes())
    with pytest.raises(Refusal, match="not of one model"):
        config_of(first)


@pytest.mark.parametrize(
    ("architecture", "kind", "sentence"),
    [
        ("clip", None, "a projector for images"),
        ("clip", "mmproj", "a projector for images"),
        ("llama", "adapter", "a LoRA adapter"),
        ("", "imatrix", "an importance matrix"),
        ("llama", "model", "a vocabulary and no weights"),
    ],
)
def test_a_gguf_file_that_is_no_model_is_refused_by_what_it_is(architecture, kind, sentence, tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "other.gguf", architecture)
    if kind:
        writer.add_type(kind)
    if kind != "model":
        writer.add_tensor("v.blk.0.attn_q.weight", np.zeros((2, 2), np.float32))
    tiny_gguf.close(writer)
    with pytest.raises(Refusal, match=sentence):
        config_of(tmp_path / "other.gguf")


def test_a_header_is_read_as_gguf_reads_it(tmp_path):
    import gguf

    path = tiny(tmp_path, keys={"rope.scale_linear": 4.0, "attention.head_count_kv": [2, 1]})
    ours, theirs = header.read(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.keys == fields
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for kind, (numbers, size) in header.BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] == (numbers, size)


@pytest.mark.parametrize("block", [16, 61, header.BLOCK])
def test_a_vocabulary_is_skipped_whole_wherever_a_block_of_it_ends(block, tmp_path, monkeypatch):
    import gguf

    monkeypatch.setattr(header, "BLOCK", block)
    words = ["x" * (number % 40) for number in range(header.LONG_ARRAY + 1)]
    writer = gguf.GGUFWriter(tmp_path / "words.gguf", "llama")
    writer.add_array("words", words)
    writer.add_uint32("behind", 7)
    writer.add_tensor("t", np.zeros(4, np.float32))
    tiny_gguf.close(writer)
    read = header.read(tmp_path / "words.gguf")
    assert (read.keys["words"], read.keys["behind"], read.tensors) == (len(words), 7, ("t",))
    whole = (tmp_path / "words.gguf").read_bytes()
    for end in (whole.index(b"x" * 39) + 3, whole.index(b"behind") - 12, whole.index(b"behind") - 8):
        (tmp_path / "words.gguf").write_bytes(whole[:end])
        with pytest.raises(ValueError, match="ends within its header"):
            header.read(tmp_path / "words.gguf")


def head(keys=0, tensors=0, body=b"", version=3):
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, keys) + body


def key(name, kind, body):
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + body


HUGE = 1 << 60
ALIGNMENT_0 = key("general.alignment", 4, struct.pack("<I", 0))
TWICE = key("a.b", 4, struct.pack("<I", 1))
HOSTILE = {
    "announces 1,152,921,504,606,846,976 keys": head(keys=HUGE),
    "announces 1,152,921,504,606,846,976 tensors": head(tensors=HUGE),
    "bytes of text": head(1, body=struct.pack("<Q", HUGE) + bytes(64)),
    "bytes of text; download": head(1, body=key("a.b", 8, struct.pack("<Q", HUGE))),
    "entries of a.b": head(1, body=key("a.b", 9, struct.pack("<IQ", 4, HUGE))),
    "entries of a.b; download": head(1, body=key("a.b", 9, struct.pack("<IQ", 8, HUGE))),
    "bytes more": head(1, body=key("a.b", 9, struct.pack("<IQQ", 8, 2000, HUGE)) + bytes(16000)),
    "unknown type 99": head(1, body=key("a.b", 99, bytes(8))),
    "array of the unknown type 77": head(1, body=key("a.b", 9, struct.pack("<IQ", 77, 1) + bytes(8))),
    "array of arrays": head(1, body=key("a.b", 9, struct.pack("<IQIQ", 9, 1, 4, 1) + bytes(8))),
    "must be a power of 2": head(1, body=ALIGNMENT_0),
    "key a.b twice": head(2, body=TWICE + TWICE),
    "has 9 dimensions": head(0, 1, struct.pack("<Q", 1) + b"t" + struct.pack("<I", 9) + bytes(99)),
    "ends before its tensor t": head(0, 1, struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, HUGE, 0, 0)),
    "little-endian": struct.pack(">4sIQQ", b"GGUF", 3, 0, 0),
    "no GGUF file": head(version=1),
}


@pytest.mark.parametrize("sentence", HOSTILE)
def test_a_hostile_header_costs_a_sentence_and_no_memory(sentence, tmp_path):
    import re
    import tracemalloc

    (tmp_path / "x.gguf").write_bytes(HOSTILE[sentence])
    tracemalloc.start()
    begun = time.monotonic()
    with pytest.raises(Refusal, match=re.escape(sentence)):
        config_of(tmp_path / "x.gguf")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20 and time.monotonic() - begun < 1
    tracemalloc.stop()


def test_a_broken_off_download_is_refused(tmp_path):
    path = tiny(tmp_path)
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(Refusal, match=r"ends before its tensor .* bytes are missing"):
        config_of(path)


def test_weights_that_are_not_all_there_are_not_converted(tmp_path):
    path = tiny(tmp_path, drop=("blk.1.ffn_up.weight",))
    with pytest.raises(
        Refusal, match=r"1 are not there or of another shape \(model\.layers\.1\.mlp\.up_proj\.weight\)"
    ):
        load.materialise(Model("m", str(path)))


def test_an_architecture_that_transformers_does_not_convert_is_refused_at_once(tmp_path):
    path = tiny_gguf.write(tmp_path / "g.gguf", model_of("granite"), "granite")
    assert config_of(path)["model_type"] == "granite"
    with pytest.raises(Refusal, match=r"is of a granite, and transformers converts GGUF files of .*qwen2"):
        load.materialise(Model("m", str(path)))


def test_two_files_never_share_a_conversion_and_a_damaged_one_is_made_anew(tmp_path):
    one, other = tiny(tmp_path), tiny(tmp_path, keys={"rope.freq_base": 5e5}, name="other.gguf")
    folders = [load.materialise(Model("m", str(path))) for path in (one, other)]
    assert folders[0] != folders[1]
    weights = tmp_path / folders[0] / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-8], whole[:-1] + b"\1", b""):
        weights.write_bytes(damaged)
        assert config_of(one)["num_hidden_layers"] == 2
        assert load.materialise(Model("m", str(one))) == folders[0]
        assert weights.read_bytes() == whole
    with pytest.raises(ValueError, match="fingerprint is missing"):
        conversion.converted_folder("")


def test_one_byte_of_a_large_conversion_is_noticed_though_its_times_and_size_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "SMALL", 1024)
    path = tiny(tmp_path)
    weights = Path(load.materialise(Model("m", str(path)))) / "model.safetensors"
    whole, before = weights.read_bytes(), weights.stat()
    with weights.open("r+b") as stream:
        stream.seek(len(whole) // 2)
        stream.write(bytes([whole[len(whole) // 2] ^ 1]))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    load.materialise(Model("m", str(path)))
    assert weights.read_bytes() == whole


def test_a_file_that_was_put_beside_a_conversion_makes_it_anew(tmp_path):
    path = tiny(tmp_path)
    folder = Path(load.materialise(Model("m", str(path))))
    (folder / "adapter_config.json").write_text("{}")
    load.materialise(Model("m", str(path)))
    assert not (folder / "adapter_config.json").exists()


def test_what_a_killed_conversion_leaves_is_removed_and_what_is_being_made_is_not(tmp_path):
    from filelock import FileLock

    cache = tmp_path / "cache"
    for name in ("dead", "alive"):
        (cache / f"gguf-{name}-2.part").mkdir(parents=True)
        (cache / f"gguf-{name}-2.part" / "model.safetensors").write_text("half")
    with FileLock(cache / "gguf-alive-2.lock"):
        folder = Path(load.materialise(Model("m", str(tiny(tmp_path)))))
    left = {file.name for file in cache.iterdir() if file.is_dir() and file.name.startswith("gguf-")}
    assert left == {"gguf-alive-2.part", folder.name}


CONVERTED = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "phi3": ("phi3", {}),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5, "rope_theta": 2e4}),
    "starcoder2": ("starcoder2", {"rope_theta": 1e5}),
    "nemotron": ("nemotron", {"partial_rotary_factor": 0.25}),
    "gemma2": ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}),
}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CONVERTED)
def test_a_conversion_computes_what_the_file_says(model_type, tmp_path):
    architecture, config = CONVERTED[model_type]
    model = model_of(model_type, **config)
    (geometry,) = geometry_of(model.config).values()
    keys = {"rope.dimension_count": geometry.rotated}
    if model_type == "gemma2":
        keys |= {"attention.sliding_window": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    path = tiny_gguf.write(tmp_path / "m.gguf", model, architecture, keys)
    described, before = find.describe(Model("m", str(path)))
    converted = scores(load.model(described, "float32", "cpu"))
    assert geometry_of(find.describe(described)[1]) == geometry_of(before) == {"all": geometry}
    np.testing.assert_allclose(converted, scores(model), atol=1e-4)
    if find_spec("cyllama") is not None:
        np.testing.assert_allclose(converted, tiny_gguf.llama_cpp_scores(path, IDS), atol=1e-2)


@pytest.mark.parametrize(("layers", "scale"), [(2, 16), (46, 21)])
def test_gemmas_queries_are_scaled_as_llama_cpp_scales_them(layers, scale, tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "g.gguf", "gemma2")
    for name, value in {"block_count": layers, "embedding_length": 84, "attention.head_count": 4}.items():
        writer.add_uint32(f"gemma2.{name}", value)
    writer.add_uint32("gemma2.attention.key_length", 16)
    writer.add_uint32("gemma2.context_length", 64)
    for block in range(layers):
        writer.add_tensor(f"blk.{block}.attn_norm.weight", np.ones(84, np.float32))
    writer.add_tensor("token_embd.weight", np.ones((4, 84), np.float32))
    tiny_gguf.close(writer)
    assert conversion.unread(gguf_files.read_header(tmp_path / "g.gguf"))["query_pre_attn_scalar"] == scale


def test_a_manifest_names_every_file(tmp_path):
    folder = Path(load.materialise(Model("m", str(tiny(tmp_path)))))
    manifest = json.loads((folder / conversion.MANIFEST).read_text())
    assert {*manifest["files"], conversion.MANIFEST} == {file.name for file in folder.iterdir()}


CONVERT_TWICE = """
import sys
from pathlib import Path
import gguf
from pipelines.models import conversion, light
light.own()
light.load()
from transformers import modeling_gguf_pytorch_utils as loader
parse, calls = loader._gguf_parse_value, []
loader._gguf_parse_value = lambda part, types: calls.append(1) or parse(part, types)
file = Path(sys.argv[1])
conversion.convert_once(file, "0" * 16)
parts = sum(len(field.data) for field in gguf.GGUFReader(file).fields.values())
print(len(calls) <= 2 * parts, "torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_a_conversion_parses_every_field_once_and_needs_no_compiler(tmp_path):
    file = tiny(tmp_path)
    command = [sys.executable, "-c", CONVERT_TWICE, str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=SITE, check=True)
    assert ran.stdout.splitlines()[-1] == "True False"
