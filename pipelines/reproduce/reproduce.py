"""`ropewalk reproduce`: a published protocol run anew, ours beside theirs; or its claims asked of another model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table as Drawn

from pipelines import track
from pipelines.choices.config import Dtype, ModelChoice, Workbench
from pipelines.choices.sweep import Sweep, cell_of
from pipelines.models import find
from pipelines.records.cells import Cell, Refusal, Result
from pipelines.records.numbers import duration
from pipelines.records.results import Store
from pipelines.report import drawing
from pipelines.report.terminal import console
from pipelines.reproduce import derived, needs, published
from pipelines.reproduce.published import Column, Row, Table, Value
from pipelines.tasks import registry
from pipelines.track import launch
from pipelines.workers.compute import pooled

HELP = """ropewalk reproduce published=NAME[,NAME] [rows=...] [columns=...] [OVERRIDES]
ropewalk reproduce published=NAME --transfer model=MODEL [OVERRIDES]
ropewalk reproduce --list

Runs a published table's own protocol (conf/published/NAME.yaml) and shows ours beside theirs with a verdict: reproduced
(within rounding and the table's tolerance), close, not reproduced, or not run and why. What it takes is said before.
--list       every table, what it needs, and whether that is here
--transfer   the same protocol on another model and text: not the numbers but the claims, with paired tests; documents
             are as long as the longest length that any of the tables asks for
Overrides are those of ropewalk grid: cluster=gpu, limit=10, dtype=float32, task.text=FOLDER, force=true, store=FOLDER.
  ropewalk reproduce published=men_base_bound,yarn_constants
  ropewalk reproduce published=longrope_table1 cluster=gpu
  ropewalk reproduce published=yarn_v3_table5,dynamic_ntk,pi_table3,lceg_table9 --transfer model=tiny
Exit codes: 0 all that could run is reproduced or close, or all claims hold; 1 not so; 2 nothing could run.
"""


@dataclass(frozen=True)
class Compared:
    """One published value and ours. ours: in the published unit; None where it was not run, for the reason given."""

    row: str
    column: str
    theirs: str
    ours: float | None
    difference: float | None
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Asked:
    """One value that is to be measured: its place, and its cells (one a length) or the reason why there is none."""

    row: Row
    column: Column
    value: Value
    cells: tuple[Cell, ...] = ()
    reason: str = ""


def main(names: Sequence[str], base: Workbench, given: Mapping[str, Any], command: str) -> int:
    """Reproduce tables one after another.

    names: of tables. base: the command line's other choices, composed. given: rows, columns, and task: the options
    that were given, which go over the published protocol.
    """
    store = Store.at(base.store)
    tables = [published.chosen(published.table(name), given.get("rows"), given.get("columns")) for name in names]
    return max(_reproduce(table, base, given.get("task", {}), store, command) for table in tables)


def _reproduce(table: Table, base: Workbench, task: Mapping[str, Any], store: Store, command: str) -> int:
    introduce(table)
    if table.derived:
        compared = list(_derived(table))
    elif table.rows:
        compared = _measured(table, base, task, store, command)
    else:
        raise Refusal(f"published={table.name} has no values, only claims: add --transfer model=MODEL")
    _show(table, compared)
    counts = {verdict: sum(one.verdict == verdict for one in compared) for verdict in published.VERDICTS}
    folder = store.root / "published" / table.name
    files = [write(folder / "comparison.json", {"table": table.name, "values": [asdict(one) for one in compared]})]
    files.append(drawing.beside(*_figure(table, compared), folder / "comparison.png"))
    if any(one.ours is not None for one in compared):
        track.record_reproduction(
            store,
            table.name,
            {"title": table.title, "source": table.source, "sure": table.sure, "command": command},
            {f"values/{name}": float(count) for name, count in counts.items()},
            files,
            {"status": ", ".join(f"{count} {name}" for name, count in counts.items() if count)},
        )
    console.print(", ".join(f"{count} {name}" for name, count in counts.items() if count) + f"; drawn: {files[-1]}")
    if counts["not run"] == len(compared):
        return 2
    return 1 if counts["not reproduced"] else 0


def introduce(table: Table) -> None:
    console.print(f"\n{table.title}\n  {table.source}; {published.SURE[table.sure]}", style=None)
    for note in table.notes:
        console.print(f"  note: {note}")


# ------------------------------------------------------------------------------------------------ formulas


def _derived(table: Table) -> Iterator[Compared]:
    assert table.compute is not None
    function = derived.DERIVED[table.compute]
    for row, number, value in table.values():
        column = table.columns[number]
        arguments = {**row.arguments, **({table.argument: column.value} if table.argument else {})}
        start = time.monotonic()
        ours = function(**arguments)
        if (spent := time.monotonic() - start) > 5:
            console.print(f"  {row.name}, {column.label}: {ours:.4g} in {duration(spent)}")
        yield _compared(table, row, column, value, ours)


def _compared(table: Table, row: Row, column: Column, value: Value, ours: float, limit: int | None = None) -> Compared:
    """limit: of documents, where it was another than the table's."""
    difference = ours - value.number if value.number is not None and math.isfinite(ours) else None
    told = ours if math.isfinite(ours) else None
    verdict = table.judged(column, value, ours, limit)
    reason = "" if told is not None else "ours is not finite"
    return Compared(row.name, column.label, value.text, told, difference, verdict, reason)


# ------------------------------------------------------------------------------------------------ measurements


def _measured(table: Table, base: Workbench, task: Mapping[str, Any], store: Store, command: str) -> list[Compared]:
    console.print(needs.told(table))
    asked = list(_asked(table, base, task))
    results = run([cell for one in asked for cell in one.cells], base, store, command)
    return [_beside(table, one, results) for one in asked]


def _beside(table: Table, one: Asked, results: Mapping[str, Result]) -> Compared:
    reason = one.reason
    for cell in one.cells:
        result = results.get(cell.id)
        if not reason and (result is None or not result.finished):
            reason = result.error_line if result is not None else "it did not finish"
    if not reason:
        try:
            ours = _ours(table, one, results)
        except KeyError as metric:
            statuses = sorted({results[cell.id].status for cell in one.cells})
            reason = f"status {', '.join(statuses)}, and no {metric.args[0]}"
        else:
            return _compared(table, one.row, one.column, one.value, ours, one.cells[0].limit)
    return Compared(one.row.name, one.column.label, one.value.text, None, None, "not run", reason)


def _ours(table: Table, one: Asked, results: Mapping[str, Result]) -> float:
    """Our value in the published unit; infinite where the model broke down.

    Raises:
        KeyError: a result lacks the metric.
    """
    name, scale = table.metric_of(one.column), table.scale_of(one.column)
    found = [(cell, results[cell.id]) for cell in one.cells]
    if name in registry.OVER:
        return registry.OVER[name]([(cell.length, result.metrics["acc"]) for cell, result in found]) * scale
    [(_, result)] = found
    return (math.inf if result.status == "diverged" and name not in result.metrics else result.metrics[name]) * scale


def run(cells: Sequence[Cell], base: Workbench, store: Store, command: str) -> dict[str, Result]:
    """The cells through the grid: those finished before are taken from the store, all are recorded as its own."""
    if not cells:
        return {}
    sweep = Sweep("published", tuple(cells), command)
    results = launch.run(sweep, store, lambda todo: pooled(todo, base.cluster), force=base.force)
    return {result.cell_id: result for result in results}


def _asked(table: Table, base: Workbench, task: Mapping[str, Any]) -> Iterator[Asked]:
    refused: dict[Any, str] = {}  # a model or a text that is not here is looked for once
    unreachable = False
    for row, number, value in table.values():
        column, reason = table.columns[number], table.missing_of(row, table.columns[number])
        if reason or row.model is None:
            yield Asked(row, column, value, reason=reason or "")
            continue
        choices = [_choice(table, base, row, number, length, task) for length in table.lengths_of(row, column)]
        where = (row.model, str(choices[0].task.get("text")))
        if where not in refused:
            try:
                if unreachable and not find.cached(choices[0].model.path):
                    raise find.Unreachable(f"model {choices[0].model.path} is not here, and the hub does not answer")
                yield Asked(row, column, value, tuple(map(cell_of, choices)))
                continue
            except Refusal as sentence:
                unreachable |= isinstance(sentence, find.Unreachable)
                refused[where] = f"{sentence}; {needs.to_get(row.model, choices[0].task)}"
        yield Asked(row, column, value, reason=refused[where])


def _choice(table: Table, base: Workbench, row: Row, number: int, length: int, task: Mapping[str, Any]) -> Workbench:
    assert row.model is not None
    column, checkpoint = table.columns[number], published.checkpoints()[row.model]
    return replace(
        base,
        model=ModelChoice(row.model, checkpoint.path, None, checkpoint.trained_length),
        strategy=dict(published.strategy_at(row, number)),
        factor=None,
        task={**table.task_of(column), **task},
        length=length,
        limit=base.limit if base.limit is not None else table.limit_of(column),
        dtype=Dtype[table.dtype] if base.dtype is Dtype.auto else base.dtype,
    )


# ------------------------------------------------------------------------------------------------ ours beside theirs


def _show(table: Table, compared: Sequence[Compared]) -> None:
    drawn = Drawn(title=f"{table.name}: ours beside theirs", title_justify="left")
    for number, name in enumerate(("row", "column", "theirs", "ours", "difference", "verdict")):
        drawn.add_column(name, justify="right" if 2 <= number <= 4 else "left")
    for one in compared:
        if one.verdict != "not run":
            digits = max(5, sum(map(str.isdigit, one.theirs.partition("e")[0])) + 1)
            ours = "not finite" if one.ours is None else f"{one.ours:.{digits}g}"
            off = "" if one.difference is None else f"{one.difference:+.3g}"
            drawn.add_row(one.row, one.column, one.theirs, ours, off, one.verdict)
    if drawn.row_count:
        console.print(drawn)
        told = f"{table.tolerance:.2%} and" if table.tolerance else "the"
        drawn_by_chance = sorted({table.trials_of(column) or 0 for column in table.columns} - {0})
        console.print(f"reproduced: within {told} rounding of what was printed" if not table.trials else "reproduced:")
        for trials in drawn_by_chance:
            console.print(f"  shares of {trials} trials: within two standard errors of the difference of two draws")
    reasons: dict[str, list[str]] = {}
    for one in compared:
        if one.verdict == "not run":
            reasons.setdefault(one.reason, []).append(f"{one.row} at {one.column}")
    for reason, places in reasons.items():
        shown = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        console.print(f"not run  {shown}\n         {reason}")


def _figure(
    table: Table, compared: Sequence[Compared]
) -> tuple[dict[str, list[tuple[int, float | None, float | None]]], list[str], str]:
    labels = [column.label for column in table.columns]
    rows: dict[str, list[tuple[int, float | None, float | None]]] = {}
    for one in compared:
        value = Value.of(one.theirs)
        theirs = value.number if value is not None else None
        rows.setdefault(one.row, []).append((labels.index(one.column), theirs, one.ours))
    return rows, labels, table.title


def write(path: Path, body: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1), encoding="utf-8")
    return path


