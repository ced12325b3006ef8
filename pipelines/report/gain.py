"""Context gain: what a strategy is worth over throwing the far text away, over the same tokens, document by document.

The baseline is `crop`: the plain model on the last tokens of the trained length. Up to the trained length that is the
plain model itself, so that a loss there is what the strategy costs at short lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.records.cells import Cell, Result
from pipelines.report import statistics
from pipelines.report.curves import Point, Results
from pipelines.report.statistics import Difference, PairedComparison
from pipelines.tasks import distance
from pipelines.tasks.documents import ratio, stderr
from pipelines.tasks.kinds import Measure

CROP = "crop"
"""The strategy that is the baseline, whatever its options."""

MARGIN = 0.05
"""A loss to cropping that counts as none: of perplexity, or points of a score."""

Verdict = Literal["useful", "intact", "broken", "undecided", "too few"]
"""useful: gains over cropping: the interval excludes 0, and p is adjusted for all of the table. intact: no more than
MARGIN worse than cropping, that is than the model at its trained length, by all of the interval. broken: worse, and by
more than that. undecided: the interval is too wide to say. too few: documents for an interval."""


@dataclass(frozen=True)
class Gain:
    """A cell and the cropped one. gain, low, high: shares of perplexity, or units of the score; above 0 is better.

    low, high: 95 % interval; None with too few documents. refusal: why the two do not compare, or "".
    """

    cell: Cell
    crop: Cell
    measure: Measure | None = None
    gain: float = math.nan
    low: float | None = None
    high: float | None = None
    p: float | None = None
    adjusted: float | None = None
    count: int = 0
    refusal: str = ""

    @property
    def verdict(self) -> Verdict:
        if self.low is None or self.high is None:
            return "too few"
        if self.low > 0 and self.significant:
            return "useful"
        if self.low >= -MARGIN:
            return "intact"
        return "broken" if self.high < 0 else "undecided"

    @property
    def significant(self) -> bool:
        return self.adjusted is not None and self.adjusted < statistics.ALPHA

    @property
    def unit(self) -> str:
        return f"% of {self.measure.exp}" if self.measure and self.measure.exp else "points"


def gains(rows: Results, metric: str | None) -> list[Gain]:
    """Every result of one model and task against the cropped one of its length; [] where no cell crops.

    metric: the table's, for tasks that are not ours.
    """
    crop = next((cell for cell, _ in rows if cell.strategy == CROP), None)
    if crop is None:
        return []
    others = [row for row in rows if row[0].strategy != CROP or row[0].options == crop.options]
    return over(others, metric, crop.strategy_label)


def over(rows: Results, metric: str | None, baseline: str) -> list[Gain]:
    """Every result of one model and task against that of another strategy at its length, such as `none` up to the
    trained length, where cropping does nothing."""
    return [gain_of(one) for one in statistics.against_baseline(rows, metric, baseline)]


def gain_of(compared: PairedComparison) -> Gain:
    """A comparison with any cell, in % of perplexity or in points, above 0 where the first is better."""
    difference = compared.difference
    if difference is None:
        return Gain(compared.cell, compared.baseline, refusal=compared.refusal)
    ends = _ends(difference)
    low, high = (None, None) if ends is None else sorted(worth(difference.measure, end) for end in ends)
    return Gain(
        compared.cell,
        compared.baseline,
        difference.measure,
        worth(difference.measure, difference.mean),
        low,
        high,
        difference.p,
        difference.adjusted,
        difference.count,
    )


def _ends(difference: Difference) -> tuple[float, float] | None:
    """The interval; of documents that all differ alike their difference; None where there are too few."""
    if difference.p is None:
        return None
    if difference.low is None or difference.high is None:
        return difference.mean, difference.mean
    return difference.low, difference.high


def worth(measure: Measure, difference: float) -> float:
    """What a difference to cropping comes to, above 0 where it is better: of a logarithm 1 - exp(difference), the share
    of its exponential that is saved; else the difference itself.

    >>> worth(Measure("nll", lower=True, exp="perplexity"), math.log(0.98))
    0.020000000000000018
    >>> worth(Measure("acc", lower=False), -0.25)
    -0.25
    """
    if measure.exp:
        return 1 - math.exp(min(difference, 700.0)) if measure.lower else math.exp(min(difference, 700.0)) - 1
    return -difference if measure.lower else difference


def by_length(rows: Results, metric: str | None) -> dict[str, list[Point]]:
    """Of every strategy the mean gain over cropping by length, in the measure's unit (nats a token, points), with its
    standard error over documents; only lengths at which a strategy's result and the cropped one compare."""
    found = gains(rows, metric)
    results = {cell.id: result for cell, result in rows}
    curves: dict[str, list[Point]] = {}
    for one in sorted(found, key=lambda one: one.cell.length):
        if one.measure is not None:
            ours, crop = ((cell, results[cell.id]) for cell in (one.cell, one.crop))
            saved = statistics.paired(ours, crop, metric) * (-1 if one.measure.lower else 1)
            point = (one.cell.length, float(saved.mean()), stderr(saved.tolist()))
            curves.setdefault(one.cell.strategy_label, []).append(point)
    return curves


def by_position(ours: tuple[Cell, Result], crop: tuple[Cell, Result]) -> list[Point]:
    """NLL of the cropped text minus ours in nats a token, by position: (tokens up to the bucket's end, mean, its
    standard error over documents). [] where either keeps none, or the two do not compare.
    """
    try:
        statistics.check(ours, crop)
    except ValueError:
        return []
    name = "nll_by_position"
    if not all(name in document for result in (ours[1], crop[1]) for document in result.documents):
        return []
    mine, theirs = (np.array([document[name] for document in result.documents]) for result in (ours[1], crop[1]))
    ends = [x for x, _ in ours[1].series[name]]
    return [
        (end, float(column.mean()), stderr(column.tolist()))
        for end, column in zip(ends, (theirs - mine).T, strict=True)
    ]


def by_distance(ours: tuple[Cell, Result], crop: tuple[Cell, Result]) -> list[Point]:
    """NLL of the cropped text minus ours in nats a token, by how far back a token's pair last stood: (tokens up to the
    bucket's end, mean, its standard error over documents). The last bucket, of tokens whose pair never stood before,
    ends at infinity; a bucket without tokens is absent. [] where either keeps none, or the two do not compare.

    What cropping takes away lies further back than its window: a gain there is one that the far text gave.
    """
    try:
        statistics.check(ours, crop)
    except ValueError:
        return []
    kept = ("nll_by_distance", "tokens_by_distance")
    if not all(name in document for result in (ours[1], crop[1]) for document in result.documents for name in kept):
        return []
    mine, theirs = (np.array([document[kept[0]] for document in result.documents]) for result in (ours[1], crop[1]))
    counts = np.array([document[kept[1]] for document in ours[1].documents])
    points = []
    for end, saved, count in zip(distance.edges(ours[0].length), (theirs - mine).T, counts.T, strict=True):
        if count.sum():
            mean, spread = ratio(saved, count)
            points.append((end, mean, spread))
    return points
