"""Static rules about the keys of a config: what programs overlook, misread or fail on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from pipelines.doctor import corrections
from pipelines.doctor.families import FLAT_MEANS_FULL
from pipelines.doctor.files import Block, Files
from pipelines.doctor.rules import RuleMatch, measures
from rope.config import DEFAULT_THETA, ROTARY_KEYS, SYNONYMS
from rope.geometry import ALL_LAYERS
from rope.strategies import bounded

COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved"}
YARN_OPTIONS = {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
LONGROPE_OPTIONS = {"attention_factor", "short_factor", "long_factor", "short_mscale", "long_mscale"}
READ: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings"} | YARN_OPTIONS,
    "longrope": {"factor", "original_max_position_embeddings"} | LONGROPE_OPTIONS,
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "proportional": {"factor"},
}
"""The types that transformers 5 builds (`axial` is for images alone), and the keys that it reads of each beside the
common ones (modeling_rope_utils.py)."""

HARMLESS = {"finetuned", "rope_ratio", "original_max_position_embeddings", "factor"}
"""Keys that do no harm where a type does not read them."""

MISSPELT = {"attn_factor": "attention_factor", "attention_scale": "attention_factor", "scale": "factor"}
"""Keys of other programs for the same thing: vLLM before 2025, and the first YaRN code."""

REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""Keys without which transformers does not build a type; LongRoPE's lists are S14's."""

EXAMPLES = {"factor": "wanted length / trained length", "low_freq_factor": "1.0", "high_freq_factor": "4.0"}

V4_KEYS = ("rope_theta", "rope_scaling")


def _type(block: Block) -> str:
    name = str(block.get("rope_type") or block.get("type") or "default")
    return SYNONYMS.get(name, name)


@measures("V01")
def lost_in_v4(files: Files) -> Iterator[RuleMatch]:
    if files.header or "rope_parameters" not in files.text or any(files.text.get(key) for key in V4_KEYS):
        return
    flat = files.parameters.get(ALL_LAYERS)
    if flat is not None and flat["rope_theta"] == DEFAULT_THETA and flat["rope_type"] == "default":
        return  # which is v4's own default
    declared = {layers: (block["rope_theta"], block["rope_type"]) for layers, block in files.parameters.items()}
    here = f"transformers {version('transformers')}"
    measured = {"declared": declared, "v4 takes": (DEFAULT_THETA, "default"), "here": here}
    if flat is not None or files.text.get("model_type") in FLAT_MEANS_FULL:
        yield RuleMatch(measured, correction=corrections.rewrite)
    else:
        yield RuleMatch(measured, "no_v4_keys")


@measures("V02")
def contradiction(files: Files) -> Iterator[RuleMatch]:
    new, scaling, theta = (files.text.get(key) for key in ("rope_parameters", "rope_scaling", "rope_theta"))
    if not new or any(isinstance(value, Mapping) for value in new.values()):
        return
    old = {**(scaling or {}), **({} if theta is None else {"rope_theta": theta})}
    differing = {key: (new[key], old[key]) for key in sorted(old) if new.get(key) is not None and new[key] != old[key]}
    if scaling and _type(new) != _type(scaling):
        differing["rope_type"] = (_type(new), _type(scaling))
    if differing:
        yield RuleMatch({f"{key} (v5, v4)": pair for key, pair in differing.items()})


@measures("V03")
def null_theta(files: Files) -> Iterator[RuleMatch]:
    blocks = {"rope_theta": files.text, **{f"{layers}.rope_theta": block for layers, block in files.declared.items()}}
    place = next((place for place, block in blocks.items() if block.get("rope_theta", 0) is None), None)
    if place is not None and files.variant:
        theta = files.variant.theta
        yield RuleMatch({place: None}, "published", {"theta": theta}, corrections.set_theta(theta))
    elif place is not None:
        yield RuleMatch({place: None})


@measures("V04")
def absent_theta(files: Files) -> Iterator[RuleMatch]:
    written = any("rope_theta" in block for block in (files.text, *files.declared.values()))
    if written or files.text.get("rotary_emb_base") or files.text.get("rope_local_base_freq"):
        return
    known = files.variant.theta if files.variant else None
    bare = not files.header and not any(files.text.get(key) for key in (*ROTARY_KEYS, "rope_scaling"))
    if bare and known in (None, DEFAULT_THETA):
        return  # the first Llamas: 10000 was in the code, and every program has it
    measured = {"rope_theta": None, "llama.cpp and v4 take": DEFAULT_THETA}
    if known is None:
        yield RuleMatch(measured, values={"theta": DEFAULT_THETA})
    else:
        case = "published" if known == DEFAULT_THETA else "published_not_default"
        yield RuleMatch({**measured, "published": known}, case, {"theta": known}, corrections.set_theta(known))


