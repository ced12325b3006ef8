"""What was measured: cells with their results, as a table, as data frames, and compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, overload

from pipelines.records.cells import Cell, Result

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]


class Results(Sequence[tuple[Cell, Result]]):
    """Cells with their results, in the order in which they were requested.

    A sequence of (Cell, Result): iterate over it, index it, slice it, add two. print(results) shows the tables.
    """

    def __init__(self, rows: Iterable[tuple[Cell, Result]] = ()) -> None:
        self._rows = tuple(rows)

    def to_frame(self) -> pandas.DataFrame:
        """A row a cell: model, strategy, length, task, status and every metric with its standard error."""
        from pipelines.report import frame

        return frame.to_frame(self)

    def documents_frame(self) -> pandas.DataFrame:
        """A row a document of every cell, with its own metrics."""
        from pipelines.report import frame

        return frame.documents_frame(self)

    def compare(self, baseline: str = "none") -> pandas.DataFrame:
        """Every strategy against the baseline over the same documents: difference, 95 % interval, adjusted p.

        baseline: a strategy of these results.
        """
        from pipelines.report import frame

        return frame.compare(self, baseline=baseline)

    def gains(self) -> pandas.DataFrame:
        """What every strategy is worth over `crop` (the plain model on the last tokens) over the same tokens: gain with
        its 95 % interval, and whether it is useful, intact or broken."""
        from pipelines.report import frame

        return frame.gains(self)

    def effective_lengths(self) -> pandas.DataFrame:
        """How far every strategy keeps what the model can do, by context gain and by published rules."""
        from pipelines.report import frame

        return frame.effective_lengths(self)

    def table(self) -> str:
        """Strategy x length, a table for each model and task, as the command line shows them."""
        return "\n\n".join(
            "\n".join(filter(None, [title, _aligned(rows), legend])) for title, rows, legend in self._tables()
        )

    def _tables(self) -> list[tuple[str, list[list[str]], str]]:
        from pipelines.report import tables

        shown: list[tuple[str, list[list[str]], str]] = []
        for scores in tables.tables(self):
            shown.append((scores.title, [scores.header, *scores.rows], scores.legend))
            if (worth := scores.gains) is not None:
                shown.append((worth.title, [worth.header, *worth.rows], f"{worth.summary}\n{worth.legend}".strip()))
        return shown

    def _repr_html_(self) -> str:
        parts = []
        for title, (header, *rows), legend in self._tables():
            head = "".join(f"<th>{escape(entry)}</th>" for entry in header)
            body = "".join(f"<tr>{''.join(f'<td>{escape(entry)}</td>' for entry in row)}</tr>" for row in rows)
            note = f"<p>{escape(legend)}</p>" if legend else ""
            parts.append(
                f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead>"
                f"<tbody>{body}</tbody></table>{note}"
            )
        return "".join(parts) or escape(repr(self))

    def __str__(self) -> str:
        return self.table() or repr(self)

    def __repr__(self) -> str:
        counts = Counter(result.status for _, result in self)
        statuses = ", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing"
        return f"Results({statuses})"

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> tuple[Cell, Result]: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: int | slice) -> tuple[Cell, Result] | Results:
        return Results(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __add__(self, other: Results) -> Results:
        """Both, one after the other: results of two models, or of two stores."""
        return Results([*self, *other])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Results) and self._rows == other._rows

    def __hash__(self) -> int:
        return hash(tuple(cell for cell, _ in self))


def compare(results: Iterable[tuple[Cell, Result]], baseline: str = "none") -> pandas.DataFrame:
    """Every strategy against the baseline over the same documents; as Results.compare, for any rows."""
    return Results(results).compare(baseline)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns under each other; the first begins at the left, numbers end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
