"""The examination, stage by stage: each looks at more, and takes longer, than the one before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipelines.choices.outlook import Outlook, outlooks_of
from pipelines.choices.sweep import PlanChoice
from pipelines.doctor import (
    advice,
    behaviour,
    cliff,
    files,
    keys,
    lineage,
    numeric,
    profile,
    reading,
    rules,
    values,
    verify,
)
from pipelines.doctor.advice import Advice
from pipelines.doctor.files import Files
from pipelines.doctor.numeric import Built
from pipelines.doctor.profile import Profile
from pipelines.doctor.rules import RuleVerdict, Stage
from pipelines.models.find import Unreachable
from pipelines.records.cells import Model, Refusal
from rope.strategies import plans

MEASURING = (reading, keys, values, lineage, numeric, behaviour, cliff)
"""The files that measure for rules; importing one registers its functions."""

FURTHER = 4
"""Times the trained length: the default target."""

DYNAMIC_STAGES: tuple[Stage, ...] = ("numeric", "behaviour", "cliff")
"""Those that run the model."""


@dataclass(frozen=True)
class ExamineRequest:
    """What is to be examined.

    target: tokens wanted. only: rules and stages, () for all. dtype, device: of the model. text: source of the long
    documents. budget: seconds that they may take. strategy, task: what is to be put on the model, and measured with.
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
    """All results. built, profile: None where their stages were not wanted, or could not run.

    outlooks: what theory says of the target, as trained and under YaRN. advice: None where only some rules were wanted.
    """

    request: ExamineRequest
    files: Files
    verdict: RuleVerdict
    target: int | None = None
    built: Built | None = None
    profile: Profile | None = None
    outlooks: tuple[Outlook, ...] = ()
    advice: Advice | None = None

    @property
    def exit_code(self) -> int:
        return 1 if self.verdict.worst == "error" else 0


def examine(
    request: ExamineRequest, say: Callable[[str], None] = lambda message: print(message, file=sys.stderr)
) -> Examination:
    """Read the files, build the model, run it, measure long documents: as far as possible and wanted.

    Raises:
        Refusal: the model is not there.
    """
    only = request.only
    read = files.read(request.model, request.target, request.strategy, request.task)
    static = rules.judge("static", read, only)
    result = Examination(request, read, replace(static, findings=verify.offered(read, static.findings)))
    try:
        trained = read.global_geometry.trained_length
    except ValueError as error:
        reason = f"the config cannot be read: {error}"
        unread = rules.unjudged(DYNAMIC_STAGES, reason, only)
        if {"R01", "R02"} & {finding.id for finding in static.findings}:  # what others found nothing in was nothing
            unread += RuleVerdict(unjudged=dict.fromkeys(static.silent, reason))
            result = replace(result, verdict=RuleVerdict(result.verdict.findings, (), static.unjudged))
        return replace(result, verdict=result.verdict + unread)
    result = replace(result, target=request.target or FURTHER * trained)
    if any(rules.select(stage, only) for stage in DYNAMIC_STAGES):
        result = _run(result)
    if result.built is not None and rules.select("cliff", only):
        result = _read_long(result, result.built, say)
    return result if only else _advise(result, trained)


def _run(result: Examination) -> Examination:
    """With the numeric and behaviour stages."""
    request = result.request
    try:
        built = numeric.build(result.files, request.model, request.dtype, request.device)
    except Refusal as reason:
        others = rules.unjudged(DYNAMIC_STAGES, str(reason), request.only)
        if isinstance(reason, Unreachable) or "W02" not in others.unjudged:
            return replace(result, verdict=result.verdict + others)
        found = rules.judge("numeric", Built(result.files, None, refused=str(reason)), ["W02"])
        unjudged = {rule: "the model cannot be built: W02" for rule in others.unjudged if rule != "W02"}
        return replace(result, verdict=result.verdict + replace(found, unjudged=unjudged))
    verdict = rules.judge("numeric", built, request.only) + rules.judge("behaviour", built, request.only)
    return replace(result, verdict=result.verdict + verdict, built=built)


def _read_long(result: Examination, built: Built, say: Callable[[str], None]) -> Examination:
    """With the cliff stage."""
    from torch import OutOfMemoryError

    request = result.request
    try:
        measured = profile.measure(built, request.model, request.text, result.target, request.budget, say)
    except Refusal as reason:
        message = str(reason)
    except OutOfMemoryError:
        message = f"out of memory on {request.device}; give a smaller target, or cluster=cpu"
    else:
        return replace(result, verdict=result.verdict + rules.judge("cliff", measured, request.only), profile=measured)
    return replace(result, verdict=result.verdict + rules.unjudged(["cliff"], message, request.only))


def _advise(result: Examination, trained: int) -> Examination:
    """With theory and advice, for as far as the model was found to hold."""
    request, geometries, target = result.request, result.files.geometries, result.target or trained
    holds = result.profile.edge if result.profile is not None else trained
    outlooks: list[Outlook] = []
    for strategy in ("none", "yarn") if target > trained and result.files.reach is None else ("none",):
        planned = plans(strategy, geometries, target)
        outlooks += outlooks_of(PlanChoice(request.model, geometries, strategy, (), target, planned))
    advised = advice.advise(result.files, request.model, target, holds, request.dtype, request.device, request.text)
    return replace(result, outlooks=tuple(outlooks), advice=advised)
