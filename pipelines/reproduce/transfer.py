"""`ropewalk reproduce --transfer`: the claims that published tables are cited for, tested on another model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from pipelines.choices.config import Workbench
from pipelines.choices.sweep import cell_of, planned_of
from pipelines.records.cells import Cell, Refusal, Result, Task
from pipelines.report import figures, power, statistics, tables, terminal
from pipelines.report.terminal import console
from pipelines.reproduce import claims, published
from pipelines.reproduce.published import PublishedTable
from pipelines.reproduce.session import Session, counted, introduce, write
from pipelines.tasks import registry

VERDICTS = (claims.HOLDS, claims.FAILS, claims.OPEN)


EARLIER = 500
"""Results of the store that are looked at for how documents spread."""


class ClaimCell(NamedTuple):
    """What a claim needs measured: a strategy at a length in trained lengths, and the cell that measures it."""

    strategy: Mapping[str, Any]
    length: float
    cell: Cell


def main(names: Sequence[str], base: Workbench, task: Mapping[str, Any], command: str) -> int:
    """The protocols on another model, in one grid: which of the claims hold there.

    task: options that override the published protocol. Returns 0 where all claims hold, else 1.

    Raises:
        Refusal: a table states no claims, or the model or the text is not there.
    """
    session, chosen = Session(base, task, command), [published.table(name) for name in names]
    silent = [table.name for table in chosen if not table.claims]
    if silent:
        able = ", ".join(name for name in published.names() if published.table(name).claims)
        raise Refusal(f"published={silent[0]} states no claims; those that do: {able}")
    longest = max(length for table in chosen for _, length in claims.required(table.claims))
    cells = {table.name: _cells(table, longest, session) for table in chosen}
    for table in chosen:
        _register(table, cells[table.name], session)
    results = session.measure([required.cell for row in cells.values() for required in row])
    held = [_judge(table, cells[table.name], results, session) for table in chosen]
    return 0 if all(held) else 1


def _register(table: PublishedTable, cells: Sequence[ClaimCell], session: Session) -> None:
    """Say, and keep, before anything runs what each claim compares, and what so many documents can show of it."""
    earlier = [(Cell.of(spec), result) for spec, result in session.store.newest(EARLIER)]
    measure = statistics.measure_of(claims.TASK, None)
    spread, basis = power.spread_of(cells[0].cell, measure, earlier)
    given = cells[0].cell.limit
    plan = []
    for claim in table.claims:
        count = claims.tests(claim)
        enough = power.units_for(power.EFFECT[True], spread, count)
        smallest = None if given is None else statistics.detectable(given, spread, count)
        said = "all documents there are" if given is None else f"{given} documents"
        if smallest is not None:
            able = given is not None and given >= statistics.needed(count) and math.isfinite(smallest)
            said += f" show differences from {math.expm1(smallest):.1%} on" if able else " can show nothing"
        terms = f"{count} comparison{'s' if count > 1 else ''}; {said}, {power.EFFECT[True]:.0%} take {enough}"
        console.print(f"to be tested: {claim.says}\n  {terms} of perplexity ({basis}): limit={enough}", style=None)
        plan.append({**asdict(claim), "comparisons": count, "documents": given, "spread": spread, "enough": enough})
    folder = session.folder(table.name, _folder_name(session.base.model.name))
    write(folder / "plan.json", {"table": table.name, "model": session.base.model.name, "claims": plan})


def _folder_name(model: str) -> str:
    return re.sub(r"[^\w.-]", "_", model).strip("_")


def _judge(table: PublishedTable, cells: Sequence[ClaimCell], results: Mapping[str, Result], session: Session) -> bool:
    """Show and record what became of one table's claims; whether all hold."""
    introduce(table)
    model = session.base.model.name
    measured = [required for required in cells if required.cell.id in results]
    rows = {(claims.key(s), length): (cell, results[cell.id]) for s, length, cell in measured}
    findings = claims.judge(table.claims, claims.ClaimResults(rows))
    _show(findings, model)
    folder = session.folder(table.name, _folder_name(model))
    body = [
        {
            "says": finding.claim.says,
            "verdict": finding.verdict,
            "comparisons": [{**asdict(one), "verdict": one.verdict} for one in finding.comparisons],
        }
        for finding in findings
    ]
    files = [write(folder / "claims.json", {"table": table.name, "model": model, "claims": body})]
    pairs = [(required.cell, results[required.cell.id]) for required in measured]
    files += [figure.path for figure in figures.draw(pairs, folder)]
    verdicts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in VERDICTS}
    session.record(table, f"{table.name} on {model}", verdicts, files, model=model)
    console.print(f"claims on {model}: {counted(verdicts)}; files: {folder}")
    return verdicts[claims.HOLDS] == len(findings)


