"""`ropewalk reproduce`: a published protocol run anew, ours beside theirs; or its claims asked of another model."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Drawn

from pipelines import claims, derived, drawing, estimate, grid, models, plan, published, report, tasks, text, track
from pipelines.cells import Cell, Refusal, Result, Task, frozen
from pipelines.config import Dtype, ModelChoice, Workbench
from pipelines.published import Column, Row, Table, Value
from pipelines.results import Store
from pipelines.sweep import Sweep, cell_of, trained_length

HELP = """ropewalk reproduce published=NAME[,NAME] [rows=...] [columns=...] [OVERRIDES]
ropewalk reproduce published=NAME --transfer model=MODEL [OVERRIDES]
ropewalk reproduce --list

Runs a published table's own protocol (conf/published/NAME.yaml) and shows ours beside theirs with a verdict: reproduced
(within rounding and the table's tolerance), close, not reproduced, or not run and why. What it takes is said before.
--list       every table, what it needs, and whether that is here
--transfer   the same protocol on another model and text: not the numbers but the claims, with paired tests
Overrides are those of ropewalk grid: cluster=gpu, limit=10, dtype=float32, task.text=FOLDER, force=true, store=FOLDER.
  ropewalk reproduce published=men_base_bound columns=1k,2k,4k,8k
  ropewalk reproduce published=longrope_table1 cluster=gpu
  ropewalk reproduce published=yarn_v3_table5,dynamic_ntk,pi_table3,lceg_table9 --transfer model=tiny
Exit codes: 0 all that could run is reproduced or close, or all claims hold; 1 not so; 2 nothing could run.
"""

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 150)


@dataclass(frozen=True)
class Compared:
    """One published value and ours. ours: in the published unit; None where it was not run, for the reason given."""

    row: str
    column: str
    theirs: str
    ours: float | None
    difference: float | None
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Asked:
    """One value that is to be measured: its place, and its cell or the reason why there is none."""

    row: Row
    column: Column
    value: Value
    cell: Cell | None
    reason: str = ""


def main(names: Sequence[str], base: Workbench, given: Mapping[str, Any], command: str) -> int:
    """Reproduce tables one after another.

    names: of tables; base: the command line's other choices, composed; given: rows, columns, transfer, and the keys
    `task.X` that were given, which go over the published protocol.
    """
    store = Store.at(base.store)
    tables = [published.chosen(published.table(name), given.get("rows"), given.get("columns")) for name in names]
    if given.get("transfer"):
        return max(_transfer(table, base, given.get("task", {}), store, command) for table in tables)
    return max(_reproduce(table, base, given.get("task", {}), store, command) for table in tables)


def _reproduce(table: Table, base: Workbench, task: Mapping[str, Any], store: Store, command: str) -> int:
    _introduce(table)
    if table.derived:
        compared = list(_derived(table))
    elif table.rows:
        compared = _measured(table, base, task, store, command)
    else:
        raise Refusal(f"published={table.name} has no values, only claims: add --transfer model=MODEL")
    _show(table, compared)
    counts = {verdict: sum(one.verdict == verdict for one in compared) for verdict in published.VERDICTS}
    folder = store.root / "published" / table.name
    files = [_write(folder / "comparison.json", {"table": table.name, "values": [asdict(one) for one in compared]})]
    files.append(drawing.beside(*_figure(table, compared), folder / "comparison.png"))
    if any(one.ours is not None for one in compared):
        track.reproduced(
            store,
            table.name,
            {"title": table.title, "source": table.source, "sure": table.sure, "command": command},
            {f"values/{name}": float(count) for name, count in counts.items()},
            files,
            {"status": ", ".join(f"{count} {name}" for name, count in counts.items() if count)},
        )
    console.print(", ".join(f"{count} {name}" for name, count in counts.items() if count) + f"; drawn: {files[-1]}")
    if counts["not run"] == len(compared):
        return 2
    return 1 if counts["not reproduced"] else 0


def _introduce(table: Table) -> None:
    console.print(f"\n{table.title}\n  {table.source}; {published.SURE[table.sure]}", style=None)
    for note in table.notes:
        console.print(f"  note: {note}")


# ------------------------------------------------------------------------------------------------ formulas


def _derived(table: Table) -> Iterator[Compared]:
    assert table.compute is not None
    function = derived.DERIVED[table.compute]
    for row, number, value in table.values():
        column = table.columns[number]
        arguments = {**row.arguments, **({table.argument: column.value} if table.argument else {})}
        start = time.monotonic()
        ours = function(**arguments)
        if (spent := time.monotonic() - start) > 5:
            console.print(f"  {row.name}, {column.label}: {ours:.4g} in {report.duration(spent)}")
        yield _compared(table, row, column, value, ours)


def _compared(table: Table, row: Row, column: Column, value: Value, ours: float) -> Compared:
    difference = ours - value.number if value.number is not None and math.isfinite(ours) else None
    told = ours if math.isfinite(ours) else None
    verdict = value.verdict(ours, table.tolerance)
    reason = "" if told is not None else "ours is not finite"
    return Compared(row.name, column.label, value.text, told, difference, verdict, reason)


# ------------------------------------------------------------------------------------------------ measurements


def _measured(table: Table, base: Workbench, task: Mapping[str, Any], store: Store, command: str) -> list[Compared]:
    console.print(needs(table))
    asked = list(_asked(table, base, task))
    results = _run([one.cell for one in asked if one.cell is not None], base, store, command)
    compared = []
    for one in asked:
        result = results.get(one.cell.id) if one.cell is not None else None
        if result is None or not result.finished:
            reason = one.reason or (result.error_line if result is not None else "it did not finish")
            compared.append(Compared(one.row.name, one.column.label, one.value.text, None, None, "not run", reason))
            continue
        metric = one.column.metric or table.metric
        ours = result.metrics.get(metric, math.inf if result.status == "diverged" else None)
        if ours is None:
            reason = f"status {result.status}, and no {metric}"
            compared.append(Compared(one.row.name, one.column.label, one.value.text, None, None, "not run", reason))
        else:
            compared.append(_compared(table, one.row, one.column, one.value, ours * table.scale))
    return compared


def _run(cells: Sequence[Cell], base: Workbench, store: Store, command: str) -> dict[str, Result]:
    """The cells through the grid: those finished before are taken from the store, all are recorded as its own."""
    if not cells:
        return {}
    sweep = Sweep("published", tuple(cells), command)
    results = grid.run(sweep, store, lambda todo: grid.pooled(todo, base.cluster), force=base.force)
    return {result.cell_id: result for result in results}


def _asked(table: Table, base: Workbench, task: Mapping[str, Any]) -> Iterator[Asked]:
    refused: dict[Any, str] = {}  # a model or a text that is not here is looked for once
    for row, number, value in table.values():
        column = table.columns[number]
        length = row.length or column.length
        reason = table.missing or row.missing or column.missing
        if reason or row.model is None or length is None:
            yield Asked(row, column, value, None, reason or "its length is not said")
            continue
        choice = _choice(table, base, row, number, length, task)
        where = (row.model, str(choice.task.get("text")))
        try:
            if where in refused:
                raise Refusal(refused[where])
            yield Asked(row, column, value, cell_of(choice))
        except Refusal as sentence:
            told = str(sentence)
            if where not in refused:
                told = refused[where] = f"{told}; {_to_get(row.model, choice.task)}"
            yield Asked(row, column, value, None, told)


def _choice(table: Table, base: Workbench, row: Row, number: int, length: int, task: Mapping[str, Any]) -> Workbench:
    assert row.model is not None
    column, checkpoint = table.columns[number], published.checkpoints()[row.model]
    return replace(
        base,
        model=ModelChoice(row.model, checkpoint.path, None, checkpoint.trained_length),
        strategy=dict(published.strategy_at(row, number)),
        factor=None,
        task={**table.task_of(column), **task},
        length=length,
        limit=base.limit if base.limit is not None else column.limit or table.limit,
        dtype=Dtype[table.dtype] if base.dtype is Dtype.auto else base.dtype,
    )


def _to_get(model: str, task: Mapping[str, Any]) -> str:
    checkpoint = published.checkpoints()[model]
    told = [] if models.cached(checkpoint.path) else [checkpoint.to_get]
    source = str(task.get("text", ""))
    if source.startswith(text.HUB) and not _text_here(source):
        told.append(f"`hf download --repo-type dataset {text.parse(source).path}`")
    return " and ".join(told) or "see the model's and the data set's page on the hub"


def _text_here(source: str) -> bool:
    if not source.startswith(text.HUB):
        return True
    data = text.parse(source)
    return data.local or models.cached(data.path, "dataset")


@dataclass(frozen=True)
class Needs:
    """What a table takes: models and data sets of the hub, the largest forward's bytes, seconds on one GPU.

    here: models and data sets that are on this machine. runnable: values that somebody could run.
    """

    models: tuple[str, ...]
    texts: tuple[str, ...]
    here: frozenset[str]
    peak: float | None
    seconds: float | None
    runnable: int

    @property
    def lacking(self) -> list[str]:
        return [one for one in (*self.models, *self.texts) if one not in self.here]


def needs_of(table: Table) -> Needs:
    """What a table's values need, without asking any network."""
    found: dict[str, bool] = {}
    texts: dict[str, bool] = {}
    peaks, seconds, runnable = [0.0], [0.0], 0
    known = True
    for row, number, _ in table.values():
        column = table.columns[number]
        length = row.length or column.length
        if table.missing or row.missing or column.missing or row.model is None or length is None:
            continue
        runnable += 1
        checkpoint, options = published.checkpoints()[row.model], dict(table.task_of(column))
        found[checkpoint.path] = models.cached(checkpoint.path)
        if str(options.get("text", "")).startswith(text.HUB):
            texts[str(options["text"])] = _text_here(str(options["text"]))
        shape = estimate.Shape.of(checkpoint.shape)
        task = Task(str(options.pop("name")), frozen(options))
        passes = tasks.forwards(task, None, length=length, limit=column.limit or table.limit)
        if shape is None or passes is None:
            known = False
        if shape is not None:
            peak, spent = estimate.rough(shape, length, (passes or 0) * length)
            peaks.append(peak)
            seconds.append(spent)
    here = frozenset(one for one, there in (*found.items(), *texts.items()) if there)
    return Needs(
        tuple(found), tuple(texts), here, max(peaks) or None, sum(seconds) if known and runnable else None, runnable
    )


def needs(table: Table) -> str:
    """What a table takes in a few lines, for who is about to run it."""
    told = needs_of(table)
    if not told.runnable:
        return f"  needs: nothing that can be had; {table.missing or 'see the reasons below'}"
    checkpoints = ", ".join(f"{one}{'' if one in told.here else ' (not here)'}" for one in told.models)
    sets = ", ".join(f"{one}{'' if one in told.here else ' (not here)'}" for one in told.texts) or "none"
    return (
        f"  needs: models {checkpoints}\n  data sets: {sets}\n  {_size(told.peak)} of GPU memory for the longest, "
        f"{_time(told.seconds)} on one data-centre GPU (a guess); {told.runnable} values can be run by anybody"
    )


def _size(peak: float | None) -> str:
    return f"{peak / plan.GIB:.0f} GiB" if peak else "not known how much"


def _time(seconds: float | None) -> str:
    return report.duration(seconds) if seconds is not None else "not known how long"


def show_list() -> int:
    """Every table: how many values, what it needs, whether that is here."""
    drawn = Drawn(title="published tables", title_justify="left")
    for name in ("published=", "what", "values", "needs", "memory", "time on one GPU", "here"):
        drawn.add_column(name, overflow="fold")
    for name in published.names():
        table = published.table(name)
        drawn.add_row(name, table.title, f"{sum(1 for _ in table.values())}", *_listed(table))
    console.print(drawn)
    console.print(
        "here: whether it can run on this machine now. Claims of those marked * can be asked of any model: --transfer"
    )
    return 0


def _listed(table: Table) -> tuple[str, str, str, str]:
    star = " *" if table.claims else ""
    if table.derived:
        return "nothing", "", "", "yes"
    told = needs_of(table)
    if not told.runnable:
        return table.missing or "only claims", "", "", f"no{star}"
    short = f"{len(told.models)} model{'s' if len(told.models) > 1 else ''}"
    short += f", {len(told.texts)} data set{'s' if len(told.texts) > 1 else ''}" if told.texts else ", lm-eval's data"
    lacking = f"no: {len(told.lacking)} of these not here" if told.lacking else "yes"
    return short, _size(told.peak), _time(told.seconds), f"{lacking}{star}"


# ------------------------------------------------------------------------------------------------ ours beside theirs


def _show(table: Table, compared: Sequence[Compared]) -> None:
    drawn = Drawn(title=f"{table.name}: ours beside theirs", title_justify="left")
    for number, name in enumerate(("row", "column", "theirs", "ours", "difference", "verdict")):
        drawn.add_column(name, justify="right" if 2 <= number <= 4 else "left")
    for one in compared:
        if one.verdict != "not run":
            digits = max(5, sum(map(str.isdigit, one.theirs.partition("e")[0])) + 1)
            ours = "not finite" if one.ours is None else f"{one.ours:.{digits}g}"
            off = "" if one.difference is None else f"{one.difference:+.3g}"
            drawn.add_row(one.row, one.column, one.theirs, ours, off, one.verdict)
    if drawn.row_count:
        console.print(drawn)
        told = f"{table.tolerance:.2%} and" if table.tolerance else "the"
        console.print(f"reproduced: within {told} rounding of what was printed")
    reasons: dict[str, list[str]] = {}
    for one in compared:
        if one.verdict == "not run":
            reasons.setdefault(one.reason, []).append(f"{one.row} at {one.column}")
    for reason, places in reasons.items():
        shown = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        console.print(f"not run  {shown}\n         {reason}")


def _figure(
    table: Table, compared: Sequence[Compared]
) -> tuple[dict[str, list[tuple[int, float | None, float | None]]], list[str], str]:
    labels = [column.label for column in table.columns]
    rows: dict[str, list[tuple[int, float | None, float | None]]] = {}
    for one in compared:
        value = Value.of(one.theirs)
        theirs = value.number if value is not None else None
        rows.setdefault(one.row, []).append((labels.index(one.column), theirs, one.ours))
    return rows, labels, table.title


def _write(path: Path, body: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------ claims, elsewhere


def _transfer(table: Table, base: Workbench, task: Mapping[str, Any], store: Store, command: str) -> int:
    """The protocol on another model: which of the claims hold there."""
    _introduce(table)
    if not table.claims:
        raise Refusal(f"published={table.name} states no claims; those that do: {', '.join(_with_claims())}")
    cells = _transferred(table, base, task)
    results = _run([cell for _, _, cell in cells], base, store, command)
    found = {
        (claims.key(strategy), length): (cell, results[cell.id])
        for strategy, length, cell in cells
        if cell.id in results
    }
    findings = claims.judge(table.claims, claims.Measured(found))
    model = base.model.name
    _tell(findings, model)
    rows = [(cell, results[cell.id]) for _, _, cell in cells if cell.id in results]
    folder = store.root / "published" / table.name / model
    folder.mkdir(parents=True, exist_ok=True)
    files = [_write(folder / "claims.json", {"table": table.name, "model": model, "claims": _plain(findings)})]
    files += report.figures(rows, folder)
    counts = {verdict: sum(one.verdict == verdict for one in findings) for verdict in _CLAIM_VERDICTS}
    track.reproduced(
        store,
        f"{table.name} on {model}",
        {"title": table.title, "source": table.source, "model": model, "command": command},
        {f"claims/{name}": float(count) for name, count in counts.items()},
        files,
        {"status": ", ".join(f"{count} {name}" for name, count in counts.items() if count)},
    )
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    console.print(f"claims on {model}: {told}; kept: {folder}")
    return 0 if counts[claims.HOLDS] == len(findings) else 1


_CLAIM_VERDICTS = (claims.HOLDS, claims.FAILS, claims.OPEN)


def _with_claims() -> list[str]:
    return [name for name in published.names() if published.table(name).claims]


def _transferred(table: Table, base: Workbench, task: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], float, Cell]]:
    """The cells that the claims take: the published protocol, over the same documents at every length."""
    first = cell_of(replace(base, length=2, strategy={"name": "none"}, task={"name": "perplexity"}))
    trained = trained_length(first)
    asked = claims.asked(table.claims).values()
    longest = int(trained * max(length for _, length in asked))
    protocol = {name: value for name, value in table.task.items() if name not in ("text", "document", "choose", "bos")}
    options = {"name": "perplexity", "text": text.PYDOC, "last": 256, "buckets": 16, **protocol}
    sliding = options.get("windows", "prefix") != "prefix"
    options |= {"document": longest, "at_least": longest} if sliding else {"at_least": longest}
    return [
        (
            strategy,
            length,
            cell_of(
                replace(
                    base, length=int(trained * length), strategy=dict(strategy), factor=None,
                    task={**tasks.options_of(Task("perplexity"), None), **options, **task},
                )
            ),
        )
        for strategy, length in asked
    ]  # fmt: skip


