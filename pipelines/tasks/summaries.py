"""Long documents: which summary sentence belongs to a section, among hard distractors of the same text.

A section's first sentence stands for its summary, as in the baseline lead-1 of the literature on summaries: reference
texts say there what they are about. Every section is there without it, and the right one is chosen among four. The
three others are those of other sections of this very text, which have the most words in common with the right one.
Two demonstrations are about other sections. pipelines/tasks/summaries_rouge.py has the sentence written instead.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pipelines.tasks import text, wording
from pipelines.tasks.documents import Encoder
from pipelines.tasks.questions import Exhausted, Question, QuestionTask, cost
from pipelines.tasks.questions import choose as measure

__all__ = ["KIND", "Summaries", "measure"]

CHOICES = 4
DEMOS = 2
LEAST = CHOICES + DEMOS
"""Sections of a text, at least."""

SENTENCE = (5, 30)
"""Words of a summary sentence, at least and at most."""

ENOUGH = 50
"""Sections with headings from which on paragraphs are not asked for instead."""

REST = 20
"""Words of a section beside its first sentence, at least."""

WORDS = (2000, 1400, 1000, 700, 500, 350, 250, 180, 130, 90, 65, 45, 33, 24, 18, 12)
"""Of every section that are shown: the most with which the least number of sections takes no more than SHARE of the
length."""
SHARE = 0.6

Summarised = tuple[str, tuple[str, ...]]
"""A section's first sentence, and the words after it."""


class Summaries(QuestionTask):
    name = "summaries"
    asks: tuple[str, ...] = ("sentence",)
    choices = CHOICES
    chance = 1 / CHOICES
    room = 0
    """Tokens of a generated answer; 0: it is chosen."""
    options: Mapping[str, Any] = {"ask": "all", "questions": 12, "text": text.PYDOC}

    def pose(
        self, ask: str, seed: str, size: int, length: int, options: Mapping[str, Any], encode: Encoder
    ) -> Question:
        source = str(options["text"])
        shown = _shown(seed, length, source, text.digest(source), encode, self.room)
        return _question(seed, size, source, shown, self.room)


@lru_cache(maxsize=64)
def _shown(seed: str, length: int, source: str, digest: str, encode: Encoder, room: int) -> int:
    def least(words: int) -> int:
        return cost(_question(seed, 0, source, words, room), encode, room > 0)

    return next((words for words in WORDS if least(words) <= SHARE * length), WORDS[-1])


def _question(seed: str, size: int, source: str, shown: int, room: int) -> Question:
    book, dice = summarised(source), random.Random(seed)
    if len(book) < LEAST + size:
        raise Exhausted(f"text {source} has {len(book)} sections with a first sentence of {SENTENCE[0]} words or more")
    asked, *others = (book[number] for number in dice.sample(range(len(book)), len(book)))
    place = round(dice.random() * (LEAST + size - 1))
    rows = [*others[:place], asked, *others[place : LEAST + size - 1]]
    rest = [number for number in range(len(rows)) if number != place]
    demos = dice.sample(rest, DEMOS)  # whose sentences could be ruled out, and are no choices
    near = sorted((number for number in rest if number not in demos), key=lambda n: -_shared(rows[n][0], asked[0]))
    choices = [asked[0], *(rows[number][0] for number in near[: CHOICES - 1])]
    dice.shuffle(choices)
    body = "\n\n".join(f"Section {number + 1}:\n{' '.join(words[:shown])}" for number, (_, words) in enumerate(rows))
    known = "".join(f"Summary of section {number + 1}: {rows[number][0]}\n" for number in sorted(demos))
    prompt = (
        f"These are sections of a book without their summaries.\n\n{body}\n\n{known}Summary of section {place + 1}:"
    )
    facts = (("depth", place / len(rows)), ("sections", len(rows)))
    if room:
        return Question(prompt, (asked[0],), room=room, facts=facts)
    return Question(prompt, tuple(choices), choices.index(asked[0]), facts=facts)


def _shared(first: str, second: str) -> float:
    """The share of their words that two sentences have in common (Jaccard)."""
    a, b = ({*re.findall(r"\w+", each.lower())} for each in (first, second))
    return len(a & b) / max(1, len(a | b))


def summarised(source: str) -> Sequence[Summarised]:
    """The sections of a source, or the paragraphs of one that has too few, each as its first sentence and the rest."""
    return _summarised(source, text.digest(source))


@lru_cache(maxsize=4)
def _summarised(source: str, digest: str) -> tuple[Summarised, ...]:
    found = _first_sentences([" ".join(section.words) for section in wording.sections(source)])
    return found if len(found) >= ENOUGH else max(found, _first_sentences(wording.paragraphs(source)), key=len)


def _first_sentences(sections: Sequence[str]) -> tuple[Summarised, ...]:
    found: dict[str, tuple[str, ...]] = {}
    for section in sections:
        first, *rest = wording.sentences(section)
        words = tuple(" ".join(rest).split())
        if SENTENCE[0] <= len(first.split()) <= SENTENCE[1] and first[0].isupper() and len(words) >= REST:
            found.setdefault(first, words)
    return tuple(found.items())


KIND = Summaries()
