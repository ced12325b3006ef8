"""`ropewalk tune`: search a strategy's options for a model and a length on one half of a text, judge on the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rich.table import Table

from pipelines import track
from pipelines.choices import sweep
from pipelines.choices.config import Workbench
from pipelines.records.cells import Refusal, digest_of, strategy_label
from pipelines.records.numbers import duration
from pipelines.records.results import Store
from pipelines.report import tables
from pipelines.report.terminal import console, table
from pipelines.tune import bench, search, verdict
from pipelines.tune.bench import Bench, Recipe
from pipelines.tune.search import Settings, Trial
from pipelines.tune.space import seeds, space_of
from pipelines.tune.study import Study, confirm, keep
from pipelines.tune.verdict import Verdict
from pipelines.workers import compute, pool
from rope.strategies import bounded

HELP = """ropewalk tune strategy=NAME length=N [strategy.OPTION=LOW..HIGH] [OVERRIDES] [tune.SETTING=VALUE]

Searches a strategy's options for a model and a length: trials are screened on a few documents of one half of the text,
the best go on to more, and the best of all is judged against the published defaults on the other half. Trials are
ordinary cells: nothing is computed twice, and a search that was killed goes on when it is asked for again.
  ropewalk tune strategy=yarn length=4096                               the usual range of every option
  ropewalk tune strategy=yarn strategy.beta_fast=8..64 strategy.ramp=index,rotations length=4096
  ropewalk tune strategy=base length=4096                               theta
  ropewalk tune strategy=factors length=4096                            a divisor for every pair (LongRoPE)
  ropewalk tune strategy=dynamic_yarn strategy.options.beta_fast=8..64 length=4096
  ropewalk tune model=smollm2 strategy=factors length=32768 tune.trials=48 cluster=gpu
Ranges are LOW..HIGH or A,B; one value holds an option still. Other overrides are a grid's. limit=N: documents of each
half (16, at least 12); seed and text as for a grid (pydoc, or stdlib where pydoc is too short).
  tune.trials=24       trials in all
  tune.sampler=tpe     or cmaes, or nsga2: quality at the length and cost at a short one, with all that none beats
  tune.seed=0          one seed gives one search
  tune.batch=null      trials at once; null: as many as there are workers
  tune.short=null      tokens at which the cost is told; null: the trained length
"""

SETTINGS = ("trials", "sampler", "seed", "batch", "short")


@dataclass(frozen=True)
class Asked:
    """A command line: ranges, by option; what tune.* says; and the overrides that are a grid's."""

    ranges: Mapping[str, str]
    settings: Mapping[str, str]
    overrides: Sequence[str]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Asked:
        ranges: dict[str, str] = {}
        settings: dict[str, str] = {}
        overrides = []
        for argument in arguments:
            key, _, value = argument.partition("=")
            group, _, name = key.partition(".")
            if group == "tune":
                if name not in SETTINGS:
                    raise Refusal(f"{key}: no such setting; there are {', '.join(f'tune.{s}' for s in SETTINGS)}")
                settings[name] = value
            elif (key == "factor" or (group == "strategy" and name)) and _is_range(value):
                ranges[name or key] = value
            else:
                overrides.append(argument)
        return cls(ranges, settings, overrides)

    @property
    def held(self) -> set[str]:
        """Options that have one value."""
        keys = [override.partition("=")[0] for override in self.overrides]
        return {key.removeprefix("strategy.") for key in keys if key.startswith("strategy.") or key == "factor"}

    def number(self, name: str, usual: int) -> int:
        told = self.settings.get(name, "null")
        try:
            return usual if told == "null" else int(told)
        except ValueError as error:
            raise Refusal(f"tune.{name}={told}: give a whole number") from error


def _is_range(value: str) -> bool:
    return ".." in value or ("," in value and value[:1] not in "[{'\"(")


def main(choices: Sequence[Workbench], asked: Asked, command: str) -> int:
    """Search, judge, keep, show. Returns the exit code.

    Raises:
        Refusal: an unknown option, an empty range, too few documents, or more than one model, strategy or length.
    """
    if len(choices) > 1:
        raise Refusal("tune searches for one model, strategy, length and task: give each one value")
    study = _study(choices[0], asked, command)
    console.print(_plan(study))
    with pool.standing(compute.workers(study.bench.choice.cluster, study.device)) as run:
        study.bench.run = run
        with track.StudyTracker.open(study.store, study.spec()) as tracked:
            trials = list(_searched(study, tracked))
            best = _chosen(study, trials)
            judged = verdict.judge(study.bench, best, study.defaults, study.short)
            tracked.conclude(keep(study, trials, judged), study.folder)
    _show(study, trials, judged)
    return 1 if any(trial.status == "failed" for trial in trials) else 0


