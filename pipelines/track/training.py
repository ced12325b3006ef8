"""Training -> MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipelines.records.results import Store
from pipelines.track.database import Metrics, connect, experiment_id, start_run
from pipelines.track.recorder import in_a_line


class Training:
    """One training as a run, its curves by step.

    run: the id of its run; given one, the training goes on in it; None where MLflow could not be reached at the start.
    lost: why MLflow does not have all of it, in a line; "" as long as it does. After a failure nothing more is written:
    train.json has everything, and a training of days does not end with its record.
    """

    def __init__(self, store: Store, experiment: str, name: str, params: Mapping[str, Any], run: str | None) -> None:
        self.run, self.lost = run, ""
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

    def close(self, file: Path, *, finished: bool) -> None:
        """End the run, with the training's record as a file of it."""

        def end() -> None:
            self._run.files([file])
            self._run.status = "FINISHED" if finished else "FAILED"
            self._end.close()

        self._try(end)

    def _try(self, write: Callable[[], None]) -> None:
        if self.lost:
            return
        try:
            write()
        except Exception as error:
            self.lost = in_a_line(error)
