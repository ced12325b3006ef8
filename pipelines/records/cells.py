"""Cell and Result: what is to be measured, and what was measured; the two records that every other file uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from pipelines.records.refusal import Refusal as Refusal
from rope.geometry import Plan, Plans
from rope.pairwise import plan_from_dict

Options = tuple[tuple[str, Any], ...]
"""Keyword arguments in a hashable form: ((name, value), ...), sorted by name."""

Status = Literal["ok", "diverged", "oom", "failed", "invalid"]
FINISHED: frozenset[Status] = frozenset({"ok", "diverged", "oom"})
"""Statuses that are answers; failed and invalid cells are tried again by the next launch."""


PLACES = ("text", "files")
"""Options of tasks that say where something lies."""


def frozen(options: Mapping[str, Any]) -> Options:
    """Options as a hashable, sorted tuple; lists become tuples, mappings within become sorted pairs.

    >>> frozen({"b": [1, 2], "a": None, "c": {"y": 1, "x": 2}})
    (('a', None), ('b', (1, 2)), ('c', (('x', 2), ('y', 1))))
    """
    return tuple(sorted(((str(name), _frozen(value)) for name, value in options.items()), key=lambda pair: pair[0]))


def thawed(value: Any) -> Any:
    """The inverse of frozen, for display: pairs with a name in front become a mapping, other tuples a list.

    >>> thawed((("beta_fast", 16),)), thawed((1.0, 2.0))
    ({'beta_fast': 16}, [1.0, 2.0])
    """
    if not isinstance(value, tuple):
        return value
    if value and all(isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str) for entry in value):
        return {name: thawed(entry) for name, entry in value}
    return [thawed(entry) for entry in value]


def option_text(value: Any) -> str:
    """An option's value as text; of a long list its ends and its length.

    >>> option_text((("0-3", 2.0),)), option_text((1, 2, 3, 4, 5))
    ('{0-3: 2.0}', '[1, ... 5: 5 numbers]')
    """
    value = thawed(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {option_text(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        return str(value) if len(value) <= 4 else f"[{value[0]}, ... {value[-1]}: {len(value)} numbers]"
    return str(value)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return frozen(value)
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Model:
    """A checkpoint as a cell names it.

    trained_length: tokens, where its config.json says otherwise than what it was trained with.
    path: a folder, a GGUF file, a hub id, package://MODULE/FILE, or "random" (then `shape` says what to build).
    fingerprint: what its weights and config are known by: the hub revision, or a digest of the local files.
    allow_pickle: whether its weights may be read from a pickle (.bin), by torch's reader of plain tensors alone.
    """

    name: str
    path: str
    revision: str | None = None
    trained_length: int | None = None
    shape: Options = ()
    fingerprint: str = ""
    allow_pickle: bool = False


@dataclass(frozen=True)
class Task:
    """An lm-eval task: one of ours (pipelines/tasks) or any of its own by its name, with our options.

    The options of PLACES say where a text, or the task's own files, lie; the cell's identity takes the digest of their
    content (Cell.data) in their place.
    """

    name: str
    options: Options = ()

    def option(self, name: str) -> Any:
        return dict(self.options)[name]


@dataclass(frozen=True)
class Cell:
    """Model x strategy x length x task: one unit that bears numbers.

    strategy and options (those that differ from the published defaults) say how the plans came about; the plans alone
    decide the number. So yarn at the trained length, whose plan is that of none, is the same cell, and computed once.

    data: digest of the text that the task draws on, or of the task's own files ("" where lm-eval brings it all).
    versions: of whatever computes the number (scorer, task, lm-eval), so that a change of theirs is a new cell.
    """

    model: Model
    strategy: str
    options: Options
    length: int
    plans: Plans
    task: Task
    data: str
    limit: int | None
    seed: int
    dtype: str
    device: str
    versions: Options = ()

    @cached_property
    def id(self) -> str:
        """Hash of all that decides the number; paths, workers and the strategy's name are left out."""
        return digest_of(
            {
                "model": self.model.fingerprint,
                "plans": [[layers, _rounded(plan)] for layers, plan in self.plans],
                "length": self.length,
                "task": self.task.name,
                "task_options": [option for option in self.task.options if option[0] not in PLACES],
                "data": self.data,
                "limit": self.limit,
                "seed": self.seed,
                "dtype": self.dtype,
                "device": self.device,
                "versions": self.versions,
            }
        )[:12]

    @property
    def label(self) -> str:
        """Its name in a terminal line or as a run: `smollm2: yarn factor=4 @16384 perplexity`."""
        return label(self.model.name, self.strategy, self.options, self.length, self.task.name)

    @property
    def strategy_label(self) -> str:
        return strategy_label(self.strategy, self.options)

    def spec(self) -> dict[str, Any]:
        """The cell as plain data, as result.json and sweep.json keep it."""
        return {"id": self.id, **asdict(self)}

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Cell:
        """The cell of a `spec()`, also after JSON."""
        pairs = {name: _options(spec[name]) for name in ("options", "versions")}
        model = Model(**{**spec["model"], "shape": _options(spec["model"]["shape"])})
        task = Task(spec["task"]["name"], _options(spec["task"]["options"]))
        plans = tuple((layers, plan_from_dict(plan)) for layers, plan in spec["plans"])
        plain = {name: value for name, value in spec.items() if name != "id"}
        return cls(**{**plain, **pairs, "model": model, "task": task, "plans": plans})


def label(model: str, strategy: str, options: Options, length: int, task: str) -> str:
    """`smollm2: yarn factor=4 @16384 perplexity`, of a cell or of an invalid request."""
    return f"{model}: {strategy_label(strategy, options)} @{length} {task}"


def strategy_label(strategy: str, options: Options) -> str:
    """`yarn factor=4 beta_fast=16`, or the name alone where every option is at its published default."""
    return " ".join([strategy, *(f"{name}={option_text(value)}" for name, value in options)])


@dataclass(frozen=True)
class Result:
    """The outcome of a cell. A number that was not measured is absent.

    metrics: `name` and, from two documents on, `name_stderr`.
    series: `name` -> ((x, y), ...), such as NLL by position.
    documents: a small record a document, for paired comparisons.
    digest: of the scored token ids of all documents; two results compare only where it is equal.
    cost: seconds, tokens, tokens_per_second, peak_bytes.
    provenance: versions, device name, attention backend: where the number was computed.
    """

    cell_id: str
    status: Status
    metrics: dict[str, float] = field(default_factory=dict)
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    documents: list[dict[str, Any]] = field(default_factory=list)
    digest: str = ""
    cost: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.status in FINISHED

    @property
    def error_line(self) -> str:
        """The error's last line: the exception itself, under its traceback."""
        return self.error.strip().splitlines()[-1] if self.error else ""


def digest_of(value: Any) -> str:
    """sha256 of plain data, whatever order its keys were given in."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """One cell for each id: the first."""
    return list({cell.id: cell for cell in reversed(list(cells))}.values())[::-1]


def _options(pairs: Iterable[tuple[str, Any]]) -> Options:
    return frozen(dict(pairs))


def _rounded(plan: Plan) -> list[Any]:
    # Twelve digits: another machine's pow() may differ in the last bits of a float64, and the cell is the same.
    numbers = [f"{value:.12g}" for value in (*plan.inv_freq, plan.attention_factor)]
    return [*numbers, changes] if (changes := plan.changes()) else numbers
