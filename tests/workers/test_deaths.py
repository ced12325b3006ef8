"""Deaths are remembered: what a launch after a kill makes of the cells that the killed one had in hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from launches import Launch, until
from support import PROJECT, random_cell, stub_cell
from test_pool import PATHS, work

from pipelines.records import journal as journals
from pipelines.records import memory, processes
from pipelines.records.cells import Result
from pipelines.records.journal import Journal
from pipelines.records.processes import this_process
from pipelines.records.results import Store
from pipelines.workers import deaths, pool
from pipelines.workers.compute import compute, settled

HERE = {"device": "cpu"}
CELLS = [stub_cell(length=length) for length in (32, 64)]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def launched(cells, store, evaluator=work, **options):
    journal = Journal(store)
    return dict(compute(cells, store, lambda todo: pool.run(todo, pool.Workers("cpu"), evaluator, journal), **options))


def killed_launch(cells, store):
    """A launch in a process of its own, which is killed in its first cell that dies."""
    script = f"""
import sys
sys.path[:0] = {PATHS.split(os.pathsep)!r}
from test_deaths import Store, launched, stub_cell
store = Store.at({str(store.root)!r})
launched([stub_cell(length=length, **options) for length, options in {cells!r}], store)
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, check=False)
    assert run.returncode == -signal.SIGKILL


def test_after_a_kill_the_cell_it_died_in_is_left_out_and_the_others_are_computed(store):
    killed_launch([(99, {"die_until": 1}), (32, {})], store)
    died, other = stub_cell(length=99, die_until=1), stub_cell(length=32)
    for _ in range(2):  # the second launch reads what the first one said
        results = launched([died, other], store)
        assert results[other].status == "ok"
        assert results[died].status == "failed" and "retry=true" in results[died].error_line
        assert "was killed" in results[died].error_line
    launched([died], store, lambda cells: (Result(cell.id, "ok") for cell in cells), retry=True)
    assert settled([died], store)[died.id].status == "ok"


def test_a_kill_for_memory_is_a_result_and_is_tried_again_on_request(store, monkeypatch, tmp_path):
    counter = tmp_path / "vmstat"
    counter.write_text("oom_kill 4\n")
    monkeypatch.setattr(memory, "kills", lambda: {str(counter): 4})
    Journal(store).start(CELLS[0].id)
    monkeypatch.setattr(journals, "lives", lambda store, process: False)
    counter.write_text("oom_kill 5\n")
    assert settled(CELLS, store)[CELLS[0].id].status == "oom"
    assert store.read(CELLS[0].id).status == "oom" and CELLS[1].id not in settled(CELLS, store)
    assert settled(CELLS, store, retry=True) == {} == settled(CELLS, store, force=True)


HUNGRY = """
def hungry(cells):
    for cell in cells:
        taken = [b"x" * 2**20 for _ in range(4096)] if cell.length == 99 else []
        yield from work([cell])
"""


@pytest.fixture
def group(tmp_path):
    """A control group of 500 MiB, of either version; where none can be made, its test is left out."""
    root = next(
        (memory.GROUPS / name for name in ("memory", "") if (memory.GROUPS / name / "cgroup.procs").exists()), None
    )
    folder = (root or tmp_path / "none") / f"ropewalk-test-{os.getpid()}"
    try:
        folder.mkdir()
        names = ("memory.limit_in_bytes",) if root.name == "memory" else ("memory.max", "memory.swap.max")
        for name, limit in zip(names, (str(500 * 2**20), "0"), strict=False):
            (folder / name).write_text(limit)
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    until(lambda: not (folder / "cgroup.procs").read_text(), 10)
    folder.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("child", [False, True], ids=["the driver itself", "its child"])
def test_a_real_kill_by_the_kernel_for_memory_is_oom_and_costs_no_other_cell(tmp_path, group, child):
    enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
    near = "from pipelines.workers import deaths; deaths.expected = lambda cell: 1e15" if child else ""
    (tmp_path / "hungry.py").write_text(f"from test_pool import work\n{HUNGRY}")  # where the child finds it
    before = "\n".join([enter, near, "from hungry import hungry"])
    launch = Launch(tmp_path, [(99, {}), (32, {})], HERE, before=before, evaluator="hungry", paths=[str(tmp_path)])
    lines, _ = launch.end()
    store, cells = Store(tmp_path / "store"), [stub_cell(length=99), stub_cell(length=32)]
    if child:
        assert lines == ["start", "oom 99", "ok 32"] and launch.process.returncode == 0, launch.errors
    else:
        assert lines == ["start"] and launch.process.returncode == -signal.SIGKILL and len(launch.noted) == 1
        results = launched(cells, store)
        assert [results[cell].status for cell in cells] == ["oom", "ok"]
        assert "the kernel killed this cell's process" in results[cells[0]].error


