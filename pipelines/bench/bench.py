"""`ropewalk bench`: every part in processes of its own, a table and JSON of it, and a run in MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines import track
from pipelines.bench import plans
from pipelines.choices.compose import expand
from pipelines.choices.config import Workbench
from pipelines.choices.sweep import cells_of
from pipelines.records import phases
from pipelines.records.cells import Cell
from pipelines.records.numbers import duration
from pipelines.records.places import SITE
from pipelines.records.public import public
from pipelines.records.refusal import Refusal
from pipelines.records.results import Store
from pipelines.report import terminal
from pipelines.track.recorder import attempt, unrecorded

DEFAULT = ("model=tiny", "strategy=none,linear,yarn", "length=1024,2048", "task=perplexity", "limit=2", "short=none")
"""What is measured unless it is said otherwise; a word replaces the one of its key."""


@dataclass(frozen=True)
class Asked:
    """cells: how many cells are planned and recorded, one measurement each. stock_seconds: how long stock jobs may run.
    words: overrides of the grid. choices: of these, cell by cell."""

    words: tuple[str, ...]
    choices: tuple[Workbench, ...]
    cells: tuple[int, ...]
    stock_seconds: float

    @property
    def grid(self) -> tuple[Cell, ...]:
        return tuple(cells_of(self.choices))


@dataclass(frozen=True)
class Part:
    """What one part of the bench measured: a table, sentences below it, and numbers by name for machines."""

    title: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    said: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


class Bench:
    """The parts, in the order in which they run; what one leaves, such as a store of finished cells, the next uses."""

    def __init__(self, asked: Asked, folder: Path, say: Callable[[str], object]) -> None:
        self.asked, self.folder, self.say = asked, folder, say
        self.wall: float | None = None

    def grid(self) -> Part:
        """Wall over the sum of cells, and where the time goes."""
        noted = self.folder / "phases"
        took, out = self._ropewalk("grid", "--json", *self.asked.words, ROPEWALK_PHASES=str(noted))
        self.wall = took
        cells = json.loads(out)["cells"]
        own = {cell["id"]: cell["cost"].get("seconds", 0.0) for cell in cells}  # duplicates are computed once
        inside = sum(own.values())
        rows = tuple(waterfall(phases.read(noted), time.time() - took, took))
        numbers = {"wall": took, "cells": inside, "wall_over_cells": took / inside, "count": float(len(own))}
        said = f"{len(own)} cells: {took:.1f} s wall, {inside:.1f} s in cells, {took / inside:.1f} times as long"
        return Part("grid: where its time goes (s from its start)", HEADER, rows, (said,), numbers)

    def start(self) -> Part:
        """Seconds until commands that compute nothing have ended."""
        if self.wall is None:
            self._ropewalk("grid", "--quiet", *self.asked.words)
        commands = {
            "--help": ("--help",),
            "plan": ("plan", *self.asked.words),
            "finished grid": ("grid", *self.asked.words),
        }
        numbers = {}
        for name, words in commands.items():
            self.say(f"start: {name}")
            numbers[name] = min(self._ropewalk(*words)[0] for _ in range(2))
        rows = tuple((name, f"{took:.2f}") for name, took in numbers.items())
        return Part(
            "start (fastest of 2)", ("command", "s"), rows, (), {n.replace("--", ""): v for n, v in numbers.items()}
        )

    def plan(self) -> Part:
        """Seconds to plan and to record so many cells."""
        rows, numbers = list[tuple[str, ...]](), dict[str, float]()
        for count in self.asked.cells:
            self.say(f"plan: {count:,} cells")
            planned = self._ropewalk("plan", *plans.words(count, self.asked.words))[0]
            recorded = self._child("pipelines.bench.plans", str(count), *self.asked.words)[-1]["seconds"]
            rows.append((f"{count:,}", f"{planned:.1f}", f"{recorded:.1f}"))
            numbers |= {f"plan_{count}": planned, f"record_{count}": recorded}
        header = ("cells", "ropewalk plan, s", "recorded in MLflow, s")
        return Part("plans and records", header, tuple(rows), (), numbers)

    def scorer(self) -> Part:
        """Our scorer beside lm-eval's, and as a share of what the device can do."""
        self.say("scorer: ours and lm-eval's over the same tokens")
        lines = self._child("pipelines.bench.scorer", *self.asked.words)
        return scorer_part(lines)

    def stock(self) -> Part:
        """The same cells one by one by transformers and lm-eval as they come, for a while."""
        spent, done, left = list[float](), list[int](), list[str]()
        cells = self.asked.grid
        for number in spread(len(cells)):
            if sum(spent) >= self.asked.stock_seconds:
                break
            self.say(f"stock: {cells[number].label}")
            start = time.perf_counter()
            try:
                self._child("pipelines.bench.stock", str(number), *self.asked.words)
            except Refusal as reason:
                left.append(f"{cells[number].label}: {reason}")
                continue
            spent.append(time.perf_counter() - start)
            done.append(number)
        if not done:
            return Part("stock", said=("no cell runs by stock parts:", *left))
        whole = sum(spent) / len(spent) * len(cells)
        rows = [(cells[n].label, f"{took:.1f}") for n, took in zip(done, spent, strict=True)]
        said = [f"{len(done)} of {len(cells)} cells in {sum(spent):.1f} s; all of them, by their mean, {whole:.0f} s"]
        numbers = {"cells": float(len(done)), "seconds": sum(spent), "whole": whole}
        if self.wall is not None:
            said.append(f"our grid took {self.wall:.1f} s: {whole / self.wall:.1f} times as fast")
            numbers["times"] = whole / self.wall
        said += [f"left out: {reason}" for reason in left]
        said.append("a job a process, without a launcher: hydra-ray-launcher's own time comes on top")
        return Part(
            "stock: a process a cell, transformers and lm-eval as they come",
            ("cell", "s"),
            tuple(rows),
            tuple(said),
            numbers,
        )

    def _ropewalk(self, *words: str, **environment: str) -> tuple[float, str]:
        """Seconds of a command line, in the bench's own store, and what it printed."""
        start = time.perf_counter()
        ran = self._run(["-m", "pipelines", *words], environment)
        return time.perf_counter() - start, ran

    def _child(self, module: str, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._run(["-m", module, *words], {}).splitlines() if line[:1] == "{"]

    def _run(self, words: Sequence[str], environment: Mapping[str, str]) -> str:
        paths = os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH", "")]))
        own = {"ROPEWALK_STORE": str(self.folder / "store"), "PYTHONPATH": paths, **environment}
        ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, env={**os.environ, **own})
        if ran.returncode:
            last = (ran.stderr.strip() or ran.stdout.strip() or "it said nothing").splitlines()[-1]
            raise Refusal(f"{' '.join(words[1:3])} ended with {ran.returncode}: {last}")
        return ran.stdout


