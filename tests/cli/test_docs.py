"""Every command that README.md and docs/ print is one that works: composed where it would compute, else run."""

from __future__ import annotations

import re
import shlex
from types import SimpleNamespace

import pytest
from support import PROJECT, TINY

from pipelines.cli import main
from pipelines.cli.main import VERBS, run
from pipelines.records.refusal import Refusal

PAGES = sorted([PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")])

STORED = frozenset({"compare", "down", "gate", "report", "results", "sync", "ui", "up"})
"""Verbs that show what is stored or keep workers: of their commands only the words are read here."""

ELSEWHERE = re.compile(r"#.*\b(gpu|hub)\b")
"""What a command says in its comment that needs a GPU, or the hub."""


def commands(text):
    """(line, words) of every `ropewalk ...` in a block of code."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in re.findall(r"^(?:    )?((?:uv run )?ropewalk .*)$", text, flags=re.M):
        words = shlex.split(line.removeprefix("uv run ").partition(" > ")[0], comments=True)[1:]
        if words and words[0] in VERBS and not ELSEWHERE.search(line):
            yield line, words


PLACEHOLDER = re.compile(r"(^|/)ID(/|$)|^[0-9a-f]{8}$")
"""A cell or a search that the reader has, and we do not."""

PRINTED = [(page.name, line, words) for page in PAGES for line, words in commands(page.read_text())]


@pytest.fixture
def composed(monkeypatch):
    """What would compute composes its choices instead; returns the cells of the last grid."""
    from pipelines.bench import bench
    from pipelines.choices.sweep import cells_of
    from pipelines.doctor import doctor
    from pipelines.grid import launcher, preview
    from pipelines.reproduce import reproduce, transfer
    from pipelines.train import train
    from pipelines.tune import tune

    cells = []

    def compose(overrides, **_):
        cells[:] = cells_of(launcher.requested(overrides).choices)
        return []

    def composed_preview(overrides):
        compose(overrides)
        return SimpleNamespace(invalid=())

    monkeypatch.setattr(launcher, "run_grid", compose)
    monkeypatch.setattr(launcher, "preview", composed_preview)
    monkeypatch.setattr(preview, "show", lambda *_: None)
    for room in (bench, doctor, reproduce, transfer, train, tune):
        monkeypatch.setattr(room, "main", lambda *_, **__: 0)
    return cells


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with the checkpoints and texts that the pages name, each the embedded model or a text of ours."""
    (tmp_path / "models").mkdir()
    names = {
        name for _, _, words in PRINTED for word in words for name in re.findall(r"^model=~/models/([\w.-]+)", word)
    }
    for name in names:
        (tmp_path / "models" / name).symlink_to(TINY)
    for name in ("tiny_linear_4096", "tiny_yarn_4096"):  # what training.md trains
        (tmp_path / "mlruns" / "models").mkdir(parents=True, exist_ok=True)
        (tmp_path / "mlruns" / "models" / name).symlink_to(TINY)
    (tmp_path / "books").write_text("A text. " * 5000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ROPEWALK_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # cluster=gpu is refused where there is neither a GPU nor a cluster
    return tmp_path


def worked(words, cells):
    """Whether one command works, as far as it is tried here."""
    if words[0] in STORED or any(PLACEHOLDER.search(word) for word in words[1:]):
        try:
            main.parser().parse_args(words)
        except Refusal:
            return False
        return True
    if words[0] == "export":  # of the embedded model: writing SmolLM2 anew takes a minute
        words = [word for word in words if word != "model=smollm2"]
    del cells[:]
    return run(words) == 0 and (words[0] not in ("grid", "plan") or bool(cells))


def test_pages_print_commands():
    assert len(PRINTED) > 60 and {words[0] for _, _, words in PRINTED} >= {"grid", "plan", "doctor", "export", "ui"}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page.name for page in PAGES])
def test_every_command_of_a_page_works(page, composed, home, capsys):
    failed = []
    for name, line, words in PRINTED:
        if name == page and not worked(words, composed):
            failed.append(f"{line}\n    {capsys.readouterr().err.strip()[:300]}")
    assert not failed, "\n".join(failed)


def test_a_command_that_does_not_work_is_noticed(composed, home):
    for wrong in (
        "grid strategy=yran length=512",
        "plan length=512 lenght=3",
        "export strategy=yarn length=512",
        "results --jsn",
    ):
        assert not worked(wrong.split(), composed)
    assert worked(["grid", "strategy=none", "length=512"], composed)
