"""Perplexity of documents of exactly the length under test, one forward each, all tokens but the first scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import text
from pipelines.cells import Refusal
from pipelines.tasks.documents import Document, Encoder, stderr

OPTIONS: Mapping[str, Any] = {"text": text.PYDOC, "bos": None, "last": 256, "buckets": 16, "part": None, "skip": 0}
"""text: a source of pipelines/text.py. bos: begin every document with a BOS; None: as the tokenizer does.
part: tune or report, a half of the text. skip: documents left out at its beginning.
last: tokens at the end whose NLL is told on its own. buckets: of equal width, for NLL by position."""


def check(options: Mapping[str, Any], encode: Encoder, length: int) -> None:
    """Refuse where not one document can be made."""
    build(options, encode, length=length, limit=1, seed=0)


def count(options: Mapping[str, Any], encode: Encoder | None, *, length: int, limit: int | None) -> int | None:
    """How many documents there are; of the hub's data sets, and without an encoder, as many as the limit allows."""
    if encode is None or options["text"].startswith(text.HUB):
        return limit
    return len(_windows(options, encode, length, limit))


def build(options: Mapping[str, Any], encode: Encoder, *, length: int, limit: int | None, seed: int) -> list[Document]:
    """Documents of exactly `length` tokens, a BOS among them where one is asked for; the seed changes nothing.

    Raises:
        Refusal: the text is not there or too short, length is below 2, or an option out of its range.
    """
    for name in ("last", "buckets"):
        if options[name] < 1:
            raise Refusal(f"{name}={options[name]} of the task perplexity: give at least 1")
    if not isinstance(options["skip"], int) or options["skip"] < 0:
        raise Refusal(f"skip={options['skip']} of the task perplexity: give a whole number of at least 0")
    if length < 2:
        raise Refusal(f"length={length}: perplexity takes at least 2 tokens, one of them as context")
    beginning = encode.beginning(options["bos"])
    return [_document(encode, (*beginning, *w.ids)) for w in _windows(options, encode, length, limit)]


def _windows(options: Mapping[str, Any], encode: Encoder, length: int, limit: int | None) -> list[text.Window]:
    part, skip = options["part"], options["skip"]
    return text.windows(
        options["text"], encode, length - len(encode.beginning(options["bos"])), limit, part=part, skip=skip
    )


def _document(encode: Encoder, ids: tuple[int, ...]) -> Document:
    return Document(ids, scored=len(ids) - 1, facts=(("bytes", len(encode.text(ids[1:]).encode("utf-8", "replace"))),))


def yaml(options: Mapping[str, Any]) -> str:
    """Name of the lm-eval task that scores the documents."""
    return "perplexity"


def measure(row: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """NLL of one document and of its last tokens, nats a token. What perplexity.yaml calls process_results."""
    (answer,) = results
    tokens, last = answer.tokens.astype(np.float64), row["options"]["last"]
    told = {"nll": -float(tokens.mean())}
    if last <= len(tokens):
        told[f"nll_last_{last}"] = -float(tokens[-last:].mean())
    return told


def finish(
    metrics: dict[str, float], documents: Sequence[Document], answers: Sequence[Any], options: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, list[tuple[float, float]]]]:
    """Adds what is no mean over documents: perplexities, bits per byte; and NLL by position.

    A perplexity is exp of the mean NLL over all scored tokens (documents are of equal length), its standard error that
    of the NLL carried through exp to first order.
    """
    last = f"_last_{options['last']}"
    for end in ("", last) if f"nll{last}" in metrics else ("",):
        metrics[f"ppl{end}"] = _exp(metrics[f"nll{end}"])
        if f"nll{end}_stderr" in metrics:
            metrics[f"ppl{end}_stderr"] = metrics[f"ppl{end}"] * metrics[f"nll{end}_stderr"]
    bits = np.array([-float(answer) for answer in answers]) / math.log(2)
    sizes = np.array([document.fact("bytes") for document in documents], dtype=np.float64)
    if sizes.sum() > 0:
        ratio = float(bits.sum() / sizes.sum())
        metrics["bits_per_byte"] = ratio
        spread = stderr(list((bits - ratio * sizes) / sizes.mean()))
        if spread is not None:
            metrics["bits_per_byte_stderr"] = spread
    nll = -np.stack([answer.tokens for answer in answers]).mean(axis=0, dtype=np.float64)
    return metrics, {"nll_by_position": by_position(nll, options["buckets"])}


def by_position(nll: NDArray[np.float64], buckets: int) -> list[tuple[float, float]]:
    """(tokens up to the bucket's end, mean NLL within) for buckets of equal width over the document.

    nll: (length - 1,) of the tokens at positions 1 ... length - 1: position 0 is context alone.
    """
    edges = np.linspace(0, len(nll) + 1, min(buckets, len(nll)) + 1).round().astype(int)
    inside = [(start, end) for start, end in pairwise(edges) if end > max(start, 1)]
    return [(float(end), float(nll[max(start, 1) - 1 : end - 1].mean())) for start, end in inside]


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf
