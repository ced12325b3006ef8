"""A digest of files that takes no minute for 100 GB: names, sizes and evenly spread samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

SAMPLES, SAMPLE_BYTES = 16, 1 << 20


def sampled_digest(files: Iterable[tuple[str, Path]]) -> str:
    """16 hexadecimal digits of the files and the names they go by."""
    digest = hashlib.sha256()
    for name, file in files:
        size = file.stat().st_size
        digest.update(f"{name} {size}\n".encode())
        with file.open("rb") as stream:
            for sample in range(SAMPLES if size > SAMPLES * SAMPLE_BYTES else 1):
                stream.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE_BYTES if size > SAMPLES * SAMPLE_BYTES else -1))
    return digest.hexdigest()[:16]
