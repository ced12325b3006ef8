"""The database that MLflow keeps its runs in: created once, under a lock; and the one way to open and end a run."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipelines.models import light
from pipelines.records import provenance
from pipelines.records.processes import is_running, this_process
from pipelines.records.public import public
from pipelines.records.results import Store, set_aside

log = logging.getLogger(__name__)

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is gone is noticed in seconds; MLflow's own defaults keep trying for minutes, for every request.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

Metrics = Iterable[tuple[str, float, int]]
"""(name, value, step), ..."""

BATCH = 800
"""Metrics written at once: MLflow takes 1000 entries a batch, and the parameters go with the first one."""


DATABASE, ARTIFACTS = "mlflow.db", "artifacts"

WRECKED = ("file is not a database", "malformed", "no such table")
"""What sqlite says of a file that is no database, or one whose tables were not made."""


def tracking_uri(store: Store) -> str:
    """The user's own MLFLOW_TRACKING_URI where set, else the database in the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.root / DATABASE}"


def has_own_database() -> bool:
    """Whether runs go to a database of the store's own, not to a server that other stores may share."""
    return not os.environ.get("MLFLOW_TRACKING_URI")


def warm() -> None:
    """Import what recording takes, which another thread can do while this one imports something else."""
    with light.uncollected():
        light.requests()
        importlib.import_module("mlflow")
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


def connect(store: Store) -> Any:
    """MLflow's client of a store, its database created if need be; runs that a killed process left are closed.

    A database that sqlite cannot read is kept as mlflow.db.corrupt-1 (2, ...) and a new one created: all that it held
    can be recorded again from the results (`ropewalk sync`).
    """
    with light.uncollected():
        from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it reports every table that it creates
    store.root.mkdir(parents=True, exist_ok=True)
    with locked(store):
        if has_own_database():
            _prepare(store.root / DATABASE)
            _follow(store)
        client = MlflowClient(tracking_uri(store))
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING' AND tags.process LIKE '%:%'"):
        if is_running(run.data.tags["process"]) is False:
            client.set_terminated(run.info.run_id, "KILLED")
    return client


@contextmanager
def transaction(client: Any) -> Iterator[None]:
    """What this thread writes in the block to a database of sqlite is committed at its end, all of it or nothing.

    MLflow commits every call by itself, and each waits for the disk. A server is left to do so, and so is a version of
    MLflow with other insides. Nothing in the block may wait for another process, which may be waiting for the database.
    """
    from sqlalchemy.orm import Session

    store = client._tracking_client.store
    known = hasattr(store, "ManagedSessionMaker") and hasattr(store, "engine")
    if not known or getattr(store, "db_type", "") != "sqlite":
        yield
        return
    with _CHANGING:
        if not isinstance(store.ManagedSessionMaker, _Sessions):
            store.ManagedSessionMaker = _Sessions(store.ManagedSessionMaker)
    sessions = store.ManagedSessionMaker
    if sessions.joined() is not None:
        yield
        return
    with store.engine.connect() as connection, connection.begin():
        for pragma in ("foreign_keys = ON", "busy_timeout = 20000", "case_sensitive_like = true"):  # as MLflow's own
            connection.exec_driver_sql(f"PRAGMA {pragma}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver would begin after the first savepoint
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            sessions.thread.session = session
            try:
                yield
            finally:
                sessions.thread.session = None


_CHANGING = threading.Lock()


class _Sessions:
    """In place of what makes MLflow's sessions: within a transaction of this thread, all calls have one."""

    def __init__(self, make: Callable[..., AbstractContextManager[Any]]) -> None:
        self.make, self.thread = make, threading.local()

    def joined(self) -> Any:
        return getattr(self.thread, "session", None)

    @contextmanager
    def __call__(self, read_only: bool = True) -> Iterator[Any]:
        if (session := self.joined()) is None:
            with self.make(read_only=read_only) as own:
                yield own
            return
        try:
            yield session
            session.commit()  # a savepoint
        except BaseException:
            session.rollback()
            raise


def _prepare(path: Path) -> None:
    """A database that can be opened: created beside its place, so that a killed process leaves none in part."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if path.exists() and (reason := unreadable(path)):
        aside = set_aside(path)
        log.warning(
            "%s cannot be read (%s): kept as %s; `ropewalk sync` records the results again", path, reason, aside
        )
    if path.exists():
        return
    for leftover in path.parent.glob(f"{path.name}.new-*"):
        leftover.unlink()
    new = path.with_name(f"{path.name}.new-{os.getpid()}")
    created = SqlAlchemyStore(f"sqlite:///{new}", str(path.parent / ARTIFACTS))
    created.engine.dispose()
    new.replace(path)


def unreadable(path: Path) -> str:
    """Why a file is no database of MLflow's; "" where it is one, or is in use by another process."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            versions = list(database.execute("SELECT version_num FROM alembic_version"))
    except sqlite3.DatabaseError as error:
        return str(error) if any(part in str(error) for part in WRECKED) else ""
    # the version is written at the end of every migration, these tables by the first
    return "" if versions and {"experiments", "runs"} <= tables else "its tables were made in part"


def last_tagged(store: Store, tag: str) -> str:
    """The id of the experiment of the store's own database in which this tag is the greatest; "" where none has it."""
    query = (
        "SELECT experiment_tags.experiment_id FROM experiment_tags JOIN experiments USING (experiment_id) "
        "WHERE key = ? AND lifecycle_stage = 'active' ORDER BY value DESC LIMIT 1"
    )
    with contextlib.closing(sqlite3.connect(f"{(store.root / DATABASE).as_uri()}?mode=ro", uri=True)) as database:
        row = database.execute(query, (tag,)).fetchone()
    return "" if row is None else str(row[0])


def _follow(store: Store) -> None:
    """Artifacts in the store's own folder, also after it was moved or copied: MLflow keeps absolute paths."""
    here = str(store.root / ARTIFACTS)
    with contextlib.closing(sqlite3.connect(store.root / DATABASE, timeout=20)) as database, database:
        query = "SELECT DISTINCT artifact_location FROM experiments WHERE name != 'Default'"
        for (there,) in list(database.execute(query)):
            if there != here and there.endswith(f"/{ARTIFACTS}"):
                for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR {column} LIKE ?",
                        (here, len(there) + 1, there, f"{there}/%"),
                    )


