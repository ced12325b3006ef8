"""The preview of a grid: what is finished, to run and invalid, and what it takes. `ropewalk plan` shows it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from pipelines.choices import estimate
from pipelines.choices.config import Workbench
from pipelines.choices.estimate import Load
from pipelines.choices.layers import layers_of_model
from pipelines.choices.sweep import Invalid, sorted_out, visible_gpus
from pipelines.models import earlier
from pipelines.records.cells import Cell, distinct
from pipelines.records.numbers import GIB, duration
from pipelines.records.results import Store
from pipelines.report import terminal
from pipelines.track.launch import counted


@dataclass(frozen=True)
class Preview:
    """A grid before it runs.

    cells: requested combinations, invalid ones included. duplicates: those with the same plan and text as
    another; only the first of equal cells is in done or todo. loads: what the cells to run take, by model.
    workers: that share the time. layers: of each model that does not rotate, or not see, everywhere alike: sentences.
    """

    cells: int
    duplicates: int
    done: tuple[Cell, ...]
    todo: tuple[Cell, ...]
    invalid: tuple[Invalid, ...]
    loads: tuple[Load, ...]
    workers: int = 1
    layers: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """Of all that is to run, shared evenly; None where any of it is not known."""
        seconds = estimate.total(load.seconds for load in self.loads)
        return None if seconds is None else seconds / self.workers

    @property
    def passes(self) -> int | None:
        """Forwards of every cell to run: one a document, or a window of it."""
        return estimate.total(load.passes for load in self.loads)


def preview_of(choices: Sequence[Workbench], store: Store) -> Preview:
    """What a grid of these choices would do. Nothing is written, and no model loads."""
    cells, invalid = sorted_out(choices)
    unique = distinct(cells)
    done = {} if choices[0].force else store.recall(cell.id for cell in unique)
    if not choices[0].force:
        done |= earlier.results([cell for cell in unique if cell.id not in done], store).taken
    work, refused = estimate.survey(cell for cell in unique if cell.id not in done)
    invalid += [Invalid(cell.label, refused[cell.id]) for cell in cells if cell.id in refused]
    valid = [cell for cell in unique if cell.id not in refused]
    todo = tuple(cell for cell in valid if cell.id not in done)
    cluster = choices[0].cluster
    on_gpu = any(cell.device == "cuda" for cell in todo)
    return Preview(
        cells=len(choices),
        duplicates=sum(cell.id not in refused for cell in cells) - len(valid),
        done=tuple(cell for cell in valid if cell.id in done),
        todo=todo,
        invalid=tuple(invalid),
        loads=tuple(estimate.loads(todo, work, store)),
        workers=cluster.workers or (max(1, int(visible_gpus() / cluster.gpus_per_worker)) if on_gpu else 1),
        layers=tuple(said for model in dict.fromkeys(cell.model for cell in valid) for said in layers_of_model(model)),
    )


def show(console: Console, preview: Preview) -> None:
    """The preview in a terminal: counts, what is invalid and why, a line a model, what to expect of memory."""
    counts = counted(preview.cells, preview.duplicates, len(preview.done), len(preview.todo))
    console.print(f"{counts}, {len(preview.invalid)} invalid")
    for choice in preview.invalid:
        console.print(f"invalid  {choice.label}\n         {choice.reason}")
    for sentence in preview.layers:
        console.print(sentence)
    if not preview.loads:
        return
    header = ("model", "dtype", "device", "cells", "passes", "tokens", "time", "weights", "peak", "of", "fits up to")
    terminal.table(console, "", header, [_row(load) for load in preview.loads])
    for load in preview.loads:
        if load.room_bytes and load.peak_bytes and load.peak_bytes > load.room_bytes:
            console.print(
                f"{load.model} at {load.longest:,}: about {load.peak_bytes / GIB:.1f} GiB are needed and there are "
                f"{load.room_bytes / GIB:.1f}: expect it to run out of memory; choose at most length={load.fits}"
            )
    for load in preview.loads:
        console.print(f"{load.model}: {load.basis}")
    if preview.seconds is not None:
        workers = f"{preview.workers} workers" if preview.workers > 1 else "one worker"
        console.print(f"about {duration(preview.seconds)} on {workers}, start and loading not counted")


def as_json(preview: Preview) -> str:
    """The preview for a machine to read; null is what is not known. Bytes, seconds and tokens."""

    def plain(cells: Iterable[Cell]) -> list[dict[str, str]]:
        return [{"id": cell.id, "label": cell.label} for cell in cells]

    body: Mapping[str, Any] = {
        "asked": preview.cells,
        "equal": preview.duplicates,
        "done": plain(preview.done),
        "todo": plain(preview.todo),
        "invalid": [asdict(choice) for choice in preview.invalid],
        "passes": preview.passes,
        "seconds": preview.seconds,
        "workers": preview.workers,
        "models": [asdict(load) for load in preview.loads],
        "layers": list(preview.layers),
    }
    return json.dumps(body, indent=1)


def _row(load: Load) -> list[str]:
    def count(value: int | None) -> str:
        return "not known" if value is None else f"{value:,}"

    def size(value: float | None) -> str:
        return "not known" if value is None else f"{value / GIB:.2f} GiB"

    time = "not known" if load.seconds is None else duration(load.seconds)
    memory = map(size, (load.weight_bytes, load.peak_bytes, load.room_bytes))
    return [
        load.model,
        load.dtype,
        load.device,
        str(load.cells),
        count(load.passes),
        count(load.tokens),
        time,
        *memory,
        count(load.fits),
    ]
