"""What transformers' config classes assume where a config is silent, family by family, and which layers rotate.

Read from families.json, which tests/rope/family_table.py measures on the installed transformers. Imports neither torch
nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("families.json")

NESTS = ("text_config", "thinker_config", "llm_config", "language_config", "vlm_config", "decoder", "decoder_config")
"""Keys under which a config of several models holds the one that writes text; the first with a mapping counts."""

SYNONYMS = {
    "hidden_size": ("n_embd", "d_model"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "head_dim": ("attention_head_dim", "kv_channels"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "max_sequence_length", "seq_length"),
}
"""Other names of the sizes, in families that the table does not have."""

NEEDED = ("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings", "max_window_layers")
"""Keys whose null is the class's default; elsewhere null is a value: no window, or a head of the quotient."""

NO_ATTENTION = frozenset({"linear_attention", "mamba", "conv", "recurrent", "moe", "mlp", "cross_attention"})
"""Layer types without attention over past tokens of text."""

OLD_TYPES = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
    "qwen_sparse_attention": "indexed_attention",
}
"""Layer types that transformers renames."""


@dataclass(frozen=True)
class Family:
    """How the class of one model_type reads its config.

    defaults: of keys that are absent. names: canonical name of keys that the family calls otherwise. rotates: whether
    its layers rotate at all; a condition {key: value} where a key decides. theta: base without one. theta_keys: where a
    base may stand beside the rope parameters, by layer type. rope: rope parameters of a config without any.
    partial: rotated share of a config without one; None where plain rotation takes whole heads whatever is said.
    partial_keys: where the share may stand beside the rope parameters. head: how the size of a head comes about, see
    `head_dim`. by_type: rope parameters of every layer type, where they are kept so. scaled: layer types that a flat
    rope_scaling goes to. layers: types of the layers, see `layer_types`. still: what decides that a layer does not
    rotate. inside: key of the language model within, and its model_type.
    """

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    rotates: Any = True
    theta: float = 10_000.0
    theta_keys: Any = ("rope_theta",)
    rope: Mapping[str, Any] | None = None
    partial: float | None = None
    partial_keys: Sequence[str] = ("partial_rotary_factor",)
    head: str = "head_dim"
    by_type: Mapping[str, Any] | None = None
    scaled: Sequence[str] = ()
    scaled_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    heads: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    layers: Mapping[str, Any] | None = None
    still: str | None = None
    types: Mapping[str, str] | None = None
    types_of_rope: Mapping[str, str] | None = None
    window: str | None = None
    windowed: str = "sliding"
    theta_times: str | None = None
    ignored: Sequence[str] = ()
    spread: bool = False
    source: str | None = None
    inside: Sequence[str] | None = None
    only: bool = False
    filled: bool = False
    listed_share: str | None = None
    silent: Mapping[str, Any] | None = None
    alpha: bool = False
    model: str | None = None


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, Any]]:
    lines: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))["families"]
    return lines


@lru_cache(maxsize=512)
def family(model_type: str | None) -> Family | None:
    """The family of a model_type; None where the table has none."""
    line = _table().get(str(model_type))
    return None if line is None else Family(str(model_type), **line)


def language_model(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Family | None]:
    """The part of a config that describes the language model, raw, and its family; None for one that is not known."""
    path, known = _inside(config, family(config.get("model_type")))
    part = config
    for key in path:
        part = part.get(key) or {}
    return part, known


