"""The preview of a grid: what is finished, to run and invalid, and what it takes. `ropewalk plan` shows it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from pipelines.choices import estimate
from pipelines.choices.estimate import Load
from pipelines.choices.layers import layers_of_model
from pipelines.choices.sweep import Invalid, sorted_out, visible_gpus
from pipelines.grid.request import GridRequest, needs
from pipelines.models import earlier
from pipelines.records.cells import Cell, Result, distinct
from pipelines.records.numbers import GIB, duration
from pipelines.report import terminal
from pipelines.report.power import Need, as_dict
from pipelines.track import launch
from pipelines.workers.compute import settled


@dataclass(frozen=True)
class Preview:
    """A grid before it runs.

    cells: requested combinations, invalid ones included. duplicates: those with the same plan and text as
    another; only the first of equal cells is in done, left_out or todo. left_out: cells whose process was killed, each
    with its result. loads: what the cells to run take, by model.
    workers: that share the time. added: cells that say what deployed factors cost at short lengths, of `cells`.
    needs: how many documents the comparisons need. layers: of each model that does not rotate, or not see, everywhere
        alike: sentences.
    """

    cells: int
    duplicates: int
    done: tuple[Cell, ...]
    todo: tuple[Cell, ...]
    invalid: tuple[Invalid, ...]
    loads: tuple[Load, ...]
    left_out: tuple[tuple[Cell, Result], ...] = ()
    workers: int = 1
    layers: tuple[str, ...] = ()
    added: int = 0
    needs: tuple[Need, ...] = ()

    @property
    def seconds(self) -> float | None:
        """Of all that is to run, shared evenly; None where any of it is not known."""
        seconds = estimate.total(load.seconds for load in self.loads)
        return None if seconds is None else seconds / self.workers

    @property
    def passes(self) -> int | None:
        """Forwards of every cell to run: one a document, or a window of it."""
        return estimate.total(load.passes for load in self.loads)


def preview_of(grid: GridRequest) -> Preview:
    """What a grid would do. Nothing is written, and no model loads."""
    choices, store = grid.choices, grid.store
    cells, invalid = sorted_out(choices)
    unique = distinct(cells)
    done = settled(unique, store, force=choices[0].force, retry=choices[0].retry, keep=False)
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
        done=tuple(cell for cell in valid if cell.id in done and done[cell.id].finished),
        left_out=tuple((c, done[c.id]) for c in valid if c.id in done and not done[c.id].finished),
        todo=todo,
        invalid=tuple(invalid),
        loads=tuple(estimate.loads(todo, work, grid.newest)),
        workers=cluster.workers or (max(1, int(visible_gpus() / cluster.gpus_per_worker)) if on_gpu else 1),
        added=grid.added,
        needs=tuple(needs([cell for cell in cells if cell.id not in refused], grid.newest)) if todo else (),
        layers=tuple(said for model in dict.fromkeys(cell.model for cell in valid) for said in layers_of_model(model)),
    )


def show(console: Console, preview: Preview) -> None:
    """The preview in a terminal: counts, what is invalid and why, a line a model, what to expect of memory."""
    counts = launch.counted(preview.cells, preview.duplicates, len(preview.done), len(preview.todo))
    left_out = f", {len(preview.left_out)} left out" if preview.left_out else ""
    console.print(f"{counts}, {len(preview.invalid)} invalid{left_out}")
    for cell, result in preview.left_out:
        console.print(launch.left_out(cell, result))
    for sentence in _sentences(preview.added, preview.needs):
        console.print(sentence)
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


def advance_notes(todo: Sequence[Cell], cells: Sequence[Cell], grid: GridRequest) -> list[str]:
    """What is said of a grid before it runs: which of its cells were added, how many documents comparisons need, and
    what the cells that are to be computed take."""
    return [*_sentences(grid.added, needs(cells, grid.newest)), estimate.sentence(todo, grid.newest)]


def _sentences(added: int, needed: Sequence[Need]) -> list[str]:
    which = "1 of them says" if added == 1 else f"{added} of them say"
    told = [f"{which} what a deployed factor costs at short lengths (short=none leaves it out)"] if added else []
    return [*told, *(need.sentence for need in needed)]


def as_json(preview: Preview) -> str:
    """The preview for a machine to read; null is what is not known. Bytes, seconds and tokens."""

    def plain(cells: Iterable[Cell]) -> list[dict[str, str]]:
        return [{"id": cell.id, "label": cell.label} for cell in cells]

    body: Mapping[str, Any] = {
        "asked": preview.cells,
        "equal": preview.duplicates,
        "done": plain(preview.done),
        "todo": plain(preview.todo),
        "left_out": [{"id": c.id, "label": c.label, "reason": r.error_line} for c, r in preview.left_out],
        "invalid": [asdict(choice) for choice in preview.invalid],
        "passes": preview.passes,
        "seconds": preview.seconds,
        "workers": preview.workers,
        "models": [asdict(load) for load in preview.loads],
        "layers": list(preview.layers),
        "added": preview.added,
        "documents": [as_dict(need) for need in preview.needs],
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