def parsed(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any], list[str]]:
    """(tables, our own keys, overrides for Hydra) of a command line.

    Raises:
        Refusal: no table is named, or a flag is unknown.
    """
    flags = [a for a in arguments if a.startswith("-")]
    unknown = sorted(set(flags) - {"--transfer", "--list"})
    if unknown:
        raise Refusal(f"ropewalk reproduce has no {' '.join(unknown)}; its flags: --list, --transfer, --help")
    own = {key: a.partition("=")[2].split(",") for a in arguments for key in ("published", "rows", "columns")
           if a.startswith(f"{key}=")}  # fmt: skip
    rest = [a for a in arguments if not a.startswith("-") and a.partition("=")[0] not in own]
    tables = own.pop("published", [])
    if not tables:
        raise Refusal(f"published=NAME is missing: give one of {', '.join(published.names())} (--list tells of each)")
    transfer = "--transfer" in flags
    named = [a.partition("=")[0] for a in rest]
    for key in ("strategy", "length", "factor", "task"):
        if any(name == key or (name.startswith(f"{key}.") and key != "task") for name in named):
            raise Refusal(f"{key}=... is the table's own: ropewalk reproduce takes it from conf/published")
    if not transfer and any(name == "model" or name.startswith("model.") for name in named):
        raise Refusal("model=... is the table's own; to ask its claims of another model, add --transfer")
    return tables, {**own, "transfer": transfer}, rest


def task_options(rest: Sequence[str], base: Workbench) -> dict[str, Any]:
    """Of the composed task, the options that the command line gave: they go over the published protocol."""
    given = [a.partition("=")[0].removeprefix("task.") for a in rest if a.startswith("task.")]
    return {name: base.task[name] for name in given}
