"""Results -> figures as PNG and SVG, each with its data as CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pipelines.records.cells import Cell, digest_of
from pipelines.records.phases import timed
from pipelines.report import charts, curves
from pipelines.report.curves import Results
from pipelines.report.figure import Figure, Group
from pipelines.report.painters import Job, Painters
from pipelines.report.palette import styles
from pipelines.report.short import apart, trained_or_none
from pipelines.report.tables import ScoreTable, headlines, tables


def settings(results: Results) -> dict[str, Results]:
    """The rows of each model, task and of whatever else differs among those (text, dtype, device, limit, seed, other
    options), by what to call them: `tiny, perplexity, text=bible`."""
    groups: dict[str, Results] = {}
    for (model, task), rows in curves.by_task(results).items():
        choices = [_choices(cell) for cell, _ in rows]
        differ = [name for name in dict.fromkeys(n for each in choices for n in each) if _varies(choices, name)]
        differ = [name for name in differ if name != "data" or "text" not in differ]

        def setting(cell: Cell, names: Sequence[str] = tuple(differ)) -> tuple[tuple[str, str | None], ...]:
            return tuple((name, _choices(cell).get(name)) for name in names)

        for values, of_one in curves.grouped(rows, setting).items():
            groups[", ".join([model, task, *(f"{name}={value}" for name, value in values)])] = of_one
    return groups


def _choices(cell: Cell) -> dict[str, str]:
    own = {"dtype": cell.dtype, "device": cell.device, "limit": cell.limit, "seed": cell.seed, "data": cell.data[:8]}
    own |= {"model": cell.model.fingerprint[:8]}
    return {name: str(value) for name, value in (*cell.task.options, *own.items())}


def _varies(choices: Sequence[Mapping[str, str]], name: str) -> bool:
    return len({each.get(name) for each in choices}) > 1


def asked(results: Results) -> Results:
    """The rows that were asked for, without those that only say what a deployed factor costs at short lengths."""
    parts = curves.by_task(results).values()
    return [row for rows in parts for row in apart(rows, trained_or_none(rows[0][0]))[0]]


@timed("figures")
def draw(
    results: Results, folder: Path, shown: Sequence[ScoreTable] | None = None, painters: Painters | None = None
) -> list[Figure]:
    """Every figure that these results give, with its data, in the folder.

    shown: their tables, where they were made already. painters: that draw them side by side.
    """
    groups = settings(results)
    if shown is None or len(shown) != len(groups):
        shown = [table for rows in groups.values() for table in tables(rows)]
    look = styles(cell.strategy_label for cell, _ in asked(results))
    jobs: list[Job] = []
    for (title, rows), scores in zip(groups.items(), shown, strict=True):
        metric = next(iter(headlines(rows[0][0].task.name, rows)), None)
        trained = trained_or_none(rows[0][0])
        group = Group(apart(rows, trained)[0], scores, metric, trained, look, title, folder / _stem(title))
        jobs += [partial(kind, group) for kind in charts.KINDS]
    for model, rows in curves.grouped(asked(results), lambda cell: cell.model.name).items():
        trained = next((length for cell, _ in rows if (length := trained_or_none(cell)) is not None), None)
        jobs.append(partial(charts.plans, model, rows, look, trained, folder / _stem(model)))
    parts = [job() for job in jobs] if painters is None else painters.draw(jobs)
    drawn = [figure for part in parts for figure in part]
    for figure in drawn:
        with figure.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([figure.header, *figure.rows])
    return drawn


def _stem(title: str) -> str:
    """A file's name, whose end tells long ones apart."""
    stem = re.sub(r"[^\w.-]+", "_", title)
    return stem if len(stem) <= 80 else f"{stem[:80]}-{digest_of(title)[:6]}"
