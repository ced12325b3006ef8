"""Hydra's door to the pool: a sweeper that plans and records a grid, a launcher that runs its cells.

Owns Hydra's plugins. Stock launchers (`hydra/launcher=basic`, joblib, ray) run the grid too: each of their jobs
computes one cell and leaves its result on disk, and the sweeper records them all when the last is back.
"""

from __future__ import annotations

import difflib
import importlib
import shlex
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import hydra
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pipelines.choices import config
from pipelines.choices.sweep import Sweep, cells_of
from pipelines.grid import preview
from pipelines.records.cells import Cell, Refusal, Result
from pipelines.records.places import CONF
from pipelines.records.results import Store
from pipelines.track import launch as launch_
from pipelines.workers.compute import Run, compute, pooled

# Scan first: Hydra re-executes plugin modules, and a BasicSweeper imported earlier would be a stale class.
Plugins.instance()
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402

NAMESPACE = "hydra_plugins.ropewalk"
"""Hydra 1.3 takes plugins from below hydra_plugins only; from 1.4 on an entry point can take this alias's place."""


@dataclass
class Launch:
    """What passes between the command line and the sweeper: Hydra hands nothing through, either way.

    only_plan: leave the grid unrun, and what it would be in `planned`.
    """

    command: str = "ropewalk grid"
    only_plan: bool = False
    planned: preview.Forecast | None = None
    results: list[Result] = field(default_factory=list)


launch = Launch()


def cell(composed: DictConfig) -> None:
    """One job of a stock launcher: compute the cell unless it is finished, and leave the result on disk."""
    chosen = config.choices(composed)
    store = Store.at(chosen.store)
    for result in compute(cells_of([chosen]), store, force=chosen.force):
        print(launch_.line(*result))


