"""Many-shot in-context learning: a word's kind by examples that fill the length, under labels drawn anew.

Words of four everyday kinds are each followed by the label of their kind; the labels are drawn for every question, so
that the mapping must be read from the examples. The word that is asked for is in none of them. How many examples fill
the length is a fact of every document; over lengths, accuracy by number of examples. As in Agarwal et al. 2024
(https://arxiv.org/abs/2404.11018), where labels are flipped.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from pipelines.tasks.documents import Encoder
from pipelines.tasks.questions import Question, QuestionTask
from pipelines.tasks.questions import choose as measure

__all__ = ["KIND", "measure"]

KINDS: Mapping[str, tuple[str, ...]] = {
    "animals": (
        *("dog", "cat", "horse", "cow", "sheep", "goat", "pig", "wolf", "bear", "fox"),
        *("lion", "tiger", "mouse", "rat", "rabbit", "deer", "eagle", "owl", "duck", "goose"),
        *("hen", "snake", "frog", "fish", "shark", "whale", "seal", "monkey", "camel", "donkey"),
    ),
    "food": (
        *("bread", "butter", "cheese", "milk", "honey", "sugar", "salt", "rice", "soup", "cake"),
        *("apple", "pear", "plum", "cherry", "lemon", "orange", "onion", "carrot", "potato", "bean"),
        *("pea", "corn", "egg", "meat", "ham", "tea", "coffee", "wine", "beer", "juice"),
    ),
    "places": (
        *("Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Moscow", "Cairo", "Tokyo", "Delhi"),
        *("Lima", "Oslo", "Dublin", "Athens", "Boston", "Chicago", "Texas", "Egypt", "France", "Spain"),
        *("Italy", "Greece", "China", "India", "Japan", "Brazil", "Canada", "Mexico", "Kenya", "Peru"),
    ),
    "numbers": (
        *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        *(
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        ),
        *("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "million"),
    ),
}
LABELS = ("red", "blue", "green", "black", "white", "pink", "brown", "grey", "gold", "silver")
LEAST = 8
"""Examples, at least: two of every kind."""


class ManyShot(QuestionTask):
    name = "many_shot"
    asks = ("kind",)
    choices = len(KINDS)
    chance = 1 / choices
    options: Mapping[str, Any] = {"ask": "all", "questions": 16}

    def pose(
        self, ask: str, seed: str, size: int, length: int, options: Mapping[str, Any], encode: Encoder
    ) -> Question:
        dice = random.Random(seed)
        labels = dict(zip(KINDS, dice.sample(LABELS, len(KINDS)), strict=True))
        kind = dice.choice(list(KINDS))
        word = dice.choice(KINDS[kind])
        examples: list[str] = []
        while len(examples) < LEAST + size:
            # A round has every kind twice, so that no label is more frequent than another.
            block = [(each, name) for each in KINDS for name in _others(dice, KINDS[each], word)]
            dice.shuffle(block)
            examples += [f"{name} -> {labels[each]}" for each, name in block]
        shown = examples[: LEAST + size]
        choices = sorted(labels.values())
        prompt = "\n".join([*shown, f"{word} ->"])
        return Question(prompt, tuple(choices), choices.index(labels[kind]), facts=(("examples", len(shown)),))


def _others(dice: random.Random, words: tuple[str, ...], word: str) -> list[str]:
    return dice.sample([each for each in words if each != word], 2)


KIND = ManyShot()
