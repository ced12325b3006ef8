"""Paths on a command line, where commas make lists, and Hydra's grammar has its own idea of quotes and braces."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence


def listed(value: str) -> list[str]:
    """The entries of a comma list of paths and names. What is here under a name with commas is one entry; quotes
    around an entry are left out.

    >>> listed("tiny,models/x"), listed("'a b',\\"c\\"")
    (['tiny', 'models/x'], ['a b', 'c'])
    """
    pieces, entries, start = value.split(","), list[str](), 0
    while start < len(pieces):
        for end in range(len(pieces), start, -1):
            whole = ",".join(pieces[start:end])
            entry = whole if is_here(whole) else _unquoted(whole)
            if end == start + 1 or is_here(entry):
                break
        entries.append(entry)
        start = end
    return entries


def is_here(path: str) -> bool:
    """Whether there is such a file or folder."""
    return os.path.exists(os.path.expanduser(path))


def quoted(text: str) -> str:
    """A text as a value of Hydra's grammar that means this text and nothing else, whatever is in it.

    >>> print(quoted("it's"), quoted("a, b"), quoted("C:\\\\"))
    'it\\'s' 'a, b' 'C:\\\\'
    """
    plain = uninterpolated(text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda end: end[1] * 2 + ("\\'" if end[2] else ""), plain) + "'"


def written(text: str) -> str:
    """A text as a value of Hydra's grammar, in quotes only where it needs them.

    >>> written("a/b.txt"), written("a, b"), written("true")
    ('a/b.txt', "'a, b'", "'true'")
    """
    plain = re.fullmatch(r"(?a)(?!(?i:null|true|false|nan|inf)$)[A-Za-z_./][\w./:@+-]*", text)
    return text if plain else quoted(text)


def uninterpolated(text: str) -> str:
    """A text that OmegaConf leaves as it is: `${` begins what it puts another value in for.

    >>> print(uninterpolated("a${b}"))
    a\\${b}
    """
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def apart(paths: Sequence[str]) -> list[str]:
    """For each path the last part of its name, and where those of two are alike, as many more as tell them apart.

    >>> apart(["/a/x", "/b/x", "/a/y"])
    ['a/x', 'b/x', 'y']
    """
    parts = [path.strip("/").split("/") for path in paths]
    counts = [1] * len(paths)

    def names() -> list[str]:
        return ["/".join(part[-count:]) for part, count in zip(parts, counts, strict=True)]

    for _ in range(max(map(len, parts), default=0)):
        now = names()
        alike = [
            n for n, name in enumerate(now) if any(now[m] == name and parts[m] != parts[n] for m in range(len(now)))
        ]
        if not alike:
            break
        counts = [count + (n in alike) for n, count in enumerate(counts)]
    return names()


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
