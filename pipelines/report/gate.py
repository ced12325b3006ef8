"""A gate: rules on what was measured, each of which holds or not; for the continuous integration of a model.

context_gain@2048 >= 0              worth over cropping at a length: a share of perplexity, or points of a score
short_cost <= 2%                    what it loses up to the trained length
effective_length >= 2048            how far the model keeps what it can do, by context gain
passkey@1024 >= 0.9 with 95 %       a task's main number, or TASK/METRIC; the bound of its 95 % interval must hold
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.choices import schema
from pipelines.choices.sweep import trained_length
from pipelines.records.cells import Cell, Refusal, Result
from pipelines.records.numbers import number
from pipelines.records.refusal import suggestion
from pipelines.report import curves, gain, gain_table, statistics, stored
from pipelines.report.curves import Results
from pipelines.report.tables import headlines
from pipelines.tasks import registry

SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}

RULE = re.compile(
    r"(?P<metric>[A-Za-z][\w./-]*)(?:@(?P<length>\d[\d_]*))?\s*(?P<sign>>=|<=|>|<)\s*(?P<value>[+-]?\d+(?:\.\d+)?)"
    r"\s*(?P<percent>%?)(?:\s+with\s+(?P<level>\d+(?:\.\d+)?)\s*%)?"
)

FORM = "METRIC[@LENGTH] >= NUMBER[%] [with 95 %], such as context_gain@32768 >= 0"

OF_RULES = tuple(name for name in stored.FILTERS if name not in ("length", "status"))
"""Filters that a policy, or one rule of it, may have."""

BASELINES = ("none", gain.CROP)
"""Strategies that a rule without `strategy` leaves out where there are others."""


@dataclass(frozen=True)
class Rule:
    """text: as the policy has it. metric: context_gain, short_cost, effective_length[/RULE], TASK or TASK/METRIC.
    value: a percentage as a share. bound: whether the 95 % interval must hold, and not the number alone."""

    text: str
    metric: str
    length: int | None
    sign: str
    value: float
    percent: bool
    bound: bool
    filters: tuple[tuple[str, str], ...] = ()

    @property
    def upwards(self) -> bool:
        return self.sign.startswith(">")

    def deciding(self, seen: Seen) -> float | None:
        """The number that must hold; None where an interval is wanted and there is none."""
        if not self.bound:
            return seen.value
        return seen.low if self.upwards else seen.high

    def holds(self, seen: Seen) -> bool:
        value = self.deciding(seen)
        return value is not None and SIGNS[self.sign](value, self.value)


@dataclass(frozen=True)
class Seen:
    """What was measured for a rule. value: NaN where nothing was, and `reason` says why. low, high: 95 %."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """A rule with all that it was held against. reason: why it failed without a number."""

    rule: Rule
    seen: tuple[Seen, ...]
    reason: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.seen) and all(map(self.rule.holds, self.seen))

    @property
    def worst(self) -> Seen:
        """Of what was seen that which decides."""
        missing = math.inf if not self.rule.upwards else -math.inf

        def place(seen: Seen) -> float:
            value = self.rule.deciding(seen)
            return missing if value is None or math.isnan(value) else value

        return (min if self.rule.upwards else max)(self.seen, key=place)


def read(path: Path) -> list[Rule]:
    """The rules of a policy.

    Raises:
        Refusal: the file is not there, or a rule cannot be read; with what it may say.
    """
    body = schema.read(path)
    _check_keys(path, body, ("rules", *OF_RULES), "a policy")
    rules = body.get("rules")
    if not isinstance(rules, list) or not rules:
        raise Refusal(f"{path.name}: give rules, a list of lines such as - {FORM.partition('such as ')[2]}")
    common = {key: str(value) for key, value in body.items() if key != "rules"}
    return [_rule(path, entry, common) for entry in rules]


def _rule(path: Path, entry: Any, common: Mapping[str, str]) -> Rule:
    fields = dict(entry) if isinstance(entry, dict) else {"rule": entry}
    _check_keys(path, fields, ("rule", *OF_RULES), "a rule")
    text = str(fields.pop("rule", "")).strip()
    found = RULE.fullmatch(text)
    if found is None:
        raise Refusal(f"{path.name}: {text[:80] or entry!r}: this is no rule; give {FORM}")
    if found["level"] is not None and float(found["level"]) != 95:
        raise Refusal(f"{path.name}: {text}: intervals here are of 95 %; give `with 95 %`, or leave it out")
    filters = {**common, **{key: str(value) for key, value in fields.items()}}
    value = float(found["value"]) / (100 if found["percent"] else 1)
    length = None if found["length"] is None else int(found["length"])
    return Rule(
        text,
        found["metric"],
        length,
        found["sign"],
        value,
        bool(found["percent"]),
        found["level"] is not None,
        tuple(filters.items()),
    )


def _check_keys(path: Path, body: Mapping[Any, Any], known: Sequence[str], what: str) -> None:
    for key in body:
        if key not in known:
            hint = suggestion(str(key), known)
            raise Refusal(f"{path.name}: {key}: {what} has no such key; {hint}it has {', '.join(known)}")


def held(rules: Sequence[Rule], rows: Results) -> list[Outcome]:
    """Every rule against the results."""
    return [_outcome(rule, rows) for rule in rules]


def _outcome(rule: Rule, rows: Results) -> Outcome:
    try:
        # Of strategies the baselines stay: what a rule is about is told by _judged.
        kept = stored.filtered(rows, {key: value for key, value in rule.filters if key != "strategy"})
        group = rule.metric.partition("/")[0]
        special = {"context_gain": _gains, "short_cost": _costs, "effective_length": _lengths}
        seen = tuple(special[group](rule, kept) if group in special else _scores(rule, kept))
    except Refusal as reason:
        return Outcome(rule, (), str(reason))
    return Outcome(rule, seen, "" if seen else "it matches no result")


def _judged(rule: Rule, rows: Results) -> set[str]:
    """The strategies that a rule is about.

    Raises:
        Refusal: it names one that is not there.
    """
    if (named := dict(rule.filters).get("strategy")) is not None:
        return {cell.strategy_label for cell, _ in stored.filtered(rows, {"strategy": named})}
    others = {cell.strategy_label for cell, _ in rows if cell.strategy not in BASELINES}
    return others or {cell.strategy_label for cell, _ in rows if cell.strategy != gain.CROP}


def _at(rule: Rule, rows: Results) -> list[tuple[Cell, Result]]:
    """The rows of the rule's length.

    Raises:
        Refusal: there are none.
    """
    kept = [row for row in rows if rule.length in (None, row[0].length)]
    if rows and not kept:
        lengths = ", ".join(str(n) for n in sorted({cell.length for cell, _ in rows}))
        raise Refusal(f"it matches no result: nothing was measured at {rule.length} tokens, only at {lengths}")
    return kept


def _gains(rule: Rule, rows: Results) -> Iterator[Seen]:
    for group in curves.by_task(rows).values():
        crop = next((cell for cell, _ in group if cell.strategy == gain.CROP), None)
        if crop is None:
            raise Refusal(
                f"{group[0][0].model.name}, {group[0][0].task.name}: no cell crops; add strategy=crop to the grid"
            )
        yield from _over(rule, _at(rule, group), crop.strategy_label, cost=False)


def _costs(rule: Rule, rows: Results) -> Iterator[Seen]:
    for group in curves.by_task(rows).values():
        trained = trained_length(group[0][0])
        short = [row for row in _at(rule, group) if row[0].length <= trained]
        if not short:
            raise Refusal(f"it matches no result: nothing was measured up to the trained {trained:,} tokens")
        labels = {cell.strategy: cell.strategy_label for cell, _ in short if cell.strategy in BASELINES}
        baseline = labels.get(gain.CROP) or labels.get("none")
        if baseline is None:
            raise Refusal("costs are against the plain model: add strategy=none or strategy=crop to the grid")
        yield from _over(rule, short, baseline, cost=True)


def _over(rule: Rule, rows: Results, baseline: str, *, cost: bool) -> Iterator[Seen]:
    """What is gained over the baseline by every strategy that the rule is about, or lost (`cost`)."""
    metric = next(iter(headlines(rows[0][0].task.name, rows)), None)
    found = {(one.cell.strategy_label, one.cell.id): one for one in gain.over(rows, metric, baseline)}
    judged, sign = _judged(rule, rows), -1 if cost else 1
    plain = {cell.id for cell, _ in rows if cell.strategy_label == baseline}
    for cell, result in rows:
        if cell.strategy_label not in judged or cell.strategy_label == baseline:
            continue
        one = found.get((cell.strategy_label, cell.id))
        if not result.documents:
            yield Seen(cell.label, math.nan, reason=f"its status is {result.status}")
        elif cell.id in plain:
            yield Seen(f"{cell.label}, whose plan is that of {baseline}", 0.0, 0.0, 0.0)
        elif one is None or one.refusal:
            yield Seen(cell.label, math.nan, reason=one.refusal if one else f"there is no {baseline} at its length")
        else:
            ends = sorted(sign * end for end in (one.low, one.high) if end is not None)
            yield Seen(cell.label, sign * one.gain, *(ends or (None, None)))


def _lengths(rule: Rule, rows: Results) -> Iterator[Seen]:
    name = rule.metric.partition("/")[2] or "gain"
    if name not in gain_table.RULES:
        raise Refusal(f"{rule.metric}: there is no such rule; there are {', '.join(gain_table.RULES)}")
    for (model, task), group in curves.by_task(rows).items():
        metric = next(iter(headlines(task, group)), None)
        judged = _judged(rule, group)
        for one in gain_table.standings(group, metric, trained_length(group[0][0])):
            if one.strategy in judged and name in one.lengths:
                length = one.lengths[name]
                yield Seen(f"{model}: {one.strategy} {task}", length.value, length.low, length.high)


def _scores(rule: Rule, rows: Results) -> Iterator[Seen]:
    task, _, metric = rule.metric.partition("/")
    kept = [row for row in rows if row[0].task.name == task]
    if not kept:
        there = list(dict.fromkeys(cell.task.name for cell, _ in rows))
        known = [*there, "context_gain", "short_cost", "effective_length"]
        raise Refusal(f"it matches no result: {suggestion(task, known)}there are {', '.join(known)}")
    kept = _at(rule, kept)
    judged = _judged(rule, kept)
    for cell, result in kept:
        if cell.strategy_label in judged:
            yield _score(cell, result, metric or next(iter(headlines(task, [(cell, result)])), ""))


def _score(cell: Cell, result: Result, metric: str) -> Seen:
    if metric not in result.metrics:
        names = ", ".join(name for name in result.metrics if not name.endswith("_stderr")) or "none"
        reason = f"its status is {result.status}; it has no {metric}, its metrics: {names}"
        return Seen(cell.label, math.nan, reason=reason)
    value, measure = result.metrics[metric], registry.kind(cell.task.name).measure
    if measure is not None and metric in (measure.name, "ppl" if measure.exp else ""):
        ends = statistics.of_mean(np.array(list(statistics.by_unit(measure, cell, result).values())))
        if ends is None:
            return Seen(cell.label, value)
        return Seen(cell.label, value, *(ends if metric == measure.name else map(math.exp, ends)))
    if (error := result.metrics.get(f"{metric}_stderr")) is not None:
        return Seen(cell.label, value, value - 1.96 * error, value + 1.96 * error)
    return Seen(cell.label, value)


def line(outcome: Outcome) -> str:
    """One rule in a terminal line, with the number that decides it."""
    rule = outcome.rule
    head = f"{'pass' if outcome.passed else 'FAIL'}  {rule.text:<34}"
    if not outcome.seen:
        return f"{head} {outcome.reason}"
    worst = outcome.worst
    if math.isnan(worst.value):
        return f"{head} {worst.label}: nothing to hold against it, {worst.reason}"
    ends = "" if worst.low is None or worst.high is None else f" [{_text(rule, worst.low)}, {_text(rule, worst.high)}]"
    unit = " %" if _in_percent(rule) else ""
    lacking = "; too few documents for an interval" if rule.bound and not ends else ""
    holding = sum(map(rule.holds, outcome.seen))
    others = f"; {holding} of {len(outcome.seen)} hold" if len(outcome.seen) > 1 else ""
    return f"{head} {_text(rule, worst.value)}{unit}{ends} ({worst.label}{lacking}{others})"


def _in_percent(rule: Rule) -> bool:
    return rule.percent or rule.metric in ("context_gain", "short_cost")


def _text(rule: Rule, value: float) -> str:
    return f"{100 * value:+.3g}" if _in_percent(rule) else number(value)


def as_data(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The outcomes for machines; null is what was not measured."""

    def plain(rule: Rule, seen: Seen) -> dict[str, Any]:
        value = None if math.isnan(seen.value) else seen.value
        ends = {"low": seen.low, "high": seen.high}
        return {"cell": seen.label, "value": value, **ends, "passed": rule.holds(seen), "reason": seen.reason}

    return {
        "passed": all(outcome.passed for outcome in outcomes),
        "rules": [
            {
                "rule": outcome.rule.text,
                "filters": dict(outcome.rule.filters),
                "passed": outcome.passed,
                "reason": outcome.reason,
                "seen": [plain(outcome.rule, seen) for seen in outcome.seen],
            }
            for outcome in outcomes
        ],
    }