def _tell(findings: Sequence[claims.Finding], model: str) -> None:
    for finding in findings:
        drawn = Drawn(title=f"{finding.verdict.upper()} on {model}: {finding.claim.says}", title_justify="left")
        for name in ("should be", "difference (nats a token)", "95 % interval", "p adjusted", "over", ""):
            drawn.add_column(name)
        for one in finding.comparisons:
            drawn.add_row(*_line(one))
        console.print(drawn)


def _line(one: claims.Comparison) -> list[str]:
    verdict = f"({one.verdict})" if one.aside else one.verdict
    if one.difference is None:
        return [one.says, one.reason, "", "", "", verdict]
    found = one.difference
    spread = "" if found.low is None or found.high is None else f"{found.low:+.3g} to {found.high:+.3g}"
    p = f"{found.adjusted:.2g}" if found.adjusted is not None else "too few documents"
    return [one.says, f"{found.mean:+.4g}", spread, p, f"{found.count} {found.measure.units}", verdict]


def _plain(findings: Sequence[claims.Finding]) -> list[dict[str, Any]]:
    return [
        {
            "says": finding.claim.says,
            "verdict": finding.verdict,
            "comparisons": [{**asdict(one), "verdict": one.verdict} for one in finding.comparisons],
        }
        for finding in findings
    ]


