"""Cells -> Ray actors that keep their model loaded -> results."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.models import light
from pipelines.records import memory, meter, provenance
from pipelines.records.cells import Cell, Refusal, Result
from pipelines.records.journal import Journal
from pipelines.records.refusal import LaunchEnded
from pipelines.workers import deaths
from pipelines.workers.cluster import STEP, Cluster, Lost
from pipelines.workers.schedule import (
    CellResults,
    Evaluator,
    Schedule,
    Workers,
    evaluate,
    narrowed,
    one,
    queues,
    warm_up,
)
from pipelines.workers.signals import Interruption

log = logging.getLogger(__name__)

STARTS = 3
"""A pool of which so many workers in a row die before their first cell gives up."""
RESTARTS = 1
"""New starts of Ray in one launch."""
METER = "meter"
"""The concurrency group of an actor's threads that answers how far it is."""
PATIENCE = 60.0
"""Seconds without any worker after which the pool says what it waits for."""


@dataclass(frozen=True)
class _Flight:
    """What a worker has in hand: a cell and until when, or its own start.

    kills: `memory.kills()` as it began. for_memory: it ended with its worker, for the lack of memory.
    """

    worker: int
    cell: Cell | None = None
    deadline: float = math.inf
    kills: Mapping[str, int] = field(default_factory=dict)
    for_memory: bool = False


@dataclass(frozen=True)
class _Landing:
    """How a flight ended. No result: the worker has started, or it died, which makes it unusable."""

    flight: _Flight
    result: Result | None
    usable: bool


