"""Step -> windows to train on, a pure function: a run that is resumed sees what it would have seen."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipelines.records.cells import Refusal
from pipelines.train.corpus import Tokens
from pipelines.train.exercises import Exercises
from pipelines.train.retrieval import Ids, Retrieval, Weights

Rows = npt.NDArray[np.int32]
"""(windows, window) token ids."""

RowWeights = npt.NDArray[np.uint8]
"""(windows, window) weights of predicting them."""

FULL = 0.5
"""Share of generated documents that fill their window from its first token; the others lie anywhere in other text."""

PASSKEYS = 0.5
"""Share of passkeys among generated documents that are no exercises; the others are named numbers."""


@dataclass(frozen=True)
class Batches:
    """Windows of exactly `window` tokens.

    tokens: (tokens,) of the corpus. end: id that stands before every document; None: the tokenizer has none.
    rows: windows a step. share: of them, with a generated document, whole, in the place of text.
    retrieval: writes these documents; None: there are none.
    exercised: share of them that `exercises` writes.

    Text windows lie next to each other, in an order and from an offset that every pass over the corpus draws anew.
    """

    tokens: Tokens
    end: int | None
    window: int
    rows: int
    seed: int
    share: float = 0.0
    retrieval: Retrieval | None = None
    exercised: float = 0.0
    exercises: Exercises | None = None

    def __post_init__(self) -> None:
        if self.tokens.size < self.window:
            raise Refusal(
                f"the text holds {self.tokens.size:,} tokens and a window takes {self.window:,}: "
                "choose a shorter length, or give more text"
            )
        if self.retrieval is not None and self.window < self.least:
            raise Refusal(
                f"length={self.window}: the shortest generated document takes {self.least} tokens; "
                "choose a longer length, or share=0 to train on text alone"
            )

    @property
    def least(self) -> int:
        """Tokens of a window in which every generated document has room."""
        assert self.retrieval is not None
        return max(self.retrieval.least, self.exercises.least if self.exercises is not None else 0)

    def __call__(self, step: int) -> tuple[Rows, RowWeights]:
        """The windows of a step, counted from 0."""
        rng = np.random.default_rng([self.seed, step])
        generated = int(self.share * self.rows + rng.random()) if self.retrieval is not None else 0
        ids = np.empty((self.rows, self.window), dtype=np.int32)
        weights = np.ones((self.rows, self.window), dtype=np.uint8)
        for row in range(self.rows):
            if row < generated:
                ids[row], weights[row] = self._generated(rng)
            else:
                ids[row] = self._text(step * self.rows + row)
        return ids, weights

    def _text(self, number: int) -> Ids:
        windows = max(1, self.tokens.size // self.window - 1)
        offset, order = _passage(self.seed, number // windows, windows, self.tokens.size - windows * self.window)
        start = offset + int(order[number % windows]) * self.window
        return self.tokens[start : start + self.window].astype(np.int32)

    def _generated(self, rng: np.random.Generator) -> tuple[Ids, Weights]:
        """A document, and text around it where it does not fill the window."""
        assert self.retrieval is not None
        around, between = self._anywhere(rng), self._anywhere(rng)
        size = self.window
        if rng.random() >= FULL:
            size = int(rng.integers(self.least, self.window + 1))
        if self.exercises is not None and rng.random() < self.exercised:
            document, counts = self.exercises(random.Random(int(rng.integers(1 << 63))), size)
        elif rng.random() < PASSKEYS:
            document, counts = self.retrieval.passkey(rng, size)
        else:
            document, counts = self.retrieval.numbers(rng, size, between)
        before = int(rng.integers(0, self.window - size + 1))
        ids, weights = around, np.ones(self.window, dtype=np.uint8)
        ids[before : before + document.size] = document
        weights[before : before + document.size] = counts
        if self.end is not None:  # where a document begins
            for place in (before - 1, before + document.size):
                if 0 <= place < self.window:
                    ids[place] = self.end
        return ids, weights

    def _anywhere(self, rng: np.random.Generator) -> Ids:
        start = int(rng.integers(0, self.tokens.size - self.window + 1))
        return self.tokens[start : start + self.window].astype(np.int32)


@lru_cache(maxsize=4)
def _passage(seed: int, number: int, windows: int, slack: int) -> tuple[int, npt.NDArray[np.int64]]:
    """One pass over the corpus: the offset of its first window, and the order of its windows."""
    rng = np.random.default_rng([seed, number, windows])
    return int(rng.integers(0, slack + 1)), rng.permutation(windows)
