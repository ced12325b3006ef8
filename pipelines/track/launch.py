"""`ropewalk grid`: what of a sweep is done already, the rest run, every result kept, recorded and shown."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial

from rich.console import Console

from pipelines import track
from pipelines.choices import estimate
from pipelines.choices.sweep import Sweep
from pipelines.models import earlier
from pipelines.records import provenance
from pipelines.records.cells import Cell, Result, distinct
from pipelines.records.phases import timed
from pipelines.records.results import Store
from pipelines.report import page, tables, terminal
from pipelines.report.painters import MOST, Painters
from pipelines.report.progress import Events, GridProgress
from pipelines.report.recommend import MAX_SHORT_COST, recommendations
from pipelines.track import again, rebuild
from pipelines.track.recorder import Recorder, unrecorded
from pipelines.workers import ready
from pipelines.workers.compute import Crew, Run, compute, settled

CORES = 8
"""Of a machine on which figures are drawn side by side, by processes that begin while other work is done here."""

AT_MOST = 2.0
"""Seconds that other work waits for cells to be with workers that stay: a thread that imports makes it take longer."""


def run(
    sweep: Sweep,
    store: Store,
    compute_cells: Run | Crew,
    *,
    force: bool = False,
    retry: bool = False,
    console: Console = terminal.console,
    events: Events | None = None,
    advance_notes: Callable[[Sequence[Cell]], Iterable[str]] | None = None,
    max_short_cost: float = MAX_SHORT_COST,
) -> list[tuple[Cell, Result]]:
    """The whole of one launch: the sweep's cells with their results, in their order.

    events: is told of all that happens, as plain data. advance_notes: sentences to say of the cells that are to be
    computed, by default what they take; not asked for where there are none. max_short_cost: share that a strategy may
    cost at short lengths and be recommended.

    Raises:
        Refusal: a model or a text is not what its cells need; nothing has run then.
        KeyboardInterrupt: after Ctrl-C. What was finished is recorded and shown.
    """
    cells = distinct(sweep.cells)
    done = _finished(sweep, cells, store, force=force, retry=retry, console=console)
    todo = [cell for cell in cells if cell.id not in done]
    start = {"event": "start", "store": str(store.root), "cells": len(cells), "todo": len(todo)}
    if not todo and (found := again.earlier(store, _key(sweep, done, max_short_cost, console))) is not None:
        if events is not None:
            events({**start, "sweep": found.sweep})
        console.out(found.text, end="")
        return [(cell, done[cell.id]) for cell in sweep.cells]
    notes = partial(advance_notes or partial(_estimated, store=store), todo)
    away = _away(compute_cells)
    when = partial(away.wait, AT_MOST)
    noted = _prepare(todo, compute_cells, console, notes, when) if todo else None
    painters = _painters(todo, compute_cells) if not console.quiet else None
    threading.Thread(target=_after, args=(when, partial(page.warm, painters)), daemon=True).start()
    results = dict(done)
    store.save_sweep(sweep.id, sweep.spec())
    recorder = Recorder(partial(_opened, when, sweep, store), partial(rebuild.record_anew, sweep, store))
    recorder.submit(lambda _: rebuild.record_left_over(store))
    recorder.submit(partial(_recall, rows=_rows(sweep, done)))
    if events is not None:
        events({**start, "sweep": sweep.id})
    others, interrupted = set[str](), True
    computed = partial(compute, force=force, retry=retry, elsewhere=others)
    try:
        with GridProgress(todo, console, events, when) as progress:
            for cell, result in computed(todo, store, compute_cells, progress, sweep.command_of, say=progress.say):
                results[cell.id] = result
                if cell.id in others:
                    recorder.submit(partial(_recall, rows=_rows(sweep, {cell.id: result})))
                else:
                    recorder.submit(partial(_record, cells=sweep.bearing(cell.id), result=result))
        interrupted = False
    finally:  # what there is after Ctrl-C is worth a table too
        away.set()
        if noted is not None:
            noted.join()
        if rows := [(cell, results[cell.id]) for cell in sweep.cells if cell.id in results]:
            concluded = _conclude(
                sweep, rows, store, recorder, painters, interrupted=interrupted, cost=max_short_cost, console=console
            )
        if painters is not None:
            painters.close()
        if reason := recorder.close(interrupted=interrupted, say=console.print):
            store.mark_unrecorded(sweep.id)
            console.print(unrecorded(reason))
        elif rows and not interrupted and not console.quiet:
            again.keep(store, _key(sweep, results, max_short_cost, console), concluded)
    return rows


@timed("finished cells found")
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


def _estimated(todo: Sequence[Cell], store: Store) -> list[str]:
    return [estimate.sentence(todo, estimate.Newest(store))]


@timed("preparation")
def _prepare(
    todo: Sequence[Cell],
    compute_cells: Run | Crew,
    console: Console,
    notes: Callable[[], Iterable[str | None]],
    when: Callable[[], object],
) -> threading.Thread | None:
    """Cells made ready, and the notes said; MLflow is imported while transformers is.

    when: as `_after`. Returns what still says the notes, beside cells that are computed on workers that stay: these
    wait for nothing.
    """

    def say() -> None:
        for said in filter(None, notes()):
            console.print(said)

    # A daemon: an import that Ctrl-C tore apart never ends in another thread.
    aside = threading.Thread(target=_warm, daemon=True)

    def meanwhile() -> None:  # not before Ray has begun, which it would slow down
        aside.start()
        say()

    if isinstance(compute_cells, Crew) and compute_cells.find(todo, console.print):
        compute_cells.prepare(todo, console.print)
        saying = threading.Thread(target=_after, args=(when, say), daemon=True)
        saying.start()
        return saying
    if isinstance(compute_cells, Crew) and not compute_cells.computes_here(todo):
        compute_cells.prepare(todo, console.print, meanwhile)
        return None
    aside.start()
    ready.prepare(todo)
    aside.join()
    say()
    return None


def _key(sweep: Sweep, results: Mapping[str, Result], cost: float, console: Console) -> str:
    rows = [(cell, results[cell.id]) for cell in sweep.cells if cell.id in results]
    return again.key(sweep, rows, cost, (console.width, console.is_terminal, console.color_system))


@timed("conclusion")
def _conclude(
    sweep: Sweep,
    rows: Sequence[tuple[Cell, Result]],
    store: Store,
    recorder: Recorder[track.Tracker],
    painters: Painters | None,
    *,
    interrupted: bool,
    cost: float,
    console: Console,
) -> again.Conclusion:
    """The tables, the answer, the page, and where all of it lies; returns what was shown."""
    shown = tables.tables(rows)
    twin, memory = terminal.twin(console)
    tables.show(twin, rows, shown, store)
    answers = recommendations(rows, max_short_cost=cost, command=sweep.command)
    for answer in answers:
        twin.print("\n".join(filter(None, [*answer.sentences, answer.command])))
    answered = memory.getvalue()
    console.out(answered, end="")
    recorder.submit(lambda tracker: tracker.conclude(rows, shown))  # while figures are drawn
    report, place = None, ""
    if not interrupted:
        report, place = page.attempt(
            rows, store.sweep(sweep.id), sweeps=[sweep], shown=shown, answers=answers, painters=painters
        )
    recorder.submit(lambda tracker: tracker.finish(report))
    twin.print("\n".join(filter(None, [place, f"results: {store.root}"])))
    console.out(memory.getvalue()[len(answered) :], end="")
    return again.Conclusion(sweep.id, memory.getvalue(), [] if report is None else [str(report.html)])


def _painters(todo: Sequence[Cell], compute_cells: Run | Crew) -> Painters | None:
    """What draws figures beside this process, where this one or its processor has other work meanwhile."""
    many = (os.cpu_count() or 1) >= CORES
    if not todo:  # MLflow is imported meanwhile
        painters = Painters(MOST if many else 1)
        painters.begin()
        return painters
    elsewhere = isinstance(compute_cells, Crew) and not compute_cells.computes_here(todo)
    return Painters(MOST) if many and elsewhere else None


def _away(compute_cells: Run | Crew) -> threading.Event:
    """Set as soon as cells have what they need of this process: a crew's own, or at once."""
    if isinstance(compute_cells, Crew):
        return compute_cells.away
    away = threading.Event()
    away.set()
    return away


def _after(when: Callable[[], object], work: Callable[[], object]) -> None:
    """Other work, in a thread of its own. when: returns as soon as there is time for it."""
    when()
    work()


def _opened(when: Callable[[], object], sweep: Sweep, store: Store) -> AbstractContextManager[track.Tracker]:
    when()
    return track.Tracker.open(sweep, store)


@timed("MLflow imported")
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
