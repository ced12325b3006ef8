"""What strategies are worth over cropping, drawn: by length, by position, by distance; and how far they reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from pipelines.records.cells import Cell, Result
from pipelines.records.numbers import number
from pipelines.report import curves, drawing, gain
from pipelines.report.drawing import Axes, Spot
from pipelines.report.figure import EVEN, Figure, Group, hundredfold, interval, table

Row = tuple[Cell, Result]


def gains(group: Group) -> Iterator[Figure]:
    drawn: dict[str, list[Spot]] = {}
    units = set()
    for standing in group.standings:
        for length, one in sorted({**standing.costs, **standing.gains}.items()):
            if one.measure is not None:
                units.add(one.unit)
                spot = (length, 100 * one.gain, hundredfold(one.low), hundredfold(one.high))
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
    yield Figure("gain", title, says, *table(drawn, "length", f"gain ({unit})", "low", "high"), path)


def _against_crop(group: Group, curve: Callable[[Row, Row], list[curves.Point]]) -> dict[str, list[Spot]]:
    """Of every strategy its curve against the cropped text at the longest length, where that is beyond the trained
    one and some strategy has one; {} else."""
    last = max(cell.length for cell, _ in group.rows)
    rows = [row for row in group.rows if row[0].length == last]
    crop = next((row for row in rows if row[0].strategy == gain.CROP), None)
    if crop is None or last <= (group.trained or 0):
        return {}
    drawn = {
        row[0].strategy_label: [interval(point) for point in curve(row, crop)]
        for row in rows
        if row[0].strategy != gain.CROP
    }
    return drawn if any(drawn.values()) else {}


def gains_by_position(group: Group) -> Iterator[Figure]:
    if not (drawn := _against_crop(group, gain.by_position)):
        return
    last = max(cell.length for cell, _ in group.rows)
    path = group.stem.with_name(f"{group.stem.name}_context_gain_by_position.png")
    title = f"Context gain by position at {last:,}: {group.title}"
    axes = Axes("position (tokens)", "gain (nats a token)", title, group.trained, around_zero=0.05, band=True)
    drawing.lines(drawn, path, axes, group.look)
    says = (
        f"NLL of the cropped text minus the strategy's, by position in documents of {last:,} tokens, in nats a token: "
        "above 0 the strategy predicts better there. Bands: 95 % intervals over documents."
    )
    yield Figure("gain by position", title, says, *table(drawn, "position", "gain (nats)", "low", "high"), path)


def gains_by_distance(group: Group) -> Iterator[Figure]:
    if not (found := _against_crop(group, gain.by_distance)):
        return
    last = max(cell.length for cell, _ in group.rows)
    drawn = {name: [spot for spot in curve if math.isfinite(spot[0])] for name, curve in found.items()}
    path = group.stem.with_name(f"{group.stem.name}_context_gain_by_distance.png")
    title = f"Context gain by distance at {last:,}: {group.title}"
    axes = Axes(
        "tokens back to where the same two tokens last stood", "gain (nats a token)", title, group.trained, True, 0.05
    )
    drawing.lines(drawn, path, axes, group.look)
    new = ", ".join(f"{name} {number(y)}" for name, curve in found.items() for x, y, *_ in curve if math.isinf(x))
    says = (
        "NLL of the cropped text minus the strategy's, in nats a token, by how far back a token and the one before it "
        f"last stood together, in documents of {last:,} tokens. What cropping takes away lies beyond the trained "
        "length: a gain there comes from the far text. With 95 % intervals over documents."
        + (f" Of pairs of tokens that never stood before: {new}." if new else "")
    )
    header, rows = table(found, "distance up to", "gain (nats)", "low", "high")
    rows = tuple((name, "never before" if x == math.inf else x, *rest) for name, x, *rest in rows)
    yield Figure("gain by distance", title, says, header, rows, path)


RULES: Mapping[str, tuple[str, str]] = {
    "gain": ("Effective length by context gain", "As far as the mean gain over cropping stays above 0"),
    "ruler": ("Effective length by RULER's rule", "As far as the score stays at or above 85.6 of 100"),
    "nolima": (
        "Effective length by NoLiMa's rule",
        "As far as the score keeps 85 % of its best up to the trained length",
    ),
}


def effective(group: Group) -> Iterator[Figure]:
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
