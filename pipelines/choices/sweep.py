"""Choices -> cells, with every refusal said at once; and the sweep that one launch of a grid is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pipelines.choices import schema
from pipelines.choices.config import Device, Dtype, ModelChoice, Workbench
from pipelines.models import find
from pipelines.records import places, provenance
from pipelines.records.cells import Cell, Model, Options, Refusal, Task, digest_of, frozen, label, strategy_label
from pipelines.records.privacy import without_secrets
from pipelines.records.refusal import suggestion
from pipelines.tasks import registry
from rope import cropping, pairwise, strategies
from rope.config import geometry_of, scaled_queries, text_config
from rope.dialects import to_transformers
from rope.geometry import Geometry, Plans, layers_of


@dataclass(frozen=True)
class Sweep:
    """One launch of a grid: its cells in the order requested, duplicates included.

    command: what was typed; commands: for each cell the command for that cell alone.
    code: version of the code that launched it (provenance.code).
    """

    experiment: str
    cells: tuple[Cell, ...]
    command: str
    commands: tuple[str, ...] = ()
    created: str = field(default_factory=lambda: datetime.now().astimezone().isoformat())
    code: Mapping[str, Any] = field(default_factory=provenance.code)

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Sweep:
        """The sweep that `spec()` wrote down."""
        cells = tuple(map(Cell.of, spec["cells"]))
        commands = tuple(spec.get("commands", ()))
        return cls(spec["experiment"], cells, spec["command"], commands, spec["created"], spec["code"])

    @cached_property
    def id(self) -> str:
        parts = [self.created, self.command, *(cell.id for cell in self.cells)]
        return f"{self.created[:19].replace(':', '')}-{digest_of(parts)[:6]}"

    @property
    def label(self) -> str:
        """What MLflow's list calls it: `tiny: none, yarn @512: perplexity of pydoc, limit 4, 2026-11-26 11:17:04`."""
        axes = zip(*((c.model.name, c.strategy, c.length, c.task.name) for c in self.cells), strict=True)
        model, strategy, length, task = (", ".join(map(str, dict.fromkeys(axis))) for axis in axes)
        texts = dict.fromkeys(dict(cell.task.options).get("text") for cell in self.cells)
        of = ", ".join(str(name) for name in texts if name is not None)
        counts = dict.fromkeys(cell.limit for cell in self.cells)
        limits = ", ".join(str(count) for count in counts if count is not None)
        what = f"{model}: {strategy} @{length}: {task}{f' of {of}' if of else ''}"
        end = f"{f', limit {limits}' if limits else ''}, {self.created[:19].replace('T', ' ')}"
        return what[: 200 - len(end)] + end

    def bearing(self, cell_id: str) -> list[Cell]:
        """The choices that give one cell: yarn and none at the trained length are two."""
        return list(self._bearing.get(cell_id, {}).values())

    @cached_property
    def _bearing(self) -> dict[str, dict[Any, Cell]]:
        choices: dict[str, dict[Any, Cell]] = {}
        for cell in self.cells:
            choices.setdefault(cell.id, {})[cell.strategy, cell.options] = cell
        return choices

    def spec(self) -> dict[str, Any]:
        """The sweep as plain data, as sweep.json keeps it."""
        return {
            "id": self.id,
            "experiment": self.experiment,
            "command": self.command,
            "created": self.created,
            "code": dict(self.code),
            "commands": list(self.commands),
            "cells": [cell.spec() for cell in self.cells],
        }

    def command_of(self, cell: Cell) -> str:
        """What asks for this cell alone; the sweep's own command where that is not known."""
        return self._commands.get(cell, self.command)

    @cached_property
    def _commands(self) -> dict[Cell, str]:
        return dict(zip(self.cells, self.commands, strict=False))


@dataclass(frozen=True)
class Invalid:
    """A choice that cannot be a cell: how a terminal line calls it, and the sentence that says why."""

    label: str
    reason: str


