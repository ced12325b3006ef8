"""A cell that is cut short goes on where it stood, and has the numbers of one that never was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from cutting import AFTER, Cut, one_a_forward, quick_cell, scored, tiny_cell
from support import PROJECT, random_cell
from test_pool import PATHS

from pipelines.records.journal import Journal
from pipelines.records.results import ANSWERS, Store
from pipelines.tasks.scorer import LongLM
from pipelines.workers import actors, pool
from pipelines.workers import compute as computing
from pipelines.workers.compute import compute, settled

LINES = AFTER + 2
"""Of a file with as many forwards: one for the launch, and an empty one that ends what may be torn."""


def computed(cell, store, run=None, **options):
    [(_, result)] = compute([cell], store, run, **options)
    return result


def answers(store, cell):
    return store.cell(cell.id) / ANSWERS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of a cell that is never cut short."""
    with pytest.MonkeyPatch.context() as patch:
        one_a_forward(patch)
        return computed(quick_cell(), Store(tmp_path_factory.mktemp("scratch")))


@pytest.fixture
def stopped(monkeypatch):
    """Stops a cell's computation after so many forwards, as a second Ctrl-C does."""
    one_a_forward(monkeypatch)

    def cut(cell, store, after, method="_states"):
        original, made = getattr(LongLM, method), []

        def counted(*args, **options):
            if len(made) == after:
                raise KeyboardInterrupt
            made.append(args)
            return original(*args, **options)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(LongLM, method, counted)
            computed(cell, store)

    return cut


def alike(result, whole):
    for name in ("metrics", "series", "documents", "digest", "status"):
        one, other = (scored(result, name), scored(whole, name))
        assert one == other, name


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def sweep(*values):
    return pytest.param(*values, marks=pytest.mark.sweep)


@pytest.mark.parametrize(
    ("cell", "method"),
    [
        (quick_cell(), "_states"),
        sweep(tiny_cell(limit=6, task={"name": "passkey", "keys": 2}, length=160), "_states"),
        sweep(tiny_cell(limit=2, length=640, strategy="crop"), "_states"),
        slow(tiny_cell(limit=6, task={"name": "passkey", "keys": 1, "answer": "generate"}, length=200), "_generated"),
        sweep(tiny_cell(limit=2, task={"name": "perplexity", "evaluator": "none"}, length=640), "_states"),
    ],
    ids=["perplexity", "passkey", "crop", "generated", "key tokens"],
)
def test_the_next_launch_computes_only_the_rest_and_has_the_numbers_of_a_whole_run(cell, method, stopped, tmp_path):
    store, scratch = Store(tmp_path / "store"), Store(tmp_path / "scratch")
    stopped(cell, store, AFTER, method)
    assert store.read(cell.id) is None and len(answers(store, cell).read_bytes().split(b"\n")) == LINES + 1
    went_on, whole = computed(cell, store), computed(cell, scratch)
    assert whole.metrics, whole.error
    alike(went_on, whole)
    assert [one["forwards"] for one in went_on.provenance["cut_short"]] == [AFTER]
    assert went_on.cost["tokens"] < whole.cost["tokens"] and "cut_short" not in whole.provenance
    assert not answers(store, cell).exists() and not answers(scratch, cell).exists()


def test_a_cell_that_is_cut_short_twice_says_from_when_each_part_is(stopped, tmp_path):
    store, cell = Store(tmp_path), quick_cell()
    stopped(cell, store, 1)
    stopped(cell, store, 2)
    first, second = computed(cell, store).provenance["cut_short"]
    assert (first["forwards"], second["forwards"]) == (1, 2) and first["at"] < second["at"]


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda body: body[:-9], AFTER - 1),  # torn
        (lambda body: body.replace(b'"answer": [["', b'"answer": [["AAAA', 1), AFTER - 1),
        (lambda body: body.replace(b'"threads": ', b'"threads": 9', 1), 0),  # and so none of that launch's
        (lambda body: b"\xff\x00\n{}\n" + body, AFTER),
        (lambda body: b"", 0),
    ],
    ids=["torn", "damaged", "another origin", "garbage before", "empty"],
)
def test_what_is_torn_damaged_or_computed_otherwise_is_computed_again(damage, left, stopped, whole, tmp_path):
    store, cell = Store(tmp_path), quick_cell()
    stopped(cell, store, AFTER)
    file = answers(store, cell)
    file.write_bytes(damage(file.read_bytes()))
    result = computed(cell, store)
    alike(result, whole)
    assert sum(one["forwards"] for one in result.provenance.get("cut_short", ())) == left


