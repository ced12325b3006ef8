"""Results -> tables and figures: what a terminal shows and what MLflow keeps. Owns rich's tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipelines.choices.sweep import trained_length
from pipelines.records import provenance
from pipelines.records.cells import Cell, Refusal, Result
from pipelines.records.numbers import duration, number
from pipelines.records.results import Store
from pipelines.report import curves, drawing, gain, statistics
from pipelines.report.curves import Results
from pipelines.report.gain_table import GainTable, gain_table
from pipelines.report.statistics import Difference, PairedComparison
from pipelines.report.terminal import table
from pipelines.tasks import registry

BETTER, WORSE = "▲", "▼"
"""Beside a value that differs from the baseline's by more than chance."""


@dataclass(frozen=True)
class ScoreTable:
    """One model and task: strategy x length, what of it is chance, and what it is worth over cropping.

    legend: what the marks mean, or why there are none; "" where nothing is compared.
    differences: a line a comparison, under DIFFERENCES.
    longest: how many of the last differences are of the longest length. gains: over cropping; None where nothing is
        cropped.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    legend: str = ""
    differences: tuple[tuple[str, ...], ...] = ()
    longest: int = 0
    gains: GainTable | None = None
    model: str = ""
    task: str = ""


DIFFERENCES = ("length", "strategy", "against", "difference", "95 % interval", "p", "p adjusted", "over")


def show(console: Console, rows: Results, shown: Iterable[ScoreTable], store: Store) -> None:
    """The end of a sweep: its tables, what failed and where its log lies, and how to see it all."""
    for scores in shown:
        table(console, scores.title, scores.header, scores.rows)
        if scores.legend:
            console.print(scores.legend)
        if scores.longest:
            lines = scores.differences[-scores.longest :]
            table(console, "Differences at the longest length", DIFFERENCES, lines)
        if scores.gains is not None:
            table(console, scores.gains.title, scores.gains.header, scores.gains.rows)
            console.print("\n".join(filter(None, [scores.gains.summary, scores.gains.legend])))
    cells = distinct_rows(rows)
    for cell, result in cells:
        if not result.finished:
            console.print(
                f"\n{result.status}: {cell.label}\n  {result.error_line}\n  log: {store.cell(cell.id) / 'error.txt'}"
            )
    codes = provenance.code_labels(result.provenance for _, result in cells)
    if len(codes) > 1:
        versions = "; ".join(f"{count} of {label}" for label, count in codes.items())
        console.print(f"\nThese cells were computed by different code: {versions}. To compute all anew: force=true")
    statuses = ", ".join(f"{count} {status}" for status, count in counts([result for _, result in rows]).items())
    console.print(f"\n{statuses}. Compare them in the browser: ropewalk ui")


def tables(results: Results) -> list[ScoreTable]:
    """Strategy x length, one for each model and task; every value with its standard error, and marked where it is
    significantly better or worse than the baseline's."""
    return [_table(model, task, rows) for (model, task), rows in curves.by_task(results).items()]


def _table(model: str, task: str, rows: Results) -> ScoreTable:
    lengths = sorted({cell.length for cell, _ in rows})
    metrics = headlines(task, rows)
    compared = statistics.against_baseline(rows, metrics[0] if metrics else None)
    marks = {(one.cell.strategy_label, one.cell.id): _mark(one.difference) for one in compared}
    values: dict[str, dict[int, list[str]]] = {}
    for cell, result in rows:
        entry = values.setdefault(cell.strategy_label, {}).setdefault(cell.length, [])
        if (value := _value(cell, result) + marks.get((cell.strategy_label, cell.id), "")) not in entry:
            entry.append(value)
    names = " (".join(metrics) + (")" if len(metrics) > 1 else "")
    documents = sorted({len(result.documents) for _, result in rows if result.documents})
    title = f"{model}, {task}: {names}; {_span(documents)} document{'' if documents == [1] else 's'} a cell"
    header = ["strategy", *(f"{length:,}" for length in lengths)]
    body = [
        [strategy, *("; ".join(by_length.get(length, [""])) for length in lengths)]
        for strategy, by_length in values.items()
    ]
    shares = {strategy: consistency(of_one) for strategy, of_one in curves.by_strategy(rows).items()}
    if any(share is not None for share in shares.values()):
        header.append("consistency")
        body = [[*line, "" if (share := shares[line[0]]) is None else number(share)] for line in body]
    compared = sorted(compared, key=lambda one: one.cell.length)
    lines = tuple(difference_line(one, one.difference) for one in compared if one.difference is not None)
    longest = [line for line in lines if line[0] == lines[-1][0]] if _enough(compared) else []
    gained = gain_table(model, task, rows, metrics[0] if metrics else None, _trained_length(rows[0][0]))
    return ScoreTable(title, header, body, _legend(compared), lines, len(longest), gained, model, task)


