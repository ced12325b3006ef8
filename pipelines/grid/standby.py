"""`ropewalk up`: workers as a grid of the same choices would have them, started to stay."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipelines.choices.sweep import cells_of
from pipelines.grid.request import requested
from pipelines.records.places import cache_folder, python_path
from pipelines.records.refusal import LaunchEnded, Refusal
from pipelines.workers import compute, warm
from pipelines.workers.keeper import Start

PATIENCE = 600.0
"""Seconds within which workers must have loaded their model."""


def up(overrides: Sequence[str], hours: str) -> str:
    """Start workers that stay, and load the model; what to say of them.

    Raises:
        Refusal: the choices are none of one model and cluster, the hours no number, or other workers are kept already.
        LaunchEnded: they do not start.
    """
    begin = time.monotonic()
    idle = _seconds(hours)
    given = {override.partition("=")[0] for override in overrides}
    others = {"model": "tiny", "length": "512", "task": "perplexity"}  # of which the workers know nothing
    grid = requested(
        [*overrides, "strategy=none", "short=none", *(f"{k}={v}" for k, v in others.items() if k not in given)]
    )
    if len({(choice.model.name, choice.dtype) for choice in grid.choices}) != 1:
        raise Refusal("ropewalk up loads one model: give one model=, one dtype= and one cluster=")
    cell = cells_of(grid.choices[:1])[0]
    wanted = compute.workers(grid.first.cluster, cell.device)
    if (kept := warm.read()) is not None:
        if reason := warm.differences(kept, wanted):
            raise Refusal(f"workers are up already (since {kept.since}), and not such: {reason}; `ropewalk down` first")
        return f"workers are up already, since {kept.since}; `ropewalk down` ends them"
    log = cache_folder() / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix="ropewalk-up-", delete=False) as file:
        file.write(pickle.dumps(Start(wanted, cell, idle)))
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.workers.keeper", file.name],
            env={**os.environ, "PYTHONPATH": python_path()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while (kept := warm.read()) is None:
            if process.poll() is not None or time.monotonic() - begin > PATIENCE:
                raise LaunchEnded(f"the workers did not start: {_last(log)} (all of it: {log})")
            time.sleep(0.1)
    except BaseException:
        with suppress(OSError):
            process.kill()
        raise
    finally:
        Path(file.name).unlink(missing_ok=True)
    trouble = f"; its model did not load: {kept.trouble}" if kept.trouble else f" with {cell.model.name} loaded"
    return (
        f"workers are up{trouble} ({time.monotonic() - begin:.1f} s): the next grids on {cell.device} use them. "
        f"`ropewalk down` ends them; without a command they end after {hours} hours"
    )


def _seconds(hours: str) -> float:
    try:
        number = float(hours)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise Refusal(f"hours={hours[:60]}: give a number of hours above 0")
    return number * 3600


def _last(log: Path) -> str:
    """The last line that was said, "" where none was."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line[:300] for line in reversed(lines) if line), "")
