"""Which process this is, in a form that tells it from every other one, and whether such a process still runs.

Names of machines are not written down: what is kept may be shown to anyone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from functools import lru_cache

import psutil


@lru_cache(maxsize=1)
def machine() -> str:
    """12 hexadecimal digits of this machine, or of the container, as process numbers of two of them may be alike."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:12]


def this_process() -> str:
    """This process as MACHINE:PID:START, so that it is not taken for a later one with the same number."""
    return f"{machine()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def is_running(process: str) -> bool | None:
    """Whether the process that `this_process` named runs; None where it is another machine's, which cannot be asked."""
    try:
        where, pid, start = process.rsplit(":", 2)
        number, began = int(pid), float(start)
    except ValueError:
        return False
    if where not in (machine(), socket.gethostname()):  # earlier versions wrote the name
        return None
    with contextlib.suppress(psutil.Error):
        other = psutil.Process(number)
        # the start is reckoned from the boot, whose time moves with the clock
        return bool(abs(other.create_time() - began) < 2 and other.status() != psutil.STATUS_ZOMBIE)
    return False
