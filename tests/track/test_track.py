"""MLflow: one writer, the user's own server where one is named, and what an interrupted sweep leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from support import PROJECT, random_cell

from pipelines import track
from pipelines.choices.sweep import Sweep
from pipelines.cli.main import run
from pipelines.records.cells import Refusal, Result
from pipelines.records.results import Store
from pipelines.report import tables
from pipelines.report.page import Page
from pipelines.track import launch

PATHS = os.pathsep.join([str(Path(__file__).parent), str(PROJECT / "tests")])


def recorded(store, *rows):
    sweep = Sweep("an-experiment", tuple(cell for cell, _ in rows), command="ropewalk grid x=1")
    store.save_sweep(sweep.id, sweep.spec())
    with track.Tracker.open(sweep, store) as tracker:
        for cell, result in rows:
            store.save(cell, result)
            tracker.record([cell], result)
        tracker.conclude(rows, tables.tables(rows))
        tracker.finish()


def test_the_run_of_a_sweep_has_the_page_and_its_figures(store, client, tmp_path):
    folder = tmp_path / "a page"
    (folder / "figures").mkdir(parents=True)
    for name in ("report.html", "figures/ppl.svg", "figures/ppl.csv"):
        (folder / name).write_text(name)
    cell = random_cell("none", 128)
    sweep = Sweep("an-experiment", (cell,), command="ropewalk grid x=1")
    with track.Tracker.open(sweep, store) as tracker:
        tracker.conclude([(cell, Result(cell.id, "failed"))], [])
        tracker.finish(Page(folder / "report.html", 1))
    run = the_run(client, "sweep")
    kept = {file.path for place in (None, "figures") for file in client.list_artifacts(run.info.run_id, place)}
    assert {"report.html", "figures/ppl.svg", "figures/ppl.csv"} <= kept


def the_runs(client, kind):
    experiment = client.get_experiment_by_name("an-experiment")
    return list(client.search_runs([experiment.experiment_id], f"tags.`ropewalk.kind` = '{kind}'"))


def the_run(client, kind):
    [run] = the_runs(client, kind)
    return run


def curve(client, run, metric):
    return sorted(
        (m.step, m.value) for m in client.get_metric_history(run.info.run_id, f"perplexity by length/{metric}")
    )


def test_a_cell_brings_metrics_params_series_and_its_command(store, client):
    cell = replace(random_cell("yarn", 256, beta_fast=16.0), limit=3)
    series = {"nll_by_position": [(128.0, 3.0), (256.0, 2.0)], "acc_by_depth": [(0.1, 1.0), (0.5, 0.0)]}
    recorded(store, (cell, Result(cell.id, "ok", {"ppl": 7.5, "ppl_stderr": 0.5}, series, cost={"seconds": 2.0})))
    run = the_run(client, "cell")
    assert run.data.metrics["perplexity/ppl"] == 7.5 and run.data.metrics["perplexity/ppl_stderr"] == 0.5
    assert run.data.metrics["seconds"] == 2.0
    assert run.data.params["strategy.beta_fast"] == "16.0" and run.data.params["strategy.beta_slow"] == "1.0"
    assert run.data.params["limit"] == "3" and run.data.params["task.text"] == "pydoc"
    assert run.data.tags["mlflow.note.content"] == "`ropewalk grid x=1`"
    for name, points in (("nll_by_position", [(128, 3.0), (256, 2.0)]), ("acc_by_depth", [(10, 1.0), (50, 0.0)])):
        history = client.get_metric_history(run.info.run_id, f"perplexity/{name}")
        assert sorted((m.step, m.value) for m in history) == points


def test_a_sweep_has_gains_over_cropping_by_length_and_effective_lengths(store, client):
    rows = []
    for strategy, shift in (("crop", 0.0), ("yarn factor=2", -0.1)):
        name, _, option = strategy.partition(" ")
        options = (("factor", 2.0),) if option else ()
        cell = replace(random_cell(strategy="none", length=512), strategy=name, options=options)
        plan = replace(cell.plans[0][1], attention_factor=1 + abs(shift))
        cell = replace(cell, plans=(("all", plan),))
        documents = [{"index": n, "tokens": 512, "nll": 3 + shift + n / 1000 * (name == "yarn")} for n in range(8)]
        rows.append((cell, Result(cell.id, "ok", {"ppl": 20.0}, documents=documents, digest="d")))
    recorded(store, *rows)
    metrics = the_run(client, "sweep").data.metrics
    assert metrics["context_gain/perplexity yarn factor_2.0"] == pytest.approx(1 - 2.718281828 ** (-0.1 + 0.0035))
    assert metrics["effective_length/perplexity yarn factor_2.0 gain"] == 512


def test_what_was_not_measured_is_absent(store, client):
    cell = random_cell("none", 128)
    recorded(store, (cell, Result(cell.id, "oom", error="CUDA out of memory")))
    run = the_run(client, "cell")
    assert not any(name.startswith("perplexity/") for name in run.data.metrics)
    assert run.data.tags["status"] == "oom" and run.info.status == "FINISHED"
    sweep = the_run(client, "sweep").data
    assert sweep.params == {"cells oom": "1"} and not sweep.metrics  # MLflow draws a bar of every metric


def test_a_failed_cell_is_a_failed_run(store, client):
    cell = random_cell("none", 128)
    recorded(store, (cell, Result(cell.id, "failed", error="Traceback\nValueError: no")))
    run = the_run(client, "cell")
    assert run.info.status == "FAILED" and "ValueError: no" in run.data.tags["mlflow.note.content"]


def test_a_sweep_that_is_interrupted_does_not_stay_running(store, client):
    cell = random_cell("none", 128)
    with pytest.raises(KeyboardInterrupt), track.Tracker.open(Sweep("an-experiment", (cell,), "ropewalk grid"), store):
        raise KeyboardInterrupt
    assert the_run(client, "sweep").info.status == "KILLED"


def test_a_curve_is_a_line_of_score_against_length_that_later_sweeps_lengthen(store, client):
    def row(strategy, length, ppl, **options):
        cell = replace(random_cell(strategy, length, **options), limit=3)
        return cell, Result(cell.id, "ok", {"ppl": ppl, "ppl_stderr": 0.1}, cost={"seconds": 1.0})

    recorded(store, row("linear", 512, 9.0), row("linear", 256, 7.0), row("yarn", 512, 8.0))
    runs = {run.data.params["strategy"]: run for run in the_runs(client, "curve")}
    assert curve(client, runs["linear"], "ppl") == [(256, 7.0), (512, 9.0)]
    assert curve(client, runs["linear"], "seconds") == [(256, 1.0), (512, 1.0)]
    assert "mlflow.parentRunId" not in runs["linear"].data.tags  # a nested run would be folded away in the UI
    recorded(store, row("linear", 1024, 30.0), row("linear", 512, 9.0), row("linear", 512, 5.0, factor=16.0))
    lines = [
        (run.data.params.get("strategy.factor"), curve(client, run, "ppl"))
        for run in the_runs(client, "curve")
        if run.data.params["strategy"] == "linear"
    ]
    assert sorted(lines, key=str) == [("16.0", [(512, 5.0)]), ("None", [(256, 7.0), (512, 9.0), (1024, 30.0)])]


def test_a_strategy_that_changes_attention_has_one_curve_from_the_trained_length_on(store, client):
    cells = [replace(random_cell("self_extend", length), limit=3) for length in (128, 512)]
    assert dict(cells[1].versions).keys() - dict(cells[0].versions).keys() == {"regions"}  # its plan at 128 is none's
    recorded(store, *((cell, Result(cell.id, "ok", {"ppl": cell.length / 64})) for cell in cells))
    assert curve(client, the_run(client, "curve"), "ppl") == [(128, 2.0), (512, 8.0)]


def test_a_cell_that_was_computed_before_is_recorded_as_such(store, client):
    before, new = (replace(random_cell("none", length), limit=1) for length in (64, 128))
    store.save(before, Result(before.id, "ok", {"ppl": 3.0}))
    computed = Result(new.id, "ok", {"ppl": 4.0})
    launch.run(Sweep("an-experiment", (before, new), "ropewalk grid"), store, lambda todo: [(new, computed)])
    cached = {run.data.tags["cell_id"]: run.data.tags["cached"] for run in the_runs(client, "cell")}
    assert cached == {before.id: "true", new.id: "false"}


def test_a_finished_grid_that_is_launched_again_adds_no_runs_of_cells_but_says_where_they_are(store, client):
    cells = tuple(replace(random_cell("linear", length), limit=1) for length in (256, 512))
    runs = []
    for _ in range(2):
        sweep = Sweep("an-experiment", cells, "ropewalk grid")
        launch.run(sweep, store, lambda todo: [(cell, Result(cell.id, "ok", {"ppl": 4.0})) for cell in todo])
        runs.append({run.info.run_id for run in the_runs(client, "cell")})
        shutil.rmtree(store.root / "again")  # as on a terminal of another width: the sweep is recorded
    assert runs[0] == runs[1] and len(runs[0]) == 2
    second, first = the_runs(client, "sweep")
    assert f"tags.sweep_id = '{first.data.tags['sweep_id']}'" in second.data.tags["mlflow.note.content"]
    assert second.data.params == {"cells ok": "2", "cells finished before": "2"} and not second.data.metrics
    file = client.download_artifacts(second.info.run_id, "finished_before.json")
    named = json.loads(Path(file).read_text())["cells"]
    assert {(row["cell_id"], row["sweep_id"]) for row in named} == {
        (cell.id, first.data.tags["sweep_id"]) for cell in cells
    }
    assert {run.data.tags["sweep_id"] for run in the_runs(client, "curve")} == {second.data.tags["sweep_id"]}


def test_a_result_that_was_computed_anew_is_not_taken_for_the_run_of_the_one_before(store, client):
    cell = replace(random_cell("none", 64), limit=1)
    for day in (1, 2):
        at = {"at": f"2026-11-0{day}T10:00:00+00:00"}
        store.save(cell, Result(cell.id, "ok", {"ppl": float(day)}, provenance=at))
        launch.run(Sweep("an-experiment", (cell,), "ropewalk grid"), store, lambda todo: [])
    assert sorted(run.data.metrics["perplexity/ppl"] for run in the_runs(client, "cell")) == [1.0, 2.0]


def test_sync_writes_the_runs_that_a_deleted_sweep_had_below_the_one_that_named_them(store, client, capsys):
    cell = replace(random_cell("none", 64), limit=1)
    sweeps = []
    for _ in range(2):
        sweeps.append(Sweep("an-experiment", (cell,), "ropewalk grid"))
        launch.run(sweeps[-1], store, lambda todo: [(cell, Result(cell.id, "ok", {"ppl": 4.0})) for cell in todo])
        shutil.rmtree(store.root / "again")
    assert run(["sync", f"store={store.root}"]) == 0 and capsys.readouterr().out.count("in MLflow already, 1 cell") == 2
    assert run(["sync", f"store={store.root}", "force=true"]) == 0 and len(the_runs(client, "cell")) == 1
    shutil.rmtree(store.root / "sweeps" / sweeps[0].id)
    assert run(["sync", f"store={store.root}"]) == 0 and "recorded, 1 cell" in capsys.readouterr().out
    assert [run.data.tags["sweep_id"] for run in the_runs(client, "cell")] == [sweeps[1].id]


def test_the_tests_of_a_grid_are_computed_once(store, client, monkeypatch):
    cell = replace(random_cell("none", 64), limit=1)
    calls, compute = [], tables.tables
    monkeypatch.setattr(tables, "tables", lambda rows: calls.append(rows) or compute(rows))
    row = cell, Result(cell.id, "ok", {"ppl": 4.0})
    launch.run(Sweep("an-experiment", (cell,), "ropewalk grid"), store, lambda todo: [row])
    assert len(calls) == 1


def test_a_curve_that_would_be_drawn_as_it_is_stays_and_is_drawn_anew_where_a_number_differs(store, client):
    cell = replace(random_cell("linear", 512), limit=3)
    runs = []
    for ppl in (9.0, 9.0, 8.0):
        recorded(store, (cell, Result(cell.id, "ok", {"ppl": ppl})))
        runs.append(the_run(client, "curve"))
        newest = max(the_runs(client, "sweep"), key=lambda run: run.info.start_time)
        assert runs[-1].data.tags["sweep_id"] == newest.data.tags["sweep_id"]
    assert runs[0].info.run_id == runs[1].info.run_id != runs[2].info.run_id
    assert curve(client, runs[2], "ppl") == [(512, 8.0)]


def test_a_cell_has_the_command_for_it_alone(store, client):
    cells = tuple(replace(random_cell("none", length), limit=1) for length in (256, 512))
    sweep = Sweep("an-experiment", cells, "ropewalk grid length=256,512", ("grid a", "grid b"))
    assert [sweep.command_of(cell) for cell in cells] == ["grid a", "grid b"]
    assert Sweep.of(json.loads(json.dumps(sweep.spec()))) == sweep
    assert sweep.id != replace(sweep, created="2026-11-22T00:00:00+00:00").id


def test_cells_of_different_code_are_reported(store, client, capsys):
    rows = []
    for length, commit in ((256, "a" * 40), (512, "b" * 40)):
        cell = random_cell("none", length)
        provenance = {"code": {"commit": commit, "dirty": commit[0] == "b", "difference": "d1ff"}}
        rows.append((cell, Result(cell.id, "ok", {"ppl": 3.0}, provenance=provenance)))
    recorded(store, *rows)
    assert the_run(client, "sweep").data.tags["mixed_code"] == "aaaaaaa: 1 cells; bbbbbbb with changes d1ff: 1 cells"
    console = Console(width=200)
    with console.capture() as said:
        tables.show(console, rows, tables.tables(rows), store)
    assert "computed by different code" in said.get() and "force=true" in said.get()


@pytest.mark.slow
def test_runs_of_a_killed_process_are_closed_and_those_of_a_living_one_left(store, client):
    script = """
