"""Figures as PNG files: curves, spectra, and what a search has seen. Owns matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def importance(shares: Mapping[str, float], title: str, path: Path) -> Path:
    """What mattered, the most at the top."""
    from matplotlib.figure import Figure

    names = sorted(shares, key=lambda name: shares[name])
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [shares[name] for name in names], color="tab:blue")
    axes.set(xlabel="share of the differences between trials", title=title)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)
    return path


@dataclass(frozen=True)
class Slice:
    """One dimension of a search. xs: of each trial, numbers or words; log: by ratios; start: the default, if there is
    one."""

    name: str
    xs: Sequence[Any]
    log: bool = False
    start: float | None = None


def slices(drawn: Sequence[Slice], ys: Sequence[float], far: Sequence[int], label: str, title: str, path: Path) -> Path:
    """Every trial's value against each dimension; darker the more documents it was measured on (`far`)."""
    from matplotlib.figure import Figure

    columns = min(4, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(max(5.0, 3.4 * columns), 0.8 + 3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    order = sorted(range(len(ys)), key=lambda n: far[n])  # what went far is drawn above what did not
    for number, one in enumerate(drawn):
        axes = grid[number // columns][number % columns]
        words = any(isinstance(x, (str, bool)) for x in one.xs)
        xs = [str(one.xs[n]) if words else one.xs[n] for n in order]
        colours = {"c": [far[n] for n in order], "cmap": "viridis_r", "vmin": 0, "vmax": max(far)}
        dots = axes.scatter(xs, [ys[n] for n in order], s=28, **colours)
        if one.log and not words:
            axes.set_xscale("log")
            axes.set_xticks([float(f"{x:.2g}") for x in _by_ratios(min(one.xs), max(one.xs))])
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.4g}")
            axes.minorticks_off()
        if one.start is not None:
            axes.axvline(one.start, color="gray", linestyle=":", label="default")
            axes.legend(fontsize=8)
        axes.set(xlabel=one.name, ylabel=label if number % columns == 0 else "")
        axes.grid(alpha=0.3)
    for number in range(len(drawn), rows * columns):
        grid[number // columns][number % columns].set_visible(False)
    figure.colorbar(dots, ax=grid, label="documents", shrink=0.8)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    return path


def _by_ratios(low: float, high: float, count: int = 4) -> list[float]:
    return [low * (high / low) ** (n / (count - 1)) for n in range(count)]


def pareto(
    points: Sequence[tuple[float, float]], best: Sequence[tuple[float, float]],
    marked: Mapping[str, tuple[float, float]], labels: tuple[str, str], title: str, path: Path,
) -> Path:  # fmt: skip
    """Two aims, both better when smaller: all points, those that none beats joined by a line, and some by name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    xs, ys = zip(*points, strict=True)
    axes.scatter(xs, ys, color="lightsteelblue", s=22, label="trials")
    if best:
        front_xs, front_ys = zip(*sorted(best), strict=True)
        axes.plot(front_xs, front_ys, marker="o", color="tab:blue", drawstyle="steps-post", label="none better in both")
    for name, (x, y) in marked.items():
        axes.scatter([x], [y], marker="*", s=140, zorder=3, label=name)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
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