def _study(choice: Workbench, asked: Asked, command: str) -> Study:
    strategy = str(choice.strategy["name"])
    fixed = {name: value for name, value in choice.strategy.items() if name != "name" and name in asked.held}
    if choice.factor is not None:
        fixed["factor"] = choice.factor
    if "over" in choice.strategy:
        fixed["over"] = choice.strategy["over"]
    plain = sweep.planned_of(replace(choice, strategy={"name": "none"}, factor=None))
    geometry = next(g for layers, g in plain.geometries.items() if not bounded(layers) or len(plain.geometries) == 1)
    space = space_of(strategy, fixed, asked.ranges, geometry, choice.length)
    text_given = any(override.startswith("task.text=") for override in asked.overrides)
    choice, documents = bench.documents_of(replace(choice, factor=None), text_given)
    device = sweep.cell_of(replace(choice, strategy={"name": "none"})).device
    workers = compute.workers(choice.cluster, device)
    settings = Settings(
        asked.number("trials", 24), asked.settings.get("sampler", "tpe"), asked.number("seed", 0),
        asked.number("batch", workers.count or 1),
    )  # fmt: skip
    short = asked.number("short", geometry.trained_length)
    typed = [o for o in asked.overrides if o.partition("=")[0] not in _OURS and not o.startswith("strategy.")]
    typed += [f"task.text={choice.task['text']}"] if "text" in choice.task and not text_given else []
    store = Store.at(choice.store)
    workbench = Bench(choice, typed, documents, store, run=lambda cells: iter(()))
    native = workbench.cell(("none", {}), "tune", 0, documents.count)
    decided = [native.id, strategy, space.told, fixed, vars(settings), short, documents.rungs]
    study_id = f"{choice.model.name}-{strategy}-{choice.length}-{digest_of(decided)[:6]}".replace("/", "_")
    told = short if short < choice.length else None
    if settings.two_aims and told is None:
        raise Refusal(
            f"tune.sampler=nsga2: there is no length shorter than {choice.length} to tell a cost at; give tpe"
        )
    return Study(workbench, space, geometry, settings, told, command, store, device, study_id)


_OURS = {"strategy", "length", "limit", "factor", "force", "seed"}
"""Overrides that the command of a cell says itself."""


def _plan(study: Study) -> str:
    documents, rungs = study.bench.documents, " -> ".join(map(str, study.bench.documents.rungs))
    where = study.bench.choice.task.get("text")
    return (
        f"{study.label}: {study.settings.trials} trials by {study.settings.sampler} over {study.space.told}\n"
        f"documents: {rungs} of the tuning half to choose by, {documents.count} of the reporting half to judge by"
        f"{f' (text {where})' if where else ''}\nagainst: {', '.join(map(verdict.label, study.defaults))}"
    )


def _searched(study: Study, tracked: track.StudyTracker) -> Iterator[Trial]:
    """Every trial, told and recorded as it is settled. The defaults are measured first, on the whole half."""
    workbench, count = study.bench, study.bench.documents.count
    rungs = workbench.documents.rungs
    for recipe in study.defaults:
        cells = [workbench.cell(recipe, "tune", a, b) for a, b in zip((0, *rungs), rungs, strict=False)]
        results = workbench.results(cells)
        bad = next((results[cell.id] for cell in cells if not results[cell.id].metrics), None)
        told = f"{bad.status}: {bad.error_line}" if bad else _told(study, workbench.value([c.id for c in cells]), count)
        console.print(f"default    {told}  {verdict.label(recipe)}")
    measure = partial(
        workbench.try_out, strategy=study.strategy, short=study.short if study.settings.two_aims else None
    )
    begin = seeds(study.space, study.geometry, study.length)
    done: list[Trial] = []
    for trial in search.search(study.space, study.settings, rungs, measure, begin):
        done.append(trial)
        best = _best(done)
        console.print(_line(study, trial, done, best))
        tracked.record(trial.spec(), best.value if best else None)
        yield trial
        if len(done) >= 4 and all(t.status in ("failed", "invalid") for t in done):
            raise Refusal(f"every trial so far was {trial.status}: {trial.error}")


