"""Every strategy on one line, from results that were measured: docs/smollm2, twelve documents on one H100."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cli.main import run
from pipelines.records.results import Store
from pipelines.report import stored
from pipelines.report.methods import markdown, methods_tables
from pipelines.report.short import short_costs
from pipelines.report.tables import tables

SMOLLM2 = Path(__file__).parents[2] / "docs" / "smollm2"


@pytest.fixture(scope="module")
def rows() -> list[tuple]:
    return stored.rows_of(Store(SMOLLM2))


def test_a_line_has_the_gains_reach_and_cost_of_the_tables_it_puts_together(rows) -> None:
    [shown] = methods_tables(rows)
    [apart] = tables(rows)
    by_name = {line[0]: dict(zip(shown.header, line, strict=True)) for line in shown.rows}
    assert list(by_name) == sorted(by_name, key=lambda name: -_gain(apart, name))
    for standing in apart.gains.standings:
        line = by_name[standing.strategy]
        for length, gain in standing.gains.items():
            assert line[f"gain at {length:,}"].endswith(gain.verdict)
        assert line["effective length"].startswith(f"{standing.lengths['gain'].value:,.0f}")
    yarn = max((c for c in short_costs(rows, "nll", 8192) if c.strategy == "yarn"), key=lambda c: c.target)
    assert by_name["yarn"]["cost at 8,192 when deployed"].startswith(f"{100 * yarn.share:.1f} %")
    assert by_name["streaming"]["cost at 8,192 when deployed"] == "nothing"


def _gain(apart, name: str) -> float:
    return next(s.gains[32768].gain for s in apart.gains.standings if s.strategy == name)


def test_perplexity_of_key_tokens_has_columns_where_it_was_measured_and_a_line_of_the_cropped_text(rows) -> None:
    keyed = [
        (cell, replace(result, metrics={**result.metrics, "ppl_key": cell.length / 1000})) for cell, result in rows
    ]
    [shown] = methods_tables(keyed)
    lines = [dict(zip(shown.header, line, strict=True)) for line in shown.rows]
    assert {line["perplexity of key tokens at 32,768"] for line in lines} == {"32.77"}
    assert lines[-1]["strategy"] == "crop"
    [without] = methods_tables(rows)
    assert not any("key tokens" in name for name in without.header)
    assert markdown([shown]).count("\n| ") == len(shown.rows) + 2  # and what their columns hold


def test_one_command_writes_the_table_from_a_store(rows, capsys) -> None:
    [shown] = methods_tables(rows)
    assert run(["results", "methods", f"store={SMOLLM2}", "--csv"]) == 0
    assert [tuple(line) for line in csv.reader(io.StringIO(capsys.readouterr().out))] == [shown.header, *shown.rows]
    assert run(["results", "methods", f"store={SMOLLM2}", "strategy=none"]) == 2
    assert "strategy=crop" in capsys.readouterr().err
    assert run(["results", "cells", f"store={SMOLLM2}", "--markdown"]) == 2
