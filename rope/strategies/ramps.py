"""Fast pairs kept, slow pairs interpolated, a ramp between: the family of YaRN."""

from __future__ import annotations

import math

import numpy as np

from rope.geometry import Array, Geometry, Plan, check_flag, check_number
from rope.strategies.bases import ntk_multipliers
from rope.strategies.registry import Promise, strategy
from rope.strategies.scaling import check_bounds, check_choice, check_share, scaled, stretch

RAMPS = ("rotations", "index")

OF_RAMPS = (
    Promise.NATIVE_WHEN_TRAINED,
    Promise.NONE_FASTER,
    Promise.WITHIN_FACTOR,
    Promise.SLOWER_MORE,
    Promise.ORDER_KEPT,
)
"""What all of this family promise."""


@strategy(
    *OF_RAMPS,
    Promise.ATTENTION_KEPT,
    examples=({"ramp": "index"}, {"ramp": "index", "truncate": False}),
)
def by_parts(
    geometry: Geometry,
    length: int,
    *,
    factor: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    ramp: str = "rotations",
    truncate: bool = True,
) -> Plan:
    """NTK-by-parts: fast pairs keep their frequency, slow pairs are interpolated, a ramp in between.

    unscaled[i] * inv_freq[i] + (1 - unscaled[i]) * inv_freq[i] / factor
    rotations: unscaled[i] = clip((r[i] - beta_slow) / (beta_fast - beta_slow), 0, 1),
               r[i] = trained_length * inv_freq[i] / (2 pi)
    index:     unscaled[i] = 1 - clip((i - low) / (high - low), 0, 1), low, high the pairs of beta_fast, beta_slow,
               on plain frequencies the pair of beta: d ln(trained_length / (2 pi beta)) / (2 ln base)

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        factor: stretch; above 1, or None for length / trained_length.
        beta_fast: rotations over the trained length; faster pairs are left alone. At least beta_slow.
        beta_slow: rotations over the trained length; slower pairs are fully interpolated. Above 0.
        ramp: "rotations", as the paper defines it, or "index", as every implementation does.
        truncate: widen low and high to whole pairs; for ramp="index" alone.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token, and no attention factor of its own.

    Raises:
        ValueError: an argument outside these domains.

    Source:
        Peng et al. 2023, YaRN, section 3.2 and definition 2, https://arxiv.org/abs/2309.00071;
        index: jquesnelle/yarn, scaled_rope/LlamaYaRNScaledRotaryEmbedding.py
    """
    _check_by_parts(beta_fast, beta_slow, ramp, truncate)
    stretched = stretch(geometry, length, factor)
    native = geometry.native(length)
    if ramp == "rotations":
        unscaled = _unscaled_by_rotations(geometry, native, beta_fast, beta_slow)
    else:
        unscaled = _unscaled_by_index(geometry, native, beta_fast, beta_slow, truncate)
    return scaled(native, unscaled + (1 - unscaled) / stretched, stretched)


@strategy(
    *OF_RAMPS,
    examples=(
        {"beta_fast": 16.0},
        {"beta_slow": 2.0},
        {"beta_fast": 8.0, "beta_slow": 0.25},
        {"attention_factor": 1.3},
        {"mscale": 0.7, "mscale_all_dim": 1.0},
        {"ramp": "rotations"},
    ),
)
def yarn(
    geometry: Geometry,
    length: int,
    *,
    factor: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    ramp: str = "index",
) -> Plan:
    """YaRN: NTK-by-parts, and attention logits sharpened by a factor on cos and sin.

    inv_freq as by_parts; attention = 0.1 ln(factor) + 1
    with mscale and mscale_all_dim: (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        factor: stretch; above 1, or None for length / trained_length.
        beta_fast: rotations over the trained length; faster pairs are left alone. At least beta_slow.
        beta_slow: rotations over the trained length; slower pairs are fully interpolated. Above 0.
        truncate: widen the ramp to whole pairs; for ramp="index" alone.
        attention_factor: factor on cos and sin, above 0; wins over mscale and mscale_all_dim.
        mscale: slope of the numerator, at least 0; counts only together with mscale_all_dim.
        mscale_all_dim: slope of the denominator, at least 0; counts only together with mscale.
        ramp: "index", as every published YaRN number was computed, or "rotations", as the paper defines it.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token, and the attention factor.

    Raises:
        ValueError: an argument outside these domains.

    Source:
        Peng et al. 2023, YaRN, sections 3.2 and 3.4, https://arxiv.org/abs/2309.00071;
        precedence of the attention options: transformers, modeling_rope_utils.py, _compute_yarn_parameters
    """
    if attention_factor is not None:
        check_number("attention_factor", attention_factor, above=0, remedy="None takes 0.1 ln(factor) + 1")
    for name, slope in (("mscale", mscale), ("mscale_all_dim", mscale_all_dim)):
        if slope is not None:
            check_number(name, slope, least=0, remedy="0 or None leaves it out")
    stretched = stretch(geometry, length, factor)
    parts = by_parts(
        geometry, length, factor=factor, beta_fast=beta_fast, beta_slow=beta_slow, ramp=ramp, truncate=truncate
    )
    if stretched == 1:
        return parts
    if attention_factor is None:
        attention_factor = mscale_of(stretched, 1.0)
        if mscale and mscale_all_dim:
            attention_factor = mscale_of(stretched, mscale) / mscale_of(stretched, mscale_all_dim)
    return Plan(parts.inv_freq, parts.attention_factor * float(attention_factor))


