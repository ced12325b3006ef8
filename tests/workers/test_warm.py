"""Workers that stay between commands: found, refused with a reason, and ended."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from launches import until
from support import random_cell

from pipelines.choices.config import Cluster
from pipelines.cli.main import run
from pipelines.grid import launcher, standby
from pipelines.models import light
from pipelines.records.cells import Result
from pipelines.records.places import SITE
from pipelines.records.processes import machine, this_process
from pipelines.records.refusal import Refusal
from pipelines.records.results import Store
from pipelines.report import progress
from pipelines.track import launch
from pipelines.workers import compute, warm
from pipelines.workers.schedule import Workers


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def kept(**changes):
    now = dict(warm.provenance.environment())
    plain = {
        "process": this_process(),
        "since": "2026-11-26T12:00:00+00:00",
        "address": "/nowhere/socket",
        "key": "00",
        "workers": warm.place(Workers("cpu")),
        "code": warm.code_digest(),
        "versions": now,
        "settings": warm.settings(),
    }
    return warm.Kept(**{**plain, **changes})


def found(workers=None):
    said = []
    return warm.find(workers or Workers("cpu"), said.append), said


def test_without_workers_nothing_is_said():
    assert found() == (None, [])
    assert warm.down() == "no workers are up (`ropewalk up` starts them)"


@pytest.mark.parametrize(
    "process",
    [f"{machine()}:{2**22 + 7}:1000", f"{machine()}:{os.getpid()}:1000"],
    ids=["no process", "another of this number"],
)
def test_workers_that_were_killed_or_ran_before_the_machine_started_anew_are_forgotten_in_a_sentence(process):
    warm.write(kept(process=process))
    assert found() == (
        None,
        [f"the workers of `ropewalk up` (since {kept().since}) have ended: start them anew with `ropewalk up`"],
    )
    assert not warm.file().exists() and found() == (None, [])


def test_a_file_that_says_nothing_is_removed_in_a_sentence():
    warm.file().write_text("{}")
    found_none, [sentence] = found()
    assert found_none is None and "is removed" in sentence and not warm.file().exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"code": "other"}, "the code has changed since they were started"),
        ({"versions": {"torch": "1.0"}}, "torch 1.0 there"),
        ({"settings": {"HF_HOME": "other"}}, "HF_HOME"),
        ({"workers": {**warm.place(Workers("cuda"))}}, "device=cuda there and cpu here"),
    ],
)
def test_other_workers_than_a_command_needs_are_left_alone_with_the_reason(changes, reason):
    warm.write(kept(**changes))
    none, [sentence] = found()
    assert none is None and reason in sentence and "ropewalk down" in sentence and warm.file().exists()


def test_workers_that_do_not_answer_are_left_alone_in_a_sentence():
    warm.write(kept())
    none, [sentence] = found()
    assert none is None and "do not answer" in sentence


def test_another_users_workers_are_not_used(monkeypatch):
    warm.write(kept())
    assert warm.file().stat().st_mode & 0o077 == 0, "nobody else may read the key"
    monkeypatch.setattr(warm.os, "getuid", lambda: 12345)
    none, [sentence] = found()
    assert none is None and "another user's" in sentence


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "soon"])
def test_hours_that_are_none_are_refused(hours):
    with pytest.raises(Refusal, match="give a number of hours above 0"):
        standby.up([], hours)


def test_batches_go_on_with_workers_of_their_own_where_those_that_stay_have_ended(tmp_path, monkeypatch):
    class Kept:
        closed = False

        def run(self, cells, *_):
            yield cells[0], "kept"
            if len(cells) > 1:
                raise warm.Gone("ended")

        def close(self):
            self.closed = True

    @contextmanager
    def standing(workers, journal):
        yield lambda cells: iter([(cell, "own") for cell in cells])

    kept, said, cells = Kept(), [], [random_cell("none", length) for length in (64, 65, 66)]
    monkeypatch.setattr(warm, "find", lambda workers, say: kept)
    monkeypatch.setattr(compute.pool, "standing", standing)
    with compute.batches(Cluster(), "cpu", Store(tmp_path), said.append) as run:
        assert [who for _, who in run(cells[:1])] == ["kept"] and said == []
        assert [who for _, who in run(cells)] == ["kept", "own", "own"] and said == [compute.ENDED]
        assert [who for _, who in run(cells)] == ["own"] * 3 and said == [compute.ENDED]
    assert kept.closed


@pytest.mark.parametrize("ended", [False, True])
def test_other_work_waits_until_workers_that_stay_have_the_cells(ended, tmp_path, monkeypatch):
    seen, cells = [], [random_cell("none")]

    class Kept:
        def run(self, cells, workers, evaluator, store, sent):
            seen.append(crew.away.is_set())
            if ended:
                raise warm.Gone("ended")
            sent()
            seen.append(crew.away.is_set())
            yield cells[0], "kept"

        def close(self):
            pass

    crew = compute.Crew(Cluster(), Store(tmp_path))
    assert crew.away.is_set(), "without such workers nothing waits"
    monkeypatch.setattr(warm, "find", lambda workers, say: Kept())
    monkeypatch.setattr(compute.pool, "run", lambda cells, *_, **__: iter([(cell, "own") for cell in cells]))
    assert crew.find(cells, seen.append)
    assert [who for _, who in crew(cells)] == ["own" if ended else "kept"]
    assert seen == [False] if ended else seen == [False, True]
    assert crew.away.is_set()


def test_a_grid_begins_nothing_else_before_workers_that_stay_have_its_cells(cache, monkeypatch):
    monkeypatch.setenv("ROPEWALK_STORE", str(cache / "store"))
    begun, before = [], []

    def noting(name, work):
        return lambda *args, **options: begun.append(name) or work(*args, **options)

    class Kept:
        def prepare(self, cells):
            pass

        def run(self, cells, workers, evaluator, store, sent):
            time.sleep(0.3)
            before.extend(begun)
            sent()
            until(lambda: {"MLflow", "page", "notes", "survey"} <= set(begun), 60.0)
            yield from ((cell, Result(cell.id, "ok", metrics={"ppl": 3.0})) for cell in cells)

        def close(self):
            pass

    monkeypatch.setattr(warm, "find", lambda workers, say: Kept())
    monkeypatch.setattr(launch.page, "warm", noting("page", lambda painters: None))
    monkeypatch.setattr(launch.track.Tracker, "open", noting("MLflow", launch.track.Tracker.open))
    monkeypatch.setattr(launcher, "advance_notes", noting("notes", lambda *_, **__: []))
    monkeypatch.setattr(progress.estimate, "survey", noting("survey", progress.estimate.survey))
    grid = ["model=random", "strategy=none", "length=64", "short=none", "task=perplexity", "cluster=cpu", "limit=1"]
    [(_, result)] = launcher.run_grid(grid, quiet=True, events=lambda event: None)
    assert result.metrics == {"ppl": 3.0} and before == []


@pytest.mark.slow
def test_a_grid_runs_on_workers_that_stay_and_goes_on_without_them_when_they_end(cache, monkeypatch, capsys):
    monkeypatch.setenv("ROPEWALK_STORE", str(cache / "store"))
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # what is written into the log is no failure by itself
    grid = ["grid", "model=tiny", "strategy=none", "length=64", "short=none", "task=perplexity", "cluster=cpu"]
    try:
        assert run(["up", "model=tiny", "cluster=cpu", "hours=0.2"]) == 0
        assert "workers are up with tiny loaded" in capsys.readouterr().out
        assert run(["up", "model=tiny", "cluster=cpu"]) == 0
        assert "workers are up already" in capsys.readouterr().out
        assert run([*grid, "limit=1"]) == 0
        first = capsys.readouterr().out
        assert "computing on the workers of `ropewalk up`" in first and "1/1  ok" in first
        os.kill(warm.read().pid, 9)
    finally:
        run(["down"])
    capsys.readouterr()
    assert run([*grid, "limit=1", "force=true"]) == 0
    second = capsys.readouterr().out
    assert "workers of" not in second
    number = [line.split("ppl ")[1].split()[0] for line in (first + second).splitlines() if "1/1  ok" in line]
    assert len(number) == 2 and number[0] == number[1], "the same number, wherever it is computed"


def test_nothing_is_collected_within_imports_and_the_collector_is_as_before_after_the_last(monkeypatch):
    monkeypatch.setattr(light, "_own", False)
    with light.uncollected():
        assert gc.isenabled(), "a notebook's is left alone"
    monkeypatch.setattr(light, "_own", True)
    for before in (gc.enable, gc.disable):
        before()
        was = gc.isenabled()
        try:
            with light.uncollected():
                with pytest.raises(ImportError), light.uncollected():
                    raise ImportError
                assert not gc.isenabled()
            assert gc.isenabled() == was
        finally:
            gc.enable()


LIGHT = """
import json, sys
from pipelines.models import light
light.own()
light.load()
import pipelines.workers.evaluate
from transformers import AutoModelForCausalLM
with light.without_compiler():
    model = AutoModelForCausalLM.from_pretrained("models/tiny")
