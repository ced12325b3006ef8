"""The pool: which cell a worker takes, what a death costs. Work is an argument, so no model is needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from launches import until
from support import PROJECT, stub_cell

from pipelines.records.cells import Refusal, Result
from pipelines.workers import cluster, pool, schedule

PATHS = os.pathsep.join([str(Path(__file__).parent), str(PROJECT / "tests")])


def work(cells):
    """Answers with its process, and leaves a mark of every attempt; fails, or waits for a file, as the options ask."""
    for cell in cells:
        options = dict(cell.task.options)
        attempt = 0
        if "folder" in options:
            marks = Path(options["folder"])
            attempt = len(list(marks.glob(f"{cell.id}.*")))
            (marks / f"{cell.id}.{attempt}").touch()
        if attempt < options.get("die_until", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if options.get("raises"):
            raise RuntimeError("a stub's exception")
        time.sleep(options.get("seconds", 0.0))
        while "gate" in options and not Path(options["gate"]).exists():
            time.sleep(0.05)
        errors = {"oom": "out of memory", "cuda": "CUDA error: device-side assert triggered"}
        status = {"oom": "oom", "cuda": "failed"}.get(options.get("ends"), "ok")
        yield Result(cell.id, status, error=errors.get(options.get("ends")), provenance={"pid": os.getpid()})


def silenced(cells):
    from pipelines.tasks.scorer import quiet

    with quiet():
        yield from work(cells)


@pytest.fixture(scope="module")
def ray_workers():
    """Ray is started once for all tests: seconds, and on a busy machine minutes."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATHS)
        yield pool.Workers("cpu", count=2)
    ray.shutdown()


def test_one_cpu_worker_is_this_process_longest_first():
    cells = [stub_cell(length=length) for length in (32, 128, 64)]
    results = list(pool.run(cells, pool.Workers("cpu"), work))
    assert [cell.length for cell, _ in results] == [128, 64, 32]
    assert {result.provenance["pid"] for _, result in results} == {os.getpid()}


def test_a_library_that_ends_the_process_fails_its_cell_and_no_other():
    cells = [stub_cell(length=32), stub_cell(length=64, exits=True)]

    def leaving(todo):
        for cell in todo:
            if dict(cell.task.options).get("exits"):
                sys.exit(3)
            yield from work([cell])

    results = {cell.length: result for cell, result in pool.run(cells, pool.Workers("cpu"), leaving)}
    assert [results[length].status for length in (32, 64)] == ["ok", "failed"]
    assert "SystemExit(3)" in results[64].error


def test_models_are_not_mixed_in_one_worker():
    cells = [stub_cell(model, length) for length in (32, 64) for model in "ab"]
    names = [cell.model.name for cell, _ in pool.run(cells, pool.Workers("cpu"), work)]
    assert names in (["a", "a", "b", "b"], ["b", "b", "a", "a"])


def test_a_free_worker_prefers_its_own_model_then_one_nobody_serves():
    waiting = schedule.queues([stub_cell("a", n) for n in (8, 16, 32)] + [stub_cell("b", n) for n in (8, 16)])
    plan = schedule.Schedule(waiting)
    assert plan.next_for(0).model.name == "a"  # the longest queue
    assert plan.next_for(1).model.name == "b"  # nobody serves b
    assert [plan.next_for(1).model.name for _ in range(2)] == ["b", "a"]  # then it helps out
    assert plan.next_for(0).model.name == "a"
    assert plan.next_for(0) is None


@pytest.mark.slow
def test_ray_workers_share_the_cells_and_replace_the_dead(ray_workers, tmp_path):
    marks = {"folder": str(tmp_path)}
    cells = [stub_cell(length=n, seconds=0.05) for n in range(10, 16)]
    dies_once, dies_always = stub_cell(length=99, die_until=1, **marks), stub_cell(length=98, die_until=9, **marks)
    spent = [stub_cell(length=97, ends="oom"), stub_cell(length=96, ends="cuda")]
    results = dict(pool.run([*cells, dies_once, dies_always, *spent], ray_workers, work))
    assert [results[cell].status for cell in cells] == ["ok"] * 6
    assert results[dies_once].status == "ok" and len(list(tmp_path.glob(f"{dies_once.id}.*"))) == 2
    assert results[dies_always].status == "failed" and "died 2 times" in results[dies_always].error
    pids = {result.provenance["pid"] for cell, result in results.items() if cell in cells}
    assert os.getpid() not in pids
    # After running out of memory, or a failed CUDA assertion, a process is not used again.
    assert [results[cell].status for cell in spent] == ["oom", "failed"]
    assert not pids & {results[cell].provenance["pid"] for cell in spent}


