"""Every frequency strategy, side by side: pure functions (geometry, length, **options) -> Plan, all in float64.

Options are keyword-only and carry the published names and defaults. `factor` is by how much the context is stretched;
None means length / trained_length, and 1 below the trained length. A factor of exactly 1 gives the native plan itself.
Where a checkpoint declares a scaling of its own, a strategy acts on top of those native frequencies and that native
attention factor, so that it leaves the trained model unchanged at its trained length.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from rope.geometry import Array, Geometry, Plan, Plans, check_integer, check_number
from rope.pairwise import PAIRWISE, Pairwise, scaled

Strategy = Callable[..., Plan]
RAMPS = ("rotations", "index")
RULES = ("natural", "transformers")
LOCAL = ("sliding", "local", "chunked")
"""Words in the names of layer types that see a bounded window, shorter than any length that was trained."""


def none(geometry: Geometry, length: int) -> Plan:
    """The checkpoint as it is: the native plan, whatever the length.

    inv_freq[i] = base ** (-2 i / d), or what the checkpoint's own config declares

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token.

    Raises:
        ValueError: length is not a whole number of at least 2.

    Source:
        Su et al. 2021, RoFormer, section 3.2.2, https://arxiv.org/abs/2104.09864
    """
    return geometry.native(length)


def linear(geometry: Geometry, length: int, *, factor: float | None = None) -> Plan:
    """Position interpolation: every pair slowed alike.

    inv_freq[i] / factor

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        factor: stretch; above 1, or None for length / trained_length.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token.

    Raises:
        ValueError: length or factor outside these domains.

    Source:
        Chen et al. 2023, Position Interpolation, equation 4, https://arxiv.org/abs/2306.15595
    """
    stretched = stretch(geometry, length, factor)
    return _scaled(geometry.native(length), 1.0 / stretched, stretched)


def ntk(geometry: Geometry, length: int, *, factor: float | None = None) -> Plan:
    """NTK-aware scaling: a larger base, so the first pair keeps its speed and the last is slowed by the whole factor.

    inv_freq[i] * factor ** (-2 i / (d - 2)), which is base -> base * factor ** (d / (d - 2))

    Args:
        geometry: what the checkpoint was trained with; at least 2 rotated pairs.
        length: tokens of context; at least 2.
        factor: stretch; above 1, or None for length / trained_length.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token.

    Raises:
        ValueError: length or factor outside these domains, or a geometry of one pair.

    Source:
        bloc97 2023; Peng et al. 2023, YaRN, section 3.1 and definition 1, https://arxiv.org/abs/2309.00071
        (the multipliers, not the base, so that it also acts on native frequencies)
    """
    stretched = stretch(geometry, length, factor)
    return _scaled(geometry.native(length), _ntk_multipliers(geometry, stretched), stretched)


def dynamic_ntk(geometry: Geometry, length: int, *, rule: str = "natural", factor: float | None = None) -> Plan:
    """NTK-aware scaling by the running length: the plan for one forward of exactly `length` tokens.

    inv_freq[i] * alpha ** (-2 i / (d - 2))
    natural:      alpha = max(1, length / trained_length)
    transformers: alpha = factor * max(1, length / trained_length) - (factor - 1)

    Args:
        geometry: what the checkpoint was trained with; at least 2 rotated pairs.
        length: tokens of context; at least 2.
        rule: "natural", which leaves factor aside, or "transformers".
        factor: for rule="transformers": at least 1 (1 is the natural rule), or None for length / trained_length.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token.

    Raises:
        ValueError: length, rule or factor outside these domains, or a geometry of one pair.

    Source:
        emozilla 2023; YaRN, section 3.3, https://arxiv.org/abs/2309.00071;
        transformers, modeling_rope_utils.py, _compute_dynamic_ntk_parameters
        (which keeps the base of the longest sequence seen so far; a plan here depends on its own length alone)
    """
    _check_choice("rule", rule, RULES)
    ratio = stretch(geometry, length, None)
    if rule == "natural":
        alpha = ratio
    else:
        growth = ratio if factor is None else factor
        check_number("factor", growth, least=1, remedy="1 is the natural rule, None takes length / trained_length")
        alpha = growth * ratio - (growth - 1)
    return _scaled(geometry.native(length), _ntk_multipliers(geometry, alpha), alpha)


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
    """NTK-by-parts: fast pairs keep their speed, slow pairs are interpolated, a ramp in between.

    kept[i] * inv_freq[i] + (1 - kept[i]) * inv_freq[i] / factor
    rotations: kept[i] = clip((r[i] - beta_slow) / (beta_fast - beta_slow), 0, 1),
               r[i] = trained_length * inv_freq[i] / (2 pi)
    index:     kept[i] = 1 - clip((i - low) / (high - low), 0, 1), low and high the pairs of beta_fast and beta_slow,
               on plain frequencies the pair of beta: d ln(trained_length / (2 pi beta)) / (2 ln base)

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        factor: stretch; above 1, or None for length / trained_length.
        beta_fast: rotations over the trained length; faster pairs are left alone. At least beta_slow.
        beta_slow: rotations over the trained length; slower pairs are fully interpolated. Above 0.
        ramp: "rotations", as the paper defines it, or "index", as every implementation has it.
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
        kept = _kept_by_rotations(geometry, native, beta_fast, beta_slow)
    else:
        kept = _kept_by_index(geometry, native, beta_fast, beta_slow, truncate)
    return _scaled(native, kept + (1 - kept) / stretched, stretched)


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
        attention_factor = _mscale(stretched, 1.0)
        if mscale and mscale_all_dim:
            attention_factor = _mscale(stretched, mscale) / _mscale(stretched, mscale_all_dim)
    return Plan(parts.inv_freq, parts.attention_factor * float(attention_factor))


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
    _check_bounds("low_freq_factor", low_freq_factor, "high_freq_factor", high_freq_factor)
    return by_parts(
        geometry, length, factor=factor, beta_fast=high_freq_factor, beta_slow=low_freq_factor, ramp="rotations"
    )


