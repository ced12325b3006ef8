"""A grid from its overrides: run, or previewed.

Cells run on the pool. With another of Hydra's launchers (`hydra/launcher=basic`, joblib, ray), each of its jobs
computes one cell and leaves the result on disk, and the grid records them all when the last is back.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from functools import partial

from hydra._internal.callbacks import Callbacks
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig

from pipelines.choices import config
from pipelines.choices.compose import Expansion, expansion
from pipelines.choices.sweep import Sweep, cells_of
from pipelines.grid.preview import Preview, preview_of
from pipelines.records.cells import Cell, Result
from pipelines.records.public import public
from pipelines.records.results import Store
from pipelines.report import terminal
from pipelines.track import launch
from pipelines.workers.compute import compute, pooled

AXES = ("model", "strategy", "length", "task", "experiment")


def run_grid(overrides: Sequence[str], *, command: str | None = None, quiet: bool = False) -> list[tuple[Cell, Result]]:
    """Compute, record and show every combination of the overrides, as `ropewalk grid` does.

    overrides: as on the command line; without any of AXES, the first grid. command: what the records say was typed.
    quiet: print nothing. Returns the cells with their results in the order of the combinations.

    Raises:
        Refusal: something cannot run; nothing has run then.
        KeyboardInterrupt: after Ctrl-C. What was finished is on disk.
    """
    expanded = expansion(with_default(overrides))
    cells, first = cells_of(expanded.choices), expanded.choices[0]
    jobs_alone = ([*expanded.settings, *map(config.typed, job)] for job in expanded.jobs)
    commands = (public(shlex.join(["ropewalk", "grid", *words])) for words in jobs_alone)
    command = public(command or shlex.join(["ropewalk", "grid", *overrides]))
    sweep = Sweep(expanded.experiment or "ropewalk", tuple(cells), command, tuple(commands))
    store = Store.at(first.store)
    if expanded.launcher == "pool":
        run = partial(pooled, cluster=first.cluster, store=store)
    else:
        jobs = {cell.id: job for cell, job in zip(cells, expanded.jobs, strict=True)}
        run = partial(_by_hydra, expanded=expanded, jobs=jobs, store=store)
    console = terminal.silent if quiet else terminal.console
    return launch.run(sweep, store, run, force=first.force, retry=first.retry, console=console)


def preview(overrides: Sequence[str]) -> Preview:
    """What `run_grid` with these overrides would do. Nothing is written, and no model loads.

    Raises:
        Refusal: an override that is not known. Combinations that cannot run are in the preview.
    """
    choices = expansion(with_default(overrides)).choices
    return preview_of(choices, Store.at(choices[0].store))


def with_default(overrides: Sequence[str]) -> list[str]:
    """The overrides, and experiment=first where they name no axis of a grid."""
    named = {override.lstrip("+").partition("=")[0] for override in overrides}
    return [*overrides] if named & set(AXES) else [*overrides, "experiment=first"]


def _by_hydra(
    cells: Sequence[Cell], expanded: Expansion, jobs: dict[str, tuple[str, ...]], store: Store
) -> Iterator[tuple[Cell, Result]]:
    """Cells by a launcher of Hydra's: all results come when the last job is back."""
    if not cells:
        return
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(config_loader=expanded.loader, callbacks=Callbacks()),
        task_function=compute_job,
        config=expanded.config,
    )
    launcher.launch([jobs[cell.id] for cell in cells], initial_job_idx=0)
    for cell in cells:
        missing = Result(cell.id, "failed", error="the launcher brought back no result of this cell")
        yield cell, store.read(cell.id) or missing


def compute_job(composed: DictConfig) -> None:
    """One job of a launcher of Hydra's: compute the cell unless it is finished, and leave the result on disk."""
    chosen = config.workbench(composed)
    # alone: the launch that this is a job of has the cell in hand
    cells, store = cells_of([chosen]), Store.at(chosen.store)
    for result in compute(cells, store, force=chosen.force, retry=chosen.retry, alone=True):
        print(launch.line(*result))
