"""Static rules about the keys of a config: what a reader overlooks, misreads or trips over."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from pipelines.doctor import mends
from pipelines.doctor.files import Files
from pipelines.doctor.rules import Finding, rule
from rope.config import DEFAULT_THETA, ROTARY_KEYS, SYNONYMS
from rope.geometry import ALL_LAYERS
from rope.strategies import bounded

TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
"""What transformers 5 builds; `axial` is no text model's."""

COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved"})
READ: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset({"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"})
    | {"mscale", "mscale_all_dim", "truncate"},
    "longrope": frozenset({"factor", "original_max_position_embeddings", "attention_factor", "short_factor"})
    | {"long_factor", "short_mscale", "long_mscale"},
    "llama3": frozenset({"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}),
    "proportional": frozenset({"factor"}),
}
"""Keys that transformers reads of each type beside the common ones (modeling_rope_utils.py)."""

HARMLESS = frozenset({"finetuned", "rope_ratio", "original_max_position_embeddings", "factor"})
"""Keys that do no harm where a type does not read them."""

MISSPELT = {"attn_factor": "attention_factor", "attention_scale": "attention_factor", "scale": "factor"}
"""Words of other programs for the same thing: vLLM before 2025, and the first YaRN code."""

FLAT_MEANS_FULL = frozenset({"gemma3", "gemma3_text", "olmo3"})
"""Families that mean their full-attention layers by flat rope parameters."""

V4_KEYS = ("rope_theta", "rope_scaling")


@rule(
    "V01", "static", "warning", "a config in transformers v5's words alone, which v4 and all built on it misread",
    "vllm#42624, vllm#44158, marin#7156: theta 500000 became 10000 without a warning",
)  # fmt: skip
def lost_in_v4(files: Files) -> Iterator[Finding]:
    if files.header or "rope_parameters" not in files.text or any(files.text.get(key) for key in V4_KEYS):
        return
    flat = files.parameters.get(ALL_LAYERS)
    if flat is not None and flat["rope_theta"] == DEFAULT_THETA and flat["rope_type"] == "default":
        return  # which is what v4 takes by itself
    told = {kind: (one["rope_theta"], one["rope_type"]) for kind, one in files.parameters.items()}
    sayable = flat is not None or files.text.get("model_type") in FLAT_MEANS_FULL
    yield Finding(
        symptom="right here, garbage on long texts (or on all) where transformers 4 reads it, or a program built on it",
        measured={"declared": told, "v4 takes": (DEFAULT_THETA, "default"), "here": f"transformers {_here()}"},
        cause="only rope_parameters is written; transformers 4 reads rope_theta and rope_scaling and takes defaults",
        fix="write both: `--fix OUT` does; or load with transformers 5 everywhere"
        if sayable
        else "transformers 5 everywhere: v4 has no words for layer types of this family",
        mend=mends.nothing() if sayable else None,
    )


def _here() -> str:
    return version("transformers")


@rule(
    "V02", "static", "error", "rope_parameters and rope_scaling or rope_theta that contradict each other",
    "transformers' RotaryEmbeddingConfigMixin.convert_rope_params_to_dict: rope_scaling wins over rope_parameters",
)  # fmt: skip
def contradiction(files: Files) -> Iterator[Finding]:
    block, scaling, theta = (files.text.get(key) for key in ("rope_parameters", "rope_scaling", "rope_theta"))
    if not block or any(isinstance(value, Mapping) for value in block.values()):
        return
    new, old = dict(block), {**(scaling or {}), **({} if theta is None else {"rope_theta": theta})}
    differing = {
        key: (new.get(key), old[key])
        for key in sorted(old)
        if key in new and new[key] is not None and new[key] != old[key]
    }
    if scaling and _type(new) != _type(scaling):
        differing["rope_type"] = (_type(new), _type(scaling))
    if differing:
        yield Finding(
            symptom="one program runs the model right and another wrong, from the same file",
            measured={f"{key} (v5, v4)": pair for key, pair in differing.items()},
            cause="the file describes two models: each reader takes the keys it knows, and v5 lets rope_scaling win",
            fix="delete the wrong one, then `--fix OUT` writes both alike",
        )


@rule(
    "V03", "static", "error", "rope_theta written as null: building the model dies, or takes base 10000",
    "unsloth#7028: overriding rope_scaling on transformers 5 drops theta; its save writes null",
)  # fmt: skip
def null_theta(files: Files) -> Iterator[Finding]:
    holders = {"rope_theta": files.text, **{f"{kind}.rope_theta": one for kind, one in files.declared.items()}}
    for place, holder in holders.items():
        if "rope_theta" in holder and holder["rope_theta"] is None:
            known = files.variant.theta if files.variant else None
            yield Finding(
                symptom="TypeError: unsupported operand type(s) for ** or pow(): 'NoneType' and 'Tensor'; or garbage",
                measured={place: None},
                cause="rope_scaling was replaced without its theta, which transformers 5 keeps in the same mapping",
                fix=f"write rope_theta: {f'{known:g}' if known else 'what the checkpoint was trained with'} beside "
                "rope_type and factor; pass the whole mapping when overriding",
                mend=None if known is None else mends.theta(known),
            )
            return


@rule(
    "V04", "static", "warning", "no rope_theta at all: every reader takes a default of its own",
    "gpt-fast#179, langchain#20710, llama-cpp-python#767: base 10000 in place of 500000",
)  # fmt: skip
def absent_theta(files: Files) -> Iterator[Finding]:
    holders = [files.text, *files.declared.values()]
    if any("rope_theta" in holder for holder in holders) or any(
        files.text.get(key) for key in ("rotary_emb_base", "rope_local_base_freq")
    ):
        return
    known = files.variant.theta if files.variant else None
    bare = not files.header and not any(files.text.get(key) for key in (*ROTARY_KEYS, "rope_scaling"))
    if bare and known in (None, DEFAULT_THETA):
        return  # the first Llamas: 10000 was in the code, and every reader has it
    yield Finding(
        level="error" if known not in (None, DEFAULT_THETA) else "",
        symptom="good in one program, worse or garbage in another",
        measured={"rope_theta": None, "llama.cpp and v4 take": DEFAULT_THETA} | ({"published": known} if known else {}),
        cause="the file names no theta; defaults differ by program, version and model class (10000, 500000, 1e6)",
        fix=f"write rope_theta: {known or DEFAULT_THETA:g}"
        + ("" if known else ", if that is what it was trained with"),
        mend=None if known is None else mends.theta(known),
    )


@rule(
    "V05", "static", "error", "`type` and `rope_type` that name different scalings",
    "hf#32182: both words are read, by different versions",
)  # fmt: skip
def two_types(files: Files) -> Iterator[Finding]:
    for kind, one in files.declared.items():
        words = [SYNONYMS.get(str(one[key]), one[key]) for key in ("rope_type", "type") if one.get(key)]
        if len(set(words)) > 1:
            yield Finding(
                symptom="long texts right in one version of a program and wrong in the next",
                measured={"layers": kind, "rope_type": words[0], "type": words[1]},
                cause="old readers take `type`, new ones `rope_type`",
                fix=f"keep one: rope_type: {words[0]}",
                mend=mends.within(type=words[0], rope_type=words[0]),
            )


def _type(block: Mapping[str, Any]) -> str:
    told = str(block.get("rope_type") or block.get("type") or "default")
    return SYNONYMS.get(told, told)


@rule(
    "S06", "static", "error", "keys of the rope parameters that are misspelt, or read by nobody",
    "DeepSeek-R1#684, vllm#46280, vllm#48351: attn_factor is ignored, and the default stands",
)  # fmt: skip
def misspelt(files: Files) -> Iterator[Finding]:
    for kind, one in files.declared.items():
        read = READ.get(_type(one))
        if read is None or files.header:
            continue  # S12's to say; and in a header we chose the words
        for key in sorted(set(one) - read - COMMON - HARMLESS):
            close = difflib.get_close_matches(key, [*read, *COMMON], n=1, cutoff=0.75)
            meant = MISSPELT[key] if MISSPELT.get(key) in read else close[0] if close else None
            yield Finding(
                level="error" if meant else "warning",
                symptom="the scaling is not the one that was meant: a wrong attention temperature, ramp or factor",
                measured={"layers": kind, "key": key, "value": one[key], "read in its place": one.get(meant or "")},
                cause=f"rope_type {_type(one)} has no key {key}; transformers warns of unrecognized keys and goes on",
                fix=f"rename it to {meant}" if meant else f"delete {key}, or name the rope_type that reads it",
                mend=None if meant is None else mends.renamed(key, meant),
            )


@rule(
    "S08", "static", "error", "rope keys on the outer level of a nested config, where nobody reads them",
    "sglang#27974, edutelligence#744, ms-swift#1591: an override on the wrong level is a silent no-op",
)  # fmt: skip
def wrong_level(files: Files) -> Iterator[Finding]:
    if files.text is files.config or not files.config.get("text_config"):
        return
    outer = {key: files.config[key] for key in ("rope_parameters", *V4_KEYS) if files.config.get(key)}
    ignored = {key: value for key, value in outer.items() if files.text.get(key) != value}
    if ignored:
        yield Finding(
            symptom="a scaling was set, and long texts are as bad as before",
            measured={f"outer {key}": value for key, value in ignored.items()}
            | {f"text_config.{key}": files.text.get(key) for key in ignored},
            cause="the language model is built from text_config alone",
            fix="move it: " + ", ".join(f"text_config.{key}" for key in ignored),
            mend=mends.top(**ignored),
        )


@rule(
    "S09", "static", "warning", "layer types that a scaling reaches though it should not, or does not though it should",
    "hf#45945, vllm#29111: sliding-window layers must stay as they are; hf modeling_rope_utils reads a flat `truncate`",
)  # fmt: skip
def layer_types(files: Files) -> Iterator[Finding]:
    kinds = set(files.text.get("layer_types") or ())
    local = sorted(kind for kind in kinds if bounded(kind))
    flat = files.declared.get(ALL_LAYERS)
    family = files.text.get("model_type")
    if flat is not None and local and kinds - set(local) and _type(flat) != "default" and family not in FLAT_MEANS_FULL:
        yield Finding(
            symptom="worse at every length, most at short ones",
            measured={"rope_type": _type(flat), "layer types": sorted(kinds)},
            cause="one flat scaling serves all layers, also those of a bounded window, where no distance is ever new",
            fix="give rope_parameters by layer type: the scaling under full_attention, default under " + local[0],
        )
    for kind, one in files.declared.items():
        if bounded(kind) and _type(one) != "default":
            yield Finding(
                symptom="worse at every length, most at short ones",
                measured={"layers": kind, "rope_type": _type(one)},
                cause="these layers see a bounded window: no distance in them exceeds what was trained",
                fix=f"rope_type: default under {kind}",
                mend=mends.unscaled(kind),
            )
        if kind != ALL_LAYERS and one.get("truncate") is False:
            yield Finding(
                symptom="YaRN's frequencies differ a little from the trained ones (gpt-oss: log-probabilities off)",
                measured={"layers": kind, "truncate": False},
                cause="transformers looks for truncate beside the layer types and not in them, so it stays true",
                fix="declare it as a longrope: `ropewalk grid` writes one for any plan (patched_config.json)",
            )


@rule(
    "S12", "static", "error", "a rope_type that transformers does not build",
    "ROPE_INIT_FUNCTIONS of modeling_rope_utils.py: loading only warns, building raises KeyError; molmo2#22",
)  # fmt: skip
def unknown_type(files: Files) -> Iterator[Finding]:
    for kind, one in files.declared.items():
        if (told := _type(one)) in TYPES:
            continue
        close = difflib.get_close_matches(told, TYPES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        static_ntk = "static NTK is no type: write a larger rope_theta (ropewalk export, or strategy=ntk)"
        yield Finding(
            symptom=f"KeyError: '{told}' when the model is built, after nothing but a warning when its config is read",
            measured={"layers": kind, "rope_type": told},
            cause=f"transformers {_here()} knows {', '.join(TYPES)}",
            fix=hint + (static_ntk if "ntk" in told else "write one of those"),
        )


@rule(
    "S14", "static", "error", "LongRoPE lists that are missing, or not one number a rotated pair",
    "hf _validate_longrope_rope_parameters, which warns only; LongRoPE (2402.13753), section 3",
)  # fmt: skip
def lists(files: Files) -> Iterator[Finding]:
    for kind, one in files.declared.items():
        if _type(one) != "longrope" or files.header:
            continue
        pairs = _pairs(files, one)
        for name in ("short_factor", "long_factor"):
            given = one.get(name)
            count = len(given) if isinstance(given, list) else None
            if count != pairs:
                yield Finding(
                    symptom="a shape error in the first forward, or KeyError when the model is built",
                    measured={"layers": kind, name: count, "rotated pairs": pairs},
                    cause=f"{name} must hold a divisor for each of the {pairs} rotated pairs",
                    fix="copy both lists from the checkpoint's own config.json",
                )


def _pairs(files: Files, one: Mapping[str, Any]) -> int:
    text = files.text
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    share = one.get("partial_rotary_factor") or text.get("partial_rotary_factor") or 1.0
    return int(head * share) // 2


REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""Keys that transformers asks for and has nothing in their place; LongRoPE's lists are S14's."""


@rule(
    "S17", "static", "error", "a scaling without a number that it needs",
    "hf _check_received_keys of modeling_rope_utils.py: KeyError when the config is read",
)  # fmt: skip
def missing(files: Files) -> Iterator[Finding]:
    for kind, one in files.declared.items():
        unread = set(one) - READ.get(_type(one), set())  # one of these may be it, misspelt, which is S06's to say
        lacking = [key for key in REQUIRED.get(_type(one), ()) if key not in one]
        lacking = [key for key in lacking if not difflib.get_close_matches(key, unread, n=1, cutoff=0.75)]
        if lacking and not files.header:
            yield Finding(
                symptom="KeyError: Missing required keys in `rope_parameters`",
                measured={"layers": kind, "rope_type": _type(one), "missing": ", ".join(lacking)},
                cause=f"rope_type {_type(one)} is nothing without {' and '.join(lacking)}",
                fix="; ".join(f"{key}: {EXAMPLES[key]}" for key in lacking),
            )


EXAMPLES = {"factor": "wanted length / trained length", "low_freq_factor": "1.0", "high_freq_factor": "4.0"}