@measures("V05")
def two_types(files: Files) -> Iterator[RuleMatch]:
    for layers, block in files.declared.items():
        types = [SYNONYMS.get(str(block[key]), block[key]) for key in ("rope_type", "type") if block.get(key)]
        if len(set(types)) > 1:
            measured = {"layers": layers, "rope_type": types[0], "type": types[1]}
            yield RuleMatch(measured, correction=corrections.set_rope(type=types[0], rope_type=types[0]))


@measures("S06")
def misspelt(files: Files) -> Iterator[RuleMatch]:
    for layers, block in files.declared.items():
        kind = _type(block)
        if kind not in READ or files.header:
            continue  # S12 reports unknown types; and the keys for a header are our own
        for key in sorted(set(block) - READ[kind] - COMMON - HARMLESS):
            close = difflib.get_close_matches(key, [*READ[kind], *COMMON], n=1, cutoff=0.75)
            intended = MISSPELT[key] if MISSPELT.get(key) in READ[kind] else close[0] if close else None
            measured = {"layers": layers, "key": key, "value": block[key]}
            measured["read in its place"] = block.get(intended or "")
            values = {"rope_type": kind, "intended": intended}
            if intended is None:
                yield RuleMatch(measured, "unknown", values)
            else:
                yield RuleMatch(measured, values=values, correction=corrections.rename(key, intended))


@measures("S08")
def wrong_level(files: Files) -> Iterator[RuleMatch]:
    if files.text is files.config or not files.config.get("text_config"):
        return
    outer = {key: files.config[key] for key in ("rope_parameters", *V4_KEYS) if files.config.get(key)}
    ignored = {key: value for key, value in outer.items() if files.text.get(key) != value}
    if ignored:
        measured = {f"outer {key}": value for key, value in ignored.items()}
        measured |= {f"text_config.{key}": files.text.get(key) for key in ignored}
        keys = ", ".join(f"text_config.{key}" for key in ignored)
        yield RuleMatch(measured, values={"keys": keys}, correction=corrections.set_top(**ignored))


@measures("S09")
def layer_types(files: Files) -> Iterator[RuleMatch]:
    types = sorted(set(files.text.get("layer_types") or ()))
    local = [layers for layers in types if bounded(layers)]
    flat = files.declared.get(ALL_LAYERS)
    all_scaled = flat is not None and _type(flat) != "default" and files.text.get("model_type") not in FLAT_MEANS_FULL
    if flat is not None and all_scaled and 0 < len(local) < len(types):
        yield RuleMatch({"rope_type": _type(flat), "layer types": types}, "flat", {"local": local[0]})
    for layers, block in files.declared.items():
        if bounded(layers) and _type(block) != "default":
            measured = {"layers": layers, "rope_type": _type(block)}
            yield RuleMatch(measured, "bounded", correction=corrections.remove_scaling(layers))
        if layers != ALL_LAYERS and block.get("truncate") is False:
            yield RuleMatch({"layers": layers, "truncate": False}, "truncate")


@measures("S12")
def unknown_type(files: Files) -> Iterator[RuleMatch]:
    for layers, block in files.declared.items():
        kind = _type(block)
        if kind not in READ:
            close = difflib.get_close_matches(kind, READ, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            values = {"hint": hint, "types": ", ".join(READ), "version": version("transformers")}
            yield RuleMatch({"layers": layers, "rope_type": kind}, "ntk" if "ntk" in kind else "", values)


@measures("S14")
def longrope_lists(files: Files) -> Iterator[RuleMatch]:
    for layers, block in files.declared.items():
        if _type(block) != "longrope" or files.header:
            continue
        head_dim = files.text.get("head_dim") or files.text["hidden_size"] // files.text["num_attention_heads"]
        share = block.get("partial_rotary_factor") or files.text.get("partial_rotary_factor") or 1.0
        pairs = int(head_dim * share) // 2
        for key in ("short_factor", "long_factor"):
            count = len(block[key]) if isinstance(block.get(key), list) else None
            if count != pairs:
                measured = {"layers": layers, key: count, "rotated pairs": pairs}
                yield RuleMatch(measured, values={"key": key, "pairs": pairs})


@measures("S17")
def missing_number(files: Files) -> Iterator[RuleMatch]:
    for layers, block in files.declared.items():
        kind = _type(block)
        unread = set(block) - READ.get(kind, set())  # one of these may be it, misspelt, which S06 reports
        missing = [
            key
            for key in REQUIRED.get(kind, ())
            if key not in block and not difflib.get_close_matches(key, unread, n=1, cutoff=0.75)
        ]
        if missing and not files.header:
            examples = "; ".join(f"{key}: {EXAMPLES[key]}" for key in missing)
            measured = {"layers": layers, "rope_type": kind, "missing": ", ".join(missing)}
            yield RuleMatch(measured, values={"examples": examples})
