"""Token ids of texts, of long ones kept between processes: encoding ten million characters takes 10 s.

    <user's cache>/encoded/<key>    BLAKE3 of the ids, then the ids as 32-bit integers, little-endian

A key is made of the text, of all that the tokenizer does with it, and of the version of the package that does it.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version
from typing import Any

import numpy as np
from blake3 import blake3

from pipelines.records.places import cache_folder, keep

KEPT_FROM = 1 << 18
"""Characters from which the ids of a text are kept; fewer are encoded in a fraction of a second."""

IDS = np.dtype("<i4")


def ids(tokenizer: Any, text: str, fingerprint: str | None) -> list[int]:
    """Token ids of a text, without special tokens.

    fingerprint: of all that decides them; None where that is not known, and they are not kept.
    """
    if fingerprint is None or len(text) < KEPT_FROM:
        return _encoded(tokenizer, text)
    hashed = blake3(f"{version('tokenizers')}\0{fingerprint}\0".encode())
    place = cache_folder() / "encoded" / hashed.update(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    with suppress(OSError):
        kept = place.read_bytes()
        digest, body = kept[:32], kept[32:]
        if body and blake3(body).digest() == digest:
            known: list[int] = np.frombuffer(body, IDS).tolist()
            return known
    found = _encoded(tokenizer, text)
    body = np.array(found, IDS).tobytes()
    keep(place, blake3(body).digest() + body)
    return found


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
