"""Studies -> MLflow: a run for the search, below it one for every trial, with what mattered and what was found."""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.records.results import Store
from pipelines.track.database import closing, connect, experiment_id, found, now, process

EXPERIMENT = "tune"


class Study:
    """Writes one search into MLflow. Of a search that goes on after a kill, what was there before is written anew."""

    def __init__(self, client: Any, store: Store, study: Mapping[str, Any]) -> None:
        """study: its id, label, command, code and params, as study.json has them."""
        self.client, self.study = client, study
        self.experiment = experiment_id(client, EXPERIMENT, store)
        for run in runs_of(client, str(study["id"])):
            client.delete_run(run.info.run_id)
        self.parent = self._start(str(study["label"]), {"ropewalk.kind": "study"})
        self._params(self.parent, study["params"])

    @classmethod
    @contextmanager
    def open(cls, store: Store, study: Mapping[str, Any], client: Any = None) -> Iterator[Study]:
        """A study whose run ends with the block: FINISHED, or FAILED or KILLED where it raises."""
        writer = cls(client or connect(store), store, study)
        with closing(writer.client, writer.parent):
            yield writer

    def record(self, trial: Mapping[str, Any], best: float | None) -> None:
        """One trial, as Trial.spec() has it: `tuning` by documents as its step; best: of all trials so far."""
        from mlflow.entities import Metric

        tags = {"ropewalk.kind": "trial", "mlflow.parentRunId": self.parent, "status": str(trial["status"])}
        tags |= {"cells": " ".join(trial["cells"]), "mlflow.note.content": str(trial["error"])}
        run = self._start(f"trial {trial['number']}: {trial['status']}", tags)
        at = now()
        metrics = [Metric("tuning", value, at, documents) for documents, value in trial["rungs"]]
        metrics += [Metric("cost", trial["cost"], at, 0)] if trial["cost"] is not None else []
        self.client.log_batch(run, metrics=metrics)
        self._params(run, trial["values"])
        self.client.set_terminated(run, "FAILED" if trial["status"] == "failed" else "FINISHED")
        if best is not None:
            self.client.log_metric(self.parent, "best", best, step=int(trial["number"]))

    def conclude(self, study: Mapping[str, Any], folder: Path) -> None:
        """What was found: the verdict as the study's note, importances and reported numbers, and all its files."""
        from mlflow.entities import Metric

        note = [f"`{study['command']}`", *study["verdict"]["sentences"], f"`{study['confirm']}`"]
        self.client.set_tag(self.parent, "mlflow.note.content", "\n\n".join(note))
        rows = study["verdict"]["rows"]
        told = [
            Metric(f"report at {row['length']}/{name} {_safe(row['label'])}"[:250], value, now(), 0)
            for row in rows
            for name, value in row["metrics"].items()
            if name in ("nll", "ppl", "acc")
        ]
        told += [Metric(f"importance/{name}", value, now(), 0) for name, value in study["importances"].items()]
        self.client.log_batch(self.parent, metrics=told)
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            self.client.log_artifact(self.parent, str(file), "figures" if file.suffix == ".png" else None)

    def _start(self, name: str, tags: Mapping[str, str]) -> str:
        code = self.study["code"]
        about = {
            "mlflow.user": getpass.getuser(),
            "mlflow.source.name": "ropewalk",
            "mlflow.source.git.commit": str(code.get("commit", "")),
            "git_dirty": str(code.get("dirty", "")).lower(),
            "study_id": str(self.study["id"]),
            "mlflow.note.content": f"`{self.study['command']}`",
            "process": process(),
        }
        told = {key: value for key, value in {**about, **tags}.items() if value}
        return str(self.client.create_run(self.experiment, run_name=name, tags=told).info.run_id)

    def _params(self, run: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(name, str(value)[:500]) for name, value in params.items()])


def runs_of(client: Any, study_id: str) -> list[Any]:
    """The runs of a study that MLflow has."""
    return found(client, EXPERIMENT, f"tags.study_id = '{study_id}'")


def _safe(name: str) -> str:
    """As MLflow takes a metric's name."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
