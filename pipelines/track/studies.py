"""Studies -> MLflow: a run for the search and, below it, one for every trial, with importances and the verdict."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.records.results import Store
from pipelines.track.database import Run, connect, experiment_id, search, start_run, transaction

EXPERIMENT = "tune"


class StudyTracker:
    """Writes one search into MLflow."""

    def __init__(self, client: Any, experiment: str, study: Mapping[str, Any], parent: Run) -> None:
        self.client, self.experiment, self.study, self.parent = client, experiment, study, parent

    @classmethod
    @contextmanager
    def open(cls, store: Store, study: Mapping[str, Any], client: Any = None) -> Iterator[StudyTracker]:
        """The tracker of a study, whose run ends with the block; earlier runs of the study are replaced.

        study: its id, label, command, code and params, as study.json has them.
        """
        client = client or connect(store)
        experiment = experiment_id(client, EXPERIMENT, store)
        for run in runs_of(client, str(study["id"])):
            client.delete_run(run.info.run_id)
        tags = {"ropewalk.kind": "study", **_tags(study)}
        with start_run(client, experiment, str(study["label"]), tags, code=study["code"]) as parent:
            parent.log(study["params"])
            yield cls(client, experiment, study, parent)

    def record(self, trial: Mapping[str, Any], best: float | None) -> None:
        """One trial, as Trial.spec() has it: `tuning` by documents as its step; best: of all trials so far."""
        tags = {
            **_tags(self.study),
            "ropewalk.kind": "trial",
            "mlflow.parentRunId": self.parent.id,
            "status": str(trial["status"]),
            "cells": " ".join(trial["cells"]),
            "mlflow.note.content": str(trial["error"]),
        }
        metrics = [("tuning", value, documents) for documents, value in trial["rungs"]]
        metrics += [("cost", trial["cost"], 0)] if trial["cost"] is not None else []
        name = f"trial {trial['number']}: {trial['status']}"
        with transaction(self.client):
            with start_run(self.client, self.experiment, name, tags, code=self.study["code"]) as run:
                run.log(trial["values"], metrics)
                run.status = "FAILED" if trial["status"] == "failed" else "FINISHED"
            if best is not None:
                self.parent.log(metrics=[("best", best, int(trial["number"]))])

    def conclude(self, study: Mapping[str, Any], folder: Path) -> None:
        """The verdict as the study's note, importances and reported numbers as metrics, and all files of the folder."""
        note = [f"`{study['command']}`", *study["verdict"]["sentences"], f"`{study['confirm']}`"]
        self.parent.tag("mlflow.note.content", "\n\n".join(note))
        metrics = [
            (f"report at {row['length']}/{name} {_allowed(row['label'])}"[:250], value, 0)
            for row in study["verdict"]["rows"]
            for name, value in row["metrics"].items()
            if name in ("nll", "ppl", "acc")
        ]
        metrics += [(f"importance/{name}", value, 0) for name, value in study["importances"].items()]
        self.parent.log(metrics=metrics)
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            self.parent.files([path], "figures" if path.suffix == ".png" else None)


def runs_of(client: Any, study_id: str) -> list[Any]:
    """The runs of a study that MLflow has."""
    return search(client, EXPERIMENT, f"tags.study_id = '{study_id}'")


def _tags(study: Mapping[str, Any]) -> dict[str, str]:
    return {"study_id": str(study["id"]), "mlflow.note.content": f"`{study['command']}`"}


def _allowed(name: str) -> str:
    """The name with an underscore for every character that MLflow does not take in a metric's name."""
    return re.sub(r"[^\w\-. /]", "_", name)
