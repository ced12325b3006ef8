"""Results -> tables: what a terminal shows and what MLflow keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console

from pipelines.records import provenance
from pipelines.records.cells import Cell, Result
from pipelines.records.numbers import duration, number
from pipelines.records.phases import timed
from pipelines.records.results import Store
from pipelines.report import amounts, curves, statistics
from pipelines.report.curves import Results
from pipelines.report.gain import Gain
from pipelines.report.gain_table import GainTable, gain_table
from pipelines.report.pairs import pairs
from pipelines.report.short import ShortCost, apart, short_costs
from pipelines.report.short import trained_or_none as _trained_length
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
    longest: the differences of the longest length. gains: over cropping; None where nothing is cropped.
    costs: what each strategy costs at short lengths when it is deployed.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    legend: str = ""
    differences: tuple[tuple[str, ...], ...] = ()
    longest: tuple[tuple[str, ...], ...] = ()
    gains: GainTable | None = None
    costs: tuple[ShortCost, ...] = ()
    model: str = ""
    task: str = ""


DIFFERENCES = ("length", "strategy", "against", "better by", "95 % interval", "p", "p adjusted", "over")


def show(console: Console, rows: Results, shown: Iterable[ScoreTable], store: Store) -> None:
    """The end of a sweep: its tables, what failed and where its log lies, and how to see it all."""
    for scores in shown:
        table(console, scores.title, scores.header, scores.rows)
        if scores.legend:
            console.print(scores.legend)
        if scores.longest:
            table(console, "Differences at the longest length", DIFFERENCES, scores.longest)
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


@timed("tables")
def tables(results: Results) -> list[ScoreTable]:
    """Strategy x length, one for each model and task; every value with its standard error, and marked where it is
    significantly better or worse than the baseline's."""
    return [_table(model, task, rows) for (model, task), rows in curves.by_task(results).items()]


def _table(model: str, task: str, rows: Results) -> ScoreTable:
    everything, trained = rows, _trained_length(rows[0][0])
    rows, _ = apart(rows, trained)
    lengths = sorted({cell.length for cell, _ in rows})
    metrics = headlines(task, rows)
    metric = metrics[0] if metrics else None
    compared = statistics.against_baseline(rows, metric)
    marks = {(one.cell.strategy_label, one.cell.id): _mark(one.difference) for one in compared}
    values: dict[str, dict[int, list[str]]] = {}
    first: dict[tuple[str, str], str] = {}
    for cell, result in rows:
        entry = values.setdefault(cell.strategy_label, {}).setdefault(cell.length, [])
        value = _value(cell, result) + marks.get((cell.strategy_label, cell.id), "")
        same = first.setdefault((cell.id, value), cell.strategy_label)  # strategies of one plan are one cell
        if (value := value if same == cell.strategy_label else f"= {same}") not in entry:
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
    costs = short_costs(everything, metric, trained)
    for length, target in sorted({(one.length, one.target) for one in costs if one.gain is not None}):
        header.append(f"cost at {length:,} when deployed for {target:,}")
        of_each = {one.strategy: _cost(one) for one in costs if (one.length, one.target) == (length, target)}
        body = [[*line, of_each.get(line[0], "")] for line in body]
    compared = sorted(compared, key=lambda one: one.cell.length)
    lines = tuple(map(difference_line, _distinct(pair.gain for pair in pairs(everything, metric, trained))))
    longest = tuple(line for line in lines if line[0] == f"{lengths[-1]:,}") if _enough(compared) else ()
    gained = gain_table(model, task, rows, metric, trained)
    return ScoreTable(title, header, body, _legend(compared), lines, longest, gained, tuple(costs), model, task)


def _cost(one: ShortCost) -> str:
    if one.gain is None:
        return "nothing"
    return "not compared" if one.gain.refusal else amounts.cost(one.gain)


def _distinct(found: Iterable[Gain]) -> list[Gain]:
    """Pairs that compare, each once, whichever is the first of it; by length."""
    once: dict[frozenset[tuple[str, str]], Gain] = {}
    for one in sorted(found, key=lambda one: one.cell.length):
        if one.measure is not None:
            once.setdefault(frozenset((cell.strategy_label, cell.id) for cell in (one.cell, one.crop)), one)
    return list(once.values())


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


def difference_line(one: Gain) -> tuple[str, ...]:
    """One comparison as a line under DIFFERENCES."""
    few = "too few"
    assert one.measure is not None
    alike = one.low is not None and one.low == one.high
    mark = (f" {BETTER}" if one.gain > 0 else f" {WORSE}") if one.significant else ""
    return (
        f"{one.cell.length:,}",
        one.cell.strategy_label,
        one.crop.strategy_label,
        f"{amounts.value(one)} {one.measure.exp or one.measure.name}",
        few if one.p is None else "all alike" if alike else amounts.interval(one),
        few if one.p is None else f"{one.p:.2g}",
        few if one.adjusted is None else f"{one.adjusted:.2g}{mark}",
        f"{one.count} {one.measure.units}",
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


def distinct_rows(rows: Results) -> Results:
    """One row a cell id."""
    return list({cell.id: (cell, result) for cell, result in rows}.values())
