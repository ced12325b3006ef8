"""`ropewalk grid`: what of a sweep is done already, the rest run, every result kept, recorded and shown."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from rich.console import Console

from pipelines import track
from pipelines.choices import estimate
from pipelines.choices.sweep import Sweep
from pipelines.models import earlier, load
from pipelines.records import provenance
from pipelines.records.cells import Cell, Refusal, Result, distinct
from pipelines.records.results import Store
from pipelines.report import page, tables, terminal
from pipelines.report.progress import Events, GridProgress
from pipelines.report.recommend import MAX_SHORT_COST, recommendations
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
    events: Events | None = None,
    foretold: Callable[[], Iterable[str]] = tuple,
    max_short_cost: float = MAX_SHORT_COST,
) -> list[tuple[Cell, Result]]:
    """The whole of one launch: the sweep's cells with their results, in their order.

    events: is told of all that happens, as plain data. foretold: sentences to say before anything is computed; not
    asked for where nothing is. max_short_cost: share that a strategy may cost at short lengths and be recommended.

    Raises:
        Refusal: a model or a text is not what its cells need; nothing has run then.
        KeyboardInterrupt: after Ctrl-C. What was finished is recorded and shown.
    """
    cells = distinct(sweep.cells)
    done = _finished(sweep, cells, store, force=force, retry=retry, console=console)
    todo = [cell for cell in cells if cell.id not in done]
    # MLflow is imported while transformers is. A daemon: an import that Ctrl-C tore apart never ends in another thread.
    aside = threading.Thread(target=_warm, daemon=True)
    aside.start()
    prepare(todo)
    aside.join()
    threading.Thread(target=page.warm, daemon=True).start()  # while cells compute
    if todo:
        for said in filter(None, [*foretold(), estimate.sentence(todo, store)]):
            console.print(said)
    results = dict(done)
    store.save_sweep(sweep.id, sweep.spec())
    recorder = Recorder(partial(track.Tracker.open, sweep, store), partial(rebuild.record_anew, sweep, store))
    recorder.submit(lambda _: rebuild.record_left_over(store))
    recorder.submit(partial(_recall, rows=_rows(sweep, done)))
    if events is not None:
        events({"event": "start", "sweep": sweep.id, "store": str(store.root), "cells": len(cells), "todo": len(todo)})
    others, interrupted = set[str](), True
    computed = partial(compute, force=force, retry=retry, elsewhere=others)
    try:
        with GridProgress(todo, console, events) as progress:
            for cell, result in computed(todo, store, compute_cells, progress, sweep.command_of, say=progress.say):
                results[cell.id] = result
                if cell.id in others:
                    recorder.submit(partial(_recall, rows=_rows(sweep, {cell.id: result})))
                else:
                    recorder.submit(partial(_record, cells=sweep.bearing(cell.id), result=result))
        interrupted = False
    finally:  # what there is after Ctrl-C is worth a table too
        if rows := [(cell, results[cell.id]) for cell in sweep.cells if cell.id in results]:
            _conclude(sweep, rows, store, recorder, interrupted=interrupted, cost=max_short_cost, console=console)
        if reason := recorder.close(interrupted=interrupted, say=console.print):
            store.mark_unrecorded(sweep.id)
            console.print(unrecorded(reason))
    return rows


def _finished(
    sweep: Sweep, cells: Sequence[Cell], store: Store, *, force: bool, retry: bool, console: Console
) -> dict[str, Result]:
    """The results that need no computing, by id; says how many there are, and what of them a reader must know."""
    done = settled(cells, store, force=force, retry=retry)
    died = [cell for cell in cells if cell.id in done and not done[cell.id].finished]
    if not force:
        done |= taken_over([cell for cell in cells if cell.id not in done], store, console)
    finished = len(done) - len(died)
    console.print(counted(len(sweep.cells), len(sweep.cells) - len(cells), finished, len(cells) - len(done)))
    for cell in died:
        console.print(left_out(cell, done[cell.id]))
    if otherwise := provenance.made_otherwise(result.provenance for result in done.values()):
        console.print(otherwise)
    return done


def _conclude(
    sweep: Sweep,
    rows: Sequence[tuple[Cell, Result]],
    store: Store,
    recorder: Recorder[track.Tracker],
    *,
    interrupted: bool,
    cost: float,
    console: Console,
) -> None:
    """The tables, the answer, the page, and where all of it lies."""
    shown = tables.tables(rows)
    tables.show(console, rows, shown, store)
    answers = recommendations(rows, max_short_cost=cost, command=sweep.command)
    for answer in answers:
        console.print("\n".join(filter(None, [*answer.sentences, answer.command])))
    report, place = None, ""
    if not interrupted:
        report, place = page.attempt(rows, store.sweep(sweep.id), sweeps=[sweep], shown=shown, answers=answers)
    recorder.submit(lambda tracker: tracker.conclude(rows, shown, report))
    console.print("\n".join(filter(None, [place, f"results: {store.root}"])))


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


def left_out(cell: Cell, result: Result) -> str:
    """What to say of a cell whose process was killed in an earlier launch; the reason says how to try it again."""
    return f"left out: {cell.label}: {result.error_line}"


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
