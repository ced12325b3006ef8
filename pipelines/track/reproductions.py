"""Reproductions of published tables -> MLflow."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.records import provenance
from pipelines.records.results import Store
from pipelines.track.database import connect, experiment_id, now


def reproduced(
    store: Store, name: str, params: Mapping[str, Any], metrics: Mapping[str, float], files: Sequence[Path],
    tags: Mapping[str, str],
) -> str:  # fmt: skip
    """One run of the experiment `published`: what was reproduced, how often it was, and the files that show it."""
    from mlflow.entities import Metric, Param

    client, code = connect(store), provenance.code()
    about = {
        "ropewalk.kind": "reproduction",
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": "ropewalk",
        "mlflow.source.git.commit": str(code.get("commit", "")),
    }
    told = {key: value for key, value in {**about, **tags}.items() if value}
    run = client.create_run(experiment_id(client, "published", store), run_name=name, tags=told).info.run_id
    client.log_batch(
        run,
        metrics=[Metric(key, value, now(), 0) for key, value in metrics.items()],
        params=[Param(key, str(value)[:500]) for key, value in params.items()],
    )
    for file in files:
        client.log_artifact(run, str(file))
    client.set_terminated(run, "FINISHED")
    return str(run)
