"""What is drawn of one model and task: each kind of figure, with its data and a sentence that says what it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.records.cells import Refusal
from pipelines.records.numbers import GIB, number
from pipelines.report import curves, drawing, gain_charts, statistics
from pipelines.report.curves import Results
from pipelines.report.drawing import Axes, Spectrum, Spot
from pipelines.report.figure import EVEN, Figure, Group, hundredfold, interval, table
from pipelines.report.gain import Gain
from pipelines.report.palette import Style


def _scores(group: Group) -> Iterator[Figure]:
    if not (name := group.metric):
        return
    drawn = {}
    for label, rows in group.strategies.items():
        points = curves.by_length(rows).get(name, [])
        drawn[label] = [(x, y, _above_zero(low, points), high) for x, y, low, high in map(interval, points)]
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
    yield Figure("score", title, says, *table(drawn, "length", name, "low", "high"), path)


def _above_zero(low: float | None, points: Sequence[curves.Point]) -> float | None:
    """What cannot be below 0 has no interval that is; on a logarithmic scale it would have no end."""
    if low is None or low > 0 or any(y < 0 for _, y, _ in points):
        return low
    return min((y for _, y, _ in points if y > 0), default=0.0) / 10 if all(y > 0 for _, y, _ in points) else 0.0


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
    header, rows = table(drawn, "position", "nll (nats)", "low", "high")
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


def _short(group: Group) -> Iterator[Figure]:
    costs = [one for one in group.scores.costs if one.gain is None or not one.gain.refusal]
    if not any(one.gain is not None for one in costs):
        return
    target = max(one.target for one in costs)
    at = max(one.length for one in costs if one.target == target)
    rows, drawn = [], {}
    for one in costs:
        gain_there = one.gain
        spot = (0.0, None, None) if gain_there is None else tuple(map(hundredfold, _ends(gain_there)))
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


KINDS = (
    _scores,
    gain_charts.gains,
    gain_charts.gains_by_position,
    gain_charts.gains_by_distance,
    _nll_by_position,
    _retrieval,
    gain_charts.effective,
    _short,
    _costs,
)
"""What draws one kind of figure of a group each, in the order of the page."""
