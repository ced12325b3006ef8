"""Claims of rival papers: what is told before they run, and their kinds of verdict."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from test_published import bench, measured, verdict

from pipelines.records.cells import Result
from pipelines.reproduce import claims, published, transfer
from pipelines.reproduce.published import Claim
from pipelines.reproduce.session import Session

ALIKE = Claim("like cropping", "alike", [{"name": "self_extend"}, {"name": "crop"}], [2.0])
KEEPS = Claim("keeps more", "keeps", [{"name": "ntk"}, {"name": "linear"}], [1.0, 2.0])


@pytest.mark.parametrize(
    "apart, expected", [(0.0, "holds"), (0.3, "fails"), (-0.3, "fails"), (math.log(1.05), "not shown")]
)
def test_alike_holds_only_where_a_test_of_equivalence_shows_it(apart, expected):
    assert verdict(ALIKE, {("self_extend", None, 2.0): 1 + apart, ("crop", None, 2.0): 1.0}) == expected


def test_documents_that_all_differ_alike_are_a_difference_too():
    claim = replace(ALIKE, strategies=[{"name": "yarn"}, {"name": "crop"}])
    assert verdict(claim, {("yarn", None, 2.0): 1.3, ("crop", None, 2.0): 1.0}) == "fails"


def test_too_few_documents_show_no_equivalence():
    results = measured({("self_extend", None, 2.0): 1.0, ("crop", None, 2.0): 1.0})
    rows = {place: (cell, replace(one, documents=one.documents[:3])) for place, (cell, one) in results.rows.items()}
    [finding] = claims.judge([ALIKE], claims.ClaimResults(rows))
    assert finding.verdict == "not shown"


@pytest.mark.parametrize("ntk, linear, expected", [(0.1, 0.5, "holds"), (0.5, 0.1, "fails"), (0.3, 0.3, "not shown")])
def test_what_is_kept_is_told_against_each_strategys_own_base(ntk, linear, expected):
    # ntk is the worse of the two everywhere: only what each loses counts
    nll = {("ntk", None, 1.0): 5.0, ("ntk", None, 2.0): 5 + ntk, ("linear", None, 1.0): 1.0}
    assert verdict(KEEPS, {**nll, ("linear", None, 2.0): 1 + linear}) == expected


@pytest.mark.parametrize("name", [name for name in published.names() if published.table(name).claims])
def test_a_claim_knows_its_comparisons_before_anything_was_measured(name):
    for claim in published.table(name).claims:
        rows = {}
        for strategy in claim.strategies:
            for length in claim.lengths:
                [(_, row)] = measured({(strategy["name"], None, length): 1.0}).rows.items()
                rows[claims.key(strategy), length] = (replace(row[0], options=(("name", str(strategy)),)), row[1])
        [finding] = claims.judge([claim], claims.ClaimResults(rows))
        assert claims.tests(claim) == len(finding.comparisons), claim.says


def test_power_is_told_and_kept_before_a_claim_runs(tiny_folder, tmp_path, monkeypatch, capsys):
    ran = []

    def measure(self, cells):
        [plan] = tmp_path.glob("published/string_claims/*/plan.json")
        assert json.loads(plan.read_text())["claims"]
        assert "to be tested" in capsys.readouterr().out
        ran.extend(cells)
        return {cell.id: Result(cell.id, "failed") for cell in cells}

    monkeypatch.setattr(Session, "measure", measure)
    monkeypatch.setattr(Session, "record", lambda *args, **kwargs: None)
    assert transfer.main(["string_claims"], bench(tiny_folder, tmp_path, "limit=12"), {}, "ropewalk reproduce") == 1
    [plan] = tmp_path.glob("published/string_claims/*/plan.json")
    [claim] = json.loads(plan.read_text())["claims"]
    assert claim["comparisons"] == 1 and claim["documents"] == 12 and 12 < claim["enough"] < 60
    assert len(ran) == 2
