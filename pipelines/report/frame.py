"""Results as pandas tables: a row a cell, a row a document, or a row a comparison. Owns pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.records.cells import Cell, Refusal, Result, strategy_label
from pipelines.report import statistics

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

Rows = Sequence[tuple[Cell, Result]]


def to_frame(rows: Rows) -> pandas.DataFrame:
    """One row a cell; what was not measured is missing (NaN)."""
    import pandas

    records = [
        {**_choices(cell), "status": result.status, **result.metrics, **result.cost, "cell_id": cell.id}
        for cell, result in rows
    ]
    return pandas.DataFrame(records)


def documents_frame(rows: Rows) -> pandas.DataFrame:
    """One row a document of every cell: its choices, and all that its record holds."""
    import pandas

    records = [
        {**document, **_choices(cell), "cell_id": cell.id} for cell, result in rows for document in result.documents
    ]
    return pandas.DataFrame(records)


def compare(rows: Rows, baseline: str = "none") -> pandas.DataFrame:
    """Every result against the baseline's over the same documents; p adjusted among those of a model and task.

    baseline: a strategy's name, with its options where it has some, as in `yarn beta_fast=16`. Where two results do
    not compare, `reason` says why and the numbers are missing.

    Raises:
        Refusal: no result has that strategy.
    """
    import pandas

    labels = dict.fromkeys(cell.strategy_label for cell, _ in rows)
    if rows and baseline not in labels:
        raise Refusal(f"baseline={baseline}: no result has that strategy; there are {', '.join(labels)}")
    bases = {_opponent(cell): (cell, result) for cell, result in rows if cell.strategy_label == baseline}
    pairs = [(row, bases[_opponent(row[0])]) for row in rows if _opponent(row[0]) in bases]
    records = [_record(row, base) for row, base in pairs if row[0].id != base[0].id]
    frame = pandas.DataFrame(records, columns=COMPARISON)
    for _, group in frame.groupby(["model", "task"]):
        values = group["p"].dropna()
        frame.loc[values.index, "p_adjusted"] = statistics.holm(values.to_list())
    return frame


NUMBERS = ["difference", "low", "high", "p", "p_adjusted", "documents"]
COMPARISON = ["model", "length", "task", "strategy", "against", "metric", *NUMBERS, "reason"]


def _record(row: tuple[Cell, Result], base: tuple[Cell, Result]) -> dict[str, Any]:
    cell, result = row
    record = {
        "model": cell.model.name,
        "length": cell.length,
        "task": cell.task.name,
        "strategy": cell.strategy_label,
        "against": base[0].strategy_label,
    }
    try:
        found = statistics.compare(row, base, next((m for m in result.metrics if not m.endswith("_stderr")), None))
    except Refusal as reason:
        return {**record, "reason": str(reason)}
    numbers = (found.mean, found.low, found.high, found.p, None, found.count)
    return {**record, "metric": found.measure.name, **dict(zip(NUMBERS, numbers, strict=True)), "reason": ""}


def _choices(cell: Cell) -> dict[str, Any]:
    return {
        "model": cell.model.name,
        "strategy": cell.strategy,
        "options": strategy_label("", cell.options).strip(),
        "length": cell.length,
        "task": cell.task.name,
    }


def _opponent(cell: Cell) -> tuple[Any, ...]:
    """What a result and its baseline have in common: all but the strategy."""
    options = tuple(option for option in cell.task.options if option[0] != "text")
    return cell.model, cell.task.name, options, cell.data, cell.length, cell.limit, cell.seed, cell.dtype, cell.device
