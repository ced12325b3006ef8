"""Perplexity of documents: one window each of exactly the length under test, or windows that slide over them.

Published perplexities differ by how windows are laid and losses averaged; every way is an option here:

    prefix        the first `length` tokens in one forward, all but the first scored (YaRN's --truncate)
    sliding       a window every `stride` tokens, each scoring what none before it did; every token counts alike
                  (Press et al. 2022, https://arxiv.org/abs/2108.12409; position interpolation)
    means         the same windows, but the mean of their means: the first window counts as much as one of `stride`
                  tokens (jquesnelle/yarn, eval/perplexity.py without --truncate)
    overlapping   every window that fits, a `stride` apart, each scoring all its tokens but the first
                  (dvlab-research/LongLoRA, eval.py, on one stream that leaves out the last; LCEG, ChunkLlama)

The last k tokens alone (bojone/rerope) are the metric nll_last_k of `last=k`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.records.cells import Refusal
from pipelines.tasks import distance, text
from pipelines.tasks.documents import Document, Encoder, Span, ratio
from pipelines.tasks.kinds import Measure, OwnTask, Selection
from rope import strategies

WINDOWS = ("prefix", "sliding", "means", "overlapping")

OPTIONS: Mapping[str, Any] = {
    "text": text.PYDOC,
    "bos": None,
    "last": 256,
    "buckets": 16,
    "windows": "prefix",
    "stride": 256,
    "document": None,
    "at_least": None,
    "choose": "first",
    "bos_at": "window",
    "part": None,
    "skip": 0,
    "evaluator": None,
}
"""text: a source of pipelines/tasks/text.py. bos: begin every document with a BOS; None: as the tokenizer does.
last: tokens at the end whose NLL is reported on its own. buckets: of equal width, for NLL by position.
windows: how they are laid, as above. stride: tokens from one to the next. document: tokens to which documents are
cut; None: as many as they have. at_least: tokens that a document must have, so that every length can be given the same
documents; None: those of a window. choose: first, or random: as many as the limit, drawn by the seed. bos_at: window or
document, whose beginning a BOS is put at. part: tune or report, a half of the text. skip: documents left out at its
beginning. evaluator: a strategy, or another model of the same tokenizer, that decides which tokens are key
(pipelines/tasks/key_tokens.py); None: none is."""


def _validate(options: Mapping[str, Any], length: int) -> None:
    for name in ("last", "buckets", "stride", "document", "at_least"):
        if options[name] is not None and options[name] < 1:
            raise Refusal(f"{name}={options[name]} of the task perplexity: give at least 1")
    for name, allowed in (("windows", WINDOWS), ("choose", ("first", "random")), ("bos_at", ("window", "document"))):
        if options[name] not in allowed:
            raise Refusal(f"{name}={options[name]} of the task perplexity: give one of {', '.join(allowed)}")
    if not isinstance(options["skip"], int) or options["skip"] < 0:
        raise Refusal(f"skip={options['skip']} of the task perplexity: give a whole number of at least 0")
    if length < 2:
        raise Refusal(f"length={length}: perplexity takes at least 2 tokens, one of them as context")
    sliding = options["windows"] != "prefix"
    if sliding and options["stride"] >= length:
        raise Refusal(
            f"stride={options['stride']} of the task perplexity at length={length}: windows that slide overlap; "
            "give a stride below the length, or windows=prefix"
        )
    if options["evaluator"] is not None:
        if options["evaluator"] in strategies.CROPS_TEXT:
            known = ", ".join(sorted(strategies.STRATEGIES.keys() - strategies.CROPS_TEXT))
            raise Refusal(
                f"evaluator={options['evaluator']} of the task perplexity: give a strategy: {known}; or a model"
            )
        if sliding:
            raise Refusal("evaluator of the task perplexity: key tokens are of whole documents; give windows=prefix")
    if options["document"] is not None and options["document"] < length:
        raise Refusal(f"document={options['document']} of the task perplexity: give at least the length, {length}")


def _pieces(
    options: Mapping[str, Any], encode: Encoder, length: int, limit: int | None, seed: int
) -> list[text.Window]:
    """The documents before a BOS is put to them: of prefix cut to the length, of the others to `document`."""
    room = length - len(encode.beginning(options["bos"]))
    prefix = options["windows"] == "prefix"
    # Windows slide over a document that is shorter than one, where it is said that it may be.
    shorter = options["windows"] in ("sliding", "means")
    least = options["at_least"] if shorter and options["at_least"] else max(room, options["at_least"] or 0)
    cut = text.Cut(
        least=max(least, options["document"] or 0) if prefix else least,
        most=room if prefix else options["document"],
        stride=max(least, options["document"] or 0) if prefix else options["document"],
        count=limit,
        part=options["part"],
        skip=options["skip"],
        drawn=f"perplexity/{seed}" if options["choose"] == "random" else None,
    )
    return text.pieces(options["text"], encode, cut)


def _prefix(encode: Encoder, ids: tuple[int, ...]) -> Document:
    return Document(ids, scored=len(ids) - 1, facts=(("bytes", _bytes(encode, ids[1:])),))


def _windowed(options: Mapping[str, Any], encode: Encoder, ids: tuple[int, ...], length: int) -> Document:
    spans, prefix = _spans(options, encode, len(ids), length)
    if not prefix:
        ids = (*encode.beginning(options["bos"]), *ids)
    facts: dict[str, Any] = {"windows": len(spans)}
    if options["windows"] != "overlapping":  # there a token is scored many times, which no byte is
        facts["bytes"] = _bytes(encode, ids if prefix else ids[1:])
    return Document(ids, sum(span.scored for span in spans), tuple(facts.items()), spans, prefix)


def _spans(
    options: Mapping[str, Any], encode: Encoder, tokens: int, length: int
) -> tuple[tuple[Span, ...], tuple[int, ...]]:
    """The windows of a document of so many tokens, and the BOS before each of them."""
    beginning = encode.beginning(options["bos"])
    prefix = beginning if options["bos_at"] == "window" else ()
    total, room = tokens + len(beginning) - len(prefix), length - len(prefix)
    laid = _overlapping if options["windows"] == "overlapping" else _sliding
    # The first token of a window without anything before it has no context to be scored by.
    return tuple(
        Span(start, stop, min(scored, stop - start - 1 + len(prefix)))
        for start, stop, scored in laid(total, room, options["stride"])
    ), prefix


def _sliding(total: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, tokens that no window before had), until the document ends."""
    stop = 0
    for start in range(0, total, stride):
        before, stop = stop, min(start + length, total)
        yield start, stop, stop - before
        if stop == total:
            return


