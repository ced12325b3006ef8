"""`ropewalk tune`, from the command line to best.yaml and MLflow, on a random model and on the embedded one."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError, replace

import pytest
from support import PROJECT

from pipelines.choices.compose import expand
from pipelines.cli.main import run
from pipelines.records.results import Store
from pipelines.report import terminal
from pipelines.report.statistics import RESAMPLES
from pipelines.tasks import text
from pipelines.tune import bench, tune
from pipelines.workers import pool

TUNE = ["tune", "model=tiny", "cluster=cpu", "length=640", "limit=12", "task.last=64"]


@pytest.fixture(autouse=True)
def quick(one_thread):
    return None


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(tmp_path / "store")


def tuned(store, *arguments):
    """What the terminal said, and study.json."""
    base = [a for a in TUNE if "task=passkey" not in arguments or not a.startswith("task.")]
    with terminal.console.capture() as told:
        assert run([*base, *arguments]) == 0
    [study] = store.studies()
    return told.get(), study


@pytest.fixture(scope="module")
def found(tmp_path_factory, one_thread):
    """A search of yarn's options, run once: what was said, its study, its store."""
    patch = pytest.MonkeyPatch()
    store = Store(tmp_path_factory.mktemp("found"))
    patch.setenv("ROPEWALK_STORE", str(store.root))
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said, study = tuned(store, "strategy=yarn", "tune.trials=6")
    patch.undo()
    return said, study, store


def cells(store):
    return {p.parent.name: json.loads(p.read_text()) for p in store.root.glob("cells/*/result.json")}


def test_trials_are_told_with_what_is_best_so_far_and_the_time_left(found):
    said, study, _ = found
    assert "6 trials by tpe over strategy.factor=1.01..10" in said and "default    nll" in said
    assert "6/6" in said and "best nll" in said and "left" in said
    assert study["verdict"]["sentences"][0] in said and "ropewalk grid" in said


def test_what_chooses_and_what_judges_share_no_document(found):
    _, study, store = found
    parts = {
        cell_id: dict(map(tuple, body["cell"]["task"]["options"]))["part"] for cell_id, body in cells(store).items()
    }
    assert {parts[c] for trial in study["trials"] for c in trial["cells"]} == {"tune"}
    assert {parts[row["cell"]] for row in study["verdict"]["rows"]} == {"report"}
    judged = [body for c, body in cells(store).items() if parts[c] == "report"]
    assert all(len(body["result"]["documents"]) == 12 for body in judged)


def test_no_document_is_measured_twice_under_one_plan(found):
    _, _, store = found
    seen = []
    for body in cells(store).values():
        options = dict(map(tuple, body["cell"]["task"]["options"]))
        first = options.get("skip", 0)
        plan = json.dumps([body["cell"]["plans"], body["cell"]["length"], options["part"]])
        seen += [(plan, first + n) for n in range(len(body["result"]["documents"]))]
    assert len(seen) == len(set(seen))


def test_a_cell_says_the_grid_that_asks_for_it_alone(found, monkeypatch):
    _, study, store = found
    monkeypatch.setenv("ROPEWALK_STORE", str(store.root))
    body = cells(store)[study["trials"][3]["cells"][0]]
    command = body["result"]["provenance"]["command"]
    monkeypatch.setattr(
        pool, "run", lambda cells, workers, evaluator=None, journal=None: iter(()) if not cells else pytest.fail("ran")
    )
    with terminal.console.capture() as told:
        assert run(shlex.split(command)[1:]) == 0
    assert "1 finished before, 0 to run" in told.get()


def test_best_yaml_is_a_strategy_for_a_grid_and_the_confirming_command_runs(found, monkeypatch):
    _, study, store = found
    monkeypatch.setenv("ROPEWALK_STORE", str(store.root))
    with terminal.console.capture() as told:
        assert run(shlex.split(study["confirm"])[1:]) == 0
    chosen = next(row for row in study["verdict"]["rows"] if row["label"].endswith("yarn") and row["length"] == 640)
    assert f"{chosen['metrics']['ppl']:.4g}" in told.get()
    body = json.loads((store.study(study["id"]) / "patched_config.json").read_text())
    assert body["max_position_embeddings"] >= 640 and body["rope_parameters"]["rope_type"] != "default"


