"""The doctor's rules: what they say (rules.yaml), the functions that measure for them, and what they find."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml  # type: ignore[import-untyped]

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")

Stage = Literal["static", "numeric", "behaviour", "cliff"]
STAGES: dict[Stage, str] = {
    "static": "the files alone: config, tokenizer settings, GGUF header",
    "numeric": "the built model: what its rotary modules really hold",
    "behaviour": "short forwards",
    "cliff": "long documents: NLL by position",
}
"""In the order in which they run, each more expensive than the one before."""


@dataclass(frozen=True)
class Correction:
    """A mechanical fix, and what it promises.

    change: corrects the language model's part of a config in place. layers, promised: rope parameters that layers of
    this type have afterwards; every layer type for "". keeps: whether it leaves all frequencies as they are.
    """

    change: Callable[[dict[str, Any]], None]
    layers: str = ""
    promised: Mapping[str, Any] = field(default_factory=dict)
    keeps: bool = False


@dataclass(frozen=True)
class RuleMatch:
    """What a rule measured where it applies.

    measured: name -> the numbers to show; they also fill the rule's templates. case: one of the rule's cases, "" for
    none. values: further numbers for the templates. correction: the fix, where it is mechanical.
    """

    measured: Mapping[str, Any]
    case: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    correction: Correction | None = None


@dataclass(frozen=True)
class RuleFinding:
    """A rule that applies, in full. Texts as in rules.yaml, with their numbers filled in.

    correction: the fix, where it is mechanical. withheld: why it is not offered although there is one.
    """

    id: str
    level: Level
    symptom: str
    measured: Mapping[str, Any]
    cause: str
    fix: str
    source: str
    correction: Correction | None = field(default=None, compare=False)
    withheld: str = ""

    def plain(self) -> dict[str, Any]:
        """The finding as plain data."""
        names = ("id", "level", "symptom", "measured", "cause", "fix", "source")
        plain = {name: getattr(self, name) for name in names} | {"mechanical": self.correction is not None}
        return plain | ({"withheld": self.withheld} if self.withheld else {})


@dataclass(frozen=True)
class Rule:
    """An entry of rules.yaml; its fields are explained there."""

    id: str
    stage: Stage
    level: Level
    title: str
    source: str
    symptom: str = ""
    cause: str = ""
    fix: str = ""
    cases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def finding(self, match: RuleMatch) -> RuleFinding:
        """The rule's texts for what was measured. KeyError for a case or a number that is not there."""
        case = self.cases[match.case] if match.case else {}
        values = {**match.measured, **match.values}
        symptom, cause, fix, source = (
            case.get(name, getattr(self, name)).format_map(values) for name in ("symptom", "cause", "fix", "source")
        )
        level = cast(Level, case.get("level", self.level))
        return RuleFinding(self.id, level, symptom, match.measured, cause, fix, source, match.correction)


class NotJudged(Exception):
    """Why a rule cannot say anything about this model."""


Measure = Callable[[Any], Iterable[RuleMatch]]
"""What a stage looks at (Files, Built, Profile) -> where the rule applies; nothing where all is well."""

_TEXTS = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text(encoding="utf-8"))
RULES: dict[str, Rule] = {id: Rule(id, stage, **texts) for stage in STAGES for id, texts in _TEXTS[stage].items()}
MEASURES: dict[str, Measure] = {}


def measures(id: str) -> Callable[[Measure], Measure]:
    """Register the function that measures for a rule."""

    def register(measure: Measure) -> Measure:
        assert id in RULES and id not in MEASURES, f"{id} is not in rules.yaml, or is measured twice"
        MEASURES[id] = measure
        return measure

    return register


@dataclass(frozen=True)
class RuleVerdict:
    """What some rules found. silent: ids of those that found nothing. unjudged: id -> why it could not be judged."""

    findings: tuple[RuleFinding, ...] = ()
    silent: tuple[str, ...] = ()
    unjudged: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: RuleVerdict) -> RuleVerdict:
        return RuleVerdict(
            self.findings + other.findings, self.silent + other.silent, {**self.unjudged, **other.unjudged}
        )

    @property
    def worst(self) -> Level | None:
        return next((level for level in LEVELS if any(finding.level == level for finding in self.findings)), None)


def select(stage: Stage, only: Collection[str] = ()) -> list[Rule]:
    """The rules of a stage; if `only` names any, by id or by stage, those."""
    return [rule for rule in RULES.values() if rule.stage == stage and (not only or rule.id in only or stage in only)]


def judge(stage: Stage, subject: Any, only: Collection[str] = ()) -> RuleVerdict:
    """Run a stage's rules on what it looks at. A rule that fails is not judged; the others still are."""
    verdict = RuleVerdict()
    for rule in select(stage, only):
        try:
            findings = tuple(rule.finding(match) for match in MEASURES[rule.id](subject))
            verdict += RuleVerdict(findings, () if findings else (rule.id,))
        except NotJudged as reason:
            verdict += RuleVerdict(unjudged={rule.id: str(reason)})
        except Exception as error:  # rules read what users' files hold, which nobody can foresee
            message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            verdict += RuleVerdict(unjudged={rule.id: message})
    return verdict


def unjudged(stages: Iterable[Stage], reason: str, only: Collection[str] = ()) -> RuleVerdict:
    """Stages that have nothing to look at."""
    return RuleVerdict(unjudged={rule.id: reason for stage in stages for rule in select(stage, only)})
