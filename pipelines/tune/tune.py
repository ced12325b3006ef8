"""`ropewalk tune`: search a strategy's options for a model and a length on one half of a text, judge on the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from pipelines import track
from pipelines.choices import schema, sweep
from pipelines.choices.config import Workbench
from pipelines.records.cells import Refusal, digest_of, strategy_label
from pipelines.records.numbers import duration
from pipelines.records.results import Store
from pipelines.report import tables
from pipelines.report.terminal import console, table
from pipelines.track import rebuild
from pipelines.track.recorder import Recorder, unrecorded
from pipelines.tune import bench, search, verdict
from pipelines.tune.bench import Bench, StrategyChoice
from pipelines.tune.search import SearchSettings, Trial
from pipelines.tune.space import seeds, space_of
from pipelines.tune.study import TuneStudy, confirm, write
from pipelines.tune.verdict import TuneVerdict
from pipelines.workers import compute
from rope.config import text_config
from rope.geometry import Geometry
from rope.strategies import bounded
from rope.theory import critical_pair


@dataclass(frozen=True)
class TuneRequest:
    """A command line: ranges, by option; what tune.* says; and the overrides that are a grid's."""

    ranges: Mapping[str, str]
    settings: Mapping[str, str]
    overrides: Sequence[str]

    @property
    def held(self) -> set[str]:
        """Options that have one value."""
        keys = [override.partition("=")[0] for override in self.overrides]
        return {key.removeprefix("strategy.") for key in keys if key.startswith("strategy.") or key == "factor"}


def main(choices: Sequence[Workbench], request: TuneRequest, command: str) -> int:
    """Search, judge, write, show. Returns the exit code.

    Raises:
        Refusal: an unknown option, an empty range, too few documents, or more than one model, strategy or length.
    """
    if len(choices) > 1:
        raise Refusal("tune searches for one model, strategy, length and task: give each one value")
    [choice] = choices
    device, store = sweep.device_of(choice.cluster.device), Store.at(choice.store)
    with compute.batches(choice.cluster, device, store, console.print) as run:
        study = study_of(choice, request, command, run, choice.cluster.workers or 1)
        console.print(_preview(study))
        written = dict[str, Any]()
        recorder = Recorder(
            partial(track.StudyTracker.open, store, study.spec()),
            lambda: rebuild.record_study_anew(written, store) if written else None,
        )
        interrupted = True
        try:
            trials = list(_search(study, recorder))
            judged = verdict.judge(study.bench, _best_choice(study, trials), study.defaults, study.short)
            written |= write(study, trials, judged)
            recorder.submit(lambda tracker: tracker.conclude(written, study.folder))
            interrupted = False
        finally:
            reason = recorder.close(interrupted=interrupted, say=console.print)
            if reason:
                console.print(unrecorded(reason))
    _show(study, trials, judged)
    return 1 if any(trial.status == "failed" for trial in trials) else 0


def study_of(choice: Workbench, request: TuneRequest, command: str, run: compute.Run, at_once: int) -> TuneStudy:
    """The search that a command line asks for; nothing is measured yet. at_once: trials, unless it says how many.

    Raises:
        Refusal: an unknown option, an empty range, or too few documents.
    """
    strategy = str(choice.strategy["name"])
    fixed = {name: value for name, value in choice.strategy.items() if name != "name" and name in request.held}
    if choice.factor is not None:
        fixed["factor"] = choice.factor
    if "over" in choice.strategy:
        fixed["over"] = choice.strategy["over"]
    plain = sweep.planned_of(replace(choice, strategy={"name": "none"}, factor=None))
    geometry = next(g for layers, g in plain.geometries.items() if not bounded(layers) or len(plain.geometries) == 1)
    _, config, geometries = sweep.geometry_for(plain.model)
    layers = text_config(config).get("num_hidden_layers") if len(geometries) == 1 else None
    space = space_of(strategy, fixed, request.ranges, geometry, choice.length, layers)
    text_given = any(override.startswith("task.text=") for override in request.overrides)
    choice, screening = bench.choose_documents(replace(choice, factor=None), text_given)
    given = {name: None if value == "null" else value for name, value in request.settings.items()}
    settings = schema.structured(SearchSettings, given, "tune.")
    settings = replace(settings, batch=settings.batch or at_once, short=settings.short or geometry.trained_length)
    typed = [o for o in request.overrides if o.partition("=")[0] not in SAID_BY_CELLS and not o.startswith("strategy.")]
    typed += [f"task.text={choice.task['text']}"] if "text" in choice.task and not text_given else []
    workbench = Bench(choice, typed, screening, Store.at(choice.store), run, keys=settings.objective == "key_ppl")
    native = workbench.cell(StrategyChoice("none", {}), "tune", 0, screening.count)
    searching = asdict(settings)
    short = searching.pop("short")
    if searching["objective"] is None:  # searches from before there were any
        del searching["objective"]
    decisive = [native.id, strategy, space.text, fixed, searching, short, screening.rungs]
    study_id = f"{choice.model.name}-{strategy}-{choice.length}-{digest_of(decisive)[:6]}".replace("/", "_")
    if settings.two_aims and short >= choice.length:
        raise Refusal(
            f"tune.sampler=nsga2: there is no length shorter than {choice.length} to tell a cost at; give tpe"
        )
    shorter = short if short < choice.length else None
    return TuneStudy(workbench, space, geometry, settings, shorter, command, study_id)


