"""Low frequencies lowered or set to zero, whatever the length of the context."""

from __future__ import annotations

import math

import numpy as np

from rope.geometry import Geometry, Plan, check_flag, check_integer, check_number
from rope.strategies.registry import Promise, strategy
from rope.strategies.scaling import check_share, scaled

OF_MASKS = (
    Promise.NONE_FASTER,
    Promise.SLOWER_MORE,
    Promise.ORDER_KEPT,
    Promise.ANY_LENGTH,
    Promise.ATTENTION_KEPT,
)
"""What those of this family promise whose divisors do not fall from pair to pair."""


@strategy(
    Promise.FIRST_PAIR_KEPT,
    *OF_MASKS,
)
def power(geometry: Geometry, length: int, *, k: float = 0.5) -> Plan:
    """Giraffe's power basis: frequencies fall towards 0 at the slow end. Needs fine-tuning.

    inv_freq[i] * (1 - 2 i / d) ** k

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2. The plan does not depend on it.
        k: exponent; at least 0, where 0 changes nothing.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token.

    Raises:
        ValueError: length or k outside these domains.

    Source:
        Pal et al. 2023, Giraffe, https://arxiv.org/abs/2308.10882; abacusai/Long-Context
    """
    check_number("k", k, least=0)
    return scaled(geometry.native(length), (1 - np.arange(geometry.pairs) / geometry.pairs) ** k)


@strategy(
    Promise.NONE_FASTER, Promise.ORDER_KEPT, Promise.ANY_LENGTH, Promise.ATTENTION_KEPT, examples=({"cutoff": 64},)
)
def truncated(
    geometry: Geometry, length: int, *, cutoff: int | None = None, floor: float = 16.0, still: float = 8.0
) -> Plan:
    """Giraffe's truncated basis: slow pairs share one low frequency, the slowest have none. Needs fine-tuning.

    inv_freq[i] where wavelength[i] <= cutoff, 2 pi / (floor * cutoff) where it is at most still * cutoff, else 0
    wavelength[i] = 2 pi / inv_freq[i]

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2. The plan does not depend on it.
        cutoff: tokens; pairs of a longer wavelength are truncated. At least 2, or None for the trained length.
        floor: the wavelength of truncated pairs, in cutoffs; at least `still`, so that no frequency grows.
        still: the wavelength, in cutoffs, beyond which a frequency is 0; at least 1.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token.

    Raises:
        ValueError: an argument outside these domains.

    Source:
        Pal et al. 2023, Giraffe, https://arxiv.org/abs/2308.10882; the numbers: abacusai/Long-Context
    """
    check_number("still", still, least=1)
    check_number("floor", floor, least=still, remedy="that is `still`, beyond which frequencies are 0")
    if cutoff is not None:
        check_integer("cutoff", cutoff, least=2)
    native = geometry.native(length)
    slowest = 2 * math.pi / (geometry.trained_length if cutoff is None else cutoff)
    inv_freq = np.array(native.inv_freq)
    low = np.where(inv_freq < slowest / still, 0.0, slowest / floor)
    return Plan(tuple(np.where(inv_freq < slowest, low, inv_freq).tolist()), native.attention_factor)


@strategy(
    *OF_MASKS,
    examples=({"p": 0.5}, {"p": 0.0}),
)
def proportional(geometry: Geometry, length: int, *, p: float = 0.75) -> Plan:
    """p-RoPE: the fastest share of the pairs is unchanged, the others have zero frequency. Needs pre-training.

    inv_freq[i] where i < floor(p d / 2), else 0

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2. The plan does not depend on it.
        p: share of pairs that rotate; at least 0 (none does, NoPE), at most 1 (all do).

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token.

    Raises:
        ValueError: length or p outside these domains.

    Source:
        Barbero et al. 2024, https://arxiv.org/abs/2410.06205;
        transformers, modeling_rope_utils.py, _compute_proportional_rope_parameters
    """
    check_share("p", p)
    # a share read as a quotient may multiply back to a hair below the whole number it came from
    rotating = math.floor(p * geometry.pairs + 1e-6)
    return scaled(geometry.native(length), np.where(np.arange(geometry.pairs) < rotating, 1.0, 0.0))


@strategy(
    *OF_MASKS,
    examples=({"clip_low_n": 8},),
)
def cope(geometry: Geometry, length: int, *, clip_low_n: int = 20, hard: bool = False) -> Plan:
    """CoPE: the lowest frequencies fade to 0 along half a cosine, or are 0. Published after further training.

    inv_freq[i] * (1 + cos(pi k / (n - 1))) / 2, k = 0 ... n - 1 for the n slowest pairs; hard: 0 for all n

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2. The plan does not depend on it.
        clip_low_n: the n slowest pairs that are clipped; at least 1, all where the model has fewer. A single one is
            left as it is, but for hard clipping.
        hard: set them to 0 instead, the paper's HardClip.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token.

    Raises:
        ValueError: length, clip_low_n or hard outside these domains.

    Source:
        CoPE, https://arxiv.org/abs/2602.05258; hrlics/CoPE, modeling_cope.py (use_cope, use_hardclip; 20 of 64 pairs)
    """
    check_integer("clip_low_n", clip_low_n, least=1)
    check_flag("hard", hard)
    clipped = min(clip_low_n, geometry.pairs)
    fading = np.zeros(clipped) if hard else 0.5 * (1 + np.cos(np.linspace(0, math.pi, clipped)))
    return scaled(geometry.native(length), np.concatenate((np.ones(geometry.pairs - clipped), fading)))
