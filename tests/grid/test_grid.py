"""The whole way, Hydra to MLflow, on a random model in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import stub_cell

from pipelines.cli.main import run
from pipelines.grid.launcher import preview, run_grid
from pipelines.records.cells import Refusal, Result
from pipelines.records.results import Store
from pipelines.report import progress, terminal
from pipelines.report.progress import GridProgress
from pipelines.workers import pool

SMALL = ["model=random", "cluster=cpu", "limit=2", "short=none"]
GRID = [*SMALL, "strategy=none,linear,yarn", "length=256,384"]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with one finished grid of six cells, and what the terminal said."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("finished")
    patch.setenv("ROPEWALK_STORE", str(root))
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with terminal.console.capture() as output:
        assert run(["grid", *GRID]) == 0
    patch.undo()
    return Store(root), output.get()


def runs(store, kind):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store.root / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client, client.search_runs(experiments, f"tags.`ropewalk.kind` = '{kind}'")


def test_a_grid_ends_in_a_table_and_the_way_to_the_ui(finished):
    store, output = finished
    assert "6 cells: 2 duplicates (same plan and text), 0 finished before, 4 to run" in output
    assert "strategy" in output and "yarn" in output and "384" in output
    assert output.count("ok ") >= 4 and "left" in output
    assert "ropewalk ui" in output and output.splitlines()[-1] == f"results: {store.root}"


def test_a_grid_writes_its_page_says_where_and_keeps_it_on_its_run(finished):
    store, output = finished
    [page] = store.root.glob("sweeps/*/report.html")
    assert f"page: {page}; " in output and f"figures as PNG, SVG and CSV: {page.parent / 'figures'}" in output
    assert "<h2" in page.read_text() and list(page.parent.glob("figures/*.svg"))
    client, [sweep] = runs(store, "sweep")
    assert {"report.html", "figures"} <= {file.path for file in client.list_artifacts(sweep.info.run_id)}


def test_every_cell_is_a_run_below_the_sweep_with_its_artifacts(finished):
    store, _ = finished
    client, [sweep] = runs(store, "sweep")
    _, cells = runs(store, "cell")
    assert sweep.info.status == "FINISHED" and len(cells) == 6
    assert sweep.data.tags["mlflow.note.content"] == f"`ropewalk grid {' '.join(GRID)}`"
    assert {c.data.tags["mlflow.parentRunId"] for c in cells} == {sweep.info.run_id}
    assert sorted((c.data.params["strategy"], c.data.params["length"]) for c in cells) == sorted(
        (strategy, length) for strategy in ("none", "linear", "yarn") for length in ("256", "384")
    )
    for cell in cells:
        assert cell.data.metrics["perplexity/ppl"] > 1 and cell.data.metrics["perplexity/ppl_stderr"] > 0
        assert {a.path for a in client.list_artifacts(cell.info.run_id)} == {
            "patched_config.json",
            "inv_freq.json",
            "result.json",
        }
        assert cell.inputs.dataset_inputs[0].dataset.digest
    yarn = next(c for c in cells if (c.data.params["strategy"], c.data.params["length"]) == ("yarn", "384"))
    patched = json.loads(Path(client.download_artifacts(yarn.info.run_id, "patched_config.json")).read_text())
    assert patched["rope_parameters"]["rope_type"] == "yarn" and patched["rope_parameters"]["factor"] == 1.5
    assert yarn.data.params["strategy.beta_fast"] == "32.0"


def test_equal_plans_are_computed_once_and_shown_for_each(finished):
    store, _ = finished
    _, cells = runs(store, "cell")
    short = {c.data.params["strategy"]: c for c in cells if c.data.params["length"] == "256"}
    assert len({c.data.tags["cell_id"] for c in short.values()}) == 1
    assert sorted(c.data.tags["cached"] for c in short.values()) == ["false", "true", "true"]


def test_a_second_launch_computes_nothing(finished, monkeypatch):
    store, _ = finished
    monkeypatch.setenv("ROPEWALK_STORE", str(store.root))
    monkeypatch.setattr(
        pool, "run", lambda cells, workers, evaluator=None, journal=None: iter(()) if not cells else pytest.fail("ran")
    )
    with terminal.console.capture() as output:
        assert run(["grid", *GRID]) == 0
    assert "4 finished before, 0 to run" in output.get()


def test_what_ran_before_does_not_change_a_number(store):
    lengths = (512, 320, 448)
    request = [*SMALL, "strategy=dynamic_ntk", "strategy.rule=transformers", "factor=2", "force=true"]
    seen = []
    for order in (lengths, lengths[::-1]):
        for length in order:
            assert run(["grid", *request, f"length={length}"]) == 0
        seen.append(
            {p.parent.name: json.loads(p.read_text())["result"]["metrics"] for p in store.root.glob("cells/*/*")}
        )
    assert len(seen[0]) == 3 and seen[0] == seen[1]


def test_a_failed_cell_is_reported_with_its_log_and_stops_no_other(store, monkeypatch):
    def one_fails(cells, workers, evaluator=None, journal=None):
        for number, cell in enumerate(cells):
            if number:
                yield cell, Result(cell.id, "ok", metrics={"ppl": 3.0}, cost={"seconds": 1.0})
            else:
                yield cell, Result(cell.id, "failed", error="Traceback\n  ...\nRuntimeError: broken pipe")

    monkeypatch.setattr(pool, "run", one_fails)
    with terminal.console.capture() as output:
        assert run(["grid", *GRID]) == 1
    assert "RuntimeError: broken pipe" in output.get() and "error.txt" in output.get()
    assert "5 ok, 1 failed." in output.get()
    monkeypatch.undo()
    monkeypatch.setenv("ROPEWALK_STORE", str(store.root))
    with terminal.console.capture() as output:
        assert run(["grid", *GRID]) == 0
    assert "1 to run" in output.get()


def test_a_grid_stopped_before_its_first_result_says_nothing_of_results(store, monkeypatch):
    def stopped(cells, workers, evaluator=None, journal=None):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(pool, "run", stopped)
    with terminal.console.capture() as output:
        assert run(["grid", *GRID]) == 130
    assert "4 to run" in output.get() and "browser" not in output.get() and "results:" not in output.get()


def test_tables_are_written_once_and_a_grid_asked_again_shows_them_with_the_run_that_there_is(finished, monkeypatch):
    from pipelines.report import tables

    store, _ = finished
    monkeypatch.setenv("ROPEWALK_STORE", str(store.root))
    calls, make = [], tables._table
    monkeypatch.setattr(tables, "_table", lambda *args: calls.append(args) or make(*args))
    words = ["grid", *GRID, "report.max_short_cost=0.07"]
    with terminal.console.capture() as first:
        assert run(words) == 0
    assert len(calls) == 1
    sweeps, pages = len(runs(store, "sweep")[1]), sorted(store.root.glob("sweeps/*/report.html"))
    with terminal.console.capture() as second:
        assert run(words) == 0
    assert second.get() == first.get() and len(calls) == 1
    assert len(runs(store, "sweep")[1]) == sweeps and sorted(store.root.glob("sweeps/*/report.html")) == pages
    pages[-1].unlink()
    assert run(words) == 0
    assert len(calls) == 2 and len(runs(store, "sweep")[1]) == sweeps + 1, "what is gone is made anew"


def test_run_grid_returns_cells_with_results_in_order_and_quietly(finished, monkeypatch, capsys):
    store, _ = finished
    monkeypatch.setenv("ROPEWALK_STORE", str(store.root))
    rows = run_grid(GRID, quiet=True)
    assert [(cell.strategy, cell.length) for cell, _ in rows] == [
        (strategy, length) for strategy in ("none", "linear", "yarn") for length in (256, 384)
    ]
    assert all(result.cell_id == cell.id and result.metrics["ppl"] > 1 for cell, result in rows)
    assert capsys.readouterr().out == ""
    with pytest.raises(Refusal, match="lenght: no such option"):
        run_grid(["lenght=3"])


def test_a_baseline_and_a_sweep_of_options_are_one_grid(store):
    found = preview([*SMALL, "strategy=none,yarn", "yarn.beta_fast=4,16", "length=384"])
    assert [cell.strategy_label for cell in found.todo] == ["none", "yarn beta_fast=4", "yarn beta_fast=16"]
    assert (found.cells, found.duplicates) == (3, 0)


def test_a_stock_launcher_runs_the_same_grid_and_writes_nothing_beside_the_store(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["grid", *SMALL, "strategy=none,linear", "length=384", "hydra/launcher=basic"]) == 0
    assert len(list(store.root.glob("cells/*/result.json"))) == 2
    assert list(tmp_path.iterdir()) == [store.root] and not list(store.root.rglob("multirun.yaml"))
    _, cells = runs(store, "cell")
    assert len(cells) == 2


def test_the_time_left_comes_from_the_cells_and_not_from_the_start_of_workers(monkeypatch):
    cells = [stub_cell(length=length) for length in (1024, 1023, 1022)]  # of nearly the same work
    shown, started = GridProgress(cells), 1000.0
    shown.start = started
    monkeypatch.setattr(progress.time, "monotonic", lambda: started + 35.0)  # 25 of them to start a worker
    shown(cells[0], Result(cells[0].id, "ok", cost={"seconds": 10.0}))
    assert shown.remaining() == pytest.approx(20.0, rel=1e-2)
    monkeypatch.setattr(progress.time, "monotonic", lambda: started + 36.0)  # four at once
    shown(cells[1], Result(cells[1].id, "ok", cost={"seconds": 134.0}))
    assert shown.remaining() == pytest.approx(144 / 2 / 4, rel=1e-2)


def test_no_time_left_is_shown_before_a_cell_has_succeeded():
    cells = [stub_cell(length=length) for length in (1024, 1023)]
    with terminal.console.capture() as output:
        GridProgress(cells)(cells[0], Result(cells[0].id, "failed", error="no"))
    assert "1/2  failed" in output.get() and "left" not in output.get()
