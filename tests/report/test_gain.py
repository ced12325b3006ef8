"""Context gain: over the same tokens, paired by document, equal to a loop without any code of ours; and its words."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import CELL, TINY
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.choices.config import Cluster, Device, ModelChoice, Workbench
from pipelines.choices.sweep import cell_of
from pipelines.records.cells import Result, Task
from pipelines.report import effective, gain, tables
from pipelines.report.gain import MARGIN, Gain
from pipelines.tasks import distance
from pipelines.tasks.kinds import Measure
from pipelines.workers.evaluate import evaluate

TRAINED, LENGTH, STRIDE = 512, 1024, 256


def nll_of_a_loop(ids, yarn_factor=None):
    """Mean NLL of ids[1:] by plain transformers: under its own YaRN in one forward; or, where there is no factor, in
    windows of the trained length that move by STRIDE tokens."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if yarn_factor:
        rope |= {"rope_type": "yarn", "factor": yarn_factor, "original_max_position_embeddings": TRAINED}
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, rope_parameters=rope).eval()
    losses, done, window = [], 0, LENGTH if yarn_factor else TRAINED
    while done < len(ids) - 1:
        stop = min(len(ids) - 1, max(window, done + STRIDE))
        start = max(0, stop - window)
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:stop]]), use_cache=False).logits[0, done - start :]
        losses.append(
            torch.nn.functional.cross_entropy(logits, torch.tensor(ids[done + 1 : stop + 1]), reduction="none")
        )
        done = stop
    return torch.cat(losses).double().mean().item()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "argparse.txt"
    path.write_text(inspect.getsource(__import__("argparse")), encoding="utf-8")
    return path