class Pool:
    """The actors, and what each has in hand."""

    def __init__(self, workers: Workers, evaluator: Evaluator, journal: Journal | None) -> None:
        self.workers, self.evaluator, self.journal, self.schedule = workers, evaluator, journal, Schedule({})
        self.cluster: Cluster | None = None
        self.actors: dict[int, Any] = {}
        self.flying: dict[Any, _Flight] = {}
        self.attempts = Counter[str]()
        self.restarts = 0
        self.moved = self.heard = time.monotonic()
        self.asked: dict[Any, int] = {}

    def compute(self, cells: Sequence[Cell], interruption: Interruption) -> CellResults:
        """Every cell with its result. Where Ray is lost it is started anew, once.

        Raises:
            LaunchEnded: it was lost again, or did not come back.
        """
        self.schedule.queues = queues(cells)
        self.attempts.clear()
        left = {cell.id for cell in cells}
        while True:
            try:
                self._connect(interruption)
                for cell, result in self._computed(len(left), interruption):
                    left.discard(cell.id)
                    yield cell, result
                return
            except Lost as loss:
                if interruption.asked.is_set():
                    raise KeyboardInterrupt from loss
                if self.restarts == RESTARTS:
                    count = f"{len(left)} cell{'s'[: len(left) > 1]}"
                    raise LaunchEnded(f"{loss} again; {count} left for the next launch of the same command") from loss
                log.warning("%s; starting it again, and the cells that were running", loss)
                self.restarts += 1
                self._disconnect()

    def begin(self, count: int, interruption: Interruption) -> None:
        """Start Ray and as many workers as so many cells can use; they import what they need before any cell comes.

        Raises:
            LaunchEnded, KeyboardInterrupt: as Cluster.
        """
        self._connect(interruption)
        for worker in range(min(self.workers.count or _room(self.ray, self.workers), count)):
            self.hire(worker)

    def _connect(self, interruption: Interruption) -> None:
        if self.cluster is None:
            self.cluster = Cluster(self.workers, interruption)
            self.ray = self.cluster.ray
            gpus = self.workers.gpus if self.workers.device == "cuda" else 0
            needs = {"num_cpus": self.workers.cpus, "num_gpus": gpus, "max_restarts": 0}
            # Asked how far it is while it computes, an actor answers from a thread beside. All of them can: one that is
            # asked in a group that it does not have dies, and whether anybody will ask is not known as it starts.
            actor = self.ray.remote(**needs, concurrency_groups={METER: 1})(_Worker)
            self.start: Callable[[], Any] = actor.remote

    def _disconnect(self) -> None:
        """Give up what is lost. The cells that were running wait again, and it does not count against them."""
        for cell in (flight.cell for flight in self.flying.values()):
            if cell is not None:
                self.attempts[cell.id] -= 1
                self.schedule.queues.setdefault(cell.model, deque()).appendleft(cell)
        self.actors, self.flying, self.asked = {}, {}, {}
        self.schedule.holds.clear()
        if self.cluster is not None:
            self.cluster.close()
            self.cluster = None

    def _computed(self, count: int, interruption: Interruption) -> CellResults:
        schedule, stillborn = self.schedule, 0
        for worker in range(min(self.workers.count or _room(self.ray, self.workers), count)):
            self.engage(worker)
        while self.running or any(schedule.queues.values()):
            if interruption.asked.is_set():
                schedule.drain()
            if not self.flying:
                return
            landing = self.landed()
            self._hear()
            if landing is None:
                self._say_what_lacks()
                continue
            self.moved = time.monotonic()
            worker, cell = landing.flight.worker, landing.flight.cell
            if cell is None:
                stillborn = 0 if landing.usable else stillborn + 1
                if stillborn >= STARTS:
                    error = f"{STARTS} workers in a row died as they started: see the logs of Ray"
                    yield from ((cell, Result(cell.id, "failed", error=error)) for cell in schedule.drain())
                    continue
            if landing.usable:  # before its result is kept: it need not wait for that
                self._next(worker, self.give, interruption)
            if cell is not None:
                yield from self._settled(landing.flight, cell, landing.result)
            if not landing.usable:
                self._next(worker, self.hire, interruption)

    def _next(self, worker: int, employ: Callable[[int], None], interruption: Interruption) -> None:
        if interruption.asked.is_set():  # while it was waited for
            self.schedule.drain()
        employ(worker)

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
        self.flying[self.actors[worker].ready.remote(self.evaluator)] = _Flight(worker)

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
            if self.journal is not None:
                self.journal.start(cell.id, deaths.expected(cell))
            deadline = time.monotonic() + (self.workers.timeout or math.inf)
            self.flying[self.actors[worker].run.remote(cell, narrowed(self.evaluator, cell))] = _Flight(
                worker, cell, deadline, memory.kills()
            )

    def landed(self) -> _Landing | None:
        """What ended next; None where the pool has waited for a moment in vain.

        Raises:
            Lost: Ray is gone.
        """
        deadline = min(flight.deadline for flight in self.flying.values())
        wait = max(0.0, min(STEP, deadline - time.monotonic()))
        done, _ = self.ray.wait(list(self.flying), num_returns=1, timeout=wait)
        assert self.cluster is not None
        self.cluster.check()
        if done:
            return self._answer(done[0], self.flying.pop(done[0]))
        late = next((ref for ref, flight in self.flying.items() if flight.deadline <= time.monotonic()), None)
        if late is None:
            return None
        flight = self.flying.pop(late)
        assert flight.cell is not None
        error = f"it took longer than cluster.timeout={self.workers.timeout:g} s; give more, or null for no limit"
        return _Landing(flight, Result(flight.cell.id, "failed", error=error), usable=False)

    def _hear(self) -> None:
        """Pass on how far the cells are, as far as the workers have said, and ask anew."""
        if not meter.is_heard() or time.monotonic() - self.heard < meter.INTERVAL:
            return
        self.heard = time.monotonic()
        for reference in (
            self.ray.wait(list(self.asked), num_returns=len(self.asked), timeout=0)[0] if self.asked else ()
        ):
            del self.asked[reference]
            with suppress(self.ray.exceptions.RayError, self.ray.exceptions.RayTaskError):
                for cell_id, tokens in self.ray.get(reference).items():
                    meter.report(cell_id, tokens)
        waiting = set(self.asked.values())
        for worker in {flight.worker for flight in self.flying.values() if flight.cell is not None} - waiting:
            self.asked[self.actors[worker].tokens.options(concurrency_group=METER).remote()] = worker

    def _answer(self, reference: Any, flight: _Flight) -> _Landing:
        try:
            answer = self.ray.get(reference)
            if flight.cell is None:
                compare(answer)
            result: Result | None = answer if flight.cell is not None else None
        except self.ray.exceptions.RayTaskError as error:
            result = Result(flight.cell.id, "failed", error=str(error)) if flight.cell else None
        except self.ray.exceptions.RayError as error:
            assert self.cluster is not None
            self.cluster.check(now=True)  # all workers die with Ray, and it is none of their cells' doing
            flight = replace(flight, for_memory=_for_memory(error) or memory.killed_since(flight.kills))
            return _Landing(flight, None, usable=False)
        # What CUDA holds after running out of memory or a failed assertion is not to be trusted.
        broken = result is not None and (result.status == "oom" or "CUDA error" in (result.error or ""))
        return _Landing(flight, result, usable=not broken)

    def _settled(self, flight: _Flight, cell: Cell, result: Result | None) -> CellResults:
        """A cell that has its result; or whose worker died, to be tried again as often as allowed."""
        times = self.attempts[cell.id]
        if result is not None:
            yield cell, result
        elif times <= self.workers.retries:
            log.warning("the worker died on %s; trying it again on a fresh one", cell.label)
            self.schedule.queues.setdefault(cell.model, deque()).append(cell)
        else:
            if self.journal is not None:
                self.journal.bury(cell.id)
            how = f"the worker died {times} time{'s'[: times > 1]} on this cell"
            yield cell, deaths.killed(cell, for_memory=flight.for_memory, how=how)

    def _say_what_lacks(self) -> None:
        """A line every minute in which no worker has come."""
        if self.running or time.monotonic() - self.moved < PATIENCE:
            return
        self.moved = time.monotonic()
        wanted = self.workers
        gpus = f" and {wanted.gpus:g} GPU" if wanted.device == "cuda" else ""
        free = {name: n for name, n in self.ray.available_resources().items() if name in ("CPU", "GPU")}
        log.warning(
            "no worker has started yet: each needs %d CPU%s, and of the cluster %s is free",
            wanted.cpus,
            gpus,
            free or "nothing",
        )

    def close(self) -> None:
        """End the workers. Ray itself stays: another grid of this process has it at once."""
        for actor in self.actors.values():
            self.ray.kill(actor)