PARTS: Mapping[str, Callable[[Bench], Part]] = {
    "grid": Bench.grid,
    "start": Bench.start,
    "plan": Bench.plan,
    "scorer": Bench.scorer,
    "stock": Bench.stock,
}

HEADER = ("phase", "process", "calls", "begins", "s")


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


def spread(count: int) -> list[int]:
    """All numbers below a count, so that the first few lie far apart: a mean of them is one of short and long cells."""
    order = sorted(range(count), key=lambda number: int(f"{number:020b}"[::-1], 2))
    return order


def asked(words: Sequence[str], cells: Sequence[int], stock_seconds: float) -> Asked:
    """The bench of these overrides over DEFAULT.

    Raises:
        Refusal: an override that is not known, or cells that cannot run.
    """
    given = {word.lstrip("+").partition("=")[0] for word in words}
    whole = (*(word for word in DEFAULT if word.partition("=")[0] not in given), *words)
    choices = expand(whole)
    cells_of(choices)
    return Asked(whole, tuple(choices), tuple(cells), stock_seconds)


def main(request: Asked, parts: Sequence[str], *, as_json: bool, command: str) -> int:
    """Run parts, show and record them. A part that fails says why, and the others run. Returns the exit code."""
    console = terminal.aside() if as_json else terminal.console
    began = time.perf_counter()

    def say(text: str) -> None:
        console.print(f"[{time.perf_counter() - began:5.0f} s] {text}")

    found, failed = dict[str, Part](), False
    with tempfile.TemporaryDirectory(prefix="ropewalk-bench-") as folder:
        bench = Bench(request, Path(folder), say)
        for name in (name for name in PARTS if name in parts):
            say(name)
            try:
                found[name] = PARTS[name](bench)
            except Refusal as reason:
                found[name], failed = Part(name, said=(f"not measured: {reason}",)), True
            show(console, found[name])
    body = {"command": command, "words": request.words, "seconds": time.perf_counter() - began}
    body |= {"parts": {name: asdict(part) for name, part in found.items()}}
    store = Store.at(request.choices[0].store)
    numbers = {f"{name}/{key}": value for name, part in found.items() for key, value in part.numbers.items()}
    params = {"command": command, "model": request.choices[0].model.name, "parts": ",".join(found)}
    if unwritten := attempt(lambda: track.record_benchmark(store, params, numbers, body)):
        console.print(unrecorded(unwritten, "the same command measures and records again"))
    console.print(f"{duration(time.perf_counter() - began)} in all; recorded in MLflow's experiment bench")
    if as_json:
        print(public(json.dumps(body, indent=1)))
    return int(failed)


def show(console: Console, part: Part) -> None:
    if part.rows:
        terminal.table(console, part.title, part.header, part.rows)
    for line in part.said:
        console.print(line)
