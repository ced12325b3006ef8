"""How far a cell is that is being computed: tokens through its model, for whoever shows progress.

What computes a cell counts; what started it listens, in its own process. A child hands its counts on through the
connection that brings its results, and an actor is asked for them. Where nobody listens, nothing is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str, float], object]
"""Is told (cell id, tokens so far)."""

INTERVAL = 0.5
"""Seconds between two reports of one cell, at least."""

_listeners: list[Listener] = []


def is_heard() -> bool:
    """Whether anybody in this process listens."""
    return bool(_listeners)


def report(cell_id: str, tokens: float) -> None:
    """Tell how far a cell is. What goes wrong in showing it is no fault of the cell."""
    for listener in _listeners:
        listener(cell_id, tokens)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell the listener of all cells that are computed in this process, or through it."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Count:
    """The tokens of one cell, reported now and then."""

    def __init__(self, cell_id: str) -> None:
        self.cell_id, self.tokens, self._said = cell_id, 0.0, time.monotonic()

    def add(self, tokens: float) -> None:
        self.tokens += tokens
        if (now := time.monotonic()) - self._said >= INTERVAL:
            self._said = now
            report(self.cell_id, self.tokens)
