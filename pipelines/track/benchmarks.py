"""Measurements of `ropewalk bench` -> MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.records.results import Store
from pipelines.track.database import connect, experiment_id, start_run

EXPERIMENT = "bench"


def record_benchmark(
    store: Store, params: Mapping[str, Any], numbers: Mapping[str, float], body: Mapping[str, Any]
) -> str:
    """One bench as a run; returns the run's id. body: everything measured, as JSON."""
    client = connect(store)
    tags = {"ropewalk.kind": "bench"}
    with start_run(client, experiment_id(client, EXPERIMENT, store), "bench", tags) as run:
        run.log(params, [(name, value, 0) for name, value in numbers.items()])
        run.json(body, "bench.json")
    return run.id
