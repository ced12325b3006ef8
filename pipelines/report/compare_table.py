"""A comparison of two sides in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console

from pipelines.report import compare, statistics
from pipelines.report.compare import Compared, Comparison
from pipelines.report.statistics import Difference
from pipelines.report.terminal import table
from pipelines.tasks.kinds import Measure

HEADER = ("cell", "difference", "95 % interval", "p adjusted", "over")

SHOWN = 3
"""Cells without a counterpart that are named."""


def show(console: Console, comparison: Comparison) -> None:
    """What differs in the configs, the differences by length, by position, and what was shown."""
    console.print(f"{comparison.ours} minus {comparison.theirs}")
    for name, theirs, ours in comparison.differing:
        console.print(f"  {name}: {theirs} -> {ours}")
    if not comparison.differing:
        console.print("  nothing differs in their configs")
    measured = [one for one in comparison.compared if one.difference is not None]
    if measured:
        header = (*HEADER, *([f"equivalent within {_margin(comparison)}"] if comparison.margin is not None else []))
        table(console, "", header, [_line(one, comparison) for one in measured])
    longest = {
        (one.ours.model, one.ours.task): one.ours.length for one in sorted(measured, key=lambda one: one.ours.length)
    }
    for one in measured:
        if one.positions and one.ours.length == longest[one.ours.model, one.ours.task]:
            title = f"{one.ours.label}: perplexity by position, p adjusted for its {len(one.positions)} stretches"
            table(console, title, ("tokens up to", *HEADER[1:-1]), [_position(*part) for part in one.positions])
    for one in comparison.compared:
        if one.refusal:
            console.print(f"not compared: {one.ours.label}: {one.refusal}")
    if comparison.same:
        console.print(f"{comparison.same} on both sides are one and the same result (one plan over one text)")
    for side in dict.fromkeys(side for side, _ in comparison.alone):
        labels = [label for where, label in comparison.alone if where == side]
        more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
        console.print(f"only in {side}: {'; '.join(labels[:SHOWN])}{more}")
    console.print("\n".join(["", *_verdict(comparison)]))


def _margin(comparison: Comparison) -> str:
    return f"{100 * (comparison.margin or 0):g} %"


def _verdict(comparison: Comparison) -> Iterator[str]:
    """In sentences: what differs by more than chance, and whether equivalence was shown."""
    measured = [one.difference for one in comparison.compared if one.difference is not None]
    count = f"{len(measured)} comparison{'s'[: len(measured) != 1]}"
    shown = sum(one.equivalence is not None and one.equivalence.shown for one in comparison.compared)
    different = sum(one.significant for one in measured)
    if measured:
        yield f"{different} of {len(measured)} differ by more than chance (p < {statistics.ALPHA:g} adjusted, Holm)."
    if any(not one.paired for one in comparison.compared):
        yield "Over other documents: means are compared, not pairs, with far less power (Welch's test)."
    if any(one.p is None for one in measured):
        yield f"Too few documents for an interval: give limit={statistics.needed(1)} or more."
    if comparison.margin is None:
        yield "No difference found is no proof of equality: --margin 1% tests for equivalence."
    elif comparison.equivalent:
        yield f"Equivalent within {_margin(comparison)}: all {count} show it (two one-sided tests, p < 0.05 each)."
    else:
        yield (
            f"Not shown to be equivalent within {_margin(comparison)}: {shown} of {len(comparison.compared)} show it. "
            "Where the 90 % interval of the last column reaches beyond the margin, the difference is there or the "
            "documents are too few (limit=)."
        )


def _line(one: Compared, comparison: Comparison) -> list[str]:
    assert one.difference is not None
    found = one.difference
    units = found.measure.units if one.paired else "documents each"
    line = [one.ours.label, *_numbers(found), f"{found.count} {units}"]
    if comparison.margin is None:
        return line
    shown = one.equivalence
    if shown is None:
        return [*line, "too few"]
    low_high = () if shown.low is None or shown.high is None else (shown.low, shown.high)
    ends = f" [{', '.join(amount(found.measure, end) for end in low_high)}]" if low_high else ""
    return [*line, f"{'yes' if shown.shown else 'no'}, p {shown.p:.2g}{ends}"]


def _position(end: float, found: Difference) -> Sequence[str]:
    return [f"{end:,.0f}", *_numbers(found)]


def _numbers(found: Difference) -> list[str]:
    unit = "%" if found.measure.exp else "points"
    if found.p is None:
        interval = "too few"
    elif found.low is None or found.high is None:
        interval = "all alike"
    else:
        interval = f"{amount(found.measure, found.low)} to {amount(found.measure, found.high)}"
    mark = "" if not found.significant else " better" if found.better else " worse"
    adjusted = "too few" if found.adjusted is None else f"{found.adjusted:.2g}{mark}"
    return [f"{amount(found.measure, found.mean)} {unit}", interval, adjusted]


def amount(measure: Measure, value: float) -> str:
    """In hundredths: `+0.12` is 0.12 % of perplexity, or 0.12 points."""
    return f"{100 * compare.relative(measure, value):+.3g}"
