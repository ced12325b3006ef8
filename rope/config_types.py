"""What the keys of a config.json may hold, so that nothing else meets a value of another type, or allocates by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

from rope import families

DEEPEST = 32
"""Mappings and lists within each other; a config of several models has four or five."""

MOST: Mapping[str, int] = {
    "head_dim": 2**16,
    "qk_rope_head_dim": 2**16,
    "qk_nope_head_dim": 2**16,
    "global_head_dim": 2**16,
    "rotary_dim": 2**16,
    "hidden_size": 2**24,
    "intermediate_size": 2**28,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "num_hidden_layers": 10_000,
    "max_window_layers": 2**40,
    "vocab_size": 2**31,
    "max_position_embeddings": 2**40,
    "original_max_position_embeddings": 2**40,
    "sliding_window": 2**40,
    "attention_chunk_size": 2**40,
}
"""Whole numbers, and the largest that any model could have: arrays and lists are made by them."""

LEAST: Mapping[str, int] = {"vocab_size": 1, "num_hidden_layers": 1, "hidden_size": 1, "no_rope_layer_interval": 1}
"""The smallest; of others 0, which some configs write for "none"."""

BROKEN = frozenset({"original_max_position_embeddings"})
"""Of these, the ones that need not be whole: by such a length ExLlamaV2 takes any attention factor."""

BY_LAYER = frozenset({"num_attention_heads", "num_key_value_heads", "intermediate_size", "sliding_window"})
"""Whole numbers that may be a list, one a layer."""

NUMBERS = frozenset(
    {"rope_theta", "rotary_emb_base", "rope_local_base_freq", "rotary_pct", "partial_rotary_factor", "factor", "alpha"}
    | {"beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor", "attention_factor", "mscale", "mscale_all_dim"}
    | {"short_mscale", "long_mscale", "no_rope_layer_interval"}
)
"""Numbers, alone or one a layer."""

TEXTS = frozenset({"model_type", "position_embedding_type", "rope_type"})
MAPPINGS = frozenset({"rope_scaling", "rope_parameters"})
NAMES = frozenset({"layer_types", "block_types", "architectures"})
"""Lists of names; those of LISTS hold numbers otherwise."""
LISTS = frozenset({"short_factor", "long_factor", "no_rope_layers", "layer_rope_theta"} | NAMES)

_SYNONYMS = {name: canonical for canonical, names in families.SYNONYMS.items() for name in names}


def check_types(config: Mapping[str, Any]) -> None:
    """Refuse a config whose keys hold what no model has.

    Raises:
        ValueError: the key, what it holds, and what it takes.
    """
    _check_part(config, "", 0)


def _check_part(part: Mapping[str, Any], where: str, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(f"the config nests more than {DEEPEST} mappings within each other; give a model's config.json")
    for key, value in part.items():
        name = f"{where}{key}"
        if value is not None:
            _check_value(name, _SYNONYMS.get(key, key) if isinstance(key, str) else "", value)
        if isinstance(value, Mapping) and (where or key in MAPPINGS or key in families.NESTS):
            _check_part(value, f"{name}.", depth + 1)


def _check_value(name: str, key: str, value: Any) -> None:
    if key in MOST:
        values = value if key in BY_LAYER and isinstance(value, (list, tuple)) else [value]
        least, most = LEAST.get(key, 0), MOST[key]
        fits = _real if key in BROKEN else _whole
        if not all(fits(entry) and least <= entry <= most for entry in values if entry is not None):
            raise ValueError(f"{name}={_short(value)}: give a whole number from {least} to {most:,}")
    elif key in NUMBERS:
        values = value if isinstance(value, (list, tuple)) else [value]
        smallest = float(LEAST[key]) if key in LEAST else -math.inf
        if not all(_number(entry) and float(entry) >= smallest for entry in values if entry is not None):
            raise ValueError(f"{name}={_short(value)}: give a number")
    elif key in TEXTS and not isinstance(value, str):
        raise ValueError(f"{name}={_short(value)}: give a name in quotes")
    elif key in MAPPINGS and not isinstance(value, Mapping):
        raise ValueError(f"{name}={_short(value)}: give a mapping such as {{rope_type: yarn, factor: 4.0}}, or null")
    elif key in LISTS:
        kind = "names" if key in NAMES else "numbers"
        of_kind = (lambda entry: isinstance(entry, str)) if key in NAMES else _number
        if not isinstance(value, (list, tuple)) or not all(map(of_kind, value)):
            raise ValueError(f"{name}={_short(value)}: give a list of {kind}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    """A number that a float64 holds, with room for its square; or the text of one, as some configs have it."""
    try:
        return isinstance(value, (bool, int, float, str)) and -1e150 < float(value) < 1e150
    except (ValueError, OverflowError):
        return False


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes, or a list within itself
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."


Read = TypeVar("Read", bound=Callable[..., Any])


def of_config(read: Read) -> Read:
    """A function that reads a config, whose every failure over what the config holds is a ValueError in a sentence."""

    @wraps(read)
    def refusing(*arguments: Any, **options: Any) -> Any:
        try:
            return read(*arguments, **options)
        except (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(
                f"the config cannot be read ({type(error).__name__}: {error}); a key of it holds what that key of its "
                "family never does: compare it with the config.json that the model was published with"
            ) from error

    return cast(Read, refusing)
