"""Sweeps -> MLflow: a run for the sweep, below it one for every cell, and beside it a curve a strategy."""

from __future__ import annotations

import getpass
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.choices.sweep import Sweep, full_options, geometry_for, patched_config
from pipelines.records import provenance
from pipelines.records.cells import Cell, Refusal, Result, digest_of
from pipelines.records.results import Store
from pipelines.report import tables
from pipelines.track.database import closing, connect, experiment_id, found, milliseconds, now, process
from rope.geometry import layers_of
from rope.pairwise import Pairwise

CURVE_COSTS = ("seconds", "tokens_per_second", "peak_bytes")
"""What of a cell's cost is drawn by length, beside its metrics."""


class Tracker:
    """Writes one sweep into MLflow."""

    def __init__(self, client: Any, sweep: Sweep, store: Store) -> None:
        self.client, self.sweep, self.store = client, sweep, store
        self.experiment_id = experiment_id(client, sweep.experiment, store)
        tags = {"ropewalk.kind": "sweep", "mlflow.note.content": f"`{sweep.command}`"}
        self.parent = self._start(sweep.label, tags, sweep.code, milliseconds(sweep.created))

    @classmethod
    @contextmanager
    def open(cls, sweep: Sweep, store: Store, client: Any = None) -> Iterator[Tracker]:
        """A tracker of the sweep, whose run ends with the block: FINISHED, or FAILED or KILLED where it raises."""
        tracker = cls(client or connect(store), sweep, store)
        with closing(tracker.client, tracker.parent):
            yield tracker

    def record(self, cells: Sequence[Cell], result: Result, *, cached: bool) -> None:
        """One result as a run below the sweep's; where several strategies come to its plan, a run for each."""
        for number, cell in enumerate(cells):
            self._record(cell, result, cached=cached or number > 0)

    def _record(self, cell: Cell, result: Result, *, cached: bool) -> None:
        from mlflow.entities import Metric, Param

        command = f"`{self.sweep.command_of(cell)}`"
        tags = {
            "ropewalk.kind": "cell",
            "mlflow.parentRunId": self.parent,
            "cell_id": cell.id,
            "status": result.status,
            "cached": str(cached).lower(),
            "device": str(result.provenance.get("device", cell.device)),
            "mlflow.note.content": f"{command}\n\n```\n{result.error}\n```" if result.error else command,
        }
        # Its times are those of the computing, whenever that was: the UI shows how long a cell took.
        end = milliseconds(result.provenance["at"]) if "at" in result.provenance else now()
        start = end - round(1000 * result.cost.get("seconds", 0.0))
        run = self._start(cell.label, tags, result.provenance.get("code", {}), start)
        metrics = [Metric(name, value, end, step) for name, value, step in _metrics(cell, result)]
        params = [Param(name, str(value)) for name, value in _params(cell, result).items()]
        self.client.log_batch(run, metrics=metrics, params=params)
        self._log_data(run, cell, result)
        self._log_config(run, cell)
        self.client.log_artifact(run, str(self.store.cell(cell.id) / "result.json"))
        self.client.set_terminated(run, "FINISHED" if result.finished else "FAILED", end)

    def conclude(self, results: Sequence[tuple[Cell, Result]], compared: Sequence[tables.Shown]) -> None:
        """The sweep's own: how it ended, its cells as one file, its tables and its figures; and the curves.

        compared: the tables of these results.
        """
        counts = tables.counts([result for _, result in results])
        for status, count in counts.items():
            self.client.log_metric(self.parent, f"cells/{status}", count)
        codes = provenance.code_labels(result.provenance for _, result in tables.distinct_rows(results))
        if len(codes) > 1:
            self.client.set_tag(
                self.parent, "mixed_code", "; ".join(f"{label}: {n} cells" for label, n in codes.items())
            )
        self.client.log_dict(self.parent, self.sweep.spec(), "sweep.json")
        self.client.log_text(self.parent, tables.markdown(compared), "tables.md")
        with tempfile.TemporaryDirectory() as folder:
            for figure in tables.figures(results, Path(folder)):
                self.client.log_artifact(self.parent, str(figure), "figures")
        for cells in _by_curve(results).values():
            self._draw(cells)

    def _draw(self, cells: Sequence[Cell]) -> None:
        """The run that holds one strategy's metrics by length: its points of all sweeps, these cells' among them."""
        from mlflow.entities import Metric

        told = _curve_of(cells[0])
        curve_id = digest_of(told)[:12]
        asked = {str(cell.length): cell.id for cell in cells}
        drawn = self.client.search_runs([self.experiment_id], f"tags.curve_id = '{curve_id}'")
        before = [json.loads(run.data.tags["cells"]) for run in drawn]
        points = {length: cell_id for one in [*before, asked] for length, cell_id in one.items()}
        results = self.store.recall(points.values())
        rows = [
            Metric(name, value, now(), int(length))
            for length, cell_id in sorted(points.items(), key=lambda point: int(point[0]))
            if cell_id in results
            for name, value in _curve_metrics(cells[0].task.name, results[cell_id])
        ]
        # Drawn as a whole and anew: a step that is written twice stays in the chart twice; and the UI's chart shows the
        # ten newest runs, which are to be the curves of the grid that was asked for last.
        for run in drawn:
            self.client.delete_run(run.info.run_id)
        tags = {"ropewalk.kind": "curve", "curve_id": curve_id, "cells": json.dumps(points)}
        note = {"mlflow.note.content": "Score against length: each metric's step is the length in tokens."}
        name = f"{cells[0].strategy_label} {cells[0].task.name}, {cells[0].model.name}"
        run = self._start(name, {**tags, **note})
        self.client.log_batch(run, metrics=rows, params=_as_params({**told, "model": cells[0].model.name}))
        self.client.set_terminated(run, "FINISHED")

    def _start(
        self, name: str, tags: Mapping[str, str], code: Mapping[str, Any] | None = None, at: int | None = None
    ) -> str:
        code = code if code is not None else provenance.code()
        about = {
            "mlflow.user": getpass.getuser(),
            "mlflow.source.name": "ropewalk",
            "mlflow.source.git.commit": str(code.get("commit", "")),
            "git_dirty": str(code.get("dirty", "")).lower(),
            "git_difference": str(code.get("difference", "")),
            "sweep_id": self.sweep.id,
            "process": process(),
        }
        told = {key: value for key, value in {**about, **tags}.items() if value}
        run = self.client.create_run(self.experiment_id, run_name=name, tags=told, start_time=at or now())
        return str(run.info.run_id)

    def _log_data(self, run: str, cell: Cell, result: Result) -> None:
        from mlflow.entities import Dataset, DatasetInput

        options = dict(cell.task.options)
        source = str(options.get("text", cell.task.name))
        data = Dataset(
            name=f"{cell.task.name}@{cell.length}",
            digest=result.digest or cell.data or "unknown",
            source_type="text",
            source=source,
        )
        self.client.log_inputs(run, datasets=[DatasetInput(data)])

    def _log_config(self, run: str, cell: Cell) -> None:
        try:
            self.client.log_dict(run, frequencies(cell), "inv_freq.json")
            self.client.log_dict(run, patched_config(cell), "patched_config.json")
        except Refusal as reason:  # a result of a model that is no longer there
            self.client.set_tag(run, "patched_config", str(reason))
        except ValueError as error:
            self.client.set_tag(run, "patched_config", str(error))


