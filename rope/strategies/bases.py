"""Another base: the family of NTK-aware scaling."""

from __future__ import annotations

import numpy as np

from rope.geometry import Array, Geometry, Plan, check_number
from rope.strategies.registry import Promise, strategy
from rope.strategies.scaling import running_factor, scaled, stretch


@strategy(
    Promise.NATIVE_WHEN_TRAINED,
    Promise.FIRST_PAIR_KEPT,
    Promise.LAST_PAIR_DIVIDED,
    Promise.NONE_FASTER,
    Promise.WITHIN_FACTOR,
    Promise.SLOWER_MORE,
    Promise.ORDER_KEPT,
    Promise.ATTENTION_KEPT,
)
def ntk(geometry: Geometry, length: int, *, factor: float | None = None) -> Plan:
    """NTK-aware scaling: a larger base, so the first pair keeps its frequency and the last is divided by the factor.

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
    return scaled(geometry.native(length), ntk_multipliers(geometry, stretched), stretched)


@strategy(
    Promise.NATIVE_WHEN_TRAINED,
    Promise.FIRST_PAIR_KEPT,
    Promise.NONE_FASTER,
    Promise.SLOWER_MORE,
    Promise.ORDER_KEPT,
    Promise.ATTENTION_KEPT,
    examples=({"rule": "transformers"}, {"rule": "transformers", "factor": 3.0}),
)
def dynamic_ntk(geometry: Geometry, length: int, *, rule: str = "natural", factor: float | None = None) -> Plan:
    """NTK-aware scaling by the running length: the plan for one forward of exactly `length` tokens.

    inv_freq[i] * alpha ** (-2 i / (d - 2))
    natural:      alpha = max(1, length / trained_length)
    transformers: alpha = factor * max(1, length / trained_length) - (factor - 1)

    Args:
        geometry: what the checkpoint was trained with; at least 2 rotated pairs.
        length: tokens of context; at least 2.
        rule: "natural", which ignores factor, or "transformers".
        factor: for rule="transformers": at least 1 (1 is the natural rule), or None for length / trained_length.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token.

    Raises:
        ValueError: length, rule or factor outside these domains, or a geometry of one pair.

    Source:
        emozilla 2023; YaRN, section 3.3, https://arxiv.org/abs/2309.00071;
        transformers, modeling_rope_utils.py, _compute_dynamic_ntk_parameters
        (which keeps the base of the longest sequence so far; a plan here depends on its own length alone)
    """
    alpha = running_factor(geometry, length, rule, factor)
    return scaled(geometry.native(length), ntk_multipliers(geometry, alpha), alpha)


@strategy(
    Promise.NATIVE_WHEN_TRAINED,
    Promise.LAST_PAIR_DIVIDED,
    Promise.NONE_FASTER,
    Promise.WITHIN_FACTOR,
    Promise.SLOWER_MORE,
    Promise.ORDER_KEPT,
    Promise.ATTENTION_KEPT,
)
def ntk_fixed(geometry: Geometry, length: int, *, factor: float | None = None) -> Plan:
    """NTK-RoPE-fixed: base times factor, and every frequency divided by the same remainder.

    inv_freq[i] * factor ** (-2 (i + 1) / d)

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        factor: stretch; above 1, or None for length / trained_length.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token.

    Raises:
        ValueError: length or factor outside these domains.

    Source:
        Su 2023, https://kexue.fm/archives/9706; vLLM's rope type `ntk`
    """
    stretched = stretch(geometry, length, factor)
    exponents = -2.0 * np.arange(1, geometry.pairs + 1) / geometry.rotated
    return scaled(geometry.native(length), stretched**exponents, stretched)


@strategy(
    Promise.NATIVE_WHEN_TRAINED,
    Promise.LAST_PAIR_DIVIDED,
    Promise.NONE_FASTER,
    Promise.WITHIN_FACTOR,
    Promise.SLOWER_MORE,
    Promise.ORDER_KEPT,
    Promise.ATTENTION_KEPT,
)
def ntk_mixed(geometry: Geometry, length: int, *, factor: float | None = None, mixed_b: float = 0.75) -> Plan:
    """NTK-RoPE-mixed: fast pairs divided by more than under ntk_fixed, the last by the whole factor as well.

    inv_freq[i] * exp(-a (i + 1) ** mixed_b), a = ln(factor) / (d / 2) ** mixed_b

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        factor: stretch; above 1, or None for length / trained_length. The published code uses 12.
        mixed_b: above 0; 1 is ntk_fixed, towards 0 all pairs are divided alike, as by linear.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token.

    Raises:
        ValueError: an argument outside these domains.

    Source:
        Su 2023, https://kexue.fm/archives/9706 and https://kexue.fm/archives/9708; bojone/rerope;
        vLLM's rope type `ntk` with mixed_b
    """
    check_number("mixed_b", mixed_b, above=0, remedy="1 is ntk_fixed")
    stretched = stretch(geometry, length, factor)
    shares = (np.arange(1, geometry.pairs + 1) / geometry.pairs) ** mixed_b
    return scaled(geometry.native(length), stretched**-shares, stretched)


@strategy(Promise.FIRST_PAIR_KEPT, Promise.ORDER_KEPT, Promise.ANY_LENGTH, Promise.ATTENTION_KEPT)
def base(geometry: Geometry, length: int, *, theta: float = 500_000.0) -> Plan:
    """Adjusted base frequency (ABF): another theta, at every length. Needs fine-tuning.

    inv_freq[i] * (theta / base) ** (-2 i / d), which is theta ** (-2 i / d) on plain frequencies

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2. The plan does not depend on it.
        theta: the new base; above 1. 500000 is Xiong's and Llama 3's, 1000000 Code Llama's.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token.

    Raises:
        ValueError: length or theta outside these domains.

    Source:
        Xiong et al. 2023, https://arxiv.org/abs/2309.16039; Rozière et al. 2023, Code Llama,
        https://arxiv.org/abs/2308.12950
    """
    check_number("theta", theta, above=1)
    exponents = -2.0 * np.arange(geometry.pairs) / geometry.rotated
    return scaled(geometry.native(length), (theta / geometry.base) ** exponents, theta / geometry.base)


def ntk_multipliers(geometry: Geometry, factor: float) -> Array:
    """(pairs,) what a base of base * factor ** (d / (d - 2)) makes of each frequency; ValueError for a single pair."""
    if geometry.pairs < 2:
        raise ValueError(
            f"NTK scaling spreads a factor from the first to the last of several pairs; head_dim={geometry.head_dim} "
            f"with partial={geometry.partial} rotates one; use linear"
        )
    return np.asarray(factor ** (-2.0 * np.arange(geometry.pairs) / (geometry.rotated - 2)), dtype=np.float64)
