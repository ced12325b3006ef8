"""Whether cells have all that they need, before any model loads."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.models import load
from pipelines.records.cells import Cell, Refusal
from pipelines.tasks import registry


def prepare(cells: Sequence[Cell]) -> None:
    """Find out before any model loads whether every cell has the files and the text that it needs.

    Raises:
        Refusal: one line for each distinct reason.
    """
    refused = dict[str, None]()
    needed = {(cell.model, cell.task, cell.length, cell.limit, cell.seed) for cell in cells}
    # Task by task: the text that one encodes is still remembered for the next length.
    for model, task, length, limit, seed in sorted(needed, key=lambda row: (row[1].name, row[2])):
        try:
            load.check(model)
            registry.prepare(task, load.tokenizer(model), length=length, limit=limit, seed=seed)
        except Refusal as reason:
            refused[str(reason)] = None
    if refused:
        raise Refusal("\n".join(refused))
