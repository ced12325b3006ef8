"""Launches that meet on one store: every cell is computed by one of them, and a dead one holds nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from support import PROJECT, ropewalk, stub_cell

from pipelines.records import leases
from pipelines.records.cells import Result
from pipelines.records.leases import Lease
from pipelines.records.processes import is_running, machine, this_process
from pipelines.records.results import Store
from pipelines.workers import sharing
from pipelines.workers.compute import compute

CELLS = [stub_cell(length=length) for length in (64, 128, 256)]
IDS = {cell.id for cell in CELLS}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sharing, "PAUSE", 0.02)


def computing(store, status="ok", seconds=0.1, cells=CELLS, **options):
    """A launch of the cells: what it computed itself, its results, and what it said."""
    own, said = [], []

    def run(todo):
        for cell in todo:
            own.append(cell.id)
            time.sleep(seconds)
            yield cell, Result(cell.id, status)

    rows = list(compute(cells, store, run, say=said.append, **options))
    return own, {cell.id: result for cell, result in rows}, said


def holder(store, *cell_ids):
    """A process that has cells in hand."""
    script = (
        "import sys, time; from pathlib import Path; from pipelines.records.leases import Lease;"
        "from pipelines.records.results import Store\n"
        "with Lease(Store(Path(sys.argv[1]))) as lease:\n"
        "    print(len(lease.claim(sys.argv[2:])), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(store.root), *cell_ids]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(PROJECT)})
    assert process.stdout is not None and int(process.stdout.readline()) == len(cell_ids)
    return process


@pytest.mark.parametrize("force", [False, True])
def test_two_launches_at_once_compute_every_cell_once_and_both_have_every_result(tmp_path, force):
    with ThreadPoolExecutor(2) as pool:
        launches = [pool.submit(computing, Store(tmp_path), seconds=0.3, force=force) for _ in range(2)]
        (first, one, said), (second, other, also) = (launch.result() for launch in launches)
    assert sorted(first + second) == sorted(IDS)
    assert one == other and set(one) == IDS
    assert len(said + also) == 1 and "3 cells are being computed by another launch" in (said + also)[0]
    assert not list((tmp_path / "leases").glob("*.json"))


def test_a_launch_computes_what_another_does_not_have_in_hand_and_waits_for_the_rest(tmp_path):
    store, elsewhere = Store(tmp_path), set()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(computing, store, seconds=0.3, cells=CELLS[:1])
        while not (tmp_path / "leases").exists() or not list((tmp_path / "leases").glob("*.json")):
            time.sleep(0.01)
        own, results, _ = computing(store, elsewhere=elsewhere)
        other.result()
    assert set(own) == IDS - {CELLS[0].id} and set(results) == IDS and elsewhere == {CELLS[0].id}


def test_what_failed_in_another_launch_is_shown_and_not_tried_again_by_the_one_that_waited(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        launches = [pool.submit(computing, Store(tmp_path), status="failed") for _ in range(2)]
        (first, one, _), (second, other, _) = (launch.result() for launch in launches)
    assert sorted(first + second) == sorted(IDS) and one == other


def test_a_launch_that_ends_without_a_result_leaves_its_cells_to_the_one_that_waits(tmp_path):
    store = Store(tmp_path)
    held = Lease(store).__enter__()
    assert held.claim(IDS) == IDS
    threading.Timer(0.3, lambda: held.__exit__(None, None, None)).start()
    own, results, said = computing(store, seconds=0)
    assert set(own) == set(results) == IDS and len(said) == 1


def test_a_killed_launch_holds_nothing_and_a_living_one_what_it_has(tmp_path):
    store = Store(tmp_path)
    process = holder(store, CELLS[0].id)
    with Lease(store) as lease:
        assert lease.claim(IDS) == IDS - {CELLS[0].id}
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lease.claim([CELLS[0].id]) == {CELLS[0].id}


def lease_of(store, process, age):
    file = store.root / "leases" / "other.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"process": process, "since": "", "cells": [CELLS[0].id]}))
    os.utime(file, (time.time() - age,) * 2)


@pytest.mark.parametrize(
    ("process", "age", "holds"),
    [
        ("0123456789ab:1:1", 0.0, True),
        ("0123456789ab:1:1", leases.EXPIRY + 10, False),
        (f"{machine()}:{os.getpid()}:1", 0.0, False),
        (this_process(), leases.EXPIRY + 10, True),
        ("nobody", 0.0, False),
    ],
    ids=[
        "another machine, renewed",
        "another machine, silent",
        "a later process of the number",
        "ours, slow",
        "damaged",
    ],
)
def test_a_lease_holds_while_its_process_can_be_alive(tmp_path, process, age, holds):
    store = Store(tmp_path)
    lease_of(store, process, age)
    with Lease(store) as lease:
        assert lease.claim(IDS) == (IDS - {CELLS[0].id} if holds else IDS)
    assert (tmp_path / "leases" / "other.json").exists() == holds


def test_a_clock_that_is_set_leaves_what_is_alive_alive(tmp_path, monkeypatch):
    """psutil reckons a start from the boot, whose time moves with the clock."""
    store, living = Store(tmp_path), this_process()
    lease_of(store, living, 0.0)
    for_another = store.root / "leases" / "0123456789ab-1-a.json"
    for_another.touch()
    started, now = psutil.Process.create_time, time.time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: started(process) + 3600.0)
    monkeypatch.setattr(time, "time", lambda: now() + 3600.0)
    assert is_running(living) and leases.lives(store, living) and leases.lives(store, "0123456789ab:1:1")
    with Lease(store) as lease:
        assert lease.claim(IDS) == IDS - {CELLS[0].id}


def test_a_lease_is_renewed_while_its_launch_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "RENEWAL", 0.05)
    with Lease(Store(tmp_path)) as lease:
        lease.claim(IDS)
        [file] = (tmp_path / "leases").glob("*.json")
        os.utime(file, (0, 0))
        time.sleep(0.5)
        assert time.time() - file.stat().st_mtime < 60


def test_where_no_lease_can_be_written_every_cell_is_computed(tmp_path, caplog):
    (tmp_path / "leases").write_text("a file in the place of the folder")
    own, results, _ = computing(Store(tmp_path), seconds=0)
    assert set(own) == set(results) == IDS and "nothing is left to them" in caplog.text


def test_a_process_is_known_by_its_start_and_names_no_machine():
    import socket

    assert is_running(this_process()) is True and socket.gethostname() not in this_process()
    assert is_running(f"{machine()}:{os.getpid()}:1") is False and is_running("elsewhere:1:1") is None


def test_two_processes_at_once_compute_every_cell_once(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from test_leases import CELLS, computing, Store\n"
        "(Path(sys.argv[1]) / sys.argv[2]).touch()\n"
        "while len(list(Path(sys.argv[1]).glob('ready-*'))) < 2: time.sleep(0.01)\n"
        "own, results, _ = computing(Store(Path(sys.argv[1])), seconds=0.3); print(len(own), len(results))"
    )
    paths = os.pathsep.join([str(PROJECT), str(PROJECT / "tests"), str(PROJECT / "tests" / "records")])
    launches = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), f"ready-{number}"],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        for number in range(2)
    ]
    answers = [launch.communicate(timeout=120)[0].split() for launch in launches]
    assert sorted(answers) == [[b"0", b"3"], [b"3", b"3"]]


@pytest.mark.sweep
def test_two_identical_grids_at_once_compute_every_cell_once(tmp_path):
    words = ("grid", "strategy=none,yarn", "length=576", "task=perplexity", "limit=1", f"store={tmp_path}")
    with ThreadPoolExecutor(2) as pool:
        ran = list(pool.map(lambda _: ropewalk(*words), range(2)))
    assert [launch.returncode for launch in ran] == [0, 0], [launch.stdout + launch.stderr for launch in ran]
    computed = sum(launch.stdout.count("being computed by another launch") for launch in ran)
    assert computed == 1, [launch.stdout for launch in ran]
    assert len(list(tmp_path.glob("cells/*/result.json"))) == 2
    from pipelines import track

    client = track.connect(Store(tmp_path))
    found = client.search_runs([client.get_experiment_by_name("ropewalk").experiment_id])
    fresh = [run for run in found if run.data.tags.get("cached") == "false"]
    assert len(fresh) == 2, [run.data.tags for run in found]
