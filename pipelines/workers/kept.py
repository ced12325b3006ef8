"""Documents that smaller cells have scored already, so that a larger one computes only the new ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.records.cells import Cell, Task, frozen
from pipelines.records.results import Store
from pipelines.tasks import registry
from pipelines.tasks.documents import Kept

MOST = 2
"""Smaller cells whose documents a worker is handed, the largest first."""


@dataclass(frozen=True)
class KeptResult:
    """A finished result of the same cell but for its number of documents. provenance: where they were computed."""

    kept: Kept
    provenance: Mapping[str, Any]


def kept_of(cells: Sequence[Cell], store: Store) -> dict[str, list[KeptResult]]:
    """What smaller cells have of these, by their ids; {} where no smaller one is finished, as in any new grid."""
    folder = store.root / "cells"
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {cell.id: found for cell in cells if there and (found := _kept(cell, store, there))}


def _kept(cell: Cell, store: Store, there: set[str]) -> list[KeptResult]:
    found: list[KeptResult] = []
    for smaller in _smaller(cell):
        if smaller.id == cell.id or smaller.id not in there or len(found) == MOST:
            continue
        result = store.read(smaller.id)
        if result is not None and result.status == "ok" and result.documents:
            names = [name for name in result.metrics if name in result.documents[0]]
            found.append(KeptResult(Kept(smaller.id, result.digest, result.documents, names), result.provenance))
    return found


def _smaller(cell: Cell) -> Iterator[Cell]:
    """Cells of which some documents may be this one's."""
    if cell.task.name not in registry.OWN:
        return
    kind = registry.kind(cell.task.name)
    given = dict(cell.task.options)
    for options, limit in kind.smaller(registry.options_of(cell.task, cell.limit), cell.limit):
        task = Task(cell.task.name, frozen({**given, **options})) if options else cell.task
        yield replace(cell, limit=limit, task=task)
