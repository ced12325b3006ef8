"""What stands on the page, in its order: sections of sentences, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.choices.sweep import Sweep
from pipelines.records.cells import Cell, Result
from pipelines.records.numbers import number
from pipelines.records.provenance import PACKAGES, code_label, code_labels
from pipelines.report import gain
from pipelines.report.curves import Results, grouped
from pipelines.report.figure import Figure, Kind
from pipelines.report.figures import asked
from pipelines.report.recommend import Recommendation
from pipelines.report.tables import DIFFERENCES, ScoreTable, counts, distinct_rows, tables
from pipelines.tasks import text


@dataclass(frozen=True)
class Entry:
    """What a table shows, and by what it is sorted and kept as CSV where that is another."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """caption: what a screen reader says first. strategy: which column names one; None: none does."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    note: str = ""

    @property
    def strategy(self) -> int | None:
        return self.header.index("strategy") if "strategy" in self.header else None


@dataclass(frozen=True)
class Section:
    """name: of its anchor. commands: to be typed."""

    name: str
    heading: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[tuple[Figure, Table], ...] = ()
    commands: tuple[str, ...] = ()


DRAWN: Mapping[str, tuple[str, tuple[Kind, ...]]] = {
    "scores": ("Score against length", ("score",)),
    "gain": ("Context gain", ("gain", "gain by position", "gain by distance")),
    "positions": ("NLL by position", ("nll by position",)),
    "retrieval": ("Retrieval by length and depth", ("retrieval",)),
    "effective": ("Effective length", ("effective length",)),
    "short": ("What each costs at short lengths, when deployed", ("short cost",)),
    "plans": ("Frequencies of the plans", ("plans",)),
    "cost": ("Seconds, tokens a second, memory", ("cost",)),
}


def sections(
    results: Results,
    drawn: Sequence[Figure],
    sweeps: Sequence[Sweep],
    answers: Sequence[Recommendation],
    shown: Sequence[ScoreTable] | None = None,
) -> list[Section]:
    """All sections that have something to show, and always the table, what is missing, and where numbers come from."""
    shown = tables(results) if shown is None else shown
    parts = [_table(shown)]
    for name, (heading, kinds) in DRAWN.items():
        of_kind = [(figure, _data(figure)) for kind in kinds for figure in drawn if figure.kind == kind]
        own = _gains(shown) if name == "gain" else ()
        if of_kind or own:
            parts.append(Section(name, heading, tables=own, figures=tuple(of_kind)))
    parts += [part for part in (_pairs(shown),) if part.tables]
    return [*parts, _missing(results, sweeps), _provenance(results, sweeps), *_export(asked(results), answers)]