STRATEGIES: dict[str, Strategy] = {
    strategy.__name__: strategy for strategy in (none, linear, ntk, dynamic_ntk, by_parts, yarn, llama3)
}
"""Those of frequencies alone."""


def logn(
    geometry: Geometry, length: int, *, over: str = "none", factor: float | None = None, clip: bool = True
) -> Plan:
    """Log-n scaling: later queries attend more sharply, so that more keys do not blur what they attend to.

    the query at position m (from 0) times max(1, ln(m + 1) / ln(trained_length)), over any frequency strategy

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        over: the frequency strategy whose plan it acts on, with its published defaults.
        factor: of that strategy, where it has one; None for length / trained_length.
        clip: at least 1, for checkpoints trained without; false: the same formula below the trained length too, the
            entropy-invariant attention of checkpoints trained with it.

    Returns:
        Pairwise over the plan of `over`; that plan itself up to the trained length, if clipped.

    Raises:
        ValueError: an argument outside these domains, or what `over` refuses.

    Source:
        Su 2021, https://kexue.fm/archives/8823; clipped: Su 2023, https://kexue.fm/archives/9708, and bojone/rerope
    """
    if over not in STRATEGIES and over not in ALIASES:
        raise ValueError(_unknown("frequency strategy in over", over, [*STRATEGIES, *ALIASES], "give one of"))
    options = {"factor": factor} if factor is not None and "factor" in options_of(over) else {}
    return scaled(geometry, plan(over, geometry, length, **options), length, clip)


EVERY: dict[str, Strategy] = {**STRATEGIES, **PAIRWISE, "logn": logn}
"""All that a grid may name: also those that change attention itself, whose plans are Pairwise."""
ALIASES = {"pi": "linear"}


def named(strategy: str) -> str:
    """The name under which a strategy stands in EVERY; ValueError, with the known names, for any other word."""
    name = ALIASES.get(strategy, strategy) if isinstance(strategy, str) else ""
    if name not in EVERY:
        raise ValueError(_unknown("strategy", strategy, [*EVERY, *ALIASES], "strategies"))
    return name


