"""What a plan promises before anything is measured: pure functions of inverse frequencies and lengths.

They hold for any plan, scaled or not, so they compare strategies; what a model makes of it, only a measurement says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rope.geometry import Array, Plan, check_integer

SIGNIFICANT_BITS = {"bfloat16": 8, "float16": 11, "float32": 24}
"""Bits of a floating-point format's significand, the hidden one included."""

BLOCKS = (4096, 2**20)
"""Distances that are summed at a time, at first and at most."""

CANDIDATES = 64
"""Bases that are asked at a time whether they fail where the last one did."""


def wavelengths(plan: Plan) -> Array:
    """Tokens after which each pair has come round.

    2 pi / inv_freq[i]

    Returns:
        (pairs,) float64, tokens; infinite where a pair stands still.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(2 * np.pi / np.array(plan.inv_freq))


def rotations(plan: Plan, length: int) -> Array:
    """How often each pair comes round within `length` tokens.

    length * inv_freq[i] / (2 pi)

    Returns:
        (pairs,) float64, turns.
    """
    return np.asarray(length * np.array(plan.inv_freq) / (2 * np.pi))


def critical_pair(plan: Plan, trained_length: int) -> int:
    """Pairs that come round at least once within the trained length: all before this one have seen every angle.

    count of i with wavelength[i] <= trained_length

    Source:
        Liu et al. 2023, https://arxiv.org/abs/2310.05209, whose critical dimension, on plain frequencies, is twice this
    """
    return int((wavelengths(plan) <= trained_length).sum())


def critical_dimension(head_dim: int, base: float, trained_length: int) -> int:
    """Dimensions of plain frequencies that come round within the trained length.

    2 ceil((d / 2) log_base(trained_length / (2 pi))), at least 0 and at most d

    Source:
        Liu et al. 2023, Scaling laws of RoPE-based extrapolation, https://arxiv.org/abs/2310.05209

    >>> critical_dimension(head_dim=128, base=10_000.0, trained_length=4096)
    92
    """
    turning = 2 * math.ceil(head_dim / 2 * math.log(trained_length / (2 * math.pi), base))
    return min(max(turning, 0), head_dim)


def critical_base(base: float, trained_length: int, tuned_length: int) -> float:
    """The base above which fine-tuning at another length extends a model beyond that length.

    base ** log_{trained_length / (2 pi)}(tuned_length / (2 pi))

    Source:
        Liu et al. 2023, https://arxiv.org/abs/2310.05209
    """
    return float(base ** math.log(tuned_length / (2 * math.pi), trained_length / (2 * math.pi)))


def extrapolation_bound(head_dim: int, base: float, trained_length: int, tuned_base: float, tuned_length: int) -> float:
    """Tokens up to which a model holds that was fine-tuned under another base.

    2 pi tuned_base ** (critical_dimension / d) where tuned_base is above critical_base, else tuned_length

    Source:
        Liu et al. 2023, https://arxiv.org/abs/2310.05209
    """
    if tuned_base <= critical_base(base, trained_length, tuned_length):
        return float(tuned_length)
    return float(2 * math.pi * tuned_base ** (critical_dimension(head_dim, base, trained_length) / head_dim))


def small_bases(tuned_length: int) -> tuple[float, float, float]:
    """Bases below which every dimension sees a quarter turn, half a turn and a whole one in fine-tuning.

    2 tuned_length / pi, tuned_length / pi, tuned_length / (2 pi)

    Source:
        Liu et al. 2023, https://arxiv.org/abs/2310.05209 (below the last, perplexity stays low at any length; what
        lies far away is not found all the same: see long_range_sum)
    """
    return 2 * tuned_length / math.pi, tuned_length / math.pi, tuned_length / (2 * math.pi)


def long_range_sum(plan: Plan, distances: Array) -> Array:
    """How much more a token attends to its like than to any other, at a distance; below 0 it attends less.

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


