"""Phases of a command: noted only where they are asked for, also of what fails, and read back in their order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.records import phases
from pipelines.records.phases import phase, read, timed


def test_phases_are_noted_where_a_file_is_named_and_read_back_in_the_order_of_their_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "phases"
    monkeypatch.setenv(phases.FILE, str(path))

    @timed("inner")
    def work(value: int) -> int:
        return value + 1

    with phase("outer"):
        assert work(1) == 2
    outer, inner = read(path)  # written the other way round: what begins first ends last
    assert (outer.name, inner.name) == ("outer", "inner")
    assert outer.seconds >= inner.seconds and outer.process == os.getpid()
    assert outer.born is None or outer.born <= outer.start


def test_a_phase_that_fails_is_noted_and_its_error_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(phases.FILE, str(tmp_path / "phases"))
    with pytest.raises(ValueError, match="as it was"), phase("fails"):
        raise ValueError("as it was")
    assert [each.name for each in read(tmp_path / "phases")] == ["fails"]


def test_a_file_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(phases.FILE, str(tmp_path / "no" / "phases"))
    with phase("kept"):
        pass
    assert read(tmp_path / "no" / "phases") == []


def test_nothing_is_noted_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(phases.FILE, raising=False)
    monkeypatch.chdir(tmp_path)
    with phase("unheard"):
        pass
    assert not list(tmp_path.iterdir())
