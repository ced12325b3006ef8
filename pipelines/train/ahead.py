"""Windows made ahead of the step that takes them, by a thread or by processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from pipelines.train.batches import Batches, Rows, RowWeights


class Ahead:
    """Steps' windows, while the model is at those before. It ends its processes on leaving.

    makers: processes; 0: one thread of this one. What is made is the same.
    """

    def __init__(self, batches: Batches, makers: int) -> None:
        self.batches, self.depth = batches, max(1, 2 * makers)
        self.executor: Executor = ThreadPoolExecutor(max_workers=1)
        if makers:
            spawn = multiprocessing.get_context("spawn")  # a fork of a process that holds a GPU may hang
            self.executor = ProcessPoolExecutor(makers, spawn, initializer=_begin, initargs=(batches,))
        self.make: Any = _made if makers else batches
        self.coming: dict[int, Future[tuple[Rows, RowWeights]]] = {}

    def __call__(self, step: int) -> tuple[Rows, RowWeights]:
        """The windows of a step; those of the next ones are begun."""
        for later in range(step, step + self.depth + 1):
            if later not in self.coming:
                self.coming[later] = self.executor.submit(self.make, later)
        return self.coming.pop(step).result()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.executor.shutdown(cancel_futures=True)


_batches: Batches


def _begin(batches: Batches) -> None:
    global _batches
    _batches = batches
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed training leaves no process behind: a pool's own would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _made(step: int) -> tuple[Rows, RowWeights]:
    return _batches(step)
