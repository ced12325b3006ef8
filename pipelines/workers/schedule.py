"""How many workers, and which cell each takes next."""

from __future__ import annotations

import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipelines.models import light
from pipelines.records.cells import Cell, Model, Refusal, Result
from pipelines.records.phases import timed
from pipelines.records.results import Store

Evaluator = Callable[[Iterable[Cell]], Iterator[Result]]
"""What a worker does with cells: pipelines.workers.evaluate.evaluate, or a test's stub."""

CellResults = Iterator[tuple[Cell, Result]]


def evaluate(
    cells: Iterable[Cell],
    kept: Mapping[str, Any] | None = None,
    store: Store | None = None,
    folder: str | None = None,
) -> Iterator[Result]:
    """pipelines.workers.evaluate's, which imports torch: only where cells run.

    folder: that paths are meant from, where it is another process's.
    """
    if folder is not None:
        os.chdir(folder)
    light.load()
    with light.uncollected():
        from pipelines.workers import evaluate

    return evaluate.evaluate(cells, kept=kept, store=store)


def is_usual(evaluator: Evaluator | None) -> bool:
    """Whether cells are evaluated as above."""
    return evaluator is None or getattr(evaluator, "func", evaluator) is evaluate


def load_only(cells: Iterable[Cell]) -> Iterator[Result]:
    """Loads the models of cells, and computes nothing."""
    warm_up()
    from pipelines.workers.evaluate import loaded

    for cell in cells:
        loaded(cell)
        yield Result(cell.id, "ok")


@timed("imports and CUDA")
def warm_up() -> None:
    """Import what cells take, and wake the GPU where there is one."""
    light.load()
    with light.uncollected():
        from pipelines.tasks import harness, logits
        from pipelines.workers import evaluate

    assert harness and evaluate
    light.wake()
    logits.wake()


def narrowed(evaluator: Evaluator, cell: Cell) -> Evaluator:
    """An evaluator with what it keeps for one cell, and not what it keeps for others."""
    if not isinstance(evaluator, partial) or not evaluator.keywords.get("kept"):
        return evaluator
    kept = evaluator.keywords["kept"]
    return partial(
        evaluator.func, **{**evaluator.keywords, "kept": {cell.id: kept[cell.id]} if cell.id in kept else None}
    )


def one(evaluator: Evaluator, cell: Cell) -> Result:
    """A cell's result, whatever the evaluator raises."""
    try:
        return next(iter(evaluator([cell])))
    except SystemExit as error:  # a library's way out is no way out of a grid
        return Result(cell.id, "failed", error=f"something in this cell ended the process: {error!r}")
    except Exception as error:
        return Result(cell.id, "failed", error="".join(traceback.format_exception(error)))


@dataclass(frozen=True)
class Workers:
    """How many, and what each holds.

    count: None is one on a CPU, as many as fit on GPUs.
    cpus, gpus: of each worker; several GPUs share one model, a share below 1 puts several workers on one GPU.
    retries: fresh starts of a cell whose worker died.
    timeout: seconds a cell may take, with the loading of its model where that comes first; None: as long as it needs.
    """

    device: str = "cpu"
    count: int | None = None
    cpus: int = 1
    gpus: float = 1.0
    retries: int = 1
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise Refusal(f"cluster.workers={self.count}: give at least 1, or null for as many as fit")
        if self.cpus < 1:
            raise Refusal(f"cluster.cpus_per_worker={self.cpus}: give at least 1")
        if self.retries < 0:
            raise Refusal(f"cluster.retries={self.retries}: give 0 or more")
        if self.timeout is not None and not self.timeout > 0:
            raise Refusal(f"cluster.timeout={self.timeout}: give seconds above 0, or null for as long as a cell needs")
        if self.device == "cuda" and not (0 < self.gpus <= 1 or (self.gpus > 1 and self.gpus.is_integer())):
            raise Refusal(
                f"cluster.gpus_per_worker={self.gpus}: give a share of one GPU (0 < share <= 1) or a whole number"
            )

    @property
    def in_process(self) -> bool:
        """No Ray: it costs 5 s a command, and one CPU worker needs it only to be stopped when it takes too long."""
        alone = self.device == "cpu" and self.count in (None, 1) and self.timeout is None
        return alone and "RAY_ADDRESS" not in os.environ


def queues(cells: Sequence[Cell]) -> dict[Model, deque[Cell]]:
    """Cells by model, the longest first: what does not fit shows early, and the tail is short."""
    queues: dict[Model, deque[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: -cell.length):
        queues.setdefault(cell.model, deque()).append(cell)
    return queues


@dataclass
class Schedule:
    """Which cell a free worker takes next."""

    queues: dict[Model, deque[Cell]]
    holds: dict[int, Model] = field(default_factory=dict)

    def next_for(self, worker: int) -> Cell | None:
        """Of the model it has loaded; else of the longest queue that nobody serves; else of the longest."""
        waiting = [model for model, queue in self.queues.items() if queue]
        if not waiting:
            return None
        if self.holds.get(worker) not in waiting:
            served = {model for other, model in self.holds.items() if other != worker}
            free = [model for model in waiting if model not in served] or waiting
            self.holds[worker] = max(free, key=lambda model: len(self.queues[model]))
        return self.queues[self.holds[worker]].popleft()

    def drain(self) -> list[Cell]:
        """All cells that nobody has taken; none is left."""
        left = [cell for queue in self.queues.values() for cell in queue]
        self.queues.clear()
        return left
