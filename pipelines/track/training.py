"""Training -> MLflow."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.records.results import Store
from pipelines.track.database import connect, experiment_id, now, process


class Training:
    """Writes one training into MLflow, its curves by step; a training that goes on goes on in its run."""

    def __init__(self, store: Store, experiment: str, name: str, params: Mapping[str, Any], run: str | None) -> None:
        from mlflow.entities import Param

        self.client = connect(store)
        if run is None:
            tags = {"ropewalk.kind": "train", "mlflow.user": getpass.getuser(), "mlflow.source.name": "ropewalk"}
            made = self.client.create_run(experiment_id(self.client, experiment, store), run_name=name, tags=tags)
            run = str(made.info.run_id)
            self.client.log_batch(run, params=[Param(key, str(value)[:500]) for key, value in params.items()])
        else:
            self.client.update_run(run, status="RUNNING")
        self.client.set_tag(run, "process", process())
        self.run = run

    def log(self, rows: Sequence[tuple[str, float, int]]) -> None:
        """(metric, value, step), ..."""
        from mlflow.entities import Metric

        at = now()
        for start in range(0, len(rows), 1000):  # as many as MLflow takes at once
            part = [Metric(name, value, at, step) for name, value, step in rows[start : start + 1000]]
            self.client.log_batch(self.run, metrics=part)

    def close(self, file: Path, *, finished: bool) -> None:
        self.client.log_artifact(self.run, str(file))
        self.client.set_terminated(self.run, "FINISHED" if finished else "FAILED")
