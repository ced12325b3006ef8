"""What MLflow shows of one cell, as plain data: built before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.choices.sweep import full_options, geometry_for, patched_config, trained_length
from pipelines.records.cells import Cell, Refusal, Result
from rope.geometry import layers_of


@dataclass(frozen=True)
class CellRun:
    """The content of one cell's run.

    files: name -> content, as JSON. no_config: why patched_config.json is not among them, or "".
    lost: why the run lacks what an earlier one had, as its strategy or its model is gone; or "".
    """

    cell: Cell
    result: Result
    params: Mapping[str, Any]
    metrics: list[tuple[str, float, int]]
    files: Mapping[str, Mapping[str, Any]]
    no_config: str = ""
    lost: str = ""


def cell_run(cell: Cell, result: Result) -> CellRun:
    """One cell and its result as a run."""
    files: dict[str, Mapping[str, Any]] = {}
    no_config = lost = ""
    try:
        files["inv_freq.json"] = frequencies(cell)
        files["patched_config.json"] = patched_config(cell)
    except ValueError as error:  # config.json cannot express every strategy
        no_config = str(error)
        if isinstance(error, Refusal) or known_options(cell) is None:
            lost = no_config
    return CellRun(cell, result, _params(cell, result), list(_metrics(cell, result)), files, no_config, lost)


def known_options(cell: Cell) -> dict[str, Any] | None:
    """Every option of the cell's strategy, defaults included; None where there is no such strategy any more."""
    try:
        return full_options(cell)
    except ValueError:
        return None


def choice_params(cell: Cell) -> dict[str, Any]:
    """The cell's choices that neither its length nor its plan decide."""
    options = known_options(cell)
    return {
        "model.fingerprint": cell.model.fingerprint,
        "strategy": cell.strategy,
        **{f"strategy.{name}": value for name, value in (dict(cell.options) if options is None else options).items()},
        "task": cell.task.name,
        **{f"task.{name}": value for name, value in cell.task.options},
        "limit": cell.limit,
        "seed": cell.seed,
        "dtype": cell.dtype,
        **{f"version.{name}": value for name, value in cell.versions},
    }


def factor(cell: Cell) -> float | None:
    """By how much the cell's strategy stretches: its factor as given, else length / trained length and at least 1; None
    where it has no factor, or the model is gone that has the trained length."""
    options = known_options(cell)
    if options is None or "factor" not in options:
        return None
    try:
        return max(1.0, cell.length / trained_length(cell)) if options["factor"] is None else float(options["factor"])
    except Refusal:
        return None


def _params(cell: Cell, result: Result) -> dict[str, Any]:
    stretched = factor(cell)
    return {
        "model": cell.model.name,
        "model.path": cell.model.path,
        "length": cell.length,
        **({} if stretched is None else {"factor": f"{stretched:g}"}),
        **choice_params(cell),
        **{name: value for name, value in result.provenance.items() if name not in ("code", "command", "at")},
    }


def _metrics(cell: Cell, result: Result) -> Iterator[tuple[str, float, int]]:
    for name, value in result.metrics.items():
        yield f"{cell.task.name}/{name}", value, 0
    for name, points in result.series.items():
        if name.startswith("system/"):  # by seconds; MLflow's page has a tab for them
            yield from ((name, y, round(x)) for x, y in points)
            continue
        for x, y in points:
            # Steps are whole: positions are, and a share of the length becomes per cent.
            yield f"{cell.task.name}/{name}", y, round(x if x > 1 else 100 * x)
    for name, value in result.cost.items():
        yield name, value, 0
    yield "length", cell.length, 0


def frequencies(cell: Cell) -> dict[str, Any]:
    """What the strategy did to every rotated pair: before, after, and the stretch between them; and to attention."""
    _, _, geometries = geometry_for(cell.model)
    by_layers = {}
    for layers, plan in cell.plans:
        trained = geometries[layers_of(layers)[0]].native(cell.length).inv_freq
        by_layers[layers] = {
            "inv_freq": list(plan.inv_freq),
            "trained_inv_freq": list(trained),
            "stretch": [
                before / after if after else None for before, after in zip(trained, plan.inv_freq, strict=True)
            ],
            "attention_factor": plan.attention_factor,
            **plan.changes(),
        }
    return by_layers
