"""Many cells of which some die, raise or hang: every status is right, none runs again after success, memory is flat.

At full size, with figures: pytest -m sweep tests/workers/test_load.py -s
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from support import stub_cell
from test_pool import PATHS, work

from pipelines.records.journal import Journal
from pipelines.records.results import Store
from pipelines.workers import pool
from pipelines.workers.compute import compute, settled

TIMEOUT = 8.0
"""Seconds; on a machine that computes for others too, a stub takes some."""

KINDS = {10: ("failed", {"die_until": 9}), 40: ("failed", {"raises": True}), 70: ("failed", {"seconds": 600.0})}
"""By number modulo 100: one in a hundred dies for good, one raises, one hangs; the others are ok."""


@pytest.mark.parametrize(
    ("count", "workers"),
    [
        pytest.param(300, 2, marks=pytest.mark.slow),
        pytest.param(10_000, 4, marks=[pytest.mark.sweep, pytest.mark.timeout(0)]),
    ],
)
def test_every_status_is_right_and_nothing_runs_again_after_success(count, workers, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)
    marks, store, driver = tmp_path / "marks", Store(tmp_path / "store"), psutil.Process()
    marks.mkdir()
    cells, expected = [], {}
    for n in range(count):
        status, options = KINDS.get(n % 100, ("ok", {}))
        cells.append(stub_cell(length=10 + n, folder=str(marks), **options))
        expected[cells[-1].id] = status
    crew = pool.Workers("cpu", count=workers, timeout=TIMEOUT)
    begun, held, seen = time.monotonic(), [], Counter()
    for cell, result in compute(cells, store, lambda todo: pool.run(todo, crew, work, Journal(store))):
        assert result.status == expected[cell.id], (len(held), result)
        seen[cell.id] += 1
        held.append(driver.memory_info().rss)
        begun = time.monotonic() if len(held) == 1 else begun  # Ray's start is no part of a cell
    seconds = time.monotonic() - begun
    assert set(seen.values()) == {1} and len(seen) == count
    attempts = Counter(path.name.partition(".")[0] for path in marks.iterdir())
    assert all(attempts[cell.id] == (2 if n % 100 == 10 else 1) for n, cell in enumerate(cells))
    quarter = sorted(held[count // 4 : count // 2])[count // 8], sorted(held[-count // 4 :])[count // 8]
    print(f"{count} cells, {workers} workers: {seconds:.0f} s, {1000 * seconds / count:.1f} ms a cell;", end=" ")
    print(f"driver {quarter[0] / 2**20:.0f} -> {quarter[1] / 2**20:.0f} MiB; {os.getloadavg()[0]:.1f} load")
    assert quarter[1] - quarter[0] < 2**25 + 4096 * count, "the driver grows"
    left = settled(cells, store)  # a second launch: all but what raised or hung, which are tried again
    assert Counter(result.status for result in left.values()) == {"ok": 97 * count // 100, "failed": count // 100}
    assert len(list(Path(store.root).glob("cells/*/started.json"))) == count // 100
    import ray

    ray.shutdown()
