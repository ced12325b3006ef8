"""`ropewalk reproduce`: a published protocol run again, ours beside theirs; or its claims tested on another model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines.choices.config import Dtype, ModelChoice, Workbench
from pipelines.choices.sweep import cell_of
from pipelines.models import find
from pipelines.records.cells import Cell, Refusal, Result
from pipelines.records.numbers import duration
from pipelines.report import drawing, terminal
from pipelines.report.terminal import console
from pipelines.reproduce import derived, needs, published
from pipelines.reproduce.published import PublishedColumn, PublishedRow, PublishedTable, PublishedValue
from pipelines.reproduce.session import Session, counted, introduce, write
from pipelines.tasks import registry


@dataclass(frozen=True)
class ComparedValue:
    """One published value and ours. ours: in the published unit; None where it was not run, for the reason given."""

    row: str
    column: str
    theirs: str
    ours: float | None
    difference: float | None
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class RequestedValue:
    """One value to be measured: its place, and its cells (one a length) or the reason why there is none."""

    row: PublishedRow
    column: PublishedColumn
    value: PublishedValue
    cells: tuple[Cell, ...] = ()
    reason: str = ""


def main(names: Sequence[str], base: Workbench, given: Mapping[str, Any], command: str) -> int:
    """Reproduce tables one after another.

    names: of tables. base: the command line's other choices, composed. given: rows, columns, and task: options that
    override the published protocol.
    """
    session = Session(base, given.get("task", {}), command)
    tables = [published.selected(published.table(name), given.get("rows"), given.get("columns")) for name in names]
    return max(_reproduce(table, session) for table in tables)


def _reproduce(table: PublishedTable, session: Session) -> int:
    introduce(table)
    if table.derived:
        values = list(_derived(table))
    elif table.rows:
        console.print(needs.summary(table))
        requested = list(_requested(table, session))
        results = session.measure([cell for value in requested for cell in value.cells])
        values = [_compared(table, value, results) for value in requested]
    else:
        raise Refusal(f"published={table.name} has no values, only claims: add --transfer model=MODEL")
    _show(table, values)
    verdicts = {verdict: sum(value.verdict == verdict for value in values) for verdict in published.VERDICTS}
    folder = session.folder(table.name)
    files = [
        write(folder / "comparison.json", {"table": table.name, "values": [asdict(value) for value in values]}),
        drawing.beside(*_figure(table, values), folder / "comparison.png"),
    ]
    if any(value.ours is not None for value in values):
        session.record(table, table.name, verdicts, files, sure=table.sure)
    console.print(f"{counted(verdicts)}; figure: {files[-1]}")
    if verdicts["not run"] == len(values):
        return 2
    return 1 if verdicts["not reproduced"] else 0


# ------------------------------------------------------------------------------------------------ formulas


def _derived(table: PublishedTable) -> Iterator[ComparedValue]:
    assert table.compute is not None
    function = derived.DERIVED[table.compute]
    for row, number, value in table.values():
        column = table.columns[number]
        arguments = {**row.arguments, **({table.argument: column.value} if table.argument else {})}
        start = time.monotonic()
        ours = function(**arguments)
        if (spent := time.monotonic() - start) > 5:
            console.print(f"  {row.name}, {column.label}: {ours:.4g} in {duration(spent)}")
        yield _judged(table, row, column, value, ours)


def _judged(
    table: PublishedTable,
    row: PublishedRow,
    column: PublishedColumn,
    value: PublishedValue,
    ours: float,
    limit: int | None = None,
) -> ComparedValue:
    """limit: of documents, where it was another than the table's."""
    verdict = table.verdict(column, value, ours, limit)
    if not math.isfinite(ours):
        return ComparedValue(row.name, column.label, value.text, None, None, verdict, "ours is not finite")
    difference = ours - value.number if value.number is not None else None
    return ComparedValue(row.name, column.label, value.text, ours, difference, verdict)


# ------------------------------------------------------------------------------------------------ measurements


def _requested(table: PublishedTable, session: Session) -> Iterator[RequestedValue]:
    refused: dict[Any, str] = {}  # a model or a text that is not here is looked for once
    unreachable = False
    for row, number, value in table.values():
        column, reason = table.columns[number], table.missing_of(row, table.columns[number])
        if reason or row.model is None:
            yield RequestedValue(row, column, value, reason=reason or "")
            continue
        choices = [_choice(table, session, row, number, length) for length in table.lengths_of(row, column)]
        where = (row.model, str(choices[0].task.get("text")))
        if where not in refused:
            try:
                if unreachable and not find.cached(choices[0].model.path):
                    raise find.Unreachable(f"model {choices[0].model.path} is not here, and the hub does not answer")
                yield RequestedValue(row, column, value, tuple(map(cell_of, choices)))
                continue
            except Refusal as sentence:
                unreachable |= isinstance(sentence, find.Unreachable)
                refused[where] = f"{sentence}; {needs.to_get(row.model, choices[0].task)}"
        yield RequestedValue(row, column, value, reason=refused[where])


