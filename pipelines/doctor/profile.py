"""What the model makes of long documents: NLL by position, and of the same tokens with no more context than it knows.

long       documents in one forward each, to a quarter beyond the trained length; one of them much further
reference  the same tokens at the end of windows that stay within the trained length
context    the same tokens again, with ever less before them
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from pipelines.choices import estimate
from pipelines.doctor.files import Files
from pipelines.doctor.numeric import Built
from pipelines.models import load
from pipelines.records.cells import Model, Refusal
from pipelines.records.numbers import duration
from pipelines.report import statistics
from pipelines.tasks import text
from rope.geometry import Array, Plan, inverse_frequencies
from rope.strategies import bounded

BLOCK = 16
"""Tokens that are averaged before documents are compared: neighbours are not independent."""

EIGHTHS = 2
"""Eighths of the edge beyond it to which documents go. Reference windows end at every eighth from the edge on; each is
seven eighths long, and tells of its last eighth."""

PARTS = 32
"""Buckets an edge has: a cliff is told to one of them."""

MOST, FEWEST = 16, 2
"""Documents."""

SEARCHED = 16
"""Windows of a document in which a break is looked for that comes before the declared length."""

SUSTAINED = 3
"""Buckets after a broken one that must, taken together, be broken too."""

SHORT = 512
"""Tokens at most of the short texts on which the declared scaling is compared with none."""

PROBE = 2048
"""Tokens of the forward that the speed is taken from."""

BUDGET = 600.0
"""Seconds that long documents may take unless told otherwise."""


@dataclass(frozen=True)
class Profile:
    """NLL in nats a token; nan where it was not measured.

    trained: tokens as declared. edge: tokens up to which the model was found to hold in the search, at most trained.
    near: tokens up to which all of them have a reference; beyond, few do. nll: (documents, tokens). reference: the same
    with context within the edge. context: tokens of context -> (units,) of the same tokens. scaled: (units,) under the
    declared scaling minus without it, on short texts; None where none is declared. vocabulary: tokens; ln of it is
    chance. note: what was left out, and why.
    """

    files: Files
    trained: int
    edge: int
    near: int
    nll: Array
    reference: Array
    vocabulary: int
    context: Mapping[int, Array] = field(default_factory=dict)
    scaled: Array | None = None
    text: str = ""
    note: str = ""
    seconds: float = 0.0

    @property
    def length(self) -> int:
        """Tokens up to which any document goes."""
        return int(self.nll.shape[1])


@dataclass(frozen=True)
class Bucket:
    """Tokens start ... end - 1 of all documents: their NLL, and by how much it exceeds the reference's (95 %)."""

    start: int
    end: int
    nll: float
    excess: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def broken(self) -> bool:
        return self.low is not None and self.low > 0


