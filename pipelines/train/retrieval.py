"""Generated documents that teach a model to retrieve: a pass key in filler, and numbers by name.

Made of token ids piece by piece, not of text: every piece ends where a byte-level tokenizer that keeps digits apart
splits anyway, so the ids are those of the whole text, at a hundredth of the cost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import cycle, islice

import numpy as np
import numpy.typing as npt

from pipelines.records.cells import Refusal
from pipelines.tasks import passkey

Ids = npt.NDArray[np.int32]
"""(tokens,) token ids."""

Weights = npt.NDArray[np.uint8]
"""(tokens,) what predicting each token counts in the loss: 1; 0 for numbers that nobody could guess."""

TASK = f"{passkey.TASK}\n"
FILLER, QUESTION = passkey.FILLER, passkey.QUESTION
# Taken apart around the key; the space before a number is the number's own.
NEEDLE = tuple(piece.removesuffix(" ") for piece in f"{passkey.NEEDLE}\n".split("{key}"))

LIST = "Here are the numbers of some things. Remember them.\n"
ADJECTIVES = "red blue green white black brown small large old new cold warm round flat soft hard"
NOUNS = """
    apple river stone table window garden letter bottle castle bridge forest island mirror candle basket hammer ladder
    needle pencil ribbon saddle ticket tunnel turtle valley violin wagon winter anchor button camera engine
