"""Results in groups, and a strategy's results by length: the same for tables, figures and MLflow's curves."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from pipelines.records.cells import Cell, Result

Results = Sequence[tuple[Cell, Result]]
Point = tuple[float, float, float | None]
"""x, y, and y's standard error or None."""

COSTS = ("seconds", "tokens_per_second", "peak_bytes")
"""What of a cell's cost is drawn by length, beside its metrics."""

Key = TypeVar("Key", bound=Hashable)


def grouped(rows: Results, key: Callable[[Cell], Key]) -> dict[Key, list[tuple[Cell, Result]]]:
    """The rows by what `key` says of their cells, in the order in which that first occurs."""
    groups: dict[Key, list[tuple[Cell, Result]]] = {}
    for cell, result in rows:
        groups.setdefault(key(cell), []).append((cell, result))
    return groups


def by_task(rows: Results) -> dict[tuple[str, str], list[tuple[Cell, Result]]]:
    """The rows of each model and task."""
    return grouped(rows, lambda cell: (cell.model.name, cell.task.name))


def by_strategy(rows: Results) -> dict[str, list[tuple[Cell, Result]]]:
    """The rows of each strategy with its options, the shortest length first."""
    return grouped(sorted(rows, key=lambda row: row[0].length), lambda cell: cell.strategy_label)


def by_length(rows: Results) -> dict[str, list[Point]]:
    """Every metric, and what it cost, against length in tokens: points of one strategy's rows, the shortest first."""
    curves: dict[str, list[Point]] = {}
    for cell, result in sorted(rows, key=lambda row: row[0].length):
        values = {name: value for name, value in result.metrics.items() if not name.endswith("_stderr")}
        values |= {name: result.cost[name] for name in COSTS if name in result.cost}
        for name, value in values.items():
            curves.setdefault(name, []).append((cell.length, value, result.metrics.get(f"{name}_stderr")))
    return curves
