"""The header of a GGUF file: its keys and the names of its tensors, in a fraction of the time that loading one takes.

The package gguf maps every tensor and builds an array for every token, which takes seconds.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
"""Value types of the format: github.com/ggml-org/ggml, docs/gguf.md."""

FLOAT32, ALIGNMENT = 0, 32
"""The type of tensor that is plain floats, and what tensors begin at multiples of, unless a key says otherwise."""

ROPE_FREQS = "rope_freqs.weight"
"""The tensor that llama.cpp divides frequencies by, pair by pair; its converter writes llama3's scaling so."""

SHORT = 1024
"""Of arrays of more entries only their length is kept: they are vocabularies. Lists of rotary factors are shorter."""


@dataclass(frozen=True)
class Header:
    """keys: name -> value, of long arrays their length. tensors: their names. rope_freqs: what is in that tensor."""

    keys: dict[str, Any]
    tensors: tuple[str, ...]
    rope_freqs: tuple[float, ...] = ()

    @property
    def architecture(self) -> str:
        return str(self.keys.get("general.architecture", ""))

    def value(self, key: str) -> Any:
        """A key of the architecture: value("rope.freq_base") is that of llama.rope.freq_base."""
        return self.keys.get(f"{self.architecture}.{key}")

    def count(self, key: str) -> int | None:
        """Entries of an array, by its full key."""
        value = self.keys.get(key)
        return len(value) if isinstance(value, list) else value


def read(path: Path) -> Header:
    """The header of a little-endian GGUF file of version 2 or 3.

    Raises:
        ValueError: it is none.
    """
    with path.open("rb") as file:
        try:
            magic, version, tensors, count = _unpack(file, "<4sIQQ")
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError(f"{path.name} is no GGUF file of version 2 or 3")
            keys = {_string(file): _value(file, *_unpack(file, "<I")) for _ in range(count)}
            places = {_string(file): _place(file) for _ in range(tensors)}
            numbers = _floats(file, keys, *places[ROPE_FREQS]) if ROPE_FREQS in places else ()
        except struct.error as error:
            raise ValueError(f"{path.name} ends within its header") from error
    return Header(keys, tuple(places), numbers)


def _place(file: BinaryIO) -> tuple[int, int, int]:
    """Of a tensor: how many numbers it has, their type, and where they begin behind the header."""
    (dimensions,) = _unpack(file, "<I")
    return (math.prod(_unpack(file, f"<{dimensions}Q")), *_unpack(file, "<IQ"))


def _floats(file: BinaryIO, keys: dict[str, Any], count: int, kind: int, offset: int) -> tuple[float, ...]:
    """A tensor's numbers, the file being read up to the end of its header."""
    if kind != FLOAT32:
        return ()
    step = int(keys.get("general.alignment", ALIGNMENT))
    file.seek(-(-file.tell() // step) * step + offset)
    return tuple(_unpack(file, f"<{count}f"))


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _unpack(file, f"<{SCALARS[kind]}")[0]
    inner, count = _unpack(file, "<IQ")
    if inner == STRING and count > SHORT:
        for _ in range(count):
            file.seek(_unpack(file, "<Q")[0], 1)
        return count
    if inner in SCALARS and count > SHORT:
        file.seek(struct.calcsize(f"<{SCALARS[inner]}") * count, 1)
        return count
    return [_value(file, inner) for _ in range(count)]


def _string(file: BinaryIO) -> str:
    return file.read(_unpack(file, "<Q")[0]).decode("utf-8", "replace")


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
