"""What a grid shows while it runs: bars that move within a cell, plain lines where nobody looks, events of JSON."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from pathlib import Path

import pytest
from support import TINY, stub_cell

from pipelines.choices.estimate import CellWork
from pipelines.records import meter
from pipelines.records.cells import Result
from pipelines.report import progress
from pipelines.report.progress import GridProgress
from pipelines.report.terminal import plain_console
from pipelines.workers.actors import Pool
from pipelines.workers.child import Child
from pipelines.workers.pool import Workers, run
from pipelines.workers.signals import interruptible

CELL, ANOTHER = stub_cell(length=1000), stub_cell(length=999)

ENTER = GridProgress.__enter__


def counting(cells):
    """An evaluator whose cells take four reports of 250 tokens."""
    for cell in cells:
        count = meter.Count(cell.id)
        for _ in range(4):
            time.sleep(meter.INTERVAL * 1.2)
            count.add(250)
        yield Result(cell.id, "ok", {"ppl": 4.0}, cost={"seconds": 1.0})


@pytest.fixture(autouse=True)
def known_work(monkeypatch):
    work = {CELL.id: CellWork(1, 1000, 1000, 1000)}
    monkeypatch.setattr(progress.estimate, "survey", lambda cells: (work, {}))

    def surveyed(self):
        shown = ENTER(self)
        if self.surveying.ident is not None:
            self.surveying.join()
        return shown

    monkeypatch.setattr(GridProgress, "__enter__", surveyed)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_events_tell_how_far_a_cell_is_and_when_it_will_end(monkeypatch):
    now, told = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with GridProgress([CELL], plain_console(file=io.StringIO()), told.append) as shown:
        for tokens in (100, 300):
            meter.report(CELL.id, tokens)
            meter.report("another grid's", 1)
            now[0] += 10
        shown(CELL, Result(CELL.id, "ok", {"ppl": 4.0}, cost={"seconds": 20.0}))
    first, second, end = told
    assert (first["tokens"], first["of"], first["seconds_left"]) == (100, 1000, None)
    assert second["tokens"] == 300 and second["seconds_left"] == pytest.approx(700 / 200 * 10)
    assert end["event"] == "cell" and end["metrics"] == {"ppl": 4.0} and json.dumps(told)
    assert not meter.is_heard()


def test_cells_do_not_wait_until_it_is_known_how_long_they_are(monkeypatch):
    known, told = threading.Event(), []
    monkeypatch.setattr(progress.estimate, "survey", lambda cells: (known.wait(10), ({}, {}))[1])
    monkeypatch.setattr(GridProgress, "__enter__", ENTER)
    begun = time.monotonic()
    with GridProgress([CELL], plain_console(file=io.StringIO()), told.append):
        meter.report(CELL.id, 100)
        assert time.monotonic() - begun < 5
        known.set()
    assert (told[0]["tokens"], told[0]["of"]) == (100, None)


def test_a_terminal_sees_tokens_while_lm_eval_is_kept_quiet():
    from pipelines.tasks.scorer import quiet

    page = Terminal()
    with GridProgress([CELL], plain_console(file=page)) as shown:
        with quiet():
            meter.report(CELL.id, 400)
            time.sleep(0.6)
        shown(CELL, Result(CELL.id, "ok", {"ppl": 4.0}, cost={"seconds": 1.0}))
    text = page.getvalue()
    assert "400 of 1,000 tokens" in text
    assert "tokens1/1" not in text.replace("\r", "") and "1/1  ok" in text


def test_where_nobody_looks_there_are_plain_lines_and_nothing_is_counted():
    page = io.StringIO()
    with GridProgress([CELL], plain_console(file=page)) as shown:
        assert not meter.is_heard()
        shown(CELL, Result(CELL.id, "ok", {"ppl": 4.0}, cost={"seconds": 1.0}))
    assert page.getvalue().count("\n") == 1 and "\x1b" not in page.getvalue()


def test_reports_come_now_and_then_and_hold_all_tokens(monkeypatch):
    heard, now = [], [0.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    with meter.listening(lambda *far: heard.append(far)):
        count = meter.Count("a")
        for _ in range(80):
            now[0] += meter.INTERVAL / 4
            count.add(10)
    assert [tokens for _, tokens in heard] == [40.0 * n for n in range(1, 21)]


def test_a_child_passes_on_how_far_it_is(monkeypatch):
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parent}")  # where it finds `counting`
    heard = []
    with meter.listening(lambda *far: heard.append(far)):
        child = Child(counting)
        try:
            result = child.run(CELL)
        finally:
            child.close()
    assert result.status == "ok" and [tokens for _, tokens in heard] == [250, 500, 750, 1000]
    assert {cell_id for cell_id, _ in heard} == {CELL.id}


@pytest.mark.slow
@pytest.mark.parametrize("started", ["as cells come", "before anybody asks"])
def test_a_worker_of_ray_is_asked_how_far_it_is(started):
    def local(cells):  # such a function travels by value
        import time

        from pipelines.records import meter
        from pipelines.records.cells import Result

        for cell in cells:
            count = meter.Count(cell.id)
            for _ in range(6):
                time.sleep(1)
                count.add(250)
            yield Result(cell.id, "ok")

    import ray

    heard, workers, begun = [], Workers("cpu", count=2, retries=0), None
    if started != "as cells come":  # as a grid has them, while its cells are prepared
        begun = Pool(workers, local, None)
        with interruptible() as interruption:
            begun.begin(1, interruption)
    with meter.listening(lambda *far: heard.append(far)):
        results = dict(run([CELL, ANOTHER], workers, local, begun=begun))
    ray.shutdown()
    assert [result.status for result in results.values()] == ["ok"] * 2
    assert {cell_id for cell_id, _ in heard} == {CELL.id, ANOTHER.id}
    assert max(tokens for _, tokens in heard) >= 500


def test_tokens_are_counted_within_a_forward_and_numbers_stay_the_same(tiny_folder):
    from pipelines.choices.config import Cluster, Device, ModelChoice, Workbench
    from pipelines.choices.sweep import cell_of
    from pipelines.workers.evaluate import evaluate

    cell = cell_of(
        Workbench(
            model=ModelChoice("tiny", str(tiny_folder)),
            strategy={"name": "none"},
            length=128,
            limit=2,
            cluster=Cluster(device=Device.cpu),
            task={"name": "perplexity", "text": "pydoc", "last": 32, "buckets": 4},
        )
    )
    [plain] = evaluate([cell])
    counts = []
    original, meter.INTERVAL = meter.INTERVAL, 0.0
    try:
        with meter.listening(lambda *far: counts.append(far[1])):
            [counted] = evaluate([cell])
    finally:
        meter.INTERVAL = original
    assert counted.documents == plain.documents and counted.metrics == plain.metrics
    assert counts[0] == pytest.approx(counts[-1] / 2), "a report a layer, of which it has two"
    assert counts[-1] == plain.cost["tokens"]


@pytest.mark.slow
def test_a_grid_speaks_to_machines_on_stdout_and_to_people_on_stderr(tmp_path, capsys):
    from pipelines.cli.main import run as ropewalk

    words = ["grid", f"model={TINY}", "strategy=none", "length=512", "limit=2", "short=none", "cluster=cpu"]
    words.append(f"store={tmp_path / 'store'}")
    assert ropewalk([*words, "--json-lines"]) == 0
    ran = capsys.readouterr()
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert [event["event"] for event in events if event["event"] != "progress"] == ["start", "cell", "end"]
    assert events[-1]["cells"][0]["metrics"]["ppl"] > 1 and events[-1]["sweep"] == events[0]["sweep"]
    assert "1 to run" in ran.err and "1 ok" in ran.err
    assert ropewalk([*words, "--json"]) == 0
    ran = capsys.readouterr()
    assert json.loads(ran.out)["complete"] is True and "1 finished before" in ran.err
    assert ropewalk([*words, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
