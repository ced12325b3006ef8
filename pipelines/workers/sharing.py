"""Cells shared out between launches on one store: each is computed by one, and all of them get its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from pipelines.records.cells import Cell, Result
from pipelines.records.leases import Lease, Watch
from pipelines.records.results import Store

PAUSE = 1.0
"""Seconds between looks for what other launches have computed."""


def shared(
    cells: Sequence[Cell],
    store: Store,
    run: Callable[[Sequence[Cell]], Iterator[tuple[Cell, Result]]],
    say: Callable[[str], object],
    watch: Watch,
) -> Iterator[tuple[Cell, Result, bool]]:
    """Every cell with its result, and whether it was computed here: by `run`, unless another launch has it in hand.

    What another one has in hand is waited for, and computed here where that launch ends without it.

    say: is told of the waiting, once. watch: begun before the store was asked which cells are finished.
    """
    left, told = {cell.id: cell for cell in cells}, False
    with Lease(store) as lease:
        while left:
            mine = lease.claim(left)
            for cell_id in watch.ready():  # nobody else computes what is ours by now, but may have done so before
                if cell_id in left and (read := store.read(cell_id)) is not None:
                    yield left.pop(cell_id), read, False
            for cell, result in run([cell for cell in left.values() if cell.id in mine]):
                yield cell, result, True
            left = {cell_id: cell for cell_id, cell in left.items() if cell_id not in mine}
            if left and not mine:
                if not told:
                    say(waiting(len(left)))
                    told = True
                time.sleep(PAUSE)


def waiting(cells: int) -> str:
    """What to say where another launch has cells in hand."""
    which = "1 cell is" if cells == 1 else f"{cells} cells are"
    return f"{which} being computed by another launch on this store: waiting for the results"