import os, signal
from test_track import Store, Sweep, random_cell, track
store = Store(__import__("pathlib").Path(os.environ["FOLDER"]))
with track.Tracker.open(Sweep("an-experiment", (random_cell("none", 128),), "ropewalk grid"), store):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    env = {
        **os.environ,
        "FOLDER": str(store.root),
        "PYTHONPATH": PATHS,
    }
    assert subprocess.run([sys.executable, "-c", script], env=env, check=False).returncode == -signal.SIGKILL
    assert the_run(client, "sweep").info.status == "RUNNING"
    with track.Tracker.open(Sweep("an-experiment", (random_cell("none", 256),), "ropewalk grid"), store):
        track.connect(store)
        assert sorted(run.info.status for run in the_runs(client, "sweep")) == ["KILLED", "RUNNING"]


@pytest.mark.slow
def test_four_processes_may_meet_at_a_store_that_is_not_there_yet(store):
    script = """
import os
from test_track import Result, Store, random_cell, recorded
cell = random_cell("none", int(os.environ["LENGTH"]))
recorded(Store(__import__("pathlib").Path(os.environ["FOLDER"])), (cell, Result(cell.id, "ok", {"ppl": 3.0})))
"""
    env = {
        **os.environ,
        "FOLDER": str(store.root / "new"),
        "PYTHONPATH": PATHS,
    }
    meeting = [
        subprocess.Popen([sys.executable, "-c", script], env={**env, "LENGTH": str(length)}, stderr=subprocess.PIPE)
        for length in (64, 128, 256, 512)
    ]
    said = [process.communicate(timeout=300)[1].decode() for process in meeting]
    assert [process.returncode for process in meeting] == [0] * 4, said
    client = track.connect(Store(store.root / "new"))
    assert [run.info.status for run in the_runs(client, "sweep")] == ["FINISHED"] * 4
    assert len(the_runs(client, "cell")) == 4


