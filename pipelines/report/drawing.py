"""Figures as PNG and SVG files: curves, intervals, heatmaps, spectra, and what a search has seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.report.canvas import (
    DARK_INK,
    INK,
    LIGHT_INK,
    PAPER,
    Legend,
    Margins,
    around_zero,
    by_decades,
    by_powers,
    figure_at,
    headline,
    mark,
)
from pipelines.report.palette import Style, styles

WIDTH = 6.2
"""Inches of a figure with one panel."""

Spot = tuple[float, float, float | None, float | None]
"""x, y, and the ends of y's interval or None."""


@dataclass(frozen=True)
class Axes:
    """What a figure's axes say.

    trained: where to mark the trained length, if at all. doubling: x by powers of two. around_zero: y is above or below
    0, which is drawn; linear up to this much on either side, logarithmic beyond where some are far. band: intervals as
    a band, not as bars.
    """

    x: str
    y: str
    title: str
    trained: int | None = None
    doubling: bool = False
    around_zero: float | None = None
    band: bool = False


def lines(
    curves: Mapping[str, Sequence[Spot]], path: Path, labels: Axes, look: Mapping[str, Style] | None = None
) -> Path:
    """A line with its intervals for each curve. curves: ascending in x. Returns the PNG's file."""
    return panels([(curves, labels)], path, look)


def panels(
    drawn: Sequence[tuple[Mapping[str, Sequence[Spot]], Axes]], path: Path, look: Mapping[str, Style] | None = None
) -> Path:
    """Lines as `lines` draws them, in panels side by side with one legend."""
    names = list(dict.fromkeys(name for curves, _ in drawn for name, curve in curves.items() if curve))
    look = look or styles(names)
    width = WIDTH if len(drawn) == 1 else 3.6 * len(drawn)
    legend = Legend(names, width)
    with figure_at(path, width, 2.8, Margins(top=0.5, bottom=0.5 + legend.inches)) as figure:
        figure.subplots_adjust(wspace=0.42)
        handles: dict[str, Any] = {}
        for axes, (curves, labels) in zip(np.atleast_1d(figure.subplots(1, len(drawn))), drawn, strict=True):
            for name, curve in curves.items():
                if curve:
                    handles[name] = _line(axes, name, curve, look[name], band=labels.band)
            _scales(axes, curves, labels)
            axes.set(xlabel=labels.x, ylabel=labels.y)
            axes.set_title(labels.title, pad=16 if labels.trained else 6)
        legend.draw(figure, [handles[name] for name in names])
    return path