def _mark(difference: Difference | None) -> str:
    if difference is None or not difference.significant:
        return ""
    return f" {BETTER if difference.better else WORSE}"


def _span(counts: Sequence[int]) -> str:
    if not counts:
        return "no"
    return f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"


def _tests(compared: Sequence[PairedComparison]) -> int:
    """Comparisons among which p is adjusted; where none has documents enough, those that would be."""
    tested = {one.cell.id for one in compared if one.difference is not None and one.difference.p is not None}
    return len(tested or {one.cell.id for one in compared if one.difference is not None})


def _enough(compared: Sequence[PairedComparison]) -> bool:
    """Whether any comparison has as many documents as it takes to be significant."""
    counts = [one.difference.count for one in compared if one.difference is not None]
    return bool(counts) and max(counts) >= statistics.needed(_tests(compared))


def too_few(task: str, units: str, there: str, tests: int, against: str = "") -> str:
    """How many documents, or keys, it takes for so many comparisons to show anything. there: how many there are."""
    least = statistics.needed(tests)
    return (
        f"Too few {units} to tell a difference from chance: {there}, and {_comparisons(tests)}{against} take at least "
        f"{least} ({registry.kind(task).larger(least)})."
    )


def _comparisons(tests: int) -> str:
    return f"{tests} comparison{'s' if tests > 1 else ''}"


def _legend(compared: Sequence[PairedComparison]) -> str:
    """What the marks mean; or how many documents it takes to have any, or why results do not compare."""
    differences = [one.difference for one in compared if one.difference is not None]
    reasons = dict.fromkeys(one.refusal for one in compared if one.refusal)
    refused = "".join(f"\nNot compared: {reason}" for reason in reasons)
    if not differences:
        return refused.strip()
    tests, units, counts = _tests(compared), differences[0].measure.units, sorted({one.count for one in differences})
    task, against = compared[0].cell.task.name, compared[0].baseline.strategy_label
    if not _enough(compared):
        return too_few(task, units, f"{_span(counts)} a cell", tests, f" with {against}") + refused
    few = sorted({one.cell.length for one in compared if one.difference is not None and one.difference.p is None})
    lacking = f" Too few {units} to tell at {', '.join(f'{n:,}' for n in few)}." if few else ""
    return (
        f"{BETTER} better, {WORSE} worse than {against}: over the same {_span(counts)} {units}, "
        f"p < {statistics.ALPHA:g} adjusted for {_comparisons(tests)} (Holm). Unmarked: may be chance."
        f"{lacking}{refused}"
    )


def difference_line(compared: PairedComparison, difference: Difference) -> tuple[str, ...]:
    """One comparison as a line under DIFFERENCES."""
    low, high, p, adjusted = difference.low, difference.high, difference.p, difference.adjusted
    interval = "all alike" if low is None or high is None else f"{low:+.3g} to {high:+.3g}"
    return (
        f"{compared.cell.length:,}",
        compared.cell.strategy_label,
        compared.baseline.strategy_label,
        f"{difference.measure.name} {difference.mean:+.3g}",
        interval if p is not None else "too few",
        f"{p:.2g}" if p is not None else "too few",
        f"{adjusted:.2g}{_mark(difference)}" if adjusted is not None else "too few",
        f"{difference.count} {difference.measure.units}",
    )


def consistency(rows: Results) -> float | None:
    """Share of keys that were answered alike, right or wrong, at every depth and length of these passkey results.

    None where there are no keys, or none that was used at every length.
    """
    verdicts: dict[int, list[float]] = {}
    for cell, result in rows:
        kind = registry.kind(cell.task.name)
        if kind.consistency and kind.measure is not None and kind.measure.unit is not None:
            for document in result.documents:
                verdicts.setdefault(document[kind.measure.unit], []).append(document[kind.measure.name])
    most = max(map(len, verdicts.values()), default=0)
    alike = [len(set(answers)) == 1 for answers in verdicts.values() if len(answers) == most > 1]
    return sum(alike) / len(alike) if alike else None


def headline(cell: Cell, result: Result) -> str:
    """The main numbers of a cell in a few words: `ppl 10.27  ppl_last_256 8.11  12.3 s`."""
    if result.error:
        return result.error_line
    numbers = [f"{name} {_with_error(result, name)}" for name in _measured(cell, result)]
    if "seconds" in result.cost:
        numbers.append(duration(result.cost["seconds"]))
    return "  ".join(numbers)


def _value(cell: Cell, result: Result) -> str:
    if not (measured := _measured(cell, result)):
        return result.status
    first, *rest = measured
    value = _with_error(result, first)
    value += f" ({', '.join(number(result.metrics[name]) for name in rest)})" if rest else ""
    return value if result.status == "ok" else f"{value} {result.status}"


