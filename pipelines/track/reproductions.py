"""Reproductions of published tables -> MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.records.results import Store
from pipelines.track.database import connect, experiment_id, start_run

EXPERIMENT = "published"


def record_reproduction(
    store: Store,
    name: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    files: Sequence[Path],
    tags: Mapping[str, str],
) -> str:
    """One reproduction, or one test of a table's claims, as a run with the files that show it; returns its id."""
    client = connect(store)
    tags = {"ropewalk.kind": "reproduction", **tags}
    with start_run(client, experiment_id(client, EXPERIMENT, store), name, tags) as run:
        run.log(params, [(key, value, 0) for key, value in metrics.items()])
        run.files(files)
    return run.id
