"""Cells whose forwards end before all are made: evaluators for processes that a test ends."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from support import TINY, random_cell

from pipelines.choices.config import Cluster, Device, ModelChoice, Workbench
from pipelines.choices.sweep import cell_of

AFTER = 3
"""Forwards until a cell is cut short, the first time."""


def quick_cell():
    return random_cell(limit=6)


def tiny_cell(limit, task=None, length=96, strategy="yarn"):
    return cell_of(
        Workbench(
            model=ModelChoice("tiny", str(TINY)),
            strategy={"name": strategy, "factor": 2.0} if strategy == "yarn" else {"name": strategy},
            length=length,
            limit=limit,
            cluster=Cluster(device=Device.cpu),
            task=task or {"name": "perplexity"},
        )
    )


def scored(result, name):
    """A part of a result as it is kept (lists for tuples), but for what was sampled of the machine."""
    value = json.loads(json.dumps(getattr(result, name)))
    return {key: row for key, row in value.items() if not key.startswith("system/")} if name == "series" else value


def one_a_forward(monkeypatch=None):
    """Every document in a forward of its own: the short ones of a test would share one."""
    from pipelines.tasks import scorer

    batches = scorer.batches
    alone = lambda rows, tokens: batches(rows, 1)  # noqa: E731
    monkeypatch.setattr(scorer, "batches", alone) if monkeypatch else setattr(scorer, "batches", alone)


class Cut:
    """An evaluator whose process kills itself, or sleeps, after some forwards; the next one goes to the end."""

    def __init__(self, evaluator, how: str, mark: Path) -> None:
        self.evaluator, self.how, self.mark = evaluator, how, mark

    def __call__(self, cells):
        from pipelines.tasks.scorer import LongLM

        one_a_forward()
        states, made = LongLM._states, []

        def cut(lm, rows, keep):
            made.append(rows)
            if len(made) > AFTER and not self.mark.exists():
                self.mark.touch()
                if self.how == "hang":
                    time.sleep(600)
                os.kill(os.getpid(), signal.SIGKILL)
            return states(lm, rows, keep=keep)

        LongLM._states = cut
        try:
            yield from self.evaluator(cells)
        finally:
            LongLM._states = states


def main(store: str, mark: str) -> None:
    """A launch of one cell that kills itself."""
    from pipelines.records.journal import Journal
    from pipelines.records.results import Store
    from pipelines.workers import compute, pool

    kept = Store(Path(store))
    cell = quick_cell()
    cut = Cut(compute._reusing([cell], kept), "kill", Path(mark))
    for _ in compute.compute([cell], kept, lambda todo: pool.run(todo, pool.Workers("cpu"), cut, Journal(kept))):
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
