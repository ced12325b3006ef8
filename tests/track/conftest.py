"""What the tests of MLflow share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A database that is there already: making one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