def _first_negative(speeds: Array, among: range) -> int | None:
    start, block = among.start, BLOCKS[0]
    while start < among.stop:
        stop = min(start + block, among.stop)
        negative = np.flatnonzero(_sums(speeds, range(start, stop)) < 0)
        if negative.size:
            return start + int(negative[0])
        start, block = stop, min(4 * block, BLOCKS[1])
    return None


def _sums(speeds: Array, among: range) -> Array:
    """The long-range sum at every distance of a range.

    cos((a + b) f) = cos(a f) cos(b f) - sin(a f) sin(b f), so a table of rows a and columns b is two matrix products,
    and a million distances take the cosines of two thousand.
    """
    row = math.isqrt(len(among)) + 1
    rows = np.outer(np.arange(among.start, among.stop, row, dtype=np.float64), speeds)
    columns = np.outer(np.arange(row, dtype=np.float64), speeds)
    table = np.cos(rows) @ np.cos(columns).T - np.sin(rows) @ np.sin(columns).T
    return np.asarray(table.ravel()[: len(among)])


def first_base(candidates: Sequence[float] | Array, length: int, head_dim: int = 128) -> float | None:
    """The first of these bases under which the long-range sum is negative nowhere below `length`.

    A larger base need not do where a smaller one does, so what is found depends on the candidates.

    Args:
        candidates: bases above 1, in the order in which they are tried.
        length: tokens of context; at least 2.
        head_dim: rotated dimensions per head; even.

    Returns:
        A base, or None where none of them does.

    Source:
        Men et al. 2024, https://arxiv.org/abs/2405.14591
    """
    check_integer("length", length, least=2)
    exponents = -np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    tried, failed = np.asarray(candidates, dtype=np.float64), 0
    while tried.size:
        # Where one base fails, the next ones mostly fail too, or close by: that is cheap to ask before all distances.
        able = np.cos(failed * tried[:CANDIDATES, None] ** exponents).sum(axis=1) >= 0
        if not able.any():
            tried = tried[CANDIDATES:]
            continue
        tried = tried[int(able.argmax()) :]
        speeds = tried[0] ** exponents
        near = range(max(0, failed - BLOCKS[0] // 2), min(failed + BLOCKS[0] // 2, length))
        found = next((m for among in (near, range(length)) if (m := _first_negative(speeds, among)) is not None), None)
        if found is None:
            return float(tried[0])
        tried, failed = tried[1:], found
    return None


def smallest_base(length: int, head_dim: int = 128, refinements: int = 5) -> float:
    """The smallest base for a length, as Su searches it: ever finer grids below the last find.

    from 1000 length on, for k = 1 ... refinements: the first that does of j / 10 ** k of the last find, ascending in j

    Args:
        length: tokens of context; at least 2.
        head_dim: rotated dimensions per head; even.
        refinements: grids, each ten times as fine as the one before; at least 1. Five take half a minute at 2**20.

    Returns:
        A base. Men et al. publish others for some lengths: the answer depends on the grid, and theirs is not said.

    Source:
        Su 2024, https://kexue.fm/archives/10122
    """
    check_integer("refinements", refinements, least=1)
    found = 1000.0 * length
    for k in range(1, refinements + 1):
        grid = np.linspace(0, 1, 10**k + 1)[1:] * found
        found = first_base(grid[grid > 1], length, head_dim) or found
    return found


def interpolation_bound(head_dim: int, base: float) -> float:
    """By how much a score between two trained positions may at most be off from the straight line between theirs.

    d / (32 ln base), in units of max |h|: the published d max |h| (s - s1) (s2 - s) / (8 ln base) halfway

    Source:
        Chen et al. 2023, Position Interpolation, theorem 2.1, https://arxiv.org/abs/2306.15595. Its proof takes
        base ** x <= 1 + x ln(base), which does not hold; with what does, the bound is some 15 % larger for d = 128.
    """
    return head_dim / (32 * math.log(base))


def two_digit_bases() -> Array:
    """100, 110, ... 980, 990, 1000, 1100, ... 9.9e9: every base of two significant digits, ascending."""
    return np.array([digits * 10.0**exponent for exponent in range(1, 9) for digits in range(10, 100)])


def stretches(native: Plan, plan: Plan) -> Array:
    """By how much each pair is slowed.

    native inv_freq[i] / inv_freq[i]

    Returns:
        (pairs,) float64; infinite where a pair was stopped, 1 where it stood still all along.
    """
    before, after = np.array(native.inv_freq), np.array(plan.inv_freq)
    return np.where(after > 0, before / np.where(after > 0, after, 1.0), np.where(before > 0, np.inf, 1.0))


def unseen(native: Plan, plan: Plan, trained_length: int, length: int) -> Array:
    """The share of the angles that each pair takes within `length` tokens that it never took in training.

    1 - min(1, a / b), a = min(2 pi, trained_length native inv_freq[i]), b = min(2 pi, length inv_freq[i])

    Args:
        native: the plan of training.
        plan: the plan at `length`.
        trained_length: tokens seen in training.
        length: tokens of context.

    Returns:
        (pairs,) float64 from 0 to 1. Its mean is the share over all pairs.

    Source:
        as a number, the condition of LongRoPE2, https://arxiv.org/abs/2502.20082, that no pair should meet an angle it
        was not trained on
    """
    taken = np.minimum(2 * np.pi, length * np.array(plan.inv_freq))
    seen = np.minimum(2 * np.pi, trained_length * np.array(native.inv_freq))
    return 1 - np.minimum(1.0, np.where(taken > 0, seen / np.where(taken > 0, taken, 1.0), 1.0))


def equivalent_base(plan: Plan) -> float | None:
    """The base whose plain frequencies end at the same last pair; None where that pair stands still, or is alone.

    inv_freq[-1] ** (-d / (d - 2))
    """
    rotated = 2 * len(plan.inv_freq)
    if rotated == 2 or plan.inv_freq[-1] == 0:
        return None
    return float(plan.inv_freq[-1] ** (-rotated / (rotated - 2)))


def angle_error(plan: Plan, position: int, dtype: str) -> Array:
    """The most by which an angle may be off that is computed in a floating-point format.

    position inv_freq[i] ((1 + u) ** n - 1), u = 2 ** -bits: one rounding of the frequency, one of the product and,
    beyond 2 ** bits, one of the position

    Args:
        plan: any plan.
        position: tokens; at least 1.
        dtype: "bfloat16", "float16" or "float32"; ours computes angles in float32.

    Returns:
        (pairs,) float64, radians. Beyond 2 pi an angle says nothing any more.
    """
    check_integer("position", position, least=1)
    unit = 2.0 ** -_bits(dtype)
    roundings = 2 if position <= 2 ** _bits(dtype) else 3
    return np.asarray(position * np.array(plan.inv_freq) * math.expm1(roundings * math.log1p(unit)))


def distinct_positions(length: int, dtype: str) -> int:
    """How many of the positions 0 ... length - 1 a floating-point format tells apart.

    Whole numbers are exact up to 2 ** bits; beyond, each doubling holds 2 ** (bits - 1) of them.
    """
    check_integer("length", length, least=1)
    exact: int = 2 ** _bits(dtype)
    if length - 1 <= exact:
        return length
    last, step, told = length - 1, 2, exact + 1
    start = exact
    while 2 * start < last:
        told, start, step = told + start // step, 2 * start, 2 * step
    # to the nearest of two neighbours; in the middle, to the one whose last bit is 0
    steps, over = divmod(last - start, step)
    up = 2 * over > step or (2 * over == step and (start // step + steps) % 2 == 1)
    return told + steps + int(up)


def _bits(dtype: str) -> int:
    if dtype not in SIGNIFICANT_BITS:
        raise ValueError(f"dtype={dtype!r}: give one of {', '.join(SIGNIFICANT_BITS)}")
    return SIGNIFICANT_BITS[dtype]
