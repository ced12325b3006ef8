"""The header of a GGUF file: its keys and its tensors, in a fraction of the time that loading one takes.

The package gguf maps every tensor and builds an array for every token, which takes seconds. Lengths are held against
the file's size before anything is read or kept, as a header may say anything: docs/gguf.md of github.com/ggml-org/ggml.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rope.llama_cpp_rules import FREQS, LONG, SHORT

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
"""Value types of the format."""

FLOAT32, ALIGNMENT, DIMENSIONS = 0, 32, 4
"""The type of tensor that is plain floats; what tensors begin at multiples of, unless a key says otherwise; and of how
many dimensions one has at most."""

_FOUR_BITS_AND_MORE = zip((2, 3, 6, 7, 8), (18, 20, 22, 24, 34), strict=True)
_OF_256 = zip(range(10, 16), (84, 110, 144, 176, 210, 292), strict=True)
_PLAIN = zip((0, 1, 24, 25, 26, 27, 28, 30), (4, 2, 1, 2, 4, 8, 8, 2), strict=True)
BLOCKS = {
    **{kind: (1, size) for kind, size in _PLAIN},
    **{kind: (32, size) for kind, size in _FOUR_BITS_AND_MORE},
    **{kind: (256, size) for kind, size in _OF_256},
}
"""Numbers and bytes of a block, by type of tensor, for the types that files are mostly written in."""

BLOCK = 1 << 18
"""Bytes of a vocabulary that are read at a time."""

LONG_ARRAY = 1024
"""Of arrays of more entries only their length is kept: they are vocabularies. Lists of rotary factors are shorter."""

_LENGTH = struct.Struct("<Q")


class Tensor(NamedTuple):
    """shape: (columns, rows, ...) as the file has it. kind: GGML's type. offset: bytes behind the header."""

    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def size(self) -> int | None:
        """Bytes; None for a type that is not known here."""
        numbers, size = BLOCKS.get(self.kind, (0, 0))
        return math.prod(self.shape) // numbers * size if numbers else None


