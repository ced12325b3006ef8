"""Figures as PNG files: curves, spectra, and what a search has seen. Owns matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Curve = Sequence[tuple[float, float, float | None]]
"""(x, y, standard error or None), ascending in x."""

CROWD = 10
"""More curves than this are named beside their figure, not in it."""

DASHES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Axes:
    """What a figure's axes say. trained: where to mark the trained length, if at all; doubling: x by powers of two."""

    x: str
    y: str
    title: str
    trained: int | None
    doubling: bool = False


def lines(curves: Mapping[str, Curve], path: Path, told: Axes) -> Path:
    """A line with its standard errors for each curve, as a PNG. Returns its file."""
    from matplotlib.figure import Figure

    many = len(curves) > CROWD  # their names stand beside the axes, where they hide nothing
    figure = Figure(figsize=(13, max(5.0, 0.6 + 0.17 * len(curves))) if many else (8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (strategy, curve) in enumerate(curves.items()):
        if curve:
            xs, ys, errors = zip(*curve, strict=True)
            style = DASHES[number // 10 % len(DASHES)]  # there are ten colours
            [drawn] = axes.plot(xs, ys, marker="o", markersize=4, linestyle=style, label=strategy)
            if any(error is not None for error in errors):
                bars = [error or 0.0 for error in errors]  # a bar of no height is not drawn
                axes.errorbar(xs, ys, yerr=bars, fmt="none", capsize=2, color=drawn.get_color())
    lengths = sorted({x for curve in curves.values() for x, *_ in curve})
    if told.doubling:
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{x:,.0f}" for x in lengths])
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    values = [y for curve in curves.values() for _, y, _ in curve if not math.isnan(y)]  # nan: a gap in the line
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    if told.trained is not None and lengths[0] <= told.trained <= lengths[-1]:
        axes.axvline(told.trained, color="gray", linestyle=":", label=f"trained length {told.trained:,}")
    axes.set(xlabel=told.x, ylabel=told.y, title=told.title)
    axes.grid(alpha=0.3)
    if many:
        figure.legend(loc="outside right upper", fontsize=7)
    else:
        axes.legend()
    figure.savefig(path, dpi=130)
    return path


@dataclass(frozen=True)
class Spectrum:
    """One plan as a figure shows it. wavelengths: tokens, fastest pair first, infinite where a pair stands still."""

    label: str
    inv_freq: Sequence[float]
    wavelengths: Sequence[float]


def spectra(drawn: Sequence[Spectrum], marks: Mapping[str, float], title: str, path: Path) -> Path:
    """Inverse frequency and wavelength of every pair, a line a plan. marks: name -> tokens, as horizontal lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    speeds, lengths = figure.subplots(1, 2)
    for number, one in enumerate(drawn):
        turning = [pair for pair, speed in enumerate(one.inv_freq) if speed > 0]
        still = len(one.inv_freq) - len(turning)
        label = f"{one.label} ({still} pairs stand still)" if still else one.label
        style = {"linestyle": DASHES[number % 4], "marker": ".", "markersize": 3}
        speeds.plot(turning, [one.inv_freq[pair] for pair in turning], label=label, **style)
        lengths.plot(turning, [one.wavelengths[pair] for pair in turning], **style)
    for name, tokens in marks.items():
        lengths.axhline(tokens, color="gray", linewidth=1)
        lengths.annotate(name, (0, tokens), xytext=(0, 2), textcoords="offset points", fontsize=8, color="dimgray")
    speeds.set(xlabel="pair, fastest first", ylabel="inverse frequency (radians a token)", yscale="log")
    lengths.set(xlabel="pair, fastest first", ylabel="wavelength (tokens)", yscale="log")
    for axes in (speeds, lengths):
        axes.grid(alpha=0.3)
    speeds.legend(fontsize=8)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
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
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    axes.set_xticks(range(len(columns)), columns)
    axes.set(title=title, ylabel="published: circles; ours: crosses")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
