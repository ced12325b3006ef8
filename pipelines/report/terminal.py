"""What every verb prints on: one console, and plain tables. Owns rich with the files that draw tables of their own."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.report.palette import known


def plain_console(width: int = 120, file: IO[str] | None = None) -> Console:
    """A console that prints text as it is: paths, errors and names may hold what rich reads as markup or emoji.

    width: where there is no terminal: a log file has none, and a table should not be folded there as on a narrow one.
    """
    own = sys.stdout.isatty() and file is None
    return Console(file=file, width=None if own else width, markup=False, emoji=False, highlight=False, soft_wrap=True)


console = plain_console()
silent = Console(quiet=True)


def aside() -> Console:
    """What people read where the output itself is for machines: on stderr."""
    return plain_console(file=sys.stderr)


def twin(console: Console) -> tuple[Console, io.StringIO]:
    """A console of the same width and colours that writes to memory, for what is to be said once more later."""
    memory = io.StringIO()
    options: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}
    colours: Any = console.color_system
    alike = Console(
        file=memory, width=console.width, force_terminal=console.is_terminal, color_system=colours, **options
    )
    return alike, memory


def table(console: Console, title: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for line in body:
        shown = (
            _named(console, entry) if name == "strategy" else entry for name, entry in zip(header, line, strict=True)
        )
        table.add_row(*shown)
    console.print()
    console.print(table)


def _named(console: Console, label: str) -> str | Text:
    """A strategy with the sign and the colour that it has in figures; in a file its name alone."""
    own = known(label)
    if not console.is_terminal or own is None:
        return label
    return Text.assemble((f"{own.sign} ", own.colour), label)
