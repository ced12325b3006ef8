"""What theory says of a plan before anything is measured: pure functions of inverse frequencies and lengths.

They apply to any plan, so they compare strategies; how a model performs under it, only a measurement shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rope.geometry import Array, Plan, check_integer

SIGNIFICANT_BITS = {"bfloat16": 8, "float16": 11, "float32": 24}
"""Bits of a floating-point format's significand, including the implicit one."""

BLOCKS = (4096, 2**20)
"""Distances that are summed at once, at first and at most."""

CANDIDATES = 64
"""Bases that are tried at once where the last one failed."""


def wavelengths(plan: Plan) -> Array:
    """Tokens in which each pair makes one full rotation.

    2 pi / inv_freq[i]

    Returns:
        (pairs,) float64, tokens; infinite where the frequency is 0.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(2 * np.pi / np.array(plan.inv_freq))


def rotations(plan: Plan, length: int) -> Array:
    """Rotations of each pair within `length` tokens.

    length * inv_freq[i] / (2 pi)

    Returns:
        (pairs,) float64.
    """
    return np.asarray(length * np.array(plan.inv_freq) / (2 * np.pi))


def critical_pair(plan: Plan, trained_length: int) -> int:
    """The number of pairs with a full rotation within the trained length: they have seen every angle.

    count of i with wavelength[i] <= trained_length

    Source:
        Liu et al. 2023, https://arxiv.org/abs/2310.05209, whose critical dimension, on plain frequencies, is twice this
    """
    return int((wavelengths(plan) <= trained_length).sum())


def critical_dimension(head_dim: int, base: float, trained_length: int) -> int:
    """Dimensions with a full rotation within the trained length, for plain frequencies.

    2 ceil((d / 2) log_base(trained_length / (2 pi))), at least 0 and at most d

    Source:
        Liu et al. 2023, Scaling laws of RoPE-based extrapolation, https://arxiv.org/abs/2310.05209

    >>> critical_dimension(head_dim=128, base=10_000.0, trained_length=4096)
    92
    """
    rotating = 2 * math.ceil(head_dim / 2 * math.log(trained_length / (2 * math.pi), base))
    return min(max(rotating, 0), head_dim)


def critical_base(base: float, trained_length: int, tuned_length: int) -> float:
    """The base above which fine-tuning at another length extends a model beyond that length.

    base ** log_{trained_length / (2 pi)}(tuned_length / (2 pi))

    Source:
        Liu et al. 2023, https://arxiv.org/abs/2310.05209
    """
    return float(base ** math.log(tuned_length / (2 * math.pi), trained_length / (2 * math.pi)))


def extrapolation_bound(head_dim: int, base: float, trained_length: int, tuned_base: float, tuned_length: int) -> float:
    """Tokens up to which a model works that was fine-tuned under another base.

    2 pi tuned_base ** (critical_dimension / d) where tuned_base is above critical_base, else tuned_length

    Source:
        Liu et al. 2023, https://arxiv.org/abs/2310.05209
    """
    if tuned_base <= critical_base(base, trained_length, tuned_length):
        return float(tuned_length)
    return float(2 * math.pi * tuned_base ** (critical_dimension(head_dim, base, trained_length) / head_dim))


def small_bases(tuned_length: int) -> tuple[float, float, float]:
    """Bases below which every dimension makes a quarter, half and a full rotation in fine-tuning.

    2 tuned_length / pi, tuned_length / pi, tuned_length / (2 pi)

    Source:
        Liu et al. 2023, https://arxiv.org/abs/2310.05209 (below the last, perplexity stays low at any length, but
        distant tokens are still not retrieved: see long_range_sum)
    """
    return 2 * tuned_length / math.pi, tuned_length / math.pi, tuned_length / (2 * math.pi)


def long_range_sum(plan: Plan, distances: Array) -> Array:
    """How much more a token attends to a similar one than to any other, at a distance; below 0, less.

    B(m) = sum over i of cos(m inv_freq[i])

    Args:
        plan: any plan.
        distances: (n,) float64, tokens.

    Returns:
        (n,) float64.

    Source:
        Men et al. 2024, Base of RoPE bounds context length, https://arxiv.org/abs/2405.14591
    """
    return np.asarray(np.cos(np.outer(distances, np.array(plan.inv_freq))).sum(axis=1))


def first_negative(plan: Plan, limit: int) -> int | None:
    """The first distance below `limit` at which the long-range sum is negative; None where there is none.

    Source:
        Men et al. 2024, https://arxiv.org/abs/2405.14591
    """
    return _first_negative(np.array(plan.inv_freq), range(limit))


def _first_negative(inv_freq: Array, distances: range) -> int | None:
    start, block = distances.start, BLOCKS[0]
    while start < distances.stop:
        stop = min(start + block, distances.stop)
        negative = np.flatnonzero(_sums(inv_freq, range(start, stop)) < 0)
        if negative.size:
            return start + int(negative[0])
        start, block = stop, min(4 * block, BLOCKS[1])
    return None


def _sums(inv_freq: Array, distances: range) -> Array:
    """The long-range sum at every distance of a range.

    cos((a + b) f) = cos(a f) cos(b f) - sin(a f) sin(b f), so a table of rows a and columns b is two matrix products,
    and a million distances take the cosines of two thousand.
    """
    row = math.isqrt(len(distances)) + 1
    rows = np.outer(np.arange(distances.start, distances.stop, row, dtype=np.float64), inv_freq)
    columns = np.outer(np.arange(row, dtype=np.float64), inv_freq)
    table = np.cos(rows) @ np.cos(columns).T - np.sin(rows) @ np.sin(columns).T
    return np.asarray(table.ravel()[: len(distances)])


def first_base(candidates: Sequence[float] | Array, length: int, head_dim: int = 128) -> float | None:
    """The first of these bases under which the long-range sum is negative nowhere below `length`.

    A larger base may fail where a smaller one does not, so the result depends on the candidates.

    Args:
        candidates: bases above 1, in the order in which they are tried.
        length: tokens of context; at least 2.
        head_dim: rotated dimensions per head; even.

    Returns:
        A base, or None where all of them fail.

    Source:
        Men et al. 2024, https://arxiv.org/abs/2405.14591
    """
    check_integer("length", length, least=2)
    exponents = -np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    remaining, failed = np.asarray(candidates, dtype=np.float64), 0
    while remaining.size:
        # Where one base fails, the next ones mostly fail too, or close by: that is cheap to check before all distances.
        passes = np.cos(failed * remaining[:CANDIDATES, None] ** exponents).sum(axis=1) >= 0
        if not passes.any():
            remaining = remaining[CANDIDATES:]
            continue
        remaining = remaining[int(passes.argmax()) :]
        inv_freq = remaining[0] ** exponents
        reach = max(BLOCKS[0] // 2, failed // 16)
        near = range(max(0, failed - reach), min(failed + reach, length))
        negative = next(
            (m for distances in (near, range(length)) if (m := _first_negative(inv_freq, distances)) is not None), None
        )
        if negative is None:
            return float(remaining[0])
        remaining, failed = remaining[1:], negative
    return None


def smallest_base(length: int, head_dim: int = 128, refinements: int = 5) -> float:
    """The smallest base for a length, as Su searches it: ever finer grids below the last result.

    from 1000 length on, for k = 1 ... refinements: the first j / 10 ** k of the last result, ascending, that passes

    Args:
        length: tokens of context; at least 2.
        head_dim: rotated dimensions per head; even.
        refinements: grids, each ten times as fine as the one before; at least 1. Five take half a minute at 2**20.

    Returns:
        A base. Men et al. publish others for some lengths: it depends on the grid, and theirs is not published.

    Source:
        Su 2024, https://kexue.fm/archives/10122
    """
    check_integer("refinements", refinements, least=1)
    base = 1000.0 * length
    for k in range(1, refinements + 1):
        grid = np.linspace(0, 1, 10**k + 1)[1:] * base
        base = first_base(grid[grid > 1], length, head_dim) or base
    return base


def interpolation_bound(head_dim: int, base: float) -> float:
    """The most by which a score between two trained positions differs from the straight line between theirs.

    d / (32 ln base), in units of max |h|: the published d max |h| (s - s1) (s2 - s) / (8 ln base) halfway

    Source:
        Chen et al. 2023, Position Interpolation, theorem 2.1, https://arxiv.org/abs/2306.15595. Its proof uses
        base ** x <= 1 + x ln(base), which is wrong; corrected, the bound is some 15 % larger for d = 128.
    """
    return head_dim / (32 * math.log(base))


def two_digit_bases() -> Array:
    """100, 110, ... 980, 990, 1000, 1100, ... 9.9e9: every base of two significant digits, ascending."""
    return np.array([digits * 10.0**exponent for exponent in range(1, 9) for digits in range(10, 100)])


def stretches(native: Plan, plan: Plan) -> Array:
    """By what each frequency is divided.

    native inv_freq[i] / inv_freq[i]

    Returns:
        (pairs,) float64; infinite where only the new frequency is 0, 1 where both are.
    """
    before, after = np.array(native.inv_freq), np.array(plan.inv_freq)
    return np.where(after > 0, before / np.where(after > 0, after, 1.0), np.where(before > 0, np.inf, 1.0))


def out_of_distribution(native: Plan, plan: Plan, trained_length: int, length: int) -> Array:
    """Out-of-distribution angles: the share of each pair's angles within `length` tokens that training did not have.

    1 - min(1, a / b), a = min(2 pi, trained_length native inv_freq[i]), b = min(2 pi, length inv_freq[i])

    Args:
        native: the plan of training.
        plan: the plan at `length`.
        trained_length: tokens seen in training.
        length: tokens of context.

    Returns:
        (pairs,) float64 from 0 to 1. Its mean is the share over all pairs.

    Source:
        the condition of LongRoPE2, https://arxiv.org/abs/2502.20082, that no pair should have an angle it was not
        trained on, as a number
    """
    taken = np.minimum(2 * np.pi, length * np.array(plan.inv_freq))
    seen = np.minimum(2 * np.pi, trained_length * np.array(native.inv_freq))
    return 1 - np.minimum(1.0, np.where(taken > 0, seen / np.where(taken > 0, taken, 1.0), 1.0))


def equivalent_base(plan: Plan) -> float | None:
    """The base whose plain frequencies have the same last one; None where that is 0, the only one, or so small that no
    number is such a base.

    inv_freq[-1] ** (-d / (d - 2))
    """
    rotated = 2 * len(plan.inv_freq)
    if rotated == 2 or plan.inv_freq[-1] == 0:
        return None
    try:
        return float(plan.inv_freq[-1] ** (-rotated / (rotated - 2)))
    except OverflowError:
        return None


def angle_error(plan: Plan, position: int, dtype: str) -> Array:
    """The largest error of an angle that is computed in a floating-point format.

    position inv_freq[i] ((1 + u) ** n - 1), u = 2 ** -bits: one rounding of the frequency, one of the product and,
    beyond 2 ** bits, one of the position

    Args:
        plan: any plan.
        position: tokens; at least 1.
        dtype: "bfloat16", "float16" or "float32"; ours computes angles in float32.

    Returns:
        (pairs,) float64, radians. Beyond 2 pi an angle is meaningless.
    """
    check_integer("position", position, least=1)
    unit = 2.0 ** -_bits(dtype)
    roundings = 2 if position <= 2 ** _bits(dtype) else 3
    return np.asarray(position * np.array(plan.inv_freq) * math.expm1(roundings * math.log1p(unit)))


def distinct_positions(length: int, dtype: str) -> int:
    """How many of the positions 0 ... length - 1 are distinct in a floating-point format.

    Whole numbers are exact up to 2 ** bits; beyond, each doubling holds 2 ** (bits - 1) of them.
    """
    check_integer("length", length, least=1)
    exact: int = 2 ** _bits(dtype)
    if length - 1 <= exact:
        return length
    last, step, count = length - 1, 2, exact + 1
    start = exact
    while 2 * start < last:
        count, start, step = count + start // step, 2 * start, 2 * step
    # to the nearest of two neighbours; in the middle, to the one whose last bit is 0
    steps, over = divmod(last - start, step)
    up = 2 * over > step or (2 * over == step and (start // step + steps) % 2 == 1)
    return count + steps + int(up)


def _bits(dtype: str) -> int:
    if dtype not in SIGNIFICANT_BITS:
        raise ValueError(f"dtype={dtype!r}: give one of {', '.join(SIGNIFICANT_BITS)}")
    return SIGNIFICANT_BITS[dtype]
