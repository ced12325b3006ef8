"""A search through a space, trial by trial: what is tried next, what is screened out, what mattered. Owns optuna.

Successive halving (Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943; asynchronous: Li et al. 2020,
https://arxiv.org/abs/1810.05934): every trial is screened on few documents, and goes on to more while it is among the
best third of all that came so far. One seed gives one search, whether trials are computed or their results read from
disk after a kill.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from pipelines.records.cells import Refusal
from pipelines.tune.space import Dimension, Space

SAMPLERS = ("tpe", "cmaes", "nsga2")
"""tpe: tree-structured Parzen estimator. cmaes: evolution of a normal distribution, for numbers alone (choices are
drawn at random). nsga2: genetic, for two aims at once: quality at the length, and cost at a short one."""

OBJECTIVES: Mapping[str, Sequence[str]] = {
    "ppl": ("task=perplexity",),
    "context_gain": ("task=perplexity",),
    "key_ppl": ("task=perplexity", "task.evaluator=self_extend"),
    "passkey": ("task=passkey",),
}
"""What is searched for, and the overrides by which it is measured, unless the command line has others. ppl: perplexity.
context_gain: the same, and cropping is among what is to be beaten. key_ppl: perplexity over the tokens that need the
far text (LongPPL), in the spirit of LongRoPE2's search by needles. passkey: the share of passkeys that is missed."""

REDUCTION = 3
"""One trial in so many goes on to the next rung."""

POPULATION = 8
"""Of a generation of nsga2."""