def plain(caption: str, header: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> Table:
    """A table of texts and numbers; None is an empty entry."""
    return Table(caption, tuple(header), tuple(tuple(map(_entry, row)) for row in rows), note)


def _entry(value: Any) -> Entry:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Entry("")
    if isinstance(value, (int, float)):
        text = f"{value:,}" if isinstance(value, int) or (value == int(value) and abs(value) < 1e9) else number(value)
        return Entry(text.removesuffix(".0"), float(value))
    return Entry(str(value))


def _data(figure: Figure) -> Table:
    return plain(f"Data: {figure.title}", figure.header, figure.rows)


def _table(shown: Sequence[ScoreTable]) -> Section:
    own = tuple(plain(scores.title, scores.header, scores.rows, scores.legend) for scores in shown)
    return Section("table", "The table", () if own else ("There are no results yet.",), own)


def _gains(shown: Sequence[ScoreTable]) -> tuple[Table, ...]:
    worth = [scores.gains for scores in shown if scores.gains is not None]
    return tuple(plain(one.title, one.header, one.rows, f"{one.summary}\n{one.legend}".strip()) for one in worth)


def _pairs(shown: Sequence[ScoreTable]) -> Section:
    own = tuple(
        plain(
            f"Differences, pair by pair: {scores.model}, {scores.task}", DIFFERENCES, scores.differences, scores.legend
        )
        for scores in shown
        if scores.differences
    )
    return Section("pairs", "Which differences are more than chance", tables=own)


def _missing(results: Results, sweeps: Sequence[Sweep]) -> Section:
    """Cells that are not ok, and those of the sweeps that have no result: never hidden."""
    cells = distinct_rows(results)
    lines: list[tuple[Any, ...]] = [
        (cell.strategy_label, cell.model.name, cell.length, cell.task.name, result.status, _why(result), cell.id)
        for cell, result in cells
        if result.status != "ok"
    ]
    there = {cell.id for cell, _ in cells}
    left = {cell.id: cell for sweep in sweeps for cell in sweep.cells if cell.id not in there}
    lines += [(c.strategy_label, c.model.name, c.length, c.task.name, "not run", "", c.id) for c in left.values()]
    all_of_them = counts([result for _, result in cells]) | ({"not run": len(left)} if left else {})
    said = ", ".join(f"{count} {status}" for status, count in all_of_them.items()) or "no cells"
    header = ("strategy", "model", "length", "task", "status", "why", "cell")
    own = (plain("Cells without a number, or with one that is not finite", header, lines),) if lines else ()
    return Section("missing", "Failed, invalid and out of memory", (f"Of all cells: {said}.",), own)


WHY = {"oom": "out of memory", "diverged": "not finite, or worse than a guess"}


def _why(result: Result) -> str:
    return result.error_line or WHY.get(result.status, "")


def _provenance(results: Results, sweeps: Sequence[Sweep]) -> Section:
    cells = distinct_rows(results)
    launches = plain(
        "Sweeps",
        ("sweep", "launched", "command", "code"),
        [(sweep.id, sweep.created[:19], sweep.command, code_label(sweep.code)) for sweep in sweeps],
    )
    facts = plain("Where the numbers were computed", ("what", "value", "cells"), [*_facts(cells)])
    own = tuple(one for one in (launches, facts, plain("Texts", TEXTS, [*_texts(cells)])) if one.rows)
    return Section("provenance", "Where the numbers come from", () if own else ("Nothing was computed.",), own)


RECORDED = ("device", "gpu", "driver", "cuda", *PACKAGES, "python", "attention", "measuring", "threads", "machine")


def _facts(cells: Results) -> Iterator[tuple[str, str, int]]:
    yield from (("code", label, count) for label, count in code_labels(r.provenance for _, r in cells).items())
    choices = {
        "model": lambda cell: f"{cell.model.name} (digest {cell.model.fingerprint[:16] or 'unknown'})",
        "dtype": lambda cell: cell.dtype,
        "limit": lambda cell: "all documents" if cell.limit is None else f"{cell.limit} documents",
        "seed": lambda cell: str(cell.seed),
    }
    for name, of in choices.items():
        yield from ((name, value, len(rows)) for value, rows in grouped(cells, of).items())
    for name in RECORDED:
        values = [str(result.provenance[name]) for _, result in cells if name in result.provenance]
        yield from ((name, value, values.count(value)) for value in dict.fromkeys(values))


TEXTS = ("text", "task", "digest", "licence", "documents' digests")


def _texts(cells: Results) -> Iterator[tuple[str, ...]]:
    def source(cell: Cell) -> tuple[str, str, str]:
        return str(dict(cell.task.options).get("text", "made by the task")), cell.task.name, cell.data

    for (name, task, digest), rows in grouped(cells, source).items():
        documents = ", ".join(sorted({result.digest[:12] for _, result in rows if result.digest}))
        yield name, task, digest, text.licence(name) or "not known", documents


def _export(results: Results, answers: Sequence[Recommendation]) -> list[Section]:
    """The command of every strategy at the longest length that it was measured at; the recommended one first."""
    longest = {
        (cell.model.name, cell.strategy_label): cell
        for cell, result in sorted(results, key=lambda row: row[0].length)
        if result.finished and cell.strategy not in ("none", gain.CROP)
    }
    chosen = [answer.command for answer in answers if answer.command]
    rows = [
        (label, model, cell.length, f"ropewalk export {cell.id} --to all") for (model, label), cell in longest.items()
    ]
    own = (
        (plain("Every strategy as engines take it", ("strategy", "model", "length", "command"), rows),) if rows else ()
    )
    if not rows and not chosen:
        return []
    return [Section("export", "Deploy", tables=own, commands=tuple(dict.fromkeys(chosen)))]