def test_what_comes_after_a_torn_line_is_kept(stopped, tmp_path):
    store, cell = Store(tmp_path), quick_cell()
    stopped(cell, store, 2)
    answers(store, cell).write_bytes(answers(store, cell).read_bytes()[:-9])
    stopped(cell, store, 3)
    assert [one["forwards"] for one in computed(cell, store).provenance["cut_short"]] == [1, 3]


def test_answers_under_other_packages_code_or_threads_are_not_taken(stopped, tmp_path, monkeypatch):
    store, cell = Store(tmp_path), quick_cell()
    stopped(cell, store, AFTER)
    from pipelines.workers import evaluate

    ours = evaluate._provenance
    monkeypatch.setattr(evaluate, "_provenance", lambda *args: ours(*args) | {"torch": "1.0"})
    assert "cut_short" not in computed(cell, store).provenance


def test_force_takes_nothing_over(stopped, tmp_path):
    store, cell = Store(tmp_path), quick_cell()
    stopped(cell, store, AFTER)
    assert "cut_short" not in computed(cell, store, force=True).provenance


def test_a_disk_that_takes_nothing_costs_no_number(tmp_path, caplog):
    store, cell = Store(tmp_path), random_cell(limit=2)
    answers(store, cell).mkdir(parents=True)
    [result] = list(computing._reusing([cell], store)([cell]))
    assert result.status == "ok"
    Journal(store).start(cell.id)
    [result] = list(computing._reusing([cell], store)([cell]))
    assert result.status == "ok" and "is not kept" in caplog.text


@pytest.mark.slow
def test_a_killed_launch_is_gone_on_with_by_the_next_one(tmp_path, whole, monkeypatch):
    store, cell = Store(tmp_path / "store"), quick_cell()
    script = PROJECT / "tests" / "workers" / "cutting.py"
    run = subprocess.run(
        [sys.executable, script, str(store.root), str(tmp_path / "mark")],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([PATHS, str(PROJECT)])},
    )
    assert run.returncode == -signal.SIGKILL
    assert settled([cell], store) == {}, "no retry=true is needed: each launch comes further"
    one_a_forward(monkeypatch)
    result = computed(cell, store)
    alike(result, whole)
    assert [one["forwards"] for one in result.provenance["cut_short"]] == [AFTER]


@pytest.mark.sweep
@pytest.mark.parametrize("how", ["kill", "hang"])
def test_a_worker_that_is_killed_or_hangs_has_kept_its_forwards(how, tmp_path, whole, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)
    store, cell, mark = Store(tmp_path / "store"), quick_cell(), tmp_path / "mark"
    cut = Cut(computing._reusing([cell], store), how, mark)
    if how == "hang":  # from when it hangs, the driver's clock is a day ahead: no busy machine is that slow
        ahead = SimpleNamespace(monotonic=lambda: time.monotonic() + 86_400.0 * mark.exists())
        monkeypatch.setattr(actors, "time", ahead)

    def run(todo):
        return pool.run(todo, pool.Workers("cpu", count=1, timeout=80_000.0), cut, Journal(store))

    result = computed(cell, store, run)
    if how == "hang":
        assert result.status == "failed" and "cluster.timeout" in result.error
        result = computed(cell, store, run)
    import ray

    ray.shutdown()
    alike(result, whole)
    assert [one["forwards"] for one in result.provenance["cut_short"]] == [AFTER]
