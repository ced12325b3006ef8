"""A figure with its data, and the results that figures are drawn of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.report import curves
from pipelines.report.curves import Results
from pipelines.report.drawing import Spot
from pipelines.report.gain_table import Standing
from pipelines.report.palette import Style
from pipelines.report.tables import ScoreTable

Kind = Literal[
    "score",
    "gain",
    "gain by position",
    "gain by distance",
    "nll by position",
    "retrieval",
    "effective length",
    "short cost",
    "plans",
    "cost",
]

NORMAL = 1.96
"""Standard errors to either side that are a 95 % interval."""

EVEN = 5.0
"""Per cent, or points, up to which a gain is drawn on a linear scale."""


@dataclass(frozen=True)
class Figure:
    """One figure and its data.

    title: as it stands above it. says: what it shows and how to read it, for everybody, and in place of it for those
    who do not see it. header, rows: the data. path: the PNG; the SVG and the CSV lie beside it.
    """

    kind: Kind
    title: str
    says: str
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    path: Path

    @property
    def svg(self) -> Path:
        return self.path.with_suffix(".svg")

    @property
    def csv(self) -> Path:
        return self.path.with_suffix(".csv")


@dataclass(frozen=True)
class Group:
    """Results of one model, task and setting, and how to draw them. stem: of file names."""

    rows: Results
    scores: ScoreTable
    metric: str | None
    trained: int | None
    look: Mapping[str, Style]
    title: str
    stem: Path

    @property
    def strategies(self) -> dict[str, Results]:
        return {label: rows for label, rows in curves.by_strategy(self.rows).items()}

    @property
    def standings(self) -> tuple[Standing, ...]:
        return self.scores.gains.standings if self.scores.gains is not None else ()


def table(
    drawn: Mapping[str, Sequence[Spot]], *columns: str
) -> tuple[tuple[str, ...], tuple[tuple[str | float | None, ...], ...]]:
    return ("strategy", *columns), tuple((name, *spot) for name, curve in drawn.items() for spot in curve)


def interval(point: curves.Point) -> Spot:
    x, y, error = point
    return (x, y, None, None) if error is None else (x, y, y - NORMAL * error, y + NORMAL * error)


def hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share
