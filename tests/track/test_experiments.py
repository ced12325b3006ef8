"""What an experiment's page in MLflow opens on: saved views, names, colours, and what it says of itself."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import pytest
from support import random_cell

from pipelines import track
from pipelines.choices.sweep import Sweep
from pipelines.cli import ui
from pipelines.cli.main import run
from pipelines.records.cells import Result
from pipelines.report import palette, tables
from pipelines.track import experiments
from pipelines.track.views import LIMIT, LINES, TAG, Score, views


def row(strategy, length, ppl, *, limit=3, **options):
    cell = replace(random_cell(strategy, length, **options), limit=limit)
    return cell, Result(cell.id, "ok", {"ppl": ppl}, cost={"seconds": 1.0})


def recorded(store, *rows, experiment="an-experiment", created="2026-11-26T10:00:00+00:00"):
    sweep = Sweep(experiment, tuple(cell for cell, _ in rows), "ropewalk grid x=1", created=created)
    store.save_sweep(sweep.id, sweep.spec())
    with track.Tracker.open(sweep, store) as tracker:
        for cell, result in rows:
            store.save(cell, result)
            tracker.record([cell], result)
        tracker.conclude(rows, tables.tables(rows))
        tracker.finish()


def the_runs(client, kind, experiment="an-experiment"):
    number = client.get_experiment_by_name(experiment).experiment_id
    return list(client.search_runs([number], f"tags.`ropewalk.kind` = '{kind}'"))


def states(client):
    tags = client.get_experiment_by_name("an-experiment").tags
    saved = {name.removeprefix(TAG): json.loads(value) for name, value in tags.items() if name.startswith(TAG)}
    return {name: (view["name"], json.loads(view["state"])) for name, view in saved.items()}


def test_an_experiment_opens_on_its_scores_against_length_with_the_difference_from_none(store, client):
    recorded(store, *(row(strategy, n, n / 9) for strategy in ("none", "yarn") for n in (256, 512)))
    name, state = states(client)[LINES]
    assert name == "perplexity against length"
    line, difference = state["compareRunCharts"]
    assert (line["type"], line["metricKey"], line["xAxisKey"]) == ("LINE", "perplexity by length/ppl", "step")
    assert (line["xAxisScaleType"], line["scaleType"], line["displayPoints"]) == ("log", "log", True)
    [baseline] = [one for one in the_runs(client, "curve") if one.data.params["strategy"] == "none"]
    assert (difference["type"], difference["baselineColumnUuid"]) == ("DIFFERENCE", baseline.info.run_id)
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections
    number = client.get_experiment_by_name("an-experiment").experiment_id
    found = client.search_runs([number], state["searchFilter"], order_by=[f"{state['orderByKey']} ASC"])
    assert [one.data.params["strategy"] for one in found] == ["none", "yarn"]


def test_options_of_several_values_have_axes_beside_the_scores(store, client):
    rows = [row("yarn", 512, fast / 2, beta_fast=fast) for fast in (16.0, 24.0)]
    recorded(store, *rows, row("none", 512, 30.0))
    _, state = states(client)["ropewalk-options"]
    axes = [(chart["selectedParams"], chart["selectedMetrics"]) for chart in state["compareRunCharts"]]
    assert axes == [
        (["strategy", "length"], ["perplexity/ppl"]),
        (["strategy.beta_fast", "length"], ["perplexity/ppl"]),
    ]
    for cell in the_runs(client, "cell"):  # a run that lacks one of a chart's columns is not drawn
        assert {"strategy", "length"} <= cell.data.params.keys() and "perplexity/ppl" in cell.data.metrics


def test_the_factor_in_effect_is_a_parameter_of_every_cell_whose_strategy_has_one(store, client):
    rows = [row("yarn", 512, 3.0), row("yarn", 128, 4.0), row("yarn", 512, 5.0, factor=16.0), row("none", 512, 9.0)]
    recorded(store, *rows)
    factors = {
        (cell.data.params["strategy"], cell.data.params["length"], cell.data.params.get("strategy.factor")): (
            cell.data.params.get("factor")
        )
        for cell in the_runs(client, "cell")
    }
    assert factors == {  # the model was trained on 128 tokens
        ("yarn", "512", "None"): "4",
        ("yarn", "128", "None"): "1",
        ("yarn", "512", "16.0"): "16",
        ("none", "512", None): None,
    }


def test_a_strategy_has_one_colour_and_other_options_a_shade_of_it(store, client):
    recorded(store, row("none", 512, 9.0), row("yarn", 512, 3.0), row("yarn", 512, 5.0, factor=16.0))
    colours = {one.data.tags["strategy_label"]: one.data.tags["mlflow.runColor"] for one in the_runs(client, "curve")}
    assert len(set(colours.values())) == 3
    for strategy in ("none", "yarn"):
        assert colours[strategy] == palette.style(strategy).colour
    cells = {one.data.params["strategy"]: one.data.tags["mlflow.runColor"] for one in the_runs(client, "cell")}
    assert cells == {name: palette.style(name).colour for name in ("none", "yarn")}


def test_a_curve_is_called_by_its_strategy_and_by_what_it_differs_in_from_others_of_its_task(store, client):
    recorded(store, row("none", 512, 9.0), row("yarn", 512, 3.0, factor=16.0))
    assert {one.info.run_name for one in the_runs(client, "curve")} == {"none", "yarn factor=16.0"}
    recorded(store, row("none", 512, 9.0, limit=8))
    names = {one.info.run_name for one in the_runs(client, "curve")}
    assert names == {"none, limit 3", "none, limit 8", "yarn factor=16.0, limit 3"}


def test_a_curve_has_the_lengths_of_every_sweep_of_the_store_wherever_it_is_drawn(store, client):
    recorded(store, row("linear", 256, 7.0), row("linear", 512, 9.0), experiment="another")
    recorded(store, row("linear", 1024, 30.0))
    for experiment in ("an-experiment", "another"):
        [line] = the_runs(client, "curve", experiment)
        history = client.get_metric_history(line.info.run_id, "perplexity by length/ppl")
        assert sorted((m.step, m.value) for m in history) == [(256, 7.0), (512, 9.0), (1024, 30.0)]


def test_a_curve_has_what_its_strategy_is_worth_over_cropping(store, client):
    rows = []
    for strategy, shift in (("crop", 0.0), ("yarn", -0.1)):
        cell = replace(random_cell("none", 512), strategy=strategy, limit=8)
        cell = replace(cell, plans=(("all", replace(cell.plans[0][1], attention_factor=1 + abs(shift))),))
        documents = [{"index": n, "tokens": 512, "nll": 3 + shift} for n in range(8)]
        rows.append((cell, Result(cell.id, "ok", {"ppl": 20.0}, documents=documents, digest="d")))
    recorded(store, *rows)
    lines = {one.data.params["strategy"]: one.data.metrics for one in the_runs(client, "curve")}
    assert lines["yarn"]["perplexity by length/gain over crop"] == pytest.approx(1 - 2.718281828**-0.1)
    assert "perplexity by length/gain over crop" not in lines["crop"]
    charts = states(client)[LINES][1]["compareRunCharts"]
    gain = next(chart for chart in charts if chart.get("metricKey") == "perplexity by length/gain over crop")
    assert gain["scaleType"] == "linear"


def test_an_experiment_says_how_it_is_read_and_leaves_what_its_owner_wrote(store, client):
    recorded(store, row("none", 512, 9.0))
    known = client.get_experiment_by_name("an-experiment")
    assert known.tags["mlflow.note.content"].startswith(experiments.HEAD)
    assert known.tags["mlflow.experiment.primaryMetric.name"] == "perplexity by length/ppl"
    assert known.tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "false"
    client.set_experiment_tag(known.experiment_id, "mlflow.note.content", "mine")
    client.set_experiment_tag(known.experiment_id, f"{TAG}mine", "my view")
    recorded(store, row("none", 256, 9.0))
    tags = client.get_experiment_by_name("an-experiment").tags
    assert tags["mlflow.note.content"] == "mine" and tags[f"{TAG}mine"] == "my view"


def test_sweeps_of_one_grid_have_names_of_their_own():
    cells = tuple(replace(random_cell("none", length), limit=3) for length in (256, 512))
    sweep = Sweep("an-experiment", cells, "ropewalk grid", created="2026-11-26T11:17:04.123+00:00")
    assert sweep.label == "random: none @256, 512: perplexity of pydoc, limit 3, 2026-11-26 11:17:04"
    larger = replace(sweep, cells=tuple(replace(cell, limit=8) for cell in cells))
    later = replace(sweep, created="2026-11-26T11:18:00+00:00")
    assert len({one.label for one in (sweep, larger, later)}) == 3
    many = replace(sweep, cells=tuple(replace(cells[0], length=length) for length in range(100, 300)))
    assert len(many.label) == 200 and many.label.endswith(", limit 3, 2026-11-26 11:17:04")


def test_sync_brings_a_store_that_an_earlier_version_wrote_to_the_same_page(store, client, capsys):
    rows = [row("none", 256, 7.0), row("yarn", 512, 8.0)]
    recorded(store, *rows)
    number = client.get_experiment_by_name("an-experiment").experiment_id
    page = states(client).keys()
    [sweep] = the_runs(client, "sweep")
    client.delete_tag(sweep.info.run_id, "ropewalk.layout")  # as it was written before
    for name in page:
        client.delete_experiment_tag(number, TAG + name)
    assert run(["sync", f"store={store.root}"]) == 0 and "recorded, 2 cells" in capsys.readouterr().out
    assert states(client).keys() == page and len(the_runs(client, "cell")) == 2 and len(the_runs(client, "curve")) == 2
    assert run(["sync", f"store={store.root}"]) == 0 and "in MLflow already" in capsys.readouterr().out


def test_the_ui_gives_the_address_of_the_view_of_the_last_sweep(store, client, capsys, monkeypatch):
    recorded(store, row("none", 256, 7.0), experiment="later", created="2026-11-26T12:00:00+00:00")
    recorded(store, row("none", 512, 7.0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    monkeypatch.setattr(ui.os, "execv", lambda *command: started.append(command[1]))
    run(["ui", str(port), f"store={store.root}"])
    number = client.get_experiment_by_name("later").experiment_id
    address = f"http://127.0.0.1:{port}/#/experiments/{number}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert f"{address}&viewStateShareKey={LINES}" in capsys.readouterr().out
    assert started[0][2:4] == ["mlflow", "ui"]


def test_a_view_that_mlflow_would_refuse_is_left_out():
    few, many = ([Score("t", f"metric_{n}", lower=True) for n in range(count)] for count in (2, 200))
    assert {view.id for view in views(few, {}, {})} == {LINES, "ropewalk-options"}
    assert not views(many, {}, {}) and all(len(view.tag(0)[1]) <= LIMIT for view in views(few, {}, {}))
    assert not views([], {}, {})
