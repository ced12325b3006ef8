"""Context gain and effective length of one model and task, as a table and in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.records.cells import Cell, Refusal, Result
from pipelines.report import curves, effective, statistics
from pipelines.report.amounts import amount, number
from pipelines.report.curves import Results
from pipelines.report.effective import Effective
from pipelines.report.gain import CROP, MARGIN, Gain, gains
from pipelines.tasks import registry

RULES = {"gain": "effective length", "ruler": "RULER (85.6)", "nolima": "NoLiMa (85 %)", "longscore": "LongScore"}
"""Columns of effective lengths."""


@dataclass(frozen=True)
class Standing:
    """What one strategy is worth.

    gains: by length, beyond the trained one. costs: the same up to it, where its plan differs from the plain one.
    lengths: the effective ones, by rule.
    """

    strategy: str
    gains: Mapping[int, Gain]
    costs: Mapping[int, Gain]
    lengths: Mapping[str, Effective]


@dataclass(frozen=True)
class GainTable:
    """summary: the headline. legend: what the words mean. standings: the numbers behind it all."""

    title: str
    header: list[str]
    rows: list[list[str]]
    summary: str
    legend: str
    standings: tuple[Standing, ...] = ()


def standings(rows: Results, metric: str | None, trained: int) -> list[Standing]:
    """Of every strategy of one model and task but cropping itself; of strategies that come to one plan, of each."""
    by_cell = {(one.cell.strategy_label, one.cell.length): one for one in gains(rows, metric)}
    crops = {cell.length: (cell, result) for cell, result in reversed(rows) if cell.strategy == CROP}
    shown = []
    for label, of_one in curves.by_strategy(rows).items():
        if of_one[0][0].strategy == CROP:
            continue
        own = {length: one for (name, length), one in by_cell.items() if name == label}
        longer = {length: one for length, one in own.items() if length > trained}
        shorter = {length: one for length, one in own.items() if length <= trained}
        shown.append(Standing(label, longer, shorter, _lengths(of_one, crops, metric, trained)))
    return shown


def _lengths(
    rows: Results, crops: Mapping[int, tuple[Cell, Result]], metric: str | None, trained: int
) -> dict[str, Effective]:
    """The effective lengths of one strategy; of what does not compare there is none."""
    try:
        measure = statistics.measure_of(rows[0][0].task.name, metric)
        scores = {c.length: np.array([*statistics.by_unit(measure, c, r).values()]) for c, r in rows if r.documents}
    except Refusal:
        return {}
    sign = -1 if measure.lower else 1
    over_crop = {}
    for cell, result in rows:
        if cell.length in crops and cell.length > trained:
            try:
                over_crop[cell.length] = sign * statistics.paired((cell, result), crops[cell.length], metric)
            except Refusal:
                return {}
    found = [effective.by_gain(over_crop, trained)] if over_crop else []
    found += [] if measure.lower else effective.by_score(scores, trained)
    return {one.rule: one for one in found if one is not None}


def gain_table(model: str, task: str, rows: Results, metric: str | None, trained: int | None) -> GainTable | None:
    """The table of one model and task; None where nothing is cropped beyond the trained length, or nothing else is."""
    if trained is None or not any(cell.strategy == CROP and cell.length > trained for cell, _ in rows):
        return None
    shown = standings(rows, metric, trained)
    if not any(one.gains for one in shown):
        return None
    lengths = sorted({length for one in shown for length in one.gains})
    rules = [rule for rule in RULES if any(rule in one.lengths for one in shown)]
    header = ["strategy", *(f"{n:,}" for n in lengths), *(RULES[rule] for rule in rules)]
    body = [
        [
            one.strategy,
            *(_entry(one.gains[n]) if n in one.gains else "" for n in lengths),
            *(effective_text(one.lengths[rule]) if rule in one.lengths else "" for rule in rules),
        ]
        for one in shown
    ]
    title = f"{model}, {task}: context gain over cropping to the last {trained:,} tokens"
    all_gains = [gain for one in shown for gain in one.gains.values()]
    return GainTable(title, header, body, summary(task, all_gains), _legend(all_gains), tuple(shown))


def as_metrics(table: GainTable, task: str) -> list[tuple[str, float, int]]:
    """(name, value, step) for MLflow: gains by length, effective lengths and LongScores of every strategy."""
    metrics = []
    for one in table.standings:
        name = re.sub(r"[^\w.: -]", "_", f"{task} {one.strategy}")  # what MLflow allows
        metrics += [(f"context_gain/{name}", g.gain, n) for n, g in sorted(one.gains.items()) if not g.refusal]
        metrics += [(f"effective_length/{name} {rule}", found.value, 0) for rule, found in one.lengths.items()]
    return metrics


def summary(task: str, all_gains: Sequence[Gain]) -> str:
    """What the best strategy is worth at the longest length, in a sentence; or why that cannot be said."""
    compared = [gain for gain in all_gains if gain.measure is not None]
    if not compared:
        return "\n".join(dict.fromkeys(f"Not compared: {gain.refusal}" for gain in all_gains))
    longest = max(gain.cell.length for gain in compared)
    best = max((gain for gain in compared if gain.cell.length == longest), key=lambda gain: gain.gain)
    where, who = f"At {longest:,} tokens", best.cell.strategy_label
    if best.verdict == "useful":
        return f"{where} {who} is worth {amount(best)} over cropping."
    least = statistics.needed(_tests(compared))
    lacking = ""
    if best.measure and best.count < least:
        larger = registry.kind(task).larger(least)
        tests = _tests(compared)
        comparisons = "1 comparison takes" if tests == 1 else f"{tests} comparisons take"
        lacking = f" With {best.count} {best.measure.units} none can be: {comparisons} at least {least} ({larger})."
    return f"{where} no gain over cropping is shown; {who} comes closest: {amount(best)}.{lacking}"


def _tests(compared: Sequence[Gain]) -> int:
    """Comparisons among which p is adjusted, strategies of one plan being one; all of them where none has a p."""
    tested = {gain.cell.id for gain in compared if gain.p is not None}
    return len(tested or {gain.cell.id for gain in compared})


def _entry(gain: Gain) -> str:
    if gain.refusal:
        return "not compared"
    if gain.verdict == "too few":
        return number(gain)
    # an interval above 0 is not enough among so many comparisons
    why = f", p {gain.adjusted:.2g}" if gain.low is not None and gain.low > 0 and gain.verdict != "useful" else ""
    return f"{number(gain)} {gain.verdict}{why}"


def effective_text(one: Effective) -> str:
    """`2,048 [512, 2,048]`, or of a score `-0.12 [-0.2, -0.04]`."""

    def text(value: float) -> str:
        return f"{value:+.2g}" if one.rule == "longscore" else f"{value:,.0f}"

    return text(one.value) + ("" if one.low is None or one.high is None else f" [{text(one.low)}, {text(one.high)}]")


def _legend(all_gains: Sequence[Gain]) -> str:
    told = [gain for gain in all_gains if gain.measure is not None and gain.low is not None]
    if not told:
        return ""
    exp, tests = told[0].measure.exp if told[0].measure else "", _tests(told)
    better, unit = (f"lower {exp}", "%") if exp else ("a better score", "points")
    comparisons = f"{tests} comparison{'s' if tests > 1 else ''}"
    return (
        f"useful: {better} than the plain model has on the last tokens alone, over the same scored tokens,\n"
        f"by more than chance (95 % interval above 0, p < {statistics.ALPHA:g} adjusted for {comparisons}).\n"
        f"intact: at most {100 * MARGIN:.0f} {unit} worse by all of its interval. broken: worse. undecided: the rest.\n"
        "Effective length: as far as the mean gain is above 0."
    )
