"""The examination, stage by stage: each looks at more, and takes longer, than the one before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from pipelines.choices.outlook import Outlook, outlooks_of
from pipelines.choices.sweep import Planned
from pipelines.doctor import advice, files, numeric, profile, rules
from pipelines.doctor.advice import Advice
from pipelines.doctor.files import Files
from pipelines.doctor.numeric import Built
from pipelines.doctor.profile import Profile
from pipelines.doctor.rules import Stage, Verdict
from pipelines.records.cells import Model, Refusal
from rope.strategies import plans

FURTHER = 4
"""Times the trained length: the target where none is given."""


@dataclass(frozen=True)
class Order:
    """What is to be examined.

    target: tokens wanted. only: rules and stages, () for all. dtype, device: of the model. text: source of the long
    documents. budget: seconds that they may take. strategy, task: that are to be put on it, and measured with.
    """

    model: Model
    target: int | None = None
    only: tuple[str, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"
    text: str = "pydoc"
    budget: float = profile.BUDGET
    strategy: str = "none"
    task: str = "perplexity"


@dataclass(frozen=True)
class Examination:
    """All that was found. built, profile: None where their stages were not asked for, or could not be.

    outlooks: what theory says of the target, as trained and under YaRN. advice: None where only some rules were asked.
    """

    order: Order
    files: Files
    verdict: Verdict
    target: int | None = None
    built: Built | None = None
    profile: Profile | None = None
    outlooks: tuple[Outlook, ...] = field(default=())
    advice: Advice | None = None

    @property
    def exit_code(self) -> int:
        return 1 if self.verdict.worst == "error" else 0


def examine(order: Order, say: Callable[[str], None] = lambda words: print(words, file=sys.stderr)) -> Examination:
    """Look at the files, build the model, run it, measure long documents: as far as it goes and was asked for.

    Raises:
        Refusal: the model is not there.
    """
    seen = files.of(order.model, target=order.target, strategy=order.strategy, task=order.task)
    verdict = rules.judge("static", seen, order.only)
    try:
        trained = seen.global_geometry.trained_length
    except ValueError as error:
        reason = f"the config cannot be read: {error}"
        return Examination(order, seen, verdict + _left(["numeric", "behaviour", "cliff"], reason, order.only))
    target = order.target or FURTHER * trained
    built, long = None, None
    if _wanted(["numeric", "behaviour", "cliff"], order.only):
        try:
            built = numeric.build(seen, order.model, order.dtype, order.device)
            verdict += rules.judge("numeric", built, order.only) + rules.judge("behaviour", built, order.only)
        except Refusal as reason:
            verdict += _left(["numeric", "behaviour", "cliff"], str(reason), order.only)
    if built is not None and _wanted(["cliff"], order.only):
        long, told = _long(built, order, target, say)
        verdict += told
    found = Examination(order, seen, verdict, target, built, long)
    return found if order.only else _advised(found, trained)


def _wanted(stages: Collection[Stage], only: Collection[str]) -> bool:
    return any(rules.asked(stage, only) for stage in stages)


def _left(stages: Collection[Stage], reason: str, only: Collection[str]) -> Verdict:
    verdict = Verdict()
    for stage in stages:
        verdict += rules.unjudged(stage, reason, only)
    return verdict


def _long(built: Built, order: Order, target: int, say: Callable[[str], None]) -> tuple[Profile | None, Verdict]:
    from torch import OutOfMemoryError

    try:
        found = profile.measure(built, order.model, order.text, target, order.budget, say)
    except Refusal as reason:
        return None, rules.unjudged("cliff", str(reason), order.only)
    except OutOfMemoryError:
        short = f"out of memory on {order.device}; give a smaller target, or cluster=cpu"
        return None, rules.unjudged("cliff", short, order.only)
    return found, rules.judge("cliff", found, order.only)


def _advised(found: Examination, trained: int) -> Examination:
    """The same with theory and advice, for as far as the model was found to hold."""
    order, seen, target = found.order, found.files, found.target or trained
    holds = found.profile.edge if found.profile is not None else trained
    outlooks: list[Any] = []
    for strategy in ("none", "yarn") if target > trained else ("none",):
        planned = plans(strategy, seen.geometries, target)
        outlooks += outlooks_of(Planned(order.model, seen.geometries, strategy, (), target, planned))
    told = advice.of(
        seen, order.model, target, holds, order.dtype, order.device, advice.word_of(order.model), order.text
    )
    return Examination(order, seen, found.verdict, target, found.built, found.profile, tuple(outlooks), told)
