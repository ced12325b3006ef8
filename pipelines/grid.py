"""`ropewalk grid`: what of a sweep is done already, the rest run, every result kept, recorded and shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import Any

from rich.console import Console

from pipelines import estimate, models, plan, pool, provenance, report, tasks, track
from pipelines.cells import Cell, Refusal, Result, distinct
from pipelines.results import Store
from pipelines.sweep import Sweep

Run = Callable[[Sequence[Cell]], Iterator[tuple[Cell, Result]]]
"""Computes cells and yields each with its result as it is there."""

# A log file has no width of its own; a table should not be folded there as on a narrow terminal.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def run(sweep: Sweep, store: Store, compute_cells: Run, *, force: bool = False) -> list[Result]:
    """The whole of one launch: the results of the sweep's cells, in their order.

    Raises:
        Refusal: a model or a text is not what its cells need; nothing has run then.
    """
    cells = distinct(sweep.cells)
    done = {} if force else store.recall(cell.id for cell in cells)
    todo = [cell for cell in cells if cell.id not in done]
    asked, equal = len(sweep.cells), len(sweep.cells) - len(cells)
    console.print(
        f"{asked} cell{'s' if asked > 1 else ''} asked for: {equal} with the plan and text of another, "
        f"{len(done)} finished before, {len(todo)} to run"
    )
    with ThreadPoolExecutor(1) as aside:  # MLflow is imported while transformers is
        aside.submit(track.warm)
        prepare(todo)
    if todo and (told := plan.told(todo, store)):
        console.print(told)
    results = dict(done)
    store.save_sweep(sweep.id, sweep.spec())
    with track.Tracker.open(sweep, store) as tracker:
        for cell in cells:
            if cell.id in done:
                tracker.record(sweep.bearing(cell.id), done[cell.id], cached=True)
        try:
            for cell, result in compute(todo, store, compute_cells, _Progress(todo), sweep.command_of, force=True):
                results[cell.id] = result
                tracker.record(sweep.bearing(cell.id), result, cached=False)
        finally:  # what there is after Ctrl-C is worth a table too
            tracker.conclude([(cell, results[cell.id]) for cell in sweep.cells if cell.id in results])
            report.show(console, sweep, results, store)
    return [results[cell.id] for cell in sweep.cells if cell.id in results]


def compute(
    cells: Sequence[Cell], store: Store, run: Run | None = None, progress: Callable[[Cell, Result], None] | None = None,
    command_of: Callable[[Cell], str] | None = None, *, force: bool = False,
) -> Iterator[tuple[Cell, Result]]:  # fmt: skip
    """Compute cells and save every result as it comes; finished ones are only read, unless forced."""
    done = {} if force else store.recall(cell.id for cell in cells)
    yield from ((cell, done[cell.id]) for cell in cells if cell.id in done)
    todo = distinct(cell for cell in cells if cell.id not in done)
    for cell, result in (run or _here)(todo):
        made = {"code": provenance.code(), "at": datetime.now().astimezone().isoformat()}
        if command_of is not None:
            made["command"] = command_of(cell)
        told = replace(result, provenance={**result.provenance, **made})
        store.save(cell, told)
        if progress is not None:
            progress(cell, told)
        yield cell, told


def pooled(cells: Sequence[Cell], cluster: Any) -> Iterator[tuple[Cell, Result]]:
    """Compute cells as conf/cluster says."""
    return pool.run(cells, workers(cluster, cells[0].device if cells else "cpu"))


def workers(cluster: Any, device: str) -> pool.Workers:
    """What conf/cluster says of workers on a device."""
    return pool.Workers(
        device, cluster.workers, cluster.cpus_per_worker, cluster.gpus_per_worker, cluster.retries, cluster.timeout
    )


def _here(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
    return pool.run(cells, pool.Workers(cells[0].device if cells else "cpu", count=1))


def prepare(cells: Sequence[Cell]) -> None:
    """Find out before any model loads whether every cell has the text that it needs.

    Raises:
        Refusal: one line for each distinct reason.
    """
    refused = dict[str, None]()
    asked = {(cell.model, cell.task, cell.length, cell.limit, cell.seed) for cell in cells}
    # Task by task: the text that one encodes is still remembered for the next length.
    for model, task, length, limit, seed in sorted(asked, key=lambda row: (row[1].name, row[2])):
        try:
            tasks.prepare(task, models.load_tokenizer(model), length=length, limit=limit, seed=seed)
        except Refusal as reason:
            refused[str(reason)] = None
    if refused:
        raise Refusal("\n".join(refused))


class _Progress:
    """A line a finished cell, with the time that the rest should take."""

    def __init__(self, todo: Sequence[Cell]) -> None:
        self.left = {cell.id: _work(cell) for cell in todo}
        self.total, self.spent, self.seconds = len(todo), 0.0, 0.0
        self.start = time.monotonic()

    def __call__(self, cell: Cell, result: Result) -> None:
        work = self.left.pop(cell.id, 0.0)
        if "seconds" in result.cost:
            self.spent += work
            self.seconds += result.cost["seconds"]
        number = f"{self.total - len(self.left):>{len(str(self.total))}}/{self.total}"
        eta = f"  left {report.duration(self.remaining())}" if self.left and self.spent else ""
        console.print(f"{number}  {line(cell, result)}{eta}")
        sys.stdout.flush()

    def remaining(self) -> float:
        """Seconds: by what the finished cells took themselves, as the start of workers and models comes only once."""
        at_once = max(1.0, self.seconds / (time.monotonic() - self.start))
        return self.seconds / self.spent * sum(self.left.values()) / at_once


def line(cell: Cell, result: Result) -> str:
    """One finished cell in a terminal line."""
    return f"{result.status:<8} {cell.label}  {report.headline(cell, result)}"


def _work(cell: Cell) -> float:
    """Relative cost, for the time left."""
    return cell.length * estimate.growth(cell.length)
