"""What tasks take from a source of text: words, sentences, paragraphs, and sections with their headings."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from pipelines.tasks import text

AT_MOST = 8_000_000
"""Characters of a source that are read: a task draws from these, and a library would take minutes."""

PARAGRAPH = 60
"""Words of a paragraph, at least: shorter ones are joined."""

_UNDERLINED = re.compile(r"^(?P<heading>\S[^\n]{2,78})\n(?P<line>[=*~^#+-])(?P=line){2,}[ \t]*$", re.MULTILINE)
_MARKDOWN = re.compile(r"(?:\A|(?<=\n\n))#{1,4}[ \t]+(?P<heading>[^\n#]{3,78}?)[ \t#]*(?=\n[ \t]*\n)")


@dataclass(frozen=True)
class Section:
    """A heading, and the words below it."""

    heading: str
    words: tuple[str, ...]


def whole(source: str) -> str:
    """The text of a source, its documents joined by empty lines."""
    return _whole(source, text.digest(source))


@lru_cache(maxsize=4)
def _whole(source: str, digest: str) -> str:
    parts: list[str] = []
    size = 0
    for document in text.documents(source):
        parts.append(document[: AT_MOST - size])
        size += len(parts[-1])
        if size >= AT_MOST:
            break
    return "\n\n".join(parts)


def words(source: str) -> tuple[str, ...]:
    """The text of a source as words, in its order."""
    return _words(source, text.digest(source))


@lru_cache(maxsize=4)
def _words(source: str, digest: str) -> tuple[str, ...]:
    return tuple(_whole(source, digest).split())


def vocabulary(source: str) -> tuple[str, ...]:
    """The different plain words of a source, 4 to 10 small letters, in the order of the alphabet."""
    return _vocabulary(source, text.digest(source))


@lru_cache(maxsize=4)
def _vocabulary(source: str, digest: str) -> tuple[str, ...]:
    return tuple(sorted(set(re.findall(r"(?<![\w.])[a-z]{4,10}(?![\w.(])", _whole(source, digest)))))


def sentences(prose: str) -> list[str]:
    """The sentences of a prose: what ends with . ! or ? before a space.

    >>> sentences("One. Two 2.5! Three")
    ['One.', 'Two 2.5!', 'Three']
    """
    return [part for part in re.split(r"(?<=[.!?])\s+", prose.strip()) if part]


def paragraphs(source: str) -> tuple[str, ...]:
    """Paragraphs of at least PARAGRAPH words and at most twice as many, in the order of the source."""
    return _paragraphs(source, text.digest(source))


@lru_cache(maxsize=4)
def _paragraphs(source: str, digest: str) -> tuple[str, ...]:
    found: list[str] = []
    held: list[str] = []
    for block in re.split(r"\n\s*\n", _whole(source, digest)):
        held += block.split()
        if len(held) >= PARAGRAPH:
            found.append(" ".join(held[: 2 * PARAGRAPH]))
            held = []
    return tuple(dict.fromkeys(found))


def lines(source: str) -> tuple[str, ...]:
    """Different sentences of 5 to 20 words without quotation marks or code, in the order of the source."""
    return _lines(source, text.digest(source))


@lru_cache(maxsize=4)
def _lines(source: str, digest: str) -> tuple[str, ...]:
    kept = (sentence for sentence in sentences(" ".join(_words(source, digest))) if 5 <= len(sentence.split()) <= 20)
    plain = re.compile(r"[A-Z][^\"\u201c\u201d=<>|{}\[\]\\]*[.!?]")
    return tuple(dict.fromkeys(sentence for sentence in kept if plain.fullmatch(sentence)))


def sections(source: str) -> tuple[Section, ...]:
    """The sections of a source that have a heading of their own and at least PARAGRAPH words below it.

    Headings are underlined, as in reStructuredText, or begin with # between empty lines, as in Markdown: a # elsewhere
    begins a comment. One that comes twice is left out.
    """
    return _sections(source, text.digest(source))


@lru_cache(maxsize=4)
def _sections(source: str, digest: str) -> tuple[Section, ...]:
    book = _whole(source, digest)
    marks = sorted([*_UNDERLINED.finditer(book), *_MARKDOWN.finditer(book)], key=lambda mark: mark.start())
    ends = [mark.start() for mark in marks[1:]] + [len(book)]
    found = [
        Section(" ".join(mark["heading"].split()), tuple(book[mark.end() : end].split()))
        for mark, end in zip(marks, ends, strict=False)
    ]
    count = Counter(section.heading for section in found)
    return tuple(each for each in found if count[each.heading] == 1 and len(each.words) >= PARAGRAPH)
