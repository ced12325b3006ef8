"""What a search measures strategies on: one half of the documents to choose by, the other to judge by.

Every measurement is an ordinary cell, of the documents that no cell before it had: a trial that goes on from 2
documents to 5 is measured on the 3 that are new, and what was measured once, by whatever search or grid, is only read.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pipelines.choices.config import Workbench
from pipelines.choices.sweep import cell_of, geometry_for
from pipelines.models import load
from pipelines.records.cells import Cell, Refusal, Result, frozen, strategy_label, thawed
from pipelines.records.results import Store
from pipelines.report import statistics
from pipelines.tasks import registry, text
from pipelines.tasks.kinds import Halves, Measure
from pipelines.tune.search import REDUCTION, Trial, TrialOutcome
from pipelines.workers.compute import Run, compute
from rope import strategies
from rope.config import text_config

LEAST = 12
"""Documents of each half, at the least: with fewer, little short of a landslide can be told from chance."""

USUAL = 16
"""Documents of each half where no limit is given."""


KEY_TOKENS = Measure("nll_key", lower=True, exp="perplexity of key tokens")
"""Of tune.objective=key_ppl."""


class StrategyChoice(NamedTuple):
    """A strategy and its options."""

    strategy: str
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        """As Cell.strategy_label has it."""
        return strategy_label(self.strategy, frozen(self.options))

    def without_defaults(self) -> StrategyChoice:
        defaults = strategies.options_of(self.strategy)
        options = {name: v for name, v in self.options.items() if name not in defaults or defaults[name] != v}
        return StrategyChoice(self.strategy, options)

    def yaml(self, notes: Sequence[str]) -> str:
        """A file like those of conf/strategy, with notes at its top."""
        comments = [f"# {line}" for line in notes]
        options = [f"{name}: {json.dumps(value)}" for name, value in self.options.items()]  # JSON is YAML
        return "\n".join([*comments, f"name: {self.strategy}", *options, ""])


@dataclass(frozen=True)
class Screening:
    """How many documents each half has, and on how many a trial is screened, rung by rung."""

    count: int
    rungs: tuple[int, ...]

    @classmethod
    def up_to(cls, count: int) -> Screening:
        rungs = sorted({max(2, count // REDUCTION**2), max(3, count // REDUCTION), count})
        return cls(count, tuple(rungs))


@dataclass(frozen=True)
class Bench:
    """Measures strategies for one model, length and task.

    choice: all choices but the strategy. typed: its overrides as typed, for the commands that repeat a cell.
    run: computes cells.
    scores: of each document, by cell. computed: results that were not there before.
    keys: whether only key tokens count, of task.evaluator.
    """

    choice: Workbench
    typed: Sequence[str]
    screening: Screening
    store: Store
    run: Run
    scores: dict[str, list[float]] = field(default_factory=dict)
    computed: list[Result] = field(default_factory=list)
    keys: bool = False

    @property
    def measure(self) -> Measure:
        return KEY_TOKENS if self.keys else statistics.measure_of(str(self.choice.task["name"]), None)

    @property
    def halves(self) -> Halves:
        return halves_of(str(self.choice.task["name"]))

    @property
    def seconds_per_document(self) -> float | None:
        """Of what was computed; None where nothing was."""
        documents = sum(len(result.documents) for result in self.computed)
        return sum(result.cost.get("seconds", 0.0) for result in self.computed) / documents if documents else None

    def cell(self, chosen: StrategyChoice, part: str, begin: int, end: int, length: int | None = None) -> Cell:
        """Documents begin ... end - 1 of a half under a strategy; where halves are nested, all up to `end`.

        Raises:
            Refusal: the strategy takes no such options.
        """
        selection = self.halves.select(part, begin, end, count=self.screening.count, seed=self.choice.seed)
        return cell_of(
            replace(
                self.choice,
                strategy={"name": chosen.strategy, **chosen.options},
                task={**self.choice.task, **selection.options},
                length=length or self.choice.length,
                limit=selection.limit,
                seed=selection.seed,
            )
        )

    def tuning_cells(self, chosen: StrategyChoice) -> list[Cell]:
        """The whole tuning half under a strategy, in the cells that a trial's rungs measure it in."""
        rungs = self.screening.rungs[-1:] if self.halves.nested else self.screening.rungs
        return [self.cell(chosen, "tune", begin, end) for begin, end in zip((0, *rungs), rungs, strict=False)]

    def command(self, cell: Cell) -> str:
        """The command line that measures one of these cells alone."""
        # a factor is no key of conf/strategy: it stands above it, for all strategies
        keys = {name: name if name == "factor" else f"strategy.{name}" for name, _ in cell.options}
        options = [f"{keys[name]}={_override(thawed(value))}" for name, value in cell.options]
        place = [f"strategy={cell.strategy}", *options, f"length={cell.length}", *self.selection(cell)]
        return shlex.join(["ropewalk", "grid", *self.typed, *place, "short=none"])

    def selection(self, cell: Cell) -> list[str]:
        """The overrides that select a cell's documents."""
        task = dict(cell.task.options)
        half = [f"task.{name}={task[name]}" for name in self.halves.options if name in task]
        return [*half, f"limit={cell.limit}", *([f"seed={cell.seed}"] if cell.seed else [])]

    def results(self, cells: Sequence[Cell]) -> dict[str, Result]:
        """Their results, read or computed, by cell id; the score of each document goes into `scores`."""
        known = set(self.store.recall(cell.id for cell in cells))
        results = {}
        for cell, result in compute(cells, self.store, self.run, command_of=self.command, resume=True):
            results[cell.id] = result
            # which documents have key tokens is the same under every strategy
            rows = [row for row in result.documents if not self.keys or row.get("key_tokens")]
            scores = [float(row[self.measure.name]) for row in rows if self.measure.name in row]
            if len(scores) < len(rows):  # not finite somewhere
                scores = [worst(cell)] * len(rows)
            self.scores[cell.id] = scores
            if cell.id not in known:
                self.computed.append(result)
        return results

    def try_out(self, trials: Sequence[Trial], rung: int, *, strategy: str, short: int | None) -> list[TrialOutcome]:
        """Trials on the documents up to a rung, of the tuning half. short: the length of the second aim, if there is
        one."""
        rungs = self.screening.rungs
        whole = self.halves.nested or short is not None
        begin, end = 0 if rung == 0 or whole else rungs[rung - 1], rungs[rung]
        requested: list[list[Cell] | Refusal] = []
        for trial in trials:
            chosen = StrategyChoice(strategy, trial.options)
            try:
                cells = [self.cell(chosen, "tune", begin, end)]
                if short is not None:
                    cells.append(self.cell(served(chosen, cells[0]), "tune", 0, end, short))
                requested.append(cells)
            except Refusal as reason:
                requested.append(reason)
        results = self.results([cell for cells in requested if isinstance(cells, list) for cell in cells])
        return [
            TrialOutcome("invalid", error=str(cells))
            if isinstance(cells, Refusal)
            else self._outcome(cells, results, () if whole else trial.cells)
            for trial, cells in zip(trials, requested, strict=True)
        ]

    def _outcome(self, cells: Sequence[Cell], results: Mapping[str, Result], before: Sequence[str]) -> TrialOutcome:
        """before: ids of the trial's cells on earlier rungs."""
        ids = tuple(cell.id for cell in cells)
        bad = next((results[cell_id] for cell_id in ids if results[cell_id].status != "ok"), None)
        if bad is not None and bad.status != "diverged":
            return TrialOutcome(bad.status, error=bad.error_line, cells=ids)
        cost = self.value(ids[1:]) if ids[1:] else None
        return TrialOutcome("ok" if bad is None else "diverged", self.value([*before, ids[0]]), cost, cells=ids)

    def judged(self, cell: Cell, result: Result) -> Result:
        """A result with what is judged as its NLL: at the length, where key tokens count, theirs alone."""
        if not self.keys or cell.length != self.choice.length or "nll_key" not in result.metrics:
            return result
        documents = [{**row, "nll": row["nll_key"]} for row in result.documents if row.get("key_tokens")]
        renamed = {"nll": "nll_key", "nll_stderr": "nll_key_stderr", "ppl": "ppl_key", "ppl_stderr": "ppl_key_stderr"}
        own = {name: result.metrics[key] for name, key in renamed.items() if key in result.metrics}
        return replace(result, documents=documents, metrics={**result.metrics, **own})

    def value(self, ids: Sequence[str]) -> float:
        """The objective, which is minimised: the mean over the documents of these cells; of a score, 1 minus it."""
        scores = [score for cell_id in ids for score in self.scores[cell_id]]
        if not scores:
            raise Refusal(
                "tune.objective=key_ppl: the far text makes no token of these documents much likelier; give more "
                "documents (limit=N), another text, or tune.objective=ppl"
            )
        mean = sum(scores) / len(scores)
        return mean if self.measure.lower else 1 - mean


