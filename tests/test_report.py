"""Tables and figures: what stands in them, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_cells import CELL

from pipelines import report, sweep
from pipelines.cells import Result, Task


@pytest.fixture(autouse=True)
def trained_on_512(monkeypatch):
    monkeypatch.setattr(report, "trained_length", lambda cell: 512)
    assert sweep.trained_length  # the name that is replaced is there


def rows(task="perplexity", **values):
    """A row for each strategy=(value at 512, value at 1024); None: out of memory."""
    made = []
    for strategy, at in values.items():
        for length, value in zip((512, 1024), at, strict=True):
            cell = replace(CELL, strategy=strategy, length=length, task=Task(task))
            metrics = {} if value is None else {"ppl": value, "ppl_stderr": value / 10, "ppl_last_256": 2 * value}
            made.append((cell, Result(cell.id, "oom" if value is None else "ok", metrics, documents=[{"index": 0}])))
    return made


def test_a_table_has_a_row_a_strategy_and_a_column_a_length():
    [(title, header, body)] = report.tables(rows(none=(10.0, 54.0), yarn=(10.0, None)))
    assert "tiny, perplexity" in title and "1 document a cell" in title
    assert header == ["strategy", "512", "1,024"]
    assert body == [["none", "10 ±1 (20)", "54 ±5.4 (108)"], ["yarn", "10 ±1 (20)", "oom"]]


def test_options_tell_rows_apart():
    cell, result = rows(yarn=(10.0, 11.0))[0]
    [(_, _, body)] = report.tables([(cell, result), (replace(cell, options=(("beta_fast", 16.0),)), result)])
    assert [row[0] for row in body] == ["yarn", "yarn beta_fast=16.0"]


def test_markdown_is_a_table():
    told = report.markdown(rows(none=(10.0, 54.0)))
    assert "| strategy | 512 | 1,024 |\n| --- | ---: | ---: |\n| none | 10 ±1 (20) | 54 ±5.4 (108) |" in told


def test_figures_are_drawn_where_there_is_a_curve(tmp_path):
    series = {"nll_by_position": [(256.0, 2.5), (512.0, 3.0)]}
    drawn = [(cell, replace(result, series=series)) for cell, result in rows(none=(10.0, 54.0), yarn=(10.0, 12.0))]
    names = {path.name for path in report.figures(drawn, tmp_path)}
    assert names == {"tiny_perplexity_ppl.png", "tiny_perplexity_nll_by_position.png"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert report.figures(drawn[:1], tmp_path) == [tmp_path / "tiny_perplexity_nll_by_position.png"]
    assert report.figures([(c, r) for c, r in rows(none=(None, None))], tmp_path) == []


def passkeys(*answers_by_length):
    """A result a length; each {key number: (verdict at depth 1, at depth 2)}."""
    made = []
    for length, keys in zip((512, 1024), answers_by_length, strict=False):
        cell = replace(CELL, length=length, task=Task("passkey"))
        documents = [{"key_number": key, "acc": float(v)} for key, verdicts in keys.items() for v in verdicts]
        made.append((cell, Result(cell.id, "ok", {"acc": 0.5}, documents=documents)))
    return made


def test_consistency_asks_for_one_answer_at_every_depth_and_length():
    short = {0: (1, 1), 1: (1, 1), 2: (0, 0), 3: (1, 0)}
    long = {0: (1, 1), 1: (0, 0), 2: (0, 0), 3: (1, 0)}
    assert report.consistency(passkeys(short)) == 0.75
    assert report.consistency(passkeys(short, long)) == 0.5
    assert report.consistency(rows(none=(10.0, 54.0))) is None
    [(_, header, [row])] = report.tables(passkeys(short, long))
    assert header[-1] == "consistency" and row[-1] == "0.5"


@pytest.mark.parametrize(
    ("seconds", "told"), [(3.21, "3.2 s"), (59.96, "60.0 s"), (250, "4 min 10 s"), (7530, "2 h 5 min")]
)
def test_durations_are_told_as_people_say_them(seconds, told):
    assert report.duration(seconds) == told


@pytest.mark.parametrize(("value", "told"), [(0.125, "0.125"), (10.2681, "10.27"), (1969.3, "1969"), (0.0, "0")])
def test_numbers_have_the_digits_that_tell(value, told):
    assert report.number(value) == told