def test_mlflow_has_the_study_with_its_trials_below_it(found):
    from mlflow import MlflowClient

    _, _, store = found
    client = MlflowClient(f"sqlite:///{store.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tune")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    [parent] = [r for r in runs if r.data.tags["ropewalk.kind"] == "study"]
    trials = [r for r in runs if r.data.tags["ropewalk.kind"] == "trial"]
    assert len(trials) == 6 and {t.data.tags["mlflow.parentRunId"] for t in trials} == {parent.info.run_id}
    assert parent.info.status == "FINISHED" and "best" in parent.data.metrics
    names = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert {"best.yaml", "patched_config.json", "study.json", "figures"} <= names
    assert "figures/slices.png" in {a.path for a in client.list_artifacts(parent.info.run_id, "figures")}
    assert set(trials[0].data.params) == {"factor", "beta_fast", "beta_slow", "truncate", "attention_factor", "ramp"}


def test_sync_rebuilds_a_search_that_mlflow_lacks(found, tmp_path, monkeypatch, capsys):
    from mlflow import MlflowClient

    _, _, store = found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    assert run(["sync", f"store={store.root}"]) == 0 and "recorded, 6 trials" in capsys.readouterr().out
    assert run(["sync", f"store={store.root}"]) == 0 and "in MLflow already, 6 trials" in capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{tmp_path / 'other.db'}")
    experiment = client.get_experiment_by_name("tune")
    assert len(client.search_runs([experiment.experiment_id])) == 7


