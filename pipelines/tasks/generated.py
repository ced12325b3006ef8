"""Whether what a strategy writes is language: its perplexity under the plain model.

The judge is the model itself as it was trained, given the last tokens of the prompt that it was trained to read. It
knows nothing of the far text, so that what is low here is fluent, right or not: read it beside the score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance

from pipelines.tasks.documents import Document, Encoder, stderr
from pipelines.tasks.exact import Tokens


def nlls(judge: Any, encode: Encoder, documents: Sequence[Document], answers: Sequence[str]) -> list[float | None]:
    """NLL of each answer, nats a token, after its document; None of one without a token.

    judge: a LongLM that is the plain model, cropped to what it was trained on.
    """
    # Encoded anew, an answer may be a token or two longer than it was.
    written = [
        encode(answer.strip("\n"))[: judge.max_length + 1 - len(document.ids)]
        for document, answer in zip(documents, answers, strict=True)
    ]
    requests = [
        Instance(
            "loglikelihood", {}, (Tokens(encode.text(document.ids), document.ids), Tokens(encode.text(ids), ids)), 0
        )
        for document, ids in zip(documents, written, strict=True)
        if ids
    ]
    scored = iter(judge.loglikelihood(requests, disable_tqdm=True) if requests else [])
    return [-float(next(scored)[0]) / len(ids) if ids else None for ids in written]


def metrics(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """nll_generated and its perplexity over the documents that have an answer, each document alike."""
    values = [record["nll_generated"] for record in records if "nll_generated" in record]
    if not values:
        return {}
    mean, spread = sum(values) / len(values), stderr(values)
    found = {"nll_generated": mean, "ppl_generated": math.exp(min(mean, 700.0))}
    if spread is not None:
        found |= {"nll_generated_stderr": spread, "ppl_generated_stderr": found["ppl_generated"] * spread}
    return found
