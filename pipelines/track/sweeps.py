"""Sweeps -> MLflow: a run for the sweep, below it one for every cell, and beside it a curve a strategy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.choices.sweep import Sweep
from pipelines.records import provenance
from pipelines.records.cells import Cell, Result
from pipelines.records.results import Store
from pipelines.report import curves, tables
from pipelines.track.cell_runs import CellRun, cell_run
from pipelines.track.curve_runs import curve_id, draw_curve
from pipelines.track.database import Run, connect, experiment_id, milliseconds, now, search, start_run


class Tracker:
    """Writes one sweep into MLflow."""

    def __init__(self, client: Any, experiment: str, sweep: Sweep, store: Store, parent: Run) -> None:
        self.client, self.experiment, self.sweep, self.store, self.parent = client, experiment, sweep, store, parent

    @classmethod
    @contextmanager
    def open(cls, sweep: Sweep, store: Store, client: Any = None) -> Iterator[Tracker]:
        """A tracker of the sweep, whose run ends with the block: FINISHED, or FAILED or KILLED where it raises."""
        client = client or connect(store)
        experiment = experiment_id(client, sweep.experiment, store)
        tags = {"ropewalk.kind": "sweep", "sweep_id": sweep.id, "mlflow.note.content": f"`{sweep.command}`"}
        start = milliseconds(sweep.created)
        with start_run(client, experiment, sweep.label, tags, code=sweep.code, start=start) as parent:
            yield cls(client, experiment, sweep, store, parent)

    def record(self, cells: Sequence[Cell], result: Result, *, cached: bool) -> None:
        """One result as a run below the sweep's; where several strategies come to its plan, a run for each."""
        self.write([cell_run(cell, result) for cell in cells], cached=cached)

    def write(self, runs: Iterable[CellRun], *, cached: bool) -> None:
        """Runs of one result; only the first of them can have been computed for this sweep."""
        for number, run in enumerate(runs):
            self._write(run, cached=cached or number > 0)

    def _write(self, content: CellRun, *, cached: bool) -> None:
        from mlflow.entities import Dataset, DatasetInput

        cell, result = content.cell, content.result
        command = f"`{self.sweep.command_of(cell)}`"
        tags = {
            "ropewalk.kind": "cell",
            "sweep_id": self.sweep.id,
            "mlflow.parentRunId": self.parent.id,
            "cell_id": cell.id,
            "status": result.status,
            "cached": str(cached).lower(),
            "device": str(result.provenance.get("device", cell.device)),
            "patched_config": content.no_config,
            "mlflow.note.content": f"{command}\n\n```\n{result.error}\n```" if result.error else command,
        }
        # Its times are those of the computing, whenever that was: the UI shows how long a cell took.
        end = milliseconds(result.provenance["at"]) if "at" in result.provenance else now()
        start = end - round(1000 * result.cost.get("seconds", 0.0))
        code = result.provenance.get("code", {})
        with start_run(self.client, self.experiment, cell.label, tags, code=code, start=start) as run:
            run.log(content.params, content.metrics, at=end)
            data = Dataset(
                name=f"{cell.task.name}@{cell.length}",
                digest=result.digest or cell.data or "unknown",
                source_type="text",
                source=str(dict(cell.task.options).get("text", cell.task.name)),
            )
            self.client.log_inputs(run.id, datasets=[DatasetInput(data)])
            for name, body in content.files.items():
                run.json(body, name)
            run.files([self.store.cell(cell.id) / "result.json"])
            run.status, run.end = "FINISHED" if result.finished else "FAILED", end

    def conclude(self, rows: curves.Results, shown: Iterable[tables.ScoreTable]) -> None:
        """The sweep's own: how it ended, its cells as one file, its tables and its figures; and the curves."""
        counts = tables.counts([result for _, result in rows])
        self.parent.log(metrics=[(f"cells/{status}", count, 0) for status, count in counts.items()])
        codes = provenance.code_labels(result.provenance for _, result in tables.distinct_rows(rows))
        if len(codes) > 1:
            self.parent.tag("mixed_code", "; ".join(f"{label}: {n} cells" for label, n in codes.items()))
        self.parent.json(self.sweep.spec(), "sweep.json")
        self.parent.text(tables.markdown(shown), "tables.md")
        with tempfile.TemporaryDirectory() as folder:
            self.parent.files(tables.figures(rows, Path(folder)), "figures")
        measured = [(cell, result) for cell, result in rows if result.metrics]
        for curve in curves.grouped(measured, curve_id).values():
            cells = [cell for cell, _ in curve]
            draw_curve(self.client, self.experiment, self.store, cells, self.sweep.id)


def recorded(client: Any, sweep: Sweep) -> int | None:
    """How many of a sweep's cells MLflow has; None: the sweep is running."""
    runs = _runs_of(client, sweep.experiment, sweep.id)
    if any(run.info.status == "RUNNING" for run in runs):
        return None
    parents = {run.info.run_id for run in runs if run.data.tags["ropewalk.kind"] == "sweep"}
    return len([run for run in runs if run.data.tags.get("mlflow.parentRunId") in parents])


def forget(client: Any, experiment: str, sweep_id: str) -> None:
    """Delete a sweep and its cells from MLflow; its curves hold other sweeps' points and stay."""
    for run in _runs_of(client, experiment, sweep_id):
        client.delete_run(run.info.run_id)


def _runs_of(client: Any, experiment: str, sweep_id: str) -> list[Any]:
    return search(client, experiment, f"tags.sweep_id = '{sweep_id}' AND tags.`ropewalk.kind` != 'curve'")
