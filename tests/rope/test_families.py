"""What is read from a config is what transformers builds from it, for every family of language models that it has."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import transformers
from family_table import BUILDS, ROTATES, SINUSOIDAL, STILL, Decoder, decoders, table, text_of
from family_table import built as on_meta
from layer_probe import TOKENS, attending
from transformers import CONFIG_MAPPING, RoFormerModel
from transformers.models.codegen.modeling_codegen import CodeGenAttention
from transformers.models.gptj.modeling_gptj import GPTJAttention

from rope.config import attention_layers, geometry_of, text_config
from rope.families import TABLE
from rope.geometry import Geometry

ROUNDING = 4e-6
"""Relative distance between our float64 and transformers' float32."""

Held = dict[str, tuple[tuple[float, ...], float]]
"""By layer type: inverse frequencies and attention factor."""


@dataclass(frozen=True)
class Probe:
    """A config, and what transformers makes of it: what its rotary module holds and its length, or its error."""

    family: str
    label: str
    config: dict[str, Any]
    held: Held | None
    length: int | None
    error: str | None


def truth(decoder: Decoder, config: dict[str, Any]) -> tuple[Held | None, int | None, str | None]:
    """What transformers holds for a config; {} for a model that rotates nothing."""
    try:
        built = decoder.config(**copy.deepcopy(config))
        if decoder.kind in SINUSOIDAL:
            held: Held = {"all": (sinusoidal(decoder.kind, built), 1.0)}
        elif decoder.rotary is None or (decoder.kind in ROTATES and not rotary_modules(built)):
            held = {}
        else:
            held = decoder.held(built)
            if not held:
                return None, None, "no layer of a rotating type"
        if not all(math.isfinite(f) for inv_freq, _ in held.values() for f in inv_freq):
            return None, None, "not finite"
        return held, getattr(built, "max_position_embeddings", None), None
    except Exception as error:
        return None, None, f"{type(error).__name__}: {error}"[:200]


def rotary_modules(config: Any) -> list[str]:
    """The rotary modules of the model that transformers builds from a config object."""
    return [name for name, _ in on_meta(config).named_modules() if type(_).__name__.endswith("RotaryEmbedding")]


def sinusoidal(kind: str, config: Any) -> tuple[float, ...]:
    """Inverse frequencies of a model that keeps a table of sines and cosines: the angles at position 1."""
    if kind == "roformer":
        weight = RoFormerModel(config).encoder.embed_positions.weight[1]
        sines, cosines = weight.double().chunk(2)
    else:
        attention = {"gptj": GPTJAttention, "codegen": CodeGenAttention}[kind](config, layer_idx=0)
        sines, cosines = attention.embed_positions[1].double().chunk(2)
    return tuple(math.atan2(s, c) for s, c in zip(sines.tolist(), cosines.tolist(), strict=True))


SIZES = {
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_hidden_layers": 12,
    "max_position_embeddings": 4096,
}
RELEVANT = (
    *("hidden_size", "num_attention_heads", "head_dim", "num_hidden_layers", "max_position_embeddings"),
    *("rope_parameters", "layer_types", "qk_rope_head_dim", "sliding_window", "per_layer_config", "rotary_dim"),
    *("original_max_position_embeddings", "layer_rope_theta", "no_rope_layers"),
)
"""Keys that are left out, one by one and by twos, and set to null."""

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
    "llama3": {
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "dynamic": {"factor": 4.0},
    "alpha": {"alpha": 1000.0},
}
THETA = 54_321.0

OTHER_ORDER = frozenset({"ernie4_5_vl_moe_text"})
"""Families whose rotary module keeps its frequencies in another order, which rope.patch refuses to write into."""


