"""Recording never stops computing: whatever MLflow does, the results are kept, and it is said in one sentence."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
from rich.console import Console
from support import PROJECT, random_cell

from pipelines import track
from pipelines.choices.sweep import Sweep
from pipelines.cli.main import run
from pipelines.records.cells import Result
from pipelines.records.results import Store
from pipelines.report.terminal import plain_console
from pipelines.track import database, launch, recorder
from pipelines.track.recorder import Recorder

CELLS = [replace(random_cell("none", length), limit=1) for length in (64, 128)]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A store without a database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(recorder, "PAUSES", (0.0, 0.0))
    return Store(tmp_path)


@pytest.fixture
def store(empty, template):
    shutil.copy(template, empty.root / "mlflow.db")
    return empty


OK = Result("", "ok", {"ppl": 3.0})


def launched(store, result=OK):
    """A launch of two cells that have their result at once, and what it printed."""
    console = Console(record=True, width=400)
    sweep = Sweep("an-experiment", tuple(CELLS), "ropewalk grid")
    rows = launch.run(sweep, store, lambda todo: [(c, replace(result, cell_id=c.id)) for c in todo], console=console)
    return sweep, rows, console.export_text()


def runs(store, kind):
    client = track.connect(store)
    experiment = client.get_experiment_by_name("an-experiment")
    return client.search_runs([experiment.experiment_id], f"tags.`ropewalk.kind` = '{kind}'")


def test_an_error_that_quotes_half_a_character_is_kept_and_shown(store):
    answer = Result(CELLS[0].id, "failed", error="Traceback\nValueError: \ud800 in [/INST]")
    sweep = Sweep("an-experiment", (CELLS[0],), "ropewalk grid")
    page = io.StringIO()
    launch.run(sweep, store, lambda todo: [(CELLS[0], answer)], console=plain_console(file=page))
    assert r"ValueError: \ud800 in [/INST]" in page.getvalue()
    assert store.read(CELLS[0].id).error_line == r"ValueError: \ud800 in [/INST]"


def test_cells_of_which_no_number_is_finite_are_shown_and_recorded(store):
    _, rows, text = launched(store, Result("", "diverged", documents=[{"index": 0}]))
    assert len(rows) == 2 and "2 diverged" in text and "not up to date" not in text
    assert len(runs(store, "cell")) == 2


def test_a_server_that_is_not_there_costs_a_sentence_and_the_next_launch_records_what_it_missed(
    store, monkeypatch, capsys
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:planted@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    sweep, rows, text = launched(store)
    assert "planted" not in text
    assert [result.status for _, result in rows] == ["ok", "ok"]
    assert text.count("MLflow is not up to date") == 1 and "ropewalk sync" in text
    assert set(store.recall(cell.id for cell in CELLS)) == {cell.id for cell in CELLS}
    assert store.unrecorded() == [sweep.id]
    assert run(["sync", f"store={store.root}"]) == 2
    said = capsys.readouterr().err
    assert "MLflow is not up to date" in said and "planted" not in said
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    _, _, text = launched(store)
    assert "not up to date" not in text and store.unrecorded() == []
    assert len(runs(store, "sweep")) == 2 and len(runs(store, "cell")) == 2


def test_recording_that_fails_in_the_middle_is_done_again_as_a_whole(store, monkeypatch):
    original, failures = track.Tracker.record, iter([sqlite3.OperationalError("database is locked")])

    def record(self, cells, result):
        for failure in failures:
            raise failure
        original(self, cells, result)

    monkeypatch.setattr(track.Tracker, "record", record)
    _, _, text = launched(store)
    assert "not up to date" not in text
    assert [run.info.status for run in runs(store, "sweep")] == ["FINISHED"]
    assert {run.data.tags["cell_id"] for run in runs(store, "cell")} == {cell.id for cell in CELLS}


@contextmanager
def locked(store, monkeypatch):
    """By another program, for as long as the launch runs."""
    held = sqlite3.connect(store.root / "mlflow.db", isolation_level=None)
    held.execute("BEGIN EXCLUSIVE")
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "PATIENCE", 0.5)
        yield
    held.close()
    for thread in threading.enumerate():
        if thread.name == "recorder":
            thread.join()


@contextmanager
def no_folder_for_artifacts(store, monkeypatch):
    (store.root / "artifacts").touch()
    yield
    (store.root / "artifacts").unlink()


@contextmanager
def full_disk(store, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(track.Tracker, "record", full)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("fault", [locked, no_folder_for_artifacts, full_disk])
def test_a_store_that_mlflow_cannot_write_costs_a_sentence_and_the_next_launch_records_all(store, monkeypatch, fault):
    with fault(store, monkeypatch):
        sweep, rows, text = launched(store)
        assert [result.status for _, result in rows] == ["ok", "ok"]
        assert text.count("MLflow is not up to date") == 1 and store.unrecorded() == [sweep.id]
    _, _, text = launched(store)
    assert "not up to date" not in text and store.unrecorded() == [] and len(runs(store, "cell")) == 2


def test_a_write_that_hangs_is_given_up_and_the_computing_does_not_wait_for_it(store, monkeypatch):
    monkeypatch.setattr(recorder, "PATIENCE", 0.5)
    hang = threading.Event()
    monkeypatch.setattr(track.Tracker, "record", lambda *arguments, **options: hang.wait(300))
    _, rows, text = launched(store)
    assert not hang.is_set() and len(rows) == 2
    hang.set()
    for thread in threading.enumerate():
        if thread.name == "recorder":
            thread.join()
    assert "MLflow is not up to date (nothing was written for" in text


def test_a_training_goes_on_without_its_run_in_mlflow_and_says_so_once(empty, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record = empty.root / "train.json"
    training = track.Training(empty, "train", "a training", {"steps": 2}, None, record)
    training.log([("loss", 1.0, 1)])
    training.close(finished=True)
    assert training.run is None
    said = capsys.readouterr().out
    assert said.count("MLflow is not up to date") == 1 and f"{record} has all of it" in said


def test_what_is_recorded_keeps_the_order_of_the_calls_and_ends_as_it_was_interrupted():
    written, ended = [], []

    @contextmanager
    def opened():
        try:
            yield written
        except KeyboardInterrupt:
            ended.append("interrupted")
            raise

    recording = Recorder(opened)
    for number in range(100):
        recording.submit(lambda target, number=number: target.append(number))
    assert recording.close(interrupted=True) == "" and written == list(range(100)) and ended == ["interrupted"]


def test_a_failure_without_a_repair_is_told_in_one_line():
    recording = Recorder(nullcontext)
    recording.submit(lambda _: 1 / 0)
    recording.submit(lambda _: pytest.fail("written after a failure"))
    assert recording.close() == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000], ids=["empty", "garbage"])
def test_a_database_that_cannot_be_read_is_kept_aside_and_made_anew(empty, content):
    (empty.root / "mlflow.db").write_bytes(content)
    _, _, text = launched(empty)
    assert "not up to date" not in text and len(runs(empty, "cell")) == 2
    assert (empty.root / "mlflow.db.corrupt-1").read_bytes() == content


def test_a_database_whose_tables_were_made_in_part_is_one_that_cannot_be_read(store):
    path = store.root / "mlflow.db"
    assert database.unreadable(path) == ""
    with sqlite3.connect(path) as made:
        made.execute("DELETE FROM alembic_version")
    assert database.unreadable(path) == "its tables were made in part"


def test_a_locked_database_is_not_mistaken_for_one_that_cannot_be_read(store):
    with sqlite3.connect(store.root / "mlflow.db", isolation_level=None) as held:
        held.execute("BEGIN EXCLUSIVE")
        assert database.unreadable(store.root / "mlflow.db") == ""
        held.execute("ROLLBACK")


def test_the_ui_refuses_a_database_that_cannot_be_read(store, capsys):
    (store.root / "mlflow.db").write_bytes(b"garbage" * 1000)
    assert run(["ui", "5055", f"store={store.root}"]) == 2 and "ropewalk sync" in capsys.readouterr().err


def test_artifacts_of_a_store_that_was_moved_are_written_into_it(store):
    before, after = (Store(store.root / name) for name in ("before", "after"))
    before.root.mkdir()
    (store.root / "mlflow.db").rename(before.root / "mlflow.db")
    launched(before)
    before.root.rename(after.root)
    launched(after)
    client = track.connect(after)
    for cell in runs(after, "cell"):
        assert cell.info.artifact_uri.startswith(str(after.root))
        assert client.list_artifacts(cell.info.run_id)
    assert not before.root.exists()


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_creates_the_database_leaves_none_in_part(empty):
    script = (
        "import sys; from pathlib import Path; from pipelines import track;"
        "from pipelines.records.results import Store;"
        "track.warm(); print('now', flush=True); track.connect(Store(Path(sys.argv[1])))"
    )
    for wait in (0.3, 1.0, 2.0):
        command = [sys.executable, "-c", script, str(empty.root)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(PROJECT)})
        assert process.stdout is not None and process.stdout.readline() == b"now\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (empty.root / "mlflow.db").exists() or database.unreadable(empty.root / "mlflow.db") == ""
    track.connect(empty)
    assert not list(empty.root.glob("mlflow.db.*"))
