"""Results on disk: whole or not there."""

from __future__ import annotations

import json
import math
import resource
from dataclasses import replace

import pytest
from support import CELL

from pipelines.cli.main import run
from pipelines.records.cells import Refusal, Result, digest_of
from pipelines.records.results import Store

RESULT = Result(
    CELL.id,
    "ok",
    metrics={"ppl": 10.25},
    series={"nll_by_position": [(32.0, 3.5), (64.0, 2.5)]},
    documents=[{"index": 0, "nll": 2.3}],
    digest="d",
    cost={"seconds": 1.5},
    provenance={"torch": "2"},
)


def test_what_is_saved_is_recalled(tmp_path):
    store = Store(tmp_path)
    store.save(CELL, RESULT)
    assert store.recall([CELL.id]) == {CELL.id: RESULT}


def test_a_failure_is_stored_with_its_log_and_tried_again(tmp_path):
    store = Store(tmp_path)
    store.save(CELL, Result(CELL.id, "failed", error="Traceback\nValueError: x"))
    assert store.recall([CELL.id]) == {}
    assert store.read(CELL.id).error_line == "ValueError: x"
    assert (store.cell(CELL.id) / "error.txt").read_text().endswith("ValueError: x")
    store.save(CELL, RESULT)
    assert not (store.cell(CELL.id) / "error.txt").exists()


@pytest.mark.parametrize("status", ["oom", "diverged"])
def test_findings_are_finished(tmp_path, status):
    Store(tmp_path).save(CELL, Result(CELL.id, status))
    assert Store(tmp_path).recall([CELL.id])


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: text.replace("10.25", "9.25")])
def test_a_damaged_result_counts_as_not_there(tmp_path, damage, caplog):
    path = Store(tmp_path).save(CELL, RESULT)
    path.write_text(damage(path.read_text()))
    assert Store(tmp_path).recall([CELL.id]) == {}
    assert "damaged" in caplog.text


def unreadable(path):
    path.unlink()
    path.mkdir()


def newer(path):
    body = {**{k: v for k, v in json.loads(path.read_text()).items() if k != "checksum"}, "schema": 99}
    path.write_text(json.dumps({**body, "checksum": digest_of(body)}))


BROKEN = {
    "a list": lambda path: path.write_text("[]"),
    "null": lambda path: path.write_text("null"),
    "a number": lambda path: path.write_text("7"),
    "nested too deeply": lambda path: path.write_text("[" * 100_000),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a folder": unreadable,
    "of a later version": newer,
    "without its result": lambda path: path.write_text(json.dumps({"checksum": digest_of({"cell": 1}), "cell": 1})),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_cannot_be_believed_counts_as_not_there_and_is_kept_aside(tmp_path, how, caplog):
    store = Store(tmp_path)
    path = store.save(CELL, RESULT)
    BROKEN[how](path)
    assert store.read(CELL.id) is None and list(store.newest(5)) == []
    assert "counts as not there" in caplog.text
    assert path.exists()  # reading changes nothing
    store.save(CELL, RESULT)
    assert store.read(CELL.id) == RESULT
    assert [file.name for file in path.parent.glob("*.corrupt-*")] == ["result.json.corrupt-1"]


def test_the_results_of_two_cells_that_were_swapped_are_not_believed(tmp_path):
    store, other = Store(tmp_path), replace(CELL, seed=CELL.seed + 1)
    files = [store.save(CELL, RESULT), store.save(other, replace(RESULT, cell_id=other.id))]
    texts = [file.read_text() for file in files]
    for file, text in zip(files, reversed(texts), strict=True):
        file.write_text(text)
    assert store.recall([CELL.id, other.id]) == {}


def test_a_result_without_a_version_is_read_as_the_first_one(tmp_path):
    store = Store(tmp_path)
    path = store.save(CELL, RESULT)
    body = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("checksum", "schema")}
    path.write_text(json.dumps({"checksum": digest_of(body), **body}))
    assert store.read(CELL.id) == RESULT


def test_nothing_half_written_is_left(tmp_path):
    path = Store(tmp_path).save(CELL, RESULT)
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]
    assert json.loads(path.read_text())["cell"]["id"] == CELL.id


def test_a_crash_in_the_middle_of_writing_leaves_the_old_file_whole(tmp_path):
    store = Store(tmp_path)
    store.save(CELL, RESULT)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as on a disk that is full
    try:
        with pytest.raises(OSError, match="large"):
            store.save(CELL, replace(RESULT, metrics={f"metric {n}": 1.0 for n in range(1000)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.read(CELL.id) == RESULT


def test_a_number_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Store(tmp_path).save(CELL, Result(CELL.id, "ok", metrics={"ppl": math.nan}))


@pytest.mark.parametrize("name", ["a%20b", "100%", "a?b"])
def test_a_store_of_whose_name_mlflow_would_make_another_is_refused(tmp_path, name):
    with pytest.raises(Refusal, match="MLflow keeps no runs below a path with a"):
        Store.at(str(tmp_path / name / "store"))


@pytest.mark.parametrize("verb", ["sync", "report"])
def test_a_damaged_sweep_is_not_taken_for_none(tmp_path, capsys, verb):
    assert run([verb, f"store={tmp_path}"]) == 2 and "there are no sweeps" in capsys.readouterr().err
    path = Store(tmp_path).save_sweep("s", {"id": "s", "cells": []})
    path.write_text(path.read_text()[:-9])
    assert run([verb, f"store={tmp_path}"]) == 2
    assert "the sweep.json of 1 sweep in" in capsys.readouterr().err


def test_the_store_is_the_requested_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_STORE", str(tmp_path / "by_environment"))
    assert Store.at(str(tmp_path / "given")).root == tmp_path / "given"
    assert Store.at(None).root == tmp_path / "by_environment"
    monkeypatch.delenv("ROPEWALK_STORE")
    assert Store.at(None).root.name == "mlruns"
