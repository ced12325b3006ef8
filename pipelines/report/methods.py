"""Every strategy of a model and task on one line: what it gains at length, how far it goes, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.records.numbers import number
from pipelines.report import amounts, curves
from pipelines.report.curves import Results
from pipelines.report.gain import Gain
from pipelines.report.gain_table import RULES, Standing, effective_text, standings
from pipelines.report.short import ShortCost, apart, short_costs, trained_or_none
from pipelines.report.tables import headlines

KEY_TOKENS = "ppl_key"
"""Perplexity over the tokens that need the far text; of results with task.evaluator."""


@dataclass(frozen=True)
class MethodsTable:
    """A line a strategy, the best at the longest length first."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def methods_tables(rows: Results) -> list[MethodsTable]:
    """One for each model and task of which something is cropped beyond the trained length."""
    shown = []
    for (model, task), of_one in curves.by_task(rows).items():
        trained = trained_or_none(of_one[0][0])
        if trained is not None and (table := _table(model, task, of_one, trained)) is not None:
            shown.append(table)
    return shown


def _table(model: str, task: str, everything: Results, trained: int) -> MethodsTable | None:
    rows, _ = apart(everything, trained)
    metric = next(iter(headlines(task, rows)), None)
    found = [one for one in standings(rows, metric, trained) if one.gains]
    if not found:
        return None
    lengths = sorted({length for one in found for length in one.gains})
    rules = [rule for rule in RULES if any(rule in one.lengths for one in found)]
    costs = short_costs(everything, metric, trained)
    at_short = {one.strategy: one for one in sorted(costs, key=lambda one: one.target)}  # of the longest target
    keyed = {
        (cell.strategy_label, cell.length): result.metrics[KEY_TOKENS]
        for cell, result in rows
        if KEY_TOKENS in result.metrics
    }
    key_lengths = [length for length in lengths if any(at == length for _, at in keyed)]
    header = ["strategy", *(f"gain at {n:,}" for n in lengths), *(RULES[rule] for rule in rules)]
    header += [f"perplexity of key tokens at {n:,}" for n in key_lengths]
    header += [f"cost at {n:,} when deployed" for n in sorted({one.length for one in at_short.values()})]
    body = [
        [one.strategy, *(_gain(one, n) for n in lengths), *(_reach(one, rule) for rule in rules)]
        + [number(keyed[one.strategy, n]) if (one.strategy, n) in keyed else "" for n in key_lengths]
        + [_cost(at_short.get(one.strategy), n) for n in sorted({each.length for each in at_short.values()})]
        for one in sorted(found, key=lambda one: _rank(one, lengths[-1]))
    ]
    crop = next(cell.strategy_label for cell, _ in rows if cell.strategy == "crop")
    if key_lengths:  # what the others are read against
        line = [crop, *["" for _ in (*lengths, *rules)]]
        line += [number(keyed[crop, n]) if (crop, n) in keyed else "" for n in key_lengths]
        body.append(line + [""] * (len(header) - len(line)))
    counts = sorted({len(result.documents) for _, result in rows if result.documents})
    title = f"{model}, {task}: context gain over cropping to the last {trained:,} tokens, {counts[-1]} documents"
    return MethodsTable(title, tuple(header), tuple(map(tuple, body)))


def _rank(one: Standing, longest: int) -> float:
    gain = one.gains.get(longest)
    return math.inf if gain is None or math.isnan(gain.gain) else -gain.gain


def _gain(one: Standing, length: int) -> str:
    gain: Gain | None = one.gains.get(length)
    if gain is None:
        return ""
    return "not compared" if gain.refusal else f"{amounts.number(gain)} {gain.verdict}"


def _reach(one: Standing, rule: str) -> str:
    return effective_text(one.lengths[rule]) if rule in one.lengths else ""


def _cost(one: ShortCost | None, length: int) -> str:
    if one is None or one.length != length:
        return ""
    if one.gain is None:
        return "nothing"
    return "not compared" if one.gain.refusal else amounts.cost(one.gain)


def markdown(shown: Sequence[MethodsTable]) -> str:
    """Every table with its title."""
    parts = []
    for one in shown:
        lines = [one.header, ("---", *["---:"] * (len(one.header) - 1)), *one.rows]
        parts += [f"**{one.title}**", "\n".join("| " + " | ".join(line) + " |" for line in lines)]
    return "\n\n".join(parts)