def configs(decoder: Decoder) -> Iterator[tuple[str, dict[str, Any]]]:
    """Configs as people have them: complete ones of transformers v5, with keys left out, and in the keys of v4."""
    kind = decoder.kind
    full = json.loads(json.dumps(shaped(decoder).to_dict()))
    full["model_type"] = kind
    yield "full", full
    there = [key for key in RELEVANT if key in full]
    for count in (1, 2):
        for keys in itertools.combinations(there, count):
            yield f"without {', '.join(keys)}", {k: v for k, v in full.items() if k not in keys}
    for key in there:
        yield f"{key}: null", full | {key: None}
    yield "model_type alone", {"model_type": kind}
    sizes = {key: full[key] for key in (*SIZES, "head_dim", "qk_rope_head_dim") if key in full}
    real = {real: full[real] for real in decoder.config.attribute_map.values() if real in full}
    bare = {"model_type": kind} | sizes | real
    yield "sizes alone", bare
    yield "sizes and theta", bare | {"rope_theta": THETA}
    for key in ("rotary_emb_base", "rope_local_base_freq", "local_rope_theta", "global_rope_theta", "swa_rope_theta"):
        yield f"sizes, theta and {key}", bare | {"rope_theta": THETA, key: 999.0}
    for key in ("partial_rotary_factor", "rotary_pct"):
        yield f"sizes, theta and {key}", bare | {"rope_theta": THETA, key: 0.75}
    yield "share in the block", bare | {"rope_parameters": {"rope_theta": THETA, "partial_rotary_factor": 0.75}}
    for name, scaling in SCALINGS.items():
        rope_type = "dynamic" if name == "alpha" else name
        for spelling in ("type", "rope_type"):
            block = {spelling: rope_type} | scaling
            yield f"v4 {name} by {spelling}", bare | {"rope_theta": THETA, "rope_scaling": block}
        yield f"v5 {name}", bare | {"rope_parameters": {"rope_type": rope_type, "rope_theta": THETA} | scaling}
        yield f"v5 {name} without theta", bare | {"rope_parameters": {"rope_type": rope_type} | scaling}
        yield (
            f"{name} and a share",
            bare
            | {
                "rope_theta": THETA,
                "partial_rotary_factor": 0.5,
                "rope_scaling": {"rope_type": rope_type} | scaling,
            },
        )
    for kinds in (("full_attention",), ("full_attention", "sliding_attention")):
        blocks = {k: {"rope_type": "default", "rope_theta": THETA + n} for n, k in enumerate(kinds)}
        yield f"v5 by type: {', '.join(kinds)}", bare | {"rope_parameters": blocks}
    yield (
        "v5 yarn by type",
        bare
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "yarn", "rope_theta": THETA, "truncate": False} | SCALINGS["yarn"],
                "sliding_attention": {"rope_type": "default", "rope_theta": 999.0},
            }
        },
    )


def shaped(decoder: Decoder) -> Any:
    """A config object of small sizes, as many of them as the class takes."""
    for sizes in (SIZES | {"head_dim": 48}, SIZES, {k: v for k, v in SIZES.items() if "layers" not in k}, {}):
        with contextlib.suppress(Exception):
            config = decoder.make(**sizes)
            if decoder.rotary is None or decoder.held(config):
                return config
    return decoder.make()


def probes(families: tuple[str, ...] | None = None) -> Iterator[Probe]:
    """Every config of every family with what transformers makes of it."""
    for kind, decoder in decoders().items():
        if families is None or kind in families:
            for label, config in configs(decoder):
                yield Probe(kind, label, config, *truth(decoder, config))


def verdict(probe: Probe, read: Callable[[dict[str, Any]], Any] = geometry_of) -> tuple[str, str]:
    """`right`, `wrong`, `refused` (by us alone), `both refuse`, or `not built` (read by us, and no class to judge)."""
    try:
        geometries = read(copy.deepcopy(probe.config))
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return ("both refuse" if probe.error or probe.held == {} else "refused"), said
    if probe.error:
        return "not built", probe.error
    assert probe.held is not None
    if geometries.keys() != probe.held.keys():
        return "wrong", f"layer types {sorted(geometries)} for {sorted(probe.held)}"
    for kind, (inv_freq, factor) in probe.held.items():
        plan = geometries[kind].native(2)
        if len(plan.inv_freq) != len(inv_freq):
            return "wrong", f"{kind}: {len(plan.inv_freq)} pairs for {len(inv_freq)}"
        ours_sorted = sorted(plan.inv_freq, reverse=True) if probe.family in OTHER_ORDER else plan.inv_freq
        theirs_sorted = sorted(inv_freq, reverse=True) if probe.family in OTHER_ORDER else inv_freq
        pairs = zip(ours_sorted, theirs_sorted, strict=True)
        if not all(math.isclose(ours, theirs, rel_tol=ROUNDING) for ours, theirs in pairs):
            return "wrong", f"{kind}: {plan.inv_freq[1:3]} for {inv_freq[1:3]}"
        if not math.isclose(plan.attention_factor, factor, rel_tol=ROUNDING):
            return "wrong", f"{kind}: attention factor {plan.attention_factor} for {factor}"
        if probe.length is not None and geometries[kind].trained_length != probe.length:
            return "wrong", f"{kind}: length {geometries[kind].trained_length} for {probe.length}"
    return "right", ""