def _line(study: Study, trial: Trial, done: Sequence[Trial], best: Trial | None) -> str:
    total = study.settings.trials
    documents, value = trial.rungs[-1] if trial.rungs else (0, None)
    told = _told(study, value, documents) if value is not None else trial.error
    cost = f", {_told(study, trial.cost, documents)} at {study.short:,}" if trial.cost is not None else ""
    top = f"  best {_value(study, best.value)} (trial {best.number})" if best and best.value is not None else ""
    left = _left(study, done)
    eta = f"  left {duration(left)}" if left and len(done) < total else ""
    where = strategy_label("", tuple(_worded(study, trial).items())).strip()
    place = f"{trial.number + 1:>{len(str(total))}}/{total}"
    return f"{place}  {trial.status:<8}  {told}{cost}  {where}{top}{eta}"


def _worded(study: Study, trial: Trial) -> dict[str, Any]:
    """What a line says of a trial: its options, and in a list's place what the list was made of."""
    lists = {curve.option for curve in study.space.curves}
    made = {one.name.partition(".")[2]: trial.values[one.name] for c in study.space.curves for one in c.dimensions}
    return {name: value for name, value in trial.options.items() if name not in lists} | made


def _left(study: Study, done: Sequence[Trial]) -> float | None:
    """Seconds that the rest should take: as many documents a trial as so far, and the judging."""
    workbench = study.bench
    if not workbench.forwards:
        return None
    each = sum(trial.rungs[-1][0] for trial in done if trial.rungs) / len(done)
    judged = (len(study.defaults) + 1) * workbench.documents.count
    rest = (study.settings.trials - len(done)) * each + judged
    return workbench.seconds / workbench.forwards * rest / study.settings.batch


def _value(study: Study, value: float) -> str:
    return f"nll {value:.4f}" if study.bench.measure.name == "nll" else f"missed {value:.1%}"


def _told(study: Study, value: float, documents: int) -> str:
    return f"{_value(study, value)} over {documents}"


def _best(done: Sequence[Trial]) -> Trial | None:
    """Of those that were measured on the most documents, the one with the least."""
    able = [t for t in done if t.status == "complete" and t.value is not None]
    return min(able, key=lambda t: (t.value, t.number), default=None)


def _chosen(study: Study, trials: Sequence[Trial]) -> Recipe:
    """The best on the whole tuning half, a default where none beats it there."""
    workbench, rungs = study.bench, study.bench.documents.rungs
    recipes = {trial.number: (study.strategy, trial.options) for trial in trials if trial.status == "complete"}
    if study.settings.two_aims:  # they were weighed on fewer documents
        recipes = {trial.number: recipes[trial.number] for trial in search.front(trials)}
    asked: list[Recipe] = [*study.defaults, *recipes.values()]
    cells = [
        [workbench.cell(recipe, "tune", a, b) for a, b in zip((0, *rungs), rungs, strict=False)] for recipe in asked
    ]
    results = workbench.results([cell for row in cells for cell in row])
    able = [n for n, row in enumerate(cells) if all(results[cell.id].status == "ok" for cell in row)]
    # where all diverge, the one that does so least is a finding too
    able = able or [n for n, row in enumerate(cells) if all(results[cell.id].metrics for cell in row)]
    if not able:
        raise Refusal("neither a trial nor a default could be measured on all documents of the tuning half")
    best = min(able, key=lambda n: (workbench.value([cell.id for cell in cells[n]]), n))
    return verdict.known(asked[best])


def _show(study: Study, trials: Sequence[Trial], judged: Verdict) -> None:
    counts: dict[str, int] = {}
    for trial in trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    console.print("\ntrials: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    console.print(f"found: {verdict.label(judged.chosen)}")
    halves = Table(title="On the reporting half", title_justify="left", title_style="bold")
    for place, header in enumerate(("strategy", "length", "result")):
        halves.add_column(header, justify="right" if place == 1 else "left")
    for row in judged.rows:
        halves.add_row(row.label, f"{row.length:,}", row.told)
    console.print(halves)
    table(console, "", tables.DIFFERENCES, judged.lines)
    for sentence in judged.sentences:
        console.print(sentence)
    if study.settings.two_aims:
        console.print(f"none better in both aims: {len(search.front(trials))} trials (front_*.yaml, pareto.png)")
    console.print(f"\nkept: {study.folder}\nuse it:     strategy={study.folder / 'best.yaml'}")
    console.print(f"confirm it: {confirm(study, judged)}\nCompare the trials in the browser: ropewalk ui", style=None)
