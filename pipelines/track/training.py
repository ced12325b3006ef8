"""Training -> MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipelines.records.results import Store
from pipelines.track.database import Metrics, connect, experiment_id, start_run
from pipelines.track.recorder import in_a_line, unrecorded


class Training:
    """One training as a run, its curves by step.

    run: the id of its run; given one, the training goes on in it; None where MLflow could not be reached at the start.
    After a failure nothing more is written, which is said once, with `record` as where all of it is: a training of days
    does not end with its run in MLflow.
    """

    def __init__(
        self, store: Store, experiment: str, name: str, params: Mapping[str, Any], run: str | None, record: Path
    ) -> None:
        self.run, self.record, self._lost = run, record, False
        self._end = ExitStack()

        def start() -> None:
            client = connect(store)
            number = experiment_id(client, experiment, store)
            opened = start_run(client, number, name, {"ropewalk.kind": "train"}, resume=run)
            self._run = self._end.enter_context(opened)
            self.run = self._run.id
            if run is None:
                self._run.log(params)

        self._try(start)

    def log(self, metrics: Metrics) -> None:
        self._try(lambda: self._run.log(metrics=metrics))

    def close(self, *, finished: bool) -> None:
        """End the run, with the training's record as a file of it."""

        def end() -> None:
            self._run.files([self.record])
            self._run.status = "FINISHED" if finished else "FAILED"
            self._end.close()

        self._try(end)

    def _try(self, write: Callable[[], None]) -> None:
        if self._lost:
            return
        try:
            write()
        except Exception as error:
            self._lost = True
            print(unrecorded(in_a_line(error), f"{self.record} has all of it"), flush=True)
