"""A grid from its overrides: run, or previewed.

Cells run on the pool. With another of Hydra's launchers (`hydra/launcher=basic`, joblib, ray), each of its jobs
computes one cell and leaves the result on disk, and the grid records them all when the last is back.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from functools import partial

from hydra._internal.callbacks import Callbacks
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig
from rich.console import Console

from pipelines.choices import config
from pipelines.choices.compose import Expansion
from pipelines.choices.sweep import Sweep, cells_of
from pipelines.grid.preview import Preview, advance_notes, preview_of
from pipelines.grid.request import requested
from pipelines.records.cells import Cell, Result
from pipelines.records.public import public
from pipelines.records.results import Store
from pipelines.report import terminal
from pipelines.report.progress import Events, line
from pipelines.track import launch
from pipelines.workers.compute import Crew, compute


def run_grid(
    overrides: Sequence[str],
    *,
    command: str | None = None,
    quiet: bool = False,
    events: Events | None = None,
    console: Console | None = None,
) -> list[tuple[Cell, Result]]:
    """Compute, record and show every combination of the overrides, as `ropewalk grid` does.

    overrides: as on the command line; without any of AXES, the first grid. command: what the records say was typed.
    quiet: print nothing. events: is told of all that happens, as plain data. console: in place of the terminal.
    Returns the cells with their results in the order of the combinations.

    Raises:
        Refusal: something cannot run; nothing has run then.
        KeyboardInterrupt: after Ctrl-C. What was finished is on disk.
    """
    grid = requested(overrides)
    cells, first, expanded = cells_of(grid.choices), grid.first, grid.expanded
    jobs_alone = ([*expanded.settings, *map(config.typed, job)] for job in grid.jobs)
    commands = (public(shlex.join(["ropewalk", "grid", *words])) for words in jobs_alone)
    command = public(command or shlex.join(["ropewalk", "grid", *overrides]))
    sweep = Sweep(expanded.experiment or "ropewalk", tuple(cells), command, tuple(commands))
    store = grid.store
    if expanded.launcher == "pool":
        run: Crew | partial[Iterator[tuple[Cell, Result]]] = Crew(first.cluster, store, reuse=not first.force)
    else:
        jobs = {cell.id: job for cell, job in zip(cells, grid.jobs, strict=True)}
        run = partial(_by_hydra, expanded=expanded, jobs=jobs, store=store)
    try:
        return launch.run(
            sweep,
            store,
            run,
            force=first.force,
            retry=first.retry,
            console=terminal.silent if quiet else console or terminal.console,
            events=events,
            advance_notes=partial(advance_notes, cells=cells, grid=grid),
            max_short_cost=first.report.short_cost,
        )
    finally:
        if isinstance(run, Crew):
            run.close()


def preview(overrides: Sequence[str]) -> Preview:
    """What `run_grid` with these overrides would do. Nothing is written, and no model loads.

    Raises:
        Refusal: an override that is not known. Combinations that cannot run are in the preview.
    """
    return preview_of(requested(overrides))


def _by_hydra(
    cells: Sequence[Cell], expanded: Expansion, jobs: dict[str, tuple[str, ...]], store: Store
) -> Iterator[tuple[Cell, Result]]:
    """Cells by a launcher of Hydra's: all results come when the last job is back."""
    if not cells:
        return
    # Hydra makes a folder a job, by what the launcher and by what each job is told.
    expanded.config.hydra.sweep.dir = str(store.root / "hydra")
    told = config.typed(f"hydra.sweep.dir={json.dumps(expanded.config.hydra.sweep.dir)}")
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(config_loader=expanded.loader, callbacks=Callbacks()),
        task_function=compute_job,
        config=expanded.config,
    )
    launcher.launch([[*jobs[cell.id], told] for cell in cells], initial_job_idx=0)
    for cell in cells:
        missing = Result(cell.id, "failed", error="the launcher brought back no result of this cell")
        yield cell, store.read(cell.id) or missing


def compute_job(composed: DictConfig) -> None:
    """One job of a launcher of Hydra's: compute the cell unless it is finished, and leave the result on disk."""
    chosen = config.workbench(composed)
    # alone: the launch that this is a job of has the cell in hand
    cells, store = cells_of([chosen]), Store.at(chosen.store)
    for result in compute(cells, store, force=chosen.force, retry=chosen.retry, alone=True):
        print(line(*result))
