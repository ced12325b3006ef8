"""Static rules about the keys of a config: what programs overlook, misread or fail on."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.doctor import corrections
from pipelines.doctor.files import Files
from pipelines.doctor.rules import RuleMatch, measures
from rope.config import DEFAULT_THETA, SYNONYMS
from rope.families import nest
from rope.geometry import ALL_LAYERS
from rope.strategies import bounded

TABLE = json.loads(Path(__file__).with_name("rope_keys.json").read_text(encoding="utf-8"))
"""What transformers reads of rope parameters, from its source: see tests/doctor/rope_keys.py, which writes it."""

READ: dict[str, set[str]] = {kind: set(keys["read"]) for kind, keys in TABLE["rope_types"].items()}
"""The types that transformers 5 builds (`axial` is for images alone), and the keys that it reads of each."""

REQUIRED: dict[str, list[str]] = {kind: keys["required"] for kind, keys in TABLE["rope_types"].items()}
"""Keys without which transformers does not build a type."""

OWN: dict[str, list[str]] = TABLE["model_types"]
"""Keys that the code of these model types reads besides, whatever the rope_type."""

NULL_HEAD: frozenset[str] = frozenset(TABLE["null_head_dim"])
"""Model types whose class leaves head_dim null: dynamic, yarn and longrope read it wherever it is there, and fail."""

PLAIN_WITHOUT_HEAD = {"minimax", "mixtral"}
"""Those of them whose plain rotation, and so linear and llama3, takes hidden_size // num_attention_heads instead."""

LONGROPE_ALONE = {"phi3", "phi4_multimodal"}
"""Model types whose config class refuses every other type (validate_rope of configuration_phi3.py)."""

MSCALES = {"phimoe": ["short_mscale", "long_mscale"]}
"""Keys that a model type wants of every scaling (validate_rope of configuration_phimoe.py)."""

COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}

HARMLESS = {"finetuned", "rope_ratio", "original_max_position_embeddings", "factor"}
"""Keys that do no harm where a type does not read them."""

ENGINES = {"mrope_section", "mrope_interleaved", "extrapolation_factor", "apply_yarn_scaling"}
"""Keys that vLLM reads of any model (get_rope of model_executor/layers/rotary_embedding)."""

MISSPELT = {"attn_factor": "attention_factor", "attention_scale": "attention_factor", "scale": "factor"}
"""Keys of other programs for the same thing: vLLM before 2025, and the first YaRN code."""

LISTS = ("short_factor", "long_factor")
"""Of LongRoPE, which S14 is about."""

EXAMPLES = {
    "factor": "wanted length / trained length",
    "low_freq_factor": "1.0",
    "high_freq_factor": "4.0",
    "short_mscale": "the checkpoint's own",
    "long_mscale": "the checkpoint's own",
}

V4_KEYS = ("rope_theta", "rope_scaling")


@measures("V01")
def lost_in_v4(files: Files) -> Iterator[RuleMatch]:
    if files.header or not files.text.get("rope_parameters") or any(files.text.get(key) for key in V4_KEYS):
        return
    old = files.without("rope_parameters")
    try:
        if old.geometries == files.geometries:
            return  # what v4's class assumes by itself
        taken = _thetas_and_types(old)
    except ValueError:
        taken = {ALL_LAYERS: (DEFAULT_THETA, "default")}
    try:
        written = corrections.corrected(files.config, [])
    except ValueError:
        return  # which R01 reports
    here = f"transformers {version('transformers')}"
    measured = {"declared": _thetas_and_types(files), "v4 takes": taken, "here": here}
    if replace(files, config=written).without("rope_parameters").geometries == files.geometries:
        yield RuleMatch(measured, correction=corrections.REWRITE)
    else:
        yield RuleMatch(measured, "no_v4_keys")


def _thetas_and_types(files: Files) -> dict[str, tuple[float, str]]:
    return {layers: (block["rope_theta"], block["rope_type"]) for layers, block in files.parameters.items()}