@strategy(*OF_RAMPS, Promise.ATTENTION_KEPT)
def llama3(
    geometry: Geometry,
    length: int,
    *,
    factor: float | None = None,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
) -> Plan:
    """The scaling of Llama 3.1: NTK-by-parts along rotations, between other bounds.

    by_parts(ramp="rotations", beta_slow=low_freq_factor, beta_fast=high_freq_factor)

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        factor: stretch; above 1, or None for length / trained_length.
        low_freq_factor: rotations over the trained length; slower pairs are fully interpolated. Above 0.
        high_freq_factor: rotations over the trained length; faster pairs are left alone. At least
            low_freq_factor.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token, and no attention factor of its own.

    Raises:
        ValueError: an argument outside these domains.

    Source:
        meta-llama/llama-models, models/llama3/model.py, apply_scaling;
        transformers, modeling_rope_utils.py, _compute_llama3_parameters
    """
    check_bounds("low_freq_factor", low_freq_factor, "high_freq_factor", high_freq_factor)
    return by_parts(
        geometry, length, factor=factor, beta_fast=high_freq_factor, beta_slow=low_freq_factor, ramp="rotations"
    )


@strategy(
    *OF_RAMPS,
    Promise.ATTENTION_KEPT,
    examples=({"beta_0": 8.0}, {"beta_1": 0.1}),
)
def part_ntk(
    geometry: Geometry,
    length: int,
    *,
    factor: float | None = None,
    ntk_factor: float = 1.0,
    extrapolation_factor: float = 1.0,
    beta_0: float = 1.25,
    beta_1: float = 0.75,
    gamma_0: float = 16.0,
    gamma_1: float = 2.0,
) -> Plan:
    """PartNTK: slow pairs interpolated, middle ones by a larger base, fast ones kept; YaRN's own forerunner.

    multiplier[i] = unscaled[i] + (1 - unscaled[i]) (based[i] factor ** (-2 i / (d - 2)) + (1 - based[i]) / factor)
    based:    ntk_factor (1 - ramp between the pairs of beta_0 and beta_1 rotations)
    unscaled: extrapolation_factor (1 - ramp between the pairs of gamma_0 and gamma_1), ramps as by_parts' index

    Args:
        geometry: what the checkpoint was trained with; at least 2 rotated pairs.
        length: tokens of context; at least 2.
        factor: stretch; above 1, or None for length / trained_length.
        ntk_factor: how far pairs follow the larger base instead of interpolation; from 0 to 1.
        extrapolation_factor: how far fast pairs are left alone; from 0 to 1.
        beta_0: rotations over the trained length; faster pairs follow the larger base. At least beta_1.
        beta_1: rotations over the trained length; slower pairs are interpolated. Above 0.
        gamma_0: rotations over the trained length; faster pairs are left alone. At least gamma_1.
        gamma_1: rotations over the trained length; slower pairs are not left alone. Above 0.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token, and no attention factor of its own.

    Raises:
        ValueError: an argument outside these domains, or a geometry of one pair.

    Source:
        jquesnelle/yarn, scaled_rope/LlamaPartNTKScaledRotaryEmbedding.py (July 2023); by the running length, as
        LlamaDynamicPartNTKScaledRotaryEmbedding.py has it: dynamic over part_ntk
    """
    check_bounds("beta_1", beta_1, "beta_0", beta_0)
    check_bounds("gamma_1", gamma_1, "gamma_0", gamma_0)
    check_share("ntk_factor", ntk_factor)
    check_share("extrapolation_factor", extrapolation_factor)
    stretched, native = stretch(geometry, length, factor), geometry.native(length)
    based = ntk_factor * _unscaled_by_index(geometry, native, beta_0, beta_1, True)
    unscaled = extrapolation_factor * _unscaled_by_index(geometry, native, gamma_0, gamma_1, True)
    slowed = based * ntk_multipliers(geometry, stretched) + (1 - based) / stretched
    return scaled(native, unscaled + (1 - unscaled) * slowed, stretched)