TRUE_REASONS = (
    "describes no rotary embedding",  # with a key that says so
    "rotated dimensions come in pairs",  # an odd head, whose last frequency transformers uses for a half pair
    "rotates 21 dimensions",
    "rotates 1 dimensions",
    "give the rotated share of head_dim",  # CodeGen and GPT-J with a rotary_dim above their heads
    "no max_position_embeddings",  # RecurrentGemma's class has no length
    "nests some under",  # two classes that overlook nested blocks in silence: what the config says is not what runs
)
"""Why a config is refused that transformers builds a rotary module from."""


def swept(families: tuple[str, ...] | None = None) -> Counter[str]:
    """Verdicts counted, after a look at each that is wrong or refused for another reason."""
    counts: Counter[str] = Counter()
    faults = []
    for probe in probes(families):
        kind, said = verdict(probe)
        counts[kind] += 1
        if kind == "wrong" or (kind == "refused" and not any(reason in said for reason in TRUE_REASONS)):
            faults.append(f"{probe.family}, {probe.label}: {kind}: {said}")
    assert not faults, "\n".join([f"{len(faults)} of {counts.total()}", *faults[:40]])
    return counts


def test_configs_of_some_families_are_read_as_transformers_builds_them():
    counts = swept(("glm", "gemma3_text", "gpt_oss", "deepseek_v3", "gpt_neox", "qwen3_next"))
    assert counts["right"] > 200


@pytest.mark.sweep
def test_configs_of_every_family_are_read_as_transformers_builds_them():
    counts = swept()
    print(f"\n{counts.total()} probes of {len(decoders())} families: {dict(counts)}")
    assert counts["right"] > 7000 and len(decoders()) > 150


@pytest.mark.sweep
def test_a_language_model_within_another_is_of_the_class_that_transformers_takes():
    """Whatever model_type the inner config gives: some classes hold always the same one."""
    lines = json.loads(TABLE.read_text())["families"]
    by_class = {decoder.config: decoder for decoder in decoders().values()}
    faults, right = [], 0
    for outer, (key, kind) in ((outer, line["inside"]) for outer, line in lines.items() if "inside" in line):
        if "inside" in lines[kind]:
            continue
        sizes = {"hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": 4096, "head_dim": 64}
        given = [sizes | ({"model_type": name} if name else {}) for name in (None, kind, "llama", "of no class")]
        for inner in (*given, {"vocab_size": 1000}, None):
            config = {"model_type": outer} | ({key: inner} if inner else {})
            try:
                _, text = text_of(CONFIG_MAPPING[outer](**BUILDS.get(outer, {}) | copy.deepcopy(config)))
                decoder = by_class[type(text)]
                held, length, error = truth(decoder, text.to_dict())
            except Exception:
                continue  # transformers refuses it, or it holds no language model
            found, said = verdict(Probe(decoder.kind, "", config, held, length, error))
            right += found == "right"
            if found == "wrong" or (found == "refused" and not any(reason in said for reason in TRUE_REASONS)):
                faults.append(f"{outer} holding {inner}: {found}: {said}")
    assert not faults, "\n".join(faults)
    assert right > 200


@pytest.mark.sweep
def test_the_table_is_what_the_installed_transformers_assumes():
    kept, now = json.loads(TABLE.read_text(encoding="utf-8")), json.loads(json.dumps(table()))
    known = [kind for kind in kept["families"] if kind in now["families"]]
    other = [kind for kind in known if kept["families"][kind] != now["families"][kind]]
    if kept["transformers"] != transformers.__version__:
        pytest.skip(f"transformers {transformers.__version__} differs from {kept['transformers']} in {other}")
    assert kept == now, f"run `uv run python tests/rope/family_table.py`: {other}"


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [*STILL, "gemma2", "gemma3_text", "gpt_oss", "olmo3", "minimax", "bamba", "mistral"])
def test_a_layer_rotates_and_sees_as_its_attention_does(kind):
    """Whether other positions change an attention's output, and how many tokens have a gradient to its last one."""
    config, found = attending(decoders()[kind])
    raw = config.to_dict() | {"model_type": kind}
    read = {layer.number: (layer.rotates, min(layer.window or TOKENS, TOKENS)) for layer in attention_layers(raw)}
    assert read == found


