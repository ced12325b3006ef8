"""Recording beside the computing: in a thread, which may fail or hang without stopping anything.

The results on disk are the truth, and MLflow can always be brought to what they say (`ropewalk sync`). So nothing that
goes wrong here is an error of the command: it ends in one sentence.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

from pipelines.records.phases import timed
from pipelines.records.public import public
from pipelines.records.refusal import first_line

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds without a finished write after which MLflow counts as out of reach, once there is nothing left to compute."""

SOON = 5.0
"""Seconds of waiting after which that is said."""

PAUSES = (1.0, 4.0)
"""Seconds before recording is tried again as a whole, after it failed."""


class Recorder(Generic[T]):
    """Writes to MLflow in the order of the calls, in a thread of its own.

    open: gives the context manager of what is written to, such as Tracker.open; entered in the thread, and left when
        recording ends, so that the run shows how it ended. repair: records all of it anew, after something failed.
    """

    def __init__(self, open: Callable[[], AbstractContextManager[T]], repair: Callable[[], Any] | None = None) -> None:
        self._open, self._repair = open, repair
        self._writes: queue.Queue[Callable[[T], Any] | None] = queue.Queue()
        self._interrupted = False
        self._failure: BaseException | None = None
        self._moved = time.monotonic()
        # a daemon: a write that hangs must not keep the process from ending
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def submit(self, write: Callable[[T], Any]) -> None:
        """Have something written when its turn comes; returns at once."""
        self._writes.put(write)

    @timed("MLflow, left to write")
    def close(self, *, interrupted: bool = False, say: Callable[[str], Any] = lambda text: None) -> str:
        """Wait until all is written; why it is not, in a line, or "". Ctrl-C ends the waiting.

        interrupted: the run ends as one that was interrupted. say: is told once that this takes a while.
        """
        self._interrupted = interrupted
        start = self._moved = time.monotonic()
        self._writes.put(None)
        said = False
        try:
            while self._thread.is_alive():
                self._thread.join(0.2)
                if time.monotonic() - self._moved > PATIENCE:
                    return f"nothing was written for {PATIENCE:.0f} s"
                if not said and time.monotonic() - start > SOON:
                    say("writing to MLflow ... (all results are saved; Ctrl-C leaves the rest to `ropewalk sync`)")
                    said = True
        except KeyboardInterrupt:
            return "interrupted"
        return "" if self._failure is None else in_a_line(self._failure)

    def _work(self) -> None:
        try:
            with self._open() as target:
                while (write := self._writes.get()) is not None:
                    write(target)
                    self._moved = time.monotonic()
                if self._interrupted:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass  # the run was left as interrupted
        except BaseException as error:
            log.debug("recording failed", exc_info=True)
            self._failure = error
            self._try_again()

    def _try_again(self) -> None:
        """Wait for the end of the computing, then record everything anew, as all results are on disk by then."""
        if self._repair is None:
            return
        while self._writes.get() is not None:
            pass
        for pause in PAUSES:
            time.sleep(pause)
            self._moved = time.monotonic()
            try:
                self._repair()
            except Exception as error:
                self._failure = error
            else:
                self._failure = None
                return


def attempt(write: Callable[[], Any]) -> str:
    """Write something now; why it could not be written, in a line, or ""."""
    recorder: Recorder[None] = Recorder(nullcontext)
    recorder.submit(lambda _: write())
    return recorder.close()


def unrecorded(reason: str, remedy: str = "`ropewalk sync` records them") -> str:
    """What to say where MLflow could not be written."""
    return f"MLflow is not up to date ({reason}); the results are safe, and {remedy}"


def in_a_line(error: BaseException) -> str:
    """What went wrong, in one line: MLflow's errors carry the whole query."""
    kind, line = type(error).__name__, public(first_line(error))[:160]
    return kind if line == kind else f"{kind}: {line}"