"""
COLOURS, THINGS = ADJECTIVES.split(), NOUNS.split()
NAMES = len(COLOURS) * len(THINGS)

MOST_PAIRS = 64
"""Numbers in one list, at most."""

LONGEST_SPACE = 512
"""Tokens of other text, at most, between a list of numbers and the questions about it."""


class Retrieval:
    """Writes documents in the ids of one tokenizer.

    encode: text -> ids, without special tokens; every digit must be a token of its own.
    emphasis: weight of the digits of an answer, 1 to 255; all else that can be predicted weighs 1.

    Raises:
        Refusal: the tokenizer joins digits, or digits and letters.
    """

    def __init__(self, encode: Callable[[str], list[int]], emphasis: int) -> None:
        if not 1 <= emphasis <= 255:
            raise Refusal(f"answer_weight={emphasis}: give a whole number from 1 to 255")
        self.encode, self.emphasis = encode, emphasis
        self.digits = [encode(f" {digit}")[-1] for digit in range(10)]
        self.space = encode(" 0")[:-1]
        self.pieces: dict[str, list[int]] = {}
        self._costs: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        draft = _Draft(self)
        draft.text(QUESTION)
        draft.number(90417, 1)
        if draft.written != encode(f"{QUESTION} 90417"):
            raise Refusal(
                "generated documents need a tokenizer in which every digit is a token, and this one joins digits: "
                "give share=0 to train on text alone"
            )

    @cached_property
    def least(self) -> int:
        """Tokens of the shortest document that always has room."""
        return max(self._passkey_cost, self._head_cost + self._line_cost + self._question_cost)

    def passkey(self, rng: np.random.Generator, size: int) -> tuple[Ids, Weights]:
        """A passkey document of at most `size` tokens, with as many words of filler as fit, the key anywhere in them.

        Returns:
            (tokens,) ids and weights; the answer is the last five tokens.
        """
        room, costs = size - self._passkey_cost, self._filler_costs(size)
        before = int(rng.integers(0, _most(costs, room) + 1))
        after, key = _most(costs, room - int(costs[before])), _number(rng)
        draft = _Draft(self)
        draft.text(TASK)
        draft.ids(self._filler(before))
        draft.text("\n")
        draft.text(NEEDLE[0])
        draft.number(key, 0)
        draft.text(NEEDLE[1])
        draft.number(key, 1)
        draft.text(NEEDLE[2])
        draft.ids(self._filler(after))
        draft.text("\n")
        draft.text(QUESTION)
        draft.number(key, self.emphasis)
        return draft.done()

    def numbers(self, rng: np.random.Generator, size: int, other: Ids) -> tuple[Ids, Weights]:
        """Named numbers, other text, and questions for some of them: at most `size` tokens.

        other: ids of any text, of which as many stand between numbers and questions as there is room for.
        """
        line, question, room = self._line_cost, self._question_cost, size - self._head_cost
        pairs = int(rng.integers(1, min(room // (line + question), MOST_PAIRS) + 1))
        questions = min(pairs, (room - pairs * line) // question)
        names = rng.choice(NAMES, size=pairs, replace=False)
        values = [_number(rng) for _ in names]
        draft = _Draft(self)
        draft.text(LIST)
        for name, value in zip(names, values, strict=True):
            draft.text(_statement(name))
            draft.number(value, 0)
            draft.text(".\n")
        draft.ids(other[: min(room - pairs * line - questions * question, LONGEST_SPACE)].tolist())
        draft.text("\n")
        for pick in rng.permutation(pairs)[:questions]:
            draft.text(_question(names[pick]))
            draft.number(values[pick], self.emphasis)
            draft.text(".\n")
        return draft.done()

    def piece(self, text: str) -> list[int]:
        if text not in self.pieces:
            self.pieces[text] = self.encode(text)
        return self.pieces[text]

    def _filler(self, words: int) -> list[int]:
        if not words:
            return []
        later = self.piece(f" {FILLER}")
        cost = int(self._filler_costs(words)[words])
        return [*self.piece(FILLER), *later * (cost // len(later) + 1)][:cost]

    def _filler_costs(self, words: int) -> npt.NDArray[np.int64]:
        """Tokens that 0, 1, 2 ... words of filler take, up to at least `words`."""
        if self._costs.size <= words:
            filler = FILLER.split()
            later = [len(self.piece(f" {word}")) for word in filler]
            self._costs = np.cumsum([0, len(self.piece(filler[0])), *islice(cycle(later), 1, 2 * words + 1)])
        return self._costs

    @cached_property
    def _passkey_cost(self) -> int:
        fixed = [TASK, "\n", *NEEDLE, "\n", QUESTION]
        return sum(len(self.piece(piece)) for piece in fixed) + 3 * (len(self.space) + 5)

    @cached_property
    def _head_cost(self) -> int:
        return len(self.piece(LIST)) + len(self.piece("\n"))

    @cached_property
    def _line_cost(self) -> int:
        """Tokens of the longest line with a number."""
        return self._longest(_statement) + len(self.space) + 5 + len(self.piece(".\n"))

    @cached_property
    def _question_cost(self) -> int:
        """Tokens of the longest question with its answer."""
        return self._longest(_question) + len(self.space) + 5 + len(self.piece(".\n"))

    def _longest(self, sentence: Callable[[int], str]) -> int:
        return max(len(self.encode(sentence(number))) for number in range(NAMES))


class _Draft:
    """A document under construction."""

    def __init__(self, writer: Retrieval) -> None:
        self.writer = writer
        self.written: list[int] = []
        self.weights: list[tuple[int, int]] = []  # weight, tokens

    def text(self, text: str) -> None:
        self.ids(self.writer.piece(text))

    def ids(self, ids: list[int]) -> None:
        self.written += ids
        self.weights.append((1, len(ids)))

    def number(self, number: int, weight: int) -> None:
        self.ids(self.writer.space)
        self.written += [self.writer.digits[int(digit)] for digit in str(number)]
        self.weights.append((weight, len(str(number))))

    def done(self) -> tuple[Ids, Weights]:
        weights, counts = zip(*self.weights, strict=True)
        return np.array(self.written, dtype=np.int32), np.repeat(np.array(weights, dtype=np.uint8), counts)


def _name(number: int) -> str:
    return f"{COLOURS[number % len(COLOURS)]} {THINGS[number // len(COLOURS)]}"


def _statement(number: int) -> str:
    return f"The number of the {_name(number)} is"


def _question(number: int) -> str:
    return f"What is the number of the {_name(number)}? {_statement(number)}"


def _most(costs: npt.NDArray[np.int64], room: int) -> int:
    """How many words fit."""
    return int(np.searchsorted(costs, room, side="right")) - 1


def _number(rng: np.random.Generator) -> int:
    """Five digits, as the passkey task's keys have."""
    return int(rng.integers(10_000, 100_000))
