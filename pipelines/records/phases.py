"""Where a command's time goes: phases of this process and of its workers, as lines of JSON in one file.

Nothing is written, and nothing but a look at the environment is spent, unless ROPEWALK_PHASES names that file. Workers
that inherit the environment write into the same one; lines are shorter than what the system appends at once.

    @timed("weights")            # or: with phase("weights"): ...
    def model(...): ...
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

FILE = "ROPEWALK_PHASES"
"""The variable that names the file."""

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Phase:
    """What a process did from `start` (seconds since the epoch) for so many seconds. Phases may lie within others.

    born: when the process began, seconds since the epoch, where the system tells it.
    """

    name: str
    start: float
    seconds: float
    process: int
    born: float | None = None


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Note how long what is within takes, also where it ends with an error."""
    path = os.environ.get(FILE)
    if not path:
        yield
        return
    from pipelines.records import processes

    start = time.time()
    try:
        yield
    finally:
        noted = Phase(name, start, time.time() - start, os.getpid(), processes.born())
        with suppress(OSError), open(path, "a") as file:  # what is measured must not fail for it
            file.write(json.dumps(asdict(noted)) + "\n")


def timed(name: str) -> Callable[[Callable[Arguments, Value]], Callable[Arguments, Value]]:
    """A function whose calls are phases of that name."""

    def decorate(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
        @wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
            with phase(name):
                return function(*args, **kwargs)

        return call

    return decorate


def read(path: Path) -> list[Phase]:
    """The phases noted in a file, by their starts; none where nothing was noted."""
    if not path.exists():
        return []
    return sorted((Phase(**json.loads(line)) for line in path.read_text().splitlines()), key=lambda each: each.start)