def _choice(table: PublishedTable, session: Session, row: PublishedRow, number: int, length: int) -> Workbench:
    assert row.model is not None
    base, column, checkpoint = session.base, table.columns[number], published.checkpoints()[row.model]
    return replace(
        base,
        model=ModelChoice(row.model, checkpoint.path, None, checkpoint.trained_length),
        strategy=dict(row.strategy_at(number)),
        factor=None,
        task={**column.task, **session.task},
        length=length,
        limit=base.limit if base.limit is not None else column.limit,
        dtype=Dtype[table.dtype] if base.dtype is Dtype.auto else base.dtype,
    )


def _compared(table: PublishedTable, value: RequestedValue, results: Mapping[str, Result]) -> ComparedValue:
    reason = value.reason
    for cell in value.cells:
        result = results.get(cell.id)
        if not reason and (result is None or not result.finished):
            reason = result.error_line if result is not None else "it did not finish"
    if not reason:
        try:
            ours = _ours(value, results)
        except KeyError as metric:
            statuses = sorted({results[cell.id].status for cell in value.cells})
            reason = f"status {', '.join(statuses)}, and no {metric.args[0]}"
        else:
            return _judged(table, value.row, value.column, value.value, ours, value.cells[0].limit)
    return ComparedValue(value.row.name, value.column.label, value.value.text, None, None, "not run", reason)


def _ours(value: RequestedValue, results: Mapping[str, Result]) -> float:
    """Our value in the published unit; infinite where the model broke down.

    Raises:
        KeyError: a result lacks the metric.
    """
    name, scale = value.column.metric, value.column.scale
    rows = [(cell, results[cell.id]) for cell in value.cells]
    if name in registry.OVER:
        return registry.OVER[name]([(cell.length, result.metrics["acc"]) for cell, result in rows]) * scale
    [(_, result)] = rows
    return (math.inf if result.status == "diverged" and name not in result.metrics else result.metrics[name]) * scale


# ------------------------------------------------------------------------------------------------ ours beside theirs


def _show(table: PublishedTable, values: Sequence[ComparedValue]) -> None:
    lines: list[tuple[str, ...]] = []
    reasons: dict[str, list[str]] = {}
    for value in values:
        if value.verdict == "not run":
            reasons.setdefault(value.reason, []).append(f"{value.row} at {value.column}")
            continue
        digits = max(5, sum(map(str.isdigit, value.theirs.partition("e")[0])) + 1)
        ours = "not finite" if value.ours is None else f"{value.ours:.{digits}g}"
        difference = "" if value.difference is None else f"{value.difference:+.3g}"
        lines.append((value.row, value.column, value.theirs, ours, difference, value.verdict))
    if lines:
        header = ("row", "column", "theirs", "ours", "difference", "verdict")
        terminal.table(console, f"{table.name}: ours beside theirs", header, lines)
        tolerance = f"{table.tolerance:.2%} and" if table.tolerance else "the"
        console.print(
            f"reproduced: within {tolerance} rounding of what was printed" if not table.trials else "reproduced:"
        )
        for trials in sorted({column.trials or 0 for column in table.columns} - {0}):
            console.print(f"  shares of {trials} trials: within two standard errors of the difference of two draws")
    for reason, places in reasons.items():
        rest = f" and {len(places) - 3} more" if len(places) > 3 else ""
        console.print(f"not run  {', '.join(places[:3])}{rest}\n         {reason}")


def _figure(
    table: PublishedTable, values: Sequence[ComparedValue]
) -> tuple[dict[str, list[tuple[int, float | None, float | None]]], list[str], str]:
    labels = [column.label for column in table.columns]
    rows: dict[str, list[tuple[int, float | None, float | None]]] = {}
    for value in values:
        parsed_value = PublishedValue.parse(value.theirs)
        theirs = parsed_value.number if parsed_value is not None else None
        rows.setdefault(value.row, []).append((labels.index(value.column), theirs, value.ours))
    return rows, labels, table.title
