"""`ropewalk reproduce --transfer`: the claims that published tables are cited for, asked of another model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.table import Table as Drawn

from pipelines import track
from pipelines.choices.config import Workbench
from pipelines.choices.sweep import cell_of, trained_length
from pipelines.records.cells import Cell, Refusal, Result, Task
from pipelines.records.results import Store
from pipelines.report import statistics, tables
from pipelines.report.terminal import console
from pipelines.reproduce import claims, published, reproduce
from pipelines.reproduce.published import Table
from pipelines.tasks import registry, text


def main(names: Sequence[str], base: Workbench, task: Mapping[str, Any], command: str) -> int:
    """The protocols on another model, in one grid: which of the claims hold there.

    task: options that were given, which go over the published protocol. Returns 0 where all claims hold, else 1.

    Raises:
        Refusal: a table states no claims, or the model or the text is not there.
    """
    tables, store = [published.table(name) for name in names], Store.at(base.store)
    silent = [table.name for table in tables if not table.claims]
    if silent:
        raise Refusal(f"published={silent[0]} states no claims; those that do: {', '.join(_with_claims())}")
    longest = max(length for table in tables for _, length in claims.asked(table.claims).values())
    cells = {table.name: _transferred(table, longest, base, task) for table in tables}
    results = reproduce.run([cell for asked in cells.values() for _, _, cell in asked], base, store, command)
    held = [_judged(table, cells[table.name], results, base.model.name, store, command) for table in tables]
    return 0 if all(held) else 1


def _judged(
    table: Table, cells: Sequence[tuple[Mapping[str, Any], float, Cell]], results: Mapping[str, Result], model: str,
    store: Store, command: str,
) -> bool:  # fmt: skip
    """Say, keep and record what became of one table's claims; whether all hold."""
    reproduce.introduce(table)
    rows = [(cell, results[cell.id]) for _, _, cell in cells if cell.id in results]
    found = {(claims.key(s), length): (c, results[c.id]) for s, length, c in cells if c.id in results}
    findings = claims.judge(table.claims, claims.Measured(found))
    _tell(findings, model)
    folder = store.root / "published" / table.name / re.sub(r"[^\w.-]", "_", model).strip("_")
    folder.mkdir(parents=True, exist_ok=True)
    files = [reproduce.write(folder / "claims.json", {"table": table.name, "model": model, "claims": _plain(findings)})]
    files += tables.figures(rows, folder)
    counts = {verdict: sum(one.verdict == verdict for one in findings) for verdict in _CLAIM_VERDICTS}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    track.record_reproduction(
        store,
        f"{table.name} on {model}",
        {"title": table.title, "source": table.source, "model": model, "command": command},
        {f"claims/{name}": float(count) for name, count in counts.items()},
        files,
        {"status": told},
    )
    console.print(f"claims on {model}: {told}; kept: {folder}")
    return counts[claims.HOLDS] == len(findings)


_CLAIM_VERDICTS = (claims.HOLDS, claims.FAILS, claims.OPEN)


def _with_claims() -> list[str]:
    return [name for name in published.names() if published.table(name).claims]


def _transferred(
    table: Table, longest: float, base: Workbench, task: Mapping[str, Any]
) -> list[tuple[Mapping[str, Any], float, Cell]]:
    """The cells that the claims take: the published protocol, over the same documents at every length.

    longest: of all lengths that are asked of any table, in trained lengths; every document is as long at least.
    """
    first = cell_of(replace(base, length=2, strategy={"name": "none"}, task={"name": "perplexity"}))
    trained = trained_length(first)
    asked = claims.asked(table.claims).values()
    whole = int(trained * max(length for _, length in asked))
    protocol = {name: value for name, value in table.task.items() if name not in ("text", "document", "choose", "bos")}
    options = {"name": "perplexity", "text": text.PYDOC, "last": 256, "buckets": 16, **protocol}
    options |= {**task, "at_least": max(int(trained * longest), task.get("at_least") or 0)}
    if options.get("windows", "prefix") == "prefix":  # of one window nothing of this says anything
        idle = sorted({"stride", "bos_at"} & set(task))
        if idle:
            raise Refusal(f"task.{idle[0]}={task[idle[0]]} is of several windows, and prefix has one: leave it out, or "
                          "give task.windows=sliding")  # fmt: skip
        options = {name: value for name, value in options.items() if name not in ("windows", "stride", "bos_at")}
    else:
        options.setdefault("document", whole)
        if any(claim.kind == "gentler" for claim in table.claims):
            _check_ends(options, [int(trained * length) for _, length in asked])
    return [
        (
            strategy,
            length,
            cell_of(
                replace(
                    base, length=int(trained * length), strategy=dict(strategy), factor=None,
                    task={**registry.options_of(Task("perplexity"), None), **options},
                )
            ),
        )
        for strategy, length in asked
    ]  # fmt: skip


def _check_ends(options: Mapping[str, Any], lengths: Sequence[int]) -> None:
    """Refuse windows whose last one ends elsewhere at one length than at another: their last tokens are compared."""
    document, stride = options["document"], options.get("stride")
    ragged = [length for length in lengths if stride and (document - length) % stride]
    if options["windows"] == "overlapping" and ragged:
        raise Refusal(
            f"task.stride={stride}: windows of {ragged[0]} tokens end before the document of {document} does, and the "
            "last tokens of all lengths are to be the same; give a stride that divides what is left, such as 256"
        )


def _tell(findings: Sequence[claims.Finding], model: str) -> None:
    for finding in findings:
        drawn = Drawn(title=f"{finding.verdict.upper()} on {model}: {finding.claim.says}", title_justify="left")
        for name in (
            "should be",
            "difference, nats",
            "95 % interval",
            "p adjusted",
            "over",
            "",
        ):
            drawn.add_column(name)
        for one in finding.comparisons:
            drawn.add_row(*_line(one))
        console.print(drawn)
        for note in filter(None, (one.note for one in finding.comparisons)):
            console.print(f"  {note}")
        counts = [one.difference.count for one in finding.comparisons if one.difference is not None]
        if counts and min(counts) < statistics.needed(len(counts)):
            console.print(f"  {tables.too_few('perplexity', 'documents', str(min(counts)), len(counts))}")
    console.print("difference: of NLL, paired by document, below 0 where it is as claimed; p adjusted by claim (Holm)")


def _line(one: claims.Comparison) -> list[str]:
    if one.difference is None:
        return [one.says, one.reason, "", "", "", one.verdict]
    found = one.difference
    spread = "" if found.low is None or found.high is None else f"{found.low:+.3g} to {found.high:+.3g}"
    p = f"{found.adjusted:.2g}" if found.adjusted is not None else "too few documents"
    return [one.says, f"{found.mean:+.4g}", spread, p, f"{found.count} {found.measure.units}", one.verdict]


def _plain(findings: Sequence[claims.Finding]) -> list[dict[str, Any]]:
    return [
        {
            "says": finding.claim.says,
            "verdict": finding.verdict,
            "comparisons": [{**asdict(one), "verdict": one.verdict} for one in finding.comparisons],
        }
        for finding in findings
    ]