def cells_of(choices: Iterable[Workbench]) -> list[Cell]:
    """A cell a choice.

    Raises:
        Refusal: with one line for each distinct reason why a choice cannot be a cell.
    """
    cells, invalid = sorted_out(choices)
    if invalid:
        raise Refusal("\n".join(dict.fromkeys(choice.reason for choice in invalid)))
    return cells


def sorted_out(choices: Iterable[Workbench]) -> tuple[list[Cell], list[Invalid]]:
    """The cells among the choices, and those that cannot be one. Their models and tasks are looked for once."""
    cells, invalid, once = [], [], Once()
    for choice in choices:
        try:
            cells.append(cell_of(choice, once))
        except Refusal as reason:
            invalid.append(Invalid(_label(choice), str(reason)))
    return cells, invalid


def _label(choice: Workbench) -> str:
    """As Cell.label, of a choice that is no cell: its strategy may be unknown, or its options out of range."""
    given = dict(choice.strategy)
    name = str(given.pop("name"))
    try:
        given = _strategy_options(name, given, choice.factor)
    except Refusal:
        given |= {} if choice.factor is None else {"factor": choice.factor}
    return without_secrets(label(choice.model.name, name, frozen(given), choice.length, str(choice.task["name"])))


class Once:
    """What is looked for once of all the choices of a grid: its models, and its tasks with their texts."""

    def __init__(self) -> None:
        self.geometry = lru_cache(maxsize=None)(geometry_for)
        self._tasks: dict[tuple[str, int | None, bool], TaskChoice] = {}

    def task(self, chosen: Mapping[str, Any], limit: int | None, allow_unsafe: bool) -> TaskChoice:
        """As `task_for`."""
        place = repr(chosen), limit, allow_unsafe
        if place not in self._tasks:
            self._tasks[place] = task_for(chosen, limit, allow_unsafe)
        return self._tasks[place]


def cell_of(choice: Workbench, once: Once | None = None) -> Cell:
    """One choice as a cell: its plan computed, its model and text known by their digests; nothing heavy loaded.

    Raises:
        Refusal: an option is out of its range, or the model or text is not there.
    """
    limit = choice.documents
    if limit is not None and limit < 1:
        raise Refusal(f"limit={limit}: give at least 1 document, or null for all")
    once = once or Once()
    planned = planned_of(choice, once)
    device = device_of(choice.cluster.device)
    task = once.task(choice.task, limit, choice.allow_unsafe_tasks)
    return _cell(planned, task, limit, choice.seed, dtype_of(choice.dtype, device), device)


def cell_for(
    planned: PlanChoice,
    chosen_task: Mapping[str, Any],
    *,
    limit: int | None,
    seed: int,
    dtype: str,
    device: str,
    allow_unsafe: bool = False,
) -> Cell:
    """Plans of a model and a task (its name and options) as a cell.

    Raises:
        Refusal: the task's text is not there, an option is of another type, or the task runs what the model writes
            and `allow_unsafe` does not say that it may.
    """
    return _cell(planned, task_for(chosen_task, limit, allow_unsafe), limit, seed, dtype, device)


def _cell(planned: PlanChoice, chosen: TaskChoice, limit: int | None, seed: int, dtype: str, device: str) -> Cell:
    special: dict[str, Any] = {"regions": pairwise.VERSION} if pairwise.replaces_attention(planned.plans) else {}
    special |= {"crop": cropping.VERSION} if cropping.cropped(planned.plans) else {}
    return Cell(
        model=planned.model,
        strategy=planned.strategy,
        options=planned.options,
        length=planned.length,
        plans=planned.plans,
        task=chosen.task,
        data=chosen.data,
        limit=limit,
        seed=seed,
        dtype=dtype,
        device=device,
        versions=frozen({**chosen.versions, **special}),
    )


@dataclass(frozen=True)
class TaskChoice:
    """What a choice of a task comes to, whatever it is measured on. data: digest of its text. versions: of what
    computes its numbers."""

    task: Task
    data: str
    versions: Mapping[str, Any]


