"""What a deployed factor costs at short lengths: each strategy, under its target's factor, against the plain model.

The short cells are those of pipelines.choices.deployed; in tables they are no rows of their own, but a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.choices.deployed import PLAIN, is_free, pinned
from pipelines.choices.sweep import trained_length
from pipelines.records.cells import Cell, Options, Refusal
from pipelines.report import statistics
from pipelines.report.curves import Results
from pipelines.report.gain import CROP, Gain, gain_of
from pipelines.report.statistics import Row


@dataclass(frozen=True)
class ShortCost:
    """What one strategy costs at `length` when it is deployed for `target`, tokens both.

    gain: the deployed plan against the plain model, over the same documents; None where the plan there is the plain one
    by construction, which costs nothing.
    """

    strategy: str
    target: int
    length: int
    gain: Gain | None = None

    @property
    def share(self) -> float | None:
        """The cost as a share of perplexity, or in units of the score; above 0 is worse. None: not compared."""
        if self.gain is None:
            return 0.0
        return None if self.gain.refusal else -self.gain.gain


def apart(rows: Sequence[Row], trained: int | None) -> tuple[list[Row], list[Row]]:
    """The rows of one model and task in two: those that were asked for, and those that only say what a factor costs."""
    if trained is None:
        return list(rows), []
    targets = {pinned(row[0], trained) for row in rows if row[0].length > trained}
    own = {(row[0].strategy, row[0].options) for row in rows if row[0].length > trained}

    def only_short(cell: Cell) -> bool:
        label = (cell.strategy, cell.options)
        return cell.length <= trained and label in targets and label not in own

    return [row for row in rows if not only_short(row[0])], [row for row in rows if only_short(row[0])]


def short_pairs(rows: Sequence[Row], trained: int | None) -> list[tuple[Cell, Row, Row]]:
    """(target cell, deployed short row, plain short row) of every strategy and target; rows need no results yet."""
    if trained is None:
        return []
    short: dict[tuple[str, Options], list[Row]] = {}
    for row in rows:
        if row[0].length <= trained:
            short.setdefault((row[0].strategy, row[0].options), []).append(row)
    plain = {row[0].length: row for row in reversed(rows) if row[0].strategy in (PLAIN, CROP)}
    return [
        (target, row, plain[row[0].length])
        for target in _targets(rows, trained)
        for row in short.get(pinned(target, trained), ())
        if row[0].length in plain
    ]


def _targets(rows: Sequence[Row], trained: int) -> list[Cell]:
    """The cells whose strategies are deployed: all of a strategy that its length changes, of others the longest."""
    cells = sorted((row[0] for row in rows if row[0].length > trained and row[0].strategy != PLAIN), key=_length)
    return list({pinned(cell, trained): cell for cell in cells}.values())


def _length(cell: Cell) -> int:
    return cell.length


def short_costs(rows: Results, metric: str | None, trained: int | None) -> list[ShortCost]:
    """Of every strategy of one model and task, p adjusted over all; strategies whose cost is not known are absent."""
    pairs = short_pairs(rows, trained)
    costly = [(target, ours, plain) for target, ours, plain in pairs if ours[0].id != plain[0].id]
    compared = statistics.compare_pairs([(ours, plain) for _, ours, plain in costly], metric)
    found = [
        ShortCost(target.strategy_label, target.length, ours[0].length, gain_of(one))
        for (target, ours, _), one in zip(costly, compared, strict=True)
    ]
    found += [
        ShortCost(target.strategy_label, target.length, ours[0].length)
        for target, ours, plain in pairs
        if ours[0].id == plain[0].id
    ]
    known = {(one.strategy, one.target) for one in found}
    for cell in _targets(rows, trained) if trained is not None else ():
        if (cell.strategy_label, cell.length) not in known and trained is not None and is_free(cell, trained):
            found.append(ShortCost(cell.strategy_label, cell.length, trained))
    return found


def trained_or_none(cell: Cell) -> int | None:
    """Tokens that a cell's model was trained on; None where the model is no longer there."""
    try:
        return trained_length(cell)
    except Refusal:
        return None
