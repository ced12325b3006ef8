"""What the bench measured, as tables with sentences and numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pipelines.records import phases

HEADER = ("phase", "process", "calls", "begins", "s")


DONE = "jobs.jsonl"
"""The file of stock jobs that have ended, a line of JSON each."""


@dataclass(frozen=True)
class Part:
    """What one part of the bench measured: a table, sentences below it, and numbers by name for machines."""

    title: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    said: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


def waterfall(noted: Sequence[phases.Phase], began: float, wall: float) -> Iterator[tuple[str, ...]]:
    """A row for every phase of every process, by its first start, and one for each process until its first phase.

    began: when the command was started, seconds since the epoch. Calls of one phase are added up.
    """
    numbers = {process: n for n, process in enumerate(dict.fromkeys(each.process for each in noted))}
    rows = dict[tuple[str, int], tuple[int, float, float]]()
    for each in sorted(noted, key=lambda each: each.start):
        if each.process not in {process for _, process in rows} and each.born is not None:
            rows["start and imports", each.process] = (1, each.born, max(0.0, each.start - each.born))
        calls, first, seconds = rows.get((each.name, each.process), (0, each.start, 0.0))
        rows[each.name, each.process] = (calls + 1, first, seconds + each.seconds)
    for (name, process), (calls, first, seconds) in sorted(rows.items(), key=lambda row: row[1][1]):
        who = "driver" if numbers[process] == 0 else f"worker {numbers[process]}"
        yield name, who, str(calls), f"{max(0.0, first - began):.1f}", f"{seconds:.2f}"
    yield "all", "", "", "0.0", f"{wall:.2f}"


def scorer_part(lines: Sequence[Mapping[str, Any]]) -> Part:
    """The table of what pipelines/bench/scorer.py printed."""
    [ceilings] = [line for line in lines if line["what"] == "ceilings"]
    rows, numbers = list[tuple[str, ...]](), {"ceiling_matmul_tflops": ceilings["matmul"] / 1e12}
    numbers["ceiling_attention_tflops"] = ceilings["attention"] / 1e12
    measured = {(line["length"], line["scorer"]): line for line in lines if line["what"] == "scorer"}
    sums = dict[int, float]()
    for (length, scorer), line in measured.items():
        key = f"{scorer}_{length}"
        if line.get("oom"):
            rows.append((f"{length:,}", scorer, "out of memory", "", "", "", ""))
            continue
        bound = line["flop"][0] / ceilings["matmul"] + line["flop"][1] / ceilings["attention"]
        numbers |= {
            f"{key}_s": line["seconds"],
            f"{key}_gib": line["bytes"] / 2**30,
            f"{key}_share": bound / line["seconds"],
        }
        ours, times, off = measured.get((length, "ours"), {}), "", ""
        if scorer == "stock" and "seconds" in ours:
            times = f"{line['seconds'] / ours['seconds']:.2f}"
            off = f"{abs(line['sum'] - ours['sum']) / abs(line['sum']):.1e}"
            sums[length] = abs(line["sum"] - ours["sum"]) / abs(line["sum"])
        size = f"{line['bytes'] / 2**30:.2f}"
        rows.append(
            (f"{length:,}", scorer, f"{line['seconds']:.3f}", size, f"{bound / line['seconds']:.0%}", times, off)
        )
    numbers |= {f"difference_{length}": off for length, off in sums.items()}
    said = [
        f"{ceilings['device']}, {ceilings['dtype']}: {ceilings['matmul'] / 1e12:.2f} TFLOP/s in a matrix product, "
        f"{ceilings['attention'] / 1e12:.2f} in causal attention; the bound is the model's FLOP at these rates"
    ]
    for scorer in ("ours", "stock"):
        fits = [length for (length, who), line in measured.items() if who == scorer and not line.get("oom")]
        ended = any(line.get("oom") for (_, who), line in measured.items() if who == scorer)
        end = "out of memory beyond it" if ended else "longer ones were not tried"
        said.append(f"{scorer}: longest {max(fits):,} tokens, {end}" if fits else f"{scorer}: out of memory at once")
    header = ("length", "scorer", "s", "peak GiB", "of the bound", "ours times as fast", "relative difference")
    return Part("scorer: ours, and lm-eval's HFLM as it comes", header, tuple(rows), tuple(said), numbers)


def stock_part(
    done: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    begin: float,
    *,
    by_hydra: bool,
    walls: Mapping[str, float],
) -> Part:
    """The table of stock jobs, in the order in which they ended.

    done: lines of pipelines/bench/stock.py. labels: of all cells. begin: of the first job, seconds since the epoch.
    by_hydra: whether Hydra's launcher ran them. walls: seconds of our grid, by how it ran.
    """
    before, rows, spent, left = begin, list[tuple[str, ...]](), list[float](), list[str]()
    for each in done:
        took, before = each["at"] - before, each["at"]
        if "failed" in each:
            left.append(f"{labels[each['number']]}: {each['failed']}")
        else:
            spent.append(took)
            rows.append((labels[each["number"]], f"{took:.1f}"))
    how = "by Hydra's Ray launcher" if by_hydra else "a process each, one by one; Hydra's launcher is not installed"
    title = f"stock: transformers, lm-eval and MLflow as they come, {how}"
    said = [f"left out: {reason}" for reason in left]
    numbers = {"cells": float(len(spent)), "seconds": sum(spent)}
    if not spent:
        return Part(title, said=("no cell runs by stock parts:", *said), numbers=numbers)
    mean = sum(spent[1:]) / len(spent[1:]) if spent[1:] else spent[0]
    whole = spent[0] + mean * (len(labels) - 1)
    numbers["whole"] = whole
    by = f"the mean of {mean:.1f} s after the first" if spent[1:] else "that one alone, with the launcher's start in it"
    told = [f"{len(spent)} of {len(labels)} cells in {sum(spent):.1f} s; all of them, by {by}, {whole:.0f} s"]
    for name, wall in walls.items():
        told.append(f"our {name} took {wall:.1f} s: {whole / wall:.1f} times as fast")
        numbers["times" if name == "grid" else "times_warm"] = whole / wall
    return Part(title, ("cell", "s"), tuple(rows), (*told, *said), numbers)


def lines(output: str) -> list[dict[str, Any]]:
    """The lines of JSON among what a process printed; one that was ended may have begun another."""
    found = list[dict[str, Any]]()
    for line in output.splitlines():
        with suppress(ValueError):
            found += [json.loads(line)] if line[:1] == "{" else []
    return found
