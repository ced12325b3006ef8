"""What a search measures strategies on: one half of the documents to choose by, the other to judge by.

Every measurement is an ordinary cell, of the documents that no cell before it had: a trial that goes on from 2
documents to 5 is measured on the 3 that are new, and what was measured once, by whatever search or grid, is only read.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.choices.config import Workbench
from pipelines.choices.sweep import cell_of, geometry_for
from pipelines.models import load
from pipelines.records.cells import Cell, Refusal, Result, Task, frozen, thawed
from pipelines.records.results import Store
from pipelines.report import statistics
from pipelines.tasks import registry, text
from pipelines.tasks.kinds import Measure
from pipelines.tune.search import REDUCTION, Outcome, Trial
from pipelines.workers.compute import Run, compute
from rope import strategies
from rope.config import text_config

LEAST = 12
"""Documents of each half, at the least: with fewer, little short of a landslide can be told from chance."""

USUAL = 16
"""Documents of each half where no limit is given."""

Recipe = tuple[str, Mapping[str, Any]]
"""A strategy and its options."""


@dataclass(frozen=True)
class Documents:
    """How many of each half are used, and how many a trial is screened on, rung by rung."""

    count: int
    rungs: tuple[int, ...]

    @classmethod
    def of(cls, count: int) -> Documents:
        rungs = sorted({max(2, count // REDUCTION**2), max(3, count // REDUCTION), count})
        return cls(count, tuple(rungs))


@dataclass
class Bench:
    """Measures strategies for one model, length and task.

    choice: what was asked, but for the strategy. typed: its overrides as typed, for the commands that repeat a cell.
    run: computes cells. seconds, forwards: spent on cells that were not there before.
    """

    choice: Workbench
    typed: Sequence[str]
    documents: Documents
    store: Store
    run: Run
    scores: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    forwards: int = 0

    @property
    def measure(self) -> Measure:
        return statistics.measure_of(str(self.choice.task["name"]), None)

    def cell(self, recipe: Recipe, part: str, begin: int, end: int, length: int | None = None) -> Cell:
        """Documents begin ... end - 1 of a half under a strategy. Keys are counted from 0, as passkey has it.

        Raises:
            Refusal: the strategy takes no such options.
        """
        choice = replace(self.choice, strategy={"name": recipe[0], **recipe[1]}, length=length or self.choice.length)
        if choice.task["name"] == "passkey":
            seed = choice.seed + text.PARTS.index(part)
            task = {**choice.task, "keys": self.documents.count}
            return cell_of(replace(choice, task=task, limit=end, seed=seed))
        return cell_of(replace(choice, task={**choice.task, "part": part, "skip": begin}, limit=end - begin))

    def command(self, cell: Cell) -> str:
        """What asks for one of these cells alone."""
        # a factor is no key of conf/strategy: it stands above it, for all strategies
        keys = {name: name if name == "factor" else f"strategy.{name}" for name, _ in cell.options}
        options = [f"{keys[name]}={_override(thawed(value))}" for name, value in cell.options]
        asked = dict(cell.task.options)
        halves = [f"task.{name}={asked[name]}" for name in ("part", "skip", "keys") if name in asked]
        return shlex.join(
            ["ropewalk", "grid", *self.typed, f"strategy={cell.strategy}", *options, f"length={cell.length}", *halves,
             f"limit={cell.limit}", *([f"seed={cell.seed}"] if cell.seed else [])]
        )  # fmt: skip

    def results(self, cells: Sequence[Cell]) -> dict[str, Result]:
        """Their results, read or computed; what was measured of each document is kept in `scores`."""
        known = set(self.store.recall(cell.id for cell in cells))
        found = {}
        for cell, result in compute(cells, self.store, self.run, command_of=self.command):
            found[cell.id] = result
            measured = [float(row[self.measure.name]) for row in result.documents if self.measure.name in row]
            if len(measured) < len(result.documents):  # not finite somewhere
                measured = [worst(cell)] * len(result.documents)
            self.scores[cell.id] = measured
            if cell.id not in known:
                self.seconds += result.cost.get("seconds", 0.0)
                self.forwards += len(result.documents)
        return found

    def try_out(self, trials: Sequence[Trial], rung: int, *, strategy: str, short: int | None) -> list[Outcome]:
        """Trials on the documents up to a rung, of the tuning half. short: the length of the second aim, if there is
        one."""
        rungs = self.documents.rungs
        nested = self.choice.task["name"] == "passkey" or short is not None
        begin, end = 0 if rung == 0 or nested else rungs[rung - 1], rungs[rung]
        asked: list[list[Cell] | Refusal] = []
        for trial in trials:
            try:
                cells = [self.cell((strategy, trial.options), "tune", begin, end)]
                if short is not None:
                    cells.append(self.cell(served((strategy, trial.options), cells[0]), "tune", 0, end, short))
                asked.append(cells)
            except Refusal as reason:
                asked.append(reason)
        results = self.results([cell for cells in asked if isinstance(cells, list) for cell in cells])
        return [
            Outcome("invalid", error=str(cells))
            if isinstance(cells, Refusal)
            else self._outcome(trial, cells, results, nested)
            for trial, cells in zip(trials, asked, strict=True)
        ]

    def _outcome(self, trial: Trial, cells: Sequence[Cell], results: Mapping[str, Result], nested: bool) -> Outcome:
        ids = tuple(cell.id for cell in cells)
        bad = next((results[cell.id] for cell in cells if results[cell.id].status != "ok"), None)
        if bad is not None and bad.status != "diverged":
            return Outcome(bad.status, error=bad.error_line, cells=ids)
        seen = [*([] if nested else trial.cells), ids[0]]
        value = self.value(seen)
        cost = self.value(ids[1:]) if ids[1:] else None
        return Outcome("ok" if bad is None else "diverged", value, cost, cells=ids)

    def value(self, ids: Sequence[str]) -> float:
        """What is sought to be small: the mean over the documents of these cells; of a score, what it lacks to 1."""
        found = [score for cell_id in ids for score in self.scores[cell_id]]
        mean = sum(found) / len(found)
        return mean if self.measure.lower else 1 - mean


def served(recipe: Recipe, cell: Cell) -> Recipe:
    """A strategy as an engine serves it that was set up for a cell's length: with its factor, whatever the length."""
    strategy, options = recipe
    _, _, geometries = geometry_for(cell.model)
    factor = cell.length / max(geometry.trained_length for geometry in geometries.values())
    fixed = "factor" in strategies.options_of(strategy) and strategy not in ("dynamic", "dynamic_ntk")
    return (strategy, {"factor": factor, **options}) if fixed and factor > 1 else recipe


