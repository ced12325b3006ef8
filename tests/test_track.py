"""MLflow: one writer, the user's own server where one is named, and what an interrupted sweep leaves."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from test_evaluate import a_cell

from pipelines import track
from pipelines.__main__ import run
from pipelines.cells import Refusal, Result
from pipelines.results import Store
from pipelines.sweep import Sweep


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(tmp_path)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A database that is there already: making one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def client(store, template):
    import shutil

    from mlflow import MlflowClient

    shutil.copy(template, store.root / "mlflow.db")
    return MlflowClient(track.tracking_uri(store))


def recorded(store, cell, result):
    with track.Tracker.open(Sweep("an-experiment", (cell,), command="ropewalk grid x=1"), store) as tracker:
        store.save(cell, result)
        tracker.record([cell], result, cached=False)
        tracker.conclude([(cell, result)])


def the_run(client, kind):
    experiment = client.get_experiment_by_name("an-experiment")
    [found] = client.search_runs([experiment.experiment_id], f"tags.`ropewalk.kind` = '{kind}'")
    return found


def test_a_cell_brings_metrics_params_series_and_its_command(store, client):
    cell = replace(a_cell("yarn", 256, beta_fast=16.0), limit=3)
    series = {"nll_by_position": [(128.0, 3.0), (256.0, 2.0)], "acc_by_depth": [(0.1, 1.0), (0.5, 0.0)]}
    recorded(store, cell, Result(cell.id, "ok", {"ppl": 7.5, "ppl_stderr": 0.5}, series, cost={"seconds": 2.0}))
    run = the_run(client, "cell")
    assert run.data.metrics["perplexity/ppl"] == 7.5 and run.data.metrics["perplexity/ppl_stderr"] == 0.5
    assert run.data.metrics["seconds"] == 2.0
    assert run.data.params["strategy.beta_fast"] == "16.0" and run.data.params["strategy.beta_slow"] == "1.0"
    assert run.data.params["limit"] == "3" and run.data.params["task.text"] == "pydoc"
    assert run.data.tags["mlflow.note.content"] == "`ropewalk grid x=1`"
    for name, points in (("nll_by_position", [(128, 3.0), (256, 2.0)]), ("acc_by_depth", [(10, 1.0), (50, 0.0)])):
        history = client.get_metric_history(run.info.run_id, f"perplexity/{name}")
        assert sorted((m.step, m.value) for m in history) == points


def test_what_was_not_measured_is_absent(store, client):
    cell = a_cell("none", 128)
    recorded(store, cell, Result(cell.id, "oom", error="CUDA out of memory"))
    run = the_run(client, "cell")
    assert not any(name.startswith("perplexity/") for name in run.data.metrics)
    assert run.data.tags["status"] == "oom" and run.info.status == "FINISHED"
    assert the_run(client, "sweep").data.metrics == {"cells/oom": 1.0}


def test_a_failed_cell_is_a_failed_run(store, client):
    cell = a_cell("none", 128)
    recorded(store, cell, Result(cell.id, "failed", error="Traceback\nValueError: no"))
    run = the_run(client, "cell")
    assert run.info.status == "FAILED" and "ValueError: no" in run.data.tags["mlflow.note.content"]


def test_a_sweep_that_is_interrupted_does_not_stay_running(store, client):
    cell = a_cell("none", 128)
    with pytest.raises(KeyboardInterrupt), track.Tracker.open(Sweep("an-experiment", (cell,), "ropewalk grid"), store):
        raise KeyboardInterrupt
    assert the_run(client, "sweep").info.status == "KILLED"


def test_a_tracking_server_of_the_users_wins(store, monkeypatch):
    assert track.tracking_uri(store) == f"sqlite:///{store.root / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert track.tracking_uri(store) == "http://127.0.0.1:1"


def test_the_ui_without_results_says_what_to_do_first(tmp_path, capsys):
    assert run(["ui", f"store={tmp_path}"]) == 2
    assert "ropewalk grid" in capsys.readouterr().err
    assert run(["ui", "5001", "5002"]) == 2
    assert run(["ui", "--help"]) == 0 and "PORT" in capsys.readouterr().out
    assert issubclass(Refusal, ValueError)


def test_only_a_driver_imports_mlflow():
    script = "import sys; import pipelines.evaluate, pipelines.pool; print('mlflow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