def test_the_gain_is_that_of_an_independent_loop(text):
    tokens = AutoTokenizer.from_pretrained(TINY)(text.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    documents = [tokens[n * LENGTH : (n + 1) * LENGTH] for n in range(2)]
    wanted = [nll_of_a_loop(ids) - nll_of_a_loop(ids, LENGTH / TRAINED) for ids in documents]
    rows = [(cell, next(evaluate([cell]))) for cell in (cell_for(text, name) for name in ("crop", "yarn"))]
    (crop, yarn) = rows
    ours = [a["nll"] - b["nll"] for a, b in zip(crop[1].documents, yarn[1].documents, strict=True)]
    np.testing.assert_allclose(ours, wanted, atol=1e-6)
    assert crop[1].digest == yarn[1].digest and max(map(abs, wanted)) > 1e-2
    (one,) = gain.gains(rows, "ppl")
    assert one.gain == pytest.approx(1 - math.exp(-np.mean(wanted)), abs=1e-6)
    by_position = gain.by_position(yarn, crop)
    # the first bucket lacks the first token, which is context alone
    sizes = np.diff([0, *(x for x, _, _ in by_position)]) - np.eye(1, len(by_position))[0]
    assert np.average([y for _, y, _ in by_position], weights=sizes) == pytest.approx(np.mean(wanted), abs=1e-6)


def cell_for(text, strategy):
    return cell_of(
        Workbench(
            model=ModelChoice("tiny", str(TINY)),
            strategy={"name": strategy},
            length=LENGTH,
            limit=2,
            cluster=Cluster(device=Device.cpu),
            task={"name": "perplexity", "text": str(text)},
        )
    )


# ------------------------------------------------------------------------------------------------------------- words


def row(strategy, nll, length=1024, digest="d", task=CELL.task, name="nll", **facts):
    """A result of so many documents, by hand."""
    cell = replace(CELL, strategy=strategy, length=length, task=task, plans=((strategy, CELL.plans[0][1]),))
    documents = [{"index": n, "tokens": length, name: value, **facts} for n, value in enumerate(nll)]
    return cell, Result(cell.id, "ok", {name: float(np.mean(nll))}, documents=documents, digest=digest)


def spread(mean, width=0.01, count=12):
    return (3 + mean + width * np.linspace(-1, 1, count)).tolist()


@pytest.mark.parametrize(
    "difference, width, word",
    [
        (-0.05, 0.01, "useful"),
        (0.0, 0.01, "intact"),
        (0.02, 0.01, "intact"),
        (0.2, 0.05, "broken"),
        (3.0, 0.5, "broken"),
        (0.02, 0.5, "undecided"),
        (-0.02, 0.5, "undecided"),
    ],
)
def test_the_word_follows_the_interval(difference, width, word):
    (one,) = gain.gains([row("crop", [3.0] * 12), row("yarn", spread(difference, width))], "ppl")
    assert one.verdict == word and one.count == 12
    assert one.gain == pytest.approx(1 - math.exp(difference)) and one.low < one.gain < one.high
    sure = {"useful": one.low > 0, "intact": one.low >= -MARGIN, "broken": one.high < 0, "undecided": one.high > 0}
    assert sure[word]


def test_a_score_gains_in_points_and_more_is_better():
    task = Task("passkey")
    lost = row("crop", [0.0] * 12, task=task, name="acc")
    found = row("yarn", [1.0] * 12, task=task, name="acc")
    (one,) = gain.gains([lost, found], "acc")
    assert (one.gain, one.low, one.high, one.verdict, one.unit) == (1, 1, 1, "useful", "points")
    (one,) = gain.gains([replaced(lost, found[0]), replaced(found, lost[0])][::-1], "acc")
    assert (one.gain, one.verdict) == (-1, "broken")


def test_above_cropping_but_by_chance_among_so_many_is_not_useful_and_says_why(monkeypatch):
    monkeypatch.setattr(tables, "_trained_length", lambda cell: 512)
    measure = Measure("nll", lower=True, exp="perplexity")
    cells = (row("yarn", [3.0])[0], row("crop", [3.0])[0])
    assert Gain(*cells, measure, 0.02, -0.001, 0.04, p=0.01, adjusted=0.01).verdict == "intact"  # the interval holds 0
    assert Gain(*cells, measure, 0.02, 0.001, 0.04, p=0.01, adjusted=0.08).verdict == "intact"
    assert Gain(*cells, measure, 0.02, 0.001, 0.04, p=0.01, adjusted=0.04).verdict == "useful"
    rows = [row("crop", [3.0] * 7), row("yarn", spread(-0.02, 0.01, 7)), row("ntk", spread(0.02, 0.01, 7))]
    (table,) = tables.tables([*rows, row("linear", spread(0.5, 0.1, 7)), row("none", spread(2, 0.2, 7))])
    assert dict(line[:2] for line in table.gains.rows)["yarn"].endswith("] intact, p 0.062")


def test_far_worse_is_said_in_times(monkeypatch):
    monkeypatch.setattr(tables, "_trained_length", lambda cell: 512)
    (table,) = tables.tables([row("crop", [3.0] * 12), row("none", spread(math.log(61), 0.01))])
    assert table.gains.rows[0][1] == "61 times [60.8, 61.2] broken"
    assert table.gains.summary.endswith("none comes closest: 61 times [60.8, 61.2] the perplexity.")


def test_where_nothing_but_cropping_was_run_there_is_no_table_of_gains(monkeypatch):
    monkeypatch.setattr(tables, "_trained_length", lambda cell: 512)
    finer = row("crop", spread(0.01))
    finer = replaced(finer, replace(finer[0], options=(("stride", 64),), plans=(("other", CELL.plans[0][1]),)))
    (table,) = tables.tables([row("crop", [3.0] * 12), finer])
    assert table.gains is None and table.legend


def replaced(of, cell):
    return cell, replace(of[1], cell_id=cell.id)


def test_results_over_other_tokens_are_not_paired():
    for other in (row("yarn", spread(-0.1), digest="other"), row("yarn", spread(-0.1, count=11))):
        (one,) = gain.gains([row("crop", [3.0] * 12), other], "ppl")
        assert "does not compare" in one.refusal and one.measure is None
    cell, result = row("yarn", spread(-0.1))
    longer = [{**document, "tokens": 1023} for document in result.documents]
    (one,) = gain.gains([row("crop", [3.0] * 12), (cell, replace(result, documents=longer))], "ppl")
    assert "the tokens of their documents differ" in one.refusal


def test_too_few_documents_get_no_word_and_are_told_how_many_it_takes(monkeypatch):
    monkeypatch.setattr(tables, "_trained_length", lambda cell: 512)
    (table,) = tables.tables([row("crop", [3.0] * 5), row("yarn", spread(-0.1, count=5))])
    assert table.gains.rows == [["yarn", "+9.5 %", "1,024"]]
    assert table.gains.summary.endswith("With 5 documents none can be: 1 comparison takes at least 6 (limit=6).")


def test_without_a_cropped_cell_nothing_is_said_of_gains(monkeypatch):
    monkeypatch.setattr(tables, "_trained_length", lambda cell: 512)
    (table,) = tables.tables([row("none", [3.0] * 8), row("yarn", spread(-0.1, count=8))])
    assert table.gains is None


def test_the_table_says_what_a_strategy_is_worth_at_every_length_and_what_it_costs_at_the_trained_one(monkeypatch):
    monkeypatch.setattr(tables, "_trained_length", lambda cell: 512)
    rows = [row("crop", [3.0] * 12, length=n) for n in (512, 1024, 2048)]
    rows += [row("yarn", spread(d), length=n) for n, d in ((1024, -0.05), (2048, 0.2))]
    deployed, result = row("yarn", spread(0.1), length=512)
    rows.append((replace(deployed, options=(("factor", 4.0),)), result))
    (table,) = tables.tables(rows)
    assert table.gains.header == ["strategy", "1,024", "2,048", "effective length"]
    ((name, first, second, reached),) = table.gains.rows
    assert name == "yarn" and first.endswith("useful") and second.endswith("broken")
    assert first.startswith("+4.9 % [") and reached == "1,024 [1,024, 1,024]"
    assert table.header[-1] == "cost at 512 when deployed for 2,048"
    assert [line[0] for line in table.rows] == ["crop", "yarn"] and table.rows[1][-1].startswith("10.5 % [")
    assert table.gains.summary.startswith("At 2,048 tokens no gain over cropping is shown; yarn comes closest: -22.1 %")
    assert "context gain over cropping" in tables.markdown([table])


# -------------------------------------------------------------------------------------------------- effective length


def test_effective_lengths_are_those_of_the_published_rules():
    scores = {n: np.full(8, s) for n, s in ((4096, 0.95), (8192, 0.9), (16384, 0.86), (32768, 0.7))}
    by_rule = {one.rule: one for one in effective.by_score(scores, trained=8192)}
    assert by_rule["ruler"].value == 16384  # 86 of 100 is at least 85.6
    assert by_rule["nolima"].value == 16384  # 85 % of 0.95 is 0.8075
    assert by_rule["longscore"].value == pytest.approx((0.78 - 0.925) / 0.925)
    assert (by_rule["ruler"].low, by_rule["ruler"].high) == (16384, 16384)


def test_a_length_counts_only_up_to_the_first_that_fails():
    scores = {n: np.full(8, s) for n, s in ((512, 1.0), (1024, 0.2), (2048, 1.0))}
    assert {one.rule: one.value for one in effective.by_score(scores, 512)}["ruler"] == 512
    assert effective.by_gain({1024: np.full(8, -0.1), 2048: np.full(8, 0.1)}, 512).value == 512
    assert effective.by_gain({1024: np.full(8, 0.1), 2048: np.full(8, 0.1)}, 512).value == 2048
    assert effective.by_gain({512: np.full(8, 0.1)}, 512) is None


def test_what_no_length_reaches_is_zero_and_a_score_of_nothing_has_no_longscore():
    by_rule = {one.rule: one for one in effective.by_score({512: np.zeros(8), 1024: np.zeros(8)}, 512)}
    assert (by_rule["ruler"].value, by_rule["nolima"].value) == (0, 0) and "longscore" not in by_rule
    assert effective.by_score({512: np.full(8, 3.5)}, 512) == []  # no score from 0 to 1


def test_the_interval_of_an_effective_length_covers_it_as_often_as_it_says():
    random, covered, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):  # truly 2,048: the mean is 0.2 there and -0.2 beyond
        sample = {n: random.normal(mean, 0.6, 16) for n, mean in ((1024, 0.6), (2048, 0.2), (4096, -0.2))}
        one = effective.by_gain(sample, 512)
        covered += one.low <= 2048 <= one.high
    assert covered / trials > 0.93


