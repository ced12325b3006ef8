"""The process behind `ropewalk up`: keeps workers with their models, and lets one command at a time use them.

python -m pipelines.workers.keeper FILE: FILE holds what it is started with, and is removed as soon as it is read.
"""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

from pipelines.choices.sweep import visible_gpus
from pipelines.models import light
from pipelines.records import meter, provenance
from pipelines.records.cells import Cell
from pipelines.records.journal import Journal
from pipelines.records.processes import this_process
from pipelines.records.refusal import first_line
from pipelines.records.results import Store
from pipelines.workers import warm
from pipelines.workers.actors import Pool
from pipelines.workers.pool import Here
from pipelines.workers.schedule import Evaluator, Workers, evaluate, load_only
from pipelines.workers.signals import Interruption


@dataclass(frozen=True)
class Start:
    """What a keeper is started with. cell: one of the model to load at once. idle: seconds without a command."""

    workers: Workers
    cell: Cell
    idle: float


ROUNDS = 30
"""A second apart, in which every worker must have come to load the model."""


class Keeper:
    """The workers, and who uses them."""

    def __init__(self, start: Start) -> None:
        self.start, self.since = start, datetime.now().astimezone().isoformat(timespec="seconds")
        self.crew: Pool | Here | None = None
        self.moved, self.taken = time.monotonic(), threading.Lock()
        self.folder = Path(tempfile.mkdtemp(prefix="ropewalk-up-"))  # for this user alone
        self.key = secrets.token_bytes(32)

    def serve(self) -> None:
        """Load the model, then let commands in until one ends it, or none comes for long."""
        code, versions, settings = warm.code_digest(), dict(provenance.environment()), warm.settings()
        self._fresh()
        # This process too imports what the preparation of cells takes.
        aside = threading.Thread(target=self._prepared, args=(os.getcwd(), [self.start.cell]), daemon=True)
        aside.start()
        trouble = self._load()
        aside.join()
        address = str(self.folder / "socket")
        with Listener(address, "AF_UNIX", authkey=self.key) as listener:
            threading.Thread(target=self._watch, daemon=True).start()
            warm.write(
                warm.Kept(
                    this_process(),
                    self.since,
                    address,
                    self.key.hex(),
                    warm.place(self.start.workers),
                    code,
                    versions,
                    settings,
                    trouble,
                )
            )
            while True:
                with suppress(OSError, EOFError, Exception):  # whoever has not the key
                    connection = listener.accept()
                    threading.Thread(target=self._session, args=(connection,), daemon=True).start()

    def _fresh(self) -> None:
        workers = self.start.workers
        self.crew = Here(workers, None, None, apart=True) if workers.in_process else Pool(workers, evaluate, None)

    def _load(self) -> str:
        """The model in every worker: one that starts late has no cell of a first round. Why that failed, or ""."""
        trouble = ""
        assert self.crew is not None
        self.crew.evaluator = load_only
        workers, cell, room = self.start.workers, self.start.cell, 1
        if workers.device == "cuda" and "RAY_ADDRESS" not in os.environ:
            room = max(1, int(visible_gpus() / workers.gpus))
        count = workers.count or room
        for turn in range(ROUNDS):
            cells = [replace(cell, seed=cell.seed + number) for number in range(turn * count, (turn + 1) * count)]
            for _, result in self.crew.compute(cells, Interruption()):
                if result.status != "ok":
                    print(result.error, file=sys.stderr, flush=True)
                    trouble = result.error_line or result.status
            if not isinstance(self.crew, Pool) or len(self.crew.schedule.holds) >= count:
                break
            time.sleep(1.0)
        return trouble

    def _session(self, connection: Connection) -> None:
        """One command, from its first message to its last."""
        mine = self.taken.acquire(blocking=False)
        try:
            connection.send(("hello", "" if mine else "busy"))
            while True:
                kind, *content = connection.recv()
                if kind == "down":
                    self.end()
                elif mine and kind == "prepare":
                    connection.send(self._prepared(*content))
                elif mine and kind == "run":
                    self._run(connection, *content)
                self.moved = time.monotonic()
        except (OSError, EOFError):
            pass  # it has ended
        finally:
            self.moved = time.monotonic()
            if mine:
                self.taken.release()

    def _prepared(self, folder: str, cells: Sequence[Cell]) -> tuple[str, str]:
        from pipelines.workers.ready import prepare

        try:
            os.chdir(folder)
            prepare(cells)
        except Exception as error:
            return warm.failure(error)
        return "prepared", ""

    def _run(
        self,
        connection: Connection,
        folder: str,
        cells: Sequence[Cell],
        workers: Workers,
        evaluator: Evaluator | None,
        store: str,
        heard: bool,
    ) -> None:
        assert self.crew is not None
        interruption, journal = Interruption(), Journal(Store.at(store))
        ended, end = Pipe(duplex=False)
        own = evaluator or evaluate
        self.crew.evaluator = partial(own, folder=folder) if own is evaluate or isinstance(own, partial) else own
        self.crew.workers, self.crew.journal = workers, journal
        sending = threading.Lock()

        def tell(*message: Any) -> None:
            with sending:
                connection.send(message)

        def listen() -> None:
            while ended not in wait([connection, ended]):
                interruption.asked.set()
                try:
                    connection.recv()  # "stop"
                except (OSError, EOFError):  # the command is gone: the running cells are finished, for nobody
                    return

        listening = threading.Thread(target=listen, daemon=True)
        listening.start()
        try:
            with meter.listening(partial(tell, "far")) if heard else nullcontext():
                for _, result in self.crew.compute(cells, interruption):
                    tell("result", result)
            last: tuple[str, ...] = ("end",)
        except (OSError, EOFError):
            raise
        except BaseException as error:
            last = ("lost", first_line(error))
            with suppress(Exception):
                self.crew.close()
            self._fresh()
        finally:
            journal.end_all(cell.id for cell in cells)
            end.close()
            listening.join()
            ended.close()
        tell(*last)

    def _watch(self) -> None:
        """End where no command has come for long."""
        while True:
            time.sleep(min(30.0, self.start.idle))
            if not self.taken.locked() and time.monotonic() - self.moved > self.start.idle:
                self.end()

    def end(self) -> None:
        """The workers end with this process: the kernel and a sweeper see to it."""
        with suppress(OSError):
            warm.file().unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.crew is not None:
            with suppress(Exception):
                self.crew.close()
        os._exit(0)


def main(path: Path) -> None:
    """Keep workers as the file says."""
    light.own()
    start = pickle.loads(path.read_bytes())
    path.unlink()
    keeper = Keeper(start)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: keeper.end())
    keeper.serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
