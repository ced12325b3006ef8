"""Effective length: how far a model keeps what it can do, as one number, by published rules and by context gain.

    gain       mean gain over cropping above 0 at the length and at every measured one between it and the trained length
    ruler      at least 85.6 of 100 (Hsieh et al. 2024, RULER, https://arxiv.org/abs/2404.06654: Llama-2-7B at 4,096)
    nolima     at least 85 % of the best score up to the trained length (Modarressi et al. 2025, NoLiMa,
               https://arxiv.org/abs/2502.05167)
    longscore  no length: the mean over longer lengths of (score - base) / base, base the mean score up to the trained
               length (100-LongBench, https://arxiv.org/abs/2505.19293)

Lengths count up to the first that fails. The 95 % interval is of the number itself, over resampled documents of every
length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.report.statistics import SEED, needed

RULER, NOLIMA = 0.856, 0.85

RESAMPLES = 2**12

Scores = Mapping[int, NDArray[np.float64]]
"""Length in tokens -> (units,) one number a document, or a key."""


@dataclass(frozen=True)
class Effective:
    """One number of one rule. low, high: 95 % interval; None with fewer units than any interval takes."""

    rule: str
    value: float
    low: float | None
    high: float | None


def by_gain(gains: Scores, trained: int) -> Effective | None:
    """Of gains over cropping, beyond the trained length, where cropping is all there is to gain; None without any."""
    longer = {length: values for length, values in gains.items() if length > trained}
    return _number("gain", longer, lambda means: _reached(means > 0, sorted(longer), trained)) if longer else None


def by_score(scores: Scores, trained: int) -> list[Effective]:
    """Of scores from 0 to 1 by the published rules; [] where there are others."""
    if not scores or not all(((values >= 0) & (values <= 1)).all() for values in scores.values()):
        return []
    lengths = sorted(scores)
    short, long = (np.array([(n <= trained) is inside for n in lengths]) for inside in (True, False))
    rules = [_number("ruler", scores, lambda means: _reached(means >= RULER, lengths, 0))]
    if short.any():
        rules.append(_number("nolima", scores, lambda means: _reached(_kept(means, means[..., short]), lengths, 0)))
    if short.any() and long.any():
        rules.append(_number("longscore", scores, lambda means: _longscore(means[..., short], means[..., long])))
    return [each for each in rules if not math.isnan(each.value)]


def _kept(means: NDArray[np.float64], short: NDArray[np.float64]) -> NDArray[np.bool_]:
    base = short.max(-1, keepdims=True)
    kept: NDArray[np.bool_] = (means >= NOLIMA * base) & (base > 0)
    return kept


def _longscore(short: NDArray[np.float64], long: NDArray[np.float64]) -> NDArray[np.float64]:
    base = short.mean(-1)
    return np.asarray(long.mean(-1) / np.where(base > 0, base, np.nan) - 1)


def _reached(passed: NDArray[np.bool_], lengths: Sequence[int], nothing: int) -> NDArray[np.float64]:
    """(..., lengths) whether a rule holds -> (...,) the last length before it first fails; `nothing` where at once."""
    reached: NDArray[np.float64] = np.array([nothing, *lengths], np.float64)[np.cumprod(passed, -1).sum(-1)]
    return reached


def _number(rule: str, scores: Scores, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Effective:
    """function: (..., lengths) means, the shortest first -> (...,)."""
    rows = [scores[length] for length in sorted(scores)]
    value = float(function(np.array([row.mean() for row in rows])))
    if math.isnan(value) or min(map(len, rows)) < needed(1):
        return Effective(rule, value, None, None)
    random = np.random.default_rng(SEED)
    drawn = [row[random.integers(0, len(row), (RESAMPLES, len(row)))].mean(-1) for row in rows]
    numbers = function(np.stack(drawn, -1))
    low, high = np.nanquantile(numbers, (0.025, 0.975), method="inverted_cdf")
    return Effective(rule, value, float(low), float(high))