GLM_4_1M = {
    "model_type": "chatglm",
    "hidden_size": 4096,
    "kv_channels": 128,
    "num_layers": 40,
    "num_attention_heads": 32,
    "rope_ratio": 10000,
    "seq_length": 1048576,
}
QWEN_1 = {"hidden_size": 4096, "num_attention_heads": 32, "kv_channels": 128, "seq_length": 8192}


@pytest.mark.parametrize(
    "config, expected",
    [
        (GLM_4_1M, Geometry(128, 1e8, 1048576, 0.5)),
        (GLM_4_1M | {"rope_ratio": None}, Geometry(128, 1e4, 1048576, 0.5)),
        (
            QWEN_1 | {"model_type": "qwen", "max_position_embeddings": 32768, "rotary_emb_base": 2e4},
            Geometry(128, 2e4, 8192),
        ),
        (
            {"model_type": "stablelm_epoch", "head_dim": 80, "rope_theta": 1e4, "rope_pct": 0.25}
            | {"max_position_embeddings": 4096},
            Geometry(80, 1e4, 4096, 0.25),
        ),
        (
            {"model_type": "baichuan", "hidden_size": 4096, "num_attention_heads": 32, "model_max_length": 4096},
            Geometry(128, 1e4, 4096),
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "llama", "max_position_embeddings": 4096}},
            Geometry(128, 1e4, 4096),
        ),
        (
            {"model_type": "qwen2_5_omni", "thinker_config": {"text_config": {"hidden_size": 64, "head_dim": 16}}},
            Geometry(16, 1e6, 32768),
        ),
        (
            {"model_type": "phi3small", "hidden_size": 4096, "num_attention_heads": 32, "rope_embedding_base": 1e6}
            | {"max_position_embeddings": 8192},
            Geometry(128, 1e6, 8192),
        ),
        (
            {"model_type": "deepseek_vl_v2", "language_config": {"hidden_size": 1280, "num_attention_heads": 10}}
            | {"x": None},
            Geometry(64, 1e4, 2048),
        ),
        (
            {"model_type": "deepseek_vl_v2"}
            | {"language_config": {"hidden_size": 1280, "num_attention_heads": 10, "qk_rope_head_dim": 0}},
            Geometry(128, 1e4, 2048),
        ),
        (
            {"model_type": "internvl_chat", "llm_config": {"model_type": "internlm2", "head_dim": 8, "rope_theta": 5e5}}
            | {"x": None},
            None,
        ),
    ],
)
def test_families_of_remote_code_and_nested_configs_are_read(config, expected):
    if expected is None:
        assert text_config(config)["model_type"] == "internlm2"
    else:
        assert geometry_of(config) == {"all": expected}


@pytest.mark.parametrize(
    "config, says",
    [
        ({"model_type": "granitemoehybrid", "position_embedding_type": "nope"}, 'position_embedding_type="nope"'),
        ({"model_type": "falcon_mamba"}, "transformers' FalconMambaForCausalLM has none"),
        ({"model_type": "bloom"}, "transformers' BloomForCausalLM has none"),
        ({"model_type": "baichuan", "hidden_size": 5120}, "whose 13B models have ALiBi, has none"),
        (
            {"model_type": "new", "qk_rope_head_dim": 64, "max_position_embeddings": 64},
            "which base the code of a new takes without one is not known here",
        ),
        (
            {"model_type": "gpt_oss", "rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            "gpt_oss has one block of rope parameters for all layers, and the config nests some under full_attention",
        ),
    ],
)
def test_what_does_not_rotate_or_is_not_known_is_refused_for_that_reason(config, says):
    with pytest.raises(ValueError, match=r".") as refusal:
        geometry_of(config)
    assert says in str(refusal.value)


def test_reading_imports_neither_torch_nor_transformers():
    code = "import sys; from rope.config import geometry_of; geometry_of({'model_type': 'glm'}); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers"} & set(modules)