def task_for(chosen: Mapping[str, Any], limit: int | None, allow_unsafe: bool) -> TaskChoice:
    """A task (its name and options), with its text known by a digest.

    Raises:
        Refusal: as `cell_for`.
    """
    options = dict(chosen)
    name = str(options.pop("name"))
    registry.options_of(Task(name, frozen(options)), limit)
    if not allow_unsafe:
        registry.check_safe(name, options.get("files"))
    task = Task(name, frozen(registry.kind(name).id_options(options)))
    versions = registry.versions(task)
    if (judge := evaluator_of(task)) is not None:
        versions["evaluator"] = geometry_for(judge)[0].fingerprint
    return TaskChoice(task, registry.data_digest(options), versions)


@dataclass(frozen=True)
class PlanChoice:
    """What a choice of model, strategy and length comes to, whatever is measured with it."""

    model: Model
    geometries: Mapping[str, Geometry]
    strategy: str
    options: Options
    length: int
    plans: Plans

    @property
    def label(self) -> str:
        return strategy_label(self.strategy, self.options)


def planned_of(choice: Workbench, once: Once | None = None) -> PlanChoice:
    """The plans of one choice, computed from the model's config alone.

    Raises:
        Refusal: an option is out of its range, or the model is not there.
    """
    strategy = dict(choice.strategy)
    name = str(strategy.pop("name"))
    options = _strategy_options(name, strategy, choice.factor)
    try:
        model, config, geometries = (once.geometry if once else geometry_for)(model_of(choice.model))
    except Refusal:
        # What is wrong with the strategy is said first: that needs no model. Lists do: it says how long they must be.
        if not any(isinstance(value, (list, tuple, Mapping)) for value in options.values()):
            _plans(name, {"any": _ANY_GEOMETRY}, choice.length, options)
        raise
    plans = _plans(name, geometries, choice.length, options)
    _check_layers(plans, model, config)
    if any(isinstance(plan, pairwise.Pairwise) and plan.query_scale is not None for _, plan in plans):
        _check_temperature(name, model, scaled_queries(config))
    return PlanChoice(model, geometries, strategies.ALIASES.get(name, name), frozen(options), choice.length, plans)


def geometry_for(requested: Model) -> tuple[Model, dict[str, Any], dict[str, Geometry]]:
    """A model with its fingerprint, its config as plain data, and its geometry by layer type.

    Raises:
        Refusal: the model is not there, or has no rotary embedding that we can read.
    """
    return _geometry_for(requested, find.state(requested))


@lru_cache(maxsize=64)
def _geometry_for(requested: Model, state: tuple[Any, ...]) -> tuple[Model, dict[str, Any], dict[str, Geometry]]:
    """state: of the model's files; what was read of them is remembered only while they are the same."""
    model, config = find.describe(requested)
    try:
        return model, config, geometry_of(config, requested.trained_length)
    except ValueError as error:
        raise Refusal(f"model {model.name}: {error}") from error


def patched_config(cell: Cell) -> dict[str, Any]:
    """The cell's model as a config.json with which a plain from_pretrained gives its plan.

    Raises:
        ValueError: transformers does not support it.
    """
    _, config, geometries = geometry_for(cell.model)
    return to_transformers(config, cell.strategy, dict(cell.options), geometries, cell.length)


def model_of(chosen: ModelChoice) -> Model:
    """The model that conf/model names, not looked for yet."""
    return find.requested(
        chosen.name, chosen.path, chosen.revision, chosen.trained_length, frozen(chosen.shape), chosen.allow_pickle
    )


def evaluator_of(task: Task) -> Model | None:
    """The model that decides which of a task's tokens are key; None where a strategy does, or none are asked for.

    Raises:
        Refusal: it is neither a strategy, nor a model of conf/model, nor a folder, file or id of one.
    """
    name = registry.evaluator(task)
    if name is None or strategies.ALIASES.get(name, name) in strategies.STRATEGIES:
        return None
    listed = places.CONF / "model" / f"{name}.yaml"
    if not listed.is_file():
        if "/" not in name and not Path(name).exists():
            known = sorted(strategies.STRATEGIES.keys() - strategies.CROPS_TEXT)
            raise Refusal(
                f"evaluator={name} of the task {task.name}: {suggestion(name, known)}give a strategy: "
                f"{', '.join(known)}; or a model: a name of conf/model, a folder, a GGUF file or a hub id"
            )
        return find.requested(name, name)
    return model_of(schema.structured(ModelChoice, schema.read(listed)))