def test_a_search_goes_on_with_what_was_killed_but_not_for_memory(store, monkeypatch):
    Journal(store).start(CELLS[0].id)
    monkeypatch.setattr(journals, "lives", lambda store, process: False)
    assert settled(CELLS, store, resume=True) == {}
    assert set(settled(CELLS, store)) == {CELLS[0].id}


def test_a_cell_that_another_process_has_in_hand_has_not_died(store):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        journal = Journal(store)
        where, _, _ = this_process().rsplit(":", 2)
        start, born = journal.start(CELLS[0].id), psutil.Process(sleeper.pid).create_time()
        boot, _, ticks = processes.named(sleeper.pid).rpartition(":")[2].partition("-")

        def dead(process):
            journal._write(CELLS[0].id, replace(start, process=process))
            return set(journal.dead([CELLS[0].id]))

        living = processes.named(sleeper.pid)
        assert dead(living) == set() == dead(f"{where}:{sleeper.pid}:{born:.0f}")  # as earlier versions wrote it
        assert dead(f"{where}:{sleeper.pid}:{boot}-{int(ticks) - 1}") == {CELLS[0].id}  # the number came again
        assert dead(f"{where}:{sleeper.pid}:{'0' * 8}-{ticks}") == {CELLS[0].id}  # so did the machine
        assert dead(f"{where}:{sleeper.pid}:{born - 100:.0f}") == {CELLS[0].id}  # the number came again
        assert dead(f"elsewhere:{sleeper.pid}:{born:.0f}") == {CELLS[0].id}  # no lease of it is renewed
        lease = store.root / "leases" / f"elsewhere-{sleeper.pid}-1.json"
        lease.parent.mkdir()
        lease.touch()
        assert dead(f"elsewhere:{sleeper.pid}:{born:.0f}") == set()
        sleeper.kill()
        until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE)  # dead, though not waited for
        assert dead(living) == {CELLS[0].id}
    finally:
        sleeper.kill()
        sleeper.wait()


def test_nothing_is_left_of_the_journal_after_a_launch_that_ended_whatever_way(store):
    def interrupted(cells):
        raise KeyboardInterrupt

    launched(CELLS, store)
    with pytest.raises(KeyboardInterrupt):
        launched([stub_cell(length=128)], store, interrupted)
    assert not list(store.root.glob("cells/*/started.json"))


@pytest.mark.parametrize("damage", ["", "[]", '{"pid": 1}', "null", '{"unknown": 1}'])
def test_a_damaged_journal_says_nothing(store, damage):
    file = store.cell(CELLS[0].id) / "started.json"
    file.parent.mkdir(parents=True)
    file.write_text(damage)
    assert settled(CELLS, store) == {}


@pytest.fixture
def close(monkeypatch):
    """Memory that every cell comes close to."""
    monkeypatch.setattr(deaths, "expected", lambda cell: 1e15)
    monkeypatch.setenv("PYTHONPATH", PATHS)


def test_a_cell_close_to_the_limit_computes_in_a_child_which_takes_the_kill(store, close, tmp_path):
    marks = {"folder": str(tmp_path)}
    cells = [stub_cell(length=99, die_until=9, **marks), stub_cell(length=64, die_until=1, **marks), CELLS[0]]
    results = launched(cells, store)
    assert [results[cell].status for cell in cells] == ["failed", "ok", "ok"]
    assert "SIGKILL" in results[cells[0]].error and "retry=true" in results[cells[0]].error
    pids = {results[cell].provenance["pid"] for cell in cells[1:]}
    assert len(pids) == 1 and os.getpid() not in pids
    assert launched(cells, store)[cells[0]].error == results[cells[0]].error  # left out
    assert len(list(tmp_path.glob(f"{cells[0].id}.*"))) == 2


def test_a_childs_kill_for_memory_is_oom_at_once_with_the_length_that_fits(store, close, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "killed_since", lambda before: True)
    cell = replace(random_cell(length=256), task=stub_cell(die_until=9, folder=str(tmp_path)).task)
    [result] = launched([cell], store).values()
    assert result.status == "oom" and "largest length that fits is about" in result.error
    assert len(list(tmp_path.glob(f"{cell.id}.*"))) == 1


def test_a_cell_far_from_the_limit_computes_in_this_process(store):
    assert {result.provenance["pid"] for result in launched(CELLS, store).values()} == {os.getpid()}


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")],
    ids=["python", "torch"],
)
def test_a_failed_host_allocation_is_oom_and_says_what_fits(monkeypatch, error):
    from pipelines.workers import evaluate

    def fails(cell):
        raise error

    [result] = evaluate.evaluate([random_cell(length=256)], fails)
    assert result.status == "oom" and "largest length that fits is about" in result.error_line


def test_an_allocation_that_torch_cannot_make_is_oom():
    import torch

    from pipelines.workers import evaluate

    [result] = evaluate.evaluate([random_cell(length=256)], lambda cell: torch.empty(2**50))
    assert result.status == "oom", result.error