def _line(axes: Any, name: str, curve: Sequence[Spot], style: Style, *, band: bool) -> Any:
    xs, ys, lows, highs = zip(*curve, strict=True)
    dash = (0, style.dash) if style.dash else "-"
    many = len(curve) > 12
    [line] = axes.plot(
        xs, ys, color=style.colour, linestyle=dash, linewidth=1.8, marker=style.marker, markersize=6,
        markeredgecolor=PAPER, markeredgewidth=0.6, markevery=max(1, len(curve) // 8) if many else 1,
    )  # fmt: skip
    low, high = (
        np.array([y if end is None else end for y, end in zip(ys, ends, strict=True)]) for ends in (lows, highs)
    )
    artists = [line]
    if any(end is not None for end in lows):
        if band:
            artists.append(axes.fill_between(xs, low, high, color=style.colour, alpha=0.16, linewidth=0))
        else:
            artists.append(axes.vlines(xs, low, high, color=style.colour, linewidth=1.2))
    mark(name, *artists)
    return line


def _scales(axes: Any, curves: Mapping[str, Sequence[Spot]], labels: Axes) -> None:
    spots = [spot for curve in curves.values() for spot in curve]
    places = sorted({x for x, *_ in spots})
    if labels.doubling:
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{x:,.0f}" for x in places])
        axes.minorticks_off()
        if len(places) == 1:
            axes.set_xlim(places[0] / 2, places[0] * 2)
    else:
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    # nan: a gap in the line
    values = [y for _, y, *_ in spots if not math.isnan(y)]
    if labels.around_zero is not None:
        ends = [end for spot in spots for end in spot[1:] if end is not None and not math.isnan(end)]
        around_zero(axes.yaxis, ends, labels.around_zero)
        axes.axhline(0, color=INK, linewidth=0.9)
    else:
        by_decades(axes.yaxis, values)
    if labels.trained is not None and places and places[0] <= labels.trained <= places[-1]:
        axes.axvline(labels.trained, color=INK, linestyle=(0, (1, 2)), linewidth=1)
        first = labels.trained == places[0]
        axes.annotate(
            f"trained length {labels.trained:,}", (labels.trained, 1.0), (0, 3), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", ha="left" if first else "center", va="bottom", fontsize=8,
        )  # fmt: skip


def intervals(
    rows: Mapping[str, tuple[float, float | None, float | None]],
    path: Path,
    labels: Axes,
    look: Mapping[str, Style] | None = None,
    ticks: Sequence[float] = (),
) -> Path:
    """A number with its interval for each strategy, one below the other. labels.y is unused, around_zero is of x.

    ticks: the only values that there are, such as lengths; by powers of two then.
    """
    look = look or styles(rows)
    margins = Margins(left=0.35 + 0.077 * max(map(len, rows), default=1), bottom=0.5)
    with figure_at(path, WIDTH, 0.2 + 0.27 * len(rows), margins) as figure:
        axes = figure.subplots()
        for number, (name, (value, low, high)) in enumerate(rows.items()):
            style = look[name]
            whole = axes.hlines(number, value if low is None else low, value if high is None else high)
            whole.set(color=style.colour, linewidth=2.2)
            [dot] = axes.plot([value], [number], marker=style.marker, markersize=8, color=style.colour)
            dot.set(markeredgecolor=PAPER, markeredgewidth=0.6)
            mark(name, whole, dot)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        ends = [end for row in rows.values() for end in row if end is not None]
        if ticks and min(ticks) > 0:
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(ticks), [f"{x:,.0f}" for x in ticks])
            axes.minorticks_off()
            axes.set_xlim(min(ticks) / 1.2, max(ticks) * 1.2)
        elif labels.around_zero is not None:
            around_zero(axes.xaxis, ends, labels.around_zero)
            axes.axvline(0, color=INK, linewidth=0.9)
        else:
            by_decades(axes.xaxis, ends)
        axes.set(xlabel=labels.x)
        axes.set_title(labels.title)
    return path


