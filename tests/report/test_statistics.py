"""Whether a difference is chance: every test against its definition, and how often it cries wolf."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import CELL

from pipelines.records.cells import Refusal, Result, Task
from pipelines.report import statistics
from pipelines.report.statistics import compare
from pipelines.tasks.kinds import Measure
from rope.geometry import ALL_LAYERS, Plan

NLL = statistics.measure_of("perplexity", None)


def flips(differences):
    """p by the definition: the share of all sign flips whose mean is as far from 0."""
    seen = abs(np.mean(differences)) - 1e-12
    all_flips = [abs(np.mean(np.multiply(differences, s))) for s in product((1, -1), repeat=len(differences))]
    return np.mean(np.array(all_flips) >= seen)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-3, 3).map(lambda x: round(x, 2)), min_size=2, max_size=9))
@example([1.62, -2.39, 1.5, 1.62, 1.19, -1.62, -1.06, -0.56, -0.31])  # flips that tie but for their last bits
def test_the_sign_flip_test_is_exact_for_few_documents(differences):
    assert statistics.chance(np.array(differences)) == pytest.approx(flips(differences))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=2, max_size=11))
def test_mcnemar_is_the_binomial_test_of_what_differs_and_the_sign_flip_test_of_it_all(differences):
    more, fewer = differences.count(1.0), differences.count(-1.0)
    n, k = more + fewer, min(more, fewer)
    binomial = min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0
    p = statistics.chance(np.array(differences))
    assert p == pytest.approx(binomial) and p == pytest.approx(flips(differences))


def test_mcnemar_by_hand():
    # 10 keys that one alone answers and 2 that the other alone does: 2 (1 + 12 + 66) / 4096.
    assert statistics.chance(np.array([1.0] * 10 + [-1.0] * 2 + [0.0] * 30)) == pytest.approx(2 * 79 / 4096)


def test_the_random_sign_flips_come_near_the_exact_ones():
    differences = np.random.default_rng(1).normal(0.5, 1, 16)
    assert 2 ** len(differences) > statistics.RESAMPLES
    assert statistics.chance(differences) == pytest.approx(flips(differences), abs=0.01)
    assert statistics.chance(differences) == statistics.chance(differences.copy())


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and no later one below an earlier.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0] and statistics.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(values):
    adjusted = statistics.holm(values)
    for p, q in zip(values, adjusted, strict=True):
        assert p <= q <= min(1.0, p * len(values)) + 1e-12
    assert np.all(np.diff(np.array(adjusted)[np.argsort(values, kind="stable")]) >= 0)


def test_chance_alone_is_rarely_called_a_difference():
    """800 pairs of equal strategies: at most 5 % are significant, but for noise of 3 standard errors; skewed or not."""
    rng = np.random.default_rng(7)
    for draw in (lambda: rng.normal(size=9), lambda: rng.exponential(size=9) - rng.exponential(size=9)):
        share = np.mean([statistics.chance(draw()) < 0.05 for _ in range(400)])
        assert share <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_answers_to_one_key_are_one_observation():
    """Half of all keys are easy at every depth under one strategy, half under the other, by chance: counted document
    by document that is a finding far too often, key by key it is not."""
    rng = np.random.default_rng(3)
    by_document, by_key = [], []
    for _ in range(300):
        keys = rng.integers(-1, 2, size=12).astype(float)
        by_document.append(statistics.chance(np.repeat(keys, 4)) < 0.05)
        by_key.append(statistics.chance(keys) < 0.05)
    assert np.mean(by_key) <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    assert np.mean(by_document) > 0.15


@pytest.mark.parametrize(("count", "least"), [(12, 0.86), (40, 0.90)])
def test_the_interval_holds_the_true_difference_about_as_often_as_it_says(count, least, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rng = np.random.default_rng(11)
    held = []
    for _ in range(400):
        low, high = statistics.interval(rng.normal(0.3, 1.0, count))
        held.append(low <= 0.3 <= high)
    assert least <= np.mean(held) <= 0.98


def test_the_documents_needed_are_the_fewest_that_can_be_significant():
    for comparisons in (1, 2, 5, 8, 20, 64):
        n = statistics.needed(comparisons)
        assert comparisons * 2 ** (1 - n) < statistics.ALPHA <= comparisons * 2 ** (2 - n)


# ------------------------------------------------------------------------------------------------- two results


def row(strategy="yarn", values=(1.0,) * 8, task="perplexity", key="nll", cell=None, **changes):
    plan = ((ALL_LAYERS, Plan((1.0, {"none": 0.01, "yarn": 0.02, "linear": 0.03}.get(strategy, 0.04)))),)
    cell = cell or replace(CELL, strategy=strategy, plans=plan, length=1024, task=Task(task))
    documents = [{"index": i, "tokens": 1024, key: value} for i, value in enumerate(values)]
    fields = {"documents": documents, "digest": "d", "metrics": {key: float(np.mean(values))}}
    return cell, Result(cell.id, "ok", **{**fields, "provenance": {"torch": "2"}, **changes})


NOISE = np.random.default_rng(5).normal(0, 0.01, 8)


def test_a_difference_is_of_the_same_documents():
    hard = np.array([1.0, 3.0, 5.0, 2.0, 9.0, 4.0, 2.0, 7.0])
    difference = compare(row(values=hard - 0.5 + NOISE), row("none", values=hard))
    assert (
        difference.mean == pytest.approx(-0.5, abs=0.02) and difference.low < difference.mean < difference.high < -0.4
    )
    assert difference.p == pytest.approx(2 / 256) and difference.better and difference.count == 8


def test_no_interval_is_made_up_where_all_documents_differ_alike():
    difference = compare(row(values=[1.0] * 8, task="passkey", key="acc"), row("none", [0.0] * 8, "passkey", "acc"))
    assert (difference.mean, difference.low, difference.high) == (1.0, None, None) and difference.better


def test_too_few_documents_have_no_p():
    for count in (1, 2, 5):
        difference = compare(row(values=1 + NOISE[:count]), row("none", values=[2.0] * count))
        assert (difference.p, difference.low, difference.high, difference.count) == (
            None,
            None,
            None,
            count,
        ) and difference.mean < 0
    assert compare(row(values=[1.0] * 6), row("none", values=[2.0] * 6)).p == pytest.approx(2 / 64)


def test_depths_of_a_key_are_averaged_first():
    documents = [{"index": i, "tokens": 9, "key_number": i // 2, "acc": float(i % 2 or i < 8)} for i in range(16)]
    lost = [{**document, "acc": 0.0} for document in documents]
    difference = compare(
        row(task="passkey", documents=documents, digest="d"), row("none", task="passkey", documents=lost, digest="d")
    )
    assert difference.count == 8 and difference.mean == 0.75 and difference.p == pytest.approx(2 / 256)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"digest": "other"}, ["documents differ", "d and other", "same text"]),
        ({"digest": ""}, ["documents differ", "none"]),
        ({"provenance": {"torch": "3"}}, ["torch differs (2 and 3)", "force=true"]),
        ({"provenance": {"torch": "2", "device": "H100"}}, ["device differs (unknown and H100)"]),
        ({"values": (1.0,) * 7}, ["8 and 7 documents", "same limit"]),
        ({"documents": [], "status": "oom"}, ["none has no documents", "oom"]),
        ({"cell": replace(CELL, strategy="none", dtype="bfloat16")}, ["dtype differs (float32 and bfloat16)"]),
        ({"cell": replace(CELL, strategy="none", device="cuda")}, ["device class differs"]),
        ({"cell": replace(CELL, strategy="none", versions=(("scorer", 2),))}, ["scorer differs (1 and 2)"]),
        ({"documents": [{"index": i, "tokens": 1000, "nll": 1.0} for i in range(8)]}, ["tokens", "differ"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_results_that_do_not_compare_are_refused_in_a_sentence(changes, words):
    status = changes.pop("status", None)
    cell, result = row("none", **changes)
    with pytest.raises(Refusal) as refused:
        compare(row(), (cell, replace(result, status=status) if status else result))
    for word in words:
        assert word in str(refused.value)


def test_when_where_and_by_which_commit_is_no_reason():
    ours = row(provenance={"torch": "2", "code": {"commit": "a"}, "at": "now", "host": "h", "command": "c"})
    assert compare(ours, row("none", values=[2.0] * 8)).mean == -1


def test_a_missing_score_is_refused_not_filled_in():
    documents = [{"index": i, "tokens": 1024, **({"nll": 1.0} if i else {})} for i in range(8)]
    with pytest.raises(Refusal, match="no nll of document 0"):
        compare(row(documents=documents), row("none"))


def test_a_metric_of_no_known_direction_is_refused():
    assert statistics.measure_of("gsm8k", "exact_match/strict-match") == Measure("exact_match/strict-match", False)
    assert statistics.measure_of("wikitext", "word_perplexity").lower
    with pytest.raises(Refusal, match="whether more colour is better"):
        statistics.measure_of("x", "colour")


def test_the_baseline_is_none_or_else_the_first_and_equal_plans_are_left_out():
    none, yarn, linear = row("none", [2.0] * 8), row("yarn", 1 + NOISE), row("linear", 3 + NOISE)
    same = (replace(none[0], strategy="ntk"), none[1])
    comparisons = statistics.against_baseline([yarn, linear, none, same], None)
    assert [(v.cell.strategy, v.baseline.strategy) for v in comparisons] == [("yarn", "none"), ("linear", "none")]
    assert [(v.difference.better, v.difference.significant) for v in comparisons] == [(True, True), (False, True)]
    assert {v.difference.adjusted for v in comparisons} == {2 * 2 / 256}
    comparisons = statistics.against_baseline([yarn, linear], None)
    assert [(v.cell.strategy, v.baseline.strategy) for v in comparisons] == [("linear", "yarn")]
    assert statistics.against_baseline([], None) == []


def test_strategies_of_one_plan_are_one_comparison():
    none, yarn = row("none", [2.0] * 8), row("yarn", 1 + NOISE)
    twin = (replace(yarn[0], strategy="by_parts"), yarn[1])
    comparisons = statistics.against_baseline([none, yarn, twin], None)
    assert [v.difference.adjusted for v in comparisons] == [2 / 256, 2 / 256]


def test_a_baseline_that_failed_is_no_comparison():
    none, yarn = row("none", documents=[], metrics={}), row("yarn")
    [comparison] = statistics.against_baseline([none, yarn], None)
    assert comparison.difference is None and "no documents" in comparison.refusal


def test_a_comparison_takes_its_own_seed_and_limit():
    none, yarn = row("none", [2.0] * 8), row("yarn", 1 + NOISE)
    other = (replace(yarn[0], seed=1), yarn[1])
    assert [v.cell.seed for v in statistics.against_baseline([none, yarn, other], None)] == [0]