def headlines(task: str, rows: Results) -> tuple[str, ...]:
    """The metrics of a task that its table shows; of lm-eval's tasks the first that is not a standard error."""
    names = (name for _, result in rows for name in result.metrics if not name.endswith("_stderr"))
    return registry.kind(task).headlines or tuple(names)[:1]


def _measured(cell: Cell, result: Result) -> list[str]:
    return [name for name in headlines(cell.task.name, [(cell, result)]) if name in result.metrics]


def _with_error(result: Result, name: str) -> str:
    error = result.metrics.get(f"{name}_stderr")
    return number(result.metrics[name]) + (f" ±{error:.2g}" if error is not None else "")


def counts(results: Sequence[Result]) -> dict[str, int]:
    return dict(Counter(result.status for result in results))


def markdown(shown: Iterable[ScoreTable]) -> str:
    """Every table with its legend, and below it all its differences."""
    parts = []
    for scores in shown:
        parts += [f"**{scores.title}**", _markdown(scores.header, scores.rows), scores.legend.replace("\n", "\n\n")]
        parts += [_markdown(DIFFERENCES, scores.differences)] if scores.differences else []
        if (gains := scores.gains) is not None:
            parts += [f"**{gains.title}**", _markdown(gains.header, gains.rows), gains.summary, gains.legend]
    return "\n\n".join(filter(None, parts)) + "\n"


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures(results: Results, folder: Path) -> list[Path]:
    """Score against length, one line a strategy, one PNG for each model and task with at least two lengths; for
    perplexity, NLL against position at the longest length; and gains over cropping in both ways. Returns the files."""
    paths = []
    for (model, task), rows in curves.by_task(results).items():
        title, stem = f"{model}, {task}", re.sub(r"[^\w.-]", "_", f"{model}_{task}")
        trained, strategies = _trained_length(rows[0][0]), curves.by_strategy(rows)
        [name, *_] = headlines(task, rows) or ("",)
        scores = {label: curves.by_length(of_one).get(name, []) for label, of_one in strategies.items()}
        if len({x for curve in scores.values() for x, *_ in curve}) > 1:
            axes = drawing.Axes("length (tokens)", name, title, trained, doubling=True)
            paths.append(drawing.lines(scores, folder / f"{stem}_{name}.png", axes))
        longest = max(cell.length for cell, _ in rows)
        by_position: dict[str, list[curves.Point]] = {
            label: [
                (x, y, None)
                for cell, result in of_one
                if cell.length == longest
                for x, y in result.series.get("nll_by_position", ())
            ]
            for label, of_one in strategies.items()
        }
        if any(by_position.values()):
            axes = drawing.Axes(
                "position (tokens)", "NLL (nats a token)", f"{title}: NLL by position at {longest:,}", trained
            )
            paths.append(drawing.lines(by_position, folder / f"{stem}_nll_by_position.png", axes))
        paths += _gain_figures(rows, name or None, folder / stem, title, trained)
    return paths


def _gain_figures(rows: Results, metric: str | None, stem: Path, title: str, trained: int | None) -> list[Path]:
    """Context gain over cropping by length, and by position at the longest one; of one model and task."""
    paths = []
    if any(by_length := gain.by_length(rows, metric)):
        measure = statistics.measure_of(rows[0][0].task.name, metric)
        unit = "nats a token" if measure.exp else "points"
        axes = drawing.Axes("length (tokens)", f"gain ({unit})", f"{title}: gain over cropping", trained, True, True)
        paths.append(drawing.lines(by_length, stem.with_name(f"{stem.name}_context_gain.png"), axes))
    longest = max(cell.length for cell, _ in rows)
    last = [(cell, result) for cell, result in rows if cell.length == longest]
    crop = next((row for row in last if row[0].strategy == gain.CROP), None)
    others = [row for row in last if row[0].strategy != gain.CROP]
    by_position = {row[0].strategy_label: gain.by_position(row, crop) for row in others} if crop else {}
    if any(by_position.values()):
        said = f"{title}: gain over cropping by position at {longest:,}"
        axes = drawing.Axes("position (tokens)", "gain (nats a token)", said, trained, around_zero=True)
        paths.append(drawing.lines(by_position, stem.with_name(f"{stem.name}_context_gain_by_position.png"), axes))
    return paths


def _trained_length(cell: Cell) -> int | None:
    """None where the model is no longer there."""
    try:
        return trained_length(cell)
    except Refusal:
        return None


def distinct_rows(rows: Results) -> Results:
    """One row a cell id."""
    return list({cell.id: (cell, result) for cell, result in rows}.values())
