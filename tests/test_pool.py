"""The pool: which cell a worker takes, what a death costs. Work is an argument, so no model is needed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipelines import pool
from pipelines.cells import Cell, Model, Refusal, Result, Task, frozen
from rope.geometry import ALL_LAYERS, Plan


def a_cell(model="m", length=64, **task_options) -> Cell:
    return Cell(
        model=Model(model, f"/{model}", fingerprint=model), strategy="none", options=(), length=length,
        plans=((ALL_LAYERS, Plan((1.0, 0.1))),), task=Task("stub", frozen(task_options)), data="", limit=None, seed=0,
        dtype="float32", device="cpu",
    )  # fmt: skip


def work(cells):
    """Answers with its process; dies or raises where the cell's options ask for it."""
    for cell in cells:
        options = dict(cell.task.options)
        if "die_until" in options:
            marks = Path(options["folder"])
            attempt = len(list(marks.iterdir()))
            (marks / str(attempt)).touch()
            if attempt < options["die_until"]:
                os._exit(1)
        if options.get("oom"):
            yield Result(cell.id, "oom", error="out of memory", provenance={"pid": os.getpid()})
            continue
        time.sleep(0.05)
        yield Result(cell.id, "ok", metrics={"x": 1.0}, provenance={"pid": os.getpid()})


@pytest.fixture
def ray_workers(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    import ray

    yield pool.Workers("cpu", count=2)
    ray.shutdown()


def test_one_cpu_worker_is_this_process_longest_first():
    cells = [a_cell(length=length) for length in (32, 128, 64)]
    results = list(pool.run(cells, pool.Workers("cpu"), work))
    assert [cell.length for cell, _ in results] == [128, 64, 32]
    assert {result.provenance["pid"] for _, result in results} == {os.getpid()}


def test_models_are_not_mixed_in_one_worker():
    cells = [a_cell(model, length) for length in (32, 64) for model in "ab"]
    names = [cell.model.name for cell, _ in pool.run(cells, pool.Workers("cpu"), work)]
    assert names in (["a", "a", "b", "b"], ["b", "b", "a", "a"])


def test_a_free_worker_prefers_its_own_model_then_one_nobody_serves():
    queues = pool._queues([a_cell("a", n) for n in (8, 16, 32)] + [a_cell("b", n) for n in (8, 16)])
    schedule = pool._Schedule(queues)
    assert schedule.next_for(0).model.name == "a"  # the longest queue
    assert schedule.next_for(1).model.name == "b"  # nobody serves b
    assert [schedule.next_for(1).model.name for _ in range(2)] == ["b", "a"]  # then it helps out
    assert schedule.next_for(0).model.name == "a"
    assert schedule.next_for(0) is None


def test_ray_workers_share_the_cells_and_replace_the_dead(ray_workers, tmp_path):
    once, always = tmp_path / "once", tmp_path / "always"
    once.mkdir(), always.mkdir()
    cells = [a_cell(length=n) for n in range(10, 16)]
    dies_once = a_cell(length=99, die_until=1, folder=str(once))
    dies_always = a_cell(length=98, die_until=9, folder=str(always))
    oom = a_cell(length=97, oom=True)
    results = dict(pool.run([*cells, dies_once, dies_always, oom], ray_workers, work))
    assert [results[cell].status for cell in cells] == ["ok"] * 6
    assert results[dies_once].status == "ok" and len(list(once.iterdir())) == 2
    assert results[dies_always].status == "failed" and "died 2 times" in results[dies_always].error
    pids = {result.provenance["pid"] for cell, result in results.items() if cell in cells}
    assert os.getpid() not in pids
    assert results[oom].status == "oom" and results[oom].provenance["pid"] not in pids


@pytest.mark.parametrize("given", [{"count": 0}, {"device": "cuda", "gpus": 1.5}, {"device": "cuda", "gpus": 0.0}])
def test_impossible_workers_are_refused(given):
    with pytest.raises(Refusal, match="give"):
        pool.Workers(**given)
