"""What a published table is cited for, tested on any model: paired over the same documents, with a verdict.

Kinds of claim, of strategies s at lengths in trained lengths:

    order     at every length, each strategy is better than the next one
    best      at the i-th length the winners[i]-th strategy is better than every other
    same      at every length, the strategies do not differ
    breaks    at every length, the first strategy's last tokens are worse than the second's, and by more than all of
              its tokens are: the same tokens of both, for the ends of windows of two lengths are other texts
    gentler   no doubling costs the first strategy's last tokens as much as the first doubling costs the second's
    alike     at every length, the two strategies differ by less than MARGIN, by two one-sided tests; fails where they
              differ by more than chance and by more than that
    keeps     from the first length to every other, the first strategy loses less than the second: of all tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from pipelines.records.cells import Cell, Refusal, Result, digest_of, frozen, strategy_label
from pipelines.report import gain, statistics
from pipelines.report.statistics import Difference
from pipelines.reproduce.published import Claim
from pipelines.tasks.kinds import Measure

TASK = "perplexity"
"""What claims are tested with: they compare its NLL, of whole documents and of their last tokens."""

MARGIN = math.log1p(gain.MARGIN)
"""A difference that counts as none, nats: a loss to cropping that the report calls intact."""

HOLDS, FAILS, OPEN = "holds", "fails", "not shown"
SAME_PLAN = "same plan"

Strategy = Mapping[str, Any]
"""name, and options."""


@dataclass(frozen=True)
class Comparison:
    """One difference that a claim is about, and whether it is on the claimed side.

    says: what should be. difference: below 0 where it is so; None where there is none, for the reason given.
    settled: a verdict without statistics, as of equal plans. note: an observation that is not tested.
    """

    says: str
    difference: Difference | None = None
    reason: str = ""
    settled: str | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.settled is not None:
            return self.settled
        if self.difference is None or not self.difference.significant:
            return OPEN
        return HOLDS if self.difference.mean < 0 else FAILS


@dataclass(frozen=True)
class ClaimFinding:
    """A claim and its verdict: fails where any of its comparisons does, holds where all do."""

    claim: Claim
    comparisons: tuple[Comparison, ...]

    @property
    def verdict(self) -> str:
        verdicts = {comparison.verdict for comparison in self.comparisons}
        return FAILS if FAILS in verdicts else HOLDS if verdicts == {HOLDS} else OPEN


class ClaimResults:
    """Results of one model by strategy and length; the last tokens' NLL by document."""

    def __init__(self, rows: Mapping[tuple[str, float], tuple[Cell, Result]]) -> None:
        self.rows = rows

    def at(self, strategy: Strategy, length: float) -> tuple[Cell, Result]:
        """A finished result.

        Raises:
            Refusal: there is none.
        """
        row = self.rows.get((key(strategy), length))
        if row is None or not row[1].documents:
            raise Refusal(f"{label(strategy)} at {length:g} trained lengths has no result")
        return row

    def nll(self, strategy: Strategy, length: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        """NLL of each document, in order."""
        return np.array([document["nll"] for document in self.at(strategy, length)[1].documents], dtype=np.float64)

    def tail(self, strategy: Strategy, length: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        """NLL of the last tokens of each document, in order; the same documents at every length."""
        cell, result = self.at(strategy, length)
        name = f"nll_last_{dict(cell.task.options)['last']}"
        if any(name not in document for document in result.documents):
            raise Refusal(f"{cell.label} has no {name} of every document")
        return np.array([document[name] for document in result.documents], dtype=np.float64)


def key(strategy: Strategy) -> str:
    return digest_of(dict(strategy))[:12]


def label(strategy: Strategy) -> str:
    options = {name: value for name, value in strategy.items() if name != "name"}
    return strategy_label(str(strategy["name"]), frozen(options))


def required(claims: Sequence[Claim]) -> list[tuple[Strategy, float]]:
    """Every strategy and length that some claim takes, once."""
    places: dict[tuple[str, float], tuple[Strategy, float]] = {}
    for claim in claims:
        for strategy in claim.strategies:
            for length in claim.lengths:
                places.setdefault((key(strategy), length), (strategy, length))
    return list(places.values())


def judge(claims: Sequence[Claim], results: ClaimResults) -> list[ClaimFinding]:
    """The claims with their verdicts; p adjusted over the comparisons of each claim."""
    return [ClaimFinding(claim, _adjusted(list(KINDS[claim.kind](claim, results)))) for claim in claims]


def _adjusted(comparisons: list[Comparison]) -> tuple[Comparison, ...]:
    tested = [c.difference.p for c in comparisons if c.difference is not None and c.difference.p is not None]
    adjusted = iter(statistics.holm(tested))
    return tuple(
        replace(c, difference=replace(c.difference, adjusted=next(adjusted)))
        if c.difference is not None and c.difference.p is not None
        else c
        for c in comparisons
    )


def _pair(results: ClaimResults, first: Strategy, second: Strategy, length: float, says: str) -> Comparison:
    """The first strategy minus the second; of equal plans there is no difference."""
    try:
        ours, theirs = results.at(first, length), results.at(second, length)
        if ours[0].id == theirs[0].id:
            return Comparison(says, reason=SAME_PLAN)
        return Comparison(says, statistics.compare(ours, theirs))
    except Refusal as reason:
        return Comparison(says, reason=str(reason))


def _better(results: ClaimResults, better: Strategy, worse: Strategy, length: float) -> Comparison:
    return _pair(results, better, worse, length, f"{label(better)} better than {label(worse)} at {length:g}x")


def _order(claim: Claim, results: ClaimResults) -> Iterator[Comparison]:
    for length in claim.lengths:
        for better, worse in pairwise(claim.strategies):
            yield _better(results, better, worse, length)


def _best(claim: Claim, results: ClaimResults) -> Iterator[Comparison]:
    for length, winner in zip(claim.lengths, claim.winners, strict=True):
        for other, strategy in enumerate(claim.strategies):
            if other != winner:
                yield _better(results, claim.strategies[winner], strategy, length)


def _same(claim: Claim, results: ClaimResults) -> Iterator[Comparison]:
    for length in claim.lengths:
        for first, second in pairwise(claim.strategies):
            comparison = _pair(results, first, second, length, f"{label(first)} like {label(second)} at {length:g}x")
            if comparison.reason == SAME_PLAN:
                comparison = replace(comparison, settled=HOLDS)
            elif comparison.difference is not None:
                p = comparison.difference.p
                comparison = replace(comparison, settled=FAILS if p is not None and p < statistics.ALPHA else OPEN)
            yield comparison


def _breaks(claim: Claim, results: ClaimResults) -> Iterator[Comparison]:
    breaking, other = claim.strategies
    for length in claim.lengths:
        says = f"{label(breaking)}: last tokens worse than {label(other)}'s at {length:g}x"
        try:
            statistics.check(results.at(breaking, length), results.at(other, length))
            end = results.tail(other, length) - results.tail(breaking, length)
            whole = results.nll(other, length) - results.nll(breaking, length)
            note = _worse_from(breaking, other, length, results)
            yield Comparison(says, statistics.difference(_TAIL, end), note=note)
            more = f"{label(breaking)}: by more than all its tokens are at {length:g}x"
            yield Comparison(more, statistics.difference(_TAIL, end - whole))
        except Refusal as reason:
            yield Comparison(says, reason=str(reason))


def _worse_from(breaking: Strategy, other: Strategy, length: float, results: ClaimResults) -> str:
    """From which position on every bucket of the window is worse, on average over the documents; "" if from none."""
    (cell, result), (_, beside) = results.at(breaking, length), results.at(other, length)
    curves = (result.series.get("nll_by_position", ()), beside.series.get("nll_by_position", ()))
    if [x for x, _ in curves[0]] != [x for x, _ in curves[1]]:
        return ""  # a bucket that was not finite is left out
    start = cell.length
    before = [0.0, *(x for x, _ in curves[0])]
    for (_, ours), (_, theirs), begin in reversed(list(zip(*curves, before, strict=False))):
        if ours <= theirs:
            break
        start = int(begin)
    if start == cell.length:
        return ""
    where = f"from token {start:,} on ({start / cell.length:.0%} of {cell.length:,})" if start else "everywhere"
    return f"{label(breaking)} at {length:g}x: on average worse than {label(other)} {where}"


Stretch = tuple[Strategy, float, float]
"""A strategy, and from which length to which."""


def _loss(
    of: Callable[[Strategy, float], np.ndarray[Any, np.dtype[np.float64]]],
    measure: Measure,
    says: str,
    ours: Stretch,
    theirs: Stretch,
) -> Comparison:
    """What one strategy loses over a stretch of lengths, minus what the other does."""
    try:
        mine, other = (of(name, long) - of(name, short) for name, short, long in (ours, theirs))
        return Comparison(says, statistics.difference(measure, mine - other))
    except Refusal as reason:
        return Comparison(says, reason=str(reason))


def _gentler(claim: Claim, results: ClaimResults) -> Iterator[Comparison]:
    gentle, other = claim.strategies
    first, second = claim.lengths[:2]
    for before, after in pairwise(claim.lengths):
        says = f"{label(gentle)} from {before:g}x to {after:g}x costs less than {label(other)} to {second:g}x"
        yield _loss(results.tail, _TAIL, says, (gentle, before, after), (other, first, second))


def _alike(claim: Claim, results: ClaimResults) -> Iterator[Comparison]:
    first, second = claim.strategies
    for length in claim.lengths:
        says = f"{label(first)} within {gain.MARGIN:.0%} of {label(second)} at {length:g}x"
        compared = _pair(results, first, second, length, says)
        if compared.reason == SAME_PLAN:
            compared = replace(compared, settled=HOLDS)
        elif (found := compared.difference) is not None:
            values = statistics.paired(results.at(first, length), results.at(second, length))
            shown = len(values) >= statistics.needed(1) and statistics.equivalence(values, MARGIN).shown
            ends = [found.mean if end is None else end for end in (found.low, found.high)]  # None: all alike
            beyond = min(ends) > MARGIN or max(ends) < -MARGIN
            apart = beyond and found.p is not None and found.p < statistics.ALPHA
            compared = replace(compared, settled=HOLDS if shown else FAILS if apart else OPEN)
        yield compared


def _keeps(claim: Claim, results: ClaimResults) -> Iterator[Comparison]:
    first, second = claim.strategies
    base, *longer = claim.lengths
    for length in longer:
        says = f"{label(first)} loses less from {base:g}x to {length:g}x than {label(second)}"
        yield _loss(results.nll, _WHOLE, says, (first, base, length), (second, base, length))


def tests(claim: Claim) -> int:
    """Comparisons that a claim takes, among which its p are adjusted."""
    return len(list(KINDS[claim.kind](claim, ClaimResults({})))) * (2 if claim.kind == "breaks" else 1)


_WHOLE = Measure("nll", lower=True)
_TAIL = Measure("nll of the last tokens", lower=True)

KINDS: Mapping[str, Callable[[Claim, ClaimResults], Iterator[Comparison]]] = {
    "order": _order,
    "best": _best,
    "same": _same,
    "breaks": _breaks,
    "gentler": _gentler,
    "alike": _alike,
    "keeps": _keeps,
}
