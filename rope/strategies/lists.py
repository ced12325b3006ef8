"""One divisor per pair, given as a list: searched, or written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rope.geometry import Geometry, Plan, check_integer, check_number
from rope.strategies.ramps import mscale_of
from rope.strategies.registry import Promise, strategy
from rope.strategies.scaling import check_choice, divisors, scaled, stretch

MSCALES = ("su", "yarn", "none")


@strategy(
    Promise.NATIVE_WHEN_TRAINED,
    required={"long_factor": (1.0, 4.0)},
    examples=(
        {"long_factor": (2.0, 2.0)},
        {"short_factor": (1.5, 1.5), "original_length": 16_384},
        {"mscale": "yarn"},
        {"attention_factor": 1.1},
        {"short_mscale": 1.5, "original_length": 16_384},
        {"long_mscale": 1.5},
    ),
)
def longrope(
    geometry: Geometry,
    length: int,
    *,
    factor: float | None = None,
    short_factor: Sequence[float] | None = None,
    long_factor: Sequence[float] | None = None,
    original_length: int | None = None,
    mscale: str = "su",
    attention_factor: float | None = None,
    short_mscale: float | None = None,
    long_mscale: float | None = None,
) -> Plan:
    """LongRoPE: one searched list of divisors up to the original length, another beyond.

    inv_freq[i] / short_factor[i] up to original_length, inv_freq[i] / long_factor[i] beyond
    attention: su:   sqrt(1 + ln(factor) / ln(original_length))
               yarn: 0.1 ln(factor) + 1
               none: 1

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        factor: stretch, which sets the attention factor; above 1, or None for length / trained_length.
        short_factor: a finite number above 0 for each pair, or None to leave the pairs as they are.
        long_factor: a finite number above 0 for each pair; needed beyond original_length.
        original_length: tokens up to which the short list applies, at least 2; None for the trained length.
        mscale: rule of the attention factor: "su" (the paper's, and transformers'), "yarn" or "none".
        attention_factor: factor on cos and sin, above 0; takes precedence over the rule.
        short_mscale: factor on cos and sin up to original_length, above 0; takes precedence over attention_factor.
        long_mscale: factor on cos and sin beyond original_length, above 0; takes precedence over attention_factor.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token, and the attention factor.

    Raises:
        ValueError: an argument outside these domains.

    Source:
        Ding et al. 2024, LongRoPE, https://arxiv.org/abs/2402.13753; microsoft/LongRoPE;
        transformers, modeling_rope_utils.py, _compute_longrope_parameters; short_mscale and long_mscale: vLLM
        (without the first tokens that the paper does not interpolate: no frequency expresses those)
    """
    check_choice("mscale", mscale, MSCALES)
    if original_length is not None:
        check_integer("original_length", original_length, least=2)
    scales = {"attention_factor": attention_factor, "short_mscale": short_mscale, "long_mscale": long_mscale}
    for name, value in scales.items():
        if value is not None:
            check_number(name, value, above=0, remedy="None leaves it to the rule")
    stretched, original = stretch(geometry, length, factor), original_length or geometry.trained_length
    lists = {"short_factor": short_factor, "long_factor": long_factor}
    checked = {name: divisors(name, values, geometry) for name, values in lists.items() if values is not None}
    short = length <= original
    if not short and long_factor is None:
        divisors("long_factor", long_factor, geometry)  # raises
    if short and short_factor is None and stretched == 1:
        return geometry.native(length)
    attention = short_mscale if short else long_mscale
    if attention is None:
        attention = attention_factor
    if attention is None:
        attention = _attention(mscale, stretched, original)
    divided_by = checked.get("short_factor" if short else "long_factor", 1.0)
    plan = scaled(geometry.native(length), 1.0 / divided_by)
    return Plan(plan.inv_freq, plan.attention_factor * float(attention))


@strategy(Promise.ANY_LENGTH, required={"factors": (1.0, 4.0)}, examples=({"factors": (2.0, 2.0)},))
def factors(
    geometry: Geometry, length: int, *, factors: Sequence[float] | None = None, attention_factor: float = 1.0
) -> Plan:
    """An explicit list: every pair divided by its own number, whatever the length.

    inv_freq[i] / factors[i]

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2. The plan does not depend on it.
        factors: a finite number above 0 for each pair, fastest first; there is no default.
        attention_factor: factor on cos and sin, above 0.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token, and the attention factor.

    Raises:
        ValueError: an argument outside these domains, or no list.

    Source:
        llama.cpp, freq_factors; every other static strategy can be written in this way
    """
    check_number("attention_factor", attention_factor, above=0)
    plan = scaled(geometry.native(length), 1.0 / divisors("factors", factors, geometry))
    return Plan(plan.inv_freq, plan.attention_factor * float(attention_factor))


def _attention(rule: str, factor: float, original: int) -> float:
    if rule == "su":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    return mscale_of(factor, 1.0) if rule == "yarn" else 1.0
