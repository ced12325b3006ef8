"""Which cells a launch has in hand, so that another one on the same store does not compute them too.

    mlruns/leases/<machine>-<pid>-<number>.json

One file a launch, with its process and its cells; its time of writing is renewed while the launch lives. It is removed
at the end; what a killed launch leaves is void: on this machine as soon as its process is gone, on another one when it
was not renewed for EXPIRY.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType

from filelock import FileLock

from pipelines.records.processes import is_running, machine, this_process
from pipelines.records.results import Store

log = logging.getLogger(__name__)

RENEWAL, EXPIRY = 30.0, 600.0
"""Seconds between renewals, and without one until a lease of another machine is void."""

PATIENCE = 30.0
"""Seconds for another process to end its look at the leases."""


class Lease:
    """The cells that one launch has in hand; they are given up at the end of the block.

    Where leases cannot be written (a disk that is full, or knows no locks) every cell is given: computed twice is
    better than not at all.
    """

    def __init__(self, store: Store) -> None:
        self._folder = store.root / "leases"
        self._file = self._folder / f"{machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        self._cells: set[str] = set()
        self._end = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._renewal.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def claim(self, cell_ids: Iterable[str]) -> set[str]:
        """Those of the cells that no living launch has in hand: from now on, this one has."""
        wanted = set(cell_ids)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder / "lock", timeout=PATIENCE):
                free = wanted - {cell_id for held in self._others() for cell_id in held}
                self._cells |= free
                self._write()
            return free
        except OSError as error:
            log.warning("what other launches compute is not known (%s): nothing is left to them", error)
            return wanted

    def _others(self) -> Iterator[set[str]]:
        """The cells of every other lease that holds; void ones are removed."""
        now = _now(self._folder)
        for file in self._folder.glob("*.json"):
            if file == self._file:
                continue
            with contextlib.suppress(OSError):  # removed meanwhile
                age = now - file.stat().st_mtime
                try:
                    lease = json.loads(file.read_text(encoding="utf-8"))
                    runs, cells = is_running(str(lease["process"])), set(map(str, lease["cells"]))
                except (ValueError, KeyError, TypeError):
                    runs, cells = False, set()
                if age < EXPIRY if runs is None else runs:
                    yield cells
                else:
                    file.unlink(missing_ok=True)

    def _write(self) -> None:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        body = {"process": this_process(), "since": since, "cells": sorted(self._cells)}
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(body), encoding="utf-8")
        temporary.replace(self._file)

    def _renew(self) -> None:
        while not self._end.wait(RENEWAL):
            with contextlib.suppress(OSError):
                if self._cells:
                    os.utime(self._file)


def lives(store: Store, process: str) -> bool:
    """Whether a launch's process runs; of another machine's, whether it holds a lease that was renewed."""
    runs = is_running(process)
    if runs is not None:
        return runs
    where, pid, _ = process.rsplit(":", 2)
    for file in (store.root / "leases").glob(f"{where}-{pid}-*.json"):
        with contextlib.suppress(OSError):
            return _now(file.parent) - file.stat().st_mtime < EXPIRY
    return False


def _now(folder: Path) -> float:
    """The time by the clock of the disk, which may be another machine's."""
    (folder / "lock").touch()
    return (folder / "lock").stat().st_mtime


class Watch:
    """The results of cells that another launch has in hand: those count that were written after the watch began."""

    def __init__(self, store: Store, cell_ids: Iterable[str]) -> None:
        self._store = store
        self._before = {cell_id: self._state(cell_id) for cell_id in cell_ids}

    def ready(self) -> list[str]:
        """The cells whose results came since; each is named once."""
        new = [cell_id for cell_id, before in self._before.items() if self._state(cell_id) not in (before, None)]
        for cell_id in new:
            del self._before[cell_id]
        return new

    def _state(self, cell_id: str) -> tuple[int, int] | None:
        try:
            now = self._path(cell_id).stat()
        except OSError:
            return None
        return now.st_mtime_ns, now.st_ino

    def _path(self, cell_id: str) -> Path:
        return self._store.cell(cell_id) / "result.json"