@dataclass(frozen=True)
class SearchSettings:
    """tune.* of the command line.

    trials: in all. batch: trials measured at the same time; None: as many as there are workers.
    short: tokens at which the cost is reported; None: the trained length.
    objective: one of OBJECTIVES; None: the measure of the task.
    """

    trials: int = 24
    sampler: str = "tpe"
    seed: int = 0
    batch: int | None = None
    short: int | None = None
    objective: str | None = None

    def __post_init__(self) -> None:
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise Refusal(f"tune.objective={self.objective}: give one of {', '.join(OBJECTIVES)}")
        if self.sampler not in SAMPLERS:
            raise Refusal(f"tune.sampler={self.sampler}: give one of {', '.join(SAMPLERS)}")
        for name, least in (("trials", 1), ("batch", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise Refusal(f"tune.{name}={value}: give at least {least}")

    @property
    def two_aims(self) -> bool:
        return self.sampler == "nsga2"


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial did on the documents up to a rung. value: of the mean; a diverged one has its value too."""

    status: str
    value: float | None = None
    cost: float | None = None
    error: str = ""
    cells: tuple[str, ...] = ()


@dataclass
class Trial:
    """One point that was tried.

    rungs: (documents, mean over them of the objective, which is minimised), a pair for each rung that it reached.
    cost: the same at the short length, where that is an aim too.
    status: complete, pruned (others were better), diverged, oom, invalid (the strategy refuses it) or failed.
    """

    number: int
    values: dict[str, Any]
    options: dict[str, Any]
    rungs: list[tuple[int, float]] = field(default_factory=list)
    cost: float | None = None
    status: str = "running"
    error: str = ""
    cells: list[str] = field(default_factory=list)

    @property
    def value(self) -> float | None:
        """Over the most documents that it was measured on; None where it was not."""
        return self.rungs[-1][1] if self.rungs else None

    def spec(self) -> dict[str, Any]:
        return asdict(self)

    def add(self, outcome: TrialOutcome, documents: int) -> None:
        """Note what was measured on so many documents."""
        if outcome.value is not None:
            self.rungs.append((documents, outcome.value))
        self.cost, self.error = outcome.cost, outcome.error
        self.cells += [cell for cell in outcome.cells if cell not in self.cells]


Measure = Callable[[Sequence[Trial], int], list[TrialOutcome]]
"""Measures trials on the documents up to rung n, at once; an outcome a trial."""

Proposal = tuple[optuna.Trial, Trial]


def search(
    space: Space, settings: SearchSettings, rungs: Sequence[int], measure: Measure, begin: Sequence[Mapping[str, Any]]
) -> Iterator[Trial]:
    """Every trial as it is settled.

    rungs: documents of each; begin: points that are tried first, dimensions that one lacks being drawn.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    batch = settings.batch or 1
    with _without_warnings():
        study = optuna.create_study(
            directions=["minimize"] * (2 if settings.two_aims else 1),
            sampler=_sampler(settings, batch),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
        )
    for point in begin[: settings.trials]:
        study.enqueue_trial(dict(point), skip_if_exists=True)
    for start in range(0, settings.trials, batch):
        proposals = [_propose(study, space) for _ in range(min(batch, settings.trials - start))]
        (_measure_both if settings.two_aims else _climb)(study, proposals, rungs, measure)
        yield from (trial for _, trial in proposals)


def _propose(study: optuna.Study, space: Space) -> Proposal:
    with _without_warnings():
        proposed = study.ask(distributions(space))
    values = {dimension.name: dimension.rounded(proposed.params[dimension.name]) for dimension in space.searched}
    return proposed, Trial(proposed.number, values, space.options(values))


def _climb(study: optuna.Study, proposals: Sequence[Proposal], rungs: Sequence[int], measure: Measure) -> None:
    """Measure on ever more documents, and leave behind what is not among the best there."""
    running = list(proposals)
    for rung, documents in enumerate(rungs):
        outcomes = measure([trial for _, trial in running], rung) if running else []
        left = []
        for (proposed, trial), outcome in zip(running, outcomes, strict=True):
            trial.add(outcome, documents)
            if outcome.value is not None:
                proposed.report(outcome.value, step=REDUCTION**rung)
            if outcome.status != "ok":
                trial.status = outcome.status
                study.tell(proposed, state=TrialState.FAIL if outcome.status == "failed" else TrialState.PRUNED)
            elif rung == len(rungs) - 1:
                trial.status = "complete"
                study.tell(proposed, outcome.value)
            elif proposed.should_prune():
                trial.status = "pruned"
                study.tell(proposed, state=TrialState.PRUNED)
            else:
                left.append((proposed, trial))
        running = left


def _measure_both(study: optuna.Study, proposals: Sequence[Proposal], rungs: Sequence[int], measure: Measure) -> None:
    """Measure two aims at once on one rung: what is best in neither may still be the best of both."""
    rung = min(1, len(rungs) - 1)
    outcomes = measure([trial for _, trial in proposals], rung)
    for (proposed, trial), outcome in zip(proposals, outcomes, strict=True):
        trial.add(outcome, rungs[rung])
        trial.status = "complete" if outcome.status == "ok" else outcome.status
        if outcome.value is None or outcome.cost is None:
            study.tell(proposed, state=TrialState.FAIL)
        else:
            study.tell(proposed, [outcome.value, outcome.cost])


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats in both aims, by value; of trials that were completed."""
    able = _with_both_aims(trials)
    best = {tuple(t.values): able[t.number] for t in reversed(_study(able, lambda t: [t.value, t.cost]).best_trials)}
    return sorted(best.values(), key=lambda t: (t.value, t.number))


def importances(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """What share of the differences between trials each dimension accounts for, by PED-ANOVA (Watanabe et al. 2023,
    https://arxiv.org/abs/2304.10255) among the best quarter, as screened; empty where there are too few to tell."""
    screened = _screened(space, trials)
    values = [trial.value for trial in screened.trials]
    if len(values) < 8 or len(set(values)) < 4 or len(space.searched) < 2:
        return {}
    with _without_warnings():
        return dict(optuna.importance.get_param_importances(screened, evaluator=_evaluator()))


def figures(
    space: Space, trials: Sequence[Trial], screened_name: str, aims: tuple[str, str]
) -> dict[str, Callable[[], Any]]:
    """Optuna's figures of a search by file name, each a function that draws with pyplot and returns its axes.

    screened_name: of the objective on the first rung. aims: names of the objective and of the cost.
    """
    from optuna.visualization import matplotlib as plots

    screened, both = _screened(space, trials), _with_both_aims(trials)
    drawn: dict[str, Callable[[], Any]] = {}
    if importances(space, trials):
        drawn["importance.png"] = lambda: plots.plot_param_importances(
            screened, evaluator=_evaluator(), target_name=screened_name
        )
    if screened.trials:
        drawn["slices.png"] = lambda: plots.plot_slice(screened, target_name=screened_name)
    if both:
        study = _study(both, lambda trial: [trial.cost, trial.value])
        drawn["pareto.png"] = lambda: plots.plot_pareto_front(study, target_names=[aims[1], aims[0]])
    return {name: _without_warnings()(draw) for name, draw in drawn.items()}


def _screened(space: Space, trials: Sequence[Trial]) -> optuna.Study:
    """Trials with their values as screened: values over more documents are of other documents."""
    able = [trial for trial in trials if trial.rungs and math.isfinite(trial.rungs[0][1])]
    return _study(able, lambda trial: [trial.rungs[0][1]], space)


def _with_both_aims(trials: Sequence[Trial]) -> list[Trial]:
    return [t for t in trials if t.status == "complete" and t.value is not None and t.cost is not None]


def _study(trials: Sequence[Trial], values: Callable[[Trial], list[Any]], space: Space | None = None) -> optuna.Study:
    """Trials as Optuna knows them, in their order. values: one a trial, or two of two aims."""
    with _without_warnings():
        study = optuna.create_study(directions=["minimize"] * (len(values(trials[0])) if trials else 1))
        for trial in trials:
            params = {d.name: _inside(d, trial.values[d.name]) for d in space.searched} if space is not None else {}
            drawn_from = distributions(space) if space is not None else {}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=drawn_from, values=values(trial)))
    return study


def _evaluator() -> optuna.importance.PedAnovaImportanceEvaluator:
    with _without_warnings():
        return optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna knows it."""
    return {dimension.name: _distribution(dimension) for dimension in space.searched}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _inside(dimension: Dimension, value: Any) -> Any:
    """A value as its distribution takes it: rounding may have left the range by a hair."""
    return value if dimension.choices else min(max(value, dimension.low), dimension.high)


def _sampler(settings: SearchSettings, batch: int) -> optuna.samplers.BaseSampler:
    if settings.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=settings.seed)
    if settings.sampler == "cmaes":
        return optuna.samplers.CmaEsSampler(
            seed=settings.seed, warn_independent_sampling=False, consider_pruned_trials=True
        )
    startup = max(4, settings.trials // 3)
    return optuna.samplers.TPESampler(
        multivariate=True, n_startup_trials=startup, seed=settings.seed, constant_liar=batch > 1
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Optuna calls what is used here experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
