"""Two sides compared: pairs by document, what is told of their configs, and equivalence that is shown, not assumed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from support import CELL

from pipelines.cli.main import run
from pipelines.records.cells import Model, Refusal, Result, Task, frozen
from pipelines.records.results import Store
from pipelines.report import compare, statistics, stored
from pipelines.tasks.kinds import Measure

NLL = statistics.measure_of("perplexity", None)
PASSKEY = Task("passkey", frozen({"keys": 2}))
BASE = np.linspace(2.0, 3.0, 12)


def row(values, digest="same", torch="2.11", strategy="none", **changes):
    """A cell and its result: values are the NLLs of its documents, or the scores of its keys."""
    cell = replace(CELL, strategy=strategy, **changes)
    name = "acc" if cell.task.name == "passkey" else "nll"
    documents = [
        {"index": n, "tokens": 64, name: float(v), "key_number": n, "nll_by_position": [float(v), float(v) + n % 2]}
        for n, v in enumerate(values)
    ]
    series = {"nll_by_position": [(32.0, 1.0), (64.0, 1.0)]}
    place = {"torch": torch, "attention": "sdpa"}
    return cell, Result(cell.id, "ok", {name: 1.0}, series, documents, digest, provenance=place)


def noise(scale, shift=0.0):
    return BASE + np.random.default_rng(3).normal(shift, scale, 12)


def test_the_two_one_sided_tests_are_those_of_statsmodels():
    """Figures of statsmodels 0.14 (ttost_paired; ttost_ind with usevar="unequal") on these very draws."""
    differences = np.random.default_rng(3).normal(0.002, 0.01, 12)
    for margin, p in ((0.005, 0.19689381551262375), (0.01, 0.03634306806267778), (0.02, 0.0007696155196468053)):
        found = statistics.equivalence(differences, margin)
        assert found.p == pytest.approx(p, rel=1e-9)
        assert found.shown == (-margin < found.low and found.high < margin), "its interval says the same as its p"
    a, b = np.random.default_rng(4).normal(0, 0.01, 12), np.random.default_rng(5).normal(0.002, 0.02, 9)
    assert statistics.unpaired(NLL, a, b, 0.02)[1].p == pytest.approx(0.004108542072846607, rel=1e-9)


def test_equivalence_is_rarely_shown_of_what_lies_on_the_margin():
    """2,000 pairs whose true difference is the margin itself: at most 5 % are called equivalent, but for noise."""
    random = np.random.default_rng(1)
    shown = [statistics.equivalence(random.normal(0.01, 0.02, 12), 0.01).shown for _ in range(2000)]
    assert np.mean(shown) <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5
    shown = [statistics.equivalence(random.normal(0, 0.005, 12), 0.01).shown for _ in range(200)]
    assert np.mean(shown) > 0.95


def test_twelve_keys_that_all_agree_show_nothing_of_one_percent():
    agreeing = np.zeros(12)
    assert statistics.equivalence(agreeing, 0.01, bounded=True).p == pytest.approx(0.99**12)
    assert statistics.equivalence(np.zeros(299), 0.01, bounded=True).shown
    lost = np.array([-1.0, *[0.0] * 298])
    assert not statistics.equivalence(lost, 0.01, bounded=True).shown
    random = np.random.default_rng(2)  # one key in ten is lost: at most 5 % of trials may call that less than 10 %
    trials = [statistics.equivalence(-(random.random(40) < 0.1).astype(float), 0.1, bounded=True) for _ in range(1000)]
    assert np.mean([one.shown for one in trials]) <= 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5


@pytest.mark.parametrize("given", ["0", "1", "-1%", "abc", "1 % %", "100%"])
def test_a_margin_that_is_no_share_is_refused(given):
    with pytest.raises(Refusal, match="1%"):
        compare.margin_read(given)


def test_a_changed_dtype_is_compared_document_by_document_and_told():
    rows = [row(BASE), row(noise(1e-4), dtype="bfloat16")]
    [found] = compare.along(rows, "dtype", margin=0.01)
    assert found.differing == (("dtype", "float32", "bfloat16"),) and found.equivalent
    [one] = found.compared
    assert one.difference.mean == pytest.approx((noise(1e-4) - BASE).mean()) and one.difference.count == 12
    assert one.difference.low < one.difference.mean < one.difference.high
    assert [end for end, _ in one.positions] == [32.0, 64.0]
    assert one.positions[1][1].mean == pytest.approx(one.difference.mean)
    [same] = compare.along(rows, "dtype", baseline="bfloat16")
    assert same.compared[0].difference.mean == pytest.approx(-one.difference.mean)


def test_a_real_loss_is_neither_equivalent_nor_hidden():
    [found] = compare.along([row(BASE), row(noise(1e-3, 0.03), dtype="bfloat16")], "dtype", margin=0.01)
    [one] = found.compared
    assert not found.equivalent and one.difference.significant and not one.difference.better
    assert compare.relative(NLL, one.difference.mean) == pytest.approx(math.expm1(one.difference.mean))


def test_the_margin_of_a_perplexity_is_of_the_perplexity():
    assert compare.margin_of(NLL, 0.01) == pytest.approx(math.log(1.01))
    assert compare.margin_of(Measure("acc", lower=False), 0.01) == 0.01


def test_other_documents_are_refused_with_the_reason():
    long = row(noise(1e-4), digest="other", limit=24, dtype="bfloat16")
    found = compare.sides([row(BASE)], [long], ("a", "b"))
    assert found.compared[0].difference is None and "as the limit differs" in found.compared[0].refusal
    other = Model("other", "models/other", fingerprint="f2")
    [one] = compare.along([row(BASE), row(BASE, digest="other", model=other)], "model")
    assert "different tokenizers" in one.compared[0].refusal
    scored = row(noise(1e-4), versions=(("scorer", 2),), dtype="bfloat16")
    assert "scorer 1 and 2" in compare.sides([scored], [row(BASE)], ("a", "b")).compared[0].refusal


def test_other_texts_are_compared_unpaired_where_that_is_asked_for():
    task = Task("perplexity", (("bos", None), ("text", "stdlib")))
    rows = [row(BASE), row(BASE + 0.5, digest="other", data="d2", task=task)]
    [found] = compare.along(rows, "task.text")
    [one] = found.compared
    assert (
        not one.paired and one.difference.mean == pytest.approx(0.5) and one.difference.low < 0.5 < one.difference.high
    )
    assert "as the text differs" in compare.sides(*([r] for r in rows), ("a", "b")).compared[0].refusal


def test_sides_pair_what_they_share_and_tell_what_they_do_not():
    theirs = [row(BASE), row(BASE, strategy="yarn", length=1024), row(BASE, strategy="linear", length=2048)]
    ours = [replace_row(r, dtype="bfloat16") for r in theirs[:2]]
    found = compare.sides(theirs, ours, ("old", "new"))
    assert [one.ours.strategy for one in found.compared] == ["none", "yarn"]
    assert found.alone == (("old", theirs[2][0].label),)
    crossed = [row(BASE, length=1024), row(BASE, strategy="yarn")]
    with pytest.raises(Refusal, match="no cells with the same choices"):
        compare.sides([row(BASE), row(BASE, strategy="yarn", length=1024)], crossed, ("a", "b"))


def replace_row(one, **changes):
    cell = replace(one[0], **changes)
    return cell, replace(one[1], cell_id=cell.id, documents=[{**d, "nll": d["nll"] + 1e-4} for d in one[1].documents])


def test_two_places_are_compared_although_the_cell_is_the_same():
    """Another attention backend or version of torch is no choice of a cell: two stores hold one cell twice."""
    theirs, ours = row(BASE), row(noise(1e-4), torch="2.12")
    found = compare.sides([theirs], [ours], ("a", "b"), 0.01)
    assert theirs[0].id == ours[0].id and found.differing == (("torch", "2.11", "2.12"),) and found.equivalent
    assert compare.sides([theirs], [theirs], ("a", "b")).same == 1


def test_one_file_under_two_names_is_a_row_under_each(tmp_path):
    store, other = Store(tmp_path / "store"), replace(CELL.model, name="a-copy", path="/copies/a-copy")
    one = row(BASE)
    store.save(*one)
    cells = [one[0].spec(), replace(one[0], model=other).spec()]
    body = {"id": "s", "experiment": "e", "command": "c", "created": "2026", "code": {}, "cells": cells}
    store.save_sweep("s", body)
    assert [cell.model.name for cell, _ in stored.rows_of(store)] == ["tiny", "a-copy"]


def test_results_that_differ_in_more_than_the_axis_are_refused_with_what_else():
    rows = [row(BASE), row(noise(1e-4), dtype="bfloat16", seed=1)]
    with pytest.raises(Refusal, match="they also differ in seed"):
        compare.along(rows, "dtype")


def test_an_axis_that_nothing_differs_in_is_refused_with_those_that_there_are():
    rows = [row(BASE), row(noise(1e-4), dtype="bfloat16")]
    with pytest.raises(Refusal, match=r"all results have 512; axes with several values here: .*dtype"):
        compare.along(rows, "length")
    with pytest.raises(Refusal, match="no result has such a choice"):
        compare.along(rows, "dtyp")
    with pytest.raises(Refusal, match="there are float32, bfloat16"):
        compare.along(rows, "dtype", baseline="float64")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    cells = [row(BASE), row(noise(1e-4), dtype="bfloat16")]
    for cell, result in cells:
        store.save(cell, result)
    for number, one in enumerate(cells):
        name = f"2026-11-2{number}T0000-abcde{number}"
        body = {"id": name, "experiment": "e", "command": "c", "created": name, "code": {}, "cells": [one[0].spec()]}
        store.save_sweep(name, body)
    return store


def test_the_command_compares_sweeps_cells_files_and_axes(store, capsys):
    first, second = (cell.id for cell, _ in stored.rows_of(store))
    for words in (
        ["2026-11-20", "latest"],
        [first[:6], second],
        [str(store.cell(first) / "result.json"), str(store.cell(second))],
        ["axis=dtype"],
        ["axis=dtype", str(store.root), "baseline=float32", "strategy=none"],
    ):
        assert run(["compare", *words, f"store={store.root}", "--margin", "1%"]) == 0, words
        text = capsys.readouterr().out
        assert "dtype: float32 -> bfloat16" in text and "Equivalent within 1 %" in text and "12 documents" in text
    assert run(["compare", "axis=dtype", f"store={store.root}", "--margin", "0.0001%", "--json"]) == 1
    [body] = json.loads(capsys.readouterr().out)
    assert body["equivalent"] is False and body["cells"][0]["difference"]["count"] == 12
    assert len(body["cells"][0]["positions"]) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["latest"], "give two sides"),
        (["latest", "nope"], "nope: no sweep and no cell"),
        (["axis=dtype", "strategy=yarn"], "strategy=yarn: no result here has that; there are none"),
        (["axis=dtype", "--margin", "x"], "--margin x"),
        (["2026-11-2", "latest"], "2 have an id that begins so"),
        (["axs=dtype"], "did you mean axis=...?"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(words, sentence, store, capsys):
    assert run(["compare", *words, f"store={store.root}"]) == 2
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1
