"""Values looked up by their keys: in a JSON object (HELMET's recall task), and among keys that are nearly alike.

json: random UUIDs as keys and values, as in Liu et al. 2023 (https://arxiv.org/abs/2307.03172) and HELMET (Yen et al.
2024, https://arxiv.org/abs/2410.02694), which gives two demonstrations. near: sentences about products whose names
differ from the one asked for in one letter or one digit. Both have two demonstrations, which are about other keys of
the same text and count within the length.
"""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.tasks.documents import Encoder
from pipelines.tasks.questions import Question, QuestionTask
from pipelines.tasks.questions import match as measure

__all__ = ["KIND", "measure"]

JSON = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
NEAR = "Each line gives the price of a product. Find the price of the product that is asked for.\n\n"
DEMOS = 2
ROOM = 40
"""Tokens of a generated answer."""

Asked = tuple[str, str]


class Recall(QuestionTask):
    name = "recall"
    asks = ("json", "near")
    options: Mapping[str, Any] = {"ask": "all", "questions": 12, "answer": "loglikelihood"}

    def pose(
        self, ask: str, seed: str, size: int, length: int, options: Mapping[str, Any], encode: Encoder
    ) -> Question:
        """size + 3 keys; the one that is asked for at a random depth, those of the demonstrations anywhere."""
        # The draws for every key come from a stream of their own, so that a longer text has the same ones and more.
        dice, depth = random.Random(seed), random.Random(f"{seed}/depth").random()
        target, *others = (_json if ask == "json" else _near)(dice, size + DEMOS + 1)
        place = round(depth * len(others))
        rows = [*others[:place], target, *others[place:]]
        demos = [others[number] for number in (len(others) // 3, len(others) - 1)][:DEMOS]
        write = _json_prompt if ask == "json" else _near_prompt
        return Question(write(rows, demos, target[0]), (target[1],), room=ROOM, facts=(("depth", place / len(rows)),))


def _json(dice: random.Random, count: int) -> list[Asked]:
    drawn = [str(uuid.UUID(int=dice.getrandbits(128), version=4)) for _ in range(2 * count)]
    return [(key, f'"{value}"') for key, value in zip(drawn[::2], drawn[1::2], strict=True)]


def _json_prompt(rows: Sequence[Asked], demos: Sequence[Asked], key: str) -> str:
    data = ",\n ".join(f'"{name}": {value}' for name, value in rows)
    shown = "".join(f'Key: "{name}"\nCorresponding value: {value}\n\n' for name, value in demos)
    return f'{JSON}{{{data}}}\n\n{shown}Key: "{key}"\nCorresponding value:'


def _near(dice: random.Random, count: int) -> list[Asked]:
    """Products and prices; each name after the first differs from it in one place, later ones in more."""
    letters = [dice.choice(string.ascii_uppercase) for _ in range(4)]
    digits = [dice.choice(string.digits) for _ in range(4)]
    first = f"{''.join(letters)}-{''.join(digits)}"
    names: dict[str, None] = {first: None}
    changes = 1
    while len(names) < count:
        name = list(first)
        for _ in range(changes):
            place = dice.choice([0, 1, 2, 3, 5, 6, 7, 8])
            name[place] = dice.choice(string.ascii_uppercase if place < 4 else string.digits)
        names.setdefault("".join(name))
        changes = min(5, 1 + len(names) // 60)  # there are 136 that differ in one place
    prices = random.Random(f"prices of {first}")  # of their own: more names must not change them
    return [(name, str(prices.randint(10_000, 99_999))) for name in names]


def _near_prompt(rows: Sequence[Asked], demos: Sequence[Asked], key: str) -> str:
    data = "\n".join(f"The product {name} costs {price} crowns." for name, price in rows)
    shown = "".join(f"Question: What does {name} cost?\nAnswer: {price}\n" for name, price in demos)
    return f"{NEAR}{data}\n\n{shown}Question: What does {key} cost?\nAnswer:"


KIND = Recall()
