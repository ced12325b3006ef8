"""What a search has found, judged on the half of the documents that it never saw: better than the defaults, or not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.records.cells import Cell, Refusal, Result, frozen, strategy_label
from pipelines.records.numbers import number
from pipelines.report import statistics, tables
from pipelines.report.statistics import Difference, PairedComparison
from pipelines.tune.bench import Bench, Recipe, served
from pipelines.tune.space import LISTS_FROM, Space
from rope import strategies


@dataclass(frozen=True)
class Row:
    """One recipe at one length, on the half that judges. value: mean NLL in nats a token, or the share missed."""

    label: str
    length: int
    cell: Cell
    result: Result

    @property
    def told(self) -> str:
        return tables.headline(self.cell, self.result)


@dataclass(frozen=True)
class Verdict:
    """The chosen recipe and the published defaults on the reporting half.

    best_default: the one that did best there. compared: the chosen one with each default at the
    length, and at the short one what serving it, and the best default, does to the model as trained. names: of the
    cells, by id.
    """

    chosen: Recipe
    rows: tuple[Row, ...]
    best_default: Row
    compared: tuple[PairedComparison, ...]
    names: Mapping[str, str]
    sentences: tuple[str, ...]

    def spec(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "rows": [
                {"label": row.label, "length": row.length, "cell": row.cell.id, "status": row.result.status,
                 "metrics": row.result.metrics}
                for row in self.rows
            ],
            "comparisons": [dict(zip(tables.DIFFERENCES, line, strict=True)) for line in self.lines],
            "sentences": list(self.sentences),
        }  # fmt: skip

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """A line a comparison, under tables.DIFFERENCES."""
        return [
            (line[0], self.names[v.cell.id], self.names[v.baseline.id], *line[3:])
            for v in self.compared
            if v.difference is not None
            for line in [tables.difference_line(v, v.difference)]
        ]


def defaults_of(space: Space) -> list[Recipe]:
    """What a search has to beat: the strategy at its published defaults; a list, linear, ntk and yarn; a theta that is
    no rule, the NTK-aware formula as well."""
    if space.curves:
        return [(name, {}) for name in LISTS_FROM]
    kept = {name: value for name, value in space.fixed.items() if name == "over"}
    own: Recipe = (space.strategy, kept)
    return [own, ("ntk", {})] if space.strategy == "base" else [own]


def name_of(chosen: Recipe) -> str:
    """What the chosen recipe is called beside the defaults."""
    return f"tuned {chosen[0]}" if chosen[1] else chosen[0]


def label(recipe: Recipe) -> str:
    """As Cell.strategy_label has it."""
    return strategy_label(recipe[0], frozen(recipe[1]))


def judge(bench: Bench, chosen: Recipe, defaults: Sequence[Recipe], short: int | None) -> Verdict:
    """Chosen against every default, on the reporting half; and what serving it costs at the short length.

    Raises:
        Refusal: nothing that was measured there can be compared.
    """
    count = bench.documents.count
    ours = bench.cell(chosen, "report", 0, count)
    theirs = [bench.cell(recipe, "report", 0, count) for recipe in defaults]
    at_short: list[Cell] = []
    if short is not None:
        asked = [("none", {}), *(served(r, c) for r, c in zip([*defaults, chosen], [*theirs, ours], strict=True))]
        at_short = [bench.cell(recipe, "report", 0, count, short) for recipe in asked]
    results = bench.results([ours, *theirs, *at_short])
    usable = [c for c in theirs if results[c.id].metrics]
    if not usable:
        raise Refusal(f"none of the defaults could be measured: {results[theirs[0].id].error_line}")
    best = min(usable, key=lambda c: bench.value([c.id]))
    pairs = [(ours, cell) for cell in theirs if cell.id != ours.id]
    if short is not None:
        native, *others = at_short
        served_ones = {c.id: c for c in (others[theirs.index(best)], others[-1])}
        pairs += [(cell, native) for cell in served_ones.values() if cell.id != native.id]
    compared = statistics.compare_pairs(
        ((a, results[a.id]), (b, results[b.id])) for a, b in pairs if results[a.id].metrics and results[b.id].metrics
    )
    labels = [*map(label, defaults), name_of(chosen)]
    rows = [Row(name, c.length, c, results[c.id]) for name, c in zip(labels, [*theirs, ours], strict=True)]
    rows += [Row(name, c.length, c, results[c.id]) for name, c in zip(["none", *labels], at_short, strict=False)]
    names = {row.cell.id: row.label for row in reversed(rows)}  # the chosen one may be a default
    told = [_target(bench, rows[len(defaults)], rows[theirs.index(best)], compared)]
    if short is not None:
        told += _costs({c.id: names[c.id] for c in served_ones.values()}, native, compared)
    shown = [row for row in rows if names[row.cell.id] == row.label]
    return Verdict(chosen, tuple(shown), rows[theirs.index(best)], tuple(compared), names, tuple(told))


def _costs(names: Mapping[str, str], native: Cell, compared: Sequence[PairedComparison]) -> list[str]:
    """What each of these does to the model at the length that it was trained on. names: by cell id."""
    found = {v.cell.id: v.difference for v in compared if v.baseline.id == native.id}
    told = []
    for cell_id, name in names.items():
        difference = found.get(cell_id)
        if cell_id == native.id:
            told.append(f"Served at {native.length:,} tokens, {name} is the model as trained, and costs nothing.")
        elif difference is not None:
            told.append(_cost(name, difference, native.length))
    return told


def _target(bench: Bench, ours: Row, best: Row, compared: Sequence[PairedComparison]) -> str:
    at = f"at {ours.length:,} tokens, over {len(ours.result.documents)} documents that the search never saw"
    if ours.cell.id == best.cell.id:
        return f"No better than the default: nothing that was tried came before {best.label}. Keep it."
    versus = next((v for v in compared if (v.cell.id, v.baseline.id) == (ours.cell.id, best.cell.id)), None)
    if versus is None or versus.difference is None:
        reason = versus.refusal if versus is not None else f"{ours.label} was {ours.result.status}"
        return f"No verdict {at}: {reason}"
    found = versus.difference
    change = f"{best.label}: {_score(bench, best)} to {_score(bench, ours)}"
    p = "too few documents for a p" if found.adjusted is None else f"adjusted p = {found.adjusted:.2g}"
    if found.significant and found.better:
        return f"Better than the best default {at}: from {change} ({p})."
    if found.significant:
        return (
            f"Worse than the best default {at}, whatever the tuning half said: from {change} ({p}). Keep the default."
        )
    return f"No better than the default {at}: from {change}, which may be chance ({p}). Keep the default."


def _cost(name: str, found: Difference, length: int) -> str:
    nll = found.measure.name == "nll"
    change = (
        f"{found.mean:+.3g} nats a token ({math.expm1(found.mean):+.1%} perplexity)" if nll else f"{found.mean:+.3g}"
    )
    sure = f"adjusted p = {found.adjusted:.2g}" if found.adjusted is not None else "too few documents for a p"
    return f"Served at {length:,} tokens, {name} costs {change} beside the model as trained; {sure}."


def _score(bench: Bench, row: Row) -> str:
    name = "ppl" if bench.measure.name == "nll" else bench.measure.name
    return f"{name} {number(row.result.metrics[name])}" if name in row.result.metrics else row.result.status


def best_yaml(recipe: Recipe, notes: Sequence[str]) -> str:
    """A file like those of conf/strategy."""
    said = "".join(f"# {line}\n" for line in notes)
    return said + f"name: {recipe[0]}\n" + "".join(f"{k}: {_yaml(v)}\n" for k, v in recipe[1].items())


def _yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(k))}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return json.dumps(value)


def known(recipe: Recipe) -> Recipe:
    """A recipe without what is its strategy's default anyway."""
    defaults = strategies.options_of(recipe[0])
    return recipe[0], {k: v for k, v in recipe[1].items() if k not in defaults or defaults[k] != v}