def _cells(table: PublishedTable, longest: float, session: Session) -> list[ClaimCell]:
    """The cells that the claims take: the published protocol, over the same documents at every length.

    longest: of all lengths that any table needs, in trained lengths; every document is at least as long.
    """
    base, task = session.base, session.task
    native = planned_of(replace(base, length=2, strategy={"name": "none"}, factor=None))
    trained = max(geometry.trained_length for geometry in native.geometries.values())
    required = claims.required(table.claims)
    protocol = {name: value for name, value in table.task.items() if name not in ("text", "document", "choose", "bos")}
    at_least = max(int(trained * longest), task.get("at_least") or 0)
    options = {**protocol, "name": claims.TASK, **task, "at_least": at_least}
    if options.get("windows", "prefix") == "prefix":  # one window: nothing to stride over
        idle = sorted({"stride", "bos_at"} & set(task))
        if idle:
            raise Refusal(
                f"task.{idle[0]}={task[idle[0]]} is of several windows, and prefix has one: leave it out, or give "
                "task.windows=sliding"
            )
        options = {name: value for name, value in options.items() if name not in ("windows", "stride", "bos_at")}
    else:
        options.setdefault("document", int(trained * max(length for _, length in required)))
        if any(claim.kind == "gentler" for claim in table.claims):
            _check_ends(options, [int(trained * length) for _, length in required])
    whole_task = {**registry.options_of(Task(claims.TASK), None), **options}
    choices = [
        replace(base, length=int(trained * length), strategy=dict(strategy), factor=None, task=whole_task)
        for strategy, length in required
    ]
    return [ClaimCell(*place, cell_of(choice)) for place, choice in zip(required, choices, strict=True)]


def _check_ends(options: Mapping[str, Any], lengths: Sequence[int]) -> None:
    """Refuse windows whose last one ends elsewhere at one length than at another: their last tokens are compared."""
    document, stride = options["document"], options.get("stride")
    ragged = [length for length in lengths if stride and (document - length) % stride]
    if options["windows"] == "overlapping" and ragged:
        raise Refusal(
            f"task.stride={stride}: windows of {ragged[0]} tokens end before the document of {document} does, and the "
            "last tokens of all lengths are to be the same; give a stride that divides what is left, such as 256"
        )


def _show(findings: Sequence[claims.ClaimFinding], model: str) -> None:
    header = ("should be", "difference, nats", "95 % interval", "p adjusted", "over", "")
    for finding in findings:
        title = f"{finding.verdict.upper()} on {model}: {finding.claim.says}"
        terminal.table(console, title, header, [_line(comparison) for comparison in finding.comparisons])
        for comparison in finding.comparisons:
            if comparison.note:
                console.print(f"  {comparison.note}")
        counts = [
            comparison.difference.count for comparison in finding.comparisons if comparison.difference is not None
        ]
        if counts and min(counts) < statistics.needed(len(counts)):
            console.print(f"  {tables.too_few(claims.TASK, 'documents', str(min(counts)), len(counts))}")
    console.print("difference: of NLL, paired by document, below 0 where it is as claimed; p adjusted by claim (Holm)")


def _line(comparison: claims.Comparison) -> list[str]:
    difference = comparison.difference
    if difference is None:
        return [comparison.says, comparison.reason, "", "", "", comparison.verdict]
    low, high = difference.low, difference.high
    spread = "" if low is None or high is None else f"{low:+.3g} to {high:+.3g}"
    p = f"{difference.adjusted:.2g}" if difference.adjusted is not None else "too few documents"
    over = f"{difference.count} {difference.measure.units}"
    return [comparison.says, f"{difference.mean:+.4g}", spread, p, over, comparison.verdict]
