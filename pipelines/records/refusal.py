"""The error of every refusal, and its hint. On its own, as it must load little: help and completion import it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pipelines.records.privacy import without_secrets


class Refusal(ValueError):
    """Bad input in a sentence: what was given, what is allowed, what to do. Commands end with exit code 2 on it.

    The sentence shows no secret, whatever it was made of.
    """

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class LaunchEnded(RuntimeError):
    """A launch that ends before its cells, in a sentence: why, and what to do. Commands end with exit code 1 on it."""


def suggestion(given: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean yarn? ` of the known name that is closest; "" where none is close.

    >>> suggestion("yrn", ["none", "yarn"]), suggestion("abc", ["none"])
    ('did you mean yarn? ', '')
    """
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=cutoff)
    return f"did you mean {close[0]}? " if close else ""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
