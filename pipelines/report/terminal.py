"""What every verb prints on: one console, and plain tables. Owns rich with the files that draw tables of their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

# A log file has no width of its own; a table should not be folded there as on a narrow terminal.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
silent = Console(quiet=True)


def table(console: Console, title: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for line in body:
        table.add_row(*line)
    console.print()
    console.print(table)
