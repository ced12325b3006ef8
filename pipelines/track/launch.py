"""`ropewalk grid`: what of a sweep is done already, the rest run, every result kept, recorded and shown."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from rich.console import Console

from pipelines import track
from pipelines.choices import estimate
from pipelines.choices.sweep import Sweep
from pipelines.models import earlier, load
from pipelines.records import provenance
from pipelines.records.cells import Cell, Refusal, Result, distinct
from pipelines.records.numbers import duration
from pipelines.records.results import Store
from pipelines.report import tables, terminal
from pipelines.tasks import registry
from pipelines.track import rebuild
from pipelines.track.recorder import Recorder, unrecorded
from pipelines.workers.compute import Run, compute, settled


def run(
    sweep: Sweep,
    store: Store,
    compute_cells: Run,
    *,
    force: bool = False,
    retry: bool = False,
    console: Console = terminal.console,
) -> list[tuple[Cell, Result]]:
    """The whole of one launch: the sweep's cells with their results, in their order.

    Raises:
        Refusal: a model or a text is not what its cells need; nothing has run then.
        KeyboardInterrupt: after Ctrl-C. What was finished is recorded and shown.
    """
    cells = distinct(sweep.cells)
    done = settled(cells, store, force=force, retry=retry)
    died = [cell for cell in cells if cell.id in done and not done[cell.id].finished]
    if not force:
        done |= taken_over([cell for cell in cells if cell.id not in done], store, console)
    todo = [cell for cell in cells if cell.id not in done]
    console.print(counted(len(sweep.cells), len(sweep.cells) - len(cells), len(done) - len(died), len(todo)))
    for cell in died:
        console.print(f"left out: {cell.label}: {done[cell.id].error_line}")
    if otherwise := provenance.made_otherwise(result.provenance for result in done.values()):
        console.print(otherwise)
    # MLflow is imported while transformers is. A daemon: an import that Ctrl-C tore apart never ends in another thread.
    aside = threading.Thread(target=_warm, daemon=True)
    aside.start()
    prepare(todo)
    aside.join()
    if todo and (expected := estimate.sentence(todo, store)):
        console.print(expected)
    results = dict(done)
    store.save_sweep(sweep.id, sweep.spec())
    recorder = Recorder(partial(track.Tracker.open, sweep, store), partial(rebuild.record_anew, sweep, store))
    recorder.submit(lambda _: rebuild.record_left_over(store))
    recorder.submit(partial(_recall, rows=_rows(sweep, done)))
    progress, others, interrupted = _Progress(todo, console), set[str](), True
    computed = partial(compute, force=force, retry=retry, say=console.print, elsewhere=others)
    try:
        for cell, result in computed(todo, store, compute_cells, progress, sweep.command_of):
            results[cell.id] = result
            if cell.id in others:
                recorder.submit(partial(_recall, rows=_rows(sweep, {cell.id: result})))
            else:
                recorder.submit(partial(_record, cells=sweep.bearing(cell.id), result=result))
        interrupted = False
    finally:  # what there is after Ctrl-C is worth a table too
        if rows := [(cell, results[cell.id]) for cell in sweep.cells if cell.id in results]:
            shown = tables.tables(rows)
            recorder.submit(lambda tracker: tracker.conclude(rows, shown))
            tables.show(console, rows, shown, store)
            console.print(f"results: {store.root}")
        if reason := recorder.close(interrupted=interrupted, say=console.print):
            store.mark_unrecorded(sweep.id)
            console.print(unrecorded(reason))
    return rows


def _warm() -> None:
    with suppress(Exception):  # recording says it, in a sentence
        track.warm()


def taken_over(cells: Sequence[Cell], store: Store, console: Console) -> dict[str, Result]:
    """Results of earlier versions of these cells, by id, kept anew where they still hold; what does not is said."""
    before = earlier.results(cells, store)
    for cell in cells:
        if cell.id in before.taken:
            store.save(cell, before.taken[cell.id])
    if before.sentence:
        console.print(before.sentence)
    return before.taken


def _record(tracker: track.Tracker, cells: Sequence[Cell], result: Result) -> None:
    tracker.record(cells, result)


def _recall(tracker: track.Tracker, rows: Sequence[tuple[Cell, Result]]) -> None:
    tracker.recall(rows)


def _rows(sweep: Sweep, results: Mapping[str, Result]) -> list[tuple[Cell, Result]]:
    """Each result with the choices that come to its cell."""
    return [(cell, result) for cell_id, result in results.items() for cell in sweep.bearing(cell_id)]


def counted(cells: int, duplicates: int, done: int, todo: int) -> str:
    """How many cells a grid has, and what becomes of them, in a line."""
    return (
        f"{cells} cell{'' if cells == 1 else 's'}: {duplicates} duplicate{'' if duplicates == 1 else 's'} "
        f"(same plan and text), {done} finished before, {todo} to run"
    )


def prepare(cells: Sequence[Cell]) -> None:
    """Find out before any model loads whether every cell has the files and the text that it needs.

    Raises:
        Refusal: one line for each distinct reason.
    """
    refused = dict[str, None]()
    needed = {(cell.model, cell.task, cell.length, cell.limit, cell.seed) for cell in cells}
    # Task by task: the text that one encodes is still remembered for the next length.
    for model, task, length, limit, seed in sorted(needed, key=lambda row: (row[1].name, row[2])):
        try:
            load.check(model)
            registry.prepare(task, load.tokenizer(model), length=length, limit=limit, seed=seed)
        except Refusal as reason:
            refused[str(reason)] = None
    if refused:
        raise Refusal("\n".join(refused))


class _Progress:
    """A line a finished cell, with the time that the rest should take."""

    def __init__(self, todo: Sequence[Cell], console: Console = terminal.console) -> None:
        self.console = console
        self.left = {cell.id: _work(cell) for cell in todo}
        self.total, self.spent, self.seconds = len(todo), 0.0, 0.0
        self.start = time.monotonic()

    def __call__(self, cell: Cell, result: Result) -> None:
        work = self.left.pop(cell.id, 0.0)
        if "seconds" in result.cost:
            self.spent += work
            self.seconds += result.cost["seconds"]
        number = f"{self.total - len(self.left):>{len(str(self.total))}}/{self.total}"
        eta = f"  left {duration(self.remaining())}" if self.left and self.spent else ""
        self.console.print(f"{number}  {line(cell, result)}{eta}")
        sys.stdout.flush()

    def remaining(self) -> float:
        """Seconds: by what the finished cells took themselves, as the start of workers and models comes only once."""
        at_once = max(1.0, self.seconds / (time.monotonic() - self.start))
        return self.seconds / self.spent * sum(self.left.values()) / at_once


def line(cell: Cell, result: Result) -> str:
    """One finished cell in a terminal line."""
    return f"{result.status:<8} {cell.label}  {tables.headline(cell, result)}"


def _work(cell: Cell) -> float:
    """Relative cost, for the time left."""
    windows, context = estimate.pieces(cell)
    return windows * context * estimate.growth(context)
