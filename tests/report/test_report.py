"""Tables: what stands in them, and what does not; and figures of other rooms."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from support import CELL

from pipelines.choices import sweep
from pipelines.records import numbers
from pipelines.records.cells import Result, Task
from pipelines.report import short, tables, terminal
from pipelines.report.palette import style
from rope.geometry import ALL_LAYERS, Plan


@pytest.fixture(autouse=True)
def trained_on_512(monkeypatch):
    monkeypatch.setattr(short, "trained_length", lambda cell: 512)
    assert sweep.trained_length  # the name that is replaced is there


def rows(task="perplexity", **values):
    """A row for each strategy=(value at 512, value at 1024); None: out of memory."""
    pairs = []
    for strategy, at in values.items():
        for length, value in zip((512, 1024), at, strict=True):
            cell = replace(CELL, strategy=strategy, length=length, task=Task(task))
            metrics = {} if value is None else {"ppl": value, "ppl_stderr": value / 10, "ppl_last_256": 2 * value}
            pairs.append((cell, Result(cell.id, "oom" if value is None else "ok", metrics, documents=[{"index": 0}])))
    return pairs


def test_a_result_without_any_headline_shows_its_status():
    [(cell, result)] = [pair for pair in rows(none=(10.0, 54.0)) if pair[0].length == 512]
    [shown] = tables.tables([(cell, replace(result, metrics={"another": 1.0}))])
    assert shown.rows == [["none", "ok"]]


def test_a_table_has_a_row_a_strategy_and_a_column_a_length():
    [shown] = tables.tables(rows(none=(10.0, 54.0), yarn=(10.0, None)))
    title, header, body = shown.title, shown.header, shown.rows
    assert "tiny, perplexity" in title and "1 document a cell" in title
    assert header == ["strategy", "512", "1,024"]
    assert body == [["none", "10 ±1 (20)", "54 ±5.4 (108)"], ["yarn", "= none", "oom"]]


def test_options_tell_rows_apart():
    cell, result = rows(yarn=(10.0, 11.0))[0]
    [shown] = tables.tables([(cell, result), (replace(cell, options=(("beta_fast", 16.0),)), result)])
    assert [row[0] for row in shown.rows] == ["yarn", "yarn beta_fast=16.0"]


def test_markdown_is_a_table():
    text = tables.markdown(tables.tables(rows(none=(10.0, 54.0))))
    assert "| strategy | 512 | 1,024 |\n| --- | ---: | ---: |\n| none | 10 ±1 (20) | 54 ±5.4 (108) |" in text


def passkeys(*answers_by_length):
    """A result a length; each {key number: (verdict at depth 1, at depth 2)}."""
    pairs = []
    for length, keys in zip((512, 1024), answers_by_length, strict=False):
        cell = replace(CELL, length=length, task=Task("passkey"))
        documents = [{"key_number": key, "acc": float(v)} for key, verdicts in keys.items() for v in verdicts]
        pairs.append((cell, Result(cell.id, "ok", {"acc": 0.5}, documents=documents)))
    return pairs


def test_consistency_asks_for_one_answer_at_every_depth_and_length():
    short = {0: (1, 1), 1: (1, 1), 2: (0, 0), 3: (1, 0)}
    long = {0: (1, 1), 1: (0, 0), 2: (0, 0), 3: (1, 0)}
    assert tables.consistency(passkeys(short)) == 0.75
    assert tables.consistency(passkeys(short, long)) == 0.5
    assert tables.consistency(rows(none=(10.0, 54.0))) is None
    [shown] = tables.tables(passkeys(short, long))
    assert shown.header[-1] == "consistency" and shown.rows[0][-1] == "0.5"


def compared(count, length=1024, **shifts):
    """Results over `count` documents of one length; a strategy's NLL is that of none, a shift and a little noise."""
    pairs = []
    for number, (strategy, shift) in enumerate(shifts.items()):
        rng = np.random.default_rng(number)
        plan = ((ALL_LAYERS, Plan((1.0, 0.01 * (1 + number)))),)
        cell = replace(CELL, strategy=strategy, plans=plan, length=length)
        nll = 3 + np.arange(count) / 10 + shift + rng.normal(0, 0.01, count)
        documents = [{"index": i, "tokens": length, "nll": float(value)} for i, value in enumerate(nll)]
        metrics = {"ppl": float(np.exp(nll.mean()))}
        pairs.append((cell, Result(cell.id, "ok", metrics, documents=documents, digest=f"d{length}")))
    return pairs


