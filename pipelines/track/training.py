"""Training -> MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipelines.records.results import Store
from pipelines.track.database import Metrics, connect, experiment_id, start_run


class Training:
    """One training as a run, its curves by step. run: the id of its run; given one, the training goes on in it."""

    def __init__(self, store: Store, experiment: str, name: str, params: Mapping[str, Any], run: str | None) -> None:
        client = connect(store)
        experiment = experiment_id(client, experiment, store)
        self._end = ExitStack()
        self._run = self._end.enter_context(start_run(client, experiment, name, {"ropewalk.kind": "train"}, resume=run))
        self.run = self._run.id
        if run is None:
            self._run.log(params)

    def log(self, metrics: Metrics) -> None:
        self._run.log(metrics=metrics)

    def close(self, file: Path, *, finished: bool) -> None:
        """End the run, with the training's record as a file of it."""
        self._run.files([file])
        self._run.status = "FINISHED" if finished else "FAILED"
        self._end.close()
