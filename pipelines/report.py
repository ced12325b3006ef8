"""Results -> tables and figures: what a terminal shows and what MLflow keeps. Owns matplotlib and rich's tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines import provenance
from pipelines.cells import Cell, Result
from pipelines.results import Store
from pipelines.sweep import Sweep, options_label, trained_length

HEADLINES = {"perplexity": ("ppl", "ppl_last_256"), "passkey": ("acc",)}
"""The metrics of a task that its table shows; of other tasks the first that is not a standard error."""

Results = Sequence[tuple[Cell, Result]]


def show(console: Console, sweep: Sweep, results: Mapping[str, Result], store: Store) -> None:
    """The end of a sweep: a table a model and task, what failed and where its log lies, and how to see it all."""
    rows = [(cell, results[cell.id]) for cell in sweep.cells if cell.id in results]
    for title, header, body in tables(rows):
        table = Table(title=title, title_justify="left", title_style="bold")
        for number, name in enumerate(header):
            table.add_column(name, justify="right" if number else "left")
        for line in body:
            table.add_row(*line)
        console.print()
        console.print(table)
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


def tables(results: Results) -> list[tuple[str, list[str], list[list[str]]]]:
    """Strategy x length, one for each model and task: (title, header, rows), every value with its standard error."""
    groups: dict[tuple[str, str], list[tuple[Cell, Result]]] = {}
    for cell, result in results:
        groups.setdefault((cell.model.name, cell.task.name), []).append((cell, result))
    return [_table(model, task, rows) for (model, task), rows in groups.items()]


def _table(model: str, task: str, rows: Results) -> tuple[str, list[str], list[list[str]]]:
    lengths = sorted({cell.length for cell, _ in rows})
    shown: dict[str, dict[int, list[str]]] = {}
    for cell, result in rows:
        values = shown.setdefault(strategy_label(cell), {}).setdefault(cell.length, [])
        if (value := _value(cell, result)) not in values:
            values.append(value)
    names = " (".join(_headlines(task, rows)) + (")" if len(_headlines(task, rows)) > 1 else "")
    documents = sorted({len(result.documents) for _, result in rows if result.documents})
    counted = f"{documents[0]}" if len(documents) == 1 else f"{documents[0]} to {documents[-1]}" if documents else "no"
    title = f"{model}, {task}: {names}; {counted} document{'' if documents == [1] else 's'} a cell"
    header = ["strategy", *(f"{length:,}" for length in lengths)]
    body = [
        [strategy, *("; ".join(by_length.get(length, [""])) for length in lengths)]
        for strategy, by_length in shown.items()
    ]
    alike = {strategy: consistency(of) for strategy, of in _by_strategy(rows).items()}
    if any(share is not None for share in alike.values()):
        header.append("consistency")
        body = [[*row, "" if (share := alike[row[0]]) is None else number(share)] for row in body]
    return title, header, body


def consistency(rows: Results) -> float | None:
    """Share of keys that were answered alike, found or missed, at every depth and length of these passkey results.

    None where there are no keys, or none that was asked at every length.
    """
    verdicts: dict[int, list[float]] = {}
    results = [result for _, result in rows if any("key_number" in document for document in result.documents)]
    for result in results:
        for document in result.documents:
            verdicts.setdefault(document["key_number"], []).append(document["acc"])
    asked = max(map(len, verdicts.values()), default=0)
    alike = [len(set(answers)) == 1 for answers in verdicts.values() if len(answers) == asked > 1]
    return sum(alike) / len(alike) if alike else None


def strategy_label(cell: Cell) -> str:
    return " ".join(filter(None, [cell.strategy, options_label(cell.options)]))


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
    if task in HEADLINES:
        return HEADLINES[task]
    return tuple(name for _, result in rows for name in result.metrics if not name.endswith("_stderr"))[:1]


def _with_error(result: Result, name: str) -> str:
    error = result.metrics.get(f"{name}_stderr")
    return number(result.metrics[name]) + (f" ±{error:.2g}" if error is not None else "")


def number(value: float) -> str:
    """Four digits that tell: 0.125, 10.27, 1969."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """3.2 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counts(results: Sequence[Result]) -> dict[str, int]:
    return dict(Counter(result.status for result in results))