def heatmaps(
    maps: Mapping[str, Mapping[tuple[float, int], float]], path: Path, title: str, *, down: str = "depth"
) -> Path:
    """A score from 0 to 1 by (depth, length), a panel a strategy. down: what is read from top to bottom."""
    across = min(3, len(maps))
    deep = math.ceil(len(maps) / across)
    lengths = sorted({length for cells in maps.values() for _, length in cells})
    depths = sorted({depth for cells in maps.values() for depth, _ in cells})
    height = deep * 0.26 * len(depths) + (deep - 1) * 0.4
    width = max(WIDTH, 1.5 + across * (0.3 + 0.5 * len(lengths)))
    with figure_at(path, width, height, Margins(top=0.7, right=0.9)) as figure:
        figure.subplots_adjust(hspace=0.4 / (0.26 * len(depths)), wspace=0.08)
        grid = figure.subplots(deep, across, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (name, cells) in zip(grid, maps.items(), strict=False):
            values = np.array([[cells.get((depth, length), math.nan) for length in lengths] for depth in depths])
            axes.pcolormesh(values, vmin=0, vmax=1, cmap="cividis", edgecolors=PAPER, linewidth=0.8)
            for (row, column), value in np.ndenumerate(values):
                if not math.isnan(value):
                    ink = DARK_INK if value > 0.55 else LIGHT_INK
                    axes.text(column + 0.5, row + 0.5, f"{value:.2g}", ha="center", va="center", fontsize=8, color=ink)
            axes.set_xticks(np.arange(len(lengths)) + 0.5, [f"{length:,}" for length in lengths])
            axes.set_yticks(np.arange(len(depths)) + 0.5, [f"{depth:.2g}" for depth in depths])
            axes.set_ylim(len(depths), 0)
            axes.grid(visible=False)
            axes.tick_params(length=0)
            axes.set_title(name, fontsize=9.5)
            mark(name, axes)
        for axes in grid[len(maps) :]:
            axes.set_visible(False)
        headline(figure, title)
        figure.text(0.5, 0.06 / figure.get_figheight(), "length (tokens)", ha="center")
        figure.text(0.1 / width, 0.5, down, va="center", rotation=90)
        high = figure.get_figheight()
        scale = figure.add_axes((1 - 0.7 / width, 0.55 / high, 0.12 / width, min(height, 1.6) / high))
        shades = np.linspace(0, 1, 41)  # not by colorbar(), which would put a picture of dots into the SVG
        scale.pcolormesh([0, 1], shades, (shades[:-1, None] + shades[1:, None]) / 2, vmin=0, vmax=1, cmap="cividis")
        scale.yaxis.tick_right()
        scale.set_xticks([])
        scale.grid(visible=False)
    return path


@dataclass(frozen=True)
class Spectrum:
    """One plan as a figure shows it. wavelengths: tokens, fastest pair first, infinite at zero frequency."""

    label: str
    inv_freq: Sequence[float]
    wavelengths: Sequence[float]


def spectra(
    plans: Sequence[Spectrum],
    marks: Mapping[str, float],
    title: str,
    path: Path,
    look: Mapping[str, Style] | None = None,
) -> Path:
    """Inverse frequency and wavelength of every pair, a line a plan. marks: name -> tokens, as horizontal lines."""
    look = look or styles(plan.label for plan in plans)
    said: dict[str, str] = {}
    legend = Legend([plan.label for plan in plans], 9.5)
    with figure_at(path, 9.5, 3.2, Margins(top=0.45, bottom=0.5 + legend.inches)) as figure:
        figure.subplots_adjust(wspace=0.25)
        frequencies, wavelengths = figure.subplots(1, 2)
        for plan in plans:
            turning = [pair for pair, frequency in enumerate(plan.inv_freq) if frequency > 0]
            zero = len(plan.inv_freq) - len(turning)
            said |= {plan.label: f"{plan.label} ({zero} pairs at zero frequency)"} if zero else {}
            style = look[plan.label]
            for axes, values in ((frequencies, plan.inv_freq), (wavelengths, plan.wavelengths)):
                [line] = axes.plot(turning, [values[pair] for pair in turning], color=style.colour, linewidth=1.6)
                line.set(linestyle=(0, style.dash) if style.dash else "-", marker=style.marker, markersize=4)
                line.set(markevery=4, markeredgecolor=PAPER, markeredgewidth=0.4)
                mark(plan.label, line)
        for name, tokens in marks.items():
            wavelengths.axhline(tokens, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
            wavelengths.annotate(name, (0, tokens), (0, 2), textcoords="offset points", fontsize=8)
        for axes, name in ((frequencies, "inverse frequency (radians a token)"), (wavelengths, "wavelength (tokens)")):
            axes.set(xlabel="pair, fastest first", ylabel=name)
            by_powers(axes.yaxis)
        legend.draw(figure, [*frequencies.lines], said)
        headline(figure, title)
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
    look = styles(rows)
    legend = Legend(list(rows), 8.5)
    with figure_at(path, 8.5, 3.9, Margins(bottom=0.4 + legend.inches)) as figure:
        axes = figure.subplots()
        values, handles = [], []
        for name, row in rows.items():
            color = look[name].colour
            theirs = [(column, value) for column, value, _ in row if value is not None]
            ours = [(column, value) for column, _, value in row if value is not None]
            handles += axes.plot(*zip(*theirs, strict=True), marker="o", fillstyle="none", color=color, linewidth=0.8)
            if ours:
                axes.plot(*zip(*ours, strict=True), marker="x", color=color, linestyle=":", linewidth=0.8)
            values += [value for _, value in (*theirs, *ours)]
        by_decades(axes.yaxis, values)
        axes.set_xticks(range(len(columns)), columns)
        axes.set(title=title, ylabel="published: circles; ours: crosses")
        legend.draw(figure, handles)
    return path
