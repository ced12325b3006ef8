"""All frequencies treated alike: unchanged, or divided by the same factor."""

from __future__ import annotations

from rope.geometry import Geometry, Plan
from rope.strategies.registry import Promise, strategy
from rope.strategies.scaling import scaled, stretch


@strategy(
    Promise.NATIVE_WHEN_TRAINED,
    Promise.FIRST_PAIR_KEPT,
    Promise.NONE_FASTER,
    Promise.WITHIN_FACTOR,
    Promise.SLOWER_MORE,
    Promise.ORDER_KEPT,
    Promise.ANY_LENGTH,
    Promise.ATTENTION_KEPT,
)
def none(geometry: Geometry, length: int) -> Plan:
    """The checkpoint as it is: its native plan.

    inv_freq[i] = base ** (-2 i / d), or what the checkpoint's own config declares, a dynamic scaling at this length

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


@strategy(
    Promise.NATIVE_WHEN_TRAINED,
    Promise.LAST_PAIR_DIVIDED,
    Promise.NONE_FASTER,
    Promise.WITHIN_FACTOR,
    Promise.SLOWER_MORE,
    Promise.ORDER_KEPT,
    Promise.ATTENTION_KEPT,
)
def linear(geometry: Geometry, length: int, *, factor: float | None = None) -> Plan:
    """Position interpolation: every frequency divided by the factor.

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
    return scaled(geometry.native(length), 1.0 / stretched, stretched)
