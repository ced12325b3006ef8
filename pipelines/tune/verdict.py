"""What a search found, judged on the half of the documents that it never saw: better than the defaults, or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.records.cells import Cell, Refusal, Result
from pipelines.records.numbers import number
from pipelines.report import statistics, tables
from pipelines.report.gain import gain_of
from pipelines.report.statistics import Difference, PairedComparison
from pipelines.tune.bench import Bench, StrategyChoice, served
from pipelines.tune.space import LISTS_FROM, Space


@dataclass(frozen=True)
class JudgedRow:
    """One strategy choice at one length, on the half that judges."""

    label: str
    cell: Cell
    result: Result

    @property
    def headline(self) -> str:
        return tables.headline(self.cell, self.result)


@dataclass(frozen=True)
class TuneVerdict:
    """The chosen options and the published defaults on the reporting half.

    compared: the chosen ones with each default at the length, and at the short length what serving them, and the best
    default, does to the model as trained. names: of the cells, by id.
    """

    chosen: StrategyChoice
    rows: tuple[JudgedRow, ...]
    compared: tuple[PairedComparison, ...]
    names: Mapping[str, str]
    sentences: tuple[str, ...]

    def spec(self) -> dict[str, Any]:
        """As plain data."""
        rows = [
            {
                "label": row.label,
                "length": row.cell.length,
                "cell": row.cell.id,
                "status": row.result.status,
                "metrics": row.result.metrics,
            }
            for row in self.rows
        ]
        comparisons = [dict(zip(tables.DIFFERENCES, line, strict=True)) for line in self.lines]
        return {"rows": rows, "comparisons": comparisons, "sentences": list(self.sentences)}

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """A line a comparison, under tables.DIFFERENCES."""
        return [
            (line[0], self.names[v.cell.id], self.names[v.baseline.id], *line[3:])
            for v in self.compared
            if v.difference is not None
            for line in [tables.difference_line(gain_of(v))]
        ]


def defaults_of(space: Space) -> list[StrategyChoice]:
    """What a search has to beat: the strategy at its published defaults; a list, linear, ntk and yarn; a theta that is
    no rule, the NTK-aware formula as well."""
    if space.curves:
        return [StrategyChoice(name, {}) for name in LISTS_FROM]
    own = StrategyChoice(space.strategy, {name: value for name, value in space.fixed.items() if name == "over"})
    return [own, StrategyChoice("ntk", {})] if space.strategy == "base" else [own]


def judge(bench: Bench, chosen: StrategyChoice, defaults: Sequence[StrategyChoice], short: int | None) -> TuneVerdict:
    """Chosen against every default, on the reporting half; and what serving it costs at the short length.

    Raises:
        Refusal: nothing that was measured there can be compared.
    """
    count = bench.screening.count
    choices = [*defaults, chosen]
    cells = [bench.cell(choice, "report", 0, count) for choice in choices]
    at_short: list[Cell] = []
    if short is not None:
        served_choices = [served(choice, cell) for choice, cell in zip(choices, cells, strict=True)]
        at_short = [
            bench.cell(choice, "report", 0, count, short) for choice in (StrategyChoice("none", {}), *served_choices)
        ]
    measured = bench.results([*cells, *at_short])
    results = {cell.id: bench.judged(cell, measured[cell.id]) for cell in (*cells, *at_short)}
    *theirs, ours = cells
    usable = [cell for cell in theirs if results[cell.id].metrics]
    if not usable:
        raise Refusal(f"none of the defaults could be measured: {results[theirs[0].id].error_line}")
    best = theirs.index(min(usable, key=lambda cell: bench.value([cell.id])))
    pairs = [(ours, cell) for cell in theirs if cell.id != ours.id]
    shown_at_short: dict[str, Cell] = {}
    if short is not None:
        native, *others = at_short
        shown_at_short = {cell.id: cell for cell in (others[best], others[-1])}
        pairs += [(cell, native) for cell in shown_at_short.values() if cell.id != native.id]
    compared = statistics.compare_pairs(
        ((a, results[a.id]), (b, results[b.id])) for a, b in pairs if results[a.id].metrics and results[b.id].metrics
    )
    labels = [*(choice.label for choice in defaults), f"tuned {chosen.strategy}" if chosen.options else chosen.strategy]
    named = [*zip(labels, cells, strict=True), *zip(["none", *labels], at_short, strict=False)]
    rows = [JudgedRow(label, cell, results[cell.id]) for label, cell in named]
    names = {row.cell.id: row.label for row in reversed(rows)}  # the chosen one may be a default
    sentences = ["At the length, perplexity is over key tokens alone."] if bench.keys else []
    sentences.append(_at_length(bench, rows[len(defaults)], rows[best], compared))
    if short is not None:
        sentences += _costs({cell_id: names[cell_id] for cell_id in shown_at_short}, at_short[0], compared)
    shown = tuple(row for row in rows if names[row.cell.id] == row.label)
    return TuneVerdict(chosen, shown, tuple(compared), names, tuple(sentences))


def _at_length(bench: Bench, ours: JudgedRow, best: JudgedRow, compared: Sequence[PairedComparison]) -> str:
    at = f"at {ours.cell.length:,} tokens, over {len(ours.result.documents)} documents that the search never saw"
    if ours.cell.id == best.cell.id:
        return f"No better than the default: nothing that was tried came before {best.label}. Keep it."
    versus = next((v for v in compared if (v.cell.id, v.baseline.id) == (ours.cell.id, best.cell.id)), None)
    if versus is None or versus.difference is None:
        reason = versus.refusal if versus is not None else f"{ours.label} was {ours.result.status}"
        return f"No verdict {at}: {reason}"
    difference = versus.difference
    change = f"{best.label}: {_score(bench, best)} to {_score(bench, ours)}"
    p = "too few documents for a p" if difference.adjusted is None else f"adjusted p = {difference.adjusted:.2g}"
    if difference.significant and difference.better:
        return f"Better than the best default {at}: from {change} ({p})."
    if difference.significant:
        return (
            f"Worse than the best default {at}, whatever the tuning half said: from {change} ({p}). Keep the default."
        )
    return f"No better than the default {at}: from {change}, which may be chance ({p}). Keep the default."


def _costs(names: Mapping[str, str], native: Cell, compared: Sequence[PairedComparison]) -> list[str]:
    """What each of these does to the model at the length that it was trained on. names: by cell id."""
    differences = {v.cell.id: v.difference for v in compared if v.baseline.id == native.id}
    sentences = []
    for cell_id, name in names.items():
        difference = differences.get(cell_id)
        if cell_id == native.id:
            sentences.append(f"Served at {native.length:,} tokens, {name} is the model as trained, and costs nothing.")
        elif difference is not None:
            p = (
                "too few documents for a p"
                if difference.adjusted is None
                else f"adjusted p = {difference.adjusted:.2g}"
            )
            cost = f"costs {_change(difference)} beside the model as trained; {p}"
            sentences.append(f"Served at {native.length:,} tokens, {name} {cost}.")
    return sentences


def _change(difference: Difference) -> str:
    if difference.measure.name != "nll":
        return f"{difference.mean:+.3g}"
    return f"{difference.mean:+.3g} nats a token ({math.expm1(difference.mean):+.1%} perplexity)"


def _score(bench: Bench, row: JudgedRow) -> str:
    name = "ppl" if bench.measure.exp else bench.measure.name
    return f"{name} {number(row.result.metrics[name])}" if name in row.result.metrics else row.result.status
