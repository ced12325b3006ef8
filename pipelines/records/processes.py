"""Which process this is, in a form that tells it from every other one, and whether such a process still runs.

A start is told by the run of the machine and the kernel's ticks since, which no setting of the clock moves. Names of
machines are not written down: what is kept may be shown to anyone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from functools import lru_cache
from pathlib import Path

import psutil


@lru_cache(maxsize=1)
def machine() -> str:
    """12 hexadecimal digits of this machine, or of the container, as process numbers of two of them may be alike."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:12]


def boot() -> str:
    """What tells this run of the machine from those before and after; "" where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def this_process() -> str:
    """This process as MACHINE:PID:START, so that it is not taken for a later one with the same number."""
    return named(os.getpid())


def named(pid: int) -> str:
    """A process of this machine as MACHINE:PID:START.

    Raises:
        psutil.Error: there is none.
    """
    return f"{machine()}:{pid}:{_start(pid)}"


def _start(pid: int) -> str:
    """BOOT-TICKS; where the system does not tell, seconds since 1970, which move with the clock."""
    with contextlib.suppress(OSError, IndexError):
        # after the name, which may hold anything: state, ..., and as field 22 the start
        return f"{boot()[:8]}-{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    return f"{psutil.Process(pid).create_time():.0f}"


def born() -> float | None:
    """When this process began, in seconds since the epoch; None where the system does not tell."""
    with contextlib.suppress(psutil.Error):
        return float(psutil.Process().create_time())
    return None


def is_running(process: str) -> bool | None:
    """Whether the process that `this_process` named runs; None where it is another machine's, which cannot be asked."""
    try:
        where, pid, start = process.rsplit(":", 2)
        number, began = int(pid), None if "-" in start else float(start)
    except ValueError:
        return False
    if where not in (machine(), socket.gethostname()):  # earlier versions wrote the name
        return None
    with contextlib.suppress(psutil.Error):
        other = psutil.Process(number)
        # earlier versions wrote seconds since 1970
        same = start == _start(number) if began is None else abs(other.create_time() - began) < 2
        return bool(same and other.status() != psutil.STATUS_ZOMBIE)
    return False
