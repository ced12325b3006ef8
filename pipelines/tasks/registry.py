"""Every task by its name: our own, which need no network, and those of lm-eval.

Importing this loads neither torch nor lm-eval; `score` does.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pipelines.records.cells import Options, Refusal, Task
from pipelines.tasks import named, passkey, perplexity, text
from pipelines.tasks.documents import SCORER_VERSION, Document, Encoder, Scores, digest
from pipelines.tasks.kinds import Curve, OwnTask, TaskKind

if TYPE_CHECKING:
    from pipelines.tasks.scorer import LongLM

__all__ = ["OVER", "OWN", "Scores", "forwards", "held", "kind", "options_of", "prepare", "score", "versions"]

OWN: Mapping[str, OwnTask] = {task.name: task for task in (perplexity.KIND, passkey.KIND)}
"""Our own tasks by name. A new one is a file of this folder and its entry here."""

OVER: Mapping[str, Callable[[Curve], float]] = {
    name: function for task in OWN.values() for name, function in task.over.items()
}
"""Metrics that are of a task's `acc` at several lengths: (tokens, acc) of each -> one number."""


def kind(name: str) -> TaskKind:
    """The properties of a task; any that is not our own is lm-eval's."""
    return OWN.get(name, named.KIND)


def versions(task: Task) -> dict[str, Any]:
    """Versions of whatever decides a task's numbers: of the scorer, and of the task or of lm-eval that brings it."""
    own = {"task": OWN[task.name].version} if task.name in OWN else {"lm_eval": importlib.metadata.version("lm_eval")}
    return {"scorer": SCORER_VERSION, **own}


def prepare(task: Task, tokenizer: Any, *, length: int, limit: int | None, seed: int) -> None:
    """Check without a model that a task can be run at this length.

    Raises:
        Refusal: an unknown task or option, text that is not there or too short, packages that are missing.
    """
    options = options_of(task, limit)
    if task.name in OWN:
        OWN[task.name].check(options, Encoder.of(tokenizer), length)
    else:
        named.check(task.name, Encoder.of(tokenizer), length, OWN)


def forwards(task: Task, tokenizer: Any | None, *, length: int, limit: int | None) -> int | None:
    """Forwards that a task takes at this length, without a model; None where that is not known before it runs.

    tokenizer: None where none can be had yet; text is then not looked at, as data sets of the hub never are here, and
    the limit is taken for the count.

    Raises:
        Refusal: as `prepare`.
    """
    options = options_of(task, limit)
    encode = None if tokenizer is None else Encoder.of(tokenizer)
    if task.name in OWN:
        if encode is not None and not str(options.get("text", "")).startswith(text.HUB):
            OWN[task.name].check(options, encode, length)
        return OWN[task.name].forwards(options, encode, length=length, limit=limit)
    if encode is None:
        named.find(task.name, OWN)
    else:
        named.check(task.name, encode, length, OWN)
    return limit


def held(task: Task, tokenizer: Any, *, part: str, length: int) -> int | None:
    """Documents of exactly this length in one half of a task that has halves; None: not known before it runs.

    Raises:
        Refusal: as `prepare`.
    """
    halves = kind(task.name).halves
    assert halves is not None, f"task {task.name} has no halves"
    return halves.held(part, options_of(task, None), Encoder.of(tokenizer), length)


def score(lm: LongLM, task: Task, *, length: int, limit: int | None, seed: int) -> Scores:
    """Run a task at one length; sets lm.max_length to it.

    limit: at most so many documents; None: all there are.
    seed: of generated documents.

    Raises:
        Refusal: as `prepare`; or a task of lm-eval has a request longer than `length`, or data that cannot be loaded.
    """
    options = options_of(task, limit)
    lm.max_length = length
    if task.name in OWN:
        return _score_own(lm, task.name, options, length, limit, seed)
    return _score_named(lm, task.name, options, length, limit, seed)


def _score_own(lm: LongLM, name: str, options: Mapping[str, Any], length: int, limit: int | None, seed: int) -> Scores:
    from pipelines.tasks import harness

    own, encode = OWN[name], Encoder.of(lm.tokenizer)
    data = text.digest(options["text"]) if "text" in options else ""
    documents = _documents(name, tuple(options.items()), encode, data, length, limit, seed)
    rows = harness.Rows(documents, encode, options)
    outcome = harness.run(lm, harness.prepared(own.yaml(options), rows), length=length, limit=None)
    metrics, series = own.finish(dict(outcome.metrics), documents, outcome.answers, options)
    records = [
        {"index": row["index"], "tokens": len(document.ids), **dict(document.facts), **row}
        for document, row in zip(documents, outcome.documents, strict=True)
    ]
    return Scores(metrics, series, records, digest(documents))


def _score_named(
    lm: LongLM, name: str, options: Mapping[str, Any], length: int, limit: int | None, seed: int
) -> Scores:
    from pipelines.tasks import harness

    encode = Encoder.of(lm.tokenizer)
    built = harness.by_name(
        name,
        named.check(name, encode, length, OWN),
        length=length,
        encode=encode,
        folder=lm.folder,
        seed=seed,
        num_fewshot=options["num_fewshot"],
    )
    outcome = harness.run(lm, built, length=length, limit=limit)
    # A document may be asked about more than once; its longest request is what must fit.
    tokens = [max(len(lm.tok_encode("".join(parts))) for parts in requests) for requests in outcome.requests]
    records = [{"tokens": count, **row} for count, row in zip(tokens, outcome.documents, strict=True)]
    return Scores(outcome.metrics, {}, records, harness.digest(outcome.requests))


@lru_cache(maxsize=8)
def _documents(
    name: str, options: Options, encode: Encoder, data: str, length: int, limit: int | None, seed: int
) -> list[Document]:
    # `data` is the digest of the text that the options name: the text may change under its name.
    return OWN[name].build(dict(options), encode, length=length, limit=limit, seed=seed)


def options_of(task: Task, limit: int | None) -> Mapping[str, Any]:
    """Every option of a task, defaults included.

    Raises:
        Refusal: an unknown option, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise Refusal(f"limit={limit}: give at least 1 document, or null for all")
    known = kind(task.name).options
    unknown = sorted(set(dict(task.options)) - set(known))
    if unknown:
        raise Refusal(f"task {task.name} takes no option {', '.join(unknown)}; its options: {', '.join(known)}")
    return {**known, **dict(task.options)}
