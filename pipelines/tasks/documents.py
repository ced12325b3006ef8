"""What a task scores, as exact tokens, and how a text becomes tokens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import uuid4
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from pipelines.records.cells import Options, Refusal
from pipelines.tasks import encoded

SCORER_VERSION = 1
"""Goes up whenever a change to pipelines/tasks/scorer.py can change a score. Here, as that file loads torch."""


CHARACTERS, AROUND = 5, 4096
"""Characters that are encoded for every id that is wanted of a text's beginning, at first; and how many around a line's
end show whether ids before it depend on what follows."""

_LINE_END = re.compile(r"[^\W\d_](?=\n)")
"""A letter at a line's end: what splits a text before it is encoded also splits here."""


class Span(NamedTuple):
    """One forward of a document that is scored window by window: ids[start:stop], of which the last `scored` count."""

    start: int
    stop: int
    scored: int


@dataclass(frozen=True)
class Document:
    """One document of a task.

    ids: all its tokens, BOS included where there is one.
    scored: how many of the last are scored; 0 where an answer is generated after them. Of spans: in all of them.
    facts: what its record holds beside its scores, such as the depth of a key.
    spans: the windows in which it is scored; none: it is one forward.
    prefix: tokens before every window, which are not among ids.
    choices: continuations of ids of which the likeliest is the answer; none: there is nothing to choose.
    room: tokens that an answer may take, where it is generated after ids; 0: as many as its YAML says.
    """

    ids: tuple[int, ...] = field(repr=False)
    scored: int
    facts: Options = ()
    spans: tuple[Span, ...] = field(default=(), repr=False)
    prefix: tuple[int, ...] = ()
    choices: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    room: int = 0

    def fact(self, name: str) -> Any:
        return dict(self.facts)[name]

    @property
    def tokens(self) -> int:
        """Tokens that it takes at most, without those generated."""
        return len(self.ids) + max(map(len, self.choices), default=0)


@dataclass(frozen=True)
class Kept:
    """Documents that were scored before, by a cell that is like this one but for its number of documents.

    cell_id: whose they are. records, digest: as of Scores. names: the metrics among what a record holds.
    """

    cell_id: str
    digest: str
    records: Sequence[Mapping[str, Any]] = field(repr=False)
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.records)

    def begins(self, documents: Sequence[Document]) -> bool:
        """Whether these are the first of the documents, token by token."""
        return 0 < len(self) <= len(documents) and digest(documents[: len(self)]) == self.digest


@dataclass(frozen=True)
class Scores:
    """The results of a task for a model at one length.

    metrics: by name; NAME_stderr where there are at least two documents, absent otherwise.
    series: by name, ((x, y), ...).
    documents: a small record each: index, tokens (in all, BOS included), facts and metrics of the document.
    digest: 16 hex digits of the token ids of all documents in order, and which of them are scored. Of a task that
        lm-eval brings: of the texts of its requests.
    kept: the first of the documents, where they were scored before.
    """

    metrics: dict[str, float]
    series: dict[str, list[tuple[float, float]]]
    documents: list[dict[str, Any]]
    digest: str
    kept: Kept | None = None


