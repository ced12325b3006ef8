"""Ray, started here or joined at RAY_ADDRESS: that it comes up, that it is still there, and that nothing of it stays.
Owns ray.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from pipelines.models import light
from pipelines.records.cells import Refusal
from pipelines.records.phases import timed
from pipelines.records.places import SITE, python_path
from pipelines.records.refusal import LaunchEnded, first_line
from pipelines.workers import agents
from pipelines.workers.schedule import Workers
from pipelines.workers.signals import Interruption

START = 240.0
"""Seconds within which Ray must be there: on a busy machine its processes take minutes."""
JOIN = 60.0
"""Seconds within which a cluster must have taken this driver."""
ANSWER = 10.0
"""Seconds within which a cluster's head must answer."""
CHECK = 5.0
"""Seconds between two looks at whether Ray is still there."""
STEP = 0.5
"""Seconds after which whoever waits looks around: for Ctrl-C, for Ray."""

LOGS = "its logs in /tmp/ray/session_latest/logs"

MARK = "ROPEWALK_DRIVER"
"""In the environment of all that a local start of Ray begins, to find it by when the driver is gone."""


class Lost(RuntimeError):
    """Ray, or a part of it without which nothing goes on, is gone; says which."""


class Cluster:
    """Ray, of one start or one connection.

    Raises:
        Refusal: nobody answers at RAY_ADDRESS, or what does is of another version.
        LaunchEnded: Ray does not start.
        KeyboardInterrupt: Ctrl-C, while it starts.
    """

    def __init__(self, workers: Workers, interruption: Interruption) -> None:
        self.address = os.environ.get("RAY_ADDRESS")
        self._needed: dict[str, psutil.Process] = {}
        self._checked = time.monotonic()
        # Under `uv run` Ray would build uv's environment anew for every worker; ours is there already.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # What its processes say stays in its logs: of a lost one Ray prints the last fifty lines among the results.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Seconds: on a busy machine Ray's processes take more than the half minute that it allows them.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
        os.environ.setdefault("RAY_agent_register_timeout_ms", "180000")
        # It would start a worker for every core, and none of them with what ours are started with.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        if self.address is None and "ray" not in sys.modules:  # it reads these once, when it is imported
            # Ray's switch for systems whose firewall asks: every one of its processes listens on 127.0.0.1 alone.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            if "RAY_AUTH_MODE" not in os.environ:  # nor may other users of this machine send it work
                os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        with light.uncollected():
            import ray

        self.ray = ray
        if ray.is_initialized():
            return
        if self.address is None:
            self._start(_local(ray, workers), interruption)
        else:
            reach(self.address)
            shipped = {"working_dir": str(SITE), "excludes": left_out(SITE)}
            self._start(lambda: ray.init(runtime_env=shipped, **QUIET), interruption)

    @timed("Ray")
    def _start(self, init: Callable[[], Any], interruption: Interruption) -> None:
        """Ray's init in a thread, as it may take minutes inside of C++, where no Ctrl-C is seen."""
        done, outcome = threading.Event(), list[BaseException]()

        def work() -> None:
            try:
                init()
            except BaseException as error:
                outcome.append(error)
            done.set()
            # The kernel ends what Ray started together with the thread that started it.
            threading.Event().wait()

        mark = secrets.token_hex(16)
        if self.address is None:
            agents.sweep_after(mark)
            os.environ[MARK] = mark
        with _silent(), _leaving_at_once():
            threading.Thread(target=work, name="ray", daemon=True).start()
            limit = START if self.address is None else JOIN
            deadline = time.monotonic() + limit
            while not done.wait(STEP / 2):
                interruption.restore()  # Ray puts handlers of its own in the place of ours
                if interruption.asked.is_set():
                    raise KeyboardInterrupt
                self._look()
                if lost := self._gone():
                    raise LaunchEnded(f"Ray did not start: its {lost} ended at once; see {LOGS}")
                if time.monotonic() > deadline:
                    raise LaunchEnded(f"Ray was not there after {limit:.0f} s{self._where}")
        self._look()
        interruption.restore()
        if outcome:
            error = outcome[0]
            if "ersion mismatch" in str(error):
                raise Refusal(f"Ray{self._where} is of another version: {' '.join(str(error).split())}") from error
            if self.address is not None and ("onnect to Ray cluster" in str(error) or "uthenticat" in str(error)):
                raise Refusal(
                    f"Ray{self._where} does not take this driver: {first_line(error)}; where its nodes were started "
                    "with RAY_AUTH_MODE=token, give RAY_AUTH_MODE=token here too, and their token (RAY_AUTH_TOKEN, or "
                    "the file ~/.ray/auth_token)"
                ) from error
            raise LaunchEnded(
                f"Ray did not start{self._where}: {first_line(error)}; see {LOGS}, or "
                "give cluster.workers=1, which needs no Ray on a CPU"
            ) from error

    @property
    def _where(self) -> str:
        return f" at RAY_ADDRESS={self.address}" if self.address else ""

    def check(self, *, now: bool = False) -> None:
        """Look, from time to time or now, whether Ray is still there.

        Raises:
            Lost: it is not.
        """
        if not now and time.monotonic() - self._checked < CHECK:
            return
        if lost := self._gone():
            raise Lost(f"Ray's {lost} is gone")
        if self.address is not None:
            answered = threading.Event()

            def ask() -> None:
                self.ray.nodes()
                answered.set()

            threading.Thread(target=ask, daemon=True).start()
            if not answered.wait(2 * ANSWER):
                raise Lost(f"Ray's head{self._where} does not answer")
        self._checked = time.monotonic()

    def _look(self) -> None:
        """Note the processes without which a local Ray is none, as they come."""
        if self.address is None:
            for part in psutil.Process().children():
                with suppress(psutil.Error):
                    name = part.name()
                    if name in ("gcs_server", "raylet") and part.status() != psutil.STATUS_ZOMBIE:
                        if name == "raylet" and name not in self._needed:
                            if not (line := part.cmdline()):  # Linux has its name a moment before
                                continue
                            agents.excuse(self.ray, line)
                        self._needed[name] = part

    def _gone(self) -> str | None:
        """The name of one of them that is gone."""
        for name, part in self._needed.items():
            with suppress(psutil.NoSuchProcess):
                if part.is_running() and part.status() != psutil.STATUS_ZOMBIE:
                    continue
            return name
        return None

    def close(self) -> None:
        """Leave Ray, within a while: one of which parts are gone may never answer."""
        leaving = threading.Thread(target=self.ray.shutdown, daemon=True)
        leaving.start()
        leaving.join(ANSWER)


QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def _local(ray: Any, workers: Workers) -> Callable[[], Any]:
    """A start of Ray on this machine alone."""
    cpus = max(os.cpu_count() or 1, (workers.count or 1) * workers.cpus)
    paths = {"PYTHONPATH": python_path()}

    def init() -> None:
        with agents.few(ray):
            # "local": by itself it would join whatever Ray somebody else has started on this machine.
            ray.init("local", num_cpus=cpus, include_dashboard=False, runtime_env={"env_vars": paths}, **QUIET)

    return init


def reach(address: str) -> None:
    """That somebody listens at RAY_ADDRESS: Ray itself would try for minutes, and say nothing.

    Raises:
        Refusal: nobody does.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:  # such as `auto`, which Ray looks up at once
        return
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=ANSWER).close()
    except OSError as error:
        raise Refusal(
            f"RAY_ADDRESS={address}: nobody answers there ({first_line(error)}); start the cluster's head "
            "(ray start --head), give its address, or unset RAY_ADDRESS to compute on this machine"
        ) from error


def left_out(project: Path) -> list[str]:
    """What a cluster's workers do not need of the project's folder: all but code, conf and the embedded model."""
    wanted = {"rope", "pipelines", "conf", "models", "pyproject.toml"}
    others = [path for path in project.iterdir() if path.name not in wanted]
    others += [path for path in (project / "models").glob("*") if path.name != "tiny"]
    return [f"/{path.relative_to(project)}" for path in others]


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing of C++ in the terminal, where it traces a signal during Ray's start; Python's text stays."""
    try:
        number = sys.stderr.fileno()
        kept = os.dup(number)
    except (OSError, ValueError, AttributeError):  # a notebook, or none
        yield
        return
    before = sys.stderr
    with open(os.devnull, "w") as null, os.fdopen(kept, "w", buffering=1) as terminal:
        os.dup2(null.fileno(), number)
        sys.stderr = terminal
        try:
            yield
        finally:
            os.dup2(kept, number)
            sys.stderr = before


@contextmanager
def _leaving_at_once() -> Iterator[None]:
    """Where this is left by an exception, Ray is half there: the process ends without Ray's own end, which aborts."""
    try:
        yield
    except BaseException as error:
        atexit.register(_leave, 130 if isinstance(error, KeyboardInterrupt) else 1)
        raise
    finally:
        os.environ.pop(MARK, None)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
