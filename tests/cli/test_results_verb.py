"""What a store holds: listed, filtered, written for machines, and taken away only as it was said."""

from __future__ import annotations

import io
import json
import os
import time
from dataclasses import replace

import pytest
from support import CELL

from pipelines.cli.main import run
from pipelines.records.cells import Result
from pipelines.records.leases import Lease
from pipelines.records.results import Store


def cell(strategy, length=512, **changes):
    return replace(CELL, strategy=strategy, length=length, **changes)


@pytest.fixture
def store(tmp_path):
    """Two sweeps that share a cell, a failed cell, and one that nothing names."""
    store = Store(tmp_path / "store")
    none, yarn, shared, lost = cell("none"), cell("yarn", 1024), cell("linear", 2048), cell("ntk", 4096)
    for one in (none, shared, lost):
        documents = [{"index": 0, "tokens": 8, "nll": 1.5}]
        store.save(one, Result(one.id, "ok", {"nll": 1.5, "ppl": 4.5}, {}, documents, "d", {"seconds": 2.0}))
    store.save(yarn, Result(yarn.id, "failed", error="Traceback\nValueError: no"))
    for name, cells in (("2026-11-25T0900-aaaaaa", [none, yarn, shared]), ("2026-11-26T0900-bbbbbb", [shared])):
        spec = {"id": name, "experiment": "e", "command": f"ropewalk grid {name[-1]}", "created": name, "code": {}}
        store.save_sweep(name, {**spec, "cells": [one.spec() for one in cells]})
    return store


def results(store, capsys, *words, code=0):
    assert run(["results", *words, f"store={store.root}"]) == code
    caught = capsys.readouterr()
    return caught.out if code < 2 else caught.err


def test_sweeps_and_cells_are_listed_with_how_they_ended(store, capsys):
    text = results(store, capsys)
    assert (
        "2026-11-25T0900-aaaaaa" in text and "2 ok, 1 failed" in text and "2 sweeps" in text and "KiB on disk" in text
    )
    text = results(store, capsys, "cells")
    assert "4 cells" in text and "ppl 4.5" in text and "ValueError: no" in text
    assert "1 cell" in results(store, capsys, "cells", "latest") and "2026-11-26" not in results(
        store, capsys, "strategy=yarn"
    )


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (["status=failed"], 1),
        (["strategy=none,linear"], 2),
        (["length=512,1024"], 2),
        (["model=tiny", "task=perplexity", "dtype=float32", "limit=2", "seed=0", "device=cpu"], 4),
    ],
)
def test_filters_leave_what_has_one_of_their_values(filters, count, store, capsys):
    assert len(json.loads(results(store, capsys, "cells", *filters, "--json"))) == count


def test_cells_are_written_for_machines_in_three_forms(store, capsys, tmp_path):
    import pandas

    [record] = json.loads(results(store, capsys, "cells", "strategy=none", "--json"))
    assert record["metrics"]["ppl"] == 4.5 and record["status"] == "ok" and record["id"] == cell("none").id
    table = pandas.read_csv(io.StringIO(results(store, capsys, "cells", "--csv")))
    assert sorted(table["cell_id"]) == sorted(path.name for path in store.root.glob("cells/*"))
    assert "4 rows" in results(store, capsys, "cells", "--parquet", str(tmp_path / "cells.parquet"))
    again = pandas.read_parquet(tmp_path / "cells.parquet")
    assert again["ppl"].max() == 4.5 and again["status"].tolist() == table["status"].tolist()
    [first, second] = json.loads(results(store, capsys, "--json"))
    assert first["ok"] == 2 and first["failed"] == 1 and second["cells"] == 1


def test_a_sweep_goes_with_the_cells_that_no_other_names(store, capsys):
    text = results(store, capsys, "rm", "2026-11-25", "--yes")
    assert "sweep 2026-11-25T0900-aaaaaa with 2 cells of its own; 1 more are also another's" in text and "KiB" in text
    left = {path.name for path in store.root.glob("cells/*")}
    assert left == {cell("linear", 2048).id, cell("ntk", 4096).id}
    assert [sweep["id"] for sweep in store.sweeps()] == ["2026-11-26T0900-bbbbbb"]


def test_nothing_goes_unless_it_is_agreed_to(store, capsys, monkeypatch):
    before = sorted(store.root.rglob("*"))
    assert "--yes" in results(store, capsys, "rm", "status=failed", code=2)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert "nothing was removed" in results(store, capsys, "rm", cell("none").id[:6], code=1)
    assert sorted(p for p in store.root.rglob("*") if "leases" not in str(p)) == before
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert "1 cell" in results(store, capsys, "rm", cell("none").id[:6])
    assert not store.cell(cell("none").id).exists()


def test_a_cell_that_a_launch_has_in_hand_stays(store, capsys):
    with Lease(store) as lease:
        lease.claim([cell("none").id])
        assert "being computed" in results(store, capsys, "rm", "strategy=none", "--yes", code=2)
    assert store.cell(cell("none").id).exists()


def test_clean_takes_what_nothing_names_and_nothing_else(store, capsys):
    old = time.time() - 7200
    for name in ("cells/0123456789ab/result.json.corrupt-1", "cells/ab0123456789/.keep", "sweeps/x/report.html"):
        path = store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * 2000)
        os.utime(path.parent, (old, old))
    for name, age in (("result.1.tmp", old), ("result.2.tmp", time.time())):
        path = store.cell(cell("none").id) / name
        path.write_text("y")
        os.utime(path, (age, age))
    kept = {cell("none").id, cell("yarn", 1024).id, cell("linear", 2048).id}
    text = results(store, capsys, "clean", "--yes")
    assert "1 cells that no sweep and no search names" in text and "1 folders of sweeps that are gone" in text
    assert {path.name for path in store.root.glob("cells/*")} == kept
    assert (store.cell(cell("none").id) / "result.2.tmp").exists(), "a launch may be writing it"
    assert not (store.cell(cell("none").id) / "result.1.tmp").exists() and not (store.root / "sweeps/x").exists()
    assert results(store, capsys, "clean") == "there is nothing to remove\n"


def test_cells_of_a_search_are_no_orphans(store, capsys):
    trial = cell("ntk", 4096).id
    study = store.root / "tune" / "s1"
    study.mkdir(parents=True)
    assert "nothing to remove" in results(store, capsys, "clean"), (
        "a search that goes on has its cells named nowhere yet"
    )
    (study / "study.json").write_text(json.dumps({"trials": [{"cells": [trial]}]}))
    assert "nothing to remove" in results(store, capsys, "clean")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rm"], "give either ids"),
        (["rm", "nope"], "nope: nothing has an id that begins so"),
        (["rm", "2026-11-2"], "2 sweeps and cells have"),
        (["clean", "strategy=none"], "takes no names and no filters"),
        (["celsl"], "give sweeps, cells, methods, rm, clean"),
        (["cells", "strategy=yran"], "no result here has that"),
        (["cells", "stategy=yarn"], "did you mean strategy=...?"),
        (["cells", "--json", "--csv"], "give one of"),
        (["cells", "--parquet", "/no/such/folder/x.parquet"], "cannot be written"),
    ],
)
def test_what_cannot_be_listed_or_removed_is_refused_in_a_sentence(words, sentence, store, capsys):
    message = results(store, capsys, *words, code=2)
    assert sentence in message and message.count("\n") == 1
