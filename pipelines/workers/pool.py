"""Cells -> long-lived workers -> results as they finish. Owns ray.

One worker on a CPU is this very process. More of them, or GPUs, are Ray actors that keep their model loaded: a
worker stays with its model while that model has cells, longest first; a worker that dies is replaced and its cell
tried again; one that takes too long is replaced and its cell has failed.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.records.cells import Cell, Model, Refusal, Result
from pipelines.records.places import SITE

log = logging.getLogger(__name__)

Evaluator = Callable[[Iterable[Cell]], Iterator[Result]]
"""What a worker does with cells: pipelines.workers.evaluate.evaluate, or a test's stub."""

CellResults = Iterator[tuple[Cell, Result]]


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


def run(cells: Sequence[Cell], workers: Workers, evaluator: Evaluator | None = None) -> CellResults:
    """Yield every cell with its result, in the order of finishing.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the cells that were running are finished and yielded; after another, or
            SIGTERM, at once.
    """
    with standing(workers, evaluator) as batch:
        yield from batch(cells)


@contextmanager
def standing(workers: Workers, evaluator: Evaluator | None = None) -> Iterator[Callable[[Sequence[Cell]], CellResults]]:
    """`run` for batches of cells that come one after another: its workers, and their models, stay in between."""
    pools: list[_Pool] = []

    def batch(cells: Sequence[Cell]) -> CellResults:
        if not cells:
            return
        with _interruptible() as interrupted:
            if workers.in_process:
                yield from _here(cells, evaluator or _evaluate, interrupted)
            else:
                if not pools:
                    pools.append(_Pool(_connected(workers), workers, evaluator or _evaluate))
                yield from _on_ray(cells, pools[0], interrupted)
            if interrupted.is_set():
                raise KeyboardInterrupt

    try:
        yield batch
    finally:
        for pool in pools:
            pool.close()


def _here(cells: Sequence[Cell], evaluator: Evaluator, interrupted: threading.Event) -> CellResults:
    for queue in _queues(cells).values():
        for cell in queue:
            if interrupted.is_set():
                return
            try:
                yield cell, next(iter(evaluator([cell])))
            except SystemExit as error:  # a library's way out is no way out of a grid
                yield cell, Result(cell.id, "failed", error=f"something in this cell ended the process: {error!r}")


def _evaluate(cells: Iterable[Cell]) -> Iterator[Result]:
    from pipelines.workers.evaluate import evaluate  # torch: only where cells run

    return evaluate(cells)


def _queues(cells: Sequence[Cell]) -> dict[Model, deque[Cell]]:
    """Cells by model, the longest first: what does not fit shows early, and the tail is short."""
    queues: dict[Model, deque[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: -cell.length):
        queues.setdefault(cell.model, deque()).append(cell)
    return queues


ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end the driver at once: from a scheduler, and from a terminal that is closed."""


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets. The second raises KeyboardInterrupt, as SIGTERM and SIGHUP do."""
    interrupted = threading.Event()
    terminal = sys.stderr  # a cell that runs in this process silences sys.stderr for as long as it takes

    def handle(number: int, frame: Any) -> None:
        if interrupted.is_set() or number != signal.SIGINT:
            raise KeyboardInterrupt
        interrupted.set()
        print("Finishing running cells; Ctrl-C again aborts", file=terminal, flush=True)

    if threading.current_thread() is not threading.main_thread():  # Python gives signals to no other
        yield interrupted
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, *ENDING)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ----------------------------------------------------------------------------------------------------------- Ray

STARTS = 3
"""A pool of which so many workers in a row die before their first cell gives up."""
PATIENCE = 60.0
"""Seconds without any worker after which the pool says what it waits for."""


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

    def drain(self) -> list[Cell]:
        """All cells that nobody has taken; none is left."""
        left = [cell for queue in self.queues.values() for cell in queue]
        self.queues.clear()
        return left


@dataclass(frozen=True)
class _Flight:
    """What a worker has in hand: a cell and until when, or its own start."""

    worker: int
    cell: Cell | None = None
    deadline: float = math.inf


@dataclass(frozen=True)
class _Landing:
    """How a flight ended. No result: the worker has started, or it died, which makes it unusable."""

    flight: _Flight
    result: Result | None
    usable: bool


