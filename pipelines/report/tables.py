"""Results -> tables and figures: what a terminal shows and what MLflow keeps. Owns rich's tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipelines.choices.sweep import trained_length
from pipelines.records import provenance
from pipelines.records.cells import Cell, Result
from pipelines.records.numbers import duration, number
from pipelines.records.results import Store
from pipelines.report import drawing, statistics
from pipelines.report.statistics import Difference, Versus
from pipelines.report.terminal import table
from pipelines.tasks import registry

BETTER, WORSE = "▲", "▼"
"""Beside a value that differs from the baseline's by more than chance."""

Results = Sequence[tuple[Cell, Result]]


@dataclass(frozen=True)
class Shown:
    """One model and task: strategy x length, and what of it is chance.

    legend: what the marks mean, or why there are none; "" where nothing is compared.
    differences: a line a comparison, under DIFFERENCES.
    longest: how many of the last differences are of the longest length.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    legend: str = ""
    differences: tuple[tuple[str, ...], ...] = ()
    longest: int = 0


DIFFERENCES = ("length", "strategy", "against", "difference", "95 % interval", "p", "p adjusted", "over")


def show(console: Console, rows: Results, compared: Sequence[Shown], store: Store) -> None:
    """The end of a sweep: its tables, what failed and where its log lies, and how to see it all."""
    for shown in compared:
        table(console, shown.title, shown.header, shown.rows)
        if shown.legend:
            console.print(shown.legend)
        if shown.longest:
            table(console, "Differences at the longest length", DIFFERENCES, shown.differences[-shown.longest :])
    for cell, result in _failures(rows):
        console.print(
            f"\n{result.status}: {cell.label}\n  {result.error_line}\n  log: {store.cell(cell.id) / 'error.txt'}"
        )
    codes = provenance.code_labels(result.provenance for _, result in distinct_rows(rows))
    if len(codes) > 1:
        told = "; ".join(f"{count} of {label}" for label, count in codes.items())
        console.print(f"\nThese cells were computed by different code: {told}. To compute all anew: force=true")
    told = ", ".join(f"{count} {status}" for status, count in counts([result for _, result in rows]).items())
    console.print(f"\n{told}. Compare them in the browser: ropewalk ui")


def tables(results: Results) -> list[Shown]:
    """Strategy x length, one for each model and task; every value with its standard error, and marked where it is
    significantly better or worse than the baseline's."""
    groups: dict[tuple[str, str], list[tuple[Cell, Result]]] = {}
    for cell, result in results:
        groups.setdefault((cell.model.name, cell.task.name), []).append((cell, result))
    return [_table(model, task, rows) for (model, task), rows in groups.items()]


def _table(model: str, task: str, rows: Results) -> Shown:
    lengths = sorted({cell.length for cell, _ in rows})
    headlines = _headlines(task, rows)
    compared = statistics.against_baseline(rows, headlines[0] if headlines else None)
    marks = {_row_key(versus.cell): _mark(versus) for versus in compared}
    shown: dict[str, dict[int, list[str]]] = {}
    for cell, result in rows:
        values = shown.setdefault(cell.strategy_label, {}).setdefault(cell.length, [])
        if (value := _value(cell, result) + marks.get(_row_key(cell), "")) not in values:
            values.append(value)
    names = " (".join(headlines) + (")" if len(headlines) > 1 else "")
    documents = sorted({len(result.documents) for _, result in rows if result.documents})
    title = f"{model}, {task}: {names}; {_span(documents)} document{'' if documents == [1] else 's'} a cell"
    header = ["strategy", *(f"{length:,}" for length in lengths)]
    body = [
        [strategy, *("; ".join(by_length.get(length, [""])) for length in lengths)]
        for strategy, by_length in shown.items()
    ]
    alike = {strategy: consistency(of) for strategy, of in _by_strategy(rows).items()}
    if any(share is not None for share in alike.values()):
        header.append("consistency")
        body = [[*row, "" if (share := alike[row[0]]) is None else number(share)] for row in body]
    told = sorted((v for v in compared if v.difference is not None), key=lambda v: v.cell.length)
    longest = [v for v in told if v.cell.length == told[-1].cell.length] if _enough(compared) else []
    lines = tuple(difference_line(v, v.difference) for v in told if v.difference is not None)
    return Shown(title, header, body, _legend(compared), lines, len(longest))