@dataclass(frozen=True)
class Header:
    """keys: name -> value, of long arrays their length. tensors: their names. rope_freqs: what is in that tensor;
    long_factors and short_factors: in rope_factors_long and rope_factors_short."""

    keys: dict[str, Any]
    tensors: tuple[str, ...]
    rope_freqs: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    short_factors: tuple[float, ...] = ()

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
        ValueError: it is none, or it says what no file of its size can hold.
    """
    with path.open("rb") as file:
        stream = _Stream(file, path.name, path.stat().st_size)
        magic, version, tensors, count = stream.unpack("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            swapped = ", little-endian" if magic == b"GGUF" and version in (2 << 24, 3 << 24) else ""
            raise ValueError(f"{path.name} is no GGUF file of version 2 or 3{swapped}; give one")
        stream.expect(count, 12 + 1, "keys")
        stream.expect(tensors, 24, "tensors")
        keys: dict[str, Any] = {}
        for _ in range(count):
            name = stream.string()
            if name in keys:
                raise ValueError(f"{path.name} has the key {name} twice; write the file anew")
            keys[name] = stream.value(name, *stream.unpack("<I"))
        places: dict[str, Tensor] = {}
        for _ in range(tensors):
            name = stream.string()
            if name in places:
                raise ValueError(f"{path.name} has the tensor {name} twice; write the file anew")
            places[name] = stream.tensor(name)
        step = keys.get("general.alignment", ALIGNMENT)
        if not isinstance(step, int) or step < 1 or step & (step - 1):
            raise ValueError(f"{path.name}: general.alignment is {step!r}; it must be a power of 2")
        begin = -(-file.tell() // step) * step
        _check_data(path.name, places, stream.size - begin)
        freqs, long, short = (stream.floats(name, places, begin) for name in (FREQS, LONG, SHORT))
    return Header(keys, tuple(places), freqs, long, short)


def parts(path: Path) -> tuple[Path, ...]:
    """The files of a model that is split into several, whichever of them is given; the file alone where it is whole.

    Raises:
        ValueError: it is no GGUF file, or parts are missing.
    """
    count = read(path).keys.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return (path,)
    named = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})", path.stem)
    if named is None or int(named.group(2)) != count:
        raise ValueError(
            f"{path.name} is one of {count} parts of a model, and is not named so; name them NAME-00001-of-{count:05}"
            ".gguf and so on, or merge them (llama-gguf-split --merge)"
        )
    files = tuple(path.with_name(f"{named.group(1)}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{path.name} is one of {count} parts of a model, and {', '.join(missing)} is not beside it")
    return files


def read_whole(path: Path) -> Header:
    """The header of a model, of all its parts where it is split: the keys of the first, the tensors of all.

    Raises:
        ValueError: what `read` and `parts` refuse, or parts of different models.
    """
    files = parts(path)
    first, *others = map(read, files)
    if not others:
        return first
    tensors = tuple(name for header in (first, *others) for name in header.tensors)
    numbers = [header.keys.get("split.no") for header in (first, *others)]
    announced = first.keys.get("split.tensors.count", len(tensors))
    if numbers != list(range(len(files))) or len(set(tensors)) != len(tensors) or announced != len(tensors):
        raise ValueError(
            f"{files[0].name} and its other parts hold {len(set(tensors)):,} tensors of {announced:,}, as parts number "
            f"{', '.join(map(str, numbers))}: they are not of one model; download them again"
        )
    lists = {
        name: next((held for header in (first, *others) if (held := getattr(header, name))), ())
        for name in ("rope_freqs", "long_factors", "short_factors")
    }
    return Header(first.keys, tensors, **lists)


def _check_data(file: str, places: dict[str, Tensor], room: int) -> None:
    """Refuse a file that ends before its tensors do, as one whose download broke off."""
    for name, tensor in places.items():
        end = tensor.offset + (tensor.size or 0)
        if end > room:
            raise ValueError(
                f"{file} ends before its tensor {name}: {end - room:,} bytes are missing; download or copy it again"
            )


@dataclass
class _Stream:
    """A file that is read from its beginning, and never asked for more than it has."""

    file: BinaryIO
    name: str
    size: int

    def expect(self, count: int, least: int, what: str) -> None:
        """Refuse a count of things that take at least so many bytes each, if the rest of the file cannot hold them."""
        if count * least > self.size - self.file.tell():
            raise ValueError(f"{self.name} ends within its header, which announces {count:,} {what}; download it again")

    def unpack(self, layout: str) -> tuple[Any, ...]:
        self.expect(struct.calcsize(layout), 1, "bytes more")
        return struct.unpack(layout, self.file.read(struct.calcsize(layout)))

    def skip(self, count: int) -> None:
        self.expect(count, 1, "bytes more")
        self.file.seek(count, 1)

    def skip_strings(self, count: int) -> None:
        """Vocabularies are most of a header: their lengths are looked up in blocks, not read one by one."""
        block, at = b"", 0
        for _ in range(count):
            if at + 8 > len(block):
                self.skip(at - len(block))
                block, at = self.file.read(BLOCK), 0
                if len(block) < 8:
                    self.expect(8, 1, "bytes more")
            at += 8 + _LENGTH.unpack_from(block, at)[0]
        self.skip(at - len(block))

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        self.expect(length, 1, "bytes of text")
        return self.file.read(length).decode("utf-8", "replace")

    def value(self, key: str, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.unpack(f"<{SCALARS[kind]}")[0]
        if kind != ARRAY:
            raise ValueError(f"{self.name}: the key {key} has the unknown type {kind}; write the file anew")
        inner, count = self.unpack("<IQ")
        if inner != STRING and inner not in SCALARS:
            what = "arrays" if inner == ARRAY else f"the unknown type {inner}"
            raise ValueError(f"{self.name}: the key {key} is an array of {what}, which llama.cpp reads none of")
        width = 8 if inner == STRING else struct.calcsize(f"<{SCALARS[inner]}")
        self.expect(count, width, f"entries of {key}")
        if inner != STRING:
            if count > LONG_ARRAY:
                self.skip(width * count)
                return count
            return list(self.unpack(f"<{count}{SCALARS[inner]}"))
        if count > LONG_ARRAY:
            self.skip_strings(count)
            return count
        return [self.string() for _ in range(count)]

    def tensor(self, name: str) -> Tensor:
        (dimensions,) = self.unpack("<I")
        if dimensions > DIMENSIONS:
            raise ValueError(f"{self.name}: the tensor {name} has {dimensions} dimensions; it may have {DIMENSIONS}")
        return Tensor(self.unpack(f"<{dimensions}Q"), *self.unpack("<IQ"))

    def floats(self, name: str, places: dict[str, Tensor], begin: int) -> tuple[float, ...]:
        """What is in a tensor; () where there is none."""
        if name not in places:
            return ()
        if places[name].kind != FLOAT32:
            raise ValueError(f"{self.name}: {name} has the type {places[name].kind}; llama.cpp takes floats (0) alone")
        self.file.seek(begin + places[name].offset)
        return self.unpack(f"<{math.prod(places[name].shape)}f")
