"""What is drawn of one model and task: each kind of figure, with its data and a sentence that says what it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.records.cells import Refusal
from pipelines.records.numbers import GIB, number
from pipelines.report import curves, drawing, gain, statistics
from pipelines.report.curves import Results
from pipelines.report.drawing import Axes, Spectrum, Spot
from pipelines.report.gain import Gain
from pipelines.report.gain_table import Standing
from pipelines.report.palette import Style
from pipelines.report.tables import ScoreTable

Kind = Literal[
    "score",
    "gain",
    "gain by position",
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


def _table(
    drawn: Mapping[str, Sequence[Spot]], *columns: str
) -> tuple[tuple[str, ...], tuple[tuple[str | float | None, ...], ...]]:
    return ("strategy", *columns), tuple((name, *spot) for name, curve in drawn.items() for spot in curve)


def _interval(point: curves.Point) -> Spot:
    x, y, error = point
    return (x, y, None, None) if error is None else (x, y, y - NORMAL * error, y + NORMAL * error)


def _scores(group: Group) -> Iterator[Figure]:
    if not (name := group.metric):
        return
    drawn = {}
    for label, rows in group.strategies.items():
        points = curves.by_length(rows).get(name, [])
        drawn[label] = [(x, y, _above_zero(low, points), high) for x, y, low, high in map(_interval, points)]
    drawn = {label: curve for label, curve in drawn.items() if curve}
    if not drawn:
        return
    path, title = group.stem.with_name(f"{group.stem.name}_{name}.png"), f"{name}: {group.title}"
    lengths = {x for curve in drawn.values() for x, *_ in curve}
    if len(lengths) > 1:
        axes = Axes("length (tokens)", name, title, group.trained, doubling=True)
        drawing.lines(drawn, path, axes, group.look)
    else:
        at = f"{name} at {next(iter(lengths)):,.0f} tokens"
        drawing.intervals({n: curve[0][1:] for n, curve in drawn.items()}, path, Axes(at, "", title), group.look)
    last = max(lengths)
    ends = ", ".join(f"{n} {number(y)}" for n, curve in drawn.items() for x, y, *_ in curve if x == last)
    says = (
        f"{name} by length, with 95 % intervals over documents where there are several. At {last:,.0f} tokens: {ends}."
    )
    yield Figure("score", title, says, *_table(drawn, "length", name, "low", "high"), path)


def _above_zero(low: float | None, points: Sequence[curves.Point]) -> float | None:
    """What cannot be below 0 has no interval that is; on a logarithmic scale it would have no end."""
    if low is None or low > 0 or any(y < 0 for _, y, _ in points):
        return low
    return min((y for _, y, _ in points if y > 0), default=0.0) / 10 if all(y > 0 for _, y, _ in points) else 0.0


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _gains(group: Group) -> Iterator[Figure]:
    drawn: dict[str, list[Spot]] = {}
    units = set()
    for standing in group.standings:
        for length, one in sorted({**standing.costs, **standing.gains}.items()):
            if one.measure is not None:
                units.add(one.unit)
                spot = (length, 100 * one.gain, _hundredfold(one.low), _hundredfold(one.high))
                drawn.setdefault(standing.strategy, []).append(spot)
    if not drawn:
        return
    unit = units.pop()
    path, title = group.stem.with_name(f"{group.stem.name}_context_gain.png"), f"Context gain: {group.title}"
    axes = Axes("length (tokens)", f"gain over cropping ({unit})", title, group.trained, True, EVEN)
    drawing.lines(drawn, path, axes, group.look)
    says = (
        "What a strategy is worth over the plain model that sees only the last tokens of its trained length, over the "
        f"same tokens, in {unit}: above 0 the far text is of use. With 95 % intervals."
    )
    yield Figure("gain", title, says, *_table(drawn, "length", f"gain ({unit})", "low", "high"), path)


def _gains_by_position(group: Group) -> Iterator[Figure]:
    last = max(cell.length for cell, _ in group.rows)
    rows = [(cell, result) for cell, result in group.rows if cell.length == last]
    crop = next((row for row in rows if row[0].strategy == gain.CROP), None)
    if crop is None or last <= (group.trained or 0):
        return
    others = [row for row in rows if row[0].strategy != gain.CROP]
    drawn = {row[0].strategy_label: [_interval(point) for point in gain.by_position(row, crop)] for row in others}
    if not any(drawn.values()):
        return
    path = group.stem.with_name(f"{group.stem.name}_context_gain_by_position.png")
    title = f"Context gain by position at {last:,}: {group.title}"
    axes = Axes("position (tokens)", "gain (nats a token)", title, group.trained, around_zero=0.05, band=True)
    drawing.lines(drawn, path, axes, group.look)
    says = (
        f"NLL of the cropped text minus the strategy's, by position in documents of {last:,} tokens, in nats a token: "
        "above 0 the strategy predicts better there. Bands: 95 % intervals over documents."
    )
    yield Figure("gain by position", title, says, *_table(drawn, "position", "gain (nats)", "low", "high"), path)


def _nll_by_position(group: Group) -> Iterator[Figure]:
    last = max(cell.length for cell, _ in group.rows)
    drawn: dict[str, list[Spot]] = {
        label: [
            (x, y, None, None)
            for cell, result in rows
            if cell.length == last
            for x, y in result.series.get("nll_by_position", ())
        ]
        for label, rows in group.strategies.items()
    }
    if not any(drawn.values()):
        return
    path = group.stem.with_name(f"{group.stem.name}_nll_by_position.png")
    title = f"NLL by position at {last:,}: {group.title}"
    drawing.lines(drawn, path, Axes("position (tokens)", "NLL (nats a token)", title, group.trained), group.look)
    says = (
        f"Mean negative log-likelihood by position in documents of {last:,} tokens, in nats a token; less is better. "
        "A strategy that fails beyond the trained length rises there."
    )
    header, rows = _table(drawn, "position", "nll (nats)", "low", "high")
    yield Figure("nll by position", title, says, header[:3], tuple(row[:3] for row in rows), path)


def _retrieval(group: Group) -> Iterator[Figure]:
    maps: dict[str, dict[tuple[float, int], list[float]]] = {}
    try:
        measure = statistics.measure_of(group.rows[0][0].task.name, group.metric)
    except Refusal:
        return
    for cell, result in group.rows:
        for document in result.documents:
            if isinstance(document.get("depth"), float) and measure.name in document:
                # many depths, as of turns of a conversation, are read in tenths
                place = (document["depth"], cell.length)
                maps.setdefault(cell.strategy_label, {}).setdefault(place, []).append(float(document[measure.name]))
    if not maps:
        return
    if len({depth for cells in maps.values() for depth, _ in cells}) > 12:
        maps = {label: _in_tenths(cells) for label, cells in maps.items()}
    means = {label: {place: float(np.mean(v)) for place, v in sorted(cells.items())} for label, cells in maps.items()}
    path, title = group.stem.with_name(f"{group.stem.name}_depth.png"), f"{measure.name} by depth: {group.title}"
    drawing.heatmaps(means, path, title)
    says = (
        f"Mean {measure.name} by length and by depth, the share of the text before what is asked for (0: at the "
        "start): bright is found, dark is lost."
    )
    rows = tuple(
        (label, depth, length, mean, len(maps[label][depth, length]))
        for label, cells in means.items()
        for (depth, length), mean in cells.items()
    )
    yield Figure("retrieval", title, says, ("strategy", "depth", "length", measure.name, "documents"), rows, path)


def _in_tenths(cells: Mapping[tuple[float, int], list[float]]) -> dict[tuple[float, int], list[float]]:
    joined: dict[tuple[float, int], list[float]] = {}
    for (depth, length), values in cells.items():
        joined.setdefault((min(9, int(10 * depth)) / 10, length), []).extend(values)
    return joined


RULES: Mapping[str, tuple[str, str]] = {
    "gain": ("Effective length by context gain", "As far as the mean gain over cropping stays above 0"),
    "ruler": ("Effective length by RULER's rule", "As far as the score stays at or above 85.6 of 100"),
    "nolima": (
        "Effective length by NoLiMa's rule",
        "As far as the score keeps 85 % of its best up to the trained length",
    ),
}


def _effective(group: Group) -> Iterator[Figure]:
    lengths = sorted({cell.length for cell, _ in group.rows})
    for rule, (name, meaning) in RULES.items():
        found = {s.strategy: s.lengths[rule] for s in group.standings if rule in s.lengths}
        if not found:
            continue
        drawn = {label: (one.value, one.low, one.high) for label, one in found.items()}
        path, title = group.stem.with_name(f"{group.stem.name}_effective_{rule}.png"), f"{name}: {group.title}"
        ends = [end for values in drawn.values() for end in values if end is not None]
        ticks = [] if min(ends) <= 0 else sorted({*lengths, *ends})
        drawing.intervals(drawn, path, Axes("length (tokens)", "", title), group.look, ticks)
        says = f"{meaning}, among the lengths that were measured; with 95 % intervals over documents."
        rows = tuple((label, *values) for label, values in drawn.items())
        yield Figure("effective length", title, says, ("strategy", "length", "low", "high"), rows, path)


def _short(group: Group) -> Iterator[Figure]:
    costs = [one for one in group.scores.costs if one.gain is None or not one.gain.refusal]
    if not any(one.gain is not None for one in costs):
        return
    target = max(one.target for one in costs)
    at = max(one.length for one in costs if one.target == target)
    rows, drawn = [], {}
    for one in costs:
        gain_there = one.gain
        spot = (0.0, None, None) if gain_there is None else tuple(map(_hundredfold, _ends(gain_there)))
        rows.append((one.strategy, one.target, one.length, *spot))
        if (one.target, one.length) == (target, at) and one.strategy in group.look:
            drawn[one.strategy] = (spot[0] or 0.0, spot[1], spot[2])
    unit = next(one.gain.unit for one in costs if one.gain is not None)
    path = group.stem.with_name(f"{group.stem.name}_short.png")
    title = f"At {at:,} tokens, deployed for {target:,}: {group.title}"
    labels = Axes(f"difference to the plain model ({unit})", "", title, around_zero=EVEN)
    drawing.intervals(drawn, path, labels, group.look)
    says = (
        f"What each strategy costs at {at:,} tokens, within the trained length, when it is deployed with the factor "
        f"for {target:,} tokens: the difference to the plain model in {unit}, below 0 it is worse. With 95 % intervals."
    )
    header = ("strategy", "deployed for", "at", f"difference ({unit})", "low", "high")
    yield Figure("short cost", title, says, header, tuple(rows), path)


def _ends(one: Gain) -> tuple[float | None, float | None, float | None]:
    return one.gain, one.low, one.high


COSTS: Mapping[str, tuple[str, Callable[[float], float]]] = {
    "seconds": ("seconds a cell", float),
    "tokens_per_second": ("tokens a second", float),
    "peak_bytes": ("peak memory (GiB)", lambda value: value / GIB),
}


def _costs(group: Group) -> Iterator[Figure]:
    by_label = {label: curves.by_length(rows) for label, rows in group.strategies.items()}
    drawn = {
        name: {
            label: [(x, scale(y), None, None) for x, y, _ in found[name]]
            for label, found in by_label.items()
            if name in found
        }
        for name, (_, scale) in COSTS.items()
    }
    panels = [
        (drawn[name], Axes("length (tokens)", said, said, doubling=True))
        for name, (said, _) in COSTS.items()
        if drawn[name]
    ]
    if not panels:
        return
    path, title = group.stem.with_name(f"{group.stem.name}_cost.png"), f"Cost: {group.title}"
    drawing.panels(panels, path, group.look)
    places = dict.fromkeys((label, spot[0]) for one in drawn.values() for label, curve in one.items() for spot in curve)
    values = {(name, label, x): y for name, one in drawn.items() for label, curve in one.items() for x, y, *_ in curve}
    rows = tuple((*place, *(values.get((name, *place)) for name in COSTS)) for place in places)
    says = "What a cell took: seconds, tokens a second, and the largest memory of its process or GPU; of one run each."
    yield Figure("cost", title, says, ("strategy", "length", *(said for said, _ in COSTS.values())), rows, path)


def plans(model: str, rows: Results, look: Mapping[str, Style], trained: int | None, stem: Path) -> Iterator[Figure]:
    last = max(cell.length for cell, _ in rows)
    """The plans of one model at the longest length."""
    found = {cell.strategy_label: cell.plans for cell, _ in rows if cell.length == last}
    spectra, shown = [], dict(look)
    for label, by_layers in found.items():
        for layers, plan in by_layers:
            name = label if len(by_layers) == 1 else f"{label}, {layers} layers"
            shown[name] = look[label]
            spectra.append(Spectrum(name, plan.inv_freq, [2 * math.pi / f if f else math.inf for f in plan.inv_freq]))
    marks = {} if trained is None else {f"trained length {trained:,}": float(trained)}
    marks |= {f"length {last:,}": float(last)}
    path = stem.with_name(f"{stem.name}_plans.png")
    title = f"Rotary frequencies at {last:,} tokens: {model}"
    drawing.spectra(spectra, marks, title, path, shown)
    says = (
        "Inverse frequency and wavelength of every pair of dimensions under each plan. A pair whose wavelength is "
        "longer than the trained length never made a full turn in training. Strategies that change attention alone "
        "share a line."
    )
    table = tuple(
        (spectrum.label, pair, frequency, None if math.isinf(wavelength) else wavelength)
        for spectrum in spectra
        for pair, (frequency, wavelength) in enumerate(zip(spectrum.inv_freq, spectrum.wavelengths, strict=True))
    )
    header = ("strategy", "pair", "inverse frequency (radians a token)", "wavelength (tokens)")
    yield Figure("plans", title, says, header, table, path)


KINDS = (_scores, _gains, _gains_by_position, _nll_by_position, _retrieval, _effective, _short, _costs)
"""What draws one kind of figure of a group each, in the order of the page."""