def served(chosen: StrategyChoice, cell: Cell) -> StrategyChoice:
    """A strategy as an engine serves it that was set up for a cell's length: with its factor, whatever the length."""
    _, _, geometries = geometry_for(cell.model)
    factor = cell.length / max(geometry.trained_length for geometry in geometries.values())
    takes_factor = "factor" in strategies.options_of(chosen.strategy)
    if factor <= 1 or not takes_factor or chosen.strategy in ("dynamic", "dynamic_ntk"):
        return chosen
    return StrategyChoice(chosen.strategy, {"factor": factor, **chosen.options})


def worst(cell: Cell) -> float:
    """What stands for a document whose score is not finite."""
    _, config, _ = geometry_for(cell.model)
    return registry.kind(cell.task.name).worst(text_config(config).get("vocab_size", 2**17))


def halves_of(task: str) -> Halves:
    """How a task's documents are divided.

    Raises:
        Refusal: they are not.
    """
    halves = registry.kind(task).halves
    if halves is None:
        able = " or ".join(name for name, kind in registry.OWN.items() if kind.halves is not None)
        raise Refusal(f"task={task}: its documents have no halves to choose and judge by; give {able}")
    return halves


def choose_documents(choice: Workbench, text_given: bool) -> tuple[Workbench, Screening]:
    """How many documents the two halves have; with the text, where none was given, that has enough.

    Raises:
        Refusal: a task without halves, or too few documents in one.
    """
    halves, count = halves_of(str(choice.task["name"])), choice.documents or USUAL
    if count < LEAST:
        raise Refusal(f"limit={count}: a search is judged on at least {LEAST} documents; give limit={LEAST} or more")
    halves.check(choice.task)
    if not halves.texts:
        return choice, Screening.up_to(count)
    there = 0
    for source in [str(choice.task["text"])] if text_given else halves.texts:
        chosen = replace(choice, task={**choice.task, "text": source})
        cell = cell_of(replace(chosen, strategy={"name": "none"}))
        counts = [
            registry.held(cell.task, load.tokenizer(cell.model), part=part, length=choice.length) for part in text.PARTS
        ]
        there = min(USUAL if count is None else count for count in counts)
        if there >= LEAST:
            return chosen, Screening.up_to(min(count, there))
    raise Refusal(
        f"text {chosen.task['text']} has {there} documents of {choice.length:,} tokens in its smaller half, and a "
        f"search takes at least {LEAST}: give task.text=FILE, FOLDER, stdlib or hub:OWNER/NAME with longer text, or a "
        "shorter length"
    )


def _override(value: Any) -> str:
    """A value as an override has it."""
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_override, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}: {_override(entry)}" for name, entry in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
