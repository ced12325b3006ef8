"""Launches of stub cells in a process of their own, to be killed and looked after."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
from support import PROJECT

PATHS = os.pathsep.join([str(Path(__file__).parent), str(PROJECT / "tests")])

SCRIPT = """
import atexit, os, sys
sys.path[:0] = {paths!r}
from pipelines.cli import main
main._end_on_signals()
from test_pool import Path, pool, silenced, stub_cell, work
from pipelines.records.journal import Journal
from pipelines.records.refusal import LaunchEnded, Refusal
from pipelines.records.results import Store
from pipelines.workers import cluster
cluster.START = 1500.0  # the busier the machine, the longer Ray takes
{before}
def begun(cells):
    for cell in cells:
        (Path({folder!r}) / f"began-{{cell.length}}-{{os.getpid()}}").touch()
        yield from {work}([cell])
code = 0
try:
    print("start", flush=True)
    cells = [stub_cell(length=n, **options) for n, options in {cells!r}]
    journal = Journal(Store(Path({folder!r}) / "store"))
    for cell, result in pool.run(cells, pool.Workers(**{workers!r}), {evaluator}, journal):
        print(result.status, cell.length, flush=True)
        if result.error:
            print(result.error, file=sys.stderr, flush=True)
except KeyboardInterrupt:
    code = 130
    print("stopped", flush=True)
except (LaunchEnded, Refusal) as error:
    code = 1 if isinstance(error, LaunchEnded) else 2
    print(type(error).__name__, error, flush=True)
atexit._run_exitfuncs()
os._exit(code)
"""


class Launch:
    """A driver with stub cells; what it started is found by a mark in the environment."""

    def __init__(self, folder, cells, workers, work="work", before="", evaluator="begun", paths=(), **environment):
        self.folder, self.mark = Path(folder), f"{time.time_ns()}"
        body = {"before": before, "work": work, "cells": cells, "workers": workers, "evaluator": evaluator}
        script = SCRIPT.format(folder=str(folder), paths=PATHS.split(os.pathsep), **body)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=(self.folder / "errors").open("w"),
            text=True,
            start_new_session=True,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([PATHS, *paths]), "LAUNCH": self.mark, **environment},
        )

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def end(self, seconds=60.0) -> tuple[list[str], float]:
        """The lines to come, and the seconds until it ended."""
        start = time.monotonic()
        rest, _ = self.process.communicate(timeout=seconds)
        return rest.splitlines(), time.monotonic() - start

    @property
    def errors(self) -> str:
        return (self.folder / "errors").read_text()

    @property
    def said(self) -> list[str]:
        """The lines of its errors, without what a busy machine makes it say."""
        return [line for line in self.errors.splitlines() if not line.startswith("no worker has started yet")]

    @property
    def began(self) -> int:
        """How many cells were begun, by any worker."""
        return len(list(self.folder.glob("began-*")))

    @property
    def noted(self) -> list[Path]:
        """What of the journal is left."""
        return list(self.folder.glob("store/cells/*/started.json"))

    def left(self, name="") -> list[psutil.Process]:
        """The processes that it started and that still run."""
        found = []
        for pid in psutil.pids():  # process_iter() remembers names, and Ray's agents take theirs late
            try:
                process = psutil.Process(pid)
                marked = f"LAUNCH={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
                # Ray's agents write their titles over their environment
                files = [] if marked else Path(f"/proc/{pid}/fd").iterdir()
                logs = re.compile(f"/session_[^/]*_{self.process.pid}/").search
                if (marked or any(logs(os.readlink(file)) for file in files)) and name in process.name():
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def eldest(self, name) -> psutil.Process:
        """Of those of this name the first one: what a part of Ray forks has its name until it is something else."""
        until(lambda: self.left(name))
        return min(self.left(name), key=psutil.Process.create_time)

    def gone(self, seconds=5.0) -> list[str]:
        """The names of what is still there after so long."""
        deadline = time.monotonic() + soon(seconds)
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [process.name() for process in left]


def soon(seconds):
    """Seconds that a promise of so many may take on a machine that computes for others too."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def until(condition, seconds=480.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