def test_few_documents_have_an_effective_length_without_an_interval():
    one = effective.by_gain({1024: np.full(5, 0.1)}, 512)
    assert (one.value, one.low, one.high) == (1024, None, None)


def test_by_distance_a_gain_lies_where_what_was_cropped_tells_the_token():
    """Of tokens that can be copied from further back than the window, a long reader knows more; of no others."""
    window, length = 64, 1000
    dice = np.random.default_rng(0)
    documents = []
    for _ in range(6):
        ids = dice.integers(0, 30, length).tolist()
        far = distance.back(ids)
        short = dice.uniform(1, 3, length - 1)
        long = short - np.where(np.isfinite(far) & (far > window), 0.5, 0.0)
        kept = [distance.by_distance(ids, nll) for nll in (short, long)]
        documents.append([{"nll_by_distance": sums, "tokens_by_distance": counts} for sums, counts in kept])
    cell = replace(CELL, task=Task("perplexity", ()), length=length)
    crop, ours = (
        (
            replace(cell, strategy=name),
            Result(name, "ok", {}, documents=[row[k] for row in documents], digest="same"),
        )
        for k, name in enumerate(("crop", "yarn"))
    )
    found = gain.by_distance(ours, crop)
    assert [end for end, _, _ in found] == [16, 32, 64, 128, 256, 512, 1024, math.inf]
    assert [round(mean, 9) for _, mean, _ in found] == [0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0]
    assert sum(documents[0][0]["tokens_by_distance"]) == length - 1
    # results from before distances were kept say nothing
    assert gain.by_distance((ours[0], replace(ours[1], documents=[{}] * 6)), crop) == []


def test_distance_is_to_the_last_place_where_the_same_two_tokens_stood():
    ids = np.random.default_rng(1).integers(0, 5, 200).tolist()
    for place, far in enumerate(distance.back(ids), start=1):
        before = [n for n in range(1, place) if ids[n - 1 : n + 1] == ids[place - 1 : place + 1]]
        assert far == (place - before[-1] if before else math.inf)
