"""Results as data frames: a row per cell, per document, and per comparison with a baseline. Owns pandas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd  # type: ignore[import-untyped]

from pipelines.records.cells import Cell, Refusal, Result
from pipelines.report import statistics


def to_frame(rows: Iterable[tuple[Cell, Result]]) -> pd.DataFrame:
    """A row per cell: what was measured, its status, every metric (NaN where not measured), and the cost."""
    return pd.DataFrame(
        {**_place(cell), "status": result.status, **result.metrics, **result.cost, "cell": cell.id}
        for cell, result in rows
    )


def documents_frame(rows: Iterable[tuple[Cell, Result]]) -> pd.DataFrame:
    """A row per document of every cell: what was measured, and the document's own record."""
    return pd.DataFrame(
        {**_place(cell), **document, "cell": cell.id} for cell, result in rows for document in result.documents
    )


def compare(rows: Iterable[tuple[Cell, Result]], baseline: str = "none") -> pd.DataFrame:
    """A row per result and baseline of the same model, task, length and documents.

    Cells with the baseline's own plan are left out. p is adjusted (Holm) over the rows of one model and task; where two
    results do not compare, or have too few documents, numbers are NaN and `note` says why.

    baseline: a strategy, with its options where it has some: "yarn beta_fast=16".

    Raises:
        Refusal: no result has this strategy.
    """
    rows = list(rows)
    labels = list(dict.fromkeys(cell.strategy_label for cell, _ in rows))
    if baseline not in labels:
        raise Refusal(
            f"baseline={baseline!r}: no result is of this strategy; give one of {', '.join(labels) or 'none'}"
        )
    bases = {_opponent(cell): (cell, result) for cell, result in rows if cell.strategy_label == baseline}
    lines = []
    for cell, result in rows:
        base = bases.get(_opponent(cell))
        if base is not None and base[0].id != cell.id:
            lines.append(_line(cell, result, base, baseline))
    frame = pd.DataFrame(lines, columns=COLUMNS)
    for _, group in frame.groupby(["model", "task"]):
        values = group["p"].dropna()
        frame.loc[values.index, "p_adjusted"] = statistics.holm(values.to_list())
    return frame


COLUMNS = (
    *("model", "task", "length", "strategy", "baseline", "measure", "difference", "low", "high", "p", "p_adjusted"),
    *("better", "documents", "note"),
)


def _line(cell: Cell, result: Result, base: tuple[Cell, Result], baseline: str) -> dict[str, Any]:
    line: dict[str, Any] = {
        "model": cell.model.name,
        "task": cell.task.name,
        "length": cell.length,
        "strategy": cell.strategy_label,
        "baseline": baseline,
        "note": "",
    }
    metric = next((name for name in result.metrics if not name.endswith("_stderr")), None)
    try:
        found = statistics.compare((cell, result), base, metric)
    except Refusal as reason:
        return {**line, "note": str(reason)}
    return {
        **line,
        "measure": found.measure.name,
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "better": found.better,
        "documents": found.count,
        "note": "too few documents" if found.p is None else "",
    }


def _place(cell: Cell) -> dict[str, Any]:
    return {
        "model": cell.model.name,
        "strategy": cell.strategy_label,
        "length": cell.length,
        "task": cell.task.name,
        "limit": cell.limit,
        "seed": cell.seed,
        "dtype": cell.dtype,
        "device": cell.device,
    }


def _opponent(cell: Cell) -> tuple[Any, ...]:
    """What a result and its baseline have in common: all but the strategy."""
    options = tuple(option for option in cell.task.options if option[0] != "text")
    return cell.model, cell.task.name, options, cell.data, cell.length, cell.limit, cell.seed, cell.dtype, cell.device