def _row_key(cell: Cell) -> tuple[str, str]:
    return cell.strategy_label, cell.id


def _mark(versus: Versus) -> str:
    if versus.difference is None or not versus.difference.significant:
        return ""
    return f" {BETTER if versus.difference.better else WORSE}"


def _span(counts: Sequence[int]) -> str:
    if not counts:
        return "no"
    return f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"


def _tests(compared: Sequence[Versus]) -> int:
    """Comparisons among which p is adjusted; where none has documents enough, those that would be."""
    tested = {v.cell.id for v in compared if v.difference is not None and v.difference.p is not None}
    return len(tested or {v.cell.id for v in compared if v.difference is not None})


def _enough(compared: Sequence[Versus]) -> bool:
    """Whether any comparison has as many documents as it takes to find anything."""
    counts = [v.difference.count for v in compared if v.difference is not None]
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


def _legend(compared: Sequence[Versus]) -> str:
    """What the marks mean; or how many documents it takes to have any, or what stands against comparing."""
    found = [versus.difference for versus in compared if versus.difference is not None]
    refused = "".join(f"\nNot compared: {reason}" for reason in dict.fromkeys(v.refusal for v in compared if v.refusal))
    if not found:
        return refused.strip()
    tests, units, counts = _tests(compared), found[0].measure.units, sorted({difference.count for difference in found})
    against = compared[0].baseline.strategy_label
    if not _enough(compared):
        return (
            too_few(compared[0].cell.task.name, units, f"{_span(counts)} a cell", tests, f" with {against}") + refused
        )
    few = sorted({v.cell.length for v in compared if v.difference is not None and v.difference.p is None})
    lacking = f" Too few {units} to tell at {', '.join(f'{n:,}' for n in few)}." if few else ""
    return (
        f"{BETTER} better, {WORSE} worse than {against}: over the same {_span(counts)} {units}, "
        f"p < {statistics.ALPHA:g} adjusted for {_comparisons(tests)} (Holm). Unmarked: may be chance."
        f"{lacking}{refused}"
    )


def difference_line(versus: Versus, found: Difference) -> tuple[str, ...]:
    spread = "all alike" if found.low is None or found.high is None else f"{found.low:+.3g} to {found.high:+.3g}"
    return (
        f"{versus.cell.length:,}",
        versus.cell.strategy_label,
        versus.baseline.strategy_label,
        f"{found.measure.name} {found.mean:+.3g}",
        spread if found.p is not None else "too few",
        f"{found.p:.2g}" if found.p is not None else "too few",
        f"{found.adjusted:.2g}{_mark(versus)}" if found.adjusted is not None else "too few",
        f"{found.count} {found.measure.units}",
    )


def consistency(rows: Results) -> float | None:
    """Share of keys that were answered alike, found or missed, at every depth and length of these passkey results.

    None where there are no keys, or none that was asked at every length.
    """
    verdicts: dict[int, list[float]] = {}
    for cell, result in rows:
        kind = registry.kind(cell.task.name)
        if kind.consistency and kind.measure is not None and kind.measure.unit is not None:
            for document in result.documents:
                verdicts.setdefault(document[kind.measure.unit], []).append(document[kind.measure.name])
    asked = max(map(len, verdicts.values()), default=0)
    alike = [len(set(answers)) == 1 for answers in verdicts.values() if len(answers) == asked > 1]
    return sum(alike) / len(alike) if alike else None