Choices = Callable[[list[str]], Sequence[Workbench]]


def parsed(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any], list[str]]:
    """(tables, our own keys, overrides for Hydra) of a command line.

    Raises:
        Refusal: no table is named, or a flag is unknown.
    """
    flags = [a for a in arguments if a.startswith("-")]
    unknown = sorted(set(flags) - {"--transfer", "--list"})
    if unknown:
        raise Refusal(f"ropewalk reproduce has no {' '.join(unknown)}; its flags: --list, --transfer, --help")
    own = {key: a.partition("=")[2].split(",") for a in arguments for key in ("published", "rows", "columns")
           if a.startswith(f"{key}=")}  # fmt: skip
    rest = [a for a in arguments if not a.startswith("-") and a.partition("=")[0] not in own]
    tables = own.pop("published", [])
    if not tables:
        raise Refusal(f"published=NAME is missing: give one of {', '.join(published.names())} (--list tells of each)")
    transfer = "--transfer" in flags
    named = [a.partition("=")[0] for a in rest]
    for key in ("strategy", "length", "factor", "task"):
        if any(name == key or (name.startswith(f"{key}.") and key != "task") for name in named):
            raise Refusal(f"{key}=... is the table's own: ropewalk reproduce takes it from conf/published")
    if not transfer and any(name == "model" or name.startswith("model.") for name in named):
        raise Refusal("model=... is the table's own; to ask its claims of another model, add --transfer")
    return tables, {**own, "transfer": transfer}, rest


def task_options(rest: Sequence[str], base: Workbench) -> dict[str, Any]:
    """Of the composed task, the options that the command line gave: they go over the published protocol."""
    given = [a.partition("=")[0].removeprefix("task.") for a in rest if a.startswith("task.")]
    return {name: base.task[name] for name in given}
