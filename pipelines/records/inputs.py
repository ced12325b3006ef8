"""Where files that others wrote enter: their kind, size and depth are known before anything reads or keeps them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from pipelines.records.refusal import Refusal, first_line

MIB = 1 << 20

LARGEST_JSON = 64 * MIB
"""Of a config, an index of weights or a tokenizer's settings; the largest index known has 15 MB."""

DEEPEST = 64
"""Lists and mappings within each other."""


def regular_size(path: Path, most: int) -> int:
    """The bytes of a regular file, which a pipe, a device and a folder are not.

    Raises:
        Refusal: it is none, it cannot be looked at, or it is larger than `most`.
    """
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        raise Refusal(f"{_shown(path)} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(state.st_mode):
        raise Refusal(f"{path} is no regular file; give a file on a disk")
    if state.st_size > most:
        raise Refusal(f"{path} has {state.st_size / MIB:,.0f} MiB, and at most {most / MIB:,.0f} are read; split it")
    return state.st_size


def text(path: Path, most: int) -> str:
    """A file of UTF-8 text, of as many bytes as it has now.

    Raises:
        Refusal: as `regular_size`, or it cannot be read.
        UnicodeDecodeError: it is no UTF-8.
    """
    size = regular_size(path, most)
    try:
        with path.open("rb") as file:
            return file.read(size).decode("utf-8")
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror})") from error


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        Refusal: it cannot be read, is no JSON, is no object, or is too large or deep.
    """
    try:
        value = json.loads(text(path, LARGEST_JSON))
    except RecursionError as error:
        raise Refusal(_too_deep(path)) from error
    except Refusal:
        raise
    except ValueError as error:
        raise Refusal(f"{path} cannot be read as JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise Refusal(f"{path} holds a {type(value).__name__}, and should hold an object: {{...}}")
    if depth(value) > DEEPEST:
        raise Refusal(_too_deep(path))
    return value


def made(folder: Path) -> Path:
    """A folder to write into, made where it is not there.

    Raises:
        Refusal: it cannot be made, or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refusal(f"{_shown(folder)}: nothing can be written there ({reason}); give another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refusal(f"{folder}: you may not write into this folder; give another")
    return folder


def depth(value: Any) -> int:
    """How many lists and mappings lie within each other, counted to DEEPEST + 1."""
    level, deep = [value], 0
    while deep <= DEEPEST and (level := [entry for entry in level if isinstance(entry, (dict, list))]):
        level = [inner for entry in level for inner in (entry.values() if isinstance(entry, dict) else entry)]
        deep += 1
    return deep


def _too_deep(path: Path) -> str:
    return f"{path} nests lists and mappings deeper than {DEEPEST}, which no model's file does; give another"


def _shown(path: Path) -> str:
    """A path that may hold what no path may."""
    name = ascii(os.fspath(path))[1:-1]
    return name if len(name) <= 200 else f"{name[:200]}..."