def markdown(results: Results) -> str:
    parts = []
    for title, header, rows in tables(results):
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        parts.append(f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"


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
            axes = Axes("length (tokens)", name, about, trained, doubling=True)
            made.append(_draw(curves, folder / f"{stem}_{name}.png", axes))
        longest = max(cell.length for cell, _ in rows)
        by_position = {
            strategy: [
                (x, y, None) for c, r in of if c.length == longest for x, y in r.series.get("nll_by_position", ())
            ]
            for strategy, of in _by_strategy(rows).items()
        }
        if any(by_position.values()):
            axes = Axes("position (tokens)", "NLL (nats a token)", f"{about}: NLL by position at {longest:,}", trained)
            made.append(_draw(by_position, folder / f"{stem}_nll_by_position.png", axes))
    return made


def _by_strategy(rows: Results) -> dict[str, list[tuple[Cell, Result]]]:
    groups: dict[str, list[tuple[Cell, Result]]] = {}
    for cell, result in sorted(rows, key=lambda row: row[0].length):
        groups.setdefault(strategy_label(cell), []).append((cell, result))
    return groups


Curve = Sequence[tuple[float, float, float | None]]
"""(x, y, standard error or None), ascending in x."""


@dataclass(frozen=True)
class Axes:
    """What a figure's axes say. trained: where the trained length is marked; doubling: x by powers of two."""

    x: str
    y: str
    title: str
    trained: int
    doubling: bool = False


def _draw(curves: Mapping[str, Curve], path: Path, told: Axes) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for strategy, curve in curves.items():
        if curve:
            xs, ys, errors = zip(*curve, strict=True)
            [drawn] = axes.plot(xs, ys, marker="o", markersize=4, label=strategy)
            if any(error is not None for error in errors):
                bars = [error or 0.0 for error in errors]  # a bar of no height is not drawn
                axes.errorbar(xs, ys, yerr=bars, fmt="none", capsize=2, color=drawn.get_color())
    lengths = sorted({x for curve in curves.values() for x, *_ in curve})
    if told.doubling:
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{x:,.0f}" for x in lengths])
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    values = [y for curve in curves.values() for _, y, _ in curve]
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    if lengths[0] <= told.trained <= lengths[-1]:
        axes.axvline(told.trained, color="gray", linestyle=":", label=f"trained length {told.trained:,}")
    axes.set(xlabel=told.x, ylabel=told.y, title=told.title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    return path


def distinct_rows(rows: Results) -> Results:
    """One row a cell id."""
    return list({cell.id: (cell, result) for cell, result in rows}.values())


def _failures(rows: Results) -> Results:
    return [(cell, result) for cell, result in distinct_rows(rows) if not result.finished]


@dataclass(frozen=True)
class Spectrum:
    """One plan as a figure shows it. wavelengths: tokens, fastest pair first, infinite where a pair stands still."""

    label: str
    inv_freq: Sequence[float]
    wavelengths: Sequence[float]


def spectra(drawn: Sequence[Spectrum], marks: Mapping[str, float], title: str, path: Path) -> Path:
    """Inverse frequency and wavelength of every pair, a line a plan. marks: name -> tokens, as horizontal lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    speeds, lengths = figure.subplots(1, 2)
    for number_, one in enumerate(drawn):
        turning = [pair for pair, speed in enumerate(one.inv_freq) if speed > 0]
        still = len(one.inv_freq) - len(turning)
        label = f"{one.label} ({still} pairs stand still)" if still else one.label
        style = {"linestyle": ("-", "--", "-.", ":")[number_ % 4], "marker": ".", "markersize": 3}
        speeds.plot(turning, [one.inv_freq[pair] for pair in turning], label=label, **style)
        lengths.plot(turning, [one.wavelengths[pair] for pair in turning], **style)
    for name, tokens in marks.items():
        lengths.axhline(tokens, color="gray", linewidth=1)
        lengths.annotate(name, (0, tokens), xytext=(0, 2), textcoords="offset points", fontsize=8, color="dimgray")
    speeds.set(xlabel="pair, fastest first", ylabel="inverse frequency (radians a token)", yscale="log")
    lengths.set(xlabel="pair, fastest first", ylabel="wavelength (tokens)", yscale="log")
    for axes in (speeds, lengths):
        axes.grid(alpha=0.3)
    speeds.legend(fontsize=8)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