def nest(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that lead to the language model within a config; () where it is the config itself."""
    path, _ = _inside(config, family(config.get("model_type")))
    return path


def _inside(config: Mapping[str, Any], known: Family | None) -> tuple[tuple[str, ...], Family | None]:
    for key in NESTS:
        inner = config.get(key)
        if isinstance(inner, Mapping) and inner:
            default = known.inside[1] if known and known.inside and known.inside[0] == key else None
            given = None if known is not None and known.only and default else inner.get("model_type")
            filled = known if known is not None and known.filled else None
            path, innermost = _inside(inner, _within(filled, given or default))
            return (key, *path), innermost
    while known is not None and known.inside:  # the config leaves the language model out, or is flat
        known = _within(known, known.inside[1])
    return (), known


def _within(outer: Family | None, model_type: str | None) -> Family | None:
    """The family of the language model in a config of `outer`."""
    inner = family(model_type)
    if inner is None or outer is None or outer.silent is None:
        return inner
    silent = dict(outer.silent)
    rope = silent.pop("rope_parameters", None)
    theta = {} if rope is None else {"theta": rope["rope_theta"], "rope": rope}
    return replace(inner, defaults={**inner.defaults, **silent}, **theta)


def completed(text: Mapping[str, Any], known: Family | None) -> dict[str, Any]:
    """The language model's part of a config under canonical names, with its family's defaults for what is absent.

    A head_dim of null stays: to transformers that is hidden_size // num_attention_heads.
    """
    full = dict(text)
    aliases = [(name, other) for name, others in SYNONYMS.items() for other in others] if known is None else []
    for canonical, name in [*aliases, *((value, key) for key, value in (known.names if known else {}).items())]:
        if full.get(name) is not None and (full.get(canonical) is None or (known is not None and known.source)):
            full[canonical] = full[name]
    if known is None:
        return full
    for name in known.ignored:
        full.pop(name, None)
    for name, value in known.defaults.items():
        if name not in full or (full[name] is None and name in NEEDED):
            full[name] = value
    types = layer_types(full, known)
    if types is not None:
        full["layer_types"] = list(types)
    return full


def head_dim(full: Mapping[str, Any], known: Family | None) -> int | None:
    """Dimensions of a head, as the rotary module counts them before it takes a share; None where the sizes are missing.

    By the family's rule: head_dim (hidden_size // num_attention_heads where it is null or absent), `hidden` (always
    that quotient), `qk_rope_head_dim` (always that key), or that key, or twice the quotient, unless head_dim is there.
    """
    rule = known.head if known else ("qk_rope_head_dim" if full.get("qk_rope_head_dim") else "head_dim")
    latent = rule == "qk_rope_head_dim" or (rule == "qk_rope_head_dim?" and "head_dim" not in full)
    if latent and full["qk_rope_head_dim"] != 0:  # without a latent, DeepSeek VL2's small models rotate whole heads
        return int(full["qk_rope_head_dim"])
    hidden, heads = full.get("hidden_size"), full.get("num_attention_heads")
    quotient = hidden // heads if hidden and heads else None
    if rule == "hidden":
        return quotient
    if rule == "twice?" and "head_dim" not in full:
        return None if quotient is None else 2 * quotient
    if rule == "qk_head_dim?" and "head_dim" not in full:
        return int(full["qk_nope_head_dim"] + full["qk_rope_head_dim"])
    return full.get("head_dim") or quotient


def layer_types(full: Mapping[str, Any], known: Family | None) -> tuple[str, ...] | None:
    """The type of every decoder layer; None in a family whose layers have none."""
    given = full.get("layer_types") or full.get("layers_block_type")
    if isinstance(given, (list, tuple)):
        # more of them than layers: those of layers that predict further tokens, which are not built
        return tuple(OLD_TYPES.get(str(entry), str(entry)) for entry in given[: full.get("num_hidden_layers")])
    count = full.get("num_hidden_layers")
    if known is None or known.layers is None or not count:
        return None
    rule = known.layers.get("rule")
    if rule:
        by_rule: tuple[str, ...] = _RULES[rule](full, int(count))
        return by_rule
    first, cycle, last = (_spelled(known.layers.get(part, ())) for part in ("first", "cycle", "last"))
    every = full.get(known.layers.get("every", ""))
    if every is not None and len(set(cycle)) == 2:
        common = max(set(cycle), key=cycle.count)
        (other,) = set(cycle) - {common}
        cycle = [common] * (every - 1) + [other] if cycle[-1] == other else [other] + [common] * (every - 1)
    shift = (-count) % len(cycle) if known.layers.get("from_end") else 0
    types = [cycle[(number + shift) % len(cycle)] for number in range(count)]
    types[: len(first)] = first[:count]
    if last:
        types[-1] = last[0]
    return tuple(types)


def _spelled(counted: Sequence[str]) -> list[str]:
    """["3 sliding_attention", "1 full_attention"] written out."""
    return [name for entry in counted for count, name in [entry.split()] for _ in range(int(count))]


def _from(first: str, then: str, boundary: int, count: int) -> tuple[str, ...]:
    return tuple(first if number < boundary else then for number in range(count))


def _late_window(full: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Qwen 2: a window in the layers from max_window_layers on."""
    window = full.get("use_sliding_window", True) and full.get("sliding_window") is not None
    return _from("full_attention", "sliding_attention", full["max_window_layers"] if window else count, count)