def experiment_id(client: Any, name: str, store: Store) -> str:
    """The id of an experiment, which is created if need be."""
    with locked(store):
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        # A server of the user's has a place of its own for artifacts.
        local = tracking_uri(store).startswith("sqlite")
        return str(client.create_experiment(name, artifact_location=str(store.root / ARTIFACTS) if local else None))


class Run:
    """An open run. status: how it ends unless its block raises; end: when, in milliseconds, where not at that time."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.id = client, run_id
        self.status = "FINISHED"
        self.end: int | None = None

    def log(self, params: Mapping[str, Any] | None = None, metrics: Metrics = (), at: int | None = None) -> None:
        """Write parameters and metrics. at: the metrics' time in milliseconds, by default now."""
        from mlflow.entities import Metric, Param

        written = [Param(name, public(str(value))) for name, value in (params or {}).items()]
        at = at or now()
        rows = [Metric(name, value, at, step) for name, value, step in metrics]
        for start in range(0, max(len(rows), 1), BATCH):
            self.client.log_batch(self.id, metrics=rows[start : start + BATCH], params=written if start == 0 else [])

    def tag(self, name: str, value: str) -> None:
        self.client.set_tag(self.id, name, public(value))

    def json(self, body: Mapping[str, Any], name: str) -> None:
        self.text(public(json.dumps(dict(body), indent=2)), name)

    def text(self, body: str, name: str) -> None:
        self.client.log_text(self.id, public(body), name)

    def files(self, paths: Iterable[Path], folder: str | None = None) -> None:
        for path in paths:
            self.client.log_artifact(self.id, str(path), folder)


@contextmanager
def start_run(
    client: Any,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    *,
    code: Mapping[str, Any] | None = None,
    start: int | None = None,
    resume: str | None = None,
) -> Iterator[Run]:
    """A run that ends with the block: as its status says, or FAILED or KILLED where the block raises.

    experiment: its id. tags: empty ones are left out, and MLflow's user is ROPEWALK_USER, if that is set. code: the
    version that computed it, by default this one. start: milliseconds, by default now. resume: the id of an
    earlier run that goes on.
    """
    code = provenance.code() if code is None else code
    common = {
        "mlflow.user": os.environ.get("ROPEWALK_USER", ""),
        "mlflow.source.name": "ropewalk",
        "mlflow.source.git.commit": str(code.get("commit", "")),
        "git_dirty": str(code.get("dirty", "")).lower(),
        "git_difference": str(code.get("difference", "")),
        "process": this_process(),
    }
    if resume is None:
        given = {key: public(value) for key, value in {**common, **tags}.items() if value}
        created = client.create_run(experiment, run_name=public(name), tags=given, start_time=start or now())
        run = Run(client, str(created.info.run_id))
    else:
        client.update_run(resume, status="RUNNING")
        run = Run(client, resume)
        run.tag("process", common["process"])
    try:
        yield run
    except (Exception, KeyboardInterrupt) as error:
        client.set_terminated(run.id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    client.set_terminated(run.id, run.status, run.end)


def search(client: Any, experiment: str, query: str) -> list[Any]:
    """All runs of an experiment that match a query; none where there is no experiment of the name."""
    known = client.get_experiment_by_name(experiment)
    return [] if known is None else pages(client, known.experiment_id, query)


def pages(client: Any, experiments: str | Sequence[str], query: str) -> list[Any]:
    """All runs that match a query, over all pages. experiments: the id of one, or of several."""
    ids = [experiments] if isinstance(experiments, str) else list(experiments)
    token, runs = None, []
    while True:
        page = client.search_runs(ids, query, max_results=1000, page_token=token)
        runs += list(page)
        if not (token := page.token):
            return runs


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """While no other process of this machine creates the database, or an experiment in it, or redraws a curve."""
    with FileLock(store.root / "mlflow.lock"):
        yield


def now() -> int:
    return int(time.time() * 1000)


def milliseconds(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp() * 1000)