def worst(cell: Cell) -> float:
    """What stands for a document whose score is not finite: that of guessing every token alike, or of no hit."""
    _, config, _ = geometry_for(cell.model)
    return math.log(text_config(config).get("vocab_size", 2**17)) if cell.task.name == "perplexity" else 0.0


def documents_of(choice: Workbench, text_given: bool) -> tuple[Workbench, Documents]:
    """How many documents the two halves have; with the text, where none was given, that has enough.

    Raises:
        Refusal: a task without halves, or too few documents in one.
    """
    name, count = str(choice.task["name"]), choice.limit or USUAL
    if name not in ("perplexity", "passkey"):
        raise Refusal(f"task={name}: its documents have no halves to choose and judge by; give perplexity or passkey")
    if count < LEAST:
        raise Refusal(f"limit={count}: a search is judged on at least {LEAST} documents; give limit={LEAST} or more")
    if name == "passkey":
        return choice, Documents.of(count)
    if choice.task.get("part") is not None or choice.task.get("skip"):
        raise Refusal("task.part and task.skip: a search sets both itself; leave them out")
    if choice.task.get("choose", "first") != "first":
        raise Refusal(
            f"task.choose={choice.task['choose']}: a search goes through the documents in order; leave it out"
        )
    held = 0
    for source in [str(choice.task["text"])] if text_given else [text.PYDOC, text.STDLIB]:
        chosen = replace(choice, task={**choice.task, "text": source})
        held = min(_held(chosen, part) for part in text.PARTS)
        if held >= LEAST:
            return chosen, Documents.of(min(count, held))
    raise Refusal(
        f"text {chosen.task['text']} has {held} documents of {choice.length:,} tokens in its smaller half, and a "
        f"search takes at least {LEAST}: give task.text=FILE, FOLDER, stdlib or hub:OWNER/NAME with longer text, or a "
        "shorter length"
    )


def _held(choice: Workbench, part: str) -> int:
    cell = cell_of(replace(choice, strategy={"name": "none"}, task={**choice.task, "part": part}))
    options = {name: value for name, value in choice.task.items() if name != "name"}
    task = Task(str(choice.task["name"]), frozen({**options, "part": part, "windows": "prefix"}))
    try:
        found = registry.forwards(task, load.tokenizer(cell.model), length=choice.length, limit=None)
    except Refusal as reason:
        if "are needed" in str(reason):  # not one document
            return 0
        raise
    return found if found is not None else USUAL


def _override(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_override, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}: {_override(entry)}" for name, entry in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