def headline(cell: Cell, result: Result) -> str:
    """The main numbers of a cell in a few words: `ppl 10.27 (last 256: 8.11)  12.3 s`."""
    if result.error:
        return result.error_line
    told = "  ".join(
        f"{name} {_with_error(result, name)}"
        for name in _headlines(cell.task.name, [(cell, result)])
        if name in result.metrics
    )
    return f"{told}  {duration(result.cost['seconds'])}" if "seconds" in result.cost else told


def _value(cell: Cell, result: Result) -> str:
    if not result.metrics:
        return result.status
    first, *rest = (name for name in _headlines(cell.task.name, [(cell, result)]) if name in result.metrics)
    told = _with_error(result, first)
    told += f" ({', '.join(number(result.metrics[name]) for name in rest)})" if rest else ""
    return told if result.status == "ok" else f"{told} {result.status}"


def _headlines(task: str, rows: Results) -> tuple[str, ...]:
    """The metrics of a task that its table shows; of lm-eval's tasks the first that is not a standard error."""
    return (
        registry.kind(task).headlines
        or tuple(name for _, result in rows for name in result.metrics if not name.endswith("_stderr"))[:1]
    )


def _with_error(result: Result, name: str) -> str:
    error = result.metrics.get(f"{name}_stderr")
    return number(result.metrics[name]) + (f" ±{error:.2g}" if error is not None else "")


def counts(results: Sequence[Result]) -> dict[str, int]:
    return dict(Counter(result.status for result in results))


def markdown(compared: Sequence[Shown]) -> str:
    """Every table with its legend, and below it all its differences."""
    parts = []
    for shown in compared:
        parts += [f"**{shown.title}**", _markdown(shown.header, shown.rows), shown.legend.replace("\n", "\n\n")]
        parts += [_markdown(DIFFERENCES, shown.differences)] if shown.differences else []
    return "\n\n".join(filter(None, parts)) + "\n"


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures(results: Results, folder: Path) -> list[Path]:
    """Score against length, one line a strategy, one PNG for each model and task with at least two lengths; and, for
    perplexity, NLL against position at the longest length. Returns the files."""
    groups: dict[tuple[str, str], list[tuple[Cell, Result]]] = {}
    for cell, result in results:
        groups.setdefault((cell.model.name, cell.task.name), []).append((cell, result))
    made = []
    for (model, task), rows in groups.items():
        about, stem = f"{model}, {task}", re.sub(r"[^\w.-]", "_", f"{model}_{task}")
        trained = trained_length(rows[0][0])
        [name, *_] = _headlines(task, rows) or ("",)
        curves = {
            strategy: [(c.length, r.metrics[name], r.metrics.get(f"{name}_stderr")) for c, r in of if name in r.metrics]
            for strategy, of in _by_strategy(rows).items()
        }
        if len({x for curve in curves.values() for x, *_ in curve}) > 1:
            axes = drawing.Axes("length (tokens)", name, about, trained, doubling=True)
            made.append(drawing.lines(curves, folder / f"{stem}_{name}.png", axes))
        longest = max(cell.length for cell, _ in rows)
        by_position = {
            strategy: [
                (x, y, None) for c, r in of if c.length == longest for x, y in r.series.get("nll_by_position", ())
            ]
            for strategy, of in _by_strategy(rows).items()
        }
        if any(by_position.values()):
            axes = drawing.Axes(
                "position (tokens)", "NLL (nats a token)", f"{about}: NLL by position at {longest:,}", trained
            )
            made.append(drawing.lines(by_position, folder / f"{stem}_nll_by_position.png", axes))
    return made


def _by_strategy(rows: Results) -> dict[str, list[tuple[Cell, Result]]]:
    groups: dict[str, list[tuple[Cell, Result]]] = {}
    for cell, result in sorted(rows, key=lambda row: row[0].length):
        groups.setdefault(cell.strategy_label, []).append((cell, result))
    return groups


def distinct_rows(rows: Results) -> Results:
    """One row a cell id."""
    return list({cell.id: (cell, result) for cell, result in rows}.values())


def _failures(rows: Results) -> Results:
    return [(cell, result) for cell, result in distinct_rows(rows) if not result.finished]
