"""`ropewalk plan`: the grid that `ropewalk grid` would run, not run: what is done, to do, invalid; what it takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.choices import estimate
from pipelines.choices.config import Cluster, Workbench
from pipelines.choices.estimate import Load
from pipelines.choices.sweep import Invalid, sorted_out, visible_gpus
from pipelines.records.cells import Cell, distinct
from pipelines.records.numbers import GIB, duration
from pipelines.records.results import Store


@dataclass(frozen=True)
class Forecast:
    """A grid before it runs. Of cells with equal plan and text only the first is in done or todo.

    asked: choices on the command line, invalid ones among them. equal: those with the plan and text of another.
    workers: that share the time.
    """

    asked: int
    equal: int
    done: tuple[Cell, ...]
    todo: tuple[Cell, ...]
    invalid: tuple[Invalid, ...]
    loads: tuple[Load, ...]
    workers: int = 1

    @property
    def seconds(self) -> float | None:
        """Of all that is to run, shared evenly; None where any of it is not known."""
        seconds = estimate.total(load.seconds for load in self.loads)
        return None if seconds is None else seconds / self.workers

    @property
    def passes(self) -> int | None:
        """Forwards of every cell to run: one a document, or a window of it."""
        return estimate.total(load.passes for load in self.loads)

    @property
    def exit_code(self) -> int:
        return 2 if self.invalid else 0


def of(choices: Sequence[Workbench], store: Store) -> Forecast:
    """What a grid of these choices would do. Nothing is written, and no model loads."""
    cells, invalid = sorted_out(choices)
    unique = distinct(cells)
    done = {} if choices[0].force else store.recall(cell.id for cell in unique)
    work, refused = estimate.survey(cell for cell in unique if cell.id not in done)
    invalid += [Invalid(cell.label, refused[cell.id]) for cell in cells if cell.id in refused]
    valid = [cell for cell in unique if cell.id not in refused]
    todo = tuple(cell for cell in valid if cell.id not in done)
    return Forecast(
        asked=len(choices),
        equal=sum(cell.id not in refused for cell in cells) - len(valid),
        done=tuple(cell for cell in valid if cell.id in done),
        todo=todo,
        invalid=tuple(invalid),
        loads=tuple(estimate.loads(todo, work, store)),
        workers=_workers(choices[0].cluster, todo),
    )


def show(console: Console, planned: Forecast) -> None:
    """The plan in a terminal: counts, what is invalid and why, a line a model, what to expect of memory."""
    console.print(
        f"{planned.asked} cell{'' if planned.asked == 1 else 's'} asked for: {planned.equal} with the plan and text of "
        f"another, {len(planned.done)} finished before, {len(planned.todo)} to run, {len(planned.invalid)} invalid"
    )
    for choice in planned.invalid:
        console.print(f"invalid  {choice.label}\n         {choice.reason}")
    if not planned.loads:
        return
    table = Table()
    for number, name in enumerate(_COLUMNS):
        table.add_column(name, justify="right" if number else "left")
    for load in planned.loads:
        table.add_row(*_row(load))
    console.print(table)
    for load in planned.loads:
        if load.room_bytes and load.peak_bytes and load.peak_bytes > load.room_bytes:
            console.print(
                f"{load.model} at {load.longest:,}: about {load.peak_bytes / GIB:.1f} GiB are needed and there are "
                f"{load.room_bytes / GIB:.1f}: expect it to run out of memory; choose at most length={load.fits}"
            )
    for load in planned.loads:
        console.print(f"{load.model}: {load.basis}")
    if planned.seconds is not None:
        shared = f"{planned.workers} workers" if planned.workers > 1 else "one worker"
        console.print(f"about {duration(planned.seconds)} on {shared}, start and loading not counted")


def as_json(planned: Forecast) -> str:
    """The plan for a machine to read; null is what is not known. Bytes, seconds and tokens."""

    def named(cells: Iterable[Cell]) -> list[dict[str, str]]:
        return [{"id": cell.id, "label": cell.label} for cell in cells]

    body: Mapping[str, Any] = {
        "asked": planned.asked,
        "equal": planned.equal,
        "done": named(planned.done),
        "todo": named(planned.todo),
        "invalid": [asdict(choice) for choice in planned.invalid],
        "passes": planned.passes,
        "seconds": planned.seconds,
        "workers": planned.workers,
        "models": [asdict(load) for load in planned.loads],
    }
    return json.dumps(body, indent=1)


_COLUMNS = ("model", "dtype", "device", "cells", "passes", "tokens", "time", "weights", "peak", "of", "fits up to")


def _row(load: Load) -> list[str]:
    def counted(value: int | None) -> str:
        return "not known" if value is None else f"{value:,}"

    def size(value: float | None) -> str:
        return "not known" if value is None else f"{value / GIB:.2f} GiB"

    time = "not known" if load.seconds is None else duration(load.seconds)
    return [
        load.model, load.dtype, load.device, f"{load.cells}", counted(load.passes), counted(load.tokens), time,
        size(load.weight_bytes), size(load.peak_bytes), size(load.room_bytes), counted(load.fits),
    ]  # fmt: skip


def _workers(cluster: Cluster, cells: Sequence[Cell]) -> int:
    if any(cell.device == "cuda" for cell in cells):
        return cluster.workers or max(1, int(visible_gpus() / cluster.gpus_per_worker))
    return cluster.workers or 1
