"""Cells -> long-lived workers -> results as they finish. Owns ray.

One worker on a CPU is this very process. More of them, or GPUs, are Ray actors that keep their model loaded: a
worker stays with its model while that model has cells, longest first; a worker that dies is replaced and its cell
tried again.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.cells import Cell, Model, Refusal, Result

log = logging.getLogger(__name__)

Work = Callable[[Iterable[Cell]], Iterator[Result]]
"""What a worker does with cells: pipelines.evaluate.evaluate, or a test's own."""


@dataclass(frozen=True)
class Workers:
    """How many, and what each holds. count None: one on a CPU, as many as fit on GPUs."""

    device: str = "cpu"
    count: int | None = None
    cpus: int = 1
    gpus: float = 1.0
    retries: int = 1

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise Refusal(f"cluster.workers={self.count}: give at least 1, or null for as many as fit")
        if self.device == "cuda" and not (0 < self.gpus <= 1 or (self.gpus > 1 and self.gpus.is_integer())):
            raise Refusal(
                f"cluster.gpus_per_worker={self.gpus}: give a share of one GPU (0 < share <= 1) or a whole number"
            )

    @property
    def in_process(self) -> bool:
        """No Ray: it costs 5 s a command, and one CPU worker needs none of it."""
        return self.device == "cpu" and self.count in (None, 1) and "RAY_ADDRESS" not in os.environ


def run(cells: Sequence[Cell], workers: Workers, work: Work | None = None) -> Iterator[tuple[Cell, Result]]:
    """Yield every cell with its result, in the order of finishing."""
    queues = _queues(cells)
    if not cells:
        return
    if workers.in_process:
        work = work or _evaluate
        for queue in queues.values():
            for cell in queue:
                yield cell, next(iter(work([cell])))
        return
    yield from _on_ray(queues, workers, work or _evaluate)


def _evaluate(cells: Iterable[Cell]) -> Iterator[Result]:
    from pipelines.evaluate import evaluate  # torch: only where cells run

    return evaluate(cells)


def _queues(cells: Sequence[Cell]) -> dict[Model, deque[Cell]]:
    """Cells by model, the longest first: what does not fit shows early, and the tail is short."""
    queues: dict[Model, deque[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: -cell.length):
        queues.setdefault(cell.model, deque()).append(cell)
    return queues


# ----------------------------------------------------------------------------------------------------------- Ray


@dataclass
class _Schedule:
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


def _on_ray(queues: dict[Model, deque[Cell]], workers: Workers, work: Work) -> Iterator[tuple[Cell, Result]]:
    ray = _connected(workers)
    total = sum(map(len, queues.values()))
    count = min(workers.count or _room(ray, workers), total)
    actor = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus if workers.device == "cuda" else 0, max_restarts=0)(
        _Worker
    )
    schedule, attempts = _Schedule(queues), dict.fromkeys((c.id for queue in queues.values() for c in queue), 0)
    actors = {number: actor.remote(work) for number in range(count)}
    flying: dict[Any, tuple[int, Cell]] = {}

    def give(worker: int) -> None:
        cell = schedule.next_for(worker)
        if cell is not None:
            attempts[cell.id] += 1
            flying[actors[worker].run.remote(cell)] = (worker, cell)

    def replace(worker: int) -> None:
        ray.kill(actors[worker])
        actors[worker] = actor.remote(work)
        schedule.holds.pop(worker, None)

    try:
        for worker in actors:
            give(worker)
        while flying:
            (done,), _ = ray.wait(list(flying), num_returns=1)
            worker, cell = flying.pop(done)
            result = _answer(ray, done, cell)
            if result is None:
                replace(worker)
                if attempts[cell.id] <= workers.retries:
                    log.warning("the worker died on %s; trying it again on a fresh one", cell.label)
                    schedule.queues[cell.model].append(cell)
                else:
                    error = f"the worker died {attempts[cell.id]} times on this cell (killed, or out of host memory)"
                    yield cell, Result(cell.id, "failed", error=error)
            else:
                if result.status == "oom":  # what CUDA keeps after running out is not to be trusted
                    replace(worker)
                yield cell, result
            give(worker)
    finally:
        for handle in actors.values():
            ray.kill(handle)


def _answer(ray: Any, reference: Any, cell: Cell) -> Result | None:
    """A worker's result; None where the worker died; a failed result where its answer cannot be read."""
    try:
        result: Result = ray.get(reference)
        return result
    except ray.exceptions.RayTaskError as error:
        return Result(cell.id, "failed", error=str(error))
    except ray.exceptions.RayError:
        return None


class _Worker:
    """An actor: its process keeps the model loaded from cell to cell."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def run(self, cell: Cell) -> Result:
        return next(iter(self.work([cell])))


def _connected(workers: Workers) -> Any:
    """Ray, started here or joined at RAY_ADDRESS."""
    # Under `uv run` Ray would build uv's environment anew for every worker; ours is there already.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return ray
    project = Path(__file__).resolve().parent.parent
    if "RAY_ADDRESS" in os.environ:
        left_out = ["mlruns", "models", ".venv", ".git", "**/__pycache__"]
        ray.init(runtime_env={"working_dir": str(project), "excludes": left_out}, log_to_driver=False)
    else:
        cpus = max(os.cpu_count() or 1, (workers.count or 1) * workers.cpus)
        paths = {"PYTHONPATH": os.pathsep.join([str(project), *filter(None, [os.environ.get("PYTHONPATH")])])}
        ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
                 runtime_env={"env_vars": paths})  # fmt: skip
    return ray


def _room(ray: Any, workers: Workers) -> int:
    """How many workers the cluster holds at once."""
    resources = ray.cluster_resources()
    if workers.device == "cpu":
        return 1
    room = int(resources.get("GPU", 0) / workers.gpus)
    if room < 1:
        raise Refusal(
            f"cluster.device=cuda needs {workers.gpus:g} GPU a worker and Ray sees {resources.get('GPU', 0):g}; "
            "give cluster=cpu, or check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    return room