class GridSweeper(BasicSweeper):
    """Expands the command line into cells, refuses what cannot run, runs the rest, records and reports."""

    def sweep(self, arguments: list[str]) -> list[Result]:
        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        [jobs] = self.split_arguments(parser.parse_overrides([*self._parse_config(), *arguments]), None)
        chosen = [config.choices(c) for c in compose(self.hydra_context, self.config, jobs)]
        store = Store.at(chosen[0].store)
        if launch.only_plan:
            launch.planned = preview.of(chosen, store)
            return []
        experiment = self.config.hydra.runtime.choices.get("experiment") or "ropewalk"
        commands = tuple(shlex.join(["ropewalk", "grid", *map(config.typed, job)]) for job in jobs)
        sweep = Sweep(experiment, tuple(cells_of(chosen)), launch.command, commands)
        run = self.launcher.stream if isinstance(self.launcher, PoolLauncher) else self._stock(sweep, jobs, store)
        launch.results = launch_.run(sweep, store, run, force=chosen[0].force)
        return launch.results

    def _stock(self, sweep: Sweep, jobs: Sequence[Sequence[str]], store: Store) -> Run:
        """A stock launcher as what the grid runs cells with: all its results come when the last job is back."""
        jobs_of = {cell.id: job for cell, job in zip(sweep.cells, jobs, strict=True)}

        def run(todo: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
            assert self.launcher is not None
            if todo:
                self.launcher.launch([jobs_of[cell.id] for cell in todo], initial_job_idx=0)
            for cell in todo:
                missing = Result(cell.id, "failed", error="the launcher brought back no result of this cell")
                yield cell, store.read(cell.id) or missing

        return run


class PoolLauncher(Launcher):
    """Runs cells on the pool. Under another sweeper than ours it computes and saves, and records nothing."""

    def __init__(self) -> None:
        self.context: HydraContext | None = None
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def stream(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        assert self.config is not None
        return pooled(cells, self.config.cluster)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        assert self.config is not None and self.context is not None
        configs = list(compose(self.context, self.config, job_overrides))
        cells = cells_of(config.choices(c) for c in configs)
        store = Store.at(self.config.store)
        results = {c.id: r for c, r in compute(cells, store, self.stream, force=self.config.force)}
        return [
            _job_return(cfg, list(overrides), results[c.id])
            for cfg, overrides, c in zip(configs, job_overrides, cells, strict=True)
        ]


def each(overrides: Sequence[str]) -> Iterator[config.Workbench]:
    """Every combination of a command line's comma lists, typed: a grid's choices for verbs that run none.

    Raises:
        Refusal: a value is missing.
        HydraException: what Hydra refuses.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
        [jobs] = BasicSweeper.split_arguments(parsed, None)
        for job in jobs:
            yield config.choices(hydra.compose("config", overrides=list(job)))


def compose(context: HydraContext, base: DictConfig, jobs: Sequence[Sequence[str]]) -> Iterator[DictConfig]:
    """The config of every job.

    Composed once for every distinct set of group choices, plain values set on copies: 10 ms a job where Hydra's own
    composing takes 80 to 95.

    Raises:
        Refusal: a value is missing, or of the wrong type.
    """
    loader = context.config_loader
    parser = OverridesParser.create(config_loader=loader)
    composed: dict[tuple[str, ...], DictConfig] = {}
    for job in jobs:
        parsed = parser.parse_overrides(list(job))
        plain = [
            override
            for override in parsed
            if not (override.is_delete() or override.is_add() or override.is_force_add())
            and not loader.repository.group_exists(override.key_or_group)  # type: ignore[attr-defined]
        ]
        groups = tuple(text for override, text in zip(parsed, job, strict=True) if override not in plain)
        if groups not in composed:
            composed[groups] = loader.load_sweep_config(base, list(groups))
        copy = composed[groups].copy()
        for override in plain:
            _set(copy, override.key_or_group, override.value())
        yield copy


def _set(target: DictConfig, key: str, value: Any) -> None:
    try:
        OmegaConf.update(target, key, value, merge=True)
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise unknown(target, key) from error
    except OmegaConfBaseException as error:
        raise Refusal(f"{key}={value}: {str(error).splitlines()[0]}") from error


def unknown(composed: DictConfig, key: str) -> Refusal:
    """The sentence for an option that the composed config does not have, with those that it has in that place."""
    parent, _, leaf = key.rpartition(".")
    where = OmegaConf.select(composed, parent) if parent else composed
    known = [str(name) for name in where if name != "hydra"] if isinstance(where, DictConfig) else []
    close = difflib.get_close_matches(leaf, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return Refusal(f"{key}: no such option; {hint}{parent or 'at the top'} has {', '.join(known) or 'none'}")


def _job_return(cfg: DictConfig, overrides: list[str], result: Result) -> JobReturn:
    job = JobReturn(overrides=overrides, cfg=cfg, status=JobStatus.COMPLETED if result.finished else JobStatus.FAILED)
    job.return_value = result.metrics if result.finished else Refusal(f"{result.cell_id}: {result.error_line}")
    return job


@dataclass
class PoolConfig:
    _target_: str = f"{NAMESPACE}.PoolLauncher"


@dataclass
class GridConfig:
    _target_: str = f"{NAMESPACE}.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, Any] | None = field(default_factory=dict)


def register() -> None:
    """Make `hydra/launcher=pool` and `hydra/sweeper=grid` known. Hydra 1.3 imports a plugin from below
    hydra_plugins, so this module is put there under a second name."""
    try:
        package = importlib.import_module("hydra_plugins")
    except ImportError:  # no plugin distribution is installed
        package = types.ModuleType("hydra_plugins")
        package.__path__ = []
        sys.modules["hydra_plugins"] = package
    alias = types.ModuleType(NAMESPACE)
    sys.modules[NAMESPACE] = alias
    setattr(package, NAMESPACE.rpartition(".")[2], alias)
    for plugin in (PoolLauncher, GridSweeper):
        setattr(alias, plugin.__name__, plugin)
        plugin.__module__ = NAMESPACE
        Plugins.instance().register(plugin)
    store = ConfigStore.instance()
    store.store(group="hydra/sweeper", name="grid", node=GridConfig, provider="ropewalk")
    store.store(group="hydra/launcher", name="pool", node=PoolConfig, provider="ropewalk")