def _for_memory(error: Exception) -> bool:
    """Whether Ray ended a worker before the kernel would have, as its node was short of memory."""
    return type(error).__name__ == "OutOfMemoryError" or "low on memory" in str(error)


class _Worker:
    """An actor: its process keeps the model loaded from cell to cell."""

    def __init__(self) -> None:
        light.own()
        self.far = dict[str, float]()

    def ready(self, evaluator: Evaluator) -> dict[str, str]:
        """Answers once the process runs: with its versions of all that makes numbers."""
        if evaluator is evaluate:
            threading.Thread(target=warm_up, daemon=True).start()  # while the first cell is on its way
        return provenance.environment()

    def run(self, cell: Cell, evaluator: Evaluator) -> Result:
        self.far.clear()
        with meter.listening(self.far.__setitem__):
            return one(evaluator, cell)

    def tokens(self) -> dict[str, float]:
        """How far the cell is that it computes: tokens by its id."""
        return dict(self.far)


def compare(theirs: Mapping[str, str]) -> None:
    """Hold a worker's versions against those here: what one grid compares must be computed alike.

    Raises:
        Refusal: they differ.
    """
    ours = provenance.environment()
    names = [name for name in ours if name not in ("machine", "driver") and theirs.get(name) != ours[name]]
    if names:
        both = ", ".join(f"{name} {theirs.get(name, 'missing')} there and {ours[name]} here" for name in names)
        if theirs.get("machine") == ours["machine"]:
            raise Refusal(f"what is installed changed since this launch began: {both}; launch again for what is left")
        raise Refusal(f"a worker on another machine has other versions: {both}; install the same on every node")


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
