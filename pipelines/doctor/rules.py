"""What the doctor knows: rules by id, each with what it looks for and where that is told; and what they find."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")

Stage = Literal["static", "numeric", "behaviour", "cliff"]
STAGES: dict[Stage, str] = {
    "static": "the files alone: config, tokenizer settings, GGUF header",
    "numeric": "the model built: what its rotary modules really hold",
    "behaviour": "short forwards",
    "cliff": "long documents: NLL by position",
}
"""In the order in which they run, each dearer than the one before."""

Mend = Callable[[dict[str, Any]], None]
"""Corrects the language model's part of a config in place."""


@dataclass(frozen=True)
class Finding:
    """One thing found.

    symptom: what a user sees of it. measured: name -> the numbers that say so. cause, fix: a sentence each, the fix
    with the exact values to write. id, level and source are the rule's, unless it says otherwise.
    mend: the fix as a correction of the config, where it is mechanical.
    """

    symptom: str
    measured: Mapping[str, Any]
    cause: str
    fix: str
    level: Level | Literal[""] = ""
    source: str = ""
    id: str = ""
    mend: Mend | None = field(default=None, compare=False)

    def plain(self) -> dict[str, Any]:
        """The finding as plain data."""
        names = ("id", "level", "symptom", "measured", "cause", "fix", "source")
        return {name: getattr(self, name) for name in names} | {"mechanical": self.mend is not None}


class NotJudged(Exception):
    """Why a rule cannot say anything of this model."""


@dataclass(frozen=True)
class Rule:
    """judge: what there is to look at in its stage -> what is found, nothing where all is well.

    looks_for: what is wrong where it finds something, for --rules.
    """

    id: str
    stage: Stage
    level: Level
    looks_for: str
    source: str
    judge: Callable[[Any], Iterable[Finding]]


RULES: dict[str, Rule] = {}


def rule(
    id: str, stage: Stage, level: Level, looks_for: str, source: str
) -> Callable[[Callable[[Any], Iterable[Finding]]], Callable[[Any], Iterable[Finding]]]:
    """Enter a function under an id, which no other has."""

    def enter(judge: Callable[[Any], Iterable[Finding]]) -> Callable[[Any], Iterable[Finding]]:
        assert id not in RULES, f"two rules are called {id}"
        RULES[id] = Rule(id, stage, level, looks_for, source, judge)
        return judge

    return enter


@dataclass(frozen=True)
class Verdict:
    """What some rules said.

    silent: ids of those that found nothing. unjudged: id -> why it could not be judged.
    """

    findings: tuple[Finding, ...] = ()
    silent: tuple[str, ...] = ()
    unjudged: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(self.findings + other.findings, self.silent + other.silent, {**self.unjudged, **other.unjudged})

    @property
    def worst(self) -> Level | None:
        return next((level for level in LEVELS if any(found.level == level for found in self.findings)), None)


def asked(stage: Stage, only: Collection[str] | None) -> list[Rule]:
    """The rules of a stage; of those `only` names, by id or by stage, where it names any."""
    return [one for one in RULES.values() if one.stage == stage and (not only or one.id in only or stage in only)]


def judge(stage: Stage, subject: Any, only: Collection[str] | None = None) -> Verdict:
    """Run a stage's rules on what there is to look at. A rule that fails is not judged, and takes no other with it."""
    found: list[Finding] = []
    silent, unjudged = [], {}
    for one in asked(stage, only):
        try:
            told = [
                replace(f, id=one.id, level=f.level or one.level, source=f.source or one.source)
                for f in one.judge(subject)
            ]
        except NotJudged as reason:
            unjudged[one.id] = str(reason)
            continue
        except Exception as error:  # rules read what users' files hold, which nobody foresees: the others still judge
            unjudged[one.id] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            continue
        found += told
        if not told:
            silent.append(one.id)
    return Verdict(tuple(found), tuple(silent), unjudged)


def unjudged(stage: Stage, reason: str, only: Collection[str] | None = None) -> Verdict:
    """A stage whose subject could not be had."""
    return Verdict(unjudged={one.id: reason for one in asked(stage, only)})
