"""The database that MLflow keeps its runs in: made once, under a lock, and rid of runs that a killed process left."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psutil
from filelock import FileLock

from pipelines.records.results import Store

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def tracking_uri(store: Store) -> str:
    """The user's own MLFLOW_TRACKING_URI where set, else the database in the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.root / 'mlflow.db'}"


def warm() -> None:
    """Import what recording takes, which another thread can do while this one imports something else."""
    importlib.import_module("mlflow")
    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


def connect(store: Store) -> Any:
    """MLflow's client of a store whose database is there, with the runs closed that a killed process left running."""
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells every table that it creates
    store.root.mkdir(parents=True, exist_ok=True)
    with alone(store):
        client = MlflowClient(tracking_uri(store))
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, f"attributes.status = 'RUNNING' AND tags.process LIKE '{_host()}:%'"):
        if not _alive(run.data.tags["process"]):
            client.set_terminated(run.info.run_id, "KILLED")
    return client


def experiment_id(client: Any, name: str, store: Store) -> str:
    with alone(store):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # A server of the user's has a place of its own for artifacts.
        local = tracking_uri(store).startswith("sqlite")
        return str(client.create_experiment(name, artifact_location=str(store.root / "artifacts") if local else None))


@contextmanager
def closing(client: Any, run: str) -> Iterator[None]:
    """A run that ends with the block: FINISHED, or FAILED or KILLED where it raises."""
    try:
        yield
    except BaseException as error:
        client.set_terminated(run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    client.set_terminated(run, "FINISHED")


def found(client: Any, experiment: str, query: str) -> list[Any]:
    """All runs of an experiment that a query finds, however many pages they take; none where there is no experiment."""
    known = client.get_experiment_by_name(experiment)
    if known is None:
        return []
    token, runs = None, []
    while True:
        page = client.search_runs([known.experiment_id], query, page_token=token)
        runs += list(page)
        if not (token := page.token):
            return runs


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """While no other process of this machine makes the store's database or an experiment in it."""
    with FileLock(store.root / "mlflow.lock"):
        yield


def _host() -> str:
    return socket.gethostname().replace("'", "").replace("%", "")


def process() -> str:
    """This process, so that it is not taken for another that got its number later: host:pid:start."""
    return f"{_host()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def _alive(process: str) -> bool:
    _, pid, start = process.rsplit(":", 2)
    with contextlib.suppress(psutil.Error):
        return f"{psutil.Process(int(pid)).create_time():.0f}" == start
    return False


def now() -> int:
    return int(time.time() * 1000)


def milliseconds(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp() * 1000)
