"""Results as pandas tables: a row a cell, a row a document, or a row a comparison. Owns pandas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.choices.sweep import full_options, trained_length
from pipelines.records.cells import Cell, Refusal, Result, strategy_label
from pipelines.report import curves, statistics
from pipelines.report.tables import headlines, tables

if TYPE_CHECKING:
    import pandas

COMPARISON = (
    "model",
    "length",
    "task",
    "strategy",
    "against",
    "metric",
    "difference",
    "low",
    "high",
    "p",
    "p_adjusted",
    "documents",
    "reason",
)


def to_frame(rows: Sequence[tuple[Cell, Result]]) -> pandas.DataFrame:
    """One row a cell; what was not measured is missing (NaN).

    options: the strategy's that differ from the published defaults, as text. factor: as given, else length / trained
    length; missing where the strategy has none or the model is not there. device: its name where the result has it.
    Every metric is a column; one whose name another column has is `metric.NAME`.
    """
    import pandas

    records = []
    for cell, result in rows:
        record = {
            **_choices(cell),
            "factor": effective_factor(cell),
            "status": result.status,
            **{name: result.cost.get(name, math.nan) for name in curves.COSTS},
            "cell_id": cell.id,
            "device": result.provenance.get("device", cell.device),
            "dtype": cell.dtype,
        }
        metrics = {f"metric.{name}" if name in record else name: value for name, value in result.metrics.items()}
        records.append({**record, **metrics})
    first = ["model", "strategy", "options", "factor", "length", "task", "status"]
    last = [*curves.COSTS, "cell_id", "device", "dtype"]
    names = dict.fromkeys(name for record in records for name in record if name not in (*first, *last))
    return pandas.DataFrame(records, columns=[*first, *names, *last])


def documents_frame(rows: Sequence[tuple[Cell, Result]]) -> pandas.DataFrame:
    """One row a document of every cell: its choices, and all that its record holds."""
    import pandas

    first = ["model", "strategy", "options", "length", "task", "cell_id"]
    records = [
        {**document, **_choices(cell), "cell_id": cell.id} for cell, result in rows for document in result.documents
    ]
    names = dict.fromkeys(name for record in records for name in record if name not in first)
    return pandas.DataFrame(records, columns=[*first, *names])


def compare(rows: Sequence[tuple[Cell, Result]], baseline: str = "none") -> pandas.DataFrame:
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
    records = []
    for (model, task), group in curves.by_task(rows).items():
        metric = next(iter(headlines(task, group)), None)
        for one in statistics.against_baseline(group, metric, baseline):
            record: dict[str, Any] = {
                "model": model,
                "length": one.cell.length,
                "task": task,
                "strategy": one.cell.strategy_label,
                "against": one.baseline.strategy_label,
                "reason": one.refusal,
            }
            if (difference := one.difference) is not None:
                record |= {
                    "metric": difference.measure.name,
                    "difference": difference.mean,
                    "low": difference.low,
                    "high": difference.high,
                    "p": difference.p,
                    "p_adjusted": difference.adjusted,
                    "documents": difference.count,
                }
            records.append(record)
    frame = pandas.DataFrame(records, columns=list(COMPARISON))
    numbers = ["difference", "low", "high", "p", "p_adjusted"]
    return frame.astype({**dict.fromkeys(numbers, "float64"), "documents": "Int64"})


GAINS = (
    *("model", "length", "task", "strategy", "verdict", "gain", "low", "high", "unit", "p", "p_adjusted"),
    *("documents", "reason"),
)


def gains(rows: Sequence[tuple[Cell, Result]]) -> pandas.DataFrame:
    """What every result is worth over the cropped one of its length, over the same tokens; empty without such.

    gain, low, high: with its 95 % interval, as a share of what `unit` says; up to the trained length the cost of the
    strategy there, which is negative. verdict: as pipelines.report.gain.Verdict.
    """
    import pandas

    records = [
        {
            "model": one.cell.model.name,
            "length": one.cell.length,
            "task": one.cell.task.name,
            "strategy": standing.strategy,
            "verdict": None if one.refusal else one.verdict,
            "gain": one.gain,
            "low": one.low,
            "high": one.high,
            "unit": one.unit,
            "p": one.p,
            "p_adjusted": one.adjusted,
            "documents": one.count,
            "reason": one.refusal,
        }
        for shown in tables(rows)
        if shown.gains is not None
        for standing in shown.gains.standings
        for _, one in sorted({**standing.gains, **standing.costs}.items())
    ]
    numbers = dict.fromkeys(["gain", "low", "high", "p", "p_adjusted"], "float64")
    return pandas.DataFrame(records, columns=list(GAINS)).astype({**numbers, "documents": "Int64"})


def effective_lengths(rows: Sequence[tuple[Cell, Result]]) -> pandas.DataFrame:
    """The effective lengths of every strategy by each rule of pipelines.report.effective, with 95 % intervals."""
    import pandas

    records = [
        {
            "model": shown.model,
            "task": shown.task,
            "strategy": standing.strategy,
            "rule": rule,
            "value": one.value,
            "low": one.low,
            "high": one.high,
        }
        for shown in tables(rows)
        if shown.gains is not None
        for standing in shown.gains.standings
        for rule, one in standing.lengths.items()
    ]
    columns = ["model", "task", "strategy", "rule", "value", "low", "high"]
    return pandas.DataFrame(records, columns=columns).astype(dict.fromkeys(columns[-3:], "float64"))


def effective_factor(cell: Cell) -> float:
    """By how much the context is stretched, as given or by the lengths; NaN where that is not known."""
    try:
        options = full_options(cell)
        if "factor" not in options:
            return math.nan
        if options["factor"] is not None:
            return float(options["factor"])
        return max(1.0, cell.length / trained_length(cell))
    except ValueError:  # the strategy or the model is no longer there
        return math.nan


def _choices(cell: Cell) -> dict[str, Any]:
    return {
        "model": cell.model.name,
        "strategy": cell.strategy,
        "options": strategy_label("", cell.options).strip(),
        "length": cell.length,
        "task": cell.task.name,
    }
