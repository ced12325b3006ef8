"""Whatever comes in ends in success or in a sentence: 2,560 inputs in CI, 23,040 with `pytest -m sweep tests/fuzz`."""

# ruff: noqa: RUF005

from __future__ import annotations

import json
import struct
from dataclasses import fields

import border
import pytest
from border import NUMBERS, PLAIN, TEXTS, entered, examples
from hypothesis import example, given
from hypothesis import strategies as st
from support import TINY, stub_cell

from pipelines.choices import schema
from pipelines.choices.layers import layers_of_model
from pipelines.choices.sweep import geometry_for
from pipelines.models import find, header
from pipelines.records.cells import Model, Refusal, Result
from pipelines.records.results import Store
from pipelines.tasks import text
from pipelines.train import recipe
from pipelines.train.recipe import TrainRecipe
from rope.families import _table

SWEEP = pytest.param(9, marks=pytest.mark.sweep)
TIMES = pytest.mark.parametrize("times", [1, SWEEP], ids=["ci", "sweep"])
SLOW_TIMES = pytest.mark.parametrize("times", [pytest.param(1, marks=pytest.mark.slow), SWEEP], ids=["ci", "sweep"])

KEYS = st.sampled_from(
    ["model", "strategy", "task", "cluster", "experiment", "length", "factor", "limit", "seed", "dtype", "store"]
    + ["strategy.name", "strategy.beta_fast", "+strategy.geometry", "yarn.beta_slow", "strategy.layers", "model.path"]
    + ["model.name", "model.trained_length", "model.shape", "task.name", "task.last", "task.keys", "task.depths"]
    + ["task.buckets", "task.num_fewshot", "cluster.workers", "cluster.device", "cluster.timeout", "hydra", "+x"]
    + ["hydra/launcher", "hydra/sweeper", "hydra.sweeper.params", "hydra.searchpath", "~strategy", "++length", "a@b"]
)
VALUES = (NUMBERS | TEXTS).map(str) | st.sampled_from(
    ["[1]", "{a: b}", "{0-99999999: 2}", "yarn,linear", "passkey", "random", "humaneval", "hub:", "hub:a/b@c", "'", '"']
    + ["range(1,1e9)", "range(2,1,1)", "choice(1,2)", "glob(x*)", "shuffle(range(1,99999999))", "interval(1,2)", "[["]
    + [
        "${oc.env:HF_TOKEN}",
        "${oc.decode:${oc.env:HF_TOKEN}}",
        "${oc.${dtype}:HF_TOKEN}",
        "${length}",
        "package://../x",
    ]
)
WORDS = st.lists(st.tuples(KEYS, VALUES).map("=".join) | TEXTS, min_size=1, max_size=3)


@SLOW_TIMES
def test_command_lines(enclosed, times):
    for verb in ("plan", "theory"):  # what is imported and read once is nobody's three seconds
        border.run([verb, "length=2048"])

    @examples(200, times)
    @given(st.sampled_from([("plan",), ("theory", "--json")]), WORDS)
    def holds(verb, words):
        words = [word for word in words if not word.startswith("-") and word != "/"]
        entered(enclosed, *verb, "length=2048", *words)

    holds()


SIZES = st.sampled_from(
    ["hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "head_dim", "vocab_size"]
    + ["intermediate_size", "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "layer_types"]
    + ["model_type", "torch_dtype", "dtype", "architectures", "sliding_window", "no_rope_layers", "text_config"]
    + ["partial_rotary_factor", "original_max_position_embeddings", "max_window_layers", "qk_rope_head_dim"]
    + ["quantization_config", "auto_map", "rope_local_base_freq", "no_rope_layer_interval", "per_layer_config"]
)
SCALINGS = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["yarn", "linear", "dynamic", "llama3", "longrope", "default"]) | PLAIN},
    optional={
        name: PLAIN
        for name in ("factor", "rope_theta", "original_max_position_embeddings", "beta_fast", "long_factor", "mscale")
    },
)
CONFIGS = st.tuples(
    st.dictionaries(SIZES, PLAIN | SCALINGS, max_size=4),
    st.none() | st.sampled_from(sorted(_table())),
    st.booleans(),
)


def _config(changes, family, bare):
    base = {} if bare else json.loads((TINY / "config.json").read_text())
    return {**base, **({} if family is None else {"model_type": family}), **changes}


@TIMES
def test_config_files(enclosed, times):
    """What a grid and its preview read of a config, without the command line around it."""
    folder = enclosed / "model"
    folder.mkdir()

    @examples(900, times)
    @given(CONFIGS)
    def holds(config):
        (folder / "config.json").write_text(json.dumps(_config(*config)))
        try:
            geometry_for(Model("m", str(folder)))
            layers_of_model(Model("m", str(folder)))
        except Refusal as reason:
            assert str(reason)

    holds()


VERBS = [
    ("theory", "--json", "strategy=yarn", "length=2048"),
    ("plan", "strategy=none,yarn", "length=2048"),
    ("doctor", "--only", "static"),
    ("export", "strategy=yarn", "length=2048", "--to", "vllm,llama.cpp,exllama"),
]


