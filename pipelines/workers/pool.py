"""Cells -> workers -> results as they finish.

One worker on a CPU is this very process, or a child of it where memory is close to the limit. More of them, or GPUs,
are Ray actors that keep their model loaded: a worker stays with its model while that model has cells, longest first; a
worker that dies is replaced and its cell tried again; one that takes too long is replaced and its cell has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pipelines.records import memory
from pipelines.records.cells import Cell, Result
from pipelines.records.journal import Journal
from pipelines.workers import deaths
from pipelines.workers.actors import Pool
from pipelines.workers.child import Child
from pipelines.workers.schedule import CellResults as CellResults
from pipelines.workers.schedule import Evaluator, evaluate, is_usual, one, queues
from pipelines.workers.schedule import Workers as Workers
from pipelines.workers.signals import Interruption, interruptible

CLOSE = 0.7
"""Share of the memory that is free above which a cell computes in a process of its own."""


def run(
    cells: Sequence[Cell],
    workers: Workers,
    evaluator: Evaluator | None = None,
    journal: Journal | None = None,
    begun: Pool | None = None,
) -> CellResults:
    """Yield every cell with its result, in the order of finishing.

    journal: notes what runs, for a launch after this one is killed. begun: workers that have been started.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the cells that were running are finished and yielded; after
            another, or SIGHUP, at once.
        LaunchEnded: Ray is gone, and was after a new start too; the cells that were not yielded have no result.
    """
    with standing(workers, evaluator, journal, begun) as batch:
        yield from batch(cells)


@contextmanager
def standing(
    workers: Workers,
    evaluator: Evaluator | None = None,
    journal: Journal | None = None,
    begun: Pool | None = None,
) -> Iterator[Callable[[Sequence[Cell]], CellResults]]:
    """`run` for batches of cells that come one after another: its workers, and their models, stay in between.

    begun: a pool whose workers have been started, in place of a new one.
    """
    if begun is not None:
        crew: Pool | Here = begun
        crew.evaluator = evaluator or evaluate
    elif workers.in_process:
        crew = Here(workers, evaluator, journal)
    else:
        crew = Pool(workers, evaluator or evaluate, journal)

    def batch(cells: Sequence[Cell]) -> CellResults:
        if not cells:
            return
        with interruptible() as interruption:
            try:
                yield from crew.compute(cells, interruption)
            finally:
                if journal is not None:
                    journal.end_all(cell.id for cell in cells)
            if interruption.asked.is_set():
                raise KeyboardInterrupt

    try:
        yield batch
    finally:
        crew.close()


class Here:
    """One worker: this process, or a child of it from the first cell on that is close to the limit.

    apart: a child from the beginning.
    """

    def __init__(
        self, workers: Workers, evaluator: Evaluator | None, journal: Journal | None, *, apart: bool = False
    ) -> None:
        self.workers, self.evaluator, self.journal, self.apart = workers, evaluator, journal, apart
        self.child: Child | None = None

    def compute(self, cells: Sequence[Cell], interruption: Interruption) -> CellResults:
        for queue in queues(cells).values():
            for cell in queue:
                if interruption.asked.is_set():
                    return
                expected = deaths.expected(cell)
                if self.journal is not None:
                    self.journal.start(cell.id, expected)
                if self.child is None and (self.apart or self._close(expected)):
                    self.child = Child(self.evaluator)
                if self.child is None:
                    yield cell, one(self.evaluator or evaluate, cell)
                else:
                    yield cell, self._apart(cell)

    def _close(self, expected: float | None) -> bool:
        """Whether a cell may take so much memory that the kernel kills for it. Of an own evaluator nothing is known."""
        if expected is None:
            return is_usual(self.evaluator)
        return expected > CLOSE * memory.reachable()

    def _apart(self, cell: Cell) -> Result:
        how, for_memory = "", False
        for _ in range(self.workers.retries + 1):
            before = memory.kills()
            self.child = self.child or Child(self.evaluator)
            self.child.evaluator = self.evaluator
            result = self.child.run(cell)
            if isinstance(result, Result):
                return result
            how, code = result, self.child.code
            self.close()
            if code > 0:
                return Result(cell.id, "failed", error=how)
            for_memory = memory.killed_since(before)
            if for_memory:  # it would be again
                break
        if self.journal is not None:
            self.journal.bury(cell.id)
        return deaths.killed(cell, for_memory=for_memory, how=how)

    def close(self) -> None:
        if self.child is not None:
            self.child.close()
            self.child = None
