"""Computes cells on any workers, and saves every result when it is ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from pipelines.records import provenance
from pipelines.records.cells import Cell, Result, distinct
from pipelines.records.results import Store
from pipelines.workers import pool

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
) -> Iterator[tuple[Cell, Result]]:
    """Compute cells and save every result when it is ready; finished ones are only read, unless forced."""
    done = {} if force else store.recall(cell.id for cell in cells)
    yield from ((cell, done[cell.id]) for cell in cells if cell.id in done)
    todo = distinct(cell for cell in cells if cell.id not in done)
    for cell, result in (run or _here)(todo):
        origin = {"code": provenance.code(), "at": datetime.now().astimezone().isoformat()}
        if command_of is not None:
            origin["command"] = command_of(cell)
        recorded = replace(result, provenance={**result.provenance, **origin}, error=_encodable(result.error))
        store.save(cell, recorded)
        if progress is not None:
            progress(cell, recorded)
        yield cell, recorded


def _encodable(text: str | None) -> str | None:
    """Text that any file and terminal takes: of an error, which may quote half a character of a document."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


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