_ANY_GEOMETRY = Geometry(head_dim=64, base=10000.0, trained_length=2**24)  # longer than any window


def _strategy_options(name: str, given: Mapping[str, Any], factor: float | None) -> dict[str, Any]:
    """The options that differ from the published defaults; `factor` only where the strategy has one."""
    try:
        defaults = strategies.options_of(name)
    except ValueError as error:
        raise Refusal(str(error)) from error
    options = dict(given)
    if taken := sorted({"geometry", "length"} & set(map(str, options))):
        raise Refusal(
            f"strategy.{taken[0]}: {name} has no such option; its options are {', '.join(defaults) or 'none'}"
        )
    if factor is not None and "factor" in defaults:
        options.setdefault("factor", factor)
    return {key: value for key, value in options.items() if key not in defaults or value != defaults[key]}


def _plans(name: str, geometries: Mapping[str, Geometry], length: int, options: Mapping[str, Any]) -> Plans:
    try:
        return strategies.plans(name, geometries, length, **options)
    except ValueError as error:
        raise Refusal(str(error)) from error


def _check_temperature(strategy: str, model: Model, own: str | None) -> None:
    if own is not None:
        raise Refusal(
            f"strategy={strategy} scales queries by their position, and model {model.name} does so itself ({own}): "
            "the two would multiply; give a strategy of frequencies, such as yarn, or a copy of the model whose "
            f"config.json has no {own.partition('=')[0]}"
        )


def _check_layers(plans: Plans, model: Model, config: Mapping[str, Any]) -> None:
    numbers = [number for layers, _ in plans for number in layers_of(layers)[1] or ()]
    count = text_config(config).get("num_hidden_layers") if numbers else None
    if count is not None and numbers and max(numbers) >= count:
        raise Refusal(
            f"the strategy's layers name layer {max(numbers)}, and model {model.name} has {count} layers; "
            f"give numbers from 0 to {count - 1}"
        )


def trained_length(cell: Cell) -> int:
    """Tokens that the cell's model was trained on, of its layers that see the whole context."""
    return trained_length_of(cell.model)


def trained_length_of(model: Model) -> int:
    """The same of a model.

    Raises:
        Refusal: as `geometry_for`.
    """
    if model.trained_length is not None:
        return model.trained_length
    _, _, geometries = geometry_for(model)
    return max(geometry.trained_length for geometry in geometries.values())


def full_options(cell: Cell) -> dict[str, Any]:
    """Every option of a cell's strategy, defaults included."""
    return {**strategies.options_of(cell.strategy), **dict(cell.options)}


def device_of(requested: Device) -> str:
    """The device class that a choice comes to here. Refusal: a GPU is requested and none is visible."""
    if requested is Device.cuda and "RAY_ADDRESS" not in os.environ and not visible_gpus():
        raise Refusal(
            "cluster.device=cuda: no NVIDIA GPU is visible here; check nvidia-smi and CUDA_VISIBLE_DEVICES, "
            "name a Ray cluster in RAY_ADDRESS, or give cluster=cpu"
        )
    if requested is not Device.auto:
        return str(requested.value)
    return "cuda" if visible_gpus() else "cpu"


@lru_cache(maxsize=1)
def visible_gpus() -> int:
    """NVIDIA GPUs that a worker would see."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return len([d for d in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if d.strip() not in ("", "-1")])
    return len(provenance.gpus())


def dtype_of(requested: Dtype, device: str) -> str:
    """The dtype that a choice comes to on a device class."""
    if requested is not Dtype.auto:
        return str(requested.value)
    return "bfloat16" if device == "cuda" else "float32"
