"""Computes cells on any workers, and saves every result when it is ready."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from pipelines.records import provenance
from pipelines.records.cells import Cell, Result, distinct
from pipelines.records.journal import Journal
from pipelines.records.leases import Watch
from pipelines.records.results import Store
from pipelines.workers import deaths, pool, warm
from pipelines.workers.actors import Pool
from pipelines.workers.kept import kept_of
from pipelines.workers.ready import Apart, prepare
from pipelines.workers.schedule import Evaluator, evaluate
from pipelines.workers.sharing import shared
from pipelines.workers.signals import interruptible

log = logging.getLogger(__name__)

ENDED = "the workers of `ropewalk up` have ended meanwhile: going on without them"

Run = Callable[[Sequence[Cell]], Iterator[tuple[Cell, Result]]]
"""Computes cells and yields each with its result when it is ready."""


def compute(
    cells: Sequence[Cell],
    store: Store,
    run: Run | None = None,
    progress: Callable[[Cell, Result], None] | None = None,
    command_of: Callable[[Cell], str] | None = None,
    *,
    force: bool = False,
    retry: bool = False,
    resume: bool = False,
    alone: bool = False,
    say: Callable[[str], object] = log.warning,
    elsewhere: set[str] | None = None,
) -> Iterator[tuple[Cell, Result]]:
    """Compute cells and save every result when it is ready; what `settled` has is only read.

    What another launch on the store has in hand is waited for, which `say` is told, unless this one is part of it
    (`alone`). elsewhere: takes the ids of all cells that were not computed here.
    """
    watch, journal = Watch(store, (cell.id for cell in cells)), Journal(store)
    done = settled(cells, store, force=force, retry=retry, resume=resume)
    elsewhere = set() if elsewhere is None else elsewhere
    elsewhere |= set(done)
    yield from ((cell, done[cell.id]) for cell in cells if cell.id in done)
    todo = distinct(cell for cell in cells if cell.id not in done)
    compute_all = run or partial(_here, journal=journal, reuse=not force)

    def begin(claimed: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        # A launch that had a cell in hand may have been killed by it since.
        dead = {} if retry or force else _dead(claimed, store, resume=resume)
        yield from ((cell, dead[cell.id]) for cell in claimed if cell.id in dead)
        yield from compute_all([cell for cell in claimed if cell.id not in dead])

    rows = ((*row, True) for row in begin(todo)) if alone else shared(todo, store, begin, say, watch)
    for cell, result, here in rows:
        if here:
            result = _stamped(result, {"command": command_of(cell)} if command_of is not None else {})
            store.save(cell, result)
            journal.end(cell.id)
        else:
            elsewhere.add(cell.id)
        if progress is not None:
            progress(cell, result)
        yield cell, result


def settled(
    cells: Sequence[Cell],
    store: Store,
    *,
    force: bool = False,
    retry: bool = False,
    resume: bool = False,
    keep: bool = True,
) -> dict[str, Result]:
    """The results of cells that need no computing, by id: finished ones, and those whose process was killed.

    A cell during which an earlier launch was killed gets its result here: oom where the kernel says so, else failed.
    One of which that launch kept forwards, and that no lack of memory ended, is computed: it goes on where it stood.

    force: none, all are to be computed anew. retry: neither what was killed nor what ran out of memory.
    resume: not what was killed without the kernel saying that it was for memory: a search cannot go on without it.
    keep: write down what is said of a cell that was killed; else nothing is written.
    """
    if force:
        return {}
    done = store.recall(cell.id for cell in cells)
    if retry:
        return {cell_id: result for cell_id, result in done.items() if result.status != "oom"}
    return done | _dead([cell for cell in cells if cell.id not in done], store, resume=resume, keep=keep)


def _dead(cells: Sequence[Cell], store: Store, *, resume: bool, keep: bool = True) -> dict[str, Result]:
    """The results of cells whose process was killed, by id."""
    by_id, journal, results = {cell.id: cell for cell in cells}, Journal(store), dict[str, Result]()
    for cell_id, start in journal.dead(by_id).items():
        if not start.for_memory and (resume or journal.went_on(cell_id)):
            continue
        result = store.read(cell_id) if start.died else None
        if result is None:
            how = f"the launch that computed it (since {start.at}) was killed"
            result = _stamped(deaths.killed(by_id[cell_id], for_memory=start.for_memory, how=how), {})
            if keep:
                store.save(by_id[cell_id], result)
                journal.bury(cell_id)
        results[cell_id] = result
    return results


def _stamped(result: Result, origin: dict[str, Any]) -> Result:
    """A result with what computed it and when, and an error that can be written."""
    at = {"code": provenance.code(), "at": datetime.now().astimezone().isoformat()}
    return replace(result, provenance={**result.provenance, **at, **origin}, error=_encodable(result.error))


def _encodable(text: str | None) -> str | None:
    """Text that any file and terminal takes: of an error, which may quote half a character of a document."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


