"""A search through a space, trial by trial: who is asked next, who is screened out, what mattered. Owns optuna.

Successive halving (Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943; asynchronous: Li et al. 2020,
https://arxiv.org/abs/1810.05934): every trial is screened on few documents, and goes on to more while it is among the
best third of all that came so far. One seed gives one search: where trials are measured anew, or their results read
from disk after a kill, is all the same to it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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

REDUCTION = 3
"""One trial in so many goes on to the next rung."""

POPULATION = 8
"""Of a generation of nsga2."""


@dataclass(frozen=True)
class Settings:
    """How a search goes. trials: in all; batch: asked for at once, to be measured at the same time."""

    trials: int = 24
    sampler: str = "tpe"
    seed: int = 0
    batch: int = 1

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise Refusal(f"tune.sampler={self.sampler}: give one of {', '.join(SAMPLERS)}")
        for name, least in (("trials", 1), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise Refusal(f"tune.{name}={getattr(self, name)}: give at least {least}")

    @property
    def two_aims(self) -> bool:
        return self.sampler == "nsga2"


@dataclass
class Trial:
    """One point that was tried.

    rungs: (documents, mean over them of what is sought to be small), a pair for each rung that it reached.
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


@dataclass(frozen=True)
class Outcome:
    """How a trial did on the documents up to a rung. value: of the mean; a diverged one has its value too."""

    status: str
    value: float | None = None
    cost: float | None = None
    error: str = ""
    cells: tuple[str, ...] = ()


Measure = Callable[[Sequence[Trial], int], list[Outcome]]
"""Measures trials on the documents up to rung n, at once; an outcome a trial."""


def search(
    space: Space, settings: Settings, rungs: Sequence[int], measure: Measure, begin: Sequence[Mapping[str, Any]]
) -> Iterator[Trial]:
    """Every trial as it is settled.

    rungs: documents of each; begin: points that are tried first, dimensions that one lacks being drawn.
    """
    study = _study(settings, begin)
    asked = 0
    while asked < settings.trials:
        count = min(settings.batch, settings.trials - asked)
        pairs = [_ask(study, space) for _ in range(count)]
        asked += count
        if settings.two_aims:
            _weigh(study, pairs, rungs, measure)
        else:
            _climb(study, pairs, rungs, measure)
        yield from (trial for _, trial in pairs)


Asked = tuple[optuna.Trial, Trial]


def _ask(study: optuna.Study, space: Space) -> Asked:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        asked = study.ask(distributions(space))
    values = {one.name: one.rounded(asked.params[one.name]) for one in space.searched}
    return asked, Trial(asked.number, values, space.options(values))


def _climb(study: optuna.Study, pairs: Sequence[Asked], rungs: Sequence[int], measure: Measure) -> None:
    """Measure on ever more documents, and leave behind what is not among the best there."""
    running = list(pairs)
    for rung, documents in enumerate(rungs):
        outcomes = measure([trial for _, trial in running], rung) if running else []
        left = []
        for (asked, trial), outcome in zip(running, outcomes, strict=True):
            _note(trial, outcome, documents)
            if outcome.value is not None:
                asked.report(outcome.value, step=REDUCTION**rung)
            if outcome.status != "ok":
                trial.status = outcome.status
                study.tell(asked, state=TrialState.FAIL if outcome.status == "failed" else TrialState.PRUNED)
            elif rung == len(rungs) - 1:
                trial.status = "complete"
                study.tell(asked, outcome.value)
            elif asked.should_prune():
                trial.status = "pruned"
                study.tell(asked, state=TrialState.PRUNED)
            else:
                left.append((asked, trial))
        running = left


def _weigh(study: optuna.Study, pairs: Sequence[Asked], rungs: Sequence[int], measure: Measure) -> None:
    """Measure two aims at once on one rung: what is best in neither may still be the best of both."""
    rung = min(1, len(rungs) - 1)
    for (asked, trial), outcome in zip(pairs, measure([trial for _, trial in pairs], rung), strict=True):
        _note(trial, outcome, rungs[rung])
        trial.status = "complete" if outcome.status == "ok" else outcome.status
        if outcome.value is None or outcome.cost is None:
            study.tell(asked, state=TrialState.FAIL)
        else:
            study.tell(asked, [outcome.value, outcome.cost])


def _note(trial: Trial, outcome: Outcome, documents: int) -> None:
    if outcome.value is not None:
        trial.rungs.append((documents, outcome.value))
    trial.cost, trial.error = outcome.cost, outcome.error
    trial.cells += [cell for cell in outcome.cells if cell not in trial.cells]


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats in both aims, by value; of trials that were completed."""
    done = [t for t in trials if t.status == "complete" and t.value is not None and t.cost is not None]

    def beaten(one: Trial) -> bool:
        ours = (one.value, one.cost)
        return any(
            (t.value, t.cost) != ours and t.value <= one.value and t.cost <= one.cost  # type: ignore[operator]
            for t in done
        )

    alone = {(t.value, t.cost): t for t in reversed(done) if not beaten(t)}
    return sorted(alone.values(), key=lambda t: (t.value, t.number))


def importances(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """What share of the differences between trials each dimension accounts for, by PED-ANOVA (Watanabe et al. 2023,
    https://arxiv.org/abs/2304.10255) among the best quarter, as screened; empty where there are too few to tell."""
    known = [t for t in trials if t.rungs and math.isfinite(t.rungs[0][1])]
    if len(known) < 8 or len({t.rungs[0][1] for t in known}) < 4 or len(space.searched) < 2:
        return {}
    study = optuna.create_study()
    drawn = distributions(space)
    for trial in known:
        params = {one.name: _inside(one, trial.values[one.name]) for one in space.searched}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=drawn, value=trial.rungs[0][1])
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna knows it."""
    return {one.name: _distribution(one) for one in space.searched}


def _distribution(one: Dimension) -> BaseDistribution:
    if one.choices:
        return CategoricalDistribution(one.choices)
    if one.whole:
        return IntDistribution(int(one.low), int(one.high), log=one.log)
    return FloatDistribution(one.low, one.high, log=one.log)


def _inside(one: Dimension, value: Any) -> Any:
    """A value as its distribution takes it: rounding may have left the range by a hair."""
    return value if one.choices else min(max(value, one.low), one.high)


def _study(settings: Settings, begin: Sequence[Mapping[str, Any]]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            directions=["minimize", "minimize"] if settings.two_aims else ["minimize"],
            sampler=_sampler(settings),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
        )
    for point in begin[: settings.trials]:
        study.enqueue_trial(dict(point), skip_if_exists=True)
    return study


def _sampler(settings: Settings) -> optuna.samplers.BaseSampler:
    if settings.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=settings.seed)
    if settings.sampler == "cmaes":
        return optuna.samplers.CmaEsSampler(
            seed=settings.seed, warn_independent_sampling=False, consider_pruned_trials=True
        )
    return optuna.samplers.TPESampler(
        multivariate=True, n_startup_trials=max(4, settings.trials // 3), seed=settings.seed,
        constant_liar=settings.batch > 1,
    )  # fmt: skip
