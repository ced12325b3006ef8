"""Measured profiles of long documents with one fault each, and their clean twins."""

from __future__ import annotations

from typing import Any

import numpy as np
from planted import LLAMA3_BLOCK, PLAIN, of

from pipelines.doctor.profile import Profile

TRAINED, LENGTH, DOCUMENTS, VOCABULARY = 512, 1024, 8, 1000


def profile(
    breaks: int | None = None,
    slope: float = 0.01,
    most: float = np.inf,
    trained: int = TRAINED,
    edge: int | None = None,
    nll: float = 3.0,
    gain: float = 0.1,
    cost: float | None = None,
    target: int | None = None,
) -> Profile:
    """NLL that rises by `slope` nats a token from `breaks` on, by `most` at most, over noise that both readings share
    but for a little."""
    edge, chance = edge or trained, np.random.default_rng(0)
    noise = chance.normal(0, 1, (DOCUMENTS, LENGTH))
    rise = np.clip((np.arange(LENGTH) - (LENGTH if breaks is None else breaks)) * slope, 0, most)
    long = nll + noise + rise
    reference = nll + noise + chance.normal(0, 0.02, (DOCUMENTS, LENGTH))
    reference[:, : edge * 7 // 8] = np.nan
    long[:, 0] = np.nan
    near = chance.normal(nll, 0.5, 64)
    context = {64: near + 2 * gain, 128: near + gain, 256: near + chance.normal(0, 0.01, 64)}
    scaled = None if cost is None else chance.normal(cost, 0.02, 64)
    files = of({**PLAIN, "rope_scaling": LLAMA3_BLOCK}, target=target)
    near = edge * 5 // 4 if edge == trained else edge * 2
    reference[:, near:-64] = np.nan
    return Profile(files, trained, edge, near, long, reference, VOCABULARY, context, scaled, "planted")


PROFILES: dict[str, Any] = {
    "F04": [
        (profile(breaks=528), profile()),
        (profile(breaks=300, edge=256), profile(edge=256)),
        (profile(breaks=528, target=512), profile(breaks=528, most=0.006)),
    ],
    "F05": [(profile(gain=0.0), profile(gain=0.1))],
    "F06": [(profile(cost=0.05), profile(cost=0.0)), (profile(cost=0.02), profile(cost=-0.05))],
    "F08": [(profile(nll=float(np.log(VOCABULARY))), profile()), (profile(nll=float("nan")), profile(nll=5.0))],
}
