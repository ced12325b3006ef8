"""Key tokens: those that the far text makes much likelier, and the perplexity over them alone (LongPPL).

Most tokens are guessed as well from the near text, so that a mean over all of them says little of the far one. Which
tokens are key is decided once for all strategies: by the evaluator, which is the same model under one of them, or
another model, against what it says of the cropped text.

Source:
    Fang et al. 2024, What is Wrong with Perplexity for Long-context Language Modeling?, https://arxiv.org/abs/2410.23771;
    PyPI's longppl 0.3.0, whose thresholds these are
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.tasks.documents import ratio

ALPHA, BETA = 2.0, -2.0
"""A key token gains more than ALPHA from the far text, and has more than BETA with it: log-probabilities, nats."""

Under = Callable[[str, bool], AbstractContextManager[tuple[Any, int]]]
"""(evaluator, whether its texts are cropped) -> for a while, the model to ask, as lm-eval sees it, and how many tokens
it then sees of cropped texts."""

Mask = NDArray[np.bool_]


def key_tokens(long: NDArray[np.float32], short: NDArray[np.float32], window: int) -> Mask:
    """(n,) which of a document's scored tokens are key.

    long, short: (n,) log-probabilities of the tokens after the first, given all before them, and given at most the last
    `window` of these.
    """
    keys: Mask = (long - short > ALPHA) & (long > BETA)
    keys[:window] = False  # nothing was cut off before these
    return keys


def of_document(tokens: NDArray[np.float32], keys: Mask) -> dict[str, float]:
    """What a document's record says of its key tokens: how many there are, and their NLL if there are any."""
    count = int(keys.sum())
    return {"key_tokens": float(count)} | ({"nll_key": -float(tokens[keys].mean(dtype=np.float64))} if count else {})


def of_all(tokens: Sequence[NDArray[np.float32]], keys: Sequence[Mask]) -> dict[str, float]:
    """Over all documents: the share of key tokens, and their NLL and perplexity (LongPPL) where there are any."""
    counts = np.array([mask.sum() for mask in keys], np.float64)
    metrics = {"key_share": float(counts.sum() / sum(map(len, keys)))}
    if not counts.sum():
        return metrics
    sums = np.array([-float(row[mask].sum(dtype=np.float64)) for row, mask in zip(tokens, keys, strict=True)])
    metrics["nll_key"], spread = ratio(sums, counts)
    metrics["ppl_key"] = math.exp(metrics["nll_key"])
    if spread is not None:
        metrics |= {"nll_key_stderr": spread, "ppl_key_stderr": metrics["ppl_key"] * spread}
    return metrics
