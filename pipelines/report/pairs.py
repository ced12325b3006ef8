"""The pairs of results that matter, each tested: against no scaling, against cropping, the best against its runner-up,
and what a deployed factor costs. In % of perplexity or points, with an interval and a p.

p is adjusted (Holm) among the pairs of one kind of one model and task: each kind is a question of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.records.cells import Refusal
from pipelines.report import statistics
from pipelines.report.curves import Results, grouped
from pipelines.report.gain import CROP, Gain, gain_of, gains
from pipelines.report.short import apart, short_costs, short_pairs
from pipelines.report.statistics import Row

Kind = Literal["baseline", "crop", "runner-up", "short"]
"""Against `none` (or the first strategy); against cropping; the best of a length against the second; short: the
deployed factor against the plain model."""

KINDS: tuple[Kind, ...] = ("baseline", "crop", "runner-up", "short")


@dataclass(frozen=True)
class Pair:
    """Two results, the first against the second (`gain.cell`, `gain.crop`). target: of kind short, the length for which
    the factor is deployed."""

    kind: Kind
    gain: Gain
    target: int | None = None


def pairs(rows: Results, metric: str | None, trained: int | None) -> list[Pair]:
    """Every pair of one model and task, by kind and length. metric: the table's, for tasks that are not ours."""
    asked, _ = apart(rows, trained)
    found = [Pair("baseline", gain_of(one)) for one in statistics.against_baseline(asked, metric)]
    found += [Pair("crop", one) for one in gains(asked, metric)]
    found += [Pair("runner-up", one) for one in runners_up(asked, metric)]
    costs = short_costs(rows, metric, trained)
    found += [Pair("short", one.gain, one.target) for one in costs if one.gain is not None]
    return sorted(found, key=lambda pair: (KINDS.index(pair.kind), pair.gain.cell.length))


def runners_up(rows: Results, metric: str | None) -> list[Gain]:
    """At each length the best strategy but cropping against the second best; strategies of one plan are one."""
    found = []
    for same in grouped(rows, lambda cell: cell.length).values():
        try:
            measure = statistics.measure_of(same[0][0].task.name, metric)
            means = {
                cell.id: (float(np.mean([*statistics.by_unit(measure, cell, result).values()])), (cell, result))
                for cell, result in reversed(same)
                if cell.strategy != CROP and result.documents
            }
        except Refusal:
            continue
        order = sorted(means.values(), key=lambda one: one[0] if measure.lower else -one[0])
        if len(order) > 1:
            found.append((order[0][1], order[1][1]))
    return [gain_of(one) for one in statistics.compare_pairs(found, metric)]


def counted(rows: Sequence[Row], trained: int | None) -> dict[Kind, int]:
    """How many pairs of each kind a grid of these cells has, before it has results; strategies of one plan are one."""
    asked, _ = apart(rows, trained)
    crop = next((row[0] for row in asked if row[0].strategy == CROP), None)
    others = [row for row in asked if crop is None or row[0].strategy != CROP or row[0].options == crop.options]
    lengths = {length: {c.id for c, _ in of_one if c.strategy != CROP} for length, of_one in _by_length(asked).items()}
    numbers: dict[Kind, int] = {
        "baseline": len({(a[0].id, b[0].id) for a, b in statistics.baseline_pairs(asked)}),
        "crop": len({(a[0].id, b[0].id) for a, b in statistics.baseline_pairs(others, crop.strategy_label)})
        if crop
        else 0,
        "runner-up": sum(len(ids) > 1 for ids in lengths.values()),
        "short": len({(a[0].id, b[0].id) for _, a, b in short_pairs(rows, trained) if a[0].id != b[0].id}),
    }
    return {kind: number for kind, number in numbers.items() if number}


def _by_length(rows: Sequence[Row]) -> dict[int, list[Row]]:
    lengths: dict[int, list[Row]] = {}
    for row in rows:
        lengths.setdefault(row[0].length, []).append(row)
    return lengths
