"""Computes cells on any workers, and saves every result when it is ready."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from pipelines.records import provenance
from pipelines.records.cells import Cell, Result, distinct
from pipelines.records.journal import Journal
from pipelines.records.leases import Watch
from pipelines.records.results import Store
from pipelines.workers import deaths, pool
from pipelines.workers.kept import kept_of
from pipelines.workers.schedule import Evaluator, evaluate
from pipelines.workers.sharing import shared

log = logging.getLogger(__name__)

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
        if resume and not start.for_memory:
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


def pooled(cells: Sequence[Cell], cluster: Any, store: Store, *, reuse: bool = True) -> Iterator[tuple[Cell, Result]]:
    """Compute cells as conf/cluster says. reuse: take documents of smaller cells that are finished."""
    evaluator = _reusing(cells, store) if reuse else None
    return pool.run(cells, workers(cluster, cells[0].device if cells else "cpu"), evaluator, journal=Journal(store))


def workers(cluster: Any, device: str) -> pool.Workers:
    """What conf/cluster says of workers on a device."""
    return pool.Workers(
        device, cluster.workers, cluster.cpus_per_worker, cluster.gpus_per_worker, cluster.retries, cluster.timeout
    )


def _reusing(cells: Sequence[Cell], store: Store) -> Evaluator | None:
    """An evaluator that has what smaller cells have computed; None: the usual one."""
    kept = kept_of(cells, store)
    return partial(evaluate, kept=kept) if kept else None


def _here(cells: Sequence[Cell], journal: Journal, reuse: bool) -> Iterator[tuple[Cell, Result]]:
    evaluator = _reusing(cells, journal.store) if reuse else None
    return pool.run(cells, pool.Workers(cells[0].device if cells else "cpu", count=1), evaluator, journal=journal)