def test_sync_rebuilds_what_mlflow_lacks_and_leaves_the_rest(store, client, capsys, monkeypatch):
    provenance = {"at": "2026-11-22T10:00:00+00:00"}
    cells = [replace(random_cell("none", length), limit=1) for length in (128, 256)]
    rows = [
        (cell, Result(cell.id, "ok", {"ppl": 3.0}, cost={"seconds": 60.0}, provenance=provenance)) for cell in cells
    ]
    recorded(store, *rows)
    assert run(["sync", f"store={store.root}"]) == 0 and "in MLflow already, 2 cells" in capsys.readouterr().out
    before = the_run(client, "sweep").info.start_time
    client.delete_run(the_runs(client, "cell")[0].info.run_id)
    assert run(["sync", f"store={store.root}"]) == 0 and "recorded, 2 cells" in capsys.readouterr().out
    # As if mlflow.db had been deleted; this process would still have it open.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store.root / 'another.db'}")
    assert run(["sync", f"store={store.root}"]) == 0 and "recorded, 2 cells" in capsys.readouterr().out
    fresh = track.connect(store)
    assert the_run(fresh, "sweep").info.start_time == before and len(the_runs(fresh, "cell")) == 2
    cell = the_runs(fresh, "cell")[0]
    assert cell.info.end_time - cell.info.start_time == 60_000 and cell.data.tags["cached"] == "true"
    assert len(the_runs(fresh, "curve")) == 1
    assert run(["sync", f"store={store.root / 'nowhere'}"]) == 2
    assert run(["sync", "shop=x"]) == 2


