"""Results as pandas tables."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from support import CELL, PROJECT

from pipelines.records.cells import Model, Refusal, Result, Task
from pipelines.report import curves
from pipelines.report.frame import GAINS, compare, documents_frame, effective_lengths, gains, to_frame
from rope.geometry import ALL_LAYERS, Plan

TINY = Model("tiny", str(PROJECT / "models" / "tiny"))  # trained on 512 tokens


def row(strategy="none", shift=0.0, length=1024, count=8, task="perplexity", key="nll", **changes):
    plan = ((ALL_LAYERS, Plan((1.0, 1.0 + shift))),)
    cell = replace(CELL, model=TINY, strategy=strategy, length=length, plans=plan, task=Task(task), **changes)
    values = 3 + np.arange(count) / 10 + shift * (1 + np.arange(count) / 100)
    documents = [{"index": i, "tokens": length, key: float(value)} for i, value in enumerate(values)]
    metrics = {"ppl": float(values.mean()), "ppl_stderr": 0.5}
    return cell, Result(cell.id, "ok", metrics, documents=documents, digest=f"d{length}", cost={"seconds": 2.0})


def test_a_cell_is_a_row_with_its_metrics_and_costs():
    rows = [
        row("yarn", -0.5, options=(("beta_fast", 16.0),)),
        row("none"),
        row("linear", 0.5, options=(("factor", 4.0),)),
    ]
    cell, result = rows[0]
    out_of_memory = replace(cell, length=256), Result("gone", "oom", provenance={"device": "NVIDIA H100"})
    frame = to_frame([*rows, out_of_memory])
    assert list(frame.columns) == [
        *("model", "strategy", "options", "factor", "length", "task", "status", "ppl", "ppl_stderr"),
        *("seconds", "tokens_per_second", "peak_bytes", "cell_id", "device", "dtype"),
    ]
    first = frame.iloc[0]
    assert (first.strategy, first.options, first.factor, first.cell_id) == ("yarn", "beta_fast=16.0", 2.0, cell.id)
    assert first.ppl == result.metrics["ppl"] and first.seconds == 2.0 and math.isnan(first.tokens_per_second)
    assert frame.factor.iloc[2:].tolist() == [4.0, 1.0] and math.isnan(frame.factor[1])  # none has no factor
    last = frame.iloc[3]
    assert math.isnan(last.ppl) and (last.status, last.device) == ("oom", "NVIDIA H100")


def test_a_model_or_strategy_that_is_gone_has_no_factor():
    gone = row("yarn", -0.5)[0]
    cells = [replace(gone, model=Model("gone", "/gone")), replace(gone, strategy="gone")]
    frame = to_frame([(cell, Result(cell.id, "ok")) for cell in cells])
    assert frame.factor.isna().all() and len(frame) == 2


def test_a_metric_does_not_hide_a_column_of_the_same_name():
    cell, result = row(task="some_task")
    frame = to_frame([(cell, replace(result, metrics={"length": 7.0}))])
    assert frame.length[0] == 1024 and frame["metric.length"][0] == 7.0


def test_a_document_is_a_row():
    frame = documents_frame([row("none", count=3), row("yarn", -0.5, count=2)])
    assert frame.strategy.tolist() == ["none"] * 3 + ["yarn"] * 2
    assert frame["index"].tolist() == [0, 1, 2, 0, 1] and frame.nll[1] == pytest.approx(3.1)
    assert list(frame.columns[:6]) == ["model", "strategy", "options", "length", "task", "cell_id"]


def test_a_comparison_is_a_row_with_the_numbers_of_the_tables():
    rows = [row("none"), row("yarn", -0.5), row("linear", 0.5), row("yarn", -0.5, 512, count=3), row("none", 0, 512, 3)]
    frame = compare(rows)
    indexed = frame.set_index(["length", "strategy"])
    assert set(indexed.index) == {(1024, "yarn"), (1024, "linear"), (512, "yarn")} and set(frame.against) == {"none"}
    yarn = indexed.loc[1024, "yarn"]
    assert yarn.difference == pytest.approx(-0.5175) and yarn.low < yarn.difference < yarn.high < 0
    assert yarn.p == pytest.approx(2 / 2**8) and yarn.p_adjusted == pytest.approx(2 * yarn.p)
    assert (yarn.metric, yarn.documents, yarn.reason) == ("nll", 8, "")
    few = indexed.loc[512, "yarn"]
    assert few.documents == 3 and math.isnan(few.p) and few.difference < 0


def test_another_baseline_may_be_named():
    rows = [row("none"), row("yarn", -0.5), row("linear", 0.5)]
    frame = compare(rows, "yarn")
    assert set(frame.strategy) == {"none", "linear"} and set(frame.against) == {"yarn"} and (frame.difference > 0).all()
    with pytest.raises(Refusal, match="baseline=ntk: no result has that strategy; there are none, yarn, linear"):
        compare(rows, "ntk")


def test_results_that_do_not_compare_say_why():
    none, (cell, result) = row("none"), row("yarn", -0.5)
    frame = compare([none, (cell, replace(result, digest="other"))])
    assert "documents differ" in frame.reason[0] and math.isnan(frame.difference[0])


def test_no_results_are_an_empty_frame():
    assert to_frame([]).empty and documents_frame([]).empty and compare([]).empty


def test_a_curve_is_every_metric_and_cost_by_length():
    long, short = row("yarn", -0.5, 1024), row("yarn", -0.5, 512)
    points = curves.by_length([long, short])
    assert points["ppl"] == [(512, short[1].metrics["ppl"], 0.5), (1024, long[1].metrics["ppl"], 0.5)]
    assert points["seconds"] == [(512, 2.0, None), (1024, 2.0, None)] and set(points) == {"ppl", "seconds"}


def test_gains_and_effective_lengths_are_tables_too():
    rows = [row("crop", length=n, shift=s) for n, s in ((1024, -0.1), (2048, -0.2))]
    rows += [row("yarn", length=n, shift=s) for n, s in ((1024, -0.5), (2048, 0.5))]
    frame = gains(rows)
    assert frame.columns.tolist() == list(GAINS) and frame.strategy.tolist() == ["yarn", "yarn"]
    assert frame.verdict.tolist() == ["useful", "broken"] and frame.documents.tolist() == [8, 8]
    assert frame.gain[0] > 0 > frame.gain[1] and (frame.low <= frame.gain).all() and (frame.gain <= frame.high).all()
    lengths = effective_lengths(rows)
    assert lengths[["strategy", "rule", "value"]].to_numpy().tolist() == [["yarn", "gain", 1024.0]]
    assert gains([row("none")]).empty and effective_lengths([row("none")]).empty