@pytest.mark.sweep
def test_a_thousand_cells_end_as_they_should_and_none_runs_again_after_success(ray_workers, tmp_path):
    """One in a hundred dies (half of them for good), one raises, one takes too long."""
    marks = {"folder": str(tmp_path)}
    kinds = {0: {"die_until": 1}, 50: {"die_until": 9}, 30: {"raises": True}, 60: {"seconds": 60.0}}
    expected = {0: "ok", 50: "failed", 30: "failed", 60: "failed"}
    cells = {n: stub_cell(length=10 + n, **kinds.get(n % 100, {}), **marks) for n in range(1005) if n % 200 != 150}
    results = list(pool.run(list(cells.values()), replace(ray_workers, timeout=1.0), work))
    assert len(results) == len(cells)
    status = {cell.id: result.status for cell, result in results}
    assert all(status[cell.id] == expected.get(n % 100, "ok") for n, cell in cells.items())
    attempts = Counter(path.name.partition(".")[0] for path in tmp_path.iterdir())
    assert all(attempts[cell.id] == (2 if n % 100 in (0, 50) else 1) for n, cell in cells.items())
    late = next(result for cell, result in results if cell.id == cells[60].id)
    assert "cluster.timeout=1" in late.error


STARTED = """
import psutil
from pipelines.workers.cluster import Cluster
from pipelines.workers.pool import Workers
from pipelines.workers.signals import interruptible
with interruptible() as interruption:
    Cluster(Workers("cpu", count=2), interruption)
print("ready", sum("IDLE" in part.name() for part in psutil.Process().children(recursive=True)), flush=True)
"""


@pytest.mark.slow
def test_ray_starts_no_workers_that_nobody_asked_for():
    ran = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert ran.stdout.split() == ["ready", "0"]


@pytest.mark.slow
def test_workers_that_cannot_start_fail_their_cells_instead_of_trying_for_ever(ray_workers):
    class Unborn:
        def __reduce__(self):
            return os._exit, (1,)

    results = list(pool.run([stub_cell(length=n) for n in (8, 16)], ray_workers, Unborn()))
    assert [result.status for _, result in results] == ["failed"] * 2
    assert "died as they started" in results[0][1].error


@pytest.mark.slow
def test_ctrl_c_of_a_terminal_finishes_what_runs_on_ray_and_hands_out_no_more():
    """Ray's workers get it too, as every process of the command does."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_pool import pool, stub_cell, work
cells = [stub_cell(length=n, seconds=1.0) for n in range(8, 28)]
try:
    for cell, result in pool.run(cells, pool.Workers('cpu', count=2), work):
        print(result.status, flush=True)
except KeyboardInterrupt:
    print("interrupted")
"""
    run = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": PATHS},
    )
    lines = [run.stdout.readline()]  # the first cell is finished, the next ones run
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to every process of the command
    rest, warned = run.communicate(timeout=60)
    lines += rest.splitlines(keepends=True)
    assert lines[-1] == "interrupted\n" and 2 <= lines.count("ok\n") <= 4, (lines, warned)
    assert "Finishing running cells; Ctrl-C again aborts" in warned


@pytest.mark.parametrize(
    "given",
    [
        {"count": 0},
        {"device": "cuda", "gpus": 1.5},
        {"device": "cuda", "gpus": 0.0},
        {"timeout": 0.0},
        {"retries": -1},
        {"cpus": 0},
    ],
)
def test_impossible_workers_are_refused(given):
    with pytest.raises(Refusal, match="give"):
        pool.Workers(**given)


def test_a_cluster_is_sent_code_and_the_embedded_model_and_no_results(tmp_path):
    for name in ("rope", "pipelines", "conf", "models/tiny", "models/mine", "mlruns/cells", ".venv/lib", "notes.txt"):
        (tmp_path / name).mkdir(parents=True)
    assert sorted(cluster.left_out(tmp_path)) == ["/.venv", "/mlruns", "/models/mine", "/notes.txt"]


def together(folder):
    """Two cells of which none ends before both have begun."""
    folder.mkdir()

    def open_the_gate():
        until(lambda: len(list(folder.glob("*.0"))) == 2)
        (folder / "gate").touch()

    threading.Thread(target=open_the_gate, daemon=True).start()
    return [stub_cell(length=length, folder=str(folder), gate=str(folder / "gate")) for length in (32, 64)]


@pytest.mark.slow
def test_standing_workers_stay_from_one_batch_to_the_next(ray_workers, tmp_path):
    with pool.standing(ray_workers, work) as batch:
        first = list(batch(together(tmp_path / "first")))
        died = list(batch([stub_cell(length=256, die_until=1, folder=str(tmp_path))]))
        after = list(batch(together(tmp_path / "after")))
        assert list(batch([])) == []
    assert [result.status for _, result in [*first, *died, *after]] == ["ok"] * 5
    before, later = ({result.provenance["pid"] for _, result in batch} for batch in (first, after))
    assert len(before) == len(later) == 2 and len(before & later) == 1  # the one that died was replaced
