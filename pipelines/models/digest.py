"""Digests of files by all that they hold: quick ones of weights, remembered for as long as a file is untouched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from blake3 import blake3

from pipelines.records.places import cache_folder, keep

SMALL = 16 << 20
"""Bytes up to which a file is digested as it is; of a larger one its own digest is, which is remembered."""

LONG = 4 << 30
"""Bytes from which reading them is announced."""

SAMPLES, SAMPLE_BYTES = 16, 1 << 20

SETTLED = 1.0
"""Seconds: of a file that changed so lately, the next change may bear the same time, and nothing is remembered."""

Files = Iterable[tuple[str, Path]]
"""Files and the names they go by."""


def content_digest(files: Files) -> str:
    """16 hexadecimal digits of the names and of every byte of the files.

    Files up to SMALL are digested as the sampled digests of earlier versions were, so that a model of such files keeps
    its fingerprint.
    """
    files = list(files)
    unread = sum(_size(file) for _, file in files if _size(file) > SMALL and _remembered(file) is None)
    if unread >= LONG:
        where = files[0][1].parent
        print(f"reading {unread / 2**30:.0f} GiB of weights in {where}, once ...", file=sys.stderr, flush=True)
    return _digest(files, lambda file: file_digest(file).encode())


def sampled_digest(files: Files) -> str:
    """What earlier versions knew a model by: of files above SMALL 16 evenly spread samples of 1 MiB were read."""

    def samples(file: Path) -> bytes:
        with file.open("rb") as stream:
            parts = []
            for sample in range(SAMPLES):
                stream.seek(sample * (_size(file) - SAMPLE_BYTES) // (SAMPLES - 1))
                parts.append(stream.read(SAMPLE_BYTES))
        return b"".join(parts)

    return _digest(files, samples)


def file_digest(file: Path) -> str:
    """BLAKE3 of a whole file, on all cores; remembered in the user's cache by path, size, times and inode."""
    known = _remembered(file)
    if known is not None:
        return known
    before = file_state(file)
    digest = blake3(max_threads=blake3.AUTO).update_mmap(file).hexdigest()
    with contextlib.suppress(OSError):  # it may be gone by now
        if before == file_state(file) and time.time() - max(before[1:3]) / 1e9 > SETTLED:
            keep(_place(file), json.dumps({"state": before, "blake3": digest}).encode())
    return digest


def file_state(file: Path) -> tuple[int, int, int, int]:
    """What is other after a change: size, times of writing and of the inode (nanoseconds), and the inode."""
    now = file.stat()
    return now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino


def _digest(files: Files, large: Callable[[Path], bytes]) -> str:
    digest = hashlib.sha256()
    for name, file in files:
        size = _size(file)
        digest.update(f"{name} {size}\n".encode())
        digest.update(large(file) if size > SMALL else file.read_bytes())
    return digest.hexdigest()[:16]


def _remembered(file: Path) -> str | None:
    try:
        kept = json.loads(_place(file).read_text(encoding="utf-8"))
        digest: str = kept["blake3"]
        return digest if tuple(kept["state"]) == file_state(file) and len(bytes.fromhex(digest)) == 32 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _place(file: Path) -> Path:
    return cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:32]}.json"


def _size(file: Path) -> int:
    return file.stat().st_size
