"""How many documents comparisons need, before any is computed.

Two rules. The sign-flip test cannot give a p below 0.05, adjusted for so many comparisons, with fewer than `least`
documents, whatever they say. And a difference of EFFECT shall be found in four of five cases (POWER): with paired
differences of standard deviation `spread` over n documents, as statistics.detectable says.

The spread is the median of earlier results of the same model, task and text; where there are none, SPREAD.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from pipelines.records.cells import Cell, Refusal, Result
from pipelines.report import statistics
from pipelines.report.curves import grouped
from pipelines.report.gain import worth
from pipelines.report.pairs import Kind, counted
from pipelines.report.short import trained_or_none
from pipelines.tasks import registry
from pipelines.tasks.kinds import Measure

EFFECT = {True: 0.02, False: 0.2}
"""Of perplexity (measures with an exponential) and of a score: the difference that is to be found."""

SPREAD = {True: 0.03, False: 0.35}
"""Standard deviation of paired differences where no earlier result tells it, nats a token and units of a score:
measured with models/tiny, docs/tasks.md says on what."""

NEAR = 0.1
"""Pairs that differ by more than this share of perplexity, or of the score, tell nothing of how close ones spread."""

ALONE = 12
"""Documents of a grid in which nothing is compared."""

MOST = 10**5
"""Documents beyond which no number is given."""

WORDS: Mapping[Kind, str] = {
    "baseline": "with the baseline",
    "crop": "with crop",
    "runner-up": "of the best with its runner-up",
    "short": "at short lengths",
}


@dataclass(frozen=True)
class Need:
    """What the comparisons of one model and task need.

    given: documents, or keys, that a cell has; None: all there are. comparisons: how many of each kind. least: units
    below which no p can be significant. spread: of paired differences, in the measure's unit; basis: its source.
    enough: units with which a difference of `effect` is found.
    """

    model: str
    task: str
    measure: Measure
    given: int | None
    comparisons: Mapping[Kind, int]
    spread: float
    basis: str

    @property
    def most(self) -> int:
        """Comparisons of the largest kind, among which p is adjusted."""
        return max(self.comparisons.values())

    @property
    def least(self) -> int:
        return statistics.needed(self.most)

    @property
    def effect(self) -> float:
        """As a difference in the measure's unit."""
        share = EFFECT[bool(self.measure.exp)]
        return -math.log1p(-share) if self.measure.exp else share

    @property
    def enough(self) -> int:
        return units_for(self.effect, self.spread, self.most)

    @property
    def sentence(self) -> str:
        """What a cell has, what is the least, what its documents can show, and what is enough."""
        units, there = self.measure.units, "all" if self.given is None else f"{self.given}"
        parts = ", ".join(f"{number} {WORDS[kind]}" for kind, number in self.comparisons.items())
        said = (
            f"{self.model}, {self.task}: {there} {units} a cell; p < {statistics.ALPHA:g} takes at least {self.least}"
        )
        said += f" (comparisons: {parts})."
        if self.given is not None and self.given >= self.least:
            smallest = statistics.detectable(self.given, self.spread, self.most)
            said += f" {self.given} show differences from {self._share(smallest)} on"
        elif self.given is not None:
            said += f" {self.given} can show nothing"
        else:
            said += " Differences"
        return f"{said}; {self._share(self.effect)} take {self.enough} ({self.basis}): limit=enough"

    def _share(self, difference: float) -> str:
        sign = -1 if self.measure.lower else 1
        share = 100 * abs(worth(self.measure, sign * difference))
        return f"{share:.2g} % of {self.measure.exp}" if self.measure.exp else f"{share:.2g} points"


def units_for(effect: float, spread: float, comparisons: int) -> int:
    """The fewest units that find a mean difference of `effect`, and with which a p can be significant at all.

    >>> units_for(0.02, 0.0, 8), units_for(0.02, 0.02, 8)
    (9, 17)
    """
    low, high = statistics.needed(comparisons), MOST
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if statistics.detectable(middle, spread, comparisons) <= effect else (middle + 1, high)
        )
    return low


def needs(cells: Sequence[Cell], earlier: Sequence[tuple[Cell, Result]]) -> list[Need]:
    """One for each model and task of which anything is compared. earlier: results, of whatever models and tasks."""
    found = []
    rows = [(cell, None) for cell in cells]
    for (model, task), group in _by_task(rows).items():
        first = group[0][0]
        try:
            measure = registry.kind(task).measure_of(task, "acc")
        except Refusal:
            continue
        comparisons = counted(group, trained_or_none(first))
        if not comparisons:
            continue
        spread, basis = spread_of(first, measure, earlier)
        kind = registry.kind(task)
        given = kind.units(registry.options_of(first.task, first.limit), first.limit)
        found.append(Need(model, task, measure, given, comparisons, spread, basis))
    return found


def _by_task(rows: Sequence[tuple[Cell, None]]) -> dict[tuple[str, str], list[tuple[Cell, None]]]:
    groups: dict[tuple[str, str], list[tuple[Cell, None]]] = {}
    for row in rows:
        groups.setdefault((row[0].model.name, row[0].task.name), []).append(row)
    return groups


def spread_of(cell: Cell, measure: Measure, earlier: Sequence[tuple[Cell, Result]]) -> tuple[float, str]:
    """The median standard deviation of paired differences among earlier results like a cell's, and its source."""
    alike = [
        (other, result)
        for other, result in earlier
        if (other.model.fingerprint, other.task.name, other.data) == (cell.model.fingerprint, cell.task.name, cell.data)
        and result.status == "ok"
    ]
    spreads = []
    for group in grouped(alike, lambda other: (other.length, other.limit, other.seed, other.dtype)).values():
        for ours, theirs in combinations({row[0].id: row for row in group}.values(), 2):
            try:
                differences = statistics.paired(ours, theirs)
            except Refusal:
                continue
            if len(differences) > 2 and abs(worth(measure, float(differences.mean()))) <= NEAR:
                spreads.append(float(differences.std(ddof=1)))
    spreads = [spread for spread in spreads if spread > 0]
    unit = "nats" if measure.exp else "points"
    scale = 1 if measure.exp else 100
    if not spreads:
        spread = SPREAD[bool(measure.exp)]
        return spread, f"by the usual spread of {scale * spread:.2g} {unit}"
    spread = float(np.median(spreads))
    pairs = f"{len(spreads)} earlier pair{'s' if len(spreads) > 1 else ''}"
    return spread, f"by the spread of {pairs}, {scale * spread:.2g} {unit}"


def as_dict(need: Need) -> dict[str, Any]:
    """The numbers of a need as plain data."""
    return {
        "model": need.model,
        "task": need.task,
        "units": need.measure.units,
        "given": need.given,
        "comparisons": dict(need.comparisons),
        "least": need.least,
        "spread": need.spread,
        "enough": need.enough,
        "sentence": need.sentence,
    }
