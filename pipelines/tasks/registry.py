"""Every task by its name: our own, which need no network, and those of lm-eval.

Importing this loads neither torch nor lm-eval; `score` does.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.records.cells import Options, Refusal, Task, frozen
from pipelines.records.phases import timed
from pipelines.tasks import (
    conversation,
    files,
    graph_walks,
    key_tokens,
    many_shot,
    named,
    passkey,
    perplexity,
    recall,
    ruler,
    sections,
    summaries,
    summaries_rouge,
    text,
)
from pipelines.tasks.documents import SCORER_VERSION, Document, Encoder, Kept, Scores, digest
from pipelines.tasks.kinds import Curve, OwnTask, TaskKind

if TYPE_CHECKING:
    from pipelines.tasks.scorer import LongLM

__all__ = [
    "OVER",
    "OWN",
    "Scores",
    "choices",
    "documents",
    "evaluator",
    "forwards",
    "held",
    "kind",
    "options_of",
    "prepare",
    "score",
    "task_of",
    "versions",
]

OWN: Mapping[str, OwnTask] = {
    task.name: task
    for task in (
        perplexity.KIND,
        passkey.KIND,
        ruler.KIND,
        recall.KIND,
        sections.KIND,
        conversation.KIND,
        many_shot.KIND,
        graph_walks.KIND,
        summaries.KIND,
        summaries_rouge.KIND,
    )
}
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


def task_file(path: str) -> files.TaskFile:
    """A task out of a file of the user's.

    Raises:
        Refusal: as files.read.
    """
    return files.read(Path(path).expanduser(), frozenset(OWN))


def data_digest(options: Mapping[str, Any]) -> str:
    """Of what a task's options say where it lies: its text, or its own files; "" where they say none.

    Raises:
        Refusal: it is not there.
    """
    if options.get("files") is not None:
        return task_file(str(options["files"])).digest
    return text.digest(str(options["text"])) if "text" in options else ""


def check_safe(name: str, own: str | None = None) -> None:
    """Refuse a task that runs what the model writes, before anything of it is imported.

    own: the YAML of a task of the user's.

    Raises:
        Refusal: it is such a task.
    """
    if own is not None:
        unsafe = task_file(own).runs_what_models_write
    else:
        try:
            unsafe = name not in OWN and named.runs_what_models_write(named.find(name, OWN))
        except Refusal:
            return  # of an unknown name `prepare` says more
    if unsafe:
        raise Refusal(
            f"task {name} runs the code that the model writes, on this machine and as you (unsafe_code in its YAML); "
            "choose another task, or give allow_unsafe_tasks=true in a container that may be lost"
        )


def evaluator(task: Task) -> str | None:
    """The strategy or model that decides which of a task's tokens are key; None where none are asked for."""
    return OWN[task.name].evaluator(options_of(task, None)) if task.name in OWN else None


@timed("texts")
def prepare(task: Task, tokenizer: Any, *, length: int, limit: int | None, seed: int) -> None:
    """Check without a model that a task can be run at this length.

    Raises:
        Refusal: an unknown task or option, text that is not there or too short, packages that are missing.
    """
    options = options_of(task, limit)
    if task.name in OWN:
        OWN[task.name].check(options, Encoder.of(tokenizer), length)
    else:
        _yaml_of(task.name, options, Encoder.of(tokenizer), length)


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
    if encode is None and options["files"] is None:
        named.find(task.name, OWN)
    elif encode is not None:
        _yaml_of(task.name, options, encode, length)
    return limit


def choices(task: Task) -> int:
    """Answers that are scored after one text, which is read once for all of them."""
    return OWN[task.name].choices if task.name in OWN else 1


def _yaml_of(name: str, options: Mapping[str, Any], encode: Encoder, length: int) -> Path:
    """The YAML of a task that is not ours, after what can be known without loading it."""
    if options["files"] is not None:
        return task_file(str(options["files"])).path
    return named.check(name, encode, length, OWN)


def held(task: Task, tokenizer: Any, *, part: str, length: int) -> int | None:
    """Documents of exactly this length in one half of a task that has halves; None: not known before it runs.

    Raises:
        Refusal: as `prepare`.
    """
    halves = kind(task.name).halves
    assert halves is not None, f"task {task.name} has no halves"
    return halves.held(part, options_of(task, None), Encoder.of(tokenizer), length)


def task_of(chosen: Mapping[str, Any]) -> Task:
    """A chosen task, its name among its options, with those options that differ from their defaults."""
    options = dict(chosen)
    name = str(options.pop("name"))
    return Task(name, frozen(kind(name).id_options(options)))


def documents(task: Task, encode: Encoder, *, length: int, limit: int | None, seed: int) -> list[Document]:
    """The documents of a task of our own, as a model reads them.

    Raises:
        Refusal: as `prepare`.
    """
    options = options_of(task, limit)
    OWN[task.name].check(options, encode, length)
    return OWN[task.name].build(options, encode, length=length, limit=limit, seed=seed)


