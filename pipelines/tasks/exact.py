"""What passes through lm-eval as a string or a number and is more: exact tokens, and sums that keep their terms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class LogLikelihood(float):
    """A sum of log-probabilities (nats) that remembers its terms, so that tasks can read them behind the harness.

    tokens: (n,) float32, log-probability of each scored token, in order.
    """

    tokens: NDArray[np.float32]

    def __new__(cls, value: float, tokens: NDArray[np.float32]) -> LogLikelihood:
        likelihood = super().__new__(cls, value)
        likelihood.tokens = tokens
        return likelihood

    def __getnewargs__(self) -> tuple[float, NDArray[np.float32]]:  # type: ignore[override]
        return float(self), self.tokens


class Tokens(str):
    """A text with the exact ids that stand for it, so that a task can hand ids through the harness as a string.

    LongLM uses `ids` as they are, wherever it would otherwise encode the text; a BOS, if wanted, is among them.
    """

    ids: tuple[int, ...]

    def __new__(cls, text: str, ids: Iterable[int]) -> Tokens:
        tokens = super().__new__(cls, text)
        tokens.ids = tuple(ids)
        return tokens

    def __getnewargs__(self) -> tuple[str, tuple[int, ...]]:  # type: ignore[override]
        return str(self), self.ids


class Spans(Tokens):
    """A document that is scored in several forwards: of each span (start, stop, scored) the last `scored` tokens of
    ids[start:stop], given those before them and `prefix`, which is put in front of every span."""

    spans: tuple[tuple[int, int, int], ...]
    prefix: tuple[int, ...]

    def __new__(
        cls, text: str, ids: Iterable[int], spans: Iterable[tuple[int, int, int]] = (), prefix: Iterable[int] = ()
    ) -> Spans:
        document = str.__new__(cls, text)
        document.ids, document.spans, document.prefix = tuple(ids), tuple(spans), tuple(prefix)
        return document

    def __getnewargs__(self) -> tuple[Any, ...]:  # type: ignore[override]
        return str(self), self.ids, self.spans, self.prefix


def joined(parts: Sequence[LogLikelihood]) -> LogLikelihood:
    """The terms of all parts, one after the other."""
    tokens = np.concatenate([part.tokens for part in parts]) if parts else np.zeros(0, np.float32)
    return LogLikelihood(sum(map(float, parts)), tokens)
