"""Paired comparisons over the same documents: by how much two results differ, and whether it can be chance. Owns scipy.

A difference comes with a bootstrap interval and a test that assumes no distribution: the sign-flip test, which for
0/1 scores is McNemar's exact test. p values of one table are adjusted by Holm's method. Documents are taken for
independent, which consecutive windows of one text are only roughly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.records.cells import PLACES, Cell, Refusal, Result, digest_of
from pipelines.records.provenance import DECIDING as DECIDING
from pipelines.tasks import registry
from pipelines.tasks.kinds import Measure

ALPHA = 0.05
"""Significant is an adjusted p below this."""

POWER = 0.8
"""Share of the cases in which a difference that is looked for is to be found."""

RESAMPLES = 2**14
"""Of the bootstrap and of the sign-flip test, which is exact where there are no more flips: up to 14 documents."""

OF_PLANS = ("regions", "crop")
"""Versions that only cells of some plans have."""

SEED = 0
"""Of the resampling, so that the same results give the same p every time."""


Row = TypeVar("Row", bound=tuple[Cell, Any])
"""A cell and its result, or what stands for it before there is one."""


@dataclass(frozen=True)
class Difference:
    """A result's measure minus another's, over the units that both have.

    mean: in the measure's unit (nll: nats a token; acc: share). low, high: 95 % bootstrap interval of it; None where
    every unit differs alike, which leaves nothing to resample. p: two-sided. adjusted: p among its family.
    Where there are too few units for any p below ALPHA, interval and p are None.
    """

    measure: Measure
    count: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    adjusted: float | None = None

    @property
    def significant(self) -> bool:
        return self.adjusted is not None and self.adjusted < ALPHA

    @property
    def better(self) -> bool:
        return (self.mean < 0) == self.measure.lower


@dataclass(frozen=True)
class PairedComparison:
    """A cell and its baseline: the difference, or a sentence why they do not compare."""

    cell: Cell
    baseline: Cell
    difference: Difference | None = None
    refusal: str = ""


@dataclass(frozen=True)
class Equivalence:
    """Whether a difference was shown to be smaller than a margin, by two one-sided tests.

    margin: in the measure's unit. p: of the weaker of the two tests. low, high: the 90 % interval of the difference,
    which lies within the margin exactly where p is below ALPHA; None where the tests have no interval.
    """

    margin: float
    p: float
    low: float | None = None
    high: float | None = None

    @property
    def shown(self) -> bool:
        return self.p < ALPHA


def against_baseline(
    rows: Sequence[tuple[Cell, Result]], metric: str | None, baseline: str = "none"
) -> list[PairedComparison]:
    """Every result of one model and task against the baseline's at its length, p adjusted over them all.

    Cells with the plan of their baseline are left out, and strategies that come to one plan are one comparison.

    Args:
        rows: the results.
        metric: the table's, for tasks that are not ours.
        baseline: a strategy with its options, as Cell.strategy_label has it; where there is none, the first one is.
    """
    return compare_pairs(baseline_pairs(rows, baseline), metric)


def baseline_pairs(rows: Sequence[Row], baseline: str = "none") -> list[tuple[Row, Row]]:
    """Every row with the baseline's at its length, as `against_baseline`; of rows that need not have results yet."""
    if not rows:
        return []
    first = next((row[0] for row in rows if row[0].strategy_label == baseline), rows[0][0])
    baselines = {_place(row[0]): row for row in reversed(rows) if _label(row[0]) == _label(first)}
    others = {(_label(row[0]), row[0].id): row for row in rows if _label(row[0]) != _label(first)}
    return [
        (row, baselines[_place(row[0])])
        for row in others.values()
        if _place(row[0]) in baselines and baselines[_place(row[0])][0].id != row[0].id
    ]


