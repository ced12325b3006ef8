"""What a store holds on disk, and taking parts of it away: sweeps, cells, and what nothing names any more."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.records.leases import Lease
from pipelines.records.refusal import Refusal
from pipelines.records.results import STARTED, Store

CELL_ID = re.compile(r"\b[0-9a-f]{12}\b")

FRESH = 3600.0
"""Seconds for which a temporary file may still be written to."""


@dataclass(frozen=True)
class Removable:
    """Files and folders to be taken away, and why, in a line. cells: those that no launch may have in hand."""

    reason: str
    paths: tuple[Path, ...]
    cells: frozenset[str] = frozenset()

    @property
    def bytes(self) -> int:
        return sum(map(size, self.paths))


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.lstat().st_size for file in files)


def of_sweeps(store: Store, sweep_ids: Iterable[str]) -> Iterator[Removable]:
    """Sweeps, each with those of its cells that no other sweep and no search names."""
    going = set(sweep_ids)
    sweeps = {str(sweep["id"]): _cells(sweep) for sweep in store.sweeps()}
    kept = {cell_id for name, cells in sweeps.items() if name not in going for cell_id in cells} | _of_searches(store)
    for name in sorted(going):
        own = frozenset(cell_id for cell_id in sweeps.get(name, ()) if cell_id not in kept)
        kept |= own  # of two that share cells, the first takes them
        folders = tuple(folder for cell_id in sorted(own) if (folder := store.cell(cell_id)).is_dir())
        shared = len(sweeps.get(name, ())) - len(own)
        others = f"; {shared} more are also another's, and stay" if shared else ""
        reason = f"sweep {name} with {len(folders)} cell{'s'[: len(folders) != 1]} of its own{others}"
        yield Removable(reason, (store.root / "sweeps" / name, *folders), own)


def of_cells(store: Store, cell_ids: Iterable[str]) -> Iterator[Removable]:
    """Cells. Sweeps that name them stay, and show without them."""
    ids = frozenset(cell_ids)
    if folders := tuple(folder for cell_id in sorted(ids) if (folder := store.cell(cell_id)).is_dir()):
        yield Removable(f"{len(folders)} cell{'s'[: len(folders) != 1]}", folders, ids)


def orphans(store: Store) -> Iterator[Removable]:
    """What nothing names or reads any more: files set aside as damaged, left-over temporary files, folders without a
    result or a sweep, and cells that neither a sweep nor a search names."""
    places = [folder for name in ("cells", "sweeps", "leases", "tune") if (folder := store.root / name).is_dir()]
    files = [file for place in places for file in place.rglob("*") if file.is_file()]
    damaged = tuple(file for file in files if re.search(r"\.corrupt-\d+$", file.name))
    old = time.time() - FRESH
    temporary = tuple(f for f in files if re.search(r"\.\d+\.tmp$", f.name) and f.lstat().st_mtime < old)
    empty = tuple(filter(_idle, _folders(store, "cells")))
    lost = tuple(folder for folder in _folders(store, "sweeps") if not (folder / "sweep.json").exists())
    for reason, paths in (
        ("damaged files that were set aside", damaged),
        ("temporary files of launches that were killed", temporary),
        ("folders of cells without a result", empty),
        ("folders of sweeps that are gone", lost),
    ):
        if paths:
            yield Removable(f"{len(paths)} {reason}", paths)
    named = {cell_id for sweep in store.sweeps() for cell_id in _cells(sweep)} | _of_searches(store)
    left = {folder.name for folder in _folders(store, "cells") if (folder / "result.json").is_file()} - named
    if left and not _searching(store):
        folders = tuple(store.cell(cell_id) for cell_id in sorted(left))
        yield Removable(f"{len(left)} cells that no sweep and no search names", folders, frozenset(left))


def remove(store: Store, parts: Sequence[Removable]) -> None:
    """Take them away, unless a launch that runs has one of the cells in hand.

    Raises:
        Refusal: one has; nothing was removed then.
    """
    cells = {cell_id for part in parts for cell_id in part.cells}
    with Lease(store) as lease:
        if held := cells - lease.claim(cells):
            raise Refusal(f"{len(held)} of these cells are being computed by a launch on this store: wait for its end")
        for path in (path for part in parts for path in part.paths):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _folders(store: Store, name: str) -> list[Path]:
    return sorted(path for path in (store.root / name).glob("*") if path.is_dir())


def _idle(folder: Path) -> bool:
    """Whether a cell's folder has neither a result nor a start, and nobody writes into it."""
    if (folder / "result.json").exists() or (folder / STARTED).exists():
        return False
    return folder.stat().st_mtime < time.time() - FRESH


def _cells(sweep: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(str(cell["id"]) for cell in sweep["cells"]))


def _of_searches(store: Store) -> set[str]:
    """Every cell that a search names."""
    files = store.root.glob("tune/*/*.json")
    return {found for file in files for found in CELL_ID.findall(file.read_text(encoding="utf-8", errors="replace"))}


def _searching(store: Store) -> bool:
    """Whether a search is not finished: its cells are named nowhere yet, and it goes on with them."""
    return any(not (folder / "study.json").is_file() for folder in _folders(store, "tune"))
