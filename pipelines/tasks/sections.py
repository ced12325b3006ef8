"""Long documents: which heading fits a section, and which section comes next, among others of the same book.

heading: every section but its heading is there, and the right one is chosen among the headings of four sections of this
very text. order: headings and sections are there, and the heading that follows a given one is chosen. Sections come in
an order drawn anew, so that neither is known without reading. Two demonstrations are about other sections of the text.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipelines.tasks import text, wording
from pipelines.tasks.documents import Encoder
from pipelines.tasks.questions import Exhausted, Question, QuestionTask, cost
from pipelines.tasks.questions import choose as measure

__all__ = ["KIND", "measure"]

CHOICES = 4
DEMOS = 2
LEAST = CHOICES + DEMOS + 2
"""Sections of a text, at least: those that can be chosen, those of the demonstrations, and the two before each."""

WORDS = (2000, 1400, 1000, 700, 500, 350, 250, 180, 130, 90, 65, 45, 33, 24, 18, 12, 8, 6)
"""Of every section that are shown: the most with which the least number of sections takes no more than SHARE of the
length, so that a long text has more sections and a short one has them shorter."""
SHARE = 0.6


class Sections(QuestionTask):
    name = "sections"
    asks = ("heading", "order")
    choices = CHOICES
    chance = 1 / choices
    options: Mapping[str, Any] = {"ask": "all", "questions": 8, "text": text.PYDOC}

    def pose(
        self, ask: str, seed: str, size: int, length: int, options: Mapping[str, Any], encode: Encoder
    ) -> Question:
        source = str(options["text"])
        shown = _shown(ask, seed, length, source, text.digest(source), encode)
        return _question(ask, seed, size, source, shown)


@lru_cache(maxsize=64)
def _shown(ask: str, seed: str, length: int, source: str, digest: str, encode: Encoder) -> int:
    fits = (words for words in WORDS if cost(_question(ask, seed, 0, source, words), encode, False) <= SHARE * length)
    return next(fits, WORDS[-1])


def _question(ask: str, seed: str, size: int, source: str, shown: int) -> Question:
    book, dice = wording.sections(source), random.Random(seed)
    if len(book) < LEAST + size:
        raise Exhausted(f"text {source} has {len(book)} sections with headings of their own")
    asked, *others = (book[number] for number in dice.sample(range(len(book)), len(book)))
    place = 1 + round(dice.random() * (LEAST + size - 2))
    rows = [*others[:place], asked, *others[place : LEAST + size - 1]]
    # Neither the answers of demonstrations nor the section before are choices: they could be ruled out.
    rest = [number for number in range(1, len(rows)) if number not in (place - 1, place)]
    free = dice.sample(rest, CHOICES - 1 + DEMOS)
    wrong, demos = [rows[number] for number in free[DEMOS:]], sorted(free[:DEMOS])
    choices = [asked.heading, *(row.heading for row in wrong)]
    dice.shuffle(choices)
    return Question(
        (_headings if ask == "heading" else _order)(rows, shown, demos, place),
        tuple(choices),
        choices.index(asked.heading),
        facts=(("depth", place / len(rows)), ("sections", len(rows))),
    )


def _headings(rows: list[wording.Section], shown: int, demos: list[int], place: int) -> str:
    body = "\n\n".join(f"Section {number + 1}:\n{' '.join(row.words[:shown])}" for number, row in enumerate(rows))
    asked = "".join(f"The heading of section {number + 1} is: {rows[number].heading}\n" for number in demos)
    question = f"{asked}The heading of section {place + 1} is:"
    return f"These are sections of a book without their headings.\n\n{body}\n\n{question}"


def _order(rows: list[wording.Section], shown: int, demos: list[int], place: int) -> str:
    body = "\n\n".join(f"{row.heading}\n{' '.join(row.words[:shown])}" for row in rows)

    def line(number: int) -> str:
        return f'After the section "{rows[number - 1].heading}" comes the section:'

    asked = "".join(f"{line(number)} {rows[number].heading}\n" for number in demos)
    return f"These are sections of a book, each below its heading.\n\n{body}\n\n{asked}{line(place)}"


KIND = Sections()
