"""A grid as it will run: the choices of its overrides, with the cells that say what deployed factors cost, and with as
many documents as its comparisons need where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.choices.compose import Expansion, expansion
from pipelines.choices.config import ENOUGH, Workbench
from pipelines.choices.deployed import additions
from pipelines.choices.estimate import Newest
from pipelines.choices.sweep import sorted_out
from pipelines.records.cells import Cell
from pipelines.records.phases import timed
from pipelines.records.results import Store
from pipelines.report import power
from pipelines.report.power import Need
from pipelines.tasks import registry

AXES = ("model", "strategy", "length", "task", "experiment")


@dataclass(frozen=True)
class GridRequest:
    """choices, jobs: a choice a cell, with the overrides that give it alone; the last `added` are those of short cells.
    expanded: the overrides as they were given. newest: results of its store.
    """

    choices: tuple[Workbench, ...]
    jobs: tuple[tuple[str, ...], ...]
    added: int
    expanded: Expansion
    newest: Newest

    @property
    def first(self) -> Workbench:
        return self.choices[0]

    @property
    def store(self) -> Store:
        return Store.at(self.first.store)


@timed("choices composed")
def requested(overrides: Sequence[str]) -> GridRequest:
    """The grid of these overrides; without any of AXES the first grid.

    Raises:
        Refusal: an override that is not known.
    """
    expanded = expansion(with_default(overrides))
    extra = additions(expanded.choices)
    choices = [*expanded.choices, *(one.choice for one in extra)]
    jobs = [*expanded.jobs, *(_changed(expanded.jobs[one.parent], one.overrides) for one in extra)]
    if extra:  # the command of one cell asks for no others
        jobs = [_changed(job, ["short=none"]) for job in jobs]
    grid = GridRequest(tuple(choices), tuple(jobs), len(extra), expanded, Newest(Store.at(choices[0].store)))
    return _with_enough(grid) if any(choice.limit == ENOUGH for choice in choices) else grid


def with_default(overrides: Sequence[str]) -> list[str]:
    """The overrides, and experiment=first where they name no axis of a grid."""
    named = {override.lstrip("+").partition("=")[0] for override in overrides}
    return [*overrides] if named & set(AXES) else [*overrides, "experiment=first"]


def needs(cells: Sequence[Cell], newest: Newest) -> list[Need]:
    """How many documents the comparisons of these cells need, judged by what the store has."""
    return power.needs(cells, [(Cell.of(spec), result) for spec, result in newest.rows])


def _with_enough(grid: GridRequest) -> GridRequest:
    """The same with a number for every `enough`: of each model and task the one that all its lengths need."""
    bare = [replace(choice, limit=None) if choice.limit == ENOUGH else choice for choice in grid.choices]
    enough = {(need.model, need.task): need.enough for need in needs(sorted_out(bare)[0], grid.newest)}
    choices: list[Workbench] = []
    jobs: list[tuple[str, ...]] = []
    for choice, job in zip(grid.choices, grid.jobs, strict=True):
        name = str(choice.task["name"])
        if choice.limit != ENOUGH:
            choices.append(choice)
            jobs.append(job)
            continue
        count = enough.get((choice.model.name, name), power.ALONE)
        options, limit = registry.kind(name).enlarged(count)
        choices.append(replace(choice, limit=limit, task={**choice.task, **options}))
        given: Mapping[str, Any] = {**{f"task.{option}": value for option, value in options.items()}, "limit": limit}
        jobs.append(_changed(job, [f"{key}={value}" for key, value in given.items()]))
    return replace(grid, choices=tuple(choices), jobs=tuple(jobs))


def _changed(job: Sequence[str], overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides of a choice with others in their place; another strategy has none of the options of the first."""
    keys = {override.partition("=")[0] for override in overrides}
    kept = [line for line in job if line.partition("=")[0] not in keys]
    if "strategy" in keys:
        kept = [line for line in kept if not line.startswith(("strategy.", "factor="))]
    return (*kept, *overrides)