def _early_window(full: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Qwen 2 MoE: a window in every other layer before max_window_layers."""
    reach = full["max_window_layers"] if full.get("use_sliding_window") else 0
    return tuple("sliding_attention" if n % 2 == 0 and n < reach else "full_attention" for n in range(count))


def _windowed(name: str) -> Any:
    return lambda full, count: ((name if full.get("sliding_window") is not None else "full_attention"),) * count


def _listed(key: str, there: str, elsewhere: str, unsaid: Sequence[int] = ()) -> Any:
    """Types by a list of layer numbers; `unsaid`: the list of a config without one."""

    def rule(full: Mapping[str, Any], count: int) -> tuple[str, ...]:
        inside = set(unsaid if full.get(key) is None else full[key])
        return tuple(there if number in inside else elsewhere for number in range(count))

    return rule


def _chunked(full: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Llama 4: the layers that rotate see a chunk."""
    return tuple("chunked_attention" if rotates else "full_attention" for rotates in rope_flags(full, count))


def _smollm3(full: Mapping[str, Any], count: int) -> tuple[str, ...]:
    window = full.get("use_sliding_window") and full.get("sliding_window") is not None
    return tuple("sliding_attention" if window and not r else "full_attention" for r in rope_flags(full, count))


def _blocks(full: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """RecurrentGemma: a list of blocks, repeated."""
    blocks = full.get("block_types") or ("recurrent", "recurrent", "attention")
    kinds = {"recurrent": "linear_attention"}
    return tuple(kinds.get(blocks[n % len(blocks)], "sliding_attention") for n in range(count))


_RULES: dict[str, Any] = {
    "late window": _late_window,
    "early window": _early_window,
    "window": _windowed("sliding_attention"),
    "reference window": _windowed("reference_sliding_attention"),
    "attn_layer_indices": _listed("attn_layer_indices", "full_attention", "linear_attention"),
    "full_attn_idxs": _listed("full_attn_idxs", "full_attention", "conv", range(1000)),
    "cross_attention_layers": _listed("cross_attention_layers", "cross_attention", "full_attention", range(3, 40, 5)),
    "no_rope_layers": _chunked,
    "no_rope_layers, window": _smollm3,
    "block_types": _blocks,
}


def rope_flags(full: Mapping[str, Any], count: int) -> tuple[bool, ...]:
    """Whether each layer rotates, by no_rope_layers (1 where it does) or its interval."""
    flags = full.get("no_rope_layers")
    if flags:
        return tuple(bool(flag) for flag in flags)
    interval = full.get("no_rope_layer_interval", 4)
    return tuple((number + 1) % interval != 0 for number in range(count))


def rotating(full: Mapping[str, Any], known: Family | None, count: int) -> tuple[bool, ...]:
    """Whether each layer rotates its queries and keys, by the family's rule."""
    rule, types = known.still if known else None, full.get("layer_types")
    if rule == "no_rope_layers":
        return rope_flags(full, count)
    if rule in ("layer_rope_theta", "layer_rope_theta, from end"):
        given = full.get("layer_rope_theta")
        if given is not None:
            return tuple(bool(theta) for theta in given)
        return tuple(not (rule.endswith("end") and (count - 1 - number) % 4 == 0) for number in range(count))
    window = full.get("sliding_window") is not None
    if types is None or rule is None or (rule == "full_attention beside windows" and not window):
        return (True,) * count
    return tuple(window and kind == "sliding_attention" for kind in types)


def windows(full: Mapping[str, Any], known: Family | None, count: int) -> tuple[int | None, ...]:
    """How many tokens each layer sees, its own included; None for all."""
    types, chunk = full.get("layer_types"), full.get("attention_chunk_size")
    window = full.get(known.window if known and known.window else "sliding_window") or None
    if full.get("use_sliding_window") is False or (known is not None and known.window is None):
        window = None
    if types is None:
        return (window,) * count
    bounded = known.windowed if known else "sliding"
    return tuple(chunk if "chunked" in kind else window if bounded in kind else None for kind in types)


def unrotated(full: Mapping[str, Any], known: Family) -> str | None:
    """Why no layer rotates; None where some do."""
    code = known.model if known.source else f"transformers' {known.model}"
    if known.rotates is False:
        return f"{code} has none"
    for key, wanted in (known.rotates if isinstance(known.rotates, Mapping) else {}).items():
        if full.get(key) != wanted:
            return f"{code} has none with {key}={json.dumps(full.get(key))}"
    return None
