"""The doctor's examinations -> MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.records.results import Store
from pipelines.track.database import Metrics, connect, experiment_id, start_run

EXPERIMENT = "doctor"


def record_examination(
    store: Store,
    name: str,
    params: Mapping[str, Any],
    metrics: Metrics,
    body: Mapping[str, Any],
    figures: Sequence[Path],
    text: str,
) -> str:
    """One examination as a run; returns the run's id.

    body: everything measured, as JSON. text: the report as a terminal shows it.
    """
    client = connect(store)
    tags = {"ropewalk.kind": "doctor", "mlflow.note.content": f"```\n{text}\n```"}
    with start_run(client, experiment_id(client, EXPERIMENT, store), name, tags) as run:
        run.log(params, metrics)
        run.json(body, "doctor.json")
        run.text(text, "report.txt")
        run.files(figures, "figures")
    return run.id
