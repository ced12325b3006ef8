"""Keys and values of generated documents: numbers, hexadecimal strings, UUIDs, words, pairs of words and codes."""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable, Sequence

Key = Callable[[random.Random, Sequence[str]], str]
"""Draws one; words: plain ones."""


def number_key(dice: random.Random, words: Sequence[str]) -> str:
    digits = dice.choice((2, 3, 4, 5, 5, 6, 7, 7, 8))
    return str(dice.randrange(10 ** (digits - 1), 10**digits))


def hex_key(dice: random.Random, words: Sequence[str]) -> str:
    return f"{dice.getrandbits(64):016x}"[: dice.randint(6, 14)]


def uuid_key(dice: random.Random, words: Sequence[str]) -> str:
    return str(uuid.UUID(int=dice.getrandbits(128), version=4))


def word_key(dice: random.Random, words: Sequence[str]) -> str:
    return dice.choice(words)


def pair_key(dice: random.Random, words: Sequence[str]) -> str:
    return f"{dice.choice(words)}{dice.choice('-_ ')}{dice.choice(words)}"


def code_key(dice: random.Random, words: Sequence[str]) -> str:
    letters = "".join(dice.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=dice.randint(2, 5)))
    return f"{letters}{dice.choice('-/')}{dice.randrange(100, 10_000)}"


_ALPHABETS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
KEYS: Sequence[Key] = (number_key, hex_key, uuid_key, word_key, pair_key, code_key)


def alike(dice: random.Random, words: Sequence[str], count: int) -> list[str]:
    """Keys of one kind that differ from the first in a single letter or digit."""
    first = dice.choice((number_key, hex_key, uuid_key, pair_key, code_key, code_key, code_key))(dice, words)
    places = [place for place, letter in enumerate(first) if letter.isalnum()]
    made = [first]
    for _ in range(count - 1):
        place = dice.choice(places)
        letters = next(each for each in _ALPHABETS if first[place] in each)
        made.append(f"{first[:place]}{dice.choice(letters)}{first[place + 1 :]}")
    return dice.sample(made, count)