def score(
    lm: LongLM,
    task: Task,
    *,
    length: int,
    limit: int | None,
    seed: int,
    under: key_tokens.Under | None = None,
    kept: Sequence[Kept] = (),
) -> Scores:
    """Run a task at one length; sets lm.max_length to it.

    limit: at most so many documents; None: all there are.
    seed: of generated documents.
    under: puts the model under another strategy, or gives another, for tasks whose key tokens one decides.
    kept: documents of the same task that were scored before: those of them that are the first of these are not scored
        again. A task of lm-eval's, and one with key tokens, takes none.

    Raises:
        Refusal: as `prepare`; or a task of lm-eval has a request longer than `length`, or data that cannot be loaded.
    """
    options = options_of(task, limit)
    lm.max_length = length
    if task.name in OWN:
        return _score_own(lm, task.name, options, length, limit, seed, under, kept)
    return _score_named(lm, task.name, options, length, limit, seed)


def _score_own(
    lm: LongLM,
    name: str,
    options: Mapping[str, Any],
    length: int,
    limit: int | None,
    seed: int,
    under: key_tokens.Under | None,
    kept: Sequence[Kept],
) -> Scores:
    from pipelines.tasks import generated, harness

    own, encode = OWN[name], Encoder.of(lm.tokenizer)
    data = text.digest(options["text"]) if "text" in options else ""
    documents = _documents(name, tuple(options.items()), encode, data, length, limit, seed)
    decides = own.evaluator(options)
    before = None if decides is not None else max((one for one in kept if one.begins(documents)), key=len, default=None)
    new = documents[len(before) if before is not None else 0 :]
    rows = harness.Rows(new, encode, options)

    def run(asked: LongLM) -> harness.TaskRun:
        return harness.run(asked, harness.prepared(own.yaml(options), rows), length=length, limit=None)

    outcome = run(lm) if new else harness.TaskRun({}, [], [], [])
    found = [
        {**row, **own.detail(document, answer, options)}
        for document, row, answer in zip(new, outcome.documents, outcome.answers, strict=True)
    ]
    names = [name for name in outcome.metrics if not name.endswith("_stderr")]
    if before is not None:
        found = [*map(dict, before.records), *found]
        names = list(dict.fromkeys([*before.names, *names]))
    records = [
        {"tokens": document.tokens, **dict(document.facts), **row, "index": index}
        for index, (document, row) in enumerate(zip(documents, found, strict=True))
    ]
    if under is not None and outcome.answers and isinstance(outcome.answers[0], str):
        with under("none", True) as (judge, _):
            said = generated.nlls(judge, encode, new, outcome.answers)
        for record, nll in zip(records[-len(new) :], said, strict=True):
            record |= {} if nll is None else {"nll_generated": nll}
    metrics, series = own.finish(harness.means(records, names), documents, records, options)
    metrics |= generated.metrics(records)
    if decides is not None:
        assert under is not None, "key tokens take a model that can be put under another strategy"
        with under(decides, True) as (judge, window):
            short = run(judge).answers
        with under(decides, False) as (judge, _):
            long = run(judge).answers
        keys = [key_tokens.key_tokens(a.tokens, b.tokens, window) for a, b in zip(long, short, strict=True)]
        tokens = [answer.tokens for answer in outcome.answers]
        metrics |= key_tokens.of_all(tokens, keys)
        of_each = map(key_tokens.of_document, tokens, keys)
        records = [record | found for record, found in zip(records, of_each, strict=True)]
    return Scores(metrics, series, records, digest(documents), before)


def _score_named(
    lm: LongLM, name: str, options: Mapping[str, Any], length: int, limit: int | None, seed: int
) -> Scores:
    from pipelines.tasks import harness

    encode = Encoder.of(lm.tokenizer)
    built = harness.by_name(
        name,
        _yaml_of(name, options, encode, length),
        length=length,
        encode=encode,
        folder=lm.folder,
        seed=seed,
        num_fewshot=options["num_fewshot"],
        own=None if options["files"] is None else task_file(str(options["files"])).digest,
    )
    outcome = harness.run(lm, built, length=length, limit=limit)
    # A document may be asked about more than once; its longest request is what must fit.
    tokens = [max(len(lm.tok_encode("".join(parts))) for parts in requests) for requests in outcome.requests]
    records = [{"tokens": count, **row} for count, row in zip(tokens, outcome.documents, strict=True)]
    return Scores(outcome.metrics, {}, records, harness.digest(outcome.requests))


@lru_cache(maxsize=8)
@timed("documents")
def _documents(
    name: str, options: Options, encode: Encoder, data: str, length: int, limit: int | None, seed: int
) -> list[Document]:
    # `data` is the digest of the text that the options name: the text may change under its name.
    return OWN[name].build(dict(options), encode, length=length, limit=limit, seed=seed)


def options_of(task: Task, limit: int | None) -> Mapping[str, Any]:
    """Every option of a task, defaults included.

    Raises:
        Refusal: an unknown option, one of another type, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise Refusal(f"limit={limit}: give at least 1 document, or null for all")
    known = kind(task.name).options
    unknown = sorted(set(dict(task.options)) - set(known))
    if unknown:
        raise Refusal(f"task {task.name} takes no option {', '.join(unknown)}; its options: {', '.join(known)}")
    kind(task.name).check_types(task.name, dict(task.options))
    return {**known, **dict(task.options)}
