"""`ropewalk bench`: every part in processes of its own, a table and JSON of it, and a run in MLflow."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines import track
from pipelines.bench import plans
from pipelines.bench.parts import DONE, HEADER, Part, lines, scorer_part, stock_part, waterfall
from pipelines.choices.compose import expand
from pipelines.choices.config import Workbench
from pipelines.choices.sweep import cells_of
from pipelines.records import phases
from pipelines.records.cells import Cell
from pipelines.records.numbers import duration
from pipelines.records.places import python_path
from pipelines.records.public import public
from pipelines.records.refusal import Refusal
from pipelines.records.results import Store
from pipelines.report import terminal
from pipelines.track.recorder import attempt, unrecorded

DEFAULT = ("model=tiny", "strategy=none,linear,yarn", "length=1024,2048", "task=perplexity", "limit=2", "short=none")
"""What is measured unless it is said otherwise; a word replaces the one of its key."""


@dataclass(frozen=True)
class Asked:
    """cells: how many cells are planned and recorded, one measurement each. seconds: that the parts may take together.
    words: overrides of the grid. choices: of these, cell by cell."""

    words: tuple[str, ...]
    choices: tuple[Workbench, ...]
    cells: tuple[int, ...]
    seconds: float

    @property
    def grid(self) -> tuple[Cell, ...]:
        return tuple(cells_of(self.choices))


class TimeOver(Exception):
    """A part's time is over. output: what the command that was ended had printed. last: the last line that it said."""

    def __init__(self, output: str, last: str) -> None:
        super().__init__("its time is over")
        self.output, self.last = output, last


