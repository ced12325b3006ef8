"""`ropewalk ui` in a real browser: the saved views draw what a grid measured, and the sweep's page opens in place."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request

import pytest
from support import PROJECT, ropewalk

from pipelines.report import palette

pytestmark = pytest.mark.slow

LINES = """() => [...document.querySelectorAll('.js-plotly-plot')].filter(plot => plot._fullLayout.xaxis).map(plot => ({
  axes: [plot._fullLayout.xaxis.type, plot._fullLayout.yaxis.type],
  lines: Object.fromEntries(plot._fullData.filter(line => (line.x || []).length).map(
    line => [line.name, {x: [...line.x], y: [...line.y], colour: (line.line || {}).color}])),
}))"""
"""What plotly has drawn: the kinds of the axes, and every line by the name that the legend gives it."""


@pytest.fixture(scope="module")
def store(tmp_path_factory, chromium):
    """Of a real grid, with the embedded model."""
    folder = tmp_path_factory.mktemp("ui") / "store"
    cells = ["strategy=none,crop,yarn", "length=512,1024", "task=perplexity", "limit=2", "short=none"]
    ran = ropewalk("grid", *cells, f"store={folder}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


@pytest.fixture(scope="module")
def address(store):
    """What `ropewalk ui` prints, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "pipelines", "ui", port, f"store={store}"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    server = subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        printed = re.search(r"http://\S+", server.stdout.readline())[0]
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            time.sleep(0.5)
        yield printed
    finally:
        server.terminate()
        server.wait(30)


def outside(visit, address):
    here = address.split("/#")[0]
    return [asked for asked in visit.requests if not asked.startswith((here, "blob:", "data:"))]


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (900, True)])
def test_the_address_of_the_ui_opens_on_a_line_a_strategy_with_both_axes_logarithmic(visit, address, width, dark):
    opened = visit(address, width=width, dark=dark)
    opened.page.wait_for_function("document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length >= 3")
    opened.page.wait_for_timeout(1000)
    chart = opened.page.evaluate(LINES)[0]
    lines = {name.split(" ")[0]: line for name, line in chart["lines"].items()}
    assert chart["axes"] == ["log", "log"] and lines.keys() == {"none", "crop", "yarn"}
    for strategy, line in lines.items():
        assert line["x"] == [512, 1024] and all(score > 1 for score in line["y"])
        assert line["colour"].startswith(palette.style(strategy).colour)
    text = opened.page.inner_text("body")
    assert "Difference from none" in text and "perplexity against length" in text
    assert not outside(opened, address)


def test_the_view_of_options_draws_a_line_a_cell(visit, address):
    opened = visit(address.replace("ropewalk-lines", "ropewalk-options"))
    opened.page.get_by_text("Parallel Coordinates").first.wait_for()
    opened.page.get_by_text("perplexity/ppl", exact=False).first.wait_for()


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (900, True)])
def test_the_page_of_a_sweep_opens_in_place_and_asks_for_nothing(visit, address, store, width, dark):
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as database:
        sweeps = (
            "SELECT run_uuid FROM tags JOIN runs USING (run_uuid) WHERE value = 'sweep' AND lifecycle_stage = 'active'"
        )
        [(run,)] = database.execute(sweeps).fetchall()
    run_page = re.sub(r"/runs\?.*", f"/runs/{run}", address)
    usual = visit(run_page, width=width, dark=dark)
    usual.page.get_by_text("Artifacts").first.wait_for()
    opened = visit(f"{run_page}/artifacts/report.html", width=width, dark=dark)
    opened.page.wait_for_selector("iframe", timeout=60_000)
    frame = opened.page.frame_locator("iframe")
    frame.get_by_role("heading").first.wait_for()
    shown = frame.locator("body").inner_text()
    assert "yarn" in shown and "crop" in shown
    assert set(opened.errors) <= set(usual.errors), opened.errors
    assert not outside(opened, address)