def buckets(profile: Profile) -> list[Bucket]:
    """NLL by position; with the paired excess wherever there is a reference. Buckets are wide beyond `near`."""
    width, near = max(BLOCK, profile.edge // PARTS // BLOCK * BLOCK), min(profile.near, profile.length)
    edges = [*range(0, near, width), *range(near, profile.length, profile.edge // 8), profile.length]
    found = []
    for start, end in pairwise(edges):
        values = profile.nll[:, start:end]
        if not np.isnan(values).all():
            found.append(Bucket(start, end, float(np.nanmean(values)), *_excess(profile, start, end)))
    return found


def _excess(profile: Profile, start: int, end: int) -> tuple[float | None, float | None, float | None]:
    """Mean excess of some tokens, and its interval; None where there is no reference for enough of them."""
    excess = blocks(profile.nll[:, start:end] - profile.reference[:, start:end])
    return statistics.trimmed(excess) if len(excess) > 2 else (None, None, None)


def blocks(values: Array) -> Array:
    """(documents, tokens) -> the means of whole blocks that have no nan in them."""
    whole = values[:, : values.shape[1] // BLOCK * BLOCK]
    means = whole.reshape(len(whole), -1, BLOCK).mean(axis=2).ravel()
    return np.asarray(means[~np.isnan(means)])


def first_broken(profile: Profile) -> Bucket | None:
    """The first bucket whose excess has an interval above 0, and of whose successors together that is true as well:
    among so many buckets one in forty is above 0 by chance."""
    told = [one for one in buckets(profile) if one.excess is not None]
    for number, one in enumerate(told):
        after = told[number + 1 : number + 1 + SUSTAINED]
        if one.broken and not after:
            return one
        if one.broken:
            _, low, _ = _excess(profile, after[0].start, after[-1].end)
            if low is not None and low > 0:
                return one
    return None


@dataclass(frozen=True)
class Work:
    """What is to be run: documents of `zone` tokens, and one of `far`; 0: none."""

    trained: int
    zone: int
    documents: int
    far: int
    searched: int


def measure(
    built: Built, model: Model, source: str, target: int | None, budget: float = BUDGET,
    say: Callable[[str], None] = lambda words: None,
) -> Profile:  # fmt: skip
    """Run the model over long documents, as many and as long as the budget (seconds) allows; `say` is told beforehand.

    Raises:
        Refusal: the text is not there, or too short for a document a quarter beyond the trained length.
    """
    start = time.monotonic()
    score = _Scorer(built, model)
    trained = built.files.global_geometry.trained_length
    zone = trained + trained * EIGHTHS // 8
    ids = [window.ids for window in text.windows(source, score.encode, zone)]
    far = _far(source, score, target or 4 * trained, 2 * trained)
    speed = score.seconds_a_unit(trained)
    work = planned(trained, len(ids), len(far), budget / speed)
    say(f"{_documents(work)}: about {duration(speed * cost(work))}")
    note = _note(work, len(ids), len(far), budget)
    chosen = [ids[n] for n in np.linspace(0, len(ids) - 1, work.documents).astype(int)]
    with score.counting(cost(work)):
        rows = [*chosen, far[: work.far]] if work.far else chosen
        width = max(map(len, rows))
        nll = np.full((len(rows), width), np.nan)
        for row, told in zip(nll, score.all(rows), strict=True):
            row[1 : 1 + len(told)] = told
        edge, near = _edge(score, chosen[: work.searched], nll, trained)
        reference = _reference(score, rows, edge, near, width)
        context = _context(score, rows[: len(chosen)], nll, edge)
        scaled = _scaled(score, built, chosen, min(SHORT, trained // 4))
    return Profile(
        built.files, trained, edge, near, nll, reference, score.vocabulary, context, scaled, source, note,
        time.monotonic() - start,
    )  # fmt: skip


def _documents(work: Work) -> str:
    further = f", and one of {work.far:,}" if work.far else ""
    return f"{work.documents} documents of {work.zone:,} tokens{further}"


def _note(work: Work, available: int, far: int, budget: float) -> str:
    """What the budget left out; "" where nothing."""
    fewer = work.documents < min(MOST, available)
    left = [f"{work.documents} documents of {min(MOST, available)}"] if fewer else []
    left += [f"none of {far:,} tokens" if not work.far else f"{work.far:,} tokens of {far:,}"] if work.far < far else []
    return f"{' and '.join(left)}: more take over {budget:g} s (budget=SECONDS)" if left else ""


def _far(source: str, score: _Scorer, length: int, least: int) -> tuple[int, ...]:
    """The longest document that the text has of these: `length` tokens, half of it, and so on down to `least`."""
    while length >= least:
        try:
            return text.windows(source, score.encode, length, 1)[0].ids
        except Refusal:
            length //= 2
    return ()


def planned(trained: int, available: int, far: int, units: float) -> Work:
    """As many documents as the units allow, and first of all a far one; at least FEWEST and no far one.

    units: tokens, each weighed by estimate.growth of its forward's length.
    """
    zone, searched = trained + trained * EIGHTHS // 8, min(4 if trained < 4096 else FEWEST, available)
    fewest = min(FEWEST, available)
    while far and cost(Work(trained, zone, fewest, far, searched)) > units:
        far = far // 2 if far // 2 >= 2 * trained else 0
    documents = fewest
    while documents < min(MOST, available) and cost(Work(trained, zone, documents + 1, far, searched)) <= units:
        documents += 1
    return Work(trained, zone, documents, far, min(searched, documents))


def cost(work: Work) -> float:
    """Units that it takes."""
    window, rows = work.trained * 7 // 8, (EIGHTHS + 1) * work.documents
    long = work.documents * _units(work.zone) + _units(work.far)
    search = work.searched * work.trained * estimate.growth(work.trained // SEARCHED)
    contexts = work.documents * sum(_units(work.trained // part) for part in (2, 4, 8))
    return long + search + rows * _units(window) + 2 * _units(window) * bool(work.far) + contexts


def _units(length: int) -> float:
    return length * estimate.growth(length)


def _edge(score: _Scorer, rows: Sequence[tuple[int, ...]], nll: Array, trained: int) -> tuple[int, int]:
    """Up to where the model holds, and from where on it surely does not: the declared length and a quarter more, or
    less where it breaks before. The search compares NLL in the document with that at the end of short windows."""
    window = max(2 * BLOCK, trained // SEARCHED)
    half, broken = window // 2, list[bool]()
    for start in range(0, trained - window + 1, window):
        short = np.stack(score.tails([row[start : start + window] for row in rows], window - half))
        excess = blocks(nll[: len(rows), start + half : start + window] - short)
        broken.append(len(excess) > 2 and statistics.trimmed(excess)[1] > 0)
    for number in range(1, len(broken)):  # the first window is the document itself
        if (number + 1) * window <= EARLY * trained and broken[number] and np.mean(broken[number:]) > MOSTLY:
            return number * window, (number + 1) * window
    return trained, trained + trained * EIGHTHS // 8


EARLY = 7 / 8
"""Share of the declared length; what breaks later is looked for with references around that length."""

MOSTLY = 0.8
"""Share of the windows after a break that must be broken, for it to be one."""


def _reference(score: _Scorer, rows: Sequence[tuple[int, ...]], edge: int, near: int, width: int) -> Array:
    """(documents, width): NLL of tokens from an eighth before the edge to `near`, and half way and at the end of a far
    document, each within seven eighths of the edge."""
    reference = np.full((len(rows), width), np.nan)
    eighth, window = edge // 8, edge * 7 // 8
    for number, row in enumerate(rows):
        ends = [end for end in range(edge, near + 1, eighth) if end <= len(row)]
        ends += [end for end in (len(row) // 2, len(row)) if end > ends[-1] + eighth]
        for end, told in zip(ends, score.tails([row[end - window : end] for end in ends], eighth), strict=True):
            reference[number, end - eighth : end] = told
    return reference


def _context(score: _Scorer, rows: Sequence[tuple[int, ...]], nll: Array, edge: int) -> dict[int, Array]:
    """NLL of the sixteenth before the edge, with all that is before it, half of that, a quarter, and an eighth."""
    last = max(BLOCK, edge // 16)
    first = edge - last
    found = {first: blocks(nll[: len(rows), first:edge])}
    for part in (2, 4, 8):
        context = edge // part
        if first > context:
            told = score.tails([row[first - context : edge] for row in rows], last)
            found[context] = blocks(np.stack(told))
    return found


def _scaled(score: _Scorer, built: Built, rows: Sequence[tuple[int, ...]], length: int) -> Array | None:
    """The declared scaling's NLL minus that of plain frequencies, on the first tokens of each document."""
    from rope.patch import patched

    geometries = built.files.geometries
    if not any(geometry.natives for geometry in geometries.values()):
        return None
    plain = tuple(
        (layers, geometry.native(length) if bounded(layers) else Plan(
            tuple(inverse_frequencies(geometry.rotated, geometry.base).tolist())
        ))
        for layers, geometry in geometries.items()
    )  # fmt: skip
    short = [row[:length] for row in rows]
    declared = np.stack(score.all(short))
    with patched(built.model, plain):
        return blocks(declared - np.stack(score.all(short)))


class _Scorer:
    """NLL of token ids, in forwards of their own, with the time that is left."""

    def __init__(self, built: Built, model: Model) -> None:
        from pipelines.tasks.scorer import LongLM

        tokenizer = load.tokenizer(model)
        self.lm = LongLM(built.model, tokenizer, max_length=2**31)
        self.vocabulary = self.lm.vocabulary
        self.bar: Any = None

    def encode(self, source: str) -> list[int]:
        return list(self.lm.tok_encode(source, add_special_tokens=False))

    def all(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """(tokens - 1,) of each row."""
        return self.tails(rows, None)

    def tails(self, rows: Sequence[Sequence[int]], last: int | None) -> list[Array]:
        """(last,) of the end of each row."""
        told: list[Array] = []
        for some in _batched(rows):
            told += self._score(some, last)
            if self.bar is not None:
                self.bar.update(round(sum(_units(len(row)) for row in some)))
        return told

    def _score(self, rows: Sequence[Sequence[int]], last: int | None) -> list[Array]:
        from pipelines.tasks.scorer import Tokens

        cuts = [1 if last is None else len(row) - last for row in rows]
        pairs = [(Tokens("context", row[:cut]), Tokens("text", row[cut:])) for row, cut in zip(rows, cuts, strict=True)]
        answers = self.lm.loglikelihood([_Request(pair) for pair in pairs], disable_tqdm=True)
        return [-answer.tokens.astype(np.float64) for answer, _ in answers]

    def seconds_a_unit(self, trained: int) -> float:
        """Of a forward of the trained length, but at most PROBE tokens; after a short one, which sets things up."""
        row = [token % self.vocabulary for token in range(min(trained, PROBE))]
        self._score([row[:64]], None)
        start = time.monotonic()
        self._score([row], None)
        return (time.monotonic() - start) / _units(len(row))

    def counting(self, units: float) -> _Bar:
        return _Bar(self, units)


@dataclass
class _Bar:
    score: _Scorer
    units: float

    def __enter__(self) -> None:
        slow = 0.1 if sys.stderr.isatty() else 15.0
        layout = "{desc}: {percentage:3.0f}% after {elapsed}, left {remaining}"
        self.score.bar = tqdm(
            total=round(self.units), desc="long documents", bar_format=layout, mininterval=slow, leave=False
        )

    def __exit__(self, *_: object) -> None:
        self.score.bar.close()
        self.score.bar = None


@dataclass(frozen=True)
class _Request:
    """What lm-eval hands on, as far as LongLM looks into it."""

    args: tuple[Any, ...]


def _batched(rows: Sequence[Sequence[int]]) -> Iterable[list[Sequence[int]]]:
    """Rows in their order, few at a time, so that progress shows."""
    some: list[Sequence[int]] = []
    for row in rows:
        if some and len(row) * (len(some) + 1) > estimate.BATCH_TOKENS // 4:
            yield some
            some = []
        some.append(row)
    if some:
        yield some