class Bench:
    """The parts, in the order in which they run; what one leaves, such as a store of finished cells, the next uses.

    Every part ends what it has begun when its time is over, and gives what it measured by then.
    """

    def __init__(self, asked: Asked, folder: Path, say: Callable[[str], object]) -> None:
        self.asked, self.folder, self.say = asked, folder, say
        self.walls = dict[str, float]()
        self.deadline = math.inf

    def measure(self, name: str, seconds: float) -> Part:
        """A part, within so many seconds.

        Raises:
            Refusal: it measured nothing, with the reason.
        """
        begin = time.monotonic()
        self.deadline = begin + seconds
        try:
            part = PARTS[name](self)
        except TimeOver as over:
            reason = f"it takes more than the {seconds:.0f} s that it may take; give more with seconds="
            raise Refusal(f"{reason} (the last that it said: {over.last})") from None
        took = f"took {time.monotonic() - begin:.0f} s of the {seconds:.0f} s that it may take"
        return replace(part, said=(*part.said, took))

    def grid(self) -> Part:
        """Wall over the sum of cells, and where the time goes."""
        noted = self.folder / "phases"
        took, out = self._ropewalk("grid", "--json", *self.asked.words, ROPEWALK_PHASES=str(noted))
        self.walls["grid"] = took
        count, inside = _inside(out)
        rows = tuple(waterfall(phases.read(noted), time.time() - took, took))
        numbers = {"wall": took, "cells": inside, "wall_over_cells": took / inside, "count": float(count)}
        said = f"{count} cells: {took:.1f} s wall, {inside:.1f} s in cells, {took / inside:.1f} times as long"
        return Part("grid: where its time goes (s from its start)", HEADER, rows, (said,), numbers)

    def warm(self) -> Part:
        """The same grid on workers that stay, computed anew: the second time, as the first wakes the device."""
        axes = ("model", "cluster", "dtype")
        words = [word for word in self.asked.words if word.partition("=")[0].partition(".")[0] in axes]
        took, said = self._ropewalk("up", *words)
        theirs, rows = said.startswith("workers are up already"), [("up", f"{took:.1f}", "", "")]
        numbers, cut = {"up": took}, tuple[str, ...]()
        try:
            for turn in ("first grid", "second grid"):
                self.say(f"warm: {turn}")
                took, out = self._ropewalk("grid", "--json", "force=true", *self.asked.words)
                _, inside = _inside(out)
                self.walls["grid on workers that stay"] = took
                rows.append((turn, f"{took:.1f}", f"{inside:.1f}", f"{took / inside:.2f}"))
                numbers |= {"wall": took, "cells": inside, "wall_over_cells": took / inside}
        except TimeOver:
            cut = (CUT,)
        finally:
            if not theirs:
                self.deadline = math.inf
                self._ropewalk("down")
        return Part(
            "warm: the grid on workers that stay", ("command", "s", "in cells", "times"), tuple(rows), cut, numbers
        )

    def start(self) -> Part:
        """Seconds until commands that compute nothing have ended."""
        if "grid" not in self.walls:
            self._ropewalk("grid", "--quiet", *self.asked.words)
        commands = {
            "--help": ("--help",),
            "plan": ("plan", *self.asked.words),
            "finished grid": ("grid", *self.asked.words),
        }
        numbers, said = dict[str, float](), tuple[str, ...]()
        try:
            for name, words in commands.items():
                self.say(f"start: {name}")
                for _ in range(2):
                    numbers[name] = min(self._ropewalk(*words)[0], numbers.get(name, math.inf))
        except TimeOver:
            said = (CUT,)
        rows = tuple((name, f"{took:.2f}") for name, took in numbers.items())
        return Part(
            "start (fastest of 2)", ("command", "s"), rows, said, {n.replace("--", ""): v for n, v in numbers.items()}
        )

    def plan(self) -> Part:
        """Seconds to plan and to record so many cells."""
        rows, numbers, said = list[tuple[str, ...]](), dict[str, float](), tuple[str, ...]()
        try:
            for count in self.asked.cells:
                self.say(f"plan: {count:,} cells")
                planned = self._ropewalk("plan", *plans.words(count, self.asked.words))[0]
                rows.append((f"{count:,}", f"{planned:.1f}", "", ""))
                numbers[f"plan_{count}"] = planned
                *marks, last = self._child("pipelines.bench.plans", str(count), *self.asked.words)
                recorded, held = last["seconds"], [mark["bytes"] / 2**20 for mark in marks]
                rows[-1] = (*rows[-1][:2], f"{recorded:.1f}", " -> ".join(f"{mib:.0f}" for mib in held))
                numbers |= {f"record_{count}": recorded, f"record_mib_{count}": held[-1]}
        except TimeOver:
            said = (CUT,)
        header = ("cells", "ropewalk plan, s", "recorded in MLflow, s", "MiB held after a tenth, half, all")
        return Part("plans and records", header, tuple(rows), said, numbers)

    def scorer(self) -> Part:
        """Our scorer beside lm-eval's, and as a share of what the device can do."""
        self.say("scorer: ours and lm-eval's over the same tokens")
        try:
            return scorer_part(self._child("pipelines.bench.scorer", *self.asked.words))
        except TimeOver as over:
            if not (measured := lines(over.output)):
                raise
            part = scorer_part(measured)
            return replace(part, said=(*part.said, CUT))

    def stock(self) -> Part:
        """The same cells by transformers, lm-eval and MLflow as they come, for a while: by Hydra's own Ray launcher, or
        one by one where that is not installed."""
        cells, file, folder = self.asked.grid, self.folder / "cells", self.folder / "stock"
        folder.mkdir()
        file.write_bytes(pickle.dumps(cells))
        order, own, failure = spread(len(cells)), ["-m", "pipelines.bench.stock"], ""
        by_hydra = find_spec("hydra_plugins") is not None and find_spec("hydra_plugins.hydra_ray_launcher") is not None
        begin = time.time()
        try:
            if by_hydra:
                self.say("stock: all cells, by Hydra's Ray launcher")
                room = "num_gpus=1" if cells[0].device == "cuda" else f"num_cpus={os.cpu_count() or 1}"
                given = [f"+cells={file}", f"+number={','.join(map(str, order))}", f"+folder={folder}"]
                given += [f"hydra.sweep.dir={folder}/hydra", f"+hydra.launcher.ray.remote.{room}"]
                given.append("+hydra.launcher.ray.init.address=local")  # not whatever Ray runs on this machine
                quiet = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_raylet_start_wait_time_s": "180"}
                self._run([*own, "-m", "hydra/launcher=ray", *given], quiet)
            for number in () if by_hydra else order:
                self.say(f"stock: {cells[number].label}")
                self._run([*own, str(file), str(number), str(folder)], {})
        except TimeOver:
            pass
        except Refusal as reason:
            failure = str(reason)
        done = lines((folder / DONE).read_text()) if (folder / DONE).exists() else []
        if not done:
            raise Refusal(failure or f"no job ended within the {time.time() - begin:.0f} s that it may take")
        return stock_part(done, [cell.label for cell in cells], begin, by_hydra=by_hydra, walls=self.walls)

    def _ropewalk(self, *words: str, **environment: str) -> tuple[float, str]:
        """Seconds of a command line, in the bench's own store, and what it printed."""
        start = time.perf_counter()
        ran = self._run(["-m", "pipelines", *words], environment)
        return time.perf_counter() - start, ran

    def _child(self, module: str, *words: str) -> list[dict[str, Any]]:
        return lines(self._run(["-m", module, *words], {}))

    def _run(self, words: Sequence[str], environment: Mapping[str, str]) -> str:
        own = {"ROPEWALK_STORE": str(self.folder / "store"), "PYTHONPATH": python_path(), **environment}
        left = None if self.deadline == math.inf else max(0.1, self.deadline - time.monotonic())
        # Into files: whatever outlives a command may keep its pipes open, and would be waited for.
        output, errors = self.folder / "output", self.folder / "errors"
        code: int | None = None
        with output.open("wb") as out, errors.open("wb") as err, suppress(subprocess.TimeoutExpired):
            env = {**os.environ, **own}
            code = subprocess.run([sys.executable, *words], stdout=out, stderr=err, env=env, timeout=left).returncode
        printed, said = (file.read_text(encoding="utf-8", errors="replace") for file in (output, errors))
        last = (said.strip() or printed.strip() or "it said nothing").splitlines()[-1]
        if code is None:
            raise TimeOver(printed, last)
        if code:
            raise Refusal(f"{' '.join(words[1:3])} ended with {code}: {last}")
        return printed


