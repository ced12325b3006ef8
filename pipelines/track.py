"""Results -> MLflow: a run for the sweep, and below it one for every cell. Owns mlflow.

Only the driver writes, and it makes the database before any worker starts: two processes that first touch a new one
race each other's migrations.
"""

from __future__ import annotations

import getpass
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines import report
from pipelines.cells import Cell, Result
from pipelines.results import Store
from pipelines.sweep import Sweep, code_version, full_options, geometry_for, patched_config
from rope.pairwise import Pairwise

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def tracking_uri(store: Store) -> str:
    """The user's own MLFLOW_TRACKING_URI where set, else the database in the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.root / 'mlflow.db'}"


class Tracker:
    """Writes one sweep into MLflow."""

    def __init__(self, client: Any, sweep: Sweep, store: Store, experiment_id: str) -> None:
        self.client, self.sweep, self.store, self.experiment_id = client, sweep, store, experiment_id
        note = f"`{sweep.command}`"
        self.parent = self._start(sweep.label, {"ropewalk.kind": "sweep", "mlflow.note.content": note})

    @classmethod
    @contextmanager
    def open(cls, sweep: Sweep, store: Store) -> Iterator[Tracker]:
        """A tracker of the sweep, whose run ends with the block: FINISHED, or FAILED or KILLED where it raises."""
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells every table that it creates
        store.root.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri(store))
        tracker = cls(client, sweep, store, _experiment(client, sweep.experiment, store))
        try:
            yield tracker
        except BaseException as error:
            client.set_terminated(tracker.parent, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        client.set_terminated(tracker.parent, "FINISHED")

    def record(self, cells: Sequence[Cell], result: Result, *, cached: bool) -> None:
        """One result as a run below the sweep's; where several strategies come to its plan, a run for each."""
        for number, cell in enumerate(cells):
            self._record(cell, result, cached=cached or number > 0)

    def _record(self, cell: Cell, result: Result, *, cached: bool) -> None:
        from mlflow.entities import Metric, Param

        tags = {
            "ropewalk.kind": "cell",
            "mlflow.parentRunId": self.parent,
            "cell_id": cell.id,
            "status": result.status,
            "cached": str(cached).lower(),
            "device": str(result.provenance.get("device", cell.device)),
            "mlflow.note.content": result.error or f"`{self.sweep.command}`",
        }
        run = self._start(cell.label, tags, result.provenance.get("code"))
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value, step in _metrics(cell, result)]
        params = [Param(name, str(value)) for name, value in _params(cell, result).items()]
        self.client.log_batch(run, metrics=metrics, params=params)
        self._log_data(run, cell, result)
        try:
            self.client.log_dict(run, patched_config(cell), "patched_config.json")
        except ValueError as error:
            self.client.set_tag(run, "patched_config", str(error))
        self.client.log_dict(run, _frequencies(cell), "inv_freq.json")
        self.client.log_artifact(run, str(self.store.cell(cell.id) / "result.json"))
        self.client.set_terminated(run, "FINISHED" if result.finished else "FAILED")

    def conclude(self, results: Sequence[tuple[Cell, Result]]) -> None:
        """The sweep's own: how it ended, its cells as one file, its tables and its figures."""
        counts = report.counts([result for _, result in results])
        for status, count in counts.items():
            self.client.log_metric(self.parent, f"cells/{status}", count)
        self.client.log_dict(self.parent, self.sweep.spec(), "sweep.json")
        self.client.log_text(self.parent, report.markdown(results), "tables.md")
        with tempfile.TemporaryDirectory() as folder:
            for figure in report.figures(results, Path(folder)):
                self.client.log_artifact(self.parent, str(figure), "figures")

    def _start(self, name: str, tags: Mapping[str, str], code: Mapping[str, Any] | None = None) -> str:
        code = code if code is not None else code_version()
        about = {
            "mlflow.user": getpass.getuser(),
            "mlflow.source.name": "ropewalk",
            "mlflow.source.git.commit": str(code.get("commit", "")),
            "git_dirty": str(code.get("dirty", "")).lower(),
            "sweep_id": self.sweep.id,
        }
        run = self.client.create_run(self.experiment_id, run_name=name, tags={**about, **tags})
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


class Training:
    """Writes one training into MLflow, its curves by step; a training that goes on goes on in its run."""

    def __init__(self, store: Store, experiment: str, name: str, params: Mapping[str, Any], run: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        store.root.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(tracking_uri(store))
        if run is None:
            tags = {"ropewalk.kind": "train", "mlflow.user": getpass.getuser(), "mlflow.source.name": "ropewalk"}
            made = self.client.create_run(_experiment(self.client, experiment, store), run_name=name, tags=tags)
            run = str(made.info.run_id)
            self.client.log_batch(run, params=[Param(key, str(value)[:500]) for key, value in params.items()])
        self.run = run

    def log(self, rows: Sequence[tuple[str, float, int]]) -> None:
        """(metric, value, step), ..."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for start in range(0, len(rows), 1000):  # as many as MLflow takes at once
            part = [Metric(name, value, now, step) for name, value, step in rows[start : start + 1000]]
            self.client.log_batch(self.run, metrics=part)

    def close(self, file: Path, *, finished: bool) -> None:
        self.client.log_artifact(self.run, str(file))
        self.client.set_terminated(self.run, "FINISHED" if finished else "FAILED")


def _experiment(client: Any, name: str, store: Store) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # A server of the user's has a place of its own for artifacts.
    local = tracking_uri(store).startswith("sqlite")
    return str(client.create_experiment(name, artifact_location=str(store.root / "artifacts") if local else None))


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
    versions = {k: v for k, v in result.provenance.items() if k != "code"}
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


def _frequencies(cell: Cell) -> dict[str, Any]:
    """What the strategy did to every rotated pair: before, after, and the stretch between them; and to attention."""
    _, _, geometries = geometry_for(cell.model)
    told = {}
    for layers, plan in cell.plans:
        trained = geometries[layers].native(cell.length).inv_freq
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
