"""`ropewalk tasks`: its command line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipelines.cli import arguments, meanings
from pipelines.cli.arguments import Options, Verbs
from pipelines.records.refusal import Refusal, suggestion

if TYPE_CHECKING:
    from pipelines.choices.config import Workbench
    from pipelines.tasks.documents import Document, Encoder

DESCRIPTION = """
Without a name: every task of ours, what it measures, and the score of guessing; and the suites. With a name: its
options. With --show: documents as a model reads them, their lengths, and what is right.
  ropewalk tasks
  ropewalk tasks ruler --show task.ask=vt length=2048
  ropewalk tasks conversation --show model=smollm2 length=4096 task.text=shakespeare
"""

SAMPLED = 4
"""Documents whose lengths are told, unless `limit` says otherwise."""

SHOWN = 1200
"""Characters of a document that are shown at its beginning, and as many at its end."""


def add(verbs: Verbs) -> None:
    parser = arguments.add_verb(
        verbs,
        "tasks",
        "the tasks: what they measure, chance, and samples as a model reads them",
        DESCRIPTION,
        run,
        usage="[NAME] [--show | --lm-eval] [KEY=VALUE ...]",
        composed=True,
    )
    parser.add_argument("--show", action="store_true", help="print a document as a model reads it")
    parser.add_argument("--lm-eval", action="store_true", help="print lm-eval's own long tasks and how they run here")


def run(options: Options) -> int:
    names = [word for word in options.words if "=" not in word and not word.startswith("~")]
    rest = [word for word in options.words if word not in names]
    known = [name for name in meanings.values("task") if name != "lm_eval"]
    if options.lm_eval:
        from pipelines.tasks import long_tasks

        print(long_tasks.table())
        return 0
    if len(names) > 1:
        raise Refusal(f"{' '.join(names)}: give one task, or none for the list")
    if not names:
        if options.show or rest:
            raise Refusal(f"give the name of a task: {', '.join(known)}")
        print("\n".join(_listed(known)))
        return 0
    [name] = names
    if name not in known:
        raise Refusal(f"there is no task {name!r} of ours; {suggestion(name, known)}there are {', '.join(known)}")
    if options.show:
        print("\n".join(_shown(name, arguments.overrides(options, rest))))
        return 0
    if rest:
        raise Refusal(f"{rest[0]}: options are for --show: ropewalk tasks {name} --show {' '.join(rest)}")
    print("\n".join([meanings.description("task", name), "", *meanings.table(meanings.options("task", name))]))
    return 0


def _listed(known: list[str]) -> Iterator[str]:
    from pipelines.tasks import registry

    yield f"  {'task':15} {'guessing':10} what it measures"
    for name in known:
        chance = registry.OWN[name].chance
        head = f"  {name:15} {'-' if chance is None else f'{chance:.0%}':10} "
        yield from textwrap.wrap(
            head + meanings.description("task", name), meanings.width(), subsequent_indent=" " * 29
        )
    yield ""
    for name in meanings.values("suite"):
        head = f"  {f'suite/{name}':26} "
        yield from textwrap.wrap(
            head + meanings.description("suite", name), meanings.width(), subsequent_indent=" " * 29
        )
    yield ""
    yield "Any other task is lm-eval's, by its name (docs/tasks.md says which of its long ones run)."


def _shown(name: str, overrides: list[str]) -> Iterator[str]:
    from pipelines.choices.compose import expand
    from pipelines.tasks import registry
    from pipelines.tasks.documents import Encoder

    length = [] if any(word.startswith("length=") for word in overrides) else ["length=1024"]
    choices = expand([f"task={name}", *length, *overrides])
    if len(choices) > 1:
        raise Refusal("--show takes one value of every key: commas make a grid")
    [choice] = choices
    encode = Encoder.of(_tokenizer(choice))
    task = registry.task_of(choice.task)
    limit = SAMPLED if choice.documents is None else choice.documents
    built = registry.documents(task, encode, length=choice.length, limit=limit, seed=choice.seed)
    totals = [document.tokens + document.room for document in built]
    scored = [document.scored or document.room or max(map(len, document.choices), default=0) for document in built]
    yield f"{name} at length={choice.length} for {choice.model.name}: {len(built)} documents (seed={choice.seed})"
    yield f"tokens of a document, its answer included: {_spread(totals)}; of an answer: {_spread(scored)}"
    chance = registry.OWN[name].chance
    yield "guessing scores " + ("nothing that is a share" if chance is None else f"{chance:.0%}")
    seen: set[Any] = set()
    for document in built:  # the first of every kind
        kind = dict(document.facts).get("ask")
        if kind not in seen:
            seen.add(kind)
            yield from ("", "-" * 72, *_document(document, encode))


def _tokenizer(choice: Workbench) -> Any:
    from pipelines.models import find, load
    from pipelines.records.cells import frozen

    chosen = choice.model
    model = find.requested(chosen.name, chosen.path, chosen.revision, chosen.trained_length, frozen(chosen.shape))
    return load.tokenizer(find.describe(model)[0])


def _document(document: Document, encode: Encoder) -> Iterator[str]:
    hidden = ("right", "answers")
    yield ", ".join(f"{key} {value}" for key, value in document.facts if key not in hidden)
    text = encode.text(document.ids[: len(document.ids) - document.scored])
    left = len(text) - 2 * SHOWN
    yield text if left <= 0 else f"{text[:SHOWN]}\n[... {left:,} characters ...]\n{text[-SHOWN:]}"
    facts = dict(document.facts)
    if document.choices:
        for number, choice in enumerate(document.choices):
            yield f"{'  right:' if number == facts['right'] else '  wrong:'}{encode.text(choice)}"
    elif document.scored < len(document.ids) // 2:
        answers = facts.get("answers") or (encode.text(document.ids[len(document.ids) - document.scored :]),)
        yield f"  right: {', '.join(map(str, answers)).strip()}"


def _spread(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