PARTS: Mapping[str, Callable[[Bench], Part]] = {
    "grid": Bench.grid,
    "warm": Bench.warm,
    "start": Bench.start,
    "plan": Bench.plan,
    "scorer": Bench.scorer,
    "stock": Bench.stock,
}

SHARES = {"grid": 55, "warm": 55, "start": 12, "plan": 18, "scorer": 25, "stock": 130}
"""Seconds that each part may take where all of them may take SECONDS."""

SECONDS = sum(SHARES.values())

CUT = "its time was over: what is missing was not measured"


def _inside(out: str) -> tuple[int, float]:
    """Of what a grid printed: how many cells it has, and the seconds within them. Duplicates are computed once."""
    own = {cell["id"]: cell["cost"].get("seconds", 0.0) for cell in json.loads(out)["cells"]}
    return len(own), sum(own.values())


def spread(count: int) -> list[int]:
    """All numbers below a count, so that the first few lie far apart: a mean of them is one of short and long cells."""
    order = sorted(range(count), key=lambda number: int(f"{number:020b}"[::-1], 2))
    return order


def asked(words: Sequence[str], cells: Sequence[int], seconds: float) -> Asked:
    """The bench of these overrides over DEFAULT.

    Raises:
        Refusal: an override that is not known, or cells that cannot run.
    """
    given = {word.lstrip("+").partition("=")[0] for word in words}
    whole = (*(word for word in DEFAULT if word.partition("=")[0] not in given), *words)
    choices = expand(whole)
    cells_of(choices)
    return Asked(whole, tuple(choices), tuple(cells), seconds)


def main(request: Asked, parts: Sequence[str], *, as_json: bool, command: str) -> int:
    """Run parts, show and record them. A part that fails says why, and the others run. Returns the exit code."""
    console = terminal.aside() if as_json else terminal.console
    began = time.perf_counter()

    def say(text: str) -> None:
        console.print(f"[{time.perf_counter() - began:5.0f} s] {text}")

    found, failed = dict[str, Part](), False
    with tempfile.TemporaryDirectory(prefix="ropewalk-bench-") as folder:
        bench = Bench(request, Path(folder), say)
        chosen = [name for name in PARTS if name in parts]
        for name in chosen:
            seconds = request.seconds * SHARES[name] / sum(SHARES[each] for each in chosen)
            say(f"{name}: at most {seconds:.0f} s")
            try:
                found[name] = bench.measure(name, seconds)
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
