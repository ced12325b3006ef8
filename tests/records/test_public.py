"""Nothing that is kept, recorded or exported says who ran it, where their home is, or a secret of theirs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sqlite3
import stat
import subprocess

import pytest
from support import CELL

from pipelines.choices.sweep import Sweep
from pipelines.cli.main import run
from pipelines.records.cells import Cell, Result
from pipelines.records.public import public, public_script
from pipelines.records.results import Store
from pipelines.track import launch

TOKEN, PASSWORD, USER = "hf_PlantedTokenOfSomebody", "planted-pass/word é", "planteduser"


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("model=/home/ada/m", "model=~/m"),
        ("'/home/ada'", "'~'"),
        ("/data/home/ada/m /home/adam/m /home/ada.old", "/data/home/ada/m /home/adam/m /home/ada.old"),
        ("file:///home/ada/m", "file://~/m"),
        ("https://ada:word@host/x http://host:80/a@b", "https://***@host/x http://host:80/a@b"),
        ("no hf_secret here", "no *** here"),
        ('{"a": "w\\u00f6rter-geheim"}', '{"a": "***"}'),
        ("tokenizers: disabled, 1", "tokenizers: disabled, 1"),
    ],
)
def test_home_is_a_tilde_and_secrets_are_stars(given, written):
    environment = {
        "HOME": "/home/ada",
        "HF_TOKEN": "hf_secret",
        "MLFLOW_TRACKING_PASSWORD": "wörter-geheim",
        "TOKENIZERS_PARALLELISM": "disabled",
        "MY_SECRET": "1",
    }
    assert public(given, environment) == written
    assert public(written, environment) == written


@pytest.mark.parametrize("home", ["/", ""])
def test_without_a_home_nothing_is_taken_for_one(home):
    assert public("/data/m", {"HOME": home}) == "/data/m"


def test_a_script_finds_what_lies_below_home(tmp_path):
    home = tmp_path / "home of ada"
    (home / "a b").mkdir(parents=True)
    (home / "a b" / "x").write_text("read")
    command = public_script(shlex.join(["cat", str(home / "a b" / "x")]), {"HOME": str(home)})
    assert str(home) not in command
    ran = subprocess.run(
        ["sh", "-c", command], env={"HOME": str(home), "PATH": os.environ["PATH"]}, capture_output=True
    )
    assert ran.stdout == b"read"


@pytest.fixture(scope="module")
def planted(tiny_folder, tmp_path_factory):
    """A store below a planted home, after a grid, a failure that quotes secrets, a sync and an export."""
    home = tmp_path_factory.mktemp("homes") / USER
    shutil.copytree(tiny_folder, home / "models" / "small")
    (home / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    store = Store(home / "store")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("USER", "LOGNAME"):
            patch.setenv(name, USER)
        for name, value in {"HOME": str(home), "HF_TOKEN": TOKEN, "MLFLOW_TRACKING_PASSWORD": PASSWORD}.items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        chosen = [f"model={home}/models/small", "length=320", f"store={store.root}"]
        grid = ["task=perplexity", f"task.text={home}/text.txt", "limit=1", "cluster=cpu"]
        assert run(["grid", *chosen, *grid, "strategy=none,yarn"]) == 0
        [spec] = store.sweeps()
        cell = Cell.of(spec["cells"][1])
        error = f"failed at {home}/x with {TOKEN} and {PASSWORD}"
        failed = Result(cell.id, "failed", error=error, provenance={"command": f"ropewalk {home}"})
        launch.run(Sweep("more", (cell,), "ropewalk grid"), store, lambda todo: [(cell, failed)], force=True)
        assert run(["sync", "force=true", f"store={store.root}"]) == 0
        assert run(["export", *chosen, "strategy=yarn", "--to", "vllm"]) == 0
    return home, store.root


def needles(home):
    texts = [TOKEN, PASSWORD, str(home), USER, socket.gethostname()]
    return {text.encode() for text in texts} | {json.dumps(text)[1:-1].encode() for text in texts}


@pytest.mark.slow
def test_planted_secrets_are_in_no_result_run_report_or_export(planted):
    home, store = planted
    files = [file for file in store.rglob("*") if file.is_file() and not file.name.startswith("mlflow.db")]
    assert {"result.json", "sweep.json", "tables.md", "error.txt", "serve.sh"} <= {file.name for file in files}
    for file in files:
        # of a picture, whose bytes are packed, no short name can be looked for
        least = 8 if file.suffix == ".png" else 1
        content, hidden = file.read_bytes(), [needle for needle in sorted(needles(home)) if len(needle) >= least]
        assert not [needle for needle in hidden if needle in content], file.relative_to(store)
    with sqlite3.connect(store / "mlflow.db") as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
            for row in database.execute(f'SELECT * FROM "{table}"'):
                for column, value in zip(columns, row, strict=True):
                    if column in ("artifact_location", "artifact_uri"):  # the address of the files themselves
                        continue
                    text = str(value).encode()
                    assert not [needle for needle in needles(home) if needle in text], (table, column)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_result_has_the_permissions_that_the_umask_leaves(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = Store(tmp_path / "store").save(CELL, Result(CELL.id, "failed", error="no"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((path.parent / "error.txt").stat().st_mode) == mode
    assert stat.S_IMODE(path.parent.stat().st_mode) == mode | (mode & 0o444) >> 2


@pytest.mark.slow
def test_no_file_of_a_store_can_be_written_by_others(planted):
    for file in planted[1].rglob("*"):
        assert not stat.S_IMODE(file.stat().st_mode) & 0o022, file
