"""What a grid shows while it runs: a line a finished cell; in a terminal also how far those are that run; for machines
an event each."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from pipelines.choices import estimate
from pipelines.records import meter
from pipelines.records.cells import Cell, Result
from pipelines.records.numbers import duration
from pipelines.report import tables, terminal

Events = Callable[[Mapping[str, Any]], object]
"""Takes what happens, as plain data with its kind under `event`."""


class GridProgress:
    """A line a finished cell, with the time that the rest should take; within the block also what runs.

    A bar a running cell where the console is a terminal: tokens done, and the time left. events: is told of everything,
    and of what runs too. when: returns when the lengths of texts may be looked up, which takes processor time.
    """

    def __init__(
        self,
        todo: Sequence[Cell],
        console: Console = terminal.console,
        events: Events | None = None,
        when: Callable[[], object] = lambda: None,
    ) -> None:
        self.console, self.events, self.when = console, events, when
        self.cells = {cell.id: cell for cell in todo}
        self.left = {cell.id: work_of(cell) for cell in todo}
        self.total, self.spent, self.seconds = len(todo), 0.0, 0.0
        self.start = time.monotonic()
        self.tokens: dict[str, int | None] = {}
        self.surveying = threading.Thread(target=self._survey, daemon=True)
        self.running: dict[str, tuple[float, float]] = {}  # when it was first heard of, and its share done
        self._bars: dict[str, TaskID] = {}
        self._live: Progress | None = None
        self._stack = ExitStack()

    def __enter__(self) -> GridProgress:
        moves = self.console.is_terminal and not self.console.is_dumb_terminal and not self.console.quiet
        if self.cells and (moves or self.events is not None):
            # beside the cells: to know how long they are, their documents are made
            self.surveying.start()
            self._stack.enter_context(meter.listening(self.heard))
        if self.cells and moves:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[said]}"))
            # A console of its own on the same stream: scoring turns sys.stdout aside to keep lm-eval quiet.
            console = terminal.plain_console(self.console.width, self.console.file)
            self._live = Progress(*columns, console=console, refresh_per_second=4, transient=True)
            self._stack.enter_context(self._live)
            self._overall = self._live.add_task("all cells", total=self.total, said="starting")
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()
        self._live = None

    def _survey(self) -> None:
        self.when()
        self.tokens = {cell_id: work.tokens for cell_id, work in estimate.survey(self.cells.values())[0].items()}

    def __call__(self, cell: Cell, result: Result) -> None:
        """A cell has its result."""
        work = self.left.pop(cell.id, 0.0)
        self.running.pop(cell.id, None)
        if self._live is not None and cell.id in self._bars:
            self._live.remove_task(self._bars.pop(cell.id))
        if "seconds" in result.cost:
            self.spent += work
            self.seconds += result.cost["seconds"]
        finished = self.total - len(self.left)
        number = f"{finished:>{len(str(self.total))}}/{self.total}"
        remaining = self.remaining() if self.left and self.spent else None
        eta = f"  left {duration(remaining)}" if remaining is not None else ""
        if self._live is not None:
            self._live.update(self._overall, completed=finished, said=f"{finished} of {self.total}{eta}")
        self.say(f"{number}  {line(cell, result)}{eta}")
        sys.stdout.flush()
        self._tell("cell", **plain(cell, result), finished=finished, of=self.total, seconds_left=remaining)

    def say(self, text: str) -> None:
        """A line for people, above the bars where there are any."""
        (self.console if self._live is None else self._live.console).print(text)

    def heard(self, cell_id: str, tokens: float) -> None:
        """How far a cell is that runs."""
        if cell_id not in self.left:
            return
        total, now = self.tokens.get(cell_id), time.monotonic()
        share = min(1.0, tokens / total) if total else 0.0
        first, before = self.running.setdefault(cell_id, (now, share))
        self.running[cell_id] = first, before
        rate = (share - before) / (now - first) if now > first else 0.0
        left = (1 - share) / rate if rate > 0 else None
        if self._live is not None:
            self._draw(self._live, cell_id, tokens, total, left)
        self._tell(
            "progress", id=cell_id, label=self.cells[cell_id].label, tokens=round(tokens), of=total, seconds_left=left
        )

    def _draw(self, live: Progress, cell_id: str, tokens: float, total: int | None, left: float | None) -> None:
        if cell_id not in self._bars:
            self._bars[cell_id] = live.add_task(self.cells[cell_id].label, total=total, said="")
            live.update(self._overall, said=f"{self.total - len(self.left)} of {self.total}")
        said = f"{tokens:,.0f} of {total:,} tokens" if total else f"{tokens:,.0f} tokens"
        said += f", left {duration(left)}" if left is not None else ""
        live.update(self._bars[cell_id], completed=min(tokens, total) if total else tokens, said=said)

    def remaining(self) -> float:
        """Seconds: by what the finished cells took themselves, as the start of workers and models comes only once."""
        at_once = max(1.0, self.seconds / (time.monotonic() - self.start))
        return self.seconds / self.spent * sum(self.left.values()) / at_once

    def _tell(self, event: str, **fields: Any) -> None:
        if self.events is not None:
            self.events({"event": event, **fields})


def plain(cell: Cell, result: Result) -> dict[str, Any]:
    """A finished cell for machines; what was not measured is absent."""
    return {
        "id": cell.id,
        "label": cell.label,
        "model": cell.model.name,
        "strategy": cell.strategy_label,
        "length": cell.length,
        "task": cell.task.name,
        "dtype": cell.dtype,
        "status": result.status,
        "metrics": result.metrics,
        "cost": result.cost,
        "documents": len(result.documents),
        **({"error": result.error_line} if result.error else {}),
    }


def line(cell: Cell, result: Result) -> str:
    """One finished cell in a terminal line."""
    return f"{result.status:<8} {cell.label}  {tables.headline(cell, result)}"


def work_of(cell: Cell) -> float:
    """Relative cost, for the time left."""
    windows, context = estimate.pieces(cell)
    return windows * context * estimate.growth(context)
