"""What is recorded together is committed together: of a cell MLflow has everything or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import PROJECT, random_cell

from pipelines import track
from pipelines.choices.sweep import Sweep
from pipelines.records.cells import Result
from pipelines.report import tables
from pipelines.track.database import start_run, transaction

CELLS = [random_cell("none", length) for length in (64, 128, 256)]
SWEEP = Sweep("an-experiment", tuple(CELLS), "ropewalk grid")


def answer(cell, **metrics):
    return Result(cell.id, "ok", metrics or {"ppl": 3.0}, {"nll_by_position": [(0.5, 1.0), (1.0, 2.0)]})


@contextmanager
def commits():
    """How many times any database was committed in the block, as sqlite counts them: reading alone is none."""
    from sqlalchemy import Engine, event

    counted = []

    def count(connection):
        if connection.connection.dbapi_connection.in_transaction:
            counted.append(connection)

    event.listen(Engine, "commit", count)
    yield counted
    event.remove(Engine, "commit", count)


def runs(client, kind="cell"):
    experiment = client.get_experiment_by_name("an-experiment")
    return client.search_runs([experiment.experiment_id], f"tags.`ropewalk.kind` = '{kind}'")


def test_a_cell_is_one_commit_and_a_conclusion_one_a_curve_and_two_of_its_own(store, client):
    rows = [(cell, answer(cell)) for cell in CELLS]
    with track.Tracker.open(SWEEP, store) as tracker:
        for cell, result in rows:
            store.save(cell, result)
            with commits() as made:
                tracker.record([cell], result)
            assert len(made) == 1
        with commits() as made:
            tracker.conclude(rows, tables.tables(rows))
        assert len(made) == len(runs(client, "curve")) + 2 == 3
    assert {run.info.status for run in runs(client)} == {"FINISHED"} and len(runs(client)) == 3
    assert all(run.inputs.dataset_inputs and len(client.list_artifacts(run.info.run_id)) == 3 for run in runs(client))


def test_of_a_cell_that_could_not_be_recorded_to_the_end_nothing_is_left_and_the_others_are(store, client, monkeypatch):
    with track.Tracker.open(SWEEP, store) as tracker:
        for cell in CELLS:
            store.save(cell, answer(cell))
        tracker.record([CELLS[0]], answer(CELLS[0]))
        with monkeypatch.context() as broken:
            broken.setattr(type(client), "log_inputs", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                tracker.record([CELLS[1]], answer(CELLS[1]))
        tracker.record([CELLS[2]], answer(CELLS[2]))
    assert {run.data.tags["cell_id"] for run in runs(client)} == {CELLS[0].id, CELLS[2].id}


def test_a_driver_that_is_killed_while_it_records_a_cell_leaves_no_run_of_it(store, client):
    script = """
import os, signal
from test_transactions import CELLS, SWEEP, answer, track
from pipelines.records.results import Store
store = Store(__import__("pathlib").Path(os.environ["FOLDER"]))
with track.Tracker.open(SWEEP, store) as tracker:
    for cell in CELLS:
        store.save(cell, answer(cell))
    tracker.record([CELLS[0]], answer(CELLS[0]))
    type(tracker.client).log_inputs = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    tracker.record([CELLS[1]], answer(CELLS[1]))
"""
    paths = os.pathsep.join([str(Path(__file__).parent), str(PROJECT / "tests"), str(PROJECT)])
    ran = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "FOLDER": str(store.root), "PYTHONPATH": paths}
    )
    assert ran.returncode == -signal.SIGKILL
    assert [(run.data.tags["cell_id"], run.info.status) for run in runs(client)] == [(CELLS[0].id, "FINISHED")]
    track.connect(store)
    assert [run.info.status for run in runs(client, "sweep")] == ["KILLED"]


def test_a_metric_that_is_written_twice_costs_nothing_else_of_its_transaction(client):
    experiment = client.create_experiment("an-experiment")
    with transaction(client), start_run(client, experiment, "a run", {}) as run:
        for _ in range(2):
            run.log({"a": 1}, [("once", 1.0, 0)], at=5)
        run.log({"b": 2}, [("once", 1.0, 0), ("more", 2.0, 0)], at=5)
    read = client.get_run(run.id)
    assert read.info.status == "FINISHED" and read.data.params == {"a": "1", "b": "2"}
    assert read.data.metrics == {"once": 1.0, "more": 2.0}
    assert len(client.get_metric_history(run.id, "once")) == 1


def test_another_thread_and_what_comes_after_have_transactions_of_their_own(client):
    seen = []
    experiment = client.create_experiment("an-experiment")
    with transaction(client):
        with transaction(client):  # joins the outer one
            client.set_experiment_tag(experiment, "a", "1")
        reader = threading.Thread(target=lambda: seen.append(dict(client.get_experiment(experiment).tags)))
        reader.start()
        reader.join()
        assert client.get_experiment(experiment).tags["a"] == "1"
    assert "a" not in seen[0] and client.get_experiment(experiment).tags["a"] == "1"
    with commits() as made:
        client.set_experiment_tag(experiment, "b", "2")
    assert len(made) == 1


def test_a_server_commits_by_itself(client, monkeypatch):
    from mlflow import MlflowClient

    server = MlflowClient("http://127.0.0.1:1")  # nobody is there, and nobody is asked
    with transaction(server), transaction(client):
        client.create_experiment("an-experiment")
    assert client.get_experiment_by_name("an-experiment") is not None


def test_a_store_with_other_insides_is_left_to_commit_by_itself():
    store = SimpleNamespace(db_type="sqlite", engine=None)
    with transaction(SimpleNamespace(_tracking_client=SimpleNamespace(store=store))):
        pass
    assert vars(store) == {"db_type": "sqlite", "engine": None}
