"""What the model predicts of long documents: NLL by position, and of the same tokens within a context that it knows.

long       documents in one forward each, to a quarter beyond the trained length; one of them much further
reference  the same tokens at the end of windows that stay within the trained length
context    the same tokens again, with ever fewer before them
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

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
seven eighths long, and gives the NLL of its last eighth."""

PARTS = 32
"""Buckets up to the edge: a break is located to one of them."""

MOST, FEWEST = 16, 2
"""Documents."""

SEARCHED = 16
"""Windows of a document in which a break before the declared length is looked for."""

SUSTAINED = 3
"""Buckets after a broken one that must, taken together, be broken too."""

EARLY = 7 / 8
"""Share of the declared length; what breaks later is looked for with references around that length."""

MOSTLY = 0.8
"""Share of the windows after a break that must be broken, for it to be one."""

WORTH = 0.02
"""Nats a token: a smaller difference does not matter, be it what context gains or what a break costs."""

CHANCE = 0.9
"""Share of ln(vocabulary) from which on predictions are no better than chance."""

SHORT = 512
"""Tokens at most of the short texts on which the declared scaling is compared with none."""

PROBE = 2048
"""Tokens of the forward that the speed is taken from."""

BUDGET = 600.0
"""Seconds that long documents may take by default."""


