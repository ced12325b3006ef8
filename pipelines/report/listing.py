"""What a store holds, as tables: a row a sweep, or a row a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pipelines.choices.sweep import Sweep
from pipelines.records import removal
from pipelines.records.results import Store
from pipelines.report import frame, stored, tables
from pipelines.report.curves import Results
from pipelines.report.terminal import table

if TYPE_CHECKING:
    import pandas


def sweeps(store: Store, filters: dict[str, str]) -> list[dict[str, Any]]:
    """A record a sweep that has cells which the filters leave, the newest last."""
    records = []
    for spec in sorted(store.sweeps(), key=lambda spec: str(spec["created"])):
        rows = stored.rows_of_sweep(spec, store)
        kept = [row for row in rows if stored.fits(row, filters)]
        if not kept and (filters or not spec["cells"]):
            continue
        records.append(
            {
                "id": spec["id"],
                "created": str(spec["created"])[:19],
                "experiment": spec["experiment"],
                "label": Sweep.of(spec).label,
                "cells": len(spec["cells"]),
                **{status: count for status, count in tables.counts([result for _, result in kept]).items()},
                "command": spec["command"],
            }
        )
    return records


def show_sweeps(console: Console, records: Sequence[dict[str, Any]]) -> None:
    """The id of each with what it measured, and how its cells ended."""
    known = ("id", "created", "experiment", "label", "cells", "command")
    body = []
    for one in records:
        ends = ", ".join(f"{count} {status}" for status, count in one.items() if status not in known) or "no results"
        body.append([one["id"], one["experiment"], one["label"], ends])
    table(console, "", ("sweep", "experiment", "what", "results"), body)


def show_cells(console: Console, rows: Results) -> None:
    """A line a cell: its id, what it is, and its main numbers."""
    body = [[cell.id, result.status, cell.label, cell.dtype, tables.headline(cell, result)] for cell, result in rows]
    table(console, "", ("cell", "status", "what", "dtype", "numbers"), body)


def cells_frame(rows: Results) -> pandas.DataFrame:
    """As frame.to_frame, with what else tells cells apart: limit, seed and the digests of model, text and documents."""
    found = frame.to_frame(rows)
    found["limit"] = [cell.limit for cell, _ in rows]
    found["seed"] = [cell.seed for cell, _ in rows]
    found["fingerprint"] = [cell.model.fingerprint for cell, _ in rows]
    found["data"] = [cell.data for cell, _ in rows]
    found["digest"] = [result.digest for _, result in rows]
    return found.astype({"limit": "Int64"})


def sweeps_frame(records: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame(records)


def size_of(store: Store) -> int:
    """Bytes of the whole store."""
    return removal.size(store.root)
