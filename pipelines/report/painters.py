"""Figures drawn side by side, by processes that import what it takes while cells are computed.

python -m pipelines.report.painters DRIVER: draws what it is told through stdin.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from pipelines.records import apart
from pipelines.report import canvas, charts
from pipelines.report.figure import Figure

Job = Callable[[], Iterable[Figure]]
"""Draws figures of one kind; can be pickled."""

MOST = 4
"""Painters of a grid: it has hardly more figures."""


class Painters:
    """Processes that wait for figures to draw, from `begin` on. Before that, figures are drawn here."""

    def __init__(self, count: int) -> None:
        self._wanted, self._changing = count, threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with self._changing, suppress(OSError, RuntimeError):  # as many as the system allows
            while len(self._processes) < self._wanted:
                self._processes.append(apart.begin("pipelines.report.painters", **pipes))

    def draw(self, jobs: Sequence[Job]) -> list[list[Figure]]:
        """The figures of each job, whichever process has time for it. What none has drawn is drawn here, and raises
        here."""
        left, drawn = deque(enumerate(jobs)), dict[int, list[Figure]]()

        def employ(process: subprocess.Popen[bytes]) -> None:
            assert process.stdin is not None and process.stdout is not None
            with suppress(OSError, EOFError, IndexError, pickle.UnpicklingError):
                while True:
                    number, job = left.popleft()
                    pickle.dump(job, process.stdin)
                    process.stdin.flush()
                    drawn[number] = pickle.load(process.stdout)

        threads = [threading.Thread(target=employ, args=(process,), daemon=True) for process in self._processes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [drawn[number] if number in drawn else list(job()) for number, job in enumerate(jobs)]

    def close(self) -> None:
        """End them, whatever they do; none begins after that."""
        with self._changing:
            self._wanted = 0
            for process in self._processes:
                process.kill()
                process.communicate()
            self._processes = []


def main(driver: int) -> None:
    apart.begun(driver)
    canvas.rehearse()
    assert charts.KINDS, "imported before they are asked for"
    answer = sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a library prints
    with suppress(EOFError):
        while True:
            pickle.dump(list(pickle.load(sys.stdin.buffer)()), answer)
            answer.flush()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