def recorded(client: Any, sweep: Sweep) -> int | None:
    """How many of a sweep's cells MLflow has; None: the sweep is running."""
    runs = _runs_of(client, sweep)
    if any(run.info.status == "RUNNING" for run in runs):
        return None
    parents = {run.info.run_id for run in runs if run.data.tags["ropewalk.kind"] == "sweep"}
    return len([run for run in runs if run.data.tags.get("mlflow.parentRunId") in parents])


def forget(client: Any, sweep: Sweep) -> None:
    """Take a sweep and its cells out of MLflow; its curves hold other sweeps' points and stay."""
    for run in _runs_of(client, sweep):
        client.delete_run(run.info.run_id)


def _runs_of(client: Any, sweep: Sweep) -> list[Any]:
    return found(client, sweep.experiment, f"tags.sweep_id = '{sweep.id}' AND tags.`ropewalk.kind` != 'curve'")


def _curve_of(cell: Cell) -> dict[str, Any]:
    """All that one curve has in common: everything of a cell but its length and the plan for it."""
    return {
        "model.fingerprint": cell.model.fingerprint,
        "strategy": cell.strategy,
        **{f"strategy.{name}": value for name, value in full_options(cell).items()},
        "task": cell.task.name,
        **{f"task.{name}": value for name, value in cell.task.options},
        "data": cell.data,
        "limit": cell.limit,
        "seed": cell.seed,
        "dtype": cell.dtype,
        "device": cell.device,
        **{f"version.{name}": value for name, value in cell.versions},
    }