def compare_pairs(
    pairs: Iterable[tuple[tuple[Cell, Result], tuple[Cell, Result]]], metric: str | None = None
) -> list[PairedComparison]:
    """Each first result against the second, p adjusted over all of them; a pair that occurs twice is one comparison."""
    comparisons = []
    for ours, theirs in pairs:
        try:
            comparisons.append(PairedComparison(ours[0], theirs[0], compare(ours, theirs, metric)))
        except Refusal as reason:
            comparisons.append(PairedComparison(ours[0], theirs[0], refusal=str(reason)))
    p = {(c.cell.id, c.baseline.id): c.difference.p for c in comparisons if c.difference is not None}
    tested = {pair: value for pair, value in p.items() if value is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [
        replace(c, difference=replace(c.difference, adjusted=adjusted.get((c.cell.id, c.baseline.id))))
        if c.difference is not None
        else c
        for c in comparisons
    ]


def compare(ours: tuple[Cell, Result], theirs: tuple[Cell, Result], metric: str | None = None) -> Difference:
    """The first result minus the second, unit by unit.

    Raises:
        Refusal: the two do not compare; why, and what would make them.
    """
    return difference(measure_of(ours[0].task.name, metric), paired(ours, theirs, metric))


def paired(ours: tuple[Cell, Result], theirs: tuple[Cell, Result], metric: str | None = None) -> NDArray[np.float64]:
    """(units,) the first result's measure minus the second's, of each unit.

    Raises:
        Refusal: as `compare`.
    """
    measure = measure_of(ours[0].task.name, metric)
    check(ours, theirs)
    first, second = (by_unit(measure, *row) for row in (ours, theirs))
    return np.array([first[unit] - second[unit] for unit in first])


def check(ours: tuple[Cell, Result], theirs: tuple[Cell, Result]) -> None:
    """Refuse two results that do not compare.

    Raises:
        Refusal: they differ in what is no part of the comparison; in what, and what would make them compare.
    """
    if reasons := [*_reasons(ours, theirs)]:
        raise Refusal(f"{ours[0].label} does not compare with {theirs[0].label}: {'; '.join(reasons)}")


def measure_of(task: str, metric: str | None) -> Measure:
    """What is compared of a task. metric: the table's, for tasks that are not ours.

    Raises:
        Refusal: it is not known whether more of the metric is better.
    """
    return registry.kind(task).measure_of(task, metric)


def difference(measure: Measure, differences: NDArray[np.float64]) -> Difference:
    """Mean, interval and p of paired differences, one a unit: shape (units,), at least one."""
    mean, count = float(differences.mean()), len(differences)
    if count < needed(1):
        return Difference(measure, count, mean, None, None, None)
    low, high, p = _tested(differences.tobytes())
    return Difference(measure, count, mean, low, high, p)


@lru_cache(maxsize=4096)
def _tested(differences: bytes) -> tuple[float | None, float | None, float]:
    """Interval and p, remembered: a pair may be of several families, and shown in several places."""
    values = np.frombuffer(differences, np.float64)
    return *interval(values), chance(values)


def interval(differences: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the mean by the bias-corrected and accelerated bootstrap (Efron 1987, doi 10.2307/2289144).

    With few units it is too narrow, as every bootstrap of a mean: near 90 % at twelve.
    """
    from scipy import stats

    # Equal differences may differ in their last bits.
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return None, None
    limits = stats.bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, batch=_batch(differences), vectorized=True, rng=SEED
    ).confidence_interval
    return (float(limits.low), float(limits.high)) if math.isfinite(limits.low) else (None, None)


def equivalence(differences: NDArray[np.float64], margin: float, *, bounded: bool = False) -> Equivalence:
    """Two one-sided tests that the mean of paired differences lies within (-margin, margin) (Schuirmann 1987, doi
    10.1007/BF01068419): of t. That no difference was found is no proof that two are alike; this is one.

    Where most units of a score from 0 to 1 agree, the units that a t test has not seen decide: then the exact binomial
    tests that fewer than `margin` of them are lost, and gained. 12 units that all agree show nothing of 1 %.

    Args:
        differences: (units,) at least 2.
        margin: above 0, in the unit of the differences.
        bounded: whether they are of scores from 0 to 1.
    """
    from scipy import stats

    count = len(differences)
    if bounded and 2 * np.count_nonzero(differences) < count:
        ends = [stats.binom.cdf((differences * sign > 0).sum(), count, min(1.0, margin)) for sign in (1, -1)]
        return Equivalence(margin, float(max(ends)))
    return _two_one_sided(
        float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(count), count - 1, margin
    )


def unpaired(
    measure: Measure, ours: NDArray[np.float64], theirs: NDArray[np.float64], margin: float | None = None
) -> tuple[Difference, Equivalence | None]:
    """The first mean minus the second over units that have nothing to do with each other, by Welch's test (doi
    10.1093/biomet/34.1-2.28): of far less power than pairs. Difference.count is of the fewer ones.

    Args:
        ours, theirs: (units,) each.
    """
    from scipy import stats

    mean, count = float(ours.mean() - theirs.mean()), min(len(ours), len(theirs))
    if count < needed(1):
        return Difference(measure, count, mean, None, None, None), None
    parts = [values.var(ddof=1) / len(values) for values in (ours, theirs)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return Difference(measure, count, mean, None, None, float(mean == 0)), None
    freedom = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (ours, theirs), strict=True))
    reach, p = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error, 2 * float(stats.t.sf(abs(mean) / error, freedom))
    found = Difference(measure, count, mean, mean - reach, mean + reach, p)
    return found, None if margin is None else _two_one_sided(mean, error, freedom, margin)


def _two_one_sided(mean: float, error: float, freedom: float, margin: float) -> Equivalence:
    from scipy import stats

    if error <= 1e-12 * abs(mean):  # all alike
        return Equivalence(margin, float(abs(mean) >= margin), mean, mean)
    reach = float(stats.t.ppf(1 - ALPHA, freedom)) * error
    return Equivalence(margin, float(stats.t.sf((margin - abs(mean)) / error, freedom)), mean - reach, mean + reach)


def of_mean(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % interval of a mean over units: of a share of 0s and 1s the exact one (Clopper and Pearson 1934, doi
    10.1093/biomet/26.4.404), which knows that 12 of 12 may be chance; else the bootstrap's. None with too few units.

    Args:
        values: (units,) of a task's measure.
    """
    from scipy import stats

    if len(values) < needed(1):
        return None
    if set(np.unique(values)) <= {0.0, 1.0}:
        limits = stats.binomtest(int(values.sum()), len(values)).proportion_ci(1 - ALPHA)
        return float(limits.low), float(limits.high)
    low, high = interval(values)
    return None if low is None or high is None else (low, high)


def trimmed(differences: NDArray[np.float64], share: float = 0.1) -> tuple[float, float, float]:
    """Mean of paired differences without their largest and smallest, and its 95 % interval (Yuen 1974, doi
    10.1093/biomet/61.1.165): for differences with long tails, as of text that now and then repeats itself.

    Args:
        differences: (units,) at least 3.
        share: left out at either end.

    Returns:
        mean, low, high.
    """
    from scipy import stats

    count, cut = len(differences), int(share * len(differences))
    values = np.sort(differences)
    mean = float(values[cut : count - cut].mean())
    spread = np.clip(values, values[cut], values[count - cut - 1]).std(ddof=1) / (1 - 2 * cut / count)
    margin = float(stats.t.ppf(0.975, count - 2 * cut - 1) * spread / math.sqrt(count))
    return mean, mean - margin, mean + margin


def chance(differences: NDArray[np.float64]) -> float:
    """Two-sided p that paired differences are symmetric about 0.

    Differences of -1, 0 and 1 alone: McNemar's exact test, a binomial test of the units that differ (McNemar 1947,
    doi 10.1007/BF02295996). Others: the share of sign flips whose mean lies as far from 0 (Fisher 1935, section 21), of
    all of them up to 14 units, of RESAMPLES random ones beyond.
    """
    from scipy import stats

    if set(np.unique(differences)) <= {-1.0, 0.0, 1.0}:
        more, fewer = int((differences > 0).sum()), int((differences < 0).sum())
        return float(stats.binomtest(more, more + fewer).pvalue) if more + fewer else 1.0
    # Two flips with one and the same mean differ in their last bits: scaled and rounded, they are as far from 0.
    p = stats.permutation_test(
        (differences / np.abs(differences).mean(),),
        lambda values, axis: np.round(np.mean(values, axis=axis), 12),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=_batch(differences),
        vectorized=True,
        rng=SEED,
    ).pvalue
    return float(min(1.0, p))


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted so that one wrong finding among them all is as rare as ALPHA (Holm 1979, jstor 4615733).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = (len(p) - np.arange(len(p))) * p[order]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


def needed(comparisons: int) -> int:
    """The fewest units with which the sign-flip test can be significant among so many comparisons:
    comparisons 2^(1-n) < ALPHA.

    >>> needed(1), needed(8)
    (6, 9)
    """
    return math.floor(1 + math.log2(comparisons / ALPHA)) + 1


def detectable(units: int, spread: float, comparisons: int) -> float:
    """The smallest mean of paired differences that a two-sided test at ALPHA / comparisons finds in POWER of cases.

    (z + z(POWER)) spread / sqrt(units - z^2 / 2), z the normal quantile of 1 - ALPHA / (2 comparisons): a t-test's, for
    what of it the normal approximation lacks is close to z^2 / 2 units.

    units: documents. spread: standard deviation of the differences; the answer has its unit, and is inf of too few.
    """
    normal = NormalDist()
    z = normal.inv_cdf(1 - ALPHA / (2 * comparisons))
    left = units - z * z / 2
    return (z + normal.inv_cdf(POWER)) * spread / math.sqrt(left) if left > 0 else math.inf


def _label(cell: Cell) -> tuple[str, Any]:
    return cell.strategy, cell.options


def _place(cell: Cell) -> str:
    """What a cell and its baseline have in common: all that the command line says but the strategy."""
    task = [option for option in cell.task.options if option[0] not in PLACES]
    return digest_of([cell.length, task, cell.data, cell.limit, cell.seed, cell.dtype, cell.device])


def _reasons(ours: tuple[Cell, Result], theirs: tuple[Cell, Result]) -> Iterable[str]:
    """Why two results do not compare, and what to do."""
    for cell, result in (ours, theirs):
        if not result.documents:
            yield f"{cell.strategy} has no documents, its status is {result.status}"
    if not ours[1].documents or not theirs[1].documents:
        return
    if not ours[1].digest or ours[1].digest != theirs[1].digest:
        digests = " and ".join(result.digest or "none" for _, result in (ours, theirs))
        yield f"their documents differ (digests {digests}); give both the same text, limit, seed and length"
    if len(ours[1].documents) != len(theirs[1].documents):
        counts = " and ".join(str(len(result.documents)) for _, result in (ours, theirs))
        yield f"they have {counts} documents; give both the same limit"
    elif _tokens(ours[1]) != _tokens(theirs[1]):
        yield "the tokens of their documents differ; compute both anew with force=true"
    first, second = (_conditions(*row) for row in (ours, theirs))
    # Some plans bring a version of their own, which says nothing of how another plan's result was computed.
    apart = {name for name in OF_PLANS if name not in first or name not in second}
    for name in sorted({*first, *second} - apart):
        if first.get(name) != second.get(name):
            values = " and ".join(str(conditions.get(name, "unknown")) for conditions in (first, second))
            yield f"{name} differs ({values}); compute both in one place with force=true"


def _conditions(cell: Cell, result: Result) -> dict[str, Any]:
    """How a result was computed: what must be equal for two to compare."""
    provenance = {name: result.provenance[name] for name in DECIDING if name in result.provenance}
    return {**dict(cell.versions), "dtype": cell.dtype, "device class": cell.device, **provenance}


def _tokens(result: Result) -> list[tuple[Any, Any]]:
    return [(document.get("index"), document.get("tokens")) for document in result.documents]


def by_unit(measure: Measure, cell: Cell, result: Result) -> dict[Any, float]:
    """The measure of each unit, in the documents' order.

    Raises:
        Refusal: a document has none, as where it was not finite.
    """
    units: dict[Any, list[float]] = {}
    for number, document in enumerate(result.documents):
        if measure.name not in document:
            raise Refusal(f"{cell.label} has no {measure.name} of document {number}: nothing to compare there")
        units.setdefault(document.get(measure.unit, number) if measure.unit else number, []).append(
            float(document[measure.name])
        )
    return {unit: float(np.mean(values)) for unit, values in units.items()}


def _batch(differences: NDArray[np.float64]) -> int:
    """Resamples at once: about 32 MiB of them."""
    return max(1, 2**22 // len(differences))
