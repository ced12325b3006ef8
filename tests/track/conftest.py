"""What the tests of MLflow share."""

from __future__ import annotations

import shutil

import pytest

from pipelines import track
from pipelines.records.results import Store


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A database that is there already: making one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(tmp_path)


@pytest.fixture
def client(store, template):
    from mlflow import MlflowClient

    shutil.copy(template, store.root / "mlflow.db")
    return MlflowClient(track.tracking_uri(store))