def test_sync_records_a_strategy_that_is_gone_without_its_config(store, client, capsys):
    cells = [replace(random_cell("yarn", length, beta_fast=16.0), limit=1) for length in (256, 512)]
    gone = replace(cells[1], strategy="gone")
    recorded(store, *((cell, Result(cell.id, "ok", {"ppl": 3.0})) for cell in (cells[0], gone)))
    assert run(["sync", f"store={store.root}", "force=true"]) == 1
    said = capsys.readouterr().out
    assert "recorded, 2 cells, 1 of them without patched_config.json" in said and "gone" in said
    runs = {run.data.params["strategy"]: run for run in the_runs(client, "cell")}
    assert set(runs) == {"yarn", "gone"} and runs["gone"].data.params["strategy.beta_fast"] == "16.0"
    assert "gone" in runs["gone"].data.tags["patched_config"] and "patched_config" not in runs["yarn"].data.tags
    files = {name: {f.path for f in client.list_artifacts(runs[name].info.run_id)} for name in runs}
    assert files["yarn"] - files["gone"] == {"patched_config.json"}
    assert the_run(client, "sweep").info.status == "FINISHED" and len(the_runs(client, "curve")) == 2


def test_sync_records_a_model_that_is_gone_and_draws_its_figures(store, client, capsys):
    rows = []
    for length in (256, 512):
        cell = replace(random_cell("none", length), limit=1)
        cell = replace(cell, model=replace(cell.model, path=str(store.root / "gone"), shape=()))
        rows.append((cell, Result(cell.id, "ok", {"ppl": 3.0})))
    recorded(store, *rows)
    assert run(["sync", f"store={store.root}", "force=true"]) == 1
    assert "2 of them without patched_config.json" in capsys.readouterr().out
    assert [f.path for f in client.list_artifacts(the_run(client, "sweep").info.run_id, "figures")]


