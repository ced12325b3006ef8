"""Rules about long documents: where the model breaks, how, whether far context helps, what its scaling costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipelines.doctor.profile import Bucket, Profile, buckets, first_broken
from pipelines.doctor.rules import Finding, NotJudged, rule
from pipelines.report import statistics

EXPLOSION = 2.0
"""Nats by which NLL may exceed the reference's (perplexity 7.4 times) before a slow rise is called a divergence."""

EARLY = 0.9
"""Share of the declared length; a cliff before it means that the declaration is wrong."""

WORTH = 0.02
"""Nats: context helps that may gain as much."""

HARM = 0.005
"""Nats that a scaling must cost at least."""


def manner(profile: Profile, cliff: Bucket) -> tuple[str, float | None]:
    """How it breaks, "degrades" or "diverges"; and the excess where it was last measured, None where not finite."""
    told = [one for one in buckets(profile) if one.start >= cliff.start]
    if any(not math.isfinite(one.nll) for one in told) or not np.isfinite(profile.nll[:, 1:]).any():
        return "diverges", None
    last = [one.excess for one in told if one.excess is not None][-1]
    beyond = any(one.nll >= math.log(profile.vocabulary) for one in told)
    return ("diverges" if beyond or last >= EXPLOSION else "degrades"), last


@rule(
    "F04", "cliff", "warning", "a length at which the model breaks",
    "unsloth#7028; paired differences over the same tokens, interval of Yuen (1974, doi 10.1093/biomet/61.1.165)",
)  # fmt: skip
def cliff(profile: Profile) -> Iterator[Finding]:
    found, broken = buckets(profile), first_broken(profile)
    if broken is None:
        return
    how, last = manner(profile, broken)
    target = profile.files.target
    early = broken.start < EARLY * profile.trained
    far = max(one.end for one in found if one.excess is not None)
    yield Finding(
        level="error" if early else "info" if target is not None and target <= broken.start else "",
        symptom=f"it {how} from {broken.start:,} tokens on",
        measured={
            "first bucket worse than within the trained length": f"{broken.start:,} to {broken.end:,}",
            "by (nats a token, 95 %)": (broken.excess, broken.low, broken.high),
            "declared": profile.trained, "off by": f"{broken.start / profile.trained - 1:+.1%}",
            **({f"at {far:,} by": last} if last is not None and far > broken.end else {}),
            **({"not finite within": profile.length} if last is None else {}),
            "documents": len(profile.nll), "text": profile.text,
        },
        cause="the config declares more than the model was trained for, or a scaling that is not in force"
        if early
        else "beyond the trained length slow pairs take angles never seen in training",
        fix=f"model.trained_length={broken.start} and a strategy from there on; but first look at N01 and S10"
        if early
        else "a strategy: see the advice below. Perplexity alone does not show what is found far back, and wikitext "
        "word perplexity shows nothing at all: its documents end before any cliff; add task=passkey",
    )  # fmt: skip


@rule(
    "F05", "cliff", "info", "far context that does not help",
    "arXiv 2410.23771: perplexity averages over tokens that nearby text predicts",
)  # fmt: skip
def far_context(profile: Profile) -> Iterator[Finding]:
    gains = context_gains(profile)
    if not gains:
        raise NotJudged("the model is too short for several lengths of context")
    if gains[-1].high is None or gains[-1].high > WORTH:
        return
    helps = [one.context for one in gains if one.low is not None and one.low > 0]
    yield Finding(
        symptom="flat perplexity that says nothing about retrieval",
        measured={f"gain from {one.context // 2:,} to {one.context:,} tokens": one.nats for one in gains}
        | {"at most": gains[-1].high}
        | {"helps up to": max(helps, default=0)},
        cause="on this text the model takes nothing measurable from the first half of its context",
        fix="judge strategies by task=passkey and RULER as well, or give text with far references (task.text=...)",
    )


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


@rule(
    "F06", "cliff", "warning", "a declared scaling that costs on short texts",
    "vllm#18728 (users: 15 to 20 %), sglang#6030, nanochat#376",
)  # fmt: skip
def short_cost(profile: Profile) -> Iterator[Finding]:
    if profile.scaled is None or len(profile.scaled) < 3:
        raise NotJudged("no scaling is declared")
    mean, low, high = statistics.trimmed(profile.scaled)
    if low > HARM:
        yield Finding(
            symptom="short prompts are worse than they need be",
            measured={
                "NLL with the scaling minus without (nats a token, 95 %)": (mean, low, high),
                "perplexity": f"{math.expm1(mean):+.1%}", "tokens": "the first of each document",
            },
            cause="a static scaling changes every length, also those that need none",
            fix="serve short prompts from the unscaled model, take a smaller factor, or a dynamic strategy (without a "
            "cache); a checkpoint that was fine-tuned under the scaling must keep it",
        )  # fmt: skip


@rule(
    "F08", "cliff", "error", "predictions no better than chance within the trained length",
    "hf#45902, torchtitan#3775: uninitialised buffers; DeepSpeed#8341: a base that was not read",
)  # fmt: skip
def by_chance(profile: Profile) -> Iterator[Finding]:
    inside = profile.nll[:, 1 : profile.trained]
    chance = math.log(profile.vocabulary)
    nll = float(np.nanmean(inside)) if np.isfinite(inside).any() else math.nan
    if not nll < 0.9 * chance:
        yield Finding(
            symptom="nonsense at every length",
            measured={"NLL (nats a token)": nll, "chance": chance, "tokens": profile.trained},
            cause="weights or frequencies that are not those of a trained model; or text in another encoding",
            fix="look at N01 and N03 first; random weights are of use for speed and memory only",
        )
