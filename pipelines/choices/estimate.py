"""Cells -> documents, passes, memory and time, before anything runs and without torch. What is not known is None.

Memory is counted from the config: weights, one forward without a cache, and a chunk of the head. Time is scaled from
earlier cells of the same model where the store has any; otherwise it is a guess, and says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np

from pipelines.choices.sweep import evaluator_of, geometry_for
from pipelines.models import find, weights
from pipelines.records import memory, provenance
from pipelines.records.cells import Cell, Model, Refusal, Result, Task
from pipelines.records.numbers import GIB, duration
from pipelines.records.results import Store
from pipelines.tasks import registry
from rope import strategies
from rope.config import text_config
from rope.cropping import cropped

BATCH_TOKENS, HEAD_ELEMENTS, ROWS, WORK, LEAN_FROM, FEWEST = 16384, 2**25, 16384, 5 * 2**29, 1024, 256
"""scorer's, forward's and shared's, which take an import of torch to read; a test holds them together."""

PROCESS_BYTES = {"cpu": 1.17e9, "cuda": 3.4e7}
"""What a worker holds besides: Python, torch, transformers and lm-eval in resident memory; a GPU's cuBLAS workspace."""

FLOPS = {"cpu": 3e10, "cuda": 1.5e14}
"""A guess at what arrives, FLOP/s: of each CPU core in float32, of a data-centre GPU in 16 bits (a fifth in 32)."""

Number = TypeVar("Number", int, float)

NEWEST = 200
"""Earlier cells that are looked at."""

