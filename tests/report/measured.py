"""Constructed results of one model: as a grid of its strategies, lengths and two tasks gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from support import CELL

from pipelines.records.cells import Cell, Result, Task, frozen
from pipelines.tasks import distance
from rope.geometry import ALL_LAYERS, Plan

TRAINED = 512
SHIFTS: Mapping[str, float] = {"none": 0.0, "crop": -0.8, "linear": 0.4, "yarn": -0.9}
"""NLL beyond the trained length, against that of none."""


def cell_of(strategy: str, length: int, task: str = "perplexity", **options: object) -> Cell:
    own = sum(map(ord, strategy + str(sorted(options.items())))) / 1000
    stretch = 1 + own * (length > TRAINED)
    plan = ((ALL_LAYERS, Plan(tuple(1 / (stretch * 10 ** (pair / 4)) for pair in range(16)))),)
    return replace(
        CELL,
        strategy=strategy,
        options=frozen(options),
        length=length,
        plans=plan,
        task=Task(task, (("text", "pydoc"),) if task == "perplexity" else ()),
        limit=9,
    )


def perplexity(cell: Cell, shift: float, count: int = 9) -> Result:
    rng = np.random.default_rng(cell.length)
    ends = np.linspace(cell.length / 8, cell.length, 8)
    nll = 3 + (shift if cell.length > TRAINED else 0.0) + rng.normal(0, 0.05, count)
    series = [float(nll.mean()) + 0.1 * float(np.sin(end)) for end in ends]
    buckets = len(distance.edges(cell.length))
    by_distance = {"tokens_by_distance": [10.0] * buckets}
    documents = [
        {
            "index": n,
            "tokens": cell.length,
            "nll": float(value),
            "nll_by_position": [float(value)] * 8,
            "nll_by_distance": [10 * float(value)] * buckets,
            **by_distance,
        }
        for n, value in enumerate(nll)
    ]
    ppl = float(np.exp(nll.mean()))
    return Result(
        cell.id,
        "ok",
        {"ppl": ppl, "ppl_stderr": ppl / 50},
        {"nll_by_position": [(float(end), value) for end, value in zip(ends, series, strict=True)]},
        cost={"seconds": cell.length / 100, "tokens_per_second": 900.0, "peak_bytes": 2.0**30},
        provenance={"torch": "2.9.0", "device": "a device", "code": {"commit": "abcdef0123", "dirty": False}},
        documents=documents,
        digest=f"documents{cell.length}",
    )


def passkey(cell: Cell, found: float) -> Result:
    documents = [
        {"index": n, "tokens": cell.length, "key_number": n // 4, "depth": (0.1, 0.35, 0.65, 0.9)[n % 4], "acc": found}
        for n in range(32)
    ]
    return Result(cell.id, "ok", {"acc": found}, documents=documents, digest=f"keys{cell.length}")


def measured(
    strategies: Sequence[str] = tuple(SHIFTS), lengths: Sequence[int] = (512, 1024, 2048), passkeys: bool = True
) -> list[tuple[Cell, Result]]:
    rows = []
    for name in strategies:
        for length in lengths:
            cell = cell_of(name, length)
            rows.append((cell, perplexity(cell, SHIFTS.get(name, 0.1) * length / 1024)))
            if passkeys:
                cell = cell_of(name, length, "passkey")
                rows.append((cell, passkey(cell, float(length <= TRAINED or name == "yarn"))))
    return rows
