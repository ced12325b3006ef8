"""`ropewalk plan`: the grid, not run. It says what would run, what is done, what cannot; fast, and without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support import PROJECT, ropewalk

from pipelines.cli.main import run
from pipelines.grid import launcher
from pipelines.records import journal, results
from pipelines.records.cells import Result
from pipelines.records.journal import Journal
from pipelines.records.results import Store
from pipelines.report import terminal

SMALL = ["model=random", "cluster=cpu", "limit=2", "short=none"]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_STORE", str(tmp_path / "store"))
    return Store(tmp_path / "store")


def planned(capsys, *overrides):
    code = run(["plan", *SMALL, *overrides, "--json"])
    return code, json.loads(capsys.readouterr().out)


def finish(cells):
    """Results on disk for cells, as if they had run."""
    store = Store.at()
    for cell in cells:
        cost = {"seconds": 2.0, "tokens": 2000.0, "tokens_per_second": 1000.0}
        store.save(cell, Result(cell.id, "ok", metrics={"ppl": 3.0}, cost=cost))


def test_a_plan_counts_and_writes_nothing(store, capsys):
    code, output = planned(capsys, "strategy=none,linear,yarn", "length=256,384")
    assert code == 0 and (output["asked"], output["equal"], len(output["done"]), len(output["todo"])) == (6, 2, 0, 4)
    assert output["passes"] == 8 and output["invalid"] == [] and output["seconds"] > 0
    [model] = output["models"]
    assert model["tokens"] == 2 * (256 + 3 * 384) and model["basis"].startswith("a guess")
    assert model["weight_bytes"] < model["peak_bytes"] < model["room_bytes"] and model["fits"] > 384
    assert not store.root.exists()


def test_a_plan_knows_what_is_done_and_how_long_it_took(store, capsys):
    finish(launcher.preview([*SMALL, "length=256,384"]).todo[:1])
    _, output = planned(capsys, "length=256,384")
    assert len(output["done"]) == 1 and len(output["todo"]) == 1
    assert output["models"][0]["basis"] == "measured: 1 earlier cell"
    _, output = planned(capsys, "length=256,384", "force=true")
    assert len(output["todo"]) == 2


def test_what_earlier_results_tell_of_a_grid_is_read_once(store, monkeypatch):
    """Of the documents that are enough, of those that comparisons need, and of the time."""
    finish(launcher.preview([*SMALL, "length=256,384"]).todo)
    reads, newest = [], Store.newest
    monkeypatch.setattr(Store, "newest", lambda self, count: reads.append(count) or newest(self, count))
    found = launcher.preview([*SMALL[:2], "short=none", "strategy=none,linear", "length=256,512", "limit=enough"])
    assert found.needs and found.loads[0].basis.startswith("measured") and len(reads) == 1


def test_a_plan_leaves_out_what_a_killed_launch_died_in_and_writes_nothing(store, capsys, monkeypatch):
    died = launcher.preview([*SMALL, "length=256,384"]).todo[0]
    Journal(store).start(died.id)
    monkeypatch.setattr(journal, "lives", lambda store, process: False)
    _, output = planned(capsys, "length=256,384")
    [left_out] = output["left_out"]
    assert left_out["id"] == died.id and "retry=true" in left_out["reason"] and "was killed" in left_out["reason"]
    assert [cell["id"] for cell in output["todo"]] and died.id not in [cell["id"] for cell in output["todo"]]
    assert [path.name for path in store.cell(died.id).iterdir()] == ["started.json"]
    with terminal.console.capture() as captured:
        assert run(["plan", *SMALL, "length=256,384"]) == 0
    said = " ".join(captured.get().split())
    assert "0 finished before, 1 to run, 0 invalid, 1 left out" in said and f"left out: {died.label}: killed" in said
    _, output = planned(capsys, "length=256,384", "retry=true")
    assert len(output["todo"]) == 2 and output["left_out"] == []


def test_a_plan_knows_that_retry_computes_again_what_ran_out_of_memory(store, capsys):
    [cell] = launcher.preview([*SMALL, "length=256"]).todo
    store.save(cell, Result(cell.id, "oom", error="out of memory"))
    assert len(planned(capsys, "length=256")[1]["done"]) == 1
    assert len(planned(capsys, "length=256", "retry=true")[1]["todo"]) == 1


def test_one_bad_cell_does_not_hide_the_others(store):
    with terminal.console.capture() as captured:
        code = run(["plan", *SMALL, "strategy=none,linear", "length=1,256,100000000", "task=perplexity"])
    output = " ".join(captured.get().split())
    assert code == 2 and "6 cells: " in output and "4 invalid" in output
    assert "invalid random: none @1 perplexity length=1: give a whole number of at least 2" in output
    assert "random: linear @1 " in output and "100,000,000 are needed" in output
    assert "1 to run" in output  # none and linear at the trained length are one cell
    assert not store.root.exists()


def test_a_cell_that_does_not_fit_is_announced_before_the_run(store, monkeypatch):
    monkeypatch.setattr("pipelines.choices.estimate.capacity", lambda device: 1_300_000_000)
    with terminal.console.capture() as captured:
        assert run(["plan", *SMALL, "model.shape.hidden_size=4096", "length=384"]) == 0
    assert "expect it to run out of memory" in captured.get()


def test_unknown_options_are_refused_as_the_grid_refuses_them(store, capsys):
    assert run(["plan", *SMALL, "lenght=64"]) == 2
    assert "lenght: no such option; did you mean length?" in capsys.readouterr().err


def test_a_plan_of_thirty_cells_loads_nothing_heavy(tmp_path):
    script = (
        "import sys; from pipelines.cli.main import run; code = run(['plan', 'cluster=cpu']); "
        "heavy = ('torch', 'ray', 'mlflow', 'transformers', 'lm_eval', 'datasets', 'scipy', 'matplotlib'); "
        "print([name for name in heavy if name in sys.modules], code)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=True,
        env={"PATH": str(Path(sys.executable).parent), "ROPEWALK_STORE": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert "34 cells: " in ran.stdout
    assert ran.stdout.splitlines()[-1] == "[] 0"


def test_four_hundred_finished_cells_are_read_once_and_so_are_strategies_and_tasks(store, monkeypatch):
    """Counted, not timed: a config composed by Hydra takes 100 ms and a result's checksum 1."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    request = ["strategy=none,linear,ntk,by_parts,yarn", f"length={','.join(map(str, range(260, 1060, 20)))}"]
    request += ["task=perplexity,passkey"]
    finish(launcher.preview([*SMALL, *request]).todo)
    read, composed = Counter(), []
    really_read, compose = results._body, ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(results, "_body", lambda path: read.update([path]) or really_read(path))
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_sweep_config", lambda *args, **kw: composed.append(1) or compose(*args, **kw)
    )
    with terminal.console.capture() as captured:
        assert run(["plan", *SMALL, *request]) == 0
    assert "400 cells: 0 duplicates (same plan and text), 400 finished before, 0 to run" in captured.get()
    assert len(read) == 400 and max(read.values()) == 1
    assert len(composed) == 0  # beside the one for all: of the files of strategies and tasks each is read once


def test_a_grid_says_before_it_runs_what_it_will_take(store, monkeypatch):
    from pipelines.workers import pool

    monkeypatch.setattr(
        pool,
        "run",
        lambda cells, workers, evaluator=None, journal=None: (
            (c, Result(c.id, "ok", metrics={"ppl": 3.0})) for c in cells
        ),
    )
    with terminal.console.capture() as captured:
        assert run(["grid", *SMALL, "length=384"]) == 0
    assert "estimate: about" in captured.get() and "a guess" in captured.get() and "GiB" in captured.get()


def test_the_command_line_plans(tmp_path):
    ran = ropewalk("plan", *SMALL, "length=1,1024", ROPEWALK_STORE=str(tmp_path / "store"))
    assert ran.returncode == 2 and "1 invalid" in ran.stdout and "Traceback" not in ran.stderr
    assert not (tmp_path / "store").exists()
