"""How much of a text a model has read in training: the share of its tokens within a run that the training text has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN = 32
"""Tokens of a run: shorter ones, such as a line of a licence, are in most texts."""

CHUNK = 1 << 22
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd; sums wrap at 2^64


def overlap(trained: NDArray[Any], ids: Sequence[int] | NDArray[Any], run: int = RUN) -> float:
    """The share of `ids` that lie in a run of `run` tokens which is anywhere in `trained`.

    >>> overlap(np.arange(100), [7, 50, 51, 52, 53, 9], run=3)
    0.6666666666666666
    """
    hashes = _hashes(np.asarray(ids), run)
    if not hashes.size:
        return 0.0
    wanted = np.unique(hashes)
    found = np.zeros(wanted.size, dtype=bool)
    for start in range(0, max(1, len(trained) - run + 1), CHUNK):
        here = _hashes(np.asarray(trained[start : start + CHUNK + run - 1]), run)
        places = np.minimum(np.searchsorted(wanted, here), wanted.size - 1)
        found[places[wanted[places] == here]] = True
    begins = found[np.searchsorted(wanted, hashes)]
    inside = np.zeros(len(ids) + 1, dtype=np.int64)  # +1 where a run begins, -1 after its end
    np.add.at(inside, np.flatnonzero(begins), 1)
    np.add.at(inside, np.flatnonzero(begins) + run, -1)
    return float((np.cumsum(inside)[:-1] > 0).mean())


def _hashes(ids: NDArray[Any], run: int) -> NDArray[np.uint64]:
    """(tokens - run + 1,) a 64-bit hash of the run that begins at each token."""
    count = ids.size - run + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    spread = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    spread ^= spread >> np.uint64(29)
    total = np.zeros(count, dtype=np.uint64)
    for place in range(run):
        total = total * _FACTOR + spread[place : place + count]
    return total
