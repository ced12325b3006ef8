"""Curves in MLflow: one run a strategy with its scores by length, over the cells of every sweep of the store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.records.cells import Cell, Result, digest_of
from pipelines.records.results import Store
from pipelines.report import curves, palette
from pipelines.report.statistics import OF_PLANS
from pipelines.track.cell_runs import choice_params
from pipelines.track.database import has_own_database, locked, pages, search, start_run, transaction
from pipelines.track.views import GAIN, section

IS_CURVE = "tags.`ropewalk.kind` = 'curve'"

Gains = Mapping[tuple[str, str, str], Mapping[int, float]]
"""(model, task, strategy with its options) -> gain over cropping by length."""


def curve_id(cell: Cell) -> str:
    """What the cells of one curve have in common, as a digest."""
    return digest_of(_common(cell))[:12]


@dataclass
class _Curve:
    """A curve as it is to be drawn. cell: one of its cells. points, gains: of every length, as its run's tags keep
    them: length -> cell id, and -> gain over cropping."""

    cell: Cell
    points: dict[str, str] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)


def draw_curves(
    client: Any, experiment: str, store: Store, rows: curves.Results, sweep_id: str, gains: Gains | None = None
) -> None:
    """Draw the curves of these results, with the lengths that earlier sweeps measured, in this experiment (its id) and
    wherever else they are drawn. A curve that is drawn as it would be is left as it is."""
    results = {cell.id: result for cell, result in rows}
    with locked(store):  # another process may be drawing the same curves
        earlier: dict[str, list[Any]] = {}
        for run in pages(client, _experiments(client, experiment), IS_CURVE):
            earlier.setdefault(run.data.tags["curve_id"], []).append(run)
        for key, group in curves.grouped(rows, curve_id).items():
            cells = [cell for cell, _ in group]
            drawn = earlier.get(key, [])
            curve = _Curve(cells[0])
            for run in drawn:
                curve.points |= _points(run)
                curve.gains |= json.loads(run.data.tags.get("gains", "{}"))
            curve.points |= {str(cell.length): cell.id for cell in cells}
            label = (cells[0].model.name, cells[0].task.name, cells[0].strategy_label)
            curve.gains |= {str(length): gain for length, gain in (gains or {}).get(label, {}).items()}
            for place in dict.fromkeys([experiment, *(run.info.experiment_id for run in drawn)]):
                there = [run for run in drawn if run.info.experiment_id == place]
                _draw(client, place, store, curve, results, sweep_id, there)


def _experiments(client: Any, experiment: str) -> list[str]:
    """Where a curve may be drawn: on a server of the user's in this experiment alone, as others may have results that
    this store lacks."""
    everywhere = [known.experiment_id for known in client.search_experiments()] if has_own_database() else []
    return list(dict.fromkeys([experiment, *everywhere]))


def _draw(
    client: Any,
    experiment: str,
    store: Store,
    curve: _Curve,
    known: Mapping[str, Result],
    sweep_id: str,
    drawn: Iterable[Any],
) -> None:
    """drawn: the runs of this curve in this experiment. known: results that need not be read again."""
    cell = curve.cell
    results = {**known, **store.recall(set(curve.points.values()) - set(known))}
    # Of cells of other sweeps only id and length are known here, and the length is all that a curve takes of them.
    rows = [
        (replace(cell, length=int(length)), results[cell_id])
        for length, cell_id in curve.points.items()
        if cell_id in results
    ]
    # One chart should not hold a cell's own metric, which has no step, beside the curve's.
    name = section(cell.task.name)
    metrics = [(f"{name}/{key}", y, int(x)) for key, line in curves.by_length(rows).items() for x, y, _ in line]
    lengths = {str(row.length) for row, _ in rows}
    metrics += [(f"{name}/{GAIN}", gain, int(x)) for x, gain in curve.gains.items() if x in lengths]
    params = {**_common(cell), "model": cell.model.name}
    tags = {
        "ropewalk.kind": "curve",
        "curve_id": curve_id(cell),
        "strategy_label": cell.strategy_label,
        "cells": json.dumps(dict(sorted(curve.points.items(), key=lambda point: int(point[0])))),
        "gains": json.dumps(curve.gains),
        "mlflow.note.content": "Score against length: each metric's step is the length in tokens.",
    }
    content = {**tags, "drawn": digest_of([params, sorted(metrics)])}
    runs = list(drawn)
    if len(runs) == 1 and runs[0].data.tags.get("drawn") == content["drawn"]:
        if runs[0].data.tags["sweep_id"] != sweep_id:
            client.set_tag(runs[0].info.run_id, "sweep_id", sweep_id)
        return
    # Drawn as a whole and anew: a step that is written twice stays in the chart twice.
    tags = {**content, "sweep_id": sweep_id, "mlflow.runColor": palette.style(cell.strategy).colour}
    with transaction(client):
        for run in runs:
            client.delete_run(run.info.run_id)
        with start_run(client, experiment, f"{cell.strategy_label} {cell.task.name}", tags) as run:
            run.log(params, metrics)


def prune_curves(client: Any, experiment: str, store: Store, cells: Mapping[str, Cell]) -> None:
    """Remove from an experiment's curves the points of cells that no sweep has. cells: those of all sweeps, by id."""
    for run in search(client, experiment, IS_CURVE):
        points = _points(run)
        left = {length: cell_id for length, cell_id in points.items() if cell_id in cells}
        some = [cells[cell_id] for cell_id in left.values()]
        if not some or curve_id(some[0]) != run.data.tags["curve_id"]:
            client.delete_run(run.info.run_id)
        elif len(left) < len(points):
            gains = json.loads(run.data.tags.get("gains", "{}"))
            curve = _Curve(some[0], left, {length: gain for length, gain in gains.items() if length in left})
            with locked(store):
                _draw(client, run.info.experiment_id, store, curve, {}, run.data.tags["sweep_id"], [run])


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