def _curve_metrics(task: str, result: Result) -> Iterator[tuple[str, float]]:
    # The UI makes a section of what stands before the slash; and one chart should not hold a cell's own metric,
    # which has no step, beside the curve's.
    for name, value in result.metrics.items():
        if not name.endswith("_stderr"):
            yield f"{task} by length/{name}", value
    for name in CURVE_COSTS:
        if name in result.cost:
            yield f"{task} by length/{name}", result.cost[name]


def _by_curve(results: Iterable[tuple[Cell, Result]]) -> dict[str, list[Cell]]:
    curves: dict[str, list[Cell]] = {}
    for cell, result in results:
        if result.metrics:
            curves.setdefault(digest_of(_curve_of(cell)), []).append(cell)
    return curves


def _as_params(told: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, str(value)) for name, value in told.items()]


def _metrics(cell: Cell, result: Result) -> Iterator[tuple[str, float, int]]:
    for name, value in result.metrics.items():
        yield f"{cell.task.name}/{name}", value, 0
    for name, row in result.series.items():
        for x, y in row:
            # Steps are whole: positions are, and a share of the length becomes per cent.
            yield f"{cell.task.name}/{name}", y, round(x if x > 1 else 100 * x)
    for name, value in result.cost.items():
        yield name, value, 0
    yield "length", cell.length, 0


def _params(cell: Cell, result: Result) -> dict[str, Any]:
    versions = {k: v for k, v in result.provenance.items() if k not in ("code", "command", "at")}
    return {
        "model": cell.model.name,
        "model.path": cell.model.path,
        "model.fingerprint": cell.model.fingerprint,
        "strategy": cell.strategy,
        **{f"strategy.{name}": value for name, value in full_options(cell).items()},
        "length": cell.length,
        "task": cell.task.name,
        **{f"task.{name}": value for name, value in cell.task.options},
        "limit": cell.limit,
        "seed": cell.seed,
        "dtype": cell.dtype,
        **versions,
        **{f"version.{name}": value for name, value in cell.versions},
    }


def frequencies(cell: Cell) -> dict[str, Any]:
    """What the strategy did to every rotated pair: before, after, and the stretch between them; and to attention."""
    _, _, geometries = geometry_for(cell.model)
    told = {}
    for layers, plan in cell.plans:
        trained = geometries[layers_of(layers)[0]].native(cell.length).inv_freq
        told[layers] = {
            "inv_freq": list(plan.inv_freq),
            "trained_inv_freq": list(trained),
            "stretch": [
                before / after if after else None for before, after in zip(trained, plan.inv_freq, strict=True)
            ],
            "attention_factor": plan.attention_factor,
            **(plan.changes() if isinstance(plan, Pairwise) else {}),
        }
    return told
