"""Which cells are being computed: a small file beside a cell's result, from its start to its end. What is left of it
after a launch was killed says which cells the launch died in.

    mlruns/cells/<id>/started.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

from pipelines.records import memory
from pipelines.records.leases import lives
from pipelines.records.processes import boot, machine, this_process
from pipelines.records.results import ANSWERS, STARTED, Store


@dataclass(frozen=True)
class Start:
    """The start of a cell.

    process: the launch's that has it in hand. boot: of its machine. at: local time. bytes: the memory that the cell was
    expected to take, None: not known. kills: `memory.kills()` then. kept: bytes of its answers that were kept before.
    died: its process was killed, and that has been said; it is not to be tried again unless asked for.
    """

    process: str
    boot: str
    at: str
    bytes: float | None = None
    kills: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    died: bool = False

    @property
    def for_memory(self) -> bool:
        """Whether the kernel has killed for memory since: known on its own machine, until that is switched off."""
        here = self.process.partition(":")[0] == machine() and self.boot == boot()
        return here and memory.killed_since(self.kills)


@dataclass(frozen=True)
class Journal:
    """The starts of a store's cells."""

    store: Store

    def start(self, cell_id: str, expected: float | None = None) -> Start:
        """Note that this process begins a cell. expected: bytes of memory."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        start = Start(this_process(), boot(), now, expected, memory.kills(), self._kept(cell_id))
        self._write(cell_id, start)
        return start

    def end(self, cell_id: str) -> None:
        """Forget that this process began a cell: it has ended, in whatever way, and killed nobody."""
        start = self._read(cell_id)
        if start is not None and not start.died and start.process == this_process():
            self._file(cell_id).unlink(missing_ok=True)

    def end_all(self, cell_ids: Iterable[str]) -> None:
        for cell_id in cell_ids:
            self.end(cell_id)

    def bury(self, cell_id: str) -> None:
        """Note that a cell's process was killed."""
        start = self._read(cell_id)
        if start is not None:
            self._write(cell_id, replace(start, died=True))

    def dead(self, cell_ids: Iterable[str]) -> dict[str, Start]:
        """The starts that no process stands behind, by cell."""
        starts = {cell_id: self._read(cell_id) for cell_id in cell_ids}
        return {
            cell_id: start
            for cell_id, start in starts.items()
            if start is not None and (start.died or not lives(self.store, start.process))
        }

    def went_on(self, cell_id: str) -> bool:
        """Whether some of a cell was computed and kept since its last start, of which the end was not told."""
        start = self._read(cell_id)
        return start is not None and not start.died and self._kept(cell_id) > start.kept

    def _kept(self, cell_id: str) -> int:
        with suppress(OSError):
            return self._file(cell_id).with_name(ANSWERS).stat().st_size
        return 0

    def _file(self, cell_id: str) -> Path:
        return self.store.cell(cell_id) / STARTED

    def _write(self, cell_id: str, start: Start) -> None:
        file = self._file(cell_id)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(asdict(start)), encoding="utf-8")
        temporary.replace(file)

    def _read(self, cell_id: str) -> Start | None:
        """A cell's start; None where there is none, or its file says nothing."""
        with suppress(OSError, ValueError, TypeError):
            return Start(**json.loads(self._file(cell_id).read_text(encoding="utf-8")))
        return None