class _Pool:
    """The actors, and what each has in hand."""

    def __init__(self, ray: Any, workers: Workers, evaluator: Evaluator) -> None:
        self.ray, self.workers, self.schedule = ray, workers, _Schedule({})
        gpus = workers.gpus if workers.device == "cuda" else 0
        actor = ray.remote(num_cpus=workers.cpus, num_gpus=gpus, max_restarts=0)(_Worker)
        self.start: Callable[[], Any] = partial(actor.remote, evaluator)
        self.actors: dict[int, Any] = {}
        self.flying: dict[Any, _Flight] = {}
        self.attempts = Counter[str]()

    @property
    def running(self) -> bool:
        """Whether any cell is in a worker's hands."""
        return any(flight.cell is not None for flight in self.flying.values())

    def hire(self, worker: int) -> None:
        """Start a worker, in the place of one that is there already."""
        if worker in self.actors:
            self.ray.kill(self.actors[worker])
            self.schedule.holds.pop(worker, None)
        self.actors[worker] = self.start()
        # A cell's time runs from when there is a worker: a cluster may take minutes to have room for one.
        self.flying[self.actors[worker].ready.remote()] = _Flight(worker)

    def engage(self, worker: int) -> None:
        """Have a worker at work: a new one, or the one that the batch before left waiting."""
        if worker not in self.actors:
            self.hire(worker)
        elif all(flight.worker != worker for flight in self.flying.values()):
            self.give(worker)

    def give(self, worker: int) -> None:
        """Hand the worker its next cell, if there is one."""
        cell = self.schedule.next_for(worker)
        if cell is not None:
            self.attempts[cell.id] += 1
            deadline = time.monotonic() + (self.workers.timeout or math.inf)
            self.flying[self.actors[worker].run.remote(cell)] = _Flight(worker, cell, deadline)

    def landed(self) -> _Landing | None:
        """What ended next; None where the pool has waited for a while in vain."""
        deadline = min(flight.deadline for flight in self.flying.values())
        done, _ = self.ray.wait(
            list(self.flying), num_returns=1, timeout=max(0.0, min(PATIENCE, deadline - time.monotonic()))
        )
        if done:
            return self._answer(done[0], self.flying.pop(done[0]))
        late = next((ref for ref, flight in self.flying.items() if flight.deadline <= time.monotonic()), None)
        if late is None:
            return None
        flight = self.flying.pop(late)
        assert flight.cell is not None
        error = f"it took longer than cluster.timeout={self.workers.timeout:g} s; give more, or null for no limit"
        return _Landing(flight, Result(flight.cell.id, "failed", error=error), usable=False)

    def _answer(self, reference: Any, flight: _Flight) -> _Landing:
        try:
            result: Result | None = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            result = Result(flight.cell.id, "failed", error=str(error)) if flight.cell else None
        except self.ray.exceptions.RayError:
            return _Landing(flight, None, usable=False)
        # What CUDA holds after running out of memory or a failed assertion is not to be trusted.
        broken = result is not None and (result.status == "oom" or "CUDA error" in (result.error or ""))
        return _Landing(flight, result, usable=not broken)

    def close(self) -> None:
        for actor in self.actors.values():
            self.ray.kill(actor)


def _on_ray(cells: Sequence[Cell], pool: _Pool, interrupted: threading.Event) -> CellResults:
    schedule, stillborn = pool.schedule, 0
    schedule.queues = _queues(cells)
    pool.attempts.clear()
    for worker in range(min(pool.workers.count or _room(pool.ray, pool.workers), len(cells))):
        pool.engage(worker)
    while pool.running or any(schedule.queues.values()):
        if interrupted.is_set():
            schedule.drain()
        if not pool.flying:
            return
        landing = pool.landed()
        if landing is None:
            _say_what_lacks(pool.ray, pool)
            continue
        worker, cell = landing.flight.worker, landing.flight.cell
        if cell is not None:
            yield from _settled(pool, cell, landing.result)
        else:
            stillborn = 0 if landing.usable else stillborn + 1
            if stillborn >= STARTS:
                error = f"{STARTS} workers in a row died as they started: see the logs of Ray"
                yield from ((cell, Result(cell.id, "failed", error=error)) for cell in schedule.drain())
                continue
        if interrupted.is_set():  # while it was waited for
            schedule.drain()
        pool.give(worker) if landing.usable else pool.hire(worker)


def _settled(pool: _Pool, cell: Cell, result: Result | None) -> CellResults:
    """A cell that has its result; or whose worker died, to be tried again as often as allowed."""
    times = pool.attempts[cell.id]
    if result is not None:
        yield cell, result
    elif times <= pool.workers.retries:
        log.warning("the worker died on %s; trying it again on a fresh one", cell.label)
        pool.schedule.queues.setdefault(cell.model, deque()).append(cell)
    else:
        error = f"the worker died {times} time{'s'[: times > 1]} on this cell (killed, or out of host memory)"
        yield cell, Result(cell.id, "failed", error=error)


def _say_what_lacks(ray: Any, pool: _Pool) -> None:
    if len(pool.flying) == len(pool.actors) and not pool.running:
        wanted = pool.workers
        gpus = f" and {wanted.gpus:g} GPU" if wanted.device == "cuda" else ""
        free = {name: n for name, n in ray.available_resources().items() if name in ("CPU", "GPU")}
        log.warning(
            "no worker has started yet: each needs %d CPU%s, and of the cluster %s is free",
            wanted.cpus,
            gpus,
            free or "nothing",
        )


class _Worker:
    """An actor: its process keeps the model loaded from cell to cell."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def ready(self) -> None:
        """Answers once the process runs."""

    def run(self, cell: Cell) -> Result:
        return next(iter(self.evaluator([cell])))


def _connected(workers: Workers) -> Any:
    """Ray, started here or joined at RAY_ADDRESS."""
    # Under `uv run` Ray would build uv's environment anew for every worker; ours is there already.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Seconds: on a busy machine Ray's processes take more than the half minute that it allows them.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    import ray

    if ray.is_initialized():
        return ray
    project = SITE
    if "RAY_ADDRESS" in os.environ:
        shipped = {"working_dir": str(project), "excludes": _left_out(project)}
        ray.init(runtime_env=shipped, log_to_driver=False, logging_level=logging.ERROR)
    else:
        cpus = max(os.cpu_count() or 1, (workers.count or 1) * workers.cpus)
        paths = {"PYTHONPATH": os.pathsep.join([str(project), *filter(None, [os.environ.get("PYTHONPATH")])])}
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": paths},
        )
    return ray


def _left_out(project: Path) -> list[str]:
    """What a cluster's workers do not need of the project's folder: all but code, conf and the embedded model."""
    wanted = {"rope", "pipelines", "conf", "models", "pyproject.toml"}
    others = [path for path in project.iterdir() if path.name not in wanted]
    others += [path for path in (project / "models").glob("*") if path.name != "tiny"]
    return [f"/{path.relative_to(project)}" for path in others]


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
