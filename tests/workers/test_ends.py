"""However a launch ends: what runs is finished or dropped, quietly, and nothing of it stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from functools import partial

import pytest
from launches import Launch, soon, until

from pipelines.report.painters import Painters
from pipelines.workers import agents

HERE, RAY = {"device": "cpu"}, {"device": "cpu", "count": 2}
CELLS = [(n, {"seconds": 1.5}) for n in range(10, 20)]
LONG = [(n, {"seconds": 60.0}) for n in range(10, 14)]


@pytest.mark.parametrize(
    ("work", "number"),
    [("work", signal.SIGINT), ("work", signal.SIGTERM), ("silenced", signal.SIGTERM)],
    ids=["SIGINT", "SIGTERM", "as lm-eval is silenced"],
)
def test_the_first_ctrl_c_or_sigterm_finishes_the_cell_and_begins_no_other(tmp_path, number, work):
    launch = Launch(tmp_path, CELLS[:4], HERE, work)
    until(lambda: launch.began == 1)
    launch.process.send_signal(number)
    until(lambda: "Finishing running cells" in launch.errors, soon(1.0))
    lines, _ = launch.end()
    assert lines == ["start", "ok 13", "stopped"] and launch.process.returncode == 130
    assert launch.began == 1 and not launch.noted


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_ends_at_once(tmp_path, second):
    launch = Launch(tmp_path, LONG, HERE)
    until(lambda: launch.began == 1)
    launch.process.send_signal(signal.SIGINT)
    until(lambda: "Finishing running cells" in launch.errors, soon(1.0))
    launch.process.send_signal(second)
    lines, seconds = launch.end()
    assert lines[-1] == "stopped" and seconds < soon(1.0) and not launch.noted


def test_a_closed_terminal_ends_at_once(tmp_path):
    launch = Launch(tmp_path, LONG, HERE)
    until(lambda: launch.began == 1)
    launch.process.send_signal(signal.SIGHUP)
    lines, seconds = launch.end()
    assert lines[-1] == "stopped" and seconds < soon(1.0) and not launch.noted


def test_a_signal_is_answered_while_a_library_lets_no_handler_run(tmp_path):
    """One long call into C, as of a large matrix product."""
    blocks = "import ctypes; work = lambda cells: (ctypes.CDLL(None).sleep(5), *test_pool_work(cells))[1:]"
    launch = Launch(tmp_path, [(10, {})], HERE, before=f"test_pool_work = work; {blocks}")
    until(lambda: launch.began == 1)
    launch.process.send_signal(signal.SIGTERM)
    until(lambda: "Finishing running cells" in launch.errors, soon(1.0))
    assert launch.end()[0][-1] == "stopped"


@pytest.mark.slow
def test_sigterm_on_ray_finishes_what_runs_and_says_nothing_else(tmp_path):
    launch = Launch(tmp_path, CELLS, RAY)
    until(lambda: launch.began == 2)
    launch.process.send_signal(signal.SIGTERM)
    until(lambda: "Finishing running cells" in launch.errors, soon(1.0))
    lines, _ = launch.end()
    assert [line[:2] for line in lines] == ["st", "ok", "ok", "st"] and launch.began == 2
    assert launch.said == ["Finishing running cells; Ctrl-C again aborts"]
    assert not launch.gone() and not launch.noted


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.sweep), pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_a_signal_while_ray_starts_ends_within_a_second_and_quietly(tmp_path, number):
    launch = Launch(tmp_path, CELLS, RAY)
    until(lambda: launch.left("raylet"))
    launch.process.send_signal(number)
    lines, seconds = launch.end()
    assert lines[-1] == "stopped" and seconds < soon(1.0) and launch.process.returncode == 130
    assert launch.said == ["Finishing running cells; Ctrl-C again aborts"]
    assert not launch.gone()


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), pytest.param(signal.SIGHUP, marks=pytest.mark.sweep)],
)
def test_nothing_stays_of_ray_whatever_ended_the_driver(tmp_path, number):
    launch = Launch(tmp_path, LONG, RAY)
    until(lambda: launch.began == 2)
    parts = launch.left()
    assert len(parts) > 5
    heard = {place.laddr.ip for part in parts for place in part.net_connections() if place.status == "LISTEN"}
    assert heard <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, "Ray can be reached from other machines"
    launch.process.send_signal(number)
    launch.end()
    assert not launch.gone()
    assert len(launch.noted) == (2 if number == signal.SIGKILL else 0)


@pytest.mark.slow
def test_a_driver_that_ends_slowly_keeps_its_exit_code(tmp_path):
    """As a notebook or pytest does: Python takes its modules apart before the process is gone."""
    slow = """
import time
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(2)
sys.slow, os._exit = Slow(), sys.exit
"""
    launch = Launch(tmp_path, [(10, {}), (11, {})], RAY, before=slow)
    lines, _ = launch.end()
    assert sorted(lines) == ["ok 10", "ok 11", "start"] and launch.process.returncode == 0
    assert not launch.gone()


def test_nothing_stays_of_a_child_whose_driver_was_killed(tmp_path):
    close = "from pipelines.workers import deaths; deaths.expected = lambda cell: 1e15"
    cells = [(n, {**options, "folder": str(tmp_path)}) for n, options in LONG]
    launch = Launch(tmp_path, cells, HERE, before=close, evaluator="work")
    until(lambda: list(tmp_path.glob("*.0")) and len(launch.left()) == 2)
    launch.process.kill()
    launch.end()
    assert not launch.gone(1.0)


def test_a_process_stays_when_the_thread_that_began_it_ends():
    """As a worker of `ropewalk up` that was begun anew within a command, or painters begun beside the cells."""
    painters, asked = Painters(1), [partial(eval, "[__import__('os').getpid()]")]

    def work():
        painters.begin()
        painters.draw(asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    try:
        assert painters.draw(asked) == [[painters._processes[0].pid]]
    finally:
        painters.close()


def test_what_an_earlier_driver_of_the_same_number_left_is_not_ended(tmp_path):
    """Whose a process of Ray's is, the logs tell that it has open; its session is named by when it began."""
    number = str(2**22 + 1)  # which no process has

    def logging_to(session):
        folder = tmp_path / f"{session}_{number}"
        folder.mkdir()
        with (folder / "log").open("w") as log:
            return subprocess.Popen(["sleep", "60"], stdout=log)

    earlier, ours = map(logging_to, ("session_2025-12-31_23-59-59_123456", "session_2026-01-02_00-00-01_000001"))
    try:
        sweep = [sys.executable, "-I", "-S", "-c", agents.SWEEP, "in no environment", number]
        subprocess.run([*sweep, "session_2026-01-02_00-00-00"], stdin=subprocess.DEVNULL, check=True)
        assert ours.wait(10) == -signal.SIGKILL and earlier.poll() is None
    finally:
        for process in (earlier, ours):
            process.kill()
            process.wait()