def test_sync_deletes_nothing_that_it_cannot_rebuild(store, client, capsys, monkeypatch):
    cell = replace(random_cell("none", 128), limit=1)
    recorded(store, (cell, Result(cell.id, "ok", {"ppl": 3.0})))
    before = the_run(client, "cell").info.run_id
    with monkeypatch.context() as broken:
        broken.setattr("pipelines.track.rebuild.cell_run", lambda *_: {}["series"])
        assert run(["sync", f"store={store.root}", "force=true"]) == 1
    assert "cannot be rebuilt" in capsys.readouterr().out and the_run(client, "cell").info.run_id == before
    [spec] = store.sweeps()
    store.save_sweep(spec["id"], {key: value for key, value in spec.items() if key not in ("cells", "checksum")})
    assert run(["sync", f"store={store.root}", "force=true"]) == 1
    assert "cannot be read" in capsys.readouterr().out and the_run(client, "cell").info.run_id == before
    assert len(the_runs(client, "curve")) == 1


def test_sync_deletes_the_runs_of_a_sweep_that_is_no_longer_on_disk(store, client, capsys, monkeypatch):
    def row(strategy, length):
        cell = replace(random_cell(strategy, length), limit=1)
        return cell, Result(cell.id, "ok", {"ppl": float(length)})

    recorded(store, row("linear", 256))
    [remaining] = store.sweeps()
    recorded(store, row("linear", 512), row("yarn", 512))
    gone = next(spec for spec in store.sweeps() if spec["id"] != remaining["id"])
    shutil.rmtree(store.root / "sweeps" / gone["id"])
    with monkeypatch.context() as shared:
        shared.setenv("MLFLOW_TRACKING_URI", track.tracking_uri(store))  # others may have their sweeps there
        assert run(["sync", f"store={store.root}"]) == 0 and len(the_runs(client, "cell")) == 3
    assert run(["sync", f"store={store.root}"]) == 0 and "no longer on disk, deleted" in capsys.readouterr().out
    assert the_run(client, "sweep").data.tags["sweep_id"] == remaining["id"]
    assert the_run(client, "cell").data.params["length"] == "256"
    assert curve(client, the_run(client, "curve"), "ppl") == [(256, 256.0)]
    shutil.rmtree(store.root / "sweeps")
    assert run(["sync", f"store={store.root}"]) == 0
    assert not any(the_runs(client, kind) for kind in ("sweep", "cell", "curve"))


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


@pytest.mark.parametrize("port", ["0", "70000", "taken"])
def test_the_ui_refuses_a_port_that_it_cannot_have(store, client, capsys, port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        assert run(["ui", taken if port == "taken" else port, f"store={store.root}"]) == 2
    assert ("in use" if port == "taken" else "1 to 65535") in capsys.readouterr().err


def test_only_a_driver_imports_mlflow():
    script = "import sys; import pipelines.workers.evaluate, pipelines.workers.pool; print('mlflow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