class Crew:
    """The workers of one launch, as conf/cluster says: those that `ropewalk up` keeps, or its own.

    Where they are Ray's they start while the cells are prepared. reuse: take documents of smaller cells that are
    finished.

    Attributes:
        away: set as soon as no cell waits for this process to send it to workers that are kept.
    """

    def __init__(self, cluster: Any, store: Store, *, reuse: bool = True) -> None:
        self.cluster, self.store, self.reuse = cluster, store, reuse
        self.warm: warm.Warm | None = None
        self.begun: Pool | None = None
        self.away = threading.Event()
        self.away.set()

    def find(self, cells: Sequence[Cell], say: warm.Say) -> bool:
        """Look for workers that are kept, and whether there are any for these cells."""
        self.warm = warm.find(workers(self.cluster, cells[0].device), say)
        if self.warm is not None:
            self.away.clear()
        return self.warm is not None

    def computes_here(self, cells: Sequence[Cell]) -> bool:
        """Whether cells are computed in this process."""
        return self.warm is None and workers(self.cluster, cells[0].device).in_process

    def prepare(self, cells: Sequence[Cell], say: warm.Say, meanwhile: Callable[[], None] = lambda: None) -> None:
        """`ready.prepare`; while workers of Ray start, this process does what is to be done meanwhile.

        Raises:
            Refusal: cells cannot be computed; nothing has run then.
            LaunchEnded, KeyboardInterrupt: while Ray starts.
        """
        if self.warm is not None:
            try:
                return self.warm.prepare(cells)
            except warm.Gone:
                self._left(say)
        wanted = workers(self.cluster, cells[0].device)
        if wanted.in_process:
            prepare(cells)
            return meanwhile()
        aside = Apart(cells)
        try:
            self.begun = Pool(wanted, evaluate, Journal(self.store))
            with interruptible() as interruption:
                self.begun.begin(len(cells), interruption)
                meanwhile()
                while aside.is_running:
                    time.sleep(0.05)
                    if interruption.asked.is_set():
                        raise KeyboardInterrupt
            aside.finish()
        finally:
            aside.close()
        return None

    def __call__(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        if not cells:
            self.away.set()
        evaluator = _reusing(cells, self.store) if self.reuse else None
        wanted = workers(self.cluster, cells[0].device if cells else "cpu")
        left = {cell.id: cell for cell in cells}
        if self.warm is not None and cells:
            try:
                for cell, result in self.warm.run(cells, wanted, evaluator, self.store, self.away.set):
                    del left[cell.id]
                    yield cell, result
                return
            except warm.Gone:
                self._left(log.warning)
        begun, self.begun = self.begun, None
        started = {} if begun is None else {"begun": begun}
        yield from pool.run([*left.values()], wanted, evaluator, journal=Journal(self.store), **started)

    def _left(self, say: warm.Say) -> None:
        say(ENDED)
        self.close()

    def close(self) -> None:
        """Leave workers that are kept, and end those that nothing was given to."""
        self.away.set()
        if self.warm is not None:
            self.warm.close()
            self.warm = None
        if self.begun is not None:
            self.begun.close()
            self.begun = None


@contextmanager
def batches(cluster: Any, device: str, store: Store, say: warm.Say) -> Iterator[Run]:
    """Computes cells that come batch by batch, on workers that stay in between: those that `ropewalk up` keeps, which
    `say` is told, or some of its own."""
    wanted = workers(cluster, device)
    with ExitStack() as stack:
        kept = warm.find(wanted, say)
        if kept is not None:
            stack.callback(kept.close)
        own: Run | None = None

        def run(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
            nonlocal kept, own
            left = {cell.id: cell for cell in cells}
            if kept is not None and left:
                try:
                    for cell, result in kept.run(cells, wanted, None, store):
                        del left[cell.id]
                        yield cell, result
                    return
                except warm.Gone:
                    say(ENDED)
                    kept = None
            if own is None:
                own = stack.enter_context(pool.standing(wanted, journal=Journal(store)))
            yield from own([*left.values()])

        yield run


def workers(cluster: Any, device: str) -> pool.Workers:
    """What conf/cluster says of workers on a device."""
    return pool.Workers(
        device, cluster.workers, cluster.cpus_per_worker, cluster.gpus_per_worker, cluster.retries, cluster.timeout
    )


def _reusing(cells: Sequence[Cell], store: Store) -> Evaluator:
    """An evaluator that has what smaller cells have computed, and launches that were cut short."""
    return partial(evaluate, kept=kept_of(cells, store), store=store)


def _here(cells: Sequence[Cell], journal: Journal, reuse: bool) -> Iterator[tuple[Cell, Result]]:
    evaluator = _reusing(cells, journal.store) if reuse else None
    return pool.run(cells, pool.Workers(cells[0].device if cells else "cpu", count=1), evaluator, journal=journal)
