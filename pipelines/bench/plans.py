"""Grids of many cells that nobody computes: what planning and recording them takes.

python -m pipelines.bench.plans COUNT OVERRIDE...   # to record so many made-up results: {"recorded": ..., "bytes": ...}
    of memory held after a tenth, half and all of them, and {"seconds": ...}
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial

from pipelines import track
from pipelines.choices.compose import expand
from pipelines.choices.sweep import Sweep, cells_of
from pipelines.records import memory
from pipelines.records.cells import Cell, Result
from pipelines.records.results import Store
from pipelines.track.recorder import Recorder

REPLACED = ("strategy", "length", "seed", "limit", "factor", "short")


MOST = 1000
"""Values of one key: a longer word is refused."""


def words(count: int, grid: Sequence[str]) -> list[str]:
    """Overrides of `count` cells of the grid's model and task: linear by factors and, above MOST of them, lengths.

    >>> words(2, ["model=tiny", "length=1024,2048"])
    ['model=tiny', 'strategy=linear', 'length=1024', 'limit=1', 'short=none', 'factor=8.001,8.002']
    """
    own = [word for word in grid if word.partition("=")[0].partition(".")[0] not in REPLACED]
    length = next((word.partition("=")[2].split(",")[0] for word in grid if word.startswith("length=")), "1024")
    factors = max(number for number in range(1, min(count, MOST) + 1) if count % number == 0)
    values = ",".join(f"{8 + number / 1000:.3f}" for number in range(1, factors + 1))
    lengths = ",".join(str(int(length) + 8 * number) for number in range(count // factors))
    return [*own, "strategy=linear", f"length={lengths}", "limit=1", "short=none", f"factor={values}"]


def made_up(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
    """Results of the size of real ones."""
    documents = [{"index": 0, "nll": 2.0, "ppl": 7.4}]
    series = {"nll_by_position": [(float(n), 2.0) for n in range(16)]}
    for number, cell in enumerate(cells):
        metrics = {"nll": 2.0 + number / 1e6, "ppl": 7.4, "bits_per_byte": 1.0, "nll_last_256": 2.0}
        yield cell, Result(cell.id, "ok", metrics, series, documents, "d", {"seconds": 1.0, "tokens": 1024.0})


def main(count: int, overrides: Sequence[str]) -> None:
    choices = expand(words(count, overrides))
    cells, store = cells_of(choices), Store.at(None)
    sweep = Sweep("bench", tuple(cells), "ropewalk bench")
    told, recorded = {count // 10, count // 2, count}, itertools.count(1)

    def record(tracker: track.Tracker, cell: Cell, result: Result) -> None:
        tracker.record([cell], result)
        if (number := next(recorded)) in told:
            print(json.dumps({"recorded": number, "bytes": memory.held()}), flush=True)

    start = time.perf_counter()
    store.save_sweep(sweep.id, sweep.spec())
    recorder = Recorder(lambda: track.Tracker.open(sweep, store))
    for cell, result in made_up(cells):
        store.save(cell, result)
        recorder.submit(partial(record, cell=cell, result=result))
    reason = recorder.close()
    if reason:
        sys.exit(f"recording failed: {reason}")
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
