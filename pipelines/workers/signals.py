"""Ctrl-C and its kin while cells run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

ASKING = (signal.SIGINT, signal.SIGTERM)
"""Signals that first ask for an end after the running cells: from a keyboard, and from a scheduler."""

HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)
"""The terminal is closed: an end at once."""


@dataclass(frozen=True)
class Interruption:
    """Whether an end was asked for."""

    asked: threading.Event = field(default_factory=threading.Event)
    restore: Callable[[], None] = lambda: None
    """Put our handlers back in the place of a library's."""


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """An event that the first Ctrl-C or SIGTERM sets. The second raises KeyboardInterrupt, as SIGHUP does.

    The first is answered at once, also while this thread is inside a library that lets no handler run.
    """
    if threading.current_thread() is not threading.main_thread():  # Python gives signals to no other
        yield Interruption()
        return
    asked = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if asked.is_set() or number not in ASKING:
            asked.set()
            raise KeyboardInterrupt
        asked.set()

    numbers = dict.fromkeys((*ASKING, HANGUP))
    before = {number: signal.getsignal(number) for number in numbers}

    def install() -> None:
        for number in numbers:
            signal.signal(number, handle)

    terminal = _terminal()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    install()
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    answering = threading.Thread(target=_answer, args=(reading, terminal), daemon=True)
    answering.start()
    try:
        yield Interruption(asked, install)
    finally:
        signal.set_wakeup_fd(woken)
        os.close(writing)
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        answering.join()
        os.close(reading)
        if terminal is not sys.stderr:
            terminal.close()


def _terminal() -> Any:
    """Standard error as it is now, which a cell and Ray's start silence for a while."""
    with suppress(OSError, ValueError, AttributeError):
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)
    return sys.stderr


def _answer(reading: int, terminal: Any) -> None:
    """Say once that a signal was seen. Python writes each one's number into the pipe as it arrives."""
    said = False
    while numbers := os.read(reading, 64):
        if not said and set(numbers) & set(ASKING):
            said = True
            with suppress(OSError, ValueError):  # the terminal may be gone
                print("Finishing running cells; Ctrl-C again aborts", file=terminal, flush=True)
