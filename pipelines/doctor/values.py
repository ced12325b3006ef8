"""Static rules about the values of a config: factors and lengths, tokenizer, GGUF header."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.doctor import corrections
from pipelines.doctor.files import UNLIMITED, Block, Files
from pipelines.doctor.rules import RuleMatch, measures
from rope import strategies
from rope.geometry import Geometry

NATIVE = ("llama3", "yarn", "longrope")
"""Scalings that a checkpoint was trained with, and that are lost when another takes their place."""


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


@measures("S01")
def no_original(files: Files) -> Iterator[RuleMatch]:
    for layers, block, declared in files.scalings(*NATIVE):
        factor, limit = _number(block.get("factor")), files.limit
        if files.original_length(declared) or not factor or factor <= 1 or not limit:
            continue
        known = files.known_length
        probably = known or round(limit / factor)
        measured = {"layers": layers, "taken for the original": limit, "probably": probably}
        measured |= _changed(files.unscaled[layers], block, limit, probably)
        values = {"rope_type": block["rope_type"], "limit": limit}
        if known is not None and limit > 1.5 * known:
            correction = corrections.set_rope(layers, original_max_position_embeddings=probably)
            yield RuleMatch(measured, values=values, correction=correction)
        else:
            yield RuleMatch(measured, "maybe_not_raised", values)


def _changed(geometry: Geometry, block: Block, used: int, probably: int) -> dict[str, Any]:
    """How many frequencies differ between two original lengths, and by how much at most."""
    kind = block["rope_type"]
    if kind == "longrope":
        return {}
    options = {name: block[name] for name in strategies.options_of(kind) if block.get(name) is not None}

    def frequencies(length: int) -> Any:
        plain = Geometry(geometry.head_dim, geometry.base, length, geometry.partial)
        return np.array(strategies.plan(kind, plain, length, **options).inv_freq)

    ratio = frequencies(used) / frequencies(probably)
    differ = int((np.abs(ratio - 1) > 1e-3).sum())
    most = math.exp(np.abs(np.log(ratio)).max())
    return {"frequencies that differ": f"{differ} of {len(ratio)}", "by up to": f"{most:.2f}x"}


@measures("S02")
def factor_against_lengths(files: Files) -> Iterator[RuleMatch]:
    for layers, block, declared in files.scalings("yarn", "longrope"):
        factor, original = _number(block.get("factor")), declared.get("original_max_position_embeddings")
        if not factor or factor <= 1 or not original or not files.limit or declared.get("factor") is None:
            continue
        implied = files.limit / original
        if abs(implied - factor) <= 0.01 * factor:
            continue
        product = factor * original
        measured = {
            "layers": layers,
            "factor": factor,
            "max_position_embeddings": files.limit,
            "original_max_position_embeddings": original,
            "their ratio": implied,
        }
        values = {"product": product, "implied": implied}
        if implied == 1:
            correction = corrections.set_top(keeps=True, max_position_embeddings=round(product))
            yield RuleMatch(measured, "not_raised", values, correction)
        else:
            yield RuleMatch(measured, values=values)


@measures("S04")
def factor_itself(files: Files) -> Iterator[RuleMatch]:
    for layers, block in files.declared.items():
        kind = block.get("rope_type") or block.get("type") or "default"
        if kind not in ("linear", "dynamic", "yarn", "llama3", "longrope") or "factor" not in block:
            continue
        value = _number(block["factor"])
        if value is None and block["factor"] is None and kind in ("yarn", "longrope"):
            continue  # max_position_embeddings / original, by transformers' own rule
        if value is not None and (value > 1 or (value == 1 and kind in ("dynamic", "longrope"))):
            continue  # of longrope it is only for the attention factor: its lists stretch
        measured = {"layers": layers, "rope_type": kind, "factor": block["factor"]}
        if value is not None and 0 < value < 1 and kind != "longrope":
            correction = corrections.set_rope(layers, factor=1 / value)
            yield RuleMatch(measured, "inverted", {"inverse": 1 / value}, correction)
        else:
            yield RuleMatch(measured, "no_number" if value is None else "identity" if value == 1 else "")


@measures("S05")
def oversized(files: Files) -> Iterator[RuleMatch]:
    original = files.plain_length
    if files.target is None or not original or (files.variant and files.variant.scaling == "linear"):
        return
    needed = max(1.0, files.target / original)
    for layers, block, _ in files.scalings("yarn", "linear"):
        factor = _number(block.get("factor"))
        if factor and factor > math.ceil(needed):
            measured = {"layers": layers, "factor": factor, "target": files.target, "target / original": needed}
            yield RuleMatch(measured, values={"needed": needed, "serves": factor * original})


@measures("S07")
def dynamic_raised(files: Files) -> Iterator[RuleMatch]:
    for layers, _, declared in files.scalings("dynamic"):
        trained, limit = files.original_length(declared) or files.known_length, files.limit
        if limit and trained and limit > 1.01 * trained:
            measured = {"layers": layers, "max_position_embeddings": limit, "trained": trained}
            yield RuleMatch(measured, correction=corrections.set_top(keeps=True, max_position_embeddings=trained))


@measures("S11")
def tokenizer_limit(files: Files) -> Iterator[RuleMatch]:
    limit = _number(files.tokenizer.get("model_max_length"))
    if limit is None or limit >= UNLIMITED or not files.limit:
        return
    needed = max(files.limit, files.target or 0)
    if limit < needed:
        measured = {"model_max_length": int(limit), "max_position_embeddings": files.limit, "target": files.target}
        yield RuleMatch(measured, values={"needed": needed}, correction=corrections.REWRITE)


@measures("S13")
def odd_rotation(files: Files) -> Iterator[RuleMatch]:
    hidden, heads, own = (files.text.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    try:
        geometry = files.global_geometry
    except ValueError:
        return
    usual = hidden // heads if hidden and heads else None
    if geometry.partial != 1 or (own and usual and own != usual):
        yield RuleMatch({"head_dim": geometry.head_dim, "hidden_size / heads": usual, "rotated": geometry.rotated})


@measures("S16")
def llama3_bounds(files: Files) -> Iterator[RuleMatch]:
    for layers, block, _ in files.scalings("llama3"):
        low, high = _number(block.get("low_freq_factor")), _number(block.get("high_freq_factor"))
        if low is not None and high is not None and high < low:  # equal ones are a step without a ramp, as in Llama 4
            measured = {"layers": layers, "low_freq_factor": low, "high_freq_factor": high}
            # of other bounds nobody knows which was meant
            swapped = corrections.set_rope(layers, low_freq_factor=high, high_freq_factor=low)
            yield RuleMatch(measured, correction=swapped if (high, low) == (1, 4) else None)


@measures("P02")
def gguf_scaling(files: Files) -> Iterator[RuleMatch]:
    if files.header is None:
        return
    measured = {key: value for key, value in files.header.keys.items() if ".rope.scaling." in key}
    tensors = [name for name in files.header.tensors if name.startswith("rope_f")]
    if tensors:
        case = "grid_adds_it" if files.header.rope_freqs else ""
        yield RuleMatch({**measured, "tensors": tensors}, case, {"place": f"the tensor {tensors[0]}"})
    elif files.header.value("rope.scaling.type") not in (None, "none"):
        yield RuleMatch(measured, "grid_adds_it", {"place": "header keys"})


@measures("E04")
def short_task(files: Files) -> Iterator[RuleMatch]:
    if "wikitext" in files.task:
        yield RuleMatch({"task": files.task, "windows": "disjoint, each with 1 token of context"})
