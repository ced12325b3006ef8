"""Curves in MLflow: one run a strategy with its metrics by length, over the cells of all sweeps of an experiment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.records.cells import Cell, digest_of
from pipelines.records.results import Store
from pipelines.report import curves
from pipelines.report.statistics import OF_PLANS
from pipelines.track.cell_runs import choice_params
from pipelines.track.database import locked, search, start_run


def curve_id(cell: Cell) -> str:
    """What the cells of one curve have in common, as a digest."""
    return digest_of(_common(cell))[:12]


def draw_curve(client: Any, experiment: str, store: Store, cells: Sequence[Cell], sweep_id: str) -> None:
    """Draw the curve of these cells, of which earlier sweeps may have drawn other lengths. experiment: its id."""
    with locked(store):  # another process may be drawing the same curve
        _draw(client, experiment, store, cells, sweep_id)


def _draw(client: Any, experiment: str, store: Store, cells: Sequence[Cell], sweep_id: str) -> None:
    earlier = client.search_runs([experiment], f"tags.curve_id = '{curve_id(cells[0])}'")
    points = {length: cell_id for run in earlier for length, cell_id in _points(run).items()}
    points |= {str(cell.length): cell.id for cell in cells}
    results = store.recall(points.values())
    # Of cells of other sweeps only id and length are known here, and the length is all that a curve takes of them.
    rows = [
        (replace(cells[0], length=int(length)), results[cell_id])
        for length, cell_id in points.items()
        if cell_id in results
    ]
    # The UI makes a section of what stands before the slash; and one chart should not hold a cell's own metric,
    # which has no step, beside the curve's.
    section, model = f"{cells[0].task.name} by length", cells[0].model.name
    metrics = [(f"{section}/{name}", y, int(x)) for name, curve in curves.by_length(rows).items() for x, y, _ in curve]
    # Drawn as a whole and anew: a step that is written twice stays in the chart twice; and the UI's chart shows the
    # ten newest runs, which should be the curves of the last grid.
    for run in earlier:
        client.delete_run(run.info.run_id)
    tags = {
        "ropewalk.kind": "curve",
        "curve_id": curve_id(cells[0]),
        "sweep_id": sweep_id,
        "cells": json.dumps(points),
        "mlflow.note.content": "Score against length: each metric's step is the length in tokens.",
    }
    name = f"{cells[0].strategy_label} {cells[0].task.name}, {model}"
    with start_run(client, experiment, name, tags) as run:
        run.log({**_common(cells[0]), "model": model}, metrics)


def prune_curves(client: Any, experiment: str, store: Store, cells: Mapping[str, Cell]) -> None:
    """Remove from an experiment's curves the points of cells that no sweep has. cells: those of all sweeps, by id."""
    for run in search(client, experiment, "tags.`ropewalk.kind` = 'curve'"):
        points = _points(run)
        left = {length: cell_id for length, cell_id in points.items() if cell_id in cells}
        some = [cells[cell_id] for cell_id in left.values()]
        if not some or curve_id(some[0]) != run.data.tags["curve_id"]:
            client.delete_run(run.info.run_id)
        elif len(left) < len(points):
            client.set_tag(run.info.run_id, "cells", json.dumps(left))
            draw_curve(client, run.info.experiment_id, store, some, run.data.tags["sweep_id"])


def _points(run: Any) -> dict[str, str]:
    """Length -> cell id, as a curve's run keeps them."""
    points: dict[str, str] = json.loads(run.data.tags["cells"])
    return points


def _common(cell: Cell) -> dict[str, Any]:
    """Everything of a cell but its length and the plan for it."""
    # At the trained length a plan has no regions and crops nothing, and has no version of that.
    without = {f"version.{name}" for name in OF_PLANS}
    params = {name: value for name, value in choice_params(cell).items() if name not in without}
    return {**params, "data": cell.data, "device": cell.device}
