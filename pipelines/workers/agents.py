"""Ray's smaller processes: that a busy machine has time to start them, and that none of them outlives its driver."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

PORTS = range(20_000, 32_768)
"""Above those that a cluster's workers take, below those that the system gives to whoever asks for any."""

UNUSED = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
"""Of the dashboard's agent, which nobody asks anything here."""

SWEEP = """
import os, re, signal, sys, time
mark, session, since = sys.argv[1].encode(), re.compile(f"/(session_[^/]*)_{sys.argv[2]}/").search, sys.argv[3]
def ours(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:
        if mark in file.read():
            return True
    # Ray's agents write their titles over their environment; of all, the logs are open. An earlier process may have had
    # the driver's number, and its Ray may still run: its session is older.
    files = f"/proc/{pid}/fd"
    found = map(session, (os.readlink(f"{files}/{name}") for name in os.listdir(files)))
    return any(log and log[1] >= since for log in found)
sys.stdin.read()  # ends with the driver, whatever ended it
quiet = 0
while quiet < 5:
    quiet += 1
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if ours(pid):
                os.kill(int(pid), signal.SIGKILL)
                quiet = 0
        except OSError:
            pass
    time.sleep(0.2)
"""

_SWEEPERS = list[Any]()  # whose pipes stay open as long as this process lives


def sweep_after(mark: str) -> None:
    """Have a small process end all that bears a mark when this one is gone: Ray's agents outlive it by 20 s."""
    if not Path("/proc/self/environ").is_file():
        return
    since = time.strftime("session_%Y-%m-%d_%H-%M-%S")  # as Ray names its sessions
    command = [sys.executable, "-I", "-S", "-c", SWEEP, mark, str(os.getpid()), since]
    null = subprocess.DEVNULL
    # A bare number and no file object: Python closes those while it ends, and this process, which has Ray's logs open,
    # would be ended by its own sweeper before it has handed on its exit code.
    reading, _ = os.pipe()
    _SWEEPERS.append(subprocess.Popen(command, stdin=reading, stdout=null, stderr=null, start_new_session=True))
    os.close(reading)


@contextmanager
def few(ray: Any) -> Iterator[None]:
    """A start of Ray without what nobody needs on one machine, and with a port for the agent that is needed.

    Ray's raylet gives every agent that chooses its own port 15 s to say which, and ends itself where one of them takes
    longer: on a busy machine they do. Where Ray has other insides than these, it starts as it does by itself.
    """
    parameter = getattr(getattr(ray, "_private", None), "parameter", None)
    if parameter is None or not hasattr(parameter, "RayParams"):
        yield
        return
    whole = parameter.RayParams
    parameter.RayParams = partial(
        whole, include_log_monitor=False, no_monitor=True, runtime_env_agent_port=_free_port()
    )
    try:
        yield
    finally:
        parameter.RayParams = whole


def excuse(ray: Any, raylet: list[str]) -> None:
    """Tell a raylet that nobody listens at the ports of the dashboard's agent, for which it would wait.

    raylet: its command line.
    """
    given = dict(word[2:].split("=", 1) for word in raylet if word.startswith("--") and "=" in word)
    with suppress(AttributeError, KeyError):
        for name in UNUSED:
            ray._raylet.persist_port(given["session_dir"], given["node_id"], name, -1)


def _free_port() -> int:
    """A port of this machine that nobody has now."""
    while True:
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port := random.SystemRandom().choice(PORTS)))
            return port