@SLOW_TIMES
def test_config_files_through_every_static_verb(enclosed, times):
    folder = enclosed / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_config({}, "smollm3", False)))
    border.run(
        ["doctor", f"model={folder}", "--only", "static"]
    )  # builds with transformers, whose import takes seconds

    @examples(60, times)
    @given(CONFIGS, st.sampled_from(VERBS))
    def holds(config, verb):
        (folder / "config.json").write_text(json.dumps(_config(*config)))
        out = [f"out={enclosed / 'out'}"] if verb[0] == "export" else []
        entered(enclosed, verb[0], f"model={folder}", *verb[1:], *out)

    holds()


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _gguf() -> bytes:
    """A header as of a llama of one layer, with an array, a text and two tensors."""
    keys = {"block_count": 1, "context_length": 64, "embedding_length": 64, "attention.head_count": 4}
    body = b"".join(_text(f"llama.{name}") + struct.pack("<II", 4, value) for name, value in keys.items())
    body += _text("general.architecture") + struct.pack("<I", 8) + _text("llama")
    body += _text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 1.0, 2.0, 3.0)
    body += _text("llama.rope.freq_base") + struct.pack("<If", 6, 10000.0)
    tensors = ["token_embd.weight", "blk.0.attn_q.weight"]
    places = b"".join(_text(n) + struct.pack("<IQQIQ", 2, 8, 8, 0, 256 * i) for i, n in enumerate(tensors))
    start = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys) + 3)
    whole = start + body + places
    return whole + b"\0" * (-len(whole) % 32) + b"\0" * 512


GGUF = _gguf()
PATCHES = st.tuples(
    st.integers(0, len(GGUF) - 1),
    st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\xff" * 8, b"\x63\0\0\0", b"\x09\0\0\0", b"\0" * 7 + b"\x40", b"\x80"])
    | st.binary(min_size=1, max_size=8),
)


@TIMES
def test_gguf_headers(enclosed, times):
    path = enclosed / "m.gguf"

    @examples(600, times)
    @given(st.lists(PATCHES, min_size=1, max_size=3), st.none() | st.integers(0, len(GGUF)))
    @example([(169, b"\xff" * 4)], None)  # more heads than the hidden size: heads of no dimension
    def holds(patches, end):
        body = bytearray(GGUF)
        for place, patch in patches:
            body[place : place + len(patch)] = patch
        path.write_bytes(bytes(body[:end]))
        try:
            header.read(path)
        except ValueError as error:
            assert str(error)
        try:
            geometry_for(Model("m", str(path)))
        except Refusal as reason:
            assert str(reason)

    path.write_bytes(GGUF)
    assert find.describe(Model("m", str(path)))[1]["num_hidden_layers"] == 1, "the header that is mutated is sound"
    holds()


@TIMES
def test_result_files(enclosed, times):
    store, cell = Store(enclosed / "store"), stub_cell()
    sound = store.save(cell, Result(cell.id, "ok", metrics={"nll": 1.0})).read_text()
    assert store.read(cell.id) is not None

    @examples(200, times)
    @given(st.integers(0, len(sound) - 1), TEXTS | st.sampled_from(["null", "[", "{", '"', "9" * 5000]), st.booleans())
    def holds(place, given, alone):
        changed = given if alone else sound[:place] + given + sound[place + len(given) :]
        (store.cell(cell.id) / "result.json").write_bytes(changed.encode("utf-8", "surrogatepass"))
        believed = store.read(cell.id)
        assert believed is None or changed == sound or json.loads(changed) == json.loads(sound)
        assert len(list(store.newest(5))) == (believed is not None)

    holds()


@TIMES
def test_yaml_files(enclosed, times):
    path = enclosed / "mine.yaml"
    pieces = st.sampled_from(
        ["name: yarn\n", "a: &a [1, 2]\n", "b: [*a, *a]\n", "c: &c [*c]\n", "x: " + "[" * 99, "- 1\n", "? [1]\n: 2\n"]
        + ["d: !!python/object:os.system {}\n", "<<: *a\n", "e: ${oc.env:HF_TOKEN}\n", "\t", "f: ${g}\n", "h: ${\n"]
        + [
            "\x00",
            "name: null\n",
            "1: 2\n",
            "i: .nan\n",
            "j: 2020-01-01\n",
            "k: '\\0'\n",
            'l: "\\0"\n',
            "defaults: 3\n",
        ]
    )

    @examples(200, times)
    @given(st.lists(pieces, max_size=5).map("".join) | st.text(max_size=40))
    def holds(body):
        path.write_bytes(body.encode("utf-8", "surrogatepass"))
        try:
            schema.read(path)
        except Refusal as reason:
            assert border.SECRET not in str(reason)

    holds()


@TIMES
def test_texts(enclosed, times):
    path = enclosed / "t.txt"

    @examples(100, times)
    @given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode), TEXTS.filter(lambda name: name != "/"))
    def holds(body, name):
        path.write_bytes(body)
        for source in (str(path), name, f"hub:{name}"):
            try:
                if source.startswith("hub:"):
                    text.parse(source)
                else:
                    text.digest(source)
                    assert list(text.documents(source))
            except Refusal as reason:
                assert str(reason)

    holds()


RECIPE_KEYS = st.sampled_from(
    [field.name for field in fields(TrainRecipe)] + ["recipe", "shape.hidden_size", "x", "", "strategy.name"]
)


@TIMES
def test_recipes_of_trainings(enclosed, times):
    @examples(300, times)
    @given(st.lists(st.tuples(RECIPE_KEYS, VALUES).map("=".join) | TEXTS, min_size=1, max_size=3))
    @example(["betas={a: b}"])
    def holds(words):
        try:
            recipe.read(words)
        except Refusal as reason:
            assert str(reason) and border.SECRET not in str(reason)

    holds()