SAID_BY_CELLS = {"strategy", "length", "limit", "factor", "force", "seed", "short"}
"""Overrides that the command of a cell says itself."""


def _preview(study: TuneStudy) -> str:
    screening, source = study.bench.screening, study.bench.choice.task.get("text")
    rungs = " -> ".join(map(str, screening.rungs))
    return (
        f"{study.label}: {study.settings.trials} trials by {study.settings.sampler} over {study.space.text}\n"
        f"documents: {rungs} of the tuning half to choose by, {screening.count} of the reporting half to judge by"
        f"{f' (text {source})' if source else ''}\nagainst: {', '.join(default.label for default in study.defaults)}"
    )


def _search(study: TuneStudy, recorder: Recorder[track.StudyTracker]) -> Iterator[Trial]:
    """Every trial, shown and recorded as it is settled. The defaults are measured first, on the whole half."""
    workbench, screening = study.bench, study.bench.screening
    for default in study.defaults:
        cells = workbench.tuning_cells(default)
        results = workbench.results(cells)
        bad = next((results[cell.id] for cell in cells if not results[cell.id].metrics), None)
        if bad is not None:
            outcome = f"{bad.status}: {bad.error_line}"
        else:
            outcome = f"{_value(study, workbench.value([cell.id for cell in cells]))} over {screening.count}"
        console.print(f"default    {outcome}  {default.label}")
    measure = partial(
        workbench.try_out, strategy=study.strategy, short=study.short if study.settings.two_aims else None
    )
    begin = seeds(study.space, study.geometry, study.length)
    done: list[Trial] = []
    for trial in search.search(study.space, study.settings, screening.rungs, measure, begin):
        done.append(trial)
        complete = [t for t in done if t.status == "complete" and t.value is not None]
        best = min(complete, key=lambda t: (t.value, t.number), default=None)
        console.print(_line(study, trial, done, best))
        recorder.submit(partial(_record, trial=trial.spec(), best=best.value if best else None))
        yield trial
        if len(done) >= 4 and all(t.status in ("failed", "invalid") for t in done):
            raise Refusal(f"every trial so far was {trial.status}: {trial.error}")


def _record(tracker: track.StudyTracker, trial: Mapping[str, Any], best: float | None) -> None:
    tracker.record(trial, best)


def _line(study: TuneStudy, trial: Trial, done: Sequence[Trial], best: Trial | None) -> str:
    """`6/24  complete  nll 2.31 over 16  beta_fast=16  best nll 2.30 (trial 2)  left 1:10`"""
    total = study.settings.trials
    documents, value = trial.rungs[-1] if trial.rungs else (0, None)
    outcome = f"{_value(study, value)} over {documents}" if value is not None else trial.error
    if trial.cost is not None:
        outcome += f", {_value(study, trial.cost)} over {documents} at {study.short:,}"
    lists = {curve.option for curve in study.space.curves}  # a list is shown by what it was drawn from
    shown = {name: value for name, value in trial.options.items() if name not in lists}
    for curve in study.space.curves:
        shown |= {dimension.name.partition(".")[2]: trial.values[dimension.name] for dimension in curve.dimensions}
    options = strategy_label("", tuple(shown.items())).strip()
    best_text = f"  best {_value(study, best.value)} (trial {best.number})" if best and best.value is not None else ""
    left = _seconds_left(study, done)
    left_text = f"  left {duration(left)}" if left and len(done) < total else ""
    place = f"{trial.number + 1:>{len(str(total))}}/{total}"
    return f"{place}  {trial.status:<8}  {outcome}  {options}{best_text}{left_text}"


