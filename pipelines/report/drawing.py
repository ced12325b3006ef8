"""Figures as PNG files: curves, spectra, and what a search has seen. Owns matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.report.curves import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CROWD = 10
"""More curves than this are named beside their figure, not in it."""

DASHES = ("-", "--", "-.", ":")


@contextmanager
def _png(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure, in inches, that is written when the block ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _by_decades(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic y where the values span more than a decade."""
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")


@dataclass(frozen=True)
class Axes:
    """What a figure's axes say.

    trained: where to mark the trained length, if at all. doubling: x by powers of two. around_zero: y is above or below
    0, which is drawn; linear up to a twentieth, logarithmic beyond.
    """

    x: str
    y: str
    title: str
    trained: int | None
    doubling: bool = False
    around_zero: bool = False


def lines(curves: Mapping[str, Sequence[Point]], path: Path, labels: Axes) -> Path:
    """A line with its standard errors for each curve, as a PNG. Returns its file. curves: points ascending in x."""
    many = len(curves) > CROWD  # their names stand beside the axes, where they hide nothing
    with _png(path, 13 if many else 8, max(5.0, 0.6 + 0.17 * len(curves)) if many else 5) as figure:
        axes = figure.subplots()
        for number, (name, curve) in enumerate(curves.items()):
            if curve:
                xs, ys, errors = zip(*curve, strict=True)
                style = DASHES[number // 10 % len(DASHES)]  # there are ten colours
                [line] = axes.plot(xs, ys, marker="o", markersize=4, linestyle=style, label=name)
                if any(error is not None for error in errors):
                    bars = [error or 0.0 for error in errors]  # a bar of no height is not drawn
                    axes.errorbar(xs, ys, yerr=bars, fmt="none", capsize=2, color=line.get_color())
        lengths = sorted({x for curve in curves.values() for x, *_ in curve})
        if labels.doubling:
            axes.set_xscale("log", base=2)
            axes.set_xticks(lengths, [f"{x:,.0f}" for x in lengths])
            axes.minorticks_off()
        else:
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        if labels.around_zero:
            axes.set_yscale("symlog", linthresh=0.05)
            axes.axhline(0, color="gray", linewidth=1)
        # nan: a gap in the line
        _by_decades(axes, [y for curve in curves.values() for _, y, _ in curve if not math.isnan(y)])
        if labels.trained is not None and lengths[0] <= labels.trained <= lengths[-1]:
            axes.axvline(labels.trained, color="gray", linestyle=":", label=f"trained length {labels.trained:,}")
        axes.set(xlabel=labels.x, ylabel=labels.y, title=labels.title)
        axes.grid(alpha=0.3)
        if many:
            figure.legend(loc="outside right upper", fontsize=7)
        else:
            axes.legend()
    return path


@dataclass(frozen=True)
class Spectrum:
    """One plan as a figure shows it. wavelengths: tokens, fastest pair first, infinite at zero frequency."""

    label: str
    inv_freq: Sequence[float]
    wavelengths: Sequence[float]


def spectra(plans: Sequence[Spectrum], marks: Mapping[str, float], title: str, path: Path) -> Path:
    """Inverse frequency and wavelength of every pair, a line a plan. marks: name -> tokens, as horizontal lines."""
    with _png(path, 13, 5.5) as figure:
        frequencies, wavelengths = figure.subplots(1, 2)
        for number, plan in enumerate(plans):
            turning = [pair for pair, frequency in enumerate(plan.inv_freq) if frequency > 0]
            zero = len(plan.inv_freq) - len(turning)
            label = f"{plan.label} ({zero} pairs at zero frequency)" if zero else plan.label
            style = {"linestyle": DASHES[number % 4], "marker": ".", "markersize": 3}
            frequencies.plot(turning, [plan.inv_freq[pair] for pair in turning], label=label, **style)
            wavelengths.plot(turning, [plan.wavelengths[pair] for pair in turning], **style)
        for name, tokens in marks.items():
            wavelengths.axhline(tokens, color="gray", linewidth=1)
            place = {"xytext": (0, 2), "textcoords": "offset points", "fontsize": 8, "color": "dimgray"}
            wavelengths.annotate(name, (0, tokens), **place)
        frequencies.set(xlabel="pair, fastest first", ylabel="inverse frequency (radians a token)", yscale="log")
        wavelengths.set(xlabel="pair, fastest first", ylabel="wavelength (tokens)", yscale="log")
        for axes in (frequencies, wavelengths):
            axes.grid(alpha=0.3)
        frequencies.legend(fontsize=8)
        figure.suptitle(title)
    return path


def save(draw: Callable[[], Any], title: str, path: Path) -> Path:
    """A figure that another library draws with pyplot, as a PNG. draw: returns its axes, one or an array of them."""
    import matplotlib
    from matplotlib import pyplot

    with matplotlib.rc_context():  # its style is its own
        figure = np.ravel(draw())[0].figure
        for axes in figure.axes:
            for place in ("left", "center"):
                axes.set_title("", loc=place)
            if axes.get_xscale() == "log":
                low, high = axes.get_xlim()
                ticks = [float(f"{x:.2g}") for x in np.geomspace(low, high, 5)[1:-1]]
                axes.set_xticks(ticks, [f"{x:,.4g}" for x in ticks])
                axes.minorticks_off()
        figure.suptitle(title)
        figure.savefig(path, dpi=130, bbox_inches="tight")
        pyplot.close(figure)
    return path


def beside(
    rows: Mapping[str, Sequence[tuple[int, float | None, float | None]]], columns: Sequence[str], title: str, path: Path
) -> Path:
    """A published table and ours over it: (column, theirs, ours) of every row; theirs hollow, ours crosses."""
    with _png(path, 9, 5.5) as figure:
        axes = figure.subplots()
        values = []
        for number, (name, row) in enumerate(rows.items()):
            color = f"C{number % 10}"
            theirs = [(column, value) for column, value, _ in row if value is not None]
            ours = [(column, value) for column, _, value in row if value is not None]
            axes.plot(*zip(*theirs, strict=True), marker="o", fillstyle="none", color=color, label=name, linewidth=0.8)
            if ours:
                axes.plot(*zip(*ours, strict=True), marker="x", color=color, linestyle=":", linewidth=0.8)
            values += [value for _, value in (*theirs, *ours)]
        _by_decades(axes, values)
        axes.set_xticks(range(len(columns)), columns)
        axes.set(title=title, ylabel="published: circles; ours: crosses")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return path
