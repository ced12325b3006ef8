"""Rotary parameters as a config declares them, by layer type: the blocks that transformers would take them from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rope import families
from rope.families import Family
from rope.geometry import ALL_LAYERS

DEFAULT_THETA = 10_000.0
"""Base of a config without one: the default of transformers v4 for the llama family."""

Blocks = dict[str, dict[str, Any] | None]
"""Rotary parameters by layer type, with a rope_theta, else as declared."""


def declared_blocks(text: Mapping[str, Any]) -> Blocks:
    """Of a family that is not known, by its keys alone."""
    # transformers prefers rope_scaling where a config has both
    declared: Mapping[str, Any] = text.get("rope_scaling") or text.get("rope_parameters") or {}
    theta = first(text, "rope_theta", "rotary_emb_base")
    inner = [block for block in declared.values() if isinstance(block, Mapping)] or [declared]
    if theta is None and not all(block.get("rope_theta") for block in inner):
        if text.get("model_type"):
            raise ValueError(
                f"the config has no rope_theta, and which base the code of a {text['model_type']} takes without one is "
                "not known here; add rope_theta"
            )
        theta = DEFAULT_THETA
    local = text.get("rope_local_base_freq")
    nested: Blocks | None = None
    if any(isinstance(value, Mapping) for value in declared.values()):
        nested = {
            key: dict(value) if isinstance(value, Mapping) else None
            for key, value in declared.items()
            if value is None or isinstance(value, Mapping)
        }
    elif local:
        # before v5, Gemma 3 gave theta and scaling flat, for the full-attention layers
        nested = {"full_attention": dict(declared), "sliding_attention": {"rope_theta": local}}
    blocks = {ALL_LAYERS: dict(declared)} if nested is None else nested
    return {key: None if block is None else {"rope_theta": theta, **_given(block)} for key, block in blocks.items()}


def family_blocks(full: Mapping[str, Any], known: Family) -> Blocks:
    """Of a known family: declared blocks, its class's where there are none, and theta from where the class takes it."""
    scaling, given = full.get("rope_scaling"), full.get("rope_parameters")
    if known.by_type is None:
        declared = scaling or (given if given is not None else known.rope) or {}
        types = set(full.get("layer_types") or ()) & set(declared)
        if types:
            raise ValueError(
                f"{known.name} has one block of rope parameters for all layers, and the config nests some under "
                f"{', '.join(sorted(types))}; write them flat"
            )
        theta = first(full, *known.theta_keys)
        return {ALL_LAYERS: {"rope_theta": known.theta if theta is None else theta, **_given(declared)}}
    labels = known.types or {}
    kinds = [labels.get(kind, kind) for kind in full.get("layer_types") or known.by_type]
    there = set(known.by_type) if labels else set(kinds) - families.NO_ATTENTION
    if known.types and not all(isinstance((given or {}).get(kind), Mapping) for kind in there):
        scaling, given = scaling or given, None  # taken as a flat block
    if known.spread and (flat := given if given is not None else scaling) and not there & set(flat):
        theta = first(full, *known.theta_keys[next(iter(known.theta_keys))])
        return {kind: {"rope_theta": known.theta if theta is None else theta, **_given(flat)} for kind in sorted(there)}
    used = sorted(there, key=[*(given or {}), *sorted(there)].index)
    blocks: Blocks = {}
    for kind in used:
        own = known.by_type.get(kind)
        block = own if given is None else given.get(kind, {} if known.theta_keys else MISSING)
        if block is MISSING:
            raise ValueError(
                f"the layers of a {known.name} are of the type {kind}, for which its rope_parameters have no block; "
                "add one"
            )
        if block is None and (own is None or not known.theta_keys):
            blocks[kind] = None
            continue
        extra = _given(scaling or {}) if kind in known.scaled else {}
        if extra and labels:  # of layers that share a label, with a base and a share of their own
            extra = {key: value for key, value in extra.items() if key not in ("rope_theta", "partial_rotary_factor")}
            extra["rope_type"] = extra.get("rope_type") or extra.get("type") or "default"
        if extra:
            extra = dict(known.scaled_defaults.get(extra.get("rope_type") or extra.get("type", ""), {})) | extra
        flat = first(full, *known.theta_keys.get(kind, ())) if known.theta_keys else None
        flat = flat[kinds.index(kind)] if isinstance(flat, list) else flat  # one a layer
        theta = flat if flat is not None else (own or {}).get("rope_theta", known.theta)
        inner = _given(block or {})
        if given is None and known.listed_share and full.get(known.listed_share):
            inner["partial_rotary_factor"] = full[known.listed_share][kinds.index(kind)]
        blocks[kind] = ({"rope_theta": theta} | inner if given is not None else inner | {"rope_theta": theta}) | extra
    return blocks


MISSING: Any = object()


def _given(block: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if value is not None}


def first(text: Mapping[str, Any], *names: str) -> Any:
    """The value of the first of these keys that has one."""
    return next((text[name] for name in names if text.get(name) is not None), None)
