"""Measure: a live model, or the grid that the command line runs; and read what was measured before."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import Any

from pipelines.records.cells import Cell, Refusal, Result, Task, frozen
from pipelines.records.paths import written
from ropewalk.plans import StrategyPlan, plan
from ropewalk.results import Results

Choice = str | tuple[str, Mapping[str, Any]] | StrategyPlan
"""A strategy to measure: by name, by name with options, or as the plan of one length."""


def score(
    model: Any,
    tokenizer: Any,
    strategies: Iterable[Choice] | StrategyPlan | str = ("none", "yarn"),
    lengths: Iterable[int] | int | None = None,
    task: str = "perplexity",
    *,
    limit: int | None = None,
    seed: int = 0,
    quiet: bool = False,
    **task_options: Any,
) -> Results:
    """Measure a live model under strategies at lengths; the numbers are those of the grid on the same weights.

        ropewalk.score(model, tokenizer, ["none", "yarn", ("ntk", {"factor": 8})], [4096, 16384], limit=8)

    The model, in any dtype and on any device, is afterwards as it was before. Strategies act on what its config
    declares, whatever plan of ours it is under; a model whose rotary modules were set by hand, or cast to half
    precision, is refused with both numbers. Under `none` nothing is written into it, and nothing to disk.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        strategies: names of STRATEGIES, (name, options) pairs, and plans as `plan` returns them; a plan is measured at
            its own length, whatever `lengths` says.
        lengths: tokens of context; None: one, two and four times the trained length.
        task: perplexity, passkey, or any task of lm-eval by its name.
        limit: documents of each length (of passkey: keys at every depth); None: all there are.
        seed: of generated documents.
        quiet: print no line on stderr after each cell.
        task_options: of the task, such as text="stdlib" or last=512 of perplexity, depths=[0.5] of passkey.

    Returns:
        A result for every strategy and length, strategy by strategy. A cell that fails or runs out of memory has a
        result that says so.

    Raises:
        Refusal: something cannot be measured; nothing has run then.
    """
    from pipelines.choices.sweep import PlanChoice
    from pipelines.report import tables
    from pipelines.workers import live

    described = live.describe(model)
    geometries, trained = described.geometries, described.length
    lengths = (trained, 2 * trained, 4 * trained) if lengths is None else _listed(lengths, int)
    plans = []
    for choice in _listed(strategies, str, StrategyPlan):
        if isinstance(choice, StrategyPlan):
            plans.append(choice)
        else:
            name, options = (choice, {}) if isinstance(choice, str) else choice
            try:
                plans += [plan(name, geometries, length, **options) for length in lengths]
            except ValueError as error:
                raise Refusal(str(error)) from error
    if not plans:
        raise Refusal("there is nothing to measure: give at least one strategy and one length")

    def progress(cell: Cell, result: Result) -> None:
        if not quiet:
            line = f"{result.status:<8} {cell.label}  {tables.headline(cell, result)}"
            print(line, file=sys.stderr, flush=True)

    return Results(
        live.score(
            model,
            tokenizer,
            [PlanChoice(described.model, geometries, p.strategy, frozen(p.options), p.length, p.plans) for p in plans],
            Task(task, frozen(task_options)),
            limit=limit,
            seed=seed,
            progress=progress,
        )
    )


def grid(*overrides: str, quiet: bool = False, **choices: Any) -> Results:
    """Measure every combination of the choices, as the command `ropewalk grid` does: cells run on this machine's GPUs
    or CPU, finished ones are only read, and everything is kept in the store (mlruns/) and in MLflow.

        ropewalk.grid(model="tiny", strategy=["none", "yarn"], length=[512, 1024], limit=2)
        ropewalk.grid("model=tiny", "strategy=yarn", "strategy.beta_fast=16,32", "length=1024")

    Args:
        overrides: as on the command line.
        quiet: print nothing.
        choices: the same by keyword. A list makes the grid; a mapping gives options, with or without a name:
            task={"text": "stdlib", "last": 128} is task.text=stdlib task.last=128.

    Returns:
        A result for every combination.

    Raises:
        Refusal: something cannot run; nothing has run then.
    """
    from pipelines.grid.launcher import run_grid

    return Results(run_grid([*overrides, *_overrides(choices)], quiet=quiet))


def load_results(store: str | PathLike[str] | None = None) -> Results:
    """Everything that was measured into a store, oldest first.

    A cell that was measured under several names (yarn at the trained length is none) is listed under each.

    store: its folder; None: ROPEWALK_STORE, or else mlruns/ here.
    """
    from pipelines.records.results import Store
    from pipelines.report import stored

    return Results(stored.rows_of(Store.at(None if store is None else os.path.expanduser(store))))


def _listed(values: Any, *single: type) -> list[Any]:
    """Several values, or a single one of these types, as a list."""
    return [values] if isinstance(values, single) else list(values)


def _overrides(choices: Mapping[str, Any]) -> list[str]:
    """Keywords as overrides of the command line.

    >>> _overrides({"strategy": ["none", "yarn"], "limit": None, "task": {"name": "passkey", "depths": [0.1, 0.5]}})
    ['strategy=none,yarn', 'limit=null', 'task=passkey', 'task.depths=[0.1,0.5]']
    """
    overrides = []
    for key, value in choices.items():
        if isinstance(value, Mapping):
            options = {f"{key}.{name}": [option] for name, option in value.items() if name != "name"}
            overrides += _overrides(({key: value["name"]} if "name" in value else {}) | options)
        else:
            values = list(value) if isinstance(value, (list, tuple, range)) else [value]
            text = _name if key in ("model", "task", "strategy") else _value
            overrides.append(f"{key}={','.join(map(text, values))}")
    return overrides


def _name(value: Any) -> str:
    """A model, strategy or task as it is written on the command line: not quoted, as it may be a path or a hub id."""
    if not isinstance(value, (str, PathLike)):
        raise Refusal(f"{value!r} is no name; give one, or {{'name': NAME, OPTION: VALUE}} for one with options")
    return fspath(value)


def _value(value: Any) -> str:
    """A value in Hydra's grammar.

    >>> _value(None), _value([1, 2.5]), _value({"0-3": True}), _value("a, b"), _value("a/b.txt")
    ('null', '[1,2.5]', '{0-3:true}', "'a, b'", 'a/b.txt')
    """
    value = value.tolist() if hasattr(value, "tolist") else fspath(value) if isinstance(value, PathLike) else value
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_value(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_value, value)) + "]"
    return written(value) if isinstance(value, str) else str(value)
