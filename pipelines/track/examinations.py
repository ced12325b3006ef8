"""The doctor's examinations -> MLflow."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.records import provenance
from pipelines.records.results import Store
from pipelines.track.database import connect, experiment_id, now, process

EXPERIMENT = "doctor"


def examination(
    store: Store,
    name: str,
    params: Mapping[str, Any],
    metrics: Sequence[tuple[str, float, int]],
    body: Mapping[str, Any],
    figures: Sequence[Path],
    text: str,
) -> str:
    """One examination as a run of its own; returns the run's id.

    metrics: (name, value, step), ... body: all that was found, as JSON. text: the report as a terminal shows it.
    """
    from mlflow.entities import Metric, Param

    client = connect(store)
    code = provenance.code()
    tags = {
        "ropewalk.kind": "doctor",
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": "ropewalk",
        "mlflow.source.git.commit": str(code.get("commit", "")),
        "mlflow.note.content": f"```\n{text}\n```",
        "process": process(),
    }
    made = client.create_run(experiment_id(client, EXPERIMENT, store), run_name=name, tags=tags)
    run, at = str(made.info.run_id), now()
    client.log_batch(
        run,
        metrics=[Metric(key, value, at, step) for key, value, step in metrics],
        params=[Param(key, str(value)[:500]) for key, value in params.items()],
    )
    client.log_dict(run, dict(body), "doctor.json")
    client.log_text(run, text, "report.txt")
    for figure in figures:
        client.log_artifact(run, str(figure), "figures")
    client.set_terminated(run, "FINISHED")
    return run
