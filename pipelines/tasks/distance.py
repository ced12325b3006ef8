"""How far back the text lies that tells a token: the distance to the last place where the same two tokens stood.

A token that follows the one before it as it did somewhere earlier can be copied from there; by how far back that is, a
gain over cropped text is seen to come from the text that was cropped, or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

NEAREST = 16
"""Tokens of the first bucket; every further one is twice as wide."""


def edges(length: int) -> list[float]:
    """Upper ends of the buckets of distance for a text of so many tokens; the last is of pairs not seen before.

    >>> edges(100)
    [16.0, 32.0, 64.0, 128.0, inf]
    """
    ends = [float(NEAREST)]
    while ends[-1] < length:
        ends.append(2 * ends[-1])
    return [*ends, float("inf")]


def back(ids: Sequence[int]) -> NDArray[np.float64]:
    """(tokens - 1,) of every token after the first: tokens back to the last one before it that is the same and follows
    the same token; inf where there is none.

    >>> back([7, 8, 9, 7, 8, 8]).tolist()
    [inf, inf, inf, 3.0, inf]
    """
    numbers = np.asarray(ids, dtype=np.int64)
    pairs = numbers[:-1] * (int(numbers.max()) + 1) + numbers[1:]
    order = np.argsort(pairs, kind="stable")
    distance = np.full(pairs.size, np.inf)
    before, here = order[:-1], order[1:]
    same = pairs[before] == pairs[here]
    distance[here[same]] = here[same] - before[same]
    return distance


def by_distance(ids: Sequence[int], nll: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Sums of NLL (nats), and how many tokens, in every bucket of `edges`.

    nll: (tokens - 1,) of the tokens after the first.
    """
    far = back(ids)
    inside = [(far > low) & (far <= high) for low, high in pairwise([0.0, *edges(len(ids))])]
    return [float(nll[mask].sum()) for mask in inside], [float(mask.sum()) for mask in inside]
