"""Processes of our own beside this one, which end with it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from pipelines.records.places import python_path

PR_SET_PDEATHSIG = 1

_BEGINNER = ThreadPoolExecutor(1, "begins processes")
"""Linux counts the thread that began a process as its driver: this one stays until Python ends."""


def begin(module: str, *words: str, **options: Any) -> subprocess.Popen[bytes]:
    """python -m module WORDS DRIVER, with our packages on its path; by any thread. options: of Popen."""
    command = [sys.executable, "-m", module, *words, str(os.getpid())]
    options["env"] = {**os.environ, "PYTHONPATH": python_path()}

    def popen() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, **options)

    return _BEGINNER.submit(popen).result()


def begun(driver: int) -> None:
    """What such a process does first: has the kernel end it with its driver, as Linux does, and leaves Ctrl-C and
    requests to end to that. It ends at once where the driver is gone already."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
