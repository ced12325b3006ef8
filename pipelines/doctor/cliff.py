"""Rules about long documents: where the model breaks, how, whether far context helps, what its scaling costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipelines.doctor.profile import CHANCE, WORTH, Bucket, Profile, buckets, first_broken
from pipelines.doctor.rules import NotJudged, RuleMatch, measures
from pipelines.report import statistics

EXPLOSION = 2.0
"""Nats by which NLL may exceed the reference's (perplexity 7.4 times) before a slow rise is called a divergence."""

BEFORE = 0.9
"""Share of the declared length; a break before it means that the declaration is wrong."""

HARM = 0.005
"""Nats that a scaling must cost at least."""


def manner(profile: Profile, first: Bucket) -> tuple[str, float | None]:
    """How it breaks, "degrades" or "diverges"; and the excess where it was last measured, None where not finite."""
    broken = [bucket for bucket in buckets(profile) if bucket.start >= first.start]
    if any(not math.isfinite(bucket.nll) for bucket in broken) or not np.isfinite(profile.nll[:, 1:]).any():
        return "diverges", None
    last = [bucket.excess for bucket in broken if bucket.excess is not None][-1]
    beyond = any(bucket.nll >= math.log(profile.vocabulary) for bucket in broken)
    return ("diverges" if beyond or last >= EXPLOSION else "degrades"), last


@measures("F04")
def cliff(profile: Profile) -> Iterator[RuleMatch]:
    first = first_broken(profile)
    if first is None:
        return
    how, last = manner(profile, first)
    far = max(bucket.end for bucket in buckets(profile) if bucket.excess is not None)
    target = profile.files.target
    measured = {
        "first bucket worse than within the trained length": f"{first.start:,} to {first.end:,}",
        "by (nats a token, 95 %)": (first.excess, first.low, first.high),
        "declared": profile.trained,
        "off by": f"{first.start / profile.trained - 1:+.1%}",
        **({f"at {far:,} by": last} if last is not None and far > first.end else {}),
        **({"not finite within": profile.length} if last is None else {}),
        "documents": len(profile.nll),
        "text": profile.text,
    }
    case = "beyond_target" if target is not None and target <= first.start else ""
    case = "before_declared" if first.start < BEFORE * profile.trained else case
    yield RuleMatch(measured, case, {"how": how, "start": first.start})


@measures("F05")
def far_context(profile: Profile) -> Iterator[RuleMatch]:
    gains = context_gains(profile)
    if not gains:
        raise NotJudged("the model is too short for several lengths of context")
    if gains[-1].high is not None and gains[-1].high <= WORTH:
        measured = {f"gain from {gain.context // 2:,} to {gain.context:,} tokens": gain.nats for gain in gains}
        helpful = [gain.context for gain in gains if gain.low is not None and gain.low > 0]
        yield RuleMatch({**measured, "at most": gains[-1].high, "helps up to": max(helpful, default=0)})


@dataclass(frozen=True)
class Gain:
    """What `context` tokens gain over half as many, in nats a token, with the 95 % interval."""

    context: int
    nats: float
    low: float | None = None
    high: float | None = None


def context_gains(profile: Profile) -> list[Gain]:
    """What ever more context gains, ascending."""
    gains = []
    for less, more in pairwise(sorted(profile.context)):
        difference = profile.context[less] - profile.context[more]
        if len(difference) > 2:
            gains.append(Gain(more, *statistics.trimmed(difference)))
        elif len(difference):
            gains.append(Gain(more, float(difference.mean())))
    return gains


@measures("F06")
def short_cost(profile: Profile) -> Iterator[RuleMatch]:
    if profile.scaled is None or len(profile.scaled) < 3:
        raise NotJudged("no scaling is declared")
    mean, low, high = statistics.trimmed(profile.scaled)
    if low > HARM:
        measured = {
            "NLL with the scaling minus without (nats a token, 95 %)": (mean, low, high),
            "perplexity": f"{math.expm1(mean):+.1%}",
            "tokens": "the first of each document",
        }
        yield RuleMatch(measured)


@measures("F08")
def by_chance(profile: Profile) -> Iterator[RuleMatch]:
    inside = profile.nll[:, 1 : profile.trained]
    chance = math.log(profile.vocabulary)
    nll = float(np.nanmean(inside)) if np.isfinite(inside).any() else math.nan
    if not nll < CHANCE * chance:
        yield RuleMatch({"NLL (nats a token)": nll, "chance": chance, "tokens": profile.trained})
