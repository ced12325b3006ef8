"""Cells are made ready in a process beside this one, which refuses what this one would, and may be killed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import random_cell

from pipelines.records.refusal import Refusal
from pipelines.workers import ready


def test_where_the_process_is_killed_this_one_does_the_same(monkeypatch):
    here = []
    monkeypatch.setattr(ready, "prepare", here.append)
    cells = [random_cell("none", 64)]
    aside = ready.Apart(cells)
    aside._process.kill()
    aside.finish()
    aside.close()
    assert here == [cells]


@pytest.mark.slow
def test_the_process_refuses_what_this_one_would():
    cell = random_cell("none", 64)
    aside = ready.Apart([cell, replace(cell, length=10**7)])
    with pytest.raises(Refusal) as theirs:
        aside.finish()
    aside.close()
    with pytest.raises(Refusal) as ours:
        ready.prepare([replace(cell, length=10**7)])
    assert str(theirs.value) == str(ours.value)
