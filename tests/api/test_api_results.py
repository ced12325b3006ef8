"""Results by the public names: a sequence with tables, data frames and comparisons, from anywhere."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support import CELL

import ropewalk
from pipelines.records.results import Store


def row(strategy, length, level, status="ok"):
    """A cell whose documents all have a loss near `level`."""
    cell = replace(CELL, strategy=strategy, length=length)
    cell = replace(cell, plans=((cell.plans[0][0], replace(cell.plans[0][1], attention_factor=level)),))
    documents = [{"index": n, "tokens": length, "nll": level + n / 100} for n in range(6)]
    metrics, series = {"nll": level, "ppl": 2.0**level}, {"nll_by_position": [(1.0, 2.0)]}
    result = ropewalk.Result(cell.id, status, metrics, series, documents, digest=f"{length}", cost={"seconds": 1.0})
    return cell, result


@pytest.fixture
def results():
    return ropewalk.Results(
        [row("none", 512, 3.0), row("none", 1024, 5.0), row("yarn", 1024, 3.5), row("ntk", 1024, 4)]
    )


def test_results_are_a_sequence_that_cannot_be_changed(results):
    assert len(results) == 4 and results[1][0].length == 1024 and results[-1] in results
    assert isinstance(results[1:], ropewalk.Results) and results[:1] + results[1:] == results
    assert hash(results) == hash(ropewalk.Results(results)) and results != results[1:]
    with pytest.raises(TypeError):
        results[0] = results[1]
    assert repr(results) == "Results(4 ok)" and repr(ropewalk.Results()) == "Results(nothing)"


def test_the_table_has_a_row_for_each_strategy_and_a_column_for_each_length(results):
    title, header, *rows, _ = str(results).splitlines()
    assert title.startswith("tiny, perplexity: ppl") and header.split() == ["strategy", "512", "1,024"]
    assert [line.split()[0] for line in rows] == ["none", "yarn", "ntk"] and "8" in rows[0] and "32" in rows[0]
    assert len({len(line) for line in (header, *rows)}) <= 2  # aligned, but for a mark at the end
    assert str(ropewalk.Results()) == "Results(nothing)"


def test_a_notebook_shows_the_same_table_with_its_text_escaped(results):
    html = (results + ropewalk.Results([row("<b>", 512, 3.0)]))._repr_html_()
    assert "<th>1,024</th>" in html and "<td>yarn</td>" in html and "&lt;b&gt;" in html and "<td><b></td>" not in html
    assert ropewalk.Results()._repr_html_() == "Results(nothing)"


def test_a_frame_has_a_row_a_cell_and_one_a_document(results):
    frame = results.to_frame()
    assert list(frame["strategy"]) == ["none", "none", "yarn", "ntk"] and list(frame["ppl"]) == [8, 32, 2**3.5, 16]
    assert set(frame["length"]) == {512, 1024} and set(frame["status"]) == {"ok"}
    assert len(results.documents_frame()) == 24 and results.documents_frame()["nll"].max() == pytest.approx(5.05)


def test_strategies_are_compared_with_a_baseline_over_the_same_documents(results):
    frame = results.compare()
    assert list(frame["strategy"]) == ["yarn", "ntk"] and list(frame["difference"]) == pytest.approx([-1.5, -1.0])
    assert ropewalk.compare(list(results)).equals(frame)
    against_yarn = ropewalk.compare(results, baseline="yarn")
    assert sorted(zip(against_yarn["strategy"], against_yarn["difference"], strict=True)) == [
        ("none", pytest.approx(1.5)),
        ("ntk", pytest.approx(0.5)),
    ]
    with pytest.raises(ropewalk.Refusal, match="none, yarn, ntk"):
        results.compare("linear")


def test_a_store_is_read_whole_under_every_name_that_was_asked_for(tmp_path, results):
    store = Store(tmp_path)
    for cell, result in results:
        store.save(cell, result)
    failed = row("dynamic", 1024, 4.5, status="failed")
    store.save(*failed)
    alias = replace(results[0][0], strategy="yarn")
    assert alias.id == results[0][0].id
    store.save_sweep("s", {"cells": [cell.spec() for cell in (results[0][0], alias, failed[0])]})
    loaded = ropewalk.load_results(tmp_path)
    assert [(c.strategy, c.length) for c, _ in loaded[:3]] == [("none", 512), ("yarn", 512), ("dynamic", 1024)]
    by_id = {cell.id: result for cell, result in [*results, failed]}
    assert {cell.id for cell, _ in loaded} == set(by_id) and all(result == by_id[cell.id] for cell, result in loaded)
    assert loaded[0][1] == results[0][1] and json.dumps(loaded[0][0].spec()) == json.dumps(results[0][0].spec())


def test_a_store_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ropewalk.Refusal, match="no folder"):
        ropewalk.load_results(tmp_path / "nowhere")