Earlier = tuple[dict[str, Any], Result]
"""An earlier cell (Cell.spec) with its result."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """What of a decoder's config decides memory and time; widths in elements, parameters counted from them.

    by_rows: whether long texts go in chunks of rows, as they do where attention is plain.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool
    by_rows: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """The shape of a Llama-like decoder; None where the config lacks a width, or has experts."""
        text = text_config(config)
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        if any("expert" in name for name in text) or not all(isinstance(text.get(name), int) for name in names):
            return None
        hidden, intermediate, layers, heads, vocabulary = (int(text[name]) for name in names)
        width = int(text.get("head_dim") or hidden // heads)
        keys = int(text.get("num_key_value_heads") or heads) * width
        tied = bool(text.get("tie_word_embeddings"))
        by_rows = not text.get("attn_logit_softcapping")
        return cls(hidden, intermediate, layers, heads, heads * width, keys, vocabulary, tied, by_rows)

    @property
    def body(self) -> int:
        """Parameters that every token meets, the head among them."""
        attention = 2 * self.hidden * (self.queries + self.keys)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.body + (0 if self.tied else self.vocabulary * self.hidden)

    def elements(self, length: int, rows: int, *, fused: bool) -> int:
        """Elements held at the worst moment of a forward over `rows` documents of `length` tokens.

        In every layer the residual, what goes in, what comes out and the embeddings that the decoder keeps; with them
        either gate, up and their product, or queries and keys before, in and after rotation with the values. Where
        attention is not fused also its scores, before and after the softmax, and the mask.
        """
        tokens = rows * length
        mlp = tokens * 3 * self.intermediate
        attention = tokens * (3 * self.queries + 4 * self.keys)
        if not fused:
            attention += rows * length**2 * (2 * self.heads + 2)
        return tokens * 4 * self.hidden + max(mlp, attention)

    def chunk(self, size: int, device: str) -> int:
        """Rows of a chunk of a long text, whose numbers take `size` bytes each."""
        rows = ROWS
        while device == "cuda" and 2 * rows * size * (3 * self.intermediate + 8 * self.hidden) <= WORK:
            rows *= 2
        return rows

    def elements_by_rows(self, length: int, chunk: int) -> int:
        """The same of one document that goes layer by layer in chunks of rows: of all rows the hidden states, one
        layer's keys and values, cosines and sines; of a chunk's gate, up and their product, and its hidden states."""
        tokens = 2 * self.queries // self.heads + self.hidden + 2 * self.keys
        return length * tokens + min(length, chunk) * (3 * self.intermediate + 2 * self.hidden)

    def flop(self, length: int) -> float:
        """FLOP of one token in a forward over `length` tokens: the weights, and causal attention over half of it."""
        return 2.0 * self.body + 2.0 * self.layers * self.queries * length


@dataclass(frozen=True)
class CellWork:
    """What a cell takes. forwards, tokens: None where only lm-eval knows. context: tokens of a document in a forward.
    at_once: tokens of the largest forward.

    A text with several answers is counted once, as it is read; cropped, its windows may differ from answer to answer,
    and are counted each. A task of lm-eval is counted as its limit, at the full length each: its documents may be
    shorter, or asked about more than once.
    """

    forwards: int | None
    tokens: int | None
    context: int
    at_once: int


@dataclass(frozen=True)
class Speed:
    """Seconds a token, by length, and where they come from."""

    lengths: tuple[float, ...]
    seconds: tuple[float, ...]
    basis: str

    def at(self, length: int) -> float:
        """Between measured lengths by the straight line, beyond them as attention grows."""
        inside = min(max(float(length), self.lengths[0]), self.lengths[-1])
        return float(np.interp(inside, self.lengths, self.seconds)) * growth(length) / growth(inside)


@dataclass(frozen=True)
class Load:
    """What the cells of one model, dtype and device class take together.

    seconds: on one worker, loading not counted; None where a cell's documents or the model's shape are not known.
    basis: where the seconds come from. peak_bytes: of the longest cell. room_bytes: of the device; None: not known.
    fits: the largest length whose forward fits into it, tokens.
    """

    model: str
    dtype: str
    device: str
    cells: int
    passes: int | None
    tokens: int | None
    seconds: float | None
    basis: str
    longest: int
    weight_bytes: float | None
    peak_bytes: float | None
    room_bytes: int | None
    fits: int | None


def survey(cells: Iterable[Cell]) -> tuple[dict[str, CellWork], dict[str, str]]:
    """Each cell's work by its id; and of those whose text or task refuses them, the reason."""
    work, refused = dict[str, CellWork](), dict[str, str]()
    seen: dict[Any, CellWork | str] = {}
    # Task by task: the text that one encodes is still remembered for the next length.
    for cell in sorted(cells, key=lambda cell: (cell.model.name, cell.task.name, cell.length)):
        key = (cell.model, cell.task, cell.length, cell.limit, cropped(cell.plans))
        if key not in seen:
            try:
                seen[key] = _work(cell)
            except Refusal as reason:
                seen[key] = str(reason)
        counted = seen[key]
        if isinstance(counted, str):
            refused[cell.id] = counted
        else:
            work[cell.id] = counted
    return work, refused


def _work(cell: Cell) -> CellWork:
    weights.check(cell.model, needed=False)
    tokenizer = find.plain_tokenizer(cell.model)
    forwards = registry.forwards(cell.task, tokenizer, length=cell.length, limit=cell.limit)
    windows, context = pieces(cell)
    others = [pieces(other) for other in _evaluating(cell)]
    passes, tokens = windows + sum(n for n, _ in others), windows * context + sum(n * size for n, size in others)
    context = max(context, *(size for _, size in others)) if others else context
    rows = max(1, min(windows * (forwards or 1), BATCH_TOKENS // context))
    if forwards is None:
        return CellWork(None, None, context, rows * context)
    if (choices := registry.choices(cell.task)) > 1 and cropped(cell.plans) is None and context >= FEWEST:
        forwards //= choices  # beside their text answers are but a few tokens
    return CellWork(forwards * passes, forwards * tokens, context, rows * context)


def _evaluating(cell: Cell) -> list[Cell]:
    """The same documents under what decides which tokens are key; another model is taken to cost as much as this."""
    evaluator = registry.evaluator(cell.task)
    if evaluator is None:
        return []
    geometries, strategy = geometry_for(cell.model)[2], "none" if evaluator_of(cell.task) else evaluator
    plans = (strategies.plans(name, geometries, cell.length) for name in ("crop", strategy))
    return [replace(cell, plans=each) for each in plans]


def pieces(cell: Cell) -> tuple[int, int]:
    """Into how many windows a plan crops a document, and their tokens; 1 and the length where it crops nothing."""
    crop = cropped(cell.plans)
    if crop is None:
        return 1, cell.length
    scored = registry.kind(cell.task.name).scored(dict(cell.task.options), cell.length)
    seen = cell.length - 1  # the last token is only scored
    return len(list(crop.windows(seen, min(scored, seen)))), crop.window


class Newest:
    """The newest results of a store, by which speed and the spread of documents are judged: read once, when they are
    first needed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def rows(self) -> list[Earlier]:
        return list(self._store.newest(NEWEST))


def loads(cells: Sequence[Cell], work: Mapping[str, CellWork], newest: Newest) -> list[Load]:
    """One load for each model, dtype and device class of these cells."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.dtype, cell.device), []).append(cell)
    return [_load(group, work, newest.rows) for group in groups.values()]


def _load(cells: Sequence[Cell], work: Mapping[str, CellWork], measured: Sequence[Earlier]) -> Load:
    first = cells[0]
    _, config, _ = geometry_for(first.model)
    shape = Shape.of(config)
    times = [_seconds(cell, work[cell.id], shape, measured) for cell in cells]
    room, longest = capacity(first.device), max(cells, key=lambda cell: (cell.length, work[cell.id].at_once))
    passes, tokens = ([getattr(work[cell.id], name) for cell in cells] for name in ("forwards", "tokens"))
    return Load(
        model=first.model.name,
        dtype=first.dtype,
        device=first.device,
        cells=len(cells),
        passes=total(passes),
        tokens=total(tokens),
        seconds=total(seconds for seconds, _ in times),
        basis="; ".join(dict.fromkeys(basis for _, basis in times)),
        longest=longest.length,
        weight_bytes=float(shape.parameters * BYTES[first.dtype]) if shape else None,
        peak_bytes=max(peak(shape, first, work[c.id].context, work[c.id].at_once) for c in cells) if shape else None,
        room_bytes=room,
        fits=largest(shape, first, room) if shape and room else None,
    )


def peak(shape: Shape, cell: Cell, length: int, at_once: int) -> float:
    """Bytes at the worst moment of a forward over `at_once` tokens, in documents of `length`."""
    size, rows = BYTES[cell.dtype], max(1, at_once // length)
    # torch has no fused attention on a GPU for float32 where several queries share a key.
    fused = not (cell.device == "cuda" and cell.dtype == "float32" and shape.keys < shape.queries)
    chunk = shape.chunk(size, cell.device)
    if shape.by_rows and length > (chunk if fused else LEAN_FROM):
        forward = size * (shape.elements_by_rows(length, chunk) + (rows - 1) * length * shape.hidden)
    else:
        forward = size * shape.elements(length, rows, fused=fused)
    # Logits as the head gives them, in float32 where that is another type, and as much again for their logsumexp.
    logits = min(length, max(1, HEAD_ELEMENTS // shape.vocabulary)) * shape.vocabulary * (8 if size == 4 else size + 8)
    head = at_once * size * shape.hidden + logits
    return shape.parameters * size + max(forward, head) + PROCESS_BYTES[cell.device]


def rough(shape: Shape, length: int, tokens: int) -> tuple[float, float]:
    """(bytes, seconds) on one data-centre GPU in 16 bits, of a model that is not here: weights, the largest forward,
    and a guess at the speed."""
    chunk = shape.chunk(2, "cuda")
    by_rows = length > chunk
    forward = 2 * (shape.elements_by_rows(length, chunk) if by_rows else shape.elements(length, 1, fused=True))
    return shape.parameters * 2 + forward + PROCESS_BYTES["cuda"], tokens * shape.flop(length) / FLOPS["cuda"]


def largest(shape: Shape, cell: Cell, room: int) -> int:
    """The largest length whose forward fits into `room` bytes, to three digits downwards; 0 where none does."""
    low, high = 0, 2**40
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if peak(shape, cell, middle, middle) <= room else (low, middle)
    step = int(10 ** max(0, len(str(low)) - 3))
    return low // step * step


@lru_cache(maxsize=2)
def capacity(device: str) -> int | None:
    """Bytes of memory that this process may use, or of the smallest GPU; None: not known, as of a cluster."""
    if "RAY_ADDRESS" in os.environ:
        return None
    if device == "cuda":
        return min((mib * 2**20 for _, mib in provenance.gpus() if mib is not None), default=None)
    return memory.limit()


@lru_cache(maxsize=64)
def need(model: Model, length: int, dtype: str, device: str) -> float | None:
    """Bytes at the worst moment of a cell, its forwards as large as they get; None where the model does not tell.

    Reads nothing of the text: quick, and above the truth where there are few documents.
    """
    shape = _shape(model)
    cell = Cell(model, "none", (), length, (), Task(""), "", None, 0, dtype, device)
    return peak(shape, cell, length, max(1, BATCH_TOKENS // length) * length) if shape else None


def fitting(cell: Cell) -> int | None:
    """The largest length of which one document fits into the memory that there is; None where that is not known."""
    shape, room = _shape(cell.model), capacity(cell.device)
    return largest(shape, cell, room) if shape and room else None


@lru_cache(maxsize=8)
def _shape(model: Model) -> Shape | None:
    try:
        return Shape.of(geometry_for(model)[1])
    except (Refusal, KeyError):  # a model that is described, or not here
        return None


def _seconds(cell: Cell, work: CellWork, shape: Shape | None, measured: Sequence[Earlier]) -> tuple[float | None, str]:
    if work.tokens is None:
        return None, f"task {cell.task.name} without a limit: how many forwards it takes is not known before it runs"
    speed = _measured(cell, measured)
    if speed is not None:
        return work.tokens * speed.at(work.context), speed.basis
    if shape is None:
        return None, "no earlier cell of this model, and its config does not tell its size"
    rate = FLOPS["cpu"] * (os.cpu_count() or 1) if cell.device == "cpu" else FLOPS["cuda"]
    slower = 5 if cell.device == "cuda" and cell.dtype == "float32" else 1
    return work.tokens * shape.flop(work.context) * slower / rate, f"a guess: {rate / slower / 1e12:.3g} TFLOP/s"


def _measured(cell: Cell, measured: Sequence[Earlier]) -> Speed | None:
    """Speed of earlier cells of the same model, dtype and device class; of the same task where there are any."""
    alike = [
        (spec, result.cost)
        for spec, result in measured
        if spec["model"]["fingerprint"] == cell.model.fingerprint
        and (spec["dtype"], spec["device"]) == (cell.dtype, cell.device)
        and result.cost.get("tokens_per_second")
    ]
    alike = [row for row in alike if row[0]["task"]["name"] == cell.task.name] or alike
    spent: dict[int, list[tuple[float, float]]] = {}
    for spec, cost in alike:
        context = min(plan.get("window", spec["length"]) for _, plan in spec["plans"])
        spent.setdefault(context, []).append((cost["tokens"] / cost["tokens_per_second"], cost["tokens"]))
    if not spent:
        return None
    # Tokens a second of all the cells of a length together: long cells tell more than short ones.
    rates = [(float(n), sum(s for s, _ in spent[n]) / sum(t for _, t in spent[n])) for n in sorted(spent)]
    lengths, seconds = zip(*rates, strict=True)
    cells = f"{len(alike)} earlier cell{'s' if len(alike) > 1 else ''}"
    return Speed(lengths, seconds, f"measured: {cells}")


def growth(length: float) -> float:
    """Relative cost of one token: a pass costs by the token, and attention by the token's context on top."""
    return 1 + length / 8192


def total(values: Iterable[Number | None]) -> Number | None:
    """The sum; None where any of it is not known."""
    terms = list(values)
    known = [value for value in terms if value is not None]
    return sum(known) if len(known) == len(terms) else None


def sentence(todo: Sequence[Cell], newest: Newest) -> str:
    """Time and memory of cells in a line, for who is about to run them; "" where neither is known."""
    work, _ = survey(todo)
    known = loads([cell for cell in todo if cell.id in work], work, newest)
    seconds = total(load.seconds for load in known)
    peaks = [load.peak_bytes for load in known if load.peak_bytes is not None]
    parts = [f"about {duration(seconds)} on one worker"] if seconds is not None and known else []
    parts += [f"up to {max(peaks) / GIB:.1f} GiB"] if peaks else []
    basis = "; ".join(dict.fromkeys(load.basis for load in known))
    return f"estimate: {', '.join(parts)} ({basis})" if parts else ""
