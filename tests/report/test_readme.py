"""README's answer, figure and first column are what the results in docs/smollm2 say."""

from __future__ import annotations

import csv

import pytest
from support import PROJECT

from pipelines.choices.sweep import Sweep
from pipelines.records.results import Store
from pipelines.report import page, stored
from pipelines.report.recommend import recommendations

README = " ".join((PROJECT / "README.md").read_text().split())
FIGURE = "smollm2_perplexity_context_gain"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    store, folder = Store(PROJECT / "docs" / "smollm2"), tmp_path_factory.mktemp("page")
    (spec,) = (spec for spec in store.sweeps() if spec["id"].startswith("2026-11-26T120643"))
    rows = stored.rows_of_sweep(spec, store)
    page.write(rows, folder, sweeps=[Sweep.of(spec)])
    return rows, folder / "figures"


def test_readme_prints_the_answer_that_the_results_give(drawn):
    (answer,) = recommendations(drawn[0])
    assert answer.kind == "none"
    assert answer.sentences[0].split("by perplexity: ")[1] in README


def test_readmes_figure_is_drawn_from_the_results(drawn):
    shown = (PROJECT / "docs" / "images" / f"{FIGURE}.svg").read_text()
    assert (drawn[1] / f"{FIGURE}.svg").read_text() == shown, (
        "draw it again: ropewalk report 2026-11-26T120643 store=docs/smollm2 --out page, and copy it from page/figures"
    )


def test_readmes_first_column_is_the_figures_data(drawn):
    with (drawn[1] / f"{FIGURE}.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["length"] == "32768"]
    assert len(rows) == 7
    for row in rows:
        gain, low, high = (float(row[name]) for name in ("gain (% of perplexity)", "low", "high"))
        text = f"{1 - gain / 100:.2g} times" if gain < -100 else f"{gain:+.1f} % [{low:+.1f}, {high:+.1f}]"
        assert f"| {row['strategy']} | {text}" in README