def test_marks_say_what_is_better_and_worse_than_the_baseline():
    [shown] = tables.tables(compared(12, none=0.0, yarn=-0.5, linear=0.5, ntk=0.0))
    assert [row[1][-1] in "▲▼" and row[1][-1] for row in shown.rows] == [False, "▲", "▼", False]
    assert "▲ better, ▼ worse than none" in shown.legend and "12 documents" in shown.legend
    assert "3 comparisons" in shown.legend and [line[:3] for line in shown.longest] == [
        ("1,024", "yarn", "none"),
        ("1,024", "linear", "none"),
        ("1,024", "ntk", "none"),
        ("1,024", "yarn", "ntk"),
    ]
    assert dict(zip(tables.DIFFERENCES, shown.differences[0], strict=True)) == {
        "length": "1,024",
        "strategy": "yarn",
        "against": "none",
        "better by": "+39.2 % perplexity",
        "95 % interval": "+38.9, +39.6",
        "p": "0.00049",
        "p adjusted": "0.0015 ▲",
        "over": "12 documents",
    }


@pytest.mark.parametrize(("count", "p"), [(1, "too few"), (5, "too few"), (6, "0.031")])
def test_too_few_documents_are_reported_with_the_number_it_takes(count, p):
    [shown] = tables.tables(compared(count, none=0.0, yarn=-0.5, linear=0.5, ntk=0.0))
    assert not any(mark in cell for row in shown.rows for cell in row for mark in "▲▼")
    assert f"Too few documents to tell a difference from chance: {count} a cell" in shown.legend
    assert "3 comparisons with none take at least 7 (limit=7)" in shown.legend
    assert len(shown.differences) >= 3 and shown.longest == ()
    # Six documents have a p, but none that could be below 0.05 when adjusted for three comparisons.
    assert dict(zip(tables.DIFFERENCES, shown.differences[0], strict=True))["p"] == p


def test_a_length_with_too_few_documents_is_named():
    [shown] = tables.tables([*compared(12, none=0.0, yarn=-0.5), *compared(3, 4096, none=0.0, yarn=-0.5)])
    assert "3 to 12 documents" in shown.legend and "Too few documents to tell at 4,096" in shown.legend
    assert [line[0] for line in shown.differences] == ["1,024", "4,096"] and shown.longest == shown.differences[1:]


def test_what_does_not_compare_is_said_with_the_reason():
    none, yarn = compared(12, none=0.0, yarn=-0.5)
    [shown] = tables.tables([none, (yarn[0], replace(yarn[1], digest="other"))])
    assert shown.legend.startswith("Not compared: tiny: yarn @1024 perplexity does not compare with tiny: none @1024")
    assert tables.tables([none])[0].legend == ""


def test_markdown_has_every_difference():
    text = tables.markdown(
        tables.tables([*compared(12, none=0.0, yarn=-0.5), *compared(12, 4096, none=0.0, yarn=-0.5)])
    )
    assert "| length | strategy | against |" in text and text.count("12 documents |") == 2 and "Holm" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (59.96, "60.0 s"), (250, "4 min 10 s"), (7530, "2 h 5 min")]
)
def test_durations_read_as_people_say_them(seconds, text):
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0.125, "0.125"), (10.2681, "10.27"), (1969.3, "1969"), (0.0, "0")])
def test_numbers_have_four_significant_digits(value, text):
    assert numbers.number(value) == text


def test_what_looks_like_markup_or_emoji_is_printed_as_it_is():
    page = io.StringIO()
    console = terminal.plain_console(file=page)
    console.print("ValueError: [/INST] in [a] :smile: [bold]x")
    terminal.table(console, "a [title]", ["[b]name"], [["[/c] :cat:"]])
    text = page.getvalue()
    for foreign in ("[/INST] in [a] :smile: [bold]x", "a [title]", "[b]name", "[/c] :cat:"):
        assert foreign in text


def test_a_terminal_shows_strategies_with_their_signs_and_colours_and_a_file_their_names():
    for in_terminal in (True, False):
        page = io.StringIO()
        console = Console(file=page, force_terminal=in_terminal, color_system="truecolor" if in_terminal else None)
        terminal.table(console, "scores", ["strategy", "512"], [["yarn factor=4", "1"], ["no strategy", "2"]])
        own = style("yarn")
        red, green, blue = (int(own.colour[i : i + 2], 16) for i in (1, 3, 5))
        assert (f"\x1b[38;2;{red};{green};{blue}m{own.sign} " in page.getvalue()) == in_terminal
        assert "yarn factor=4" in page.getvalue() and (own.sign in page.getvalue()) == in_terminal