def test_a_search_that_is_killed_goes_on_where_it_was_and_finds_the_same(found, tmp_path, monkeypatch):
    _, whole, _ = found
    root = tmp_path / "killed"
    env = {**os.environ, "ROPEWALK_STORE": str(root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    env.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "pipelines", *TUNE, "strategy=yarn", "tune.trials=6"]
    process = subprocess.Popen(command, env=env, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while len(list(root.glob("cells/*/result.json"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in root.glob("cells/*/result.json")}
    assert len(before) >= 6 and not list(root.glob("tune/*/study.json"))
    monkeypatch.setenv("ROPEWALK_STORE", str(root))
    _, again = tuned(Store(root), "strategy=yarn", "tune.trials=6")
    assert again["chosen"] == whole["chosen"]
    assert [t["values"] for t in again["trials"]] == [t["values"] for t in whole["trials"]]
    assert before == {path: path.stat().st_mtime_ns for path in before}  # nothing was computed twice


def test_a_diverging_trial_is_a_result(store):
    """Random weights do worse than guessing every token alike, on some documents more than on others."""
    with terminal.console.capture() as told:
        assert run(["tune", "model=random", "strategy=yarn", "length=512", "limit=12", "tune.trials=4"]) == 0
    [study] = store.studies()
    assert "diverged" in {trial["status"] for trial in study["trials"]}
    assert all(trial["rungs"] for trial in study["trials"]) and "diverged" in told.get()


def test_two_aims_give_a_front_and_its_figure(store):
    said, study = tuned(store, "strategy=ntk", "tune.sampler=nsga2", "tune.trials=4")
    folder = store.study(study["id"])
    assert "none better in both aims" in said and (folder / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "front_1.yaml").read_text().splitlines()[1] == "name: ntk"
    assert all(trial["cost"] is not None for trial in study["trials"])


def test_passkeys_are_judged_on_keys_that_the_search_never_saw(store):
    _, study = tuned(
        store, "strategy=ntk", "task=passkey", "tune.trials=2", "length=512", "factor=1.5..2", "task.depths=[0.5]"
    )
    bodies = cells(store)
    ids = {
        "tune": [c for trial in study["trials"] for c in trial["cells"]],
        "report": [row["cell"] for row in study["verdict"]["rows"]],
    }
    seeds = {kind: {bodies[cell]["cell"]["seed"] for cell in names} for kind, names in ids.items()}
    assert seeds == {"tune": {0}, "report": {1}}


def test_a_text_without_one_document_has_none_whatever_the_refusal_says(store, monkeypatch, capsys):
    monkeypatch.setattr(text, "_lacking", lambda *facts: "no such length here")
    given = [a for a in TUNE if not a.startswith("length=")]
    assert run([*given, "strategy=yarn", "length=10000000", "task.text=pydoc"]) == 2
    assert "text pydoc has 0 documents of 10,000,000 tokens" in capsys.readouterr().err


def test_a_text_too_short_says_how_much_is_needed_even_after_another_process():
    with pytest.raises(text.TextTooShort) as short:
        text.windows(text.PYDOC, lambda said: list(range(30)), 31)
    assert short.value.needed == pickle.loads(pickle.dumps(short.value)).needed == 31


@pytest.fixture
def workbench(store):
    """A bench of the embedded model at 4,096 tokens, 8 times what it was trained on, that runs nothing."""
    [choice] = expand(["model=tiny", "cluster=cpu", "length=4096", "strategy=linear"])
    return bench.Bench(choice, [], bench.Screening.up_to(12), store, run=lambda cells: iter(()))


@pytest.mark.parametrize("options", [{}, {"factor": 2.0}])
def test_what_is_served_at_the_trained_length_keeps_the_factor_of_the_length_it_was_set_up_for(workbench, options):
    linear = bench.StrategyChoice("linear", options)
    there = workbench.cell(linear, "report", 0, 12)
    [(_, plan)] = workbench.cell(bench.served(linear, there), "report", 0, 12, 512).plans
    factor = options.get("factor", 8.0)  # 4,096 / 512 by hand
    assert plan.inv_freq == pytest.approx([10_000 ** (-pair / 32) / factor for pair in range(32)])


def test_what_follows_the_length_or_has_no_factor_is_served_as_it_is(workbench):
    for name in ("dynamic_ntk", "dynamic", "none", "base"):
        options = {"theta": 50_000.0} if name == "base" else {}
        choice = bench.StrategyChoice(name, options)
        assert bench.served(choice, workbench.cell(choice, "report", 0, 12)) == choice


def test_a_study_is_built_with_what_computes_its_cells_and_never_changed(store):
    [choice] = expand(["model=tiny", "cluster=cpu", "length=640", "strategy=yarn", "limit=12"])
    request = tune.TuneRequest({"beta_fast": "8..64"}, {"trials": "3", "batch": "null"}, [])
    study = tune.study_of(choice, request, "ropewalk tune", run := (lambda cells: iter(())), 2)
    assert study.bench.run is run and (study.settings.trials, study.settings.batch, study.short) == (3, 2, 512)
    with pytest.raises(FrozenInstanceError):
        study.bench.run = None


def test_the_whole_tuning_half_holds_every_document_once(workbench):
    choice = bench.StrategyChoice("none", {})
    assert [(dict(c.task.options).get("skip", 0), c.limit) for c in workbench.tuning_cells(choice)] == [
        (0, 2),
        (2, 2),
        (4, 8),
    ]
    keys = replace(workbench.choice, task={"name": "passkey"})
    [cell] = replace(workbench, choice=keys).tuning_cells(choice)
    assert cell.limit == 12, "keys of a shorter cell are among those of a longer one"


def test_halves_are_screened_by_ever_more_documents():
    assert bench.Screening.up_to(16).rungs == (2, 5, 16) and bench.Screening.up_to(12).rungs == (2, 4, 12)
    assert 2 / RESAMPLES < 0.01  # enough resamples to tell


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["strategy=yarn", "strategy.beta_fst=8..64"], "yarn has no option beta_fst; did you mean beta_fast?"),
        (["strategy=yarn", "strategy.beta_fast=64..8"], "the range is empty"),
        (["strategy=none"], "no option with a usual range"),
        (["strategy=yarn,linear"], "give each one value"),
        (["strategy=yarn", "limit=8"], "at least 12 documents"),
        (["strategy=yarn", "tune.speed=9"], "tune.speed=9: "),
        (["strategy=yarn", "tune.trials=many"], "tune.trials=many: give a whole number"),
        (["strategy=yarn", "tune.sampler=luck"], "tpe, cmaes, nsga2"),
        (["strategy=yarn", "task.part=tune"], "a search sets both itself"),
        (["strategy=yarn", "task=wikitext"], "give perplexity or passkey"),
        (
            ["strategy=yarn", "length=20000", "task.text=pydoc"],
            "text pydoc has 3 documents of 20,000 tokens in its smaller",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(store, capsys, arguments, says):
    given = [a for a in TUNE if a.partition("=")[0] not in {b.partition("=")[0] for b in arguments}]
    if any(a.startswith("task=") for a in arguments):
        given = [a for a in given if not a.startswith("task.")]
    assert run([*given, *arguments]) == 2
    assert re.search(says.replace("?", r"\?"), capsys.readouterr().err)
    assert not store.root.exists()