def _overlapping(total: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    for start in range(0, total - length + 1, stride):
        yield start, start + length, length


def _bytes(encode: Encoder, ids: tuple[int, ...]) -> int:
    return len(encode.text(ids).encode("utf-8", "replace"))


def measure(row: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """NLL of one document and of its last tokens, nats a token. What perplexity.yaml calls process_results."""
    (answer,) = results
    tokens, last = answer.tokens.astype(np.float64), row["options"]["last"]
    metrics = {"nll": -float(tokens.mean())}
    if row["options"]["windows"] == "means":
        metrics["nll"] = -float(np.mean([window.mean() for window in _by_window(row["document"], tokens)]))
    if last <= len(tokens):
        metrics[f"nll_last_{last}"] = -float(tokens[-last:].mean())
    return metrics


def _by_window(document: Document, tokens: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return np.split(tokens, np.cumsum([span.scored for span in document.spans])[:-1])


def _weigh(
    metrics: dict[str, float],
    documents: Sequence[Document],
    records: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> None:
    """Documents of windows differ in size: the mean counts each by its tokens, or by its windows."""
    if options["windows"] == "prefix":
        return
    nll = np.array([record["nll"] for record in records])
    by_token = options["windows"] == "sliding"
    weights = np.array([document.scored if by_token else len(document.spans) for document in documents], np.float64)
    metrics["nll"], spread = ratio(nll * weights, weights)
    if spread is not None and "nll_stderr" in metrics:
        metrics["nll_stderr"] = spread


def by_position(nll: NDArray[np.float64], buckets: int) -> list[tuple[float, float]]:
    """(tokens up to the bucket's end, mean NLL within) for buckets of equal width over the document.

    nll: (length - 1,) of the tokens at positions 1 ... length - 1: position 0 is context alone.
    """
    edges = np.linspace(0, len(nll) + 1, min(buckets, len(nll)) + 1).round().astype(int)
    inside = [(start, end) for start, end in pairwise(edges) if end > max(start, 1)]
    return [(float(end), float(nll[max(start, 1) - 1 : end - 1].mean())) for start, end in inside]


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf


class PerplexityHalves:
    """The two parts of a text."""

    options = ("part", "skip")
    nested = False
    texts = (text.PYDOC, text.STDLIB)

    def check(self, options: Mapping[str, Any]) -> None:
        if options.get("part") is not None or options.get("skip"):
            raise Refusal("task.part and task.skip: a search sets both itself; leave them out")
        if options.get("choose", "first") != "first":
            raise Refusal(
                f"task.choose={options['choose']}: a search goes through the documents in order; leave it out"
            )

    def select(self, part: str, begin: int, end: int, *, count: int, seed: int) -> Selection:
        return Selection({"part": part, "skip": begin}, limit=end - begin, seed=seed)

    def held(self, part: str, options: Mapping[str, Any], encode: Encoder, length: int) -> int | None:
        try:
            return KIND.forwards({**options, "part": part, "windows": "prefix"}, encode, length=length, limit=None)
        except text.TextTooShort:
            return 0


class Perplexity(OwnTask):
    name = "perplexity"
    version = 1
    options = OPTIONS
    optional: Mapping[str, type] = {"bos": bool, "document": int, "at_least": int, "part": str, "evaluator": str}
    hashed = ("text", "bos", "last", "buckets")
    headlines = ("ppl", "ppl_last_256")
    measure = Measure("nll", lower=True, exp="perplexity")
    halves = PerplexityHalves()

    def evaluator(self, options: Mapping[str, Any]) -> str | None:
        name: str | None = options["evaluator"]
        return name

    def worst(self, vocabulary: int) -> float:
        """As of guessing every token alike."""
        return math.log(vocabulary)

    def scored(self, options: Mapping[str, Any], length: int) -> int:
        windows = {**OPTIONS, **options}["windows"]
        return length - 1 if windows in ("prefix", "overlapping") else {**OPTIONS, **options}["stride"]

    def forwards(
        self, options: Mapping[str, Any], encode: Encoder | None, *, length: int, limit: int | None
    ) -> int | None:
        """One a document, or a window of it; of hub data sets, and without an encoder, of as many as the limit."""
        if encode is not None and not options["text"].startswith(text.HUB):
            pieces = _pieces(options, encode, length, limit, seed=0)
            if options["windows"] == "prefix":
                return len(pieces)
            return sum(len(_spans(options, encode, len(piece.ids), length)[0]) for piece in pieces)
        if options["windows"] == "prefix" or limit is None:
            return limit
        if options["document"] is None:
            return None
        return limit * len(list(_sliding(options["document"], length, options["stride"])))

    def build(
        self, options: Mapping[str, Any], encode: Encoder, *, length: int, limit: int | None, seed: int
    ) -> list[Document]:
        """Documents in windows of `length` tokens, a BOS among them where one is asked for.

        The seed draws the documents of choose=random, and changes nothing else.

        Raises:
            Refusal: the text is not there or too short, length is below 2, or an option out of its range.
        """
        _validate(options, length)
        pieces = _pieces(options, encode, length, limit, seed)
        beginning = encode.beginning(options["bos"])
        if options["windows"] == "prefix":
            return [_prefix(encode, (*beginning, *piece.ids)) for piece in pieces]
        return [_windowed(options, encode, piece.ids, length) for piece in pieces]

    def detail(self, document: Document, answer: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """NLL of each bucket of positions, and sums of it by distance, so that two results can be paired by either; of
        windows, which differ in size, the whole log-likelihood in nats."""
        if document.spans:
            return {"log_likelihood": float(answer)}
        nll = -answer.tokens.astype(np.float64)
        sums, counts = distance.by_distance(document.ids, nll)
        means = [mean for _, mean in by_position(nll, options["buckets"])]
        return {"nll_by_position": means, "nll_by_distance": sums, "tokens_by_distance": counts}

    def finish(
        self,
        metrics: dict[str, float],
        documents: Sequence[Document],
        records: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
    ) -> tuple[dict[str, float], dict[str, list[tuple[float, float]]]]:
        """Adds what is no mean over documents: perplexities, bits per byte; and NLL by position.

        A perplexity is exp of the mean NLL over all that is scored: tokens, or windows where their means are averaged;
        its standard error that of the NLL carried through exp to first order.
        """
        _weigh(metrics, documents, records, options)
        last = f"_last_{options['last']}"
        for end in ("", last) if f"nll{last}" in metrics else ("",):
            metrics[f"ppl{end}"] = _exp(metrics[f"nll{end}"])
            if f"nll{end}_stderr" in metrics:
                metrics[f"ppl{end}_stderr"] = metrics[f"ppl{end}"] * metrics[f"nll{end}_stderr"]
        facts = [dict(document.facts) for document in documents]
        sizes = np.array([fact.get("bytes", 0) for fact in facts], dtype=np.float64)
        if sizes.sum() > 0:
            whole = [
                -record.get("log_likelihood", -record["nll"] * d.scored)
                for d, record in zip(documents, records, strict=True)
            ]
            bits = np.array(whole) / math.log(2)
            metrics["bits_per_byte"], spread = ratio(bits, sizes)
            if spread is not None:
                metrics["bits_per_byte_stderr"] = spread
        if options["windows"] != "prefix":
            return metrics, {}
        ends = [end for end, _ in by_position(np.zeros(documents[0].scored), options["buckets"])]
        nll = np.mean([record["nll_by_position"] for record in records], axis=0)
        return metrics, {"nll_by_position": list(zip(ends, nll.tolist(), strict=True))}


KIND = Perplexity()