def _unscaled_by_rotations(geometry: Geometry, native: Plan, beta_fast: float, beta_slow: float) -> Array:
    rotations = geometry.trained_length * np.array(native.inv_freq) / (2 * math.pi)
    if beta_fast == beta_slow:  # a step instead of a ramp; Llama 4 declares both bounds as 1
        return np.asarray(rotations >= beta_fast, dtype=np.float64)
    return np.asarray(np.clip((rotations - beta_slow) / (beta_fast - beta_slow), 0.0, 1.0))


def _unscaled_by_index(geometry: Geometry, native: Plan, beta_fast: float, beta_slow: float, truncate: bool) -> Array:
    low, high = correction_range(geometry, native, beta_fast, beta_slow, truncate)
    if low == high:
        high += 0.001  # the published code's guard against a ramp of no width
    return np.asarray(1 - np.clip((np.arange(geometry.pairs) - low) / (high - low), 0.0, 1.0))


def correction_range(
    geometry: Geometry, native: Plan, beta_fast: float, beta_slow: float, truncate: bool
) -> tuple[float, float]:
    """The pairs, counted from 0, between which the index ramp lies.

    Source:
        jquesnelle/yarn, scaled_rope/LlamaYaRNScaledRotaryEmbedding.py, find_correction_range
    """
    low, high = _pair_of(geometry, native, beta_fast), _pair_of(geometry, native, beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    # The upper clamp is the published code's: it counts dimensions, though low and high count pairs.
    return max(low, 0), min(high, geometry.rotated - 1)


def _pair_of(geometry: Geometry, native: Plan, rotations: float) -> float:
    """The fractional index of the pair that turns `rotations` times over the trained length."""
    spacing = 2 * math.log(geometry.base) / geometry.rotated  # in log rotations, from one plain pair to the next
    if not geometry.natives:
        return math.log(geometry.trained_length / (rotations * 2 * math.pi)) / spacing
    # Native frequencies are no geometric series, so the closed form does not apply; log rotations are interpolated
    # between neighbouring pairs, and beyond the first and last pair the plain spacing continues. On a native plan that
    # is plain this equals the closed form. Searched lists may rise a little: those steps are flattened.
    turns = np.maximum(geometry.trained_length * np.array(native.inv_freq) / (2 * math.pi), np.finfo(np.float64).tiny)
    falling = np.minimum.accumulate(np.log(turns))
    wanted = math.log(rotations)
    if wanted >= falling[0]:
        return float((falling[0] - wanted) / spacing)
    if wanted <= falling[-1]:
        return float(geometry.pairs - 1 + (falling[-1] - wanted) / spacing)
    return float(np.interp(-wanted, -falling, np.arange(geometry.pairs)))


def mscale_of(factor: float, slope: float) -> float:
    """YaRN's factor on cos and sin: 0.1 slope ln(factor) + 1."""
    return 0.1 * slope * math.log(factor) + 1.0


def _check_by_parts(beta_fast: float, beta_slow: float, ramp: str, truncate: bool) -> None:
    check_bounds("beta_slow", beta_slow, "beta_fast", beta_fast)
    check_choice("ramp", ramp, RAMPS)
    check_flag("truncate", truncate)