def _seconds_left(study: TuneStudy, done: Sequence[Trial]) -> float | None:
    """Seconds that the rest should take: as many documents a trial as so far, and the judging."""
    each = study.bench.seconds_per_document
    if each is None:
        return None
    documents = sum(trial.rungs[-1][0] for trial in done if trial.rungs) / len(done)
    judging = (len(study.defaults) + 1) * study.bench.screening.count
    rest = (study.settings.trials - len(done)) * documents + judging
    return each * rest / (study.settings.batch or 1)


def _value(study: TuneStudy, value: float) -> str:
    return f"nll {value:.4f}" if study.bench.measure.exp else f"missed {value:.1%}"


def _best_choice(study: TuneStudy, trials: Sequence[Trial]) -> StrategyChoice:
    """The best on the whole tuning half, a default where none beats it there."""
    workbench = study.bench
    # those weighed for two aims were measured on fewer documents
    able = search.front(trials) if study.settings.two_aims else [t for t in trials if t.status == "complete"]
    choices = [*study.defaults, *(StrategyChoice(study.strategy, trial.options) for trial in able)]
    cells = [workbench.tuning_cells(choice) for choice in choices]
    results = workbench.results([cell for row in cells for cell in row])
    usable = [n for n, row in enumerate(cells) if all(results[cell.id].status == "ok" for cell in row)]
    # where all diverge, the one that does so least is a finding too
    usable = usable or [n for n, row in enumerate(cells) if all(results[cell.id].metrics for cell in row)]
    if not usable:
        raise Refusal("neither a trial nor a default could be measured on all documents of the tuning half")
    best = min(usable, key=lambda n: (workbench.value([cell.id for cell in cells[n]]), n))
    return choices[best].without_defaults()


def critical(options: Mapping[str, Any], geometry: Geometry, length: int) -> str:
    """From which pair on a list of divisors stretches by the whole factor, beside theory's critical pair (LongRoPE2,
    https://arxiv.org/abs/2502.20082); "" of what is no list."""
    if not (divisors := options.get("factors")):
        return ""
    factor = length / geometry.trained_length
    found = next((n for n in range(len(divisors)) if min(divisors[n:]) >= factor * 0.999), None)
    theirs = critical_pair(geometry.native(length), geometry.trained_length)
    return (
        f"critical pair: {'none' if found is None else found} of {len(divisors)}, from which on every divisor is at "
        f"least the factor, {factor:g}; by theory, the first whose wavelength is longer than the trained length, "
        f"{theirs}"
    )


def _show(study: TuneStudy, trials: Sequence[Trial], judged: TuneVerdict) -> None:
    statuses = Counter(trial.status for trial in trials)
    console.print("\ntrials: " + ", ".join(f"{count} {status}" for status, count in statuses.items()))
    console.print(f"best: {judged.chosen.label}")
    complete = [trial for trial in trials if trial.status == "complete" and trial.value is not None]
    for trial in sorted(complete, key=lambda trial: (trial.value, trial.number))[:1]:
        if said := critical(trial.options, study.geometry, study.length):  # also where a default was better
            console.print(f"best of the trials, {trial.number + 1}: {said}")
    rows = [(row.label, f"{row.cell.length:,}", row.headline) for row in judged.rows]
    table(console, "On the reporting half", ("strategy", "length", "result"), rows)
    table(console, "", tables.DIFFERENCES, judged.lines)
    for sentence in judged.sentences:
        console.print(sentence)
    if study.settings.two_aims:
        console.print(f"none better in both aims: {len(search.front(trials))} trials (front_*.yaml, pareto.png)")
    console.print(f"\nfiles:      {study.folder}\nuse it:     strategy={study.folder / 'best.yaml'}")
    console.print(f"confirm it: {confirm(study, judged)}\nCompare the trials in the browser: ropewalk ui", style=None)