@measures("V02")
def contradiction(files: Files) -> Iterator[RuleMatch]:
    """A flat block of v4 is that of the layers that the class gives it to, where it keeps them by layer type."""
    new, scaling = (files.text.get(key) for key in ("rope_parameters", "rope_scaling"))
    if not new or any(isinstance(value, Mapping) for value in (scaling or {}).values()):
        return
    nested = {key: value for key, value in new.items() if isinstance(value, Mapping)}
    for layers, block in (nested or {ALL_LAYERS: new}).items():
        given = not nested or (files.family is not None and layers in files.family.scaled)
        flat: dict[str, Any] = dict(scaling or {}) if given else {}
        theta = files.theta_beside(layers)
        old = flat | ({} if theta is None else {"rope_theta": theta})
        both = [key for key in sorted(old) if block.get(key) is not None and block[key] != old[key]]
        differing = {key: (block[key], old[key]) for key in both}
        if flat and files.rope_type(block) != files.rope_type(flat):
            differing["rope_type"] = (files.rope_type(block), files.rope_type(flat))
        if differing:
            yield RuleMatch({"layers": layers} | {f"{key} (v5, v4)": pair for key, pair in differing.items()})


@measures("V03")
def null_theta(files: Files) -> Iterator[RuleMatch]:
    known, written = files.family, files.written.values()
    keys: Any = known.theta_keys if known else ("rope_theta",)
    names = [name for each in keys.values() for name in each] if isinstance(keys, Mapping) else keys
    # beside the rope parameters it counts where the class reads it, and they have none
    inside = any("rope_theta" in block for block in written) or (known is not None and known.rope and not written)
    read = "rope_theta" in names and not inside
    blocks = {"rope_theta": files.text} if read else {}
    blocks |= {f"{layers}.rope_theta": block for layers, block in files.declared.items()}
    for place, block in blocks.items():
        theta = block.get("rope_theta", 0)
        by_layer = known is not None and known.listed_share is not None and isinstance(theta, list)
        if by_layer or (isinstance(theta, (int, float)) and not isinstance(theta, bool)):
            continue
        if files.variant and not bounded(place.partition(".")[0]):
            theta = files.variant.theta
            yield RuleMatch({place: block["rope_theta"]}, "published", {"theta": theta}, corrections.set_theta(theta))
        else:
            yield RuleMatch({place: theta})
        return


@measures("V04")
def absent_theta(files: Files) -> Iterator[RuleMatch]:
    """What the class assumes is right where transformers wrote the file: it leaves out of a nested config what it
    assumes itself."""
    keys = {key for key in files.text if key.endswith(("rope_theta", "base_freq", "emb_base", "rope_ratio"))}
    if keys or any("rope_theta" in block for block in files.written.values()):
        return
    try:
        taken = {layers: block["rope_theta"] for layers, block in files.parameters.items()}
    except ValueError:
        return
    known = files.variant.theta if files.variant else None
    bare = not files.header and not files.written
    same = known is None or known in taken.values()
    if same and (files.text is not files.config or (bare and set(taken.values()) == {DEFAULT_THETA})):
        return  # the first Llamas: 10000 was in the code, and every program has it
    reader = "llama.cpp takes" if files.header else "transformers takes"
    measured = {"rope_theta": None, reader: taken.get(ALL_LAYERS, taken)}
    values = {"theta": " and ".join(f"{theta:g}" for theta in dict.fromkeys(taken.values()))}
    if known is None:
        yield RuleMatch(measured, values=values)
    else:
        case = "published" if same else "published_not_default"
        values["theta"] = f"{known:g}"
        yield RuleMatch({**measured, "published": known}, case, values, corrections.set_theta(known))


@measures("V05")
def two_types(files: Files) -> Iterator[RuleMatch]:
    for layers, block in files.declared.items():
        types = [SYNONYMS.get(str(block[key]), block[key]) for key in ("rope_type", "type") if block.get(key)]
        if len(set(types)) > 1:
            measured = {"layers": layers, "rope_type": types[0], "type": types[1]}
            yield RuleMatch(
                measured, correction=corrections.set_rope(layers, keeps=True, type=types[0], rope_type=types[0])
            )


