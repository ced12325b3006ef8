"""A grid asked for again of which nothing is new: what was said of it then, and where it is recorded.

mlruns/again/<key>.json    of a sweep that was concluded and recorded: its id, and what the terminal showed
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.choices.sweep import Sweep
from pipelines.records import provenance
from pipelines.records.cells import Cell, Result, digest_of
from pipelines.records.public import public
from pipelines.records.results import Store
from pipelines.track.database import DATABASE, has_own_database

REPORTING = ("pipelines/report", "pipelines/track", "rope")
"""Rooms whose code decides what is shown and recorded, beside what computes."""


@dataclass(frozen=True)
class Conclusion:
    """sweep: its id. text: as it was shown, for the same kind of terminal. files: that must still be there."""

    sweep: str
    text: str
    files: list[str] = field(default_factory=list)


def key(sweep: Sweep, rows: Sequence[tuple[Cell, Result]], cost: float, terminal: Sequence[Any]) -> str:
    """What is other when anything is that is shown or recorded of a sweep.

    rows: of all its cells. cost: as it is recommended by. terminal: its width and colours.
    """
    return digest_of(
        {
            "cells": [cell.spec() for cell in sweep.cells],
            "results": [
                (result.cell_id, result.status, str(result.provenance.get("at")), result.digest) for _, result in rows
            ],
            "command": sweep.command,
            "cost": cost,
            "code": [provenance.version(), provenance.measuring(), provenance.state(REPORTING)],
            "where": os.environ.get("MLFLOW_TRACKING_URI", ""),
            "shown": [*terminal],
        }
    )


def earlier(store: Store, name: str) -> Conclusion | None:
    """The conclusion of a sweep with this key, if all that it made is still there."""
    with suppress(OSError, ValueError, TypeError):
        found = Conclusion(**json.loads(_file(store, name).read_text(encoding="utf-8")))
        there = [store.sweep(found.sweep) / "sweep.json", *(store.root / file for file in found.files)]
        there += [store.root / DATABASE] if has_own_database() else []
        if all(file.exists() for file in there) and not any(True for _ in store.unrecorded()):
            return found
    return None


def keep(store: Store, name: str, conclusion: Conclusion) -> None:
    """Note a conclusion; where that cannot be written, the grid is concluded anew next time."""
    with suppress(OSError):
        file = _file(store, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        files = [os.path.relpath(file, store.root) for file in conclusion.files]
        shown = replace(conclusion, text=public(conclusion.text), files=files)
        temporary.write_text(json.dumps(asdict(shown)), encoding="utf-8")
        temporary.replace(file)


def _file(store: Store, name: str) -> Path:
    return store.root / "again" / f"{name}.json"