heavy = ("torch._dynamo", "torch._inductor", "torchvision", "scipy", "sklearn", "chardet")
loaded = [name for name in heavy if name in sys.modules]
import torch
twice = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(1)).item()
finite = bool(torch.isfinite(model(torch.ones(1, 9).long()).logits).all())
print(json.dumps([loaded, twice, torch._dynamo.__name__, finite]))
"""


@pytest.mark.slow
def test_a_worker_imports_nothing_of_what_it_does_not_use_and_the_compiler_is_there_when_it_is_asked_for():
    ran = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, cwd=SITE, check=True)
    assert json.loads(ran.stdout.splitlines()[-1]) == [[], 2.0, "torch._dynamo", True]


PLANTED = """
import sys
from pipelines.models import light
light.own()
whole, tries = light._import_all, []

def planted():
    tries.append(1)
    if len(tries) == 1:
        import transformers.configuration_utils, transformers.image_utils
        raise ImportError("cannot import name 'PILImageResampling'")
    whole()

light._import_all = planted
light.load()
from transformers import AutoModelForCausalLM, image_utils
from transformers.utils import is_torchvision_available
model = AutoModelForCausalLM.from_pretrained("models/tiny")
print(len(tries), type(model).__name__, is_torchvision_available.__name__, "torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_where_a_part_of_transformers_does_not_import_lightly_it_is_imported_as_it_is():
    ran = subprocess.run([sys.executable, "-c", PLANTED], capture_output=True, text=True, cwd=SITE, check=True)
    assert ran.stdout.splitlines()[-1] == "2 LlamaForCausalLM is_torchvision_available True"