_FINGERPRINTS: WeakKeyDictionary[Any, tuple[str, str]] = WeakKeyDictionary()
"""Of tokenizers: what it was taken under, and an Encoder's fingerprint."""


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that adds nothing by itself. Two that give every text the same ids are equal, whatever wraps them."""

    fingerprint: str
    tokenizer: Any = field(compare=False, repr=False)
    template: str = field(default="", repr=False)
    """Of chats; "" where there is none."""

    @classmethod
    def of(cls, tokenizer: Any) -> Encoder:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return cls(uuid4().hex, tokenizer)  # its parts cannot be read: equal to none but itself
        # What comes before the added tokens is the padding and truncation of the last call, which decide nothing here.
        splits = bool(getattr(tokenizer, "split_special_tokens", False))
        template = str(getattr(tokenizer, "chat_template", None) or "")
        # What of it may be set anew; to write all of it out takes 23 ms.
        steps = backend.normalizer, backend.pre_tokenizer, backend.post_processor, backend.decoder
        added = sorted(backend.get_added_tokens_decoder().items())
        settings = repr((tokenizer.bos_token_id, splits, steps, added, id(backend)))
        known = _FINGERPRINTS.get(tokenizer)
        if known is None or known[0] != settings:
            serialized = backend.to_str()
            parts = serialized.partition('"added_tokens"')[2] or serialized
            fingerprint = hashlib.sha256(f"{tokenizer.bos_token_id}\0{splits}\0{parts}".encode()).hexdigest()
            known = _FINGERPRINTS[tokenizer] = settings, fingerprint
        return cls(known[1], tokenizer, template)

    def __call__(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return list(_encoded(self, text))

    def first(self, text: str, count: int) -> list[int]:
        """The first ids of a text, at least so many; all where it has fewer. Those that the whole text begins with.

        Only as much is encoded as is needed, up to the end of a line before which the ids do not depend on what
        follows: whole, ten million characters take 10 s.
        """
        known, size = _beginning(self, text), CHARACTERS * count + AROUND
        while len(known) < count and size < len(text) and (end := self._independent(text, size)):
            known[:] = self._ids(text[:end])
            size *= 2
        return list(known) if len(known) >= count else self(text)

    def _independent(self, text: str, start: int) -> int | None:
        """The end of a line of a text, soon after `start`, before which ids are the same whatever follows."""
        line = _LINE_END.search(text, start, start + AROUND)
        if line is None:
            return None
        end = line.end()
        near = (self._ids(text[end - AROUND : stop]) for stop in (end, end + AROUND))
        alone, followed = near
        return end if followed[: len(alone)] == alone else None

    def _ids(self, text: str) -> list[int]:
        known = getattr(self.tokenizer, "backend_tokenizer", None) is not None
        return encoded.ids(self.tokenizer, text, self.fingerprint if known else None)

    def text(self, ids: Sequence[int]) -> str:
        """The text that ids stand for, special tokens written out."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:  # the same without a look at every id, which takes longer than to decode them
            return str(backend.decode(list(ids), skip_special_tokens=False))
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def beginning(self, bos: bool | None) -> tuple[int, ...]:
        """The BOS id or nothing; None: as the tokenizer does by itself.

        Raises:
            Refusal: a BOS is asked for and the tokenizer has none.
        """
        own = self.tokenizer.bos_token_id
        if bos and own is None:
            raise Refusal("bos=true: this tokenizer has no BOS token; give bos=false, or null for its own habit")
        if bos is None:
            bos = own is not None and self.tokenizer("a")["input_ids"][:1] == [own]
        return (own,) if bos else ()


@lru_cache(maxsize=4)
def _encoded(encode: Encoder, text: str) -> tuple[int, ...]:
    return tuple(encode._ids(text))


@lru_cache(maxsize=4)
def _beginning(encode: Encoder, text: str) -> list[int]:
    """The longest beginning of a text's ids that was asked for, to be lengthened; none yet."""
    return []


def digest(documents: Iterable[Document]) -> str:
    """16 hex digits: equal where the same tokens are scored given the same tokens, in the same order."""
    hashed = hashlib.sha256()
    for document in documents:
        hashed.update(np.array([len(document.ids), document.scored, *document.ids], dtype="<i8").tobytes())
        if document.spans:
            hashed.update(np.array([*document.prefix, *sum(document.spans, ())], dtype="<i8").tobytes())
        for choice in document.choices:
            hashed.update(np.array([len(choice), *choice], dtype="<i8").tobytes())
    return hashed.hexdigest()[:16]


def stderr(values: Sequence[float]) -> float | None:
    """Standard error of the mean of at least two values, else None."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def ratio(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float | None]:
    """Of all sums over all weights, and its standard error over documents to first order."""
    mean = float(sums.sum() / weights.sum())
    return mean, stderr(list((sums - mean * weights) / weights.mean()))
