"""What is measured: perplexity and passkey, which need no network, and the door to lm-eval's own tasks.

Importing this loads neither torch nor lm-eval; `score` does.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pipelines.records.cells import Options, Refusal, Task
from pipelines.tasks import named, passkey, perplexity, text
from pipelines.tasks.documents import Document, Encoder, Recipe, Scores, digest

if TYPE_CHECKING:
    from pipelines.tasks.scorer import LongLM

__all__ = ["OVER", "VERSIONS", "Scores", "forwards", "options_of", "prepare", "score", "told", "versions"]

VERSIONS = {"perplexity": 1, "passkey": 2}
"""A task's version goes up whenever a change can change its documents or its metrics."""

_SCORER = 1
"""scorer.SCORER_VERSION, which takes an import of torch to read; a test holds the two together."""

OVER: Mapping[str, Callable[[Sequence[tuple[float, float]]], float]] = {
    "passkey_context": passkey.passkey_context,
    "passkey_accuracy": passkey.passkey_accuracy,
}
"""Metrics that are of a task's `acc` at several lengths: (tokens, acc) of each -> one number."""

_RECIPES: dict[str, Recipe] = {"perplexity": perplexity, "passkey": passkey}


def versions(task: Task) -> dict[str, Any]:
    """Versions of whatever decides a task's numbers: of the scorer, and of the task or of lm-eval that brings it."""
    own = {"task": VERSIONS[task.name]} if task.name in VERSIONS else {"lm_eval": importlib.metadata.version("lm_eval")}
    return {"scorer": _SCORER, **own}


def told(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A task's options as a cell has them: without those that came later and change nothing."""
    later = _RECIPES[name].LATER if name in _RECIPES else {}
    return {key: value for key, value in options.items() if key not in later or value != later[key]}


def prepare(task: Task, tokenizer: Any, *, length: int, limit: int | None, seed: int) -> None:
    """Find out without a model whether a task can be run at this length.

    Raises:
        Refusal: an unknown task or option, text that is not there or too short, packages that are missing.
    """
    options = options_of(task, limit)
    if task.name in _RECIPES:
        _RECIPES[task.name].check(options, Encoder.of(tokenizer), length)
    else:
        named.check(task.name, Encoder.of(tokenizer), length)


def forwards(task: Task, tokenizer: Any | None, *, length: int, limit: int | None) -> int | None:
    """Forwards that a task takes at this length, without a model; None where that is not known before it runs.

    tokenizer: None where none can be had yet; text is then not looked at, as data sets of the hub never are here, and
    the limit is taken for the count.

    Raises:
        Refusal: as `prepare`.
    """
    options = options_of(task, limit)
    encode = None if tokenizer is None else Encoder.of(tokenizer)
    if task.name in _RECIPES:
        if encode is not None and not str(options.get("text", "")).startswith(text.HUB):
            _RECIPES[task.name].check(options, encode, length)
        return _RECIPES[task.name].forwards(options, encode, length=length, limit=limit)
    if encode is None:
        named.find(task.name)
    else:
        named.check(task.name, encode, length)
    return limit


def score(lm: LongLM, task: Task, *, length: int, limit: int | None, seed: int) -> Scores:
    """Run a task at one length; sets lm.max_length to it.

    limit: at most so many documents; None: all there are.
    seed: of generated documents.

    Raises:
        Refusal: as `prepare`; or a task of lm-eval has a request longer than `length`, or data that cannot be loaded.
    """
    options = options_of(task, limit)
    lm.max_length = length
    if task.name in _RECIPES:
        return _score_own(lm, task.name, options, length, limit, seed)
    return _score_named(lm, task.name, options, length, limit, seed)


def _score_own(lm: LongLM, name: str, options: Mapping[str, Any], length: int, limit: int | None, seed: int) -> Scores:
    from pipelines.tasks import harness

    recipe, encode = _RECIPES[name], Encoder.of(lm.tokenizer)
    data = text.digest(options["text"]) if "text" in options else ""
    documents = _documents(name, tuple(options.items()), encode, data, length, limit, seed)
    rows = harness.Rows(documents, encode, options)
    outcome = harness.run(lm, harness.prepared(recipe.yaml(options), rows), length=length, limit=None)
    metrics, series = recipe.finish(dict(outcome.metrics), documents, outcome.answers, options)
    told = [
        {"index": row["index"], "tokens": len(document.ids), **dict(document.facts), **row}
        for document, row in zip(documents, outcome.documents, strict=True)
    ]
    return Scores(metrics, series, told, digest(documents))


def _score_named(
    lm: LongLM, name: str, options: Mapping[str, Any], length: int, limit: int | None, seed: int
) -> Scores:
    from pipelines.tasks import harness

    encode = Encoder.of(lm.tokenizer)
    built = harness.by_name(
        name,
        named.check(name, encode, length),
        length=length,
        encode=encode,
        folder=lm.folder,
        seed=seed,
        num_fewshot=options["num_fewshot"],
    )
    outcome = harness.run(lm, built, length=length, limit=limit)
    # A document may be asked about more than once; its longest request is what must fit.
    tokens = [max(len(lm.tok_encode("".join(parts))) for parts in asked) for asked in outcome.requests]
    told = [{"tokens": count, **row} for count, row in zip(tokens, outcome.documents, strict=True)]
    return Scores(outcome.metrics, {}, told, harness.digest(outcome.requests))


@lru_cache(maxsize=8)
def _documents(
    name: str, options: Options, encode: Encoder, data: str, length: int, limit: int | None, seed: int
) -> list[Document]:
    # `data` is the digest of the text that the options name: the text may change under its name.
    return _RECIPES[name].build(dict(options), encode, length=length, limit=limit, seed=seed)


def options_of(task: Task, limit: int | None) -> Mapping[str, Any]:
    """Every option of a task, defaults included.

    Raises:
        Refusal: an unknown option, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise Refusal(f"limit={limit}: give at least 1 document, or null for all")
    known = _RECIPES[task.name].OPTIONS if task.name in _RECIPES else named.OPTIONS
    unknown = sorted(set(dict(task.options)) - set(known))
    if unknown:
        raise Refusal(f"task {task.name} takes no option {', '.join(unknown)}; its options: {', '.join(known)}")
    return {**known, **dict(task.options)}