@dataclass(frozen=True)
class Profile:
    """NLL in nats a token; nan where it was not measured.

    trained: tokens as declared. edge: tokens up to which the model was found to hold in the search, at most trained.
    near: tokens up to which all documents have a reference; beyond, few do. nll: (documents, tokens). reference: the
    same with context within the edge. context: tokens of context -> (units,) of the same tokens. scaled: (units,) under
    the declared scaling minus without it, on short texts; None where none is declared. vocabulary: tokens; ln of it is
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
        """Tokens of the longest document."""
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
        """Whether its NLL is worse by more than chance."""
        return self.low is not None and self.low > 0


def at_chance(nll: Array, vocabulary: int) -> bool:
    """Whether no part of the positions of (documents, tokens) is predicted better than by chance."""
    parts = (part[np.isfinite(part)] for part in np.array_split(nll, SEARCHED, axis=1))
    return not any(len(part) and part.mean() < CHANCE * math.log(vocabulary) for part in parts)


def buckets(profile: Profile) -> list[Bucket]:
    """NLL by position; with the paired excess wherever there is a reference. Buckets are wide beyond `near`."""
    width, near = max(BLOCK, profile.edge // PARTS // BLOCK * BLOCK), min(profile.near, profile.length)
    edges = [*range(0, near, width), *range(near, profile.length, profile.edge // 8), profile.length]
    result = []
    for start, end in pairwise(edges):
        values = profile.nll[:, start:end]
        if not np.isnan(values).all():
            result.append(Bucket(start, end, float(np.nanmean(values)), *_excess(profile, start, end)))
    return result


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
    """The first broken bucket whose successors together are broken as well: among so many buckets one in forty exceeds
    its reference by chance. A break may begin with a small excess, but somewhere it must surely exceed WORTH.

    None where the model never predicts better than chance: then nothing breaks.
    """
    if at_chance(profile.nll[:, : profile.trained], profile.vocabulary):
        return None
    measured = [bucket for bucket in buckets(profile) if bucket.excess is not None]
    for number, bucket in enumerate(measured):
        after = measured[number + 1 : number + 1 + SUSTAINED]
        _, low, _ = _excess(profile, after[0].start, after[-1].end) if after else (None, bucket.low, None)
        matters = any(later.low is not None and later.low > WORTH for later in measured[number:])
        if bucket.broken and low is not None and low > 0 and matters:
            return bucket
    return None


@dataclass(frozen=True)
class Workload:
    """What is to be run: documents of `zone` tokens, and one of `far`, 0 for none; `searched` of them for the edge."""

    trained: int
    zone: int
    documents: int
    far: int
    searched: int

    @property
    def cost(self) -> float:
        """Units that it takes: tokens, each weighed by estimate.growth of its forward's length."""
        window, rows = self.trained * 7 // 8, (EIGHTHS + 1) * self.documents
        long = self.documents * _units(self.zone) + _units(self.far)
        search = self.searched * self.trained * estimate.growth(self.trained // SEARCHED)
        contexts = self.documents * sum(_units(self.trained // part) for part in (2, 4, 8))
        return long + search + rows * _units(window) + 2 * _units(window) * bool(self.far) + contexts

    def __str__(self) -> str:
        further = f", and one of {self.far:,}" if self.far else ""
        return f"{self.documents} documents of {self.zone:,} tokens{further}"

    def left_out(self, available: int, far: int, budget: float) -> str:
        """What the budget left out; "" where nothing."""
        parts, most = [], min(MOST, available)
        if self.documents < most:
            parts.append(f"{self.documents} documents of {most}")
        if self.far < far:
            parts.append(f"{self.far:,} tokens of {far:,}" if self.far else f"none of {far:,} tokens")
        return f"{' and '.join(parts)}: more take over {budget:g} s (budget=SECONDS)" if parts else ""


def _units(length: int) -> float:
    return length * estimate.growth(length)


def workload(trained: int, available: int, far: int, units: float) -> Workload:
    """As many documents as the units allow, and first of all a far one; at least FEWEST and no far one."""
    zone, searched = trained + trained * EIGHTHS // 8, min(4 if trained < 4096 else FEWEST, available)
    documents = min(FEWEST, available)
    while far and Workload(trained, zone, documents, far, searched).cost > units:
        far = far // 2 if far // 2 >= 2 * trained else 0
    while documents < min(MOST, available) and Workload(trained, zone, documents + 1, far, searched).cost <= units:
        documents += 1
    return Workload(trained, zone, documents, far, min(searched, documents))


def measure(
    built: Built,
    model: Model,
    source: str,
    target: int | None,
    budget: float = BUDGET,
    say: Callable[[str], None] = lambda message: None,
) -> Profile:
    """Run the model over long documents, as many and as long as the budget (seconds) allows; `say` is called before.

    Raises:
        Refusal: the text is not there, or too short for a document a quarter beyond the trained length.
    """
    start = time.monotonic()
    score = _Scorer(built, model)
    trained = built.files.global_geometry.trained_length
    windows = text.windows(source, score.encode, trained + trained * EIGHTHS // 8)
    far = _far(source, score, target or 4 * trained, 2 * trained)
    speed = score.seconds_a_unit(trained)
    work = workload(trained, len(windows), len(far), budget / speed)
    say(f"{work}: about {duration(speed * work.cost)}")
    documents = [windows[n].ids for n in np.linspace(0, len(windows) - 1, work.documents).astype(int)]
    rows = [*documents, far[: work.far]] if work.far else documents
    with tqdm(
        total=round(work.cost),
        desc="long documents",
        bar_format="{desc}: {percentage:3.0f}% after {elapsed}, left {remaining}",
        mininterval=0.1 if sys.stderr.isatty() else 15.0,
        leave=False,
    ) as score.bar:
        nll = np.full((len(rows), max(map(len, rows))), np.nan)
        for number, row in enumerate(rows):
            nll[number, 1 : len(row)] = score.document(row)
        edge, near = _edge(score, documents[: work.searched], nll, trained)
        reference = _reference(score, rows, edge, near, nll.shape[1])
        context = _context(score, documents, nll, edge)
        scaled = _scaled(score, built, documents, min(SHORT, trained // 4))
    note = work.left_out(len(windows), len(far), budget)
    seconds = time.monotonic() - start
    return Profile(
        built.files, trained, edge, near, nll, reference, score.vocabulary, context, scaled, source, note, seconds
    )


def _far(source: str, score: _Scorer, length: int, least: int) -> tuple[int, ...]:
    """The longest document that the text has of these: `length` tokens, half of it, and so on down to `least`."""
    while length >= least:
        try:
            return text.windows(source, score.encode, length, 1)[0].ids
        except Refusal:
            length //= 2
    return ()


def _edge(score: _Scorer, rows: Sequence[tuple[int, ...]], nll: Array, trained: int) -> tuple[int, int]:
    """Up to where the model holds, and from where on it surely does not: the declared length and a quarter more, or
    less where it breaks before. The search compares NLL in the document with that at the end of short windows."""
    unbroken = trained, trained + trained * EIGHTHS // 8
    if at_chance(nll[: len(rows), :trained], score.vocabulary):
        return unbroken
    width = max(2 * BLOCK, trained // SEARCHED)
    half = width // 2
    windows = [(start, start + width) for start in range(0, trained - width + 1, width)]
    short = np.stack([score.ends(row, windows, width - half) for row in rows])
    lows = []
    for number, (start, end) in enumerate(windows):
        excess = blocks(nll[: len(rows), start + half : end] - short[:, number])
        lows.append(statistics.trimmed(excess)[1] if len(excess) > 2 else -math.inf)
    for number in range(1, len(lows)):  # the first window is the document itself
        sustained = lows[number] > 0 and np.mean(np.array(lows[number:]) > 0) > MOSTLY
        if (number + 1) * width <= EARLY * trained and sustained and max(lows[number:]) > WORTH:
            return number * width, (number + 1) * width
    return unbroken


def _reference(score: _Scorer, rows: Sequence[tuple[int, ...]], edge: int, near: int, width: int) -> Array:
    """(documents, width): NLL of tokens from an eighth before the edge to `near`, and half way and at the end of a far
    document, each within seven eighths of the edge."""
    reference = np.full((len(rows), width), np.nan)
    eighth, window = edge // 8, edge * 7 // 8
    for number, row in enumerate(rows):
        ends = [end for end in range(edge, near + 1, eighth) if end <= len(row)]
        ends += [end for end in (len(row) // 2, len(row)) if end > ends[-1] + eighth]
        for end, nll in zip(ends, score.ends(row, [(end - window, end) for end in ends], eighth), strict=True):
            reference[number, end - eighth : end] = nll
    return reference


def _context(score: _Scorer, rows: Sequence[tuple[int, ...]], nll: Array, edge: int) -> dict[int, Array]:
    """NLL of the sixteenth before the edge, with all that is before it, half of that, a quarter, and an eighth."""
    last = max(BLOCK, edge // 16)
    first = edge - last
    contexts = [edge // part for part in (2, 4, 8) if edge // part < first]
    ends = np.stack([score.ends(row, [(first - context, edge) for context in contexts], last) for row in rows])
    return {first: blocks(nll[: len(rows), first:edge])} | {
        context: blocks(ends[:, number]) for number, context in enumerate(contexts)
    }


def _scaled(score: _Scorer, built: Built, rows: Sequence[tuple[int, ...]], length: int) -> Array | None:
    """The declared scaling's NLL minus that of plain frequencies, on the first tokens of each document."""
    from rope.patch import patched

    geometries = built.files.geometries
    if not any(geometry.natives for geometry in geometries.values()):
        return None
    plain = []
    for layers, geometry in geometries.items():
        unscaled = Plan(tuple(inverse_frequencies(geometry.rotated, geometry.base).tolist()))
        plain.append((layers, geometry.native(length) if bounded(layers) else unscaled))
    declared = np.stack([score.document(row[:length]) for row in rows])
    with patched(built.model, tuple(plain)):
        return blocks(declared - np.stack([score.document(row[:length]) for row in rows]))


class _Scorer:
    """NLL of token ids, without a BOS, by the scorer of the task perplexity."""

    def __init__(self, built: Built, model: Model) -> None:
        from pipelines.tasks.scorer import LongLM

        self.lm = LongLM(built.model, load.tokenizer(model), max_length=2**31)
        self.vocabulary = self.lm.vocabulary
        self.bar = tqdm(disable=True)

    def encode(self, source: str) -> list[int]:
        return list(self.lm.tok_encode(source, add_special_tokens=False))

    def document(self, ids: Sequence[int]) -> Array:
        """(tokens - 1,) of a document in one forward."""
        return self.ends(ids, [(0, len(ids))], len(ids) - 1).ravel()

    def ends(self, ids: Sequence[int], windows: Sequence[tuple[int, int]], last: int) -> Array:
        """(windows, last) of the last tokens of windows (start, end) of a document, in one forward each."""
        from pipelines.tasks.exact import Spans

        spans = Spans("windows", ids, [(start, end, last) for start, end in windows])
        (answer,) = self.lm.loglikelihood_rolling([SimpleNamespace(args=(spans,))], disable_tqdm=True)
        self.bar.update(round(sum(_units(end - start) for start, end in windows)))
        nll: Array = -answer.tokens.astype(np.float64)
        return nll.reshape(len(windows), last)

    def seconds_a_unit(self, trained: int) -> float:
        """Of a forward of the trained length, but at most PROBE tokens; after a short one, which sets things up."""
        ids = [token % self.vocabulary for token in range(min(trained, PROBE))]
        self.document(ids[:64])
        start = time.monotonic()
        self.document(ids)
        return (time.monotonic() - start) / _units(len(ids))
