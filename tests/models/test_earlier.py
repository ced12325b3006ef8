"""Results that were kept under the fingerprints of earlier versions: taken over only where they are of these files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console
from support import stub_cell

from pipelines.models import digest, earlier, find
from pipelines.records.cells import Model, Result
from pipelines.records.results import Store
from pipelines.track import launch


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"0" * (digest.SMALL + 1))
    return folder


def kept(folder, store, after=timedelta(seconds=100)):
    """A cell of the folder, and a result of it that an earlier version computed in 60 s, ready `after` from now."""
    model, _ = find.describe(Model("m", str(folder)))
    cell = replace(stub_cell(), model=model)
    before = replace(cell, model=replace(model, fingerprint=find.earlier_fingerprint(model)))
    at = (datetime.now(UTC) + after).isoformat()
    result = Result(before.id, "ok", {"ppl": 3.0}, cost={"seconds": 60.0}, provenance={"at": at})
    store.save(before, result)
    return cell, result


def test_a_result_is_taken_over_where_nothing_changed_since_it_was_computed(folder, tmp_path):
    store = Store(tmp_path / "store")
    cell, result = kept(folder, store)
    assert cell.id != result.cell_id and store.recall([cell.id]) == {}
    console = Console(record=True)
    done = launch.taken_over([cell], store, console)
    assert done[cell.id].metrics == {"ppl": 3.0} and console.export_text() == ""
    assert store.read(cell.id) == done[cell.id] and store.read(result.cell_id) == result
    assert done[cell.id].provenance["kept_as"] == result.cell_id


@pytest.mark.parametrize("change", ["weights", "computed before the files were there", "another folder"])
def test_a_result_that_may_be_of_other_files_is_computed_again_and_that_is_said(folder, tmp_path, change):
    store = Store(tmp_path / "store")
    cell, _ = kept(folder, store, timedelta(seconds=30 if change.startswith("computed") else 100))
    if change == "weights":
        cell, _ = kept(folder, store, timedelta(seconds=-1))
    elif change == "another folder":
        shutil.copytree(folder, tmp_path / "copy")
        cell = replace(cell, model=replace(cell.model, path=str(tmp_path / "copy")))
    console = Console(record=True, width=400)
    assert launch.taken_over([cell], store, console) == {}
    assert console.export_text().startswith("1 result of an earlier version is computed again")


def test_a_model_that_is_gone_or_whose_files_are_small_has_no_earlier_results(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(b"0")
    cell = replace(stub_cell(), model=find.describe(Model("m", str(folder)))[0])
    assert earlier.results([cell, stub_cell()], Store(tmp_path)) == earlier.Earlier({})