@measures("S06")
def misspelt(files: Files) -> Iterator[RuleMatch]:
    own = {key for key, model_types in OWN.items() if files.text.get("model_type") in model_types}
    for layers, block in files.declared.items():
        kind = files.rope_type(block)
        if kind not in READ or files.header:
            continue  # S12 reports unknown types; and the keys for a header are our own
        for key in sorted(set(block) - READ[kind] - COMMON - HARMLESS - ENGINES - own):
            close = difflib.get_close_matches(key, [*READ[kind], *COMMON], n=1, cutoff=0.75)
            intended = MISSPELT[key] if MISSPELT.get(key) in READ[kind] else close[0] if close else None
            measured = {"layers": layers, "key": key, "value": block[key]}
            measured["read in its place"] = block.get(intended or "")
            values = {"rope_type": kind, "intended": intended}
            if intended is None:
                yield RuleMatch(measured, "unknown", values)
            else:
                yield RuleMatch(measured, values=values, correction=corrections.rename(layers, key, intended))


@measures("S08")
def wrong_level(files: Files) -> Iterator[RuleMatch]:
    if files.text is files.config:
        return
    outer = {key: files.config[key] for key in ("rope_parameters", *V4_KEYS) if files.config.get(key)}
    ignored = {key: value for key, value in outer.items() if files.text.get(key) != value}
    if ignored:
        measured = {f"outer {key}": value for key, value in ignored.items()}
        place = ".".join(nest(files.config))
        measured |= {f"{place}.{key}": files.text.get(key) for key in ignored}
        keys = ", ".join(f"{place}.{key}" for key in ignored)
        yield RuleMatch(measured, values={"keys": keys}, correction=corrections.set_top(**ignored))


@measures("S12")
def unknown_type(files: Files) -> Iterator[RuleMatch]:
    for layers, block in files.declared.items():
        kind = files.rope_type(block)
        if kind not in READ:
            close = difflib.get_close_matches(kind, READ, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            values = {"hint": hint, "types": ", ".join(READ), "version": version("transformers")}
            yield RuleMatch({"layers": layers, "rope_type": kind}, "ntk" if "ntk" in kind else "", values)
        elif files.family and files.family.name in LONGROPE_ALONE and kind not in ("default", "longrope"):
            yield RuleMatch({"layers": layers, "rope_type": kind, "model_type": files.family.name}, "longrope_alone")


@measures("S14")
def longrope_lists(files: Files) -> Iterator[RuleMatch]:
    for layers, block in files.declared.items():
        if files.rope_type(block) != "longrope" or files.header:
            continue
        try:
            pairs = files.unscaled[layers].pairs
        except (ValueError, KeyError):
            continue  # which R01 reports
        for key in LISTS:
            count = len(block[key]) if isinstance(block.get(key), list) else None
            if count != pairs:
                measured = {"layers": layers, key: count, "rotated pairs": pairs}
                yield RuleMatch(measured, values={"key": key, "pairs": pairs})


@measures("S17")
def missing_number(files: Files) -> Iterator[RuleMatch]:
    own = MSCALES.get(files.family.name, []) if files.family else []
    for layers, block in files.declared.items():
        kind = files.rope_type(block)
        unread = set(block) - READ.get(kind, set())  # one of these may be it, misspelt, which S06 reports
        wanted = [*REQUIRED.get(kind, ()), *(own if kind != "default" else ())]
        missing = [
            key
            for key in wanted
            # S14 is about the lists; and a factor may be null where it follows from the lengths, else S04 reports it
            if (block.get(key) is None if key != "factor" else key not in block)
            and key not in LISTS
            and not difflib.get_close_matches(key, unread, n=1, cutoff=0.75)
        ]
        if missing and not files.header:
            examples = "; ".join(f"{key}: {EXAMPLES[key]}" for key in missing)
            measured = {"layers": layers, "rope_type": kind, "missing": ", ".join(missing)}
            yield RuleMatch(measured, values={"examples": examples})
