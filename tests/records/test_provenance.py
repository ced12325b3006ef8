"""A result says which code computed it, and a launch says where that is not the code that runs now."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from rich.console import Console
from support import PROJECT, random_cell

from pipelines.choices.sweep import Sweep
from pipelines.records import provenance
from pipelines.records.cells import Result
from pipelines.records.provenance import environment, made_otherwise, measuring
from pipelines.records.results import Store
from pipelines.track import launch


@pytest.fixture
def site(tmp_path):
    for folder in ("rope", "pipelines"):
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def digest_after(site, name, before, after):
    file = site / name
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    return measuring.__wrapped__(site)


def test_other_measuring_code_has_another_digest(site):
    first = measuring.__wrapped__(site)
    assert first == measuring.__wrapped__(PROJECT)
    nll = "math.exp("
    assert digest_after(site, "pipelines/tasks/perplexity.py", nll, f"2 * {nll}") != first
    assert digest_after(site, "pipelines/tasks/perplexity.py", f"2 * {nll}", nll) == first
    assert digest_after(site, "pipelines/tasks/perplexity.yaml", "\n", "\n# c\n") != first


def test_comments_docstrings_and_what_computes_no_number_leave_the_digest(site):
    first = measuring.__wrapped__(site)
    assert digest_after(site, "pipelines/tasks/perplexity.py", '"""', '"""Otherwise said. ') == first
    assert digest_after(site, "rope/patch.py", "\n\n\n", "\n\n\n# a comment\n\n") == first
    assert digest_after(site, "pipelines/report/tables.py", '"""', '"""Otherwise. ') == first
    (site / "pipelines" / "report" / "tables.py").write_text("x = 1")
    assert measuring.__wrapped__(site) == first


def test_the_digest_is_kept_until_a_file_is_another_and_a_damaged_one_is_made_anew(site, tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "cache"))
    first = measuring.__wrapped__(site)
    [kept] = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "_measuring", lambda _: pytest.fail("parsed again"))
        assert measuring.__wrapped__(site) == first
    kept.write_text("half a dig")
    assert measuring.__wrapped__(site) == first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"measuring": "0" * 12}, "other measuring code (rope, pipelines/tasks)"),
        ({"torch": "1.0"}, "torch 1.0"),
        ({"measuring": "0" * 12, "python": "3.0.1"}, ""),
        ({"measuring": None}, ""),
    ],
)
def test_what_was_made_otherwise_is_said_in_one_line(change, said):
    own = {key: value for key, value in {**environment(), **change}.items() if value is not None}
    sentence = made_otherwise([own, environment(), {}])
    assert (said in sentence and sentence.startswith("1 of them was")) if said else sentence == ""


def test_a_launch_says_it_of_results_that_it_shows_again(tmp_path, monkeypatch):
    store, cell = Store(tmp_path), replace(random_cell("none", 64), limit=1)
    store.save(cell, Result(cell.id, "ok", {"ppl": 3.0}, provenance=environment()))
    console = Console(record=True, width=400)
    sweep = Sweep("an-experiment", (cell,), "ropewalk grid")
    launch.run(sweep, store, lambda todo: [], console=console)
    assert "measuring code" not in console.export_text()
    monkeypatch.setattr(provenance, "environment", lambda: {**environment(), "measuring": "0" * 12})
    launch.run(sweep, store, lambda todo: [], console=console)
    said = console.export_text()
    assert said.count("1 of them was computed with other measuring code") == 1 and "force=true" in said