def options_of(strategy: str) -> dict[str, Any]:
    """The options of a strategy with their published defaults, in the order of its signature."""
    parameters = inspect.signature(EVERY[named(strategy)]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def plan(strategy: str, geometry: Geometry, length: int, **options: Any) -> Plan:
    """The plan of a strategy by name or alias; ValueError for an unknown name, an unknown option or a bad value."""
    name = named(strategy)
    known = options_of(name)
    for option in options:
        if option not in known:
            raise ValueError(_unknown(f"option of {name}", option, known, "options"))
    return EVERY[name](geometry, length, **options)


def plans(strategy: str, geometries: Mapping[str, Geometry], length: int, **options: Any) -> Plans:
    """A plan for every layer type, in the order of `geometries`.

    Layers of a bounded window (sliding, local, chunked) keep their native plan: no distance in them exceeds what was
    trained. Gemma 3 and Olmo 3 were extended in that way.
    """
    if not geometries:
        raise ValueError("no geometry was given; give one for every layer type, as geometry_of(config) does")
    # computed for local layers too, so that a bad name or option never passes unseen
    stretched = {layer_type: plan(strategy, geometry, length, **options) for layer_type, geometry in geometries.items()}
    if len(geometries) > 1 and any(isinstance(found, Pairwise) for found in stretched.values()):
        raise ValueError(
            f"{strategy} changes attention itself, and this model's layers attend in several ways "
            f"({', '.join(geometries)}); give a frequency strategy, or a model whose layers are of one type"
        )
    return tuple(
        (layer_type, found if not _is_local(layer_type) else geometries[layer_type].native(length))
        for layer_type, found in stretched.items()
    )


def stretch(geometry: Geometry, length: int, factor: float | None) -> float:
    """By how much the context is stretched: `factor` as given, else length / trained_length and at least 1.

    Raises:
        ValueError: length is not a whole number of at least 2, or factor is not None and not a finite number above 1.
    """
    check_integer("length", length, least=2)
    if factor is None:
        return max(1.0, length / geometry.trained_length)
    check_number("factor", factor, above=1, remedy="None takes length / trained_length; to scale nothing, use none")
    return float(factor)


def _scaled(native: Plan, multipliers: Array | float, factor: float) -> Plan:
    if factor == 1:
        return native  # itself: even a product with 1.0 must not stand between equal plans
    return Plan(tuple((np.array(native.inv_freq) * multipliers).tolist()), native.attention_factor)


def _ntk_multipliers(geometry: Geometry, factor: float) -> Array:
    if geometry.pairs < 2:
        raise ValueError(
            f"NTK scaling spreads a factor from the first to the last of several pairs; head_dim={geometry.head_dim} "
            f"with partial={geometry.partial} rotates one; use linear"
        )
    return np.asarray(factor ** (-2.0 * np.arange(geometry.pairs) / (geometry.rotated - 2)), dtype=np.float64)


def _kept_by_rotations(geometry: Geometry, native: Plan, beta_fast: float, beta_slow: float) -> Array:
    rotations = geometry.trained_length * np.array(native.inv_freq) / (2 * math.pi)
    if beta_fast == beta_slow:  # a step instead of a ramp; Llama 4 declares both bounds as 1
        return np.asarray(rotations >= beta_fast, dtype=np.float64)
    return np.asarray(np.clip((rotations - beta_slow) / (beta_fast - beta_slow), 0.0, 1.0))


def _kept_by_index(geometry: Geometry, native: Plan, beta_fast: float, beta_slow: float, truncate: bool) -> Array:
    low, high = _pair_of(geometry, native, beta_fast), _pair_of(geometry, native, beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    # The upper clamp is the published code's: it counts dimensions, though low and high count pairs.
    low, high = max(low, 0), min(high, geometry.rotated - 1)
    if low == high:
        high += 0.001  # the published code's guard against a ramp of no width
    return np.asarray(1 - np.clip((np.arange(geometry.pairs) - low) / (high - low), 0.0, 1.0))


def _pair_of(geometry: Geometry, native: Plan, rotations: float) -> float:
    """The fractional index of the pair that turns `rotations` times over the trained length."""
    spacing = 2 * math.log(geometry.base) / geometry.rotated  # in log rotations, from one plain pair to the next
    if not geometry.natives:
        return math.log(geometry.trained_length / (rotations * 2 * math.pi)) / spacing
    # Native frequencies are no geometric series, so the closed form does not hold; log rotations are interpolated
    # between neighbouring pairs, and beyond the first and last pair the plain spacing goes on. On a native plan that
    # happens to be plain this is the closed form again. Searched lists may rise a little: those steps are flattened.
    turns = np.maximum(geometry.trained_length * np.array(native.inv_freq) / (2 * math.pi), np.finfo(np.float64).tiny)
    falling = np.minimum.accumulate(np.log(turns))
    wanted = math.log(rotations)
    if wanted >= falling[0]:
        return float((falling[0] - wanted) / spacing)
    if wanted <= falling[-1]:
        return float(geometry.pairs - 1 + (falling[-1] - wanted) / spacing)
    return float(np.interp(-wanted, -falling, np.arange(geometry.pairs)))


def _mscale(factor: float, slope: float) -> float:
    return 0.1 * slope * math.log(factor) + 1.0


def _is_local(layer_type: str) -> bool:
    return any(word in layer_type for word in LOCAL)


def _check_by_parts(beta_fast: float, beta_slow: float, ramp: str, truncate: bool) -> None:
    _check_bounds("beta_slow", beta_slow, "beta_fast", beta_fast)
    _check_choice("ramp", ramp, RAMPS)
    if not isinstance(truncate, bool):
        raise ValueError(f"truncate={truncate!r}: give true or false")


def _check_bounds(lower_name: str, lower: float, upper_name: str, upper: float) -> None:
    check_number(lower_name, lower, above=0)
    check_number(upper_name, upper, above=0)
    if upper < lower:
        raise ValueError(f"{upper_name}={upper} with {lower_name}={lower}: give {upper_name} of at least {lower_name}")


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: give one of {', '.join(choices)}")


def _unknown(kind: str, given: Any, known: Collection[str], plural: str) -> str:
    close = difflib.get_close_matches(str(given), list(known), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind}: {given!r}; {hint}{plural}: {', '.join(known) or 'none at all'}"
