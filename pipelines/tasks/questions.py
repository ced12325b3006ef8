"""Tasks that ask a question at the end of a text that fills the length under test, to the token.

A task says how a question of a given size reads; what is here makes it as large as fits, puts the few tokens that are
then left in front as filler, and scores the answer: the likeliest of several choices, or the right words generated (or
greedily likeliest in one forward). What a question asks depends on the task, the seed and its number; what surrounds it
grows with the length.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from pipelines.records.cells import Options, Refusal
from pipelines.tasks import passkey, text
from pipelines.tasks.documents import Document, Encoder
from pipelines.tasks.kinds import HalvesBySeed, Measure, OwnTask

LEFT_OVER = 64
"""Tokens of filler that may stand in front. More are wanted where a source of text has come to its end."""

TRIAL = 16
"""Size of the question from which the size that fits is first guessed."""

TAIL = 160
"""Characters at the end of a prompt that are encoded with each answer: what tokenizers join does not reach as far."""


class Exhausted(Exception):
    """There is no question of that size: the text is too short for it."""


@dataclass(frozen=True)
class Question:
    """A question, asked at the end of a text.

    text: all of it, up to where the answer begins (no space at its end).
    answers: the choices, or the references: what a right answer holds.
    right: which of the choices is right.
    room: tokens that a generated answer may take; 0: it is not generated.
    facts: what the record of its document holds beside its scores.
    head: what comes before the text and before any filler, such as the beginning of a chat template.
    """

    text: str
    answers: tuple[str, ...]
    right: int = 0
    room: int = 0
    facts: Options = ()
    head: str = ""


Pose = Callable[[int], Question]
"""size -> the question: 0 is the shortest; raises Exhausted where there is none as large."""


def continuations(encode: Encoder, prompt: str, answers: Sequence[str]) -> tuple[int, list[tuple[int, ...]]]:
    """How many of the prompt's last tokens are not shared by prompt and answer together, and the ids of each answer.

    A tokenizer may join the prompt's last letters with the answer's first; those tokens then belong to the answer.
    """
    tail = prompt[-TAIL:]
    alone = encode(tail)
    wholes = [encode(f"{tail} {answer}") for answer in answers]
    shared = min(_shared(alone, whole) for whole in wholes)
    return len(alone) - shared, [tuple(whole[shared:]) for whole in wholes]


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    differs = (number for number, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differs, min(len(first), len(second)))


def filler(encode: Encoder, tokens: int) -> tuple[int, ...]:
    """Exactly so many tokens of a text that says nothing and ends with an empty line."""
    if tokens < 1:
        return ()
    words = passkey.FILLER.split()
    ids = encode(" ".join(words[number % len(words)] for number in range(tokens)) + "\n\n")
    return tuple(ids[-tokens:])


@lru_cache(maxsize=8)  # of the size that fits they are asked for three times
def _parts(question: Question, encode: Encoder, generated: bool) -> tuple[list[int], list[int], list[tuple[int, ...]]]:
    """Ids of what comes before any filler, of the rest of the prompt, and of the answers to be scored."""
    head = encode(question.head) if question.head else []
    beginning = encode.beginning(None)
    before = head if head[: len(beginning)] == list(beginning) else [*beginning, *head]
    prompt = encode(question.text)
    if generated:
        return before, prompt, []
    joined, answers = continuations(encode, question.text, question.answers)
    return before, prompt[: len(prompt) - joined], answers


def cost(question: Question, encode: Encoder, generated: bool) -> int:
    """Tokens of context that a question takes, its longest answer included."""
    before, prompt, answers = _parts(question, encode, generated)
    return len(before) + len(prompt) + max(map(len, answers), default=question.room)


def document(question: Question, encode: Encoder, length: int, *, kind: str) -> Document:
    """A question as exactly `length` tokens: what is left over is filler in front.

    kind: "choice", "match" (the first answer is scored) or "generate".
    """
    before, prompt, answers = _parts(question, encode, kind == "generate")
    left = length - len(before) - len(prompt) - max(map(len, answers), default=question.room)
    assert left >= 0, "a question that does not fit"
    ids = (*before, *filler(encode, left), *prompt)
    facts = (*question.facts, ("right", question.right) if kind == "choice" else ("answers", question.answers))
    if kind == "choice":
        return Document(ids, 0, facts, choices=tuple(answers))
    if kind == "match":
        return Document((*ids, *answers[0]), len(answers[0]), facts)
    return Document(ids, 0, facts, room=question.room)


def largest(
    pose: Pose, encode: Encoder, length: int, *, generated: bool, guess: int, what: str
) -> tuple[Question, int]:
    """The largest question that fits, and its size.

    Raises:
        Refusal: the shortest does not fit; TextTooShort: the text ends long before the length does.
    """

    def spent(size: int) -> int:
        try:
            return cost(pose(size), encode, generated)
        except Exhausted:
            return length + size  # as of one that is too long

    try:
        least = cost(pose(0), encode, generated)
    except Exhausted as reason:
        raise text.TextTooShort(f"{what}: {reason}; give a longer text") from reason
    if least > length:
        raise Refusal(f"length={length}: {what} takes at least {least} tokens; choose length={least} or more")
    # Without a guess `most` would begin with a question of as many pieces as there are tokens, and encode it.
    piece = max(1, (spent(TRIAL) - least) // TRIAL)
    size = passkey.most(spent, length, guess=guess or max(1, (length - least) // piece))
    question = pose(size)
    left = length - cost(question, encode, generated)
    if left > LEFT_OVER:
        try:
            pose(size + 1)
        except Exhausted as reason:
            raise text.TextTooShort(
                f"length={length}: {what} fills {length - left} tokens, and {reason}; "
                "choose a shorter length, or a longer text"
            ) from reason
    return question, size


class QuestionTask(OwnTask):
    """A task of questions. Its options have `questions` (of each kind, or as many as `limit` says) and `ask` (kinds).

    asks: the kinds of question that it has. choices: where there is but one answer, it is matched.
    """

    version = 1
    chance = 0.0
    asks: tuple[str, ...]
    headlines = ("acc",)
    measure = Measure("acc", lower=False)
    halves = HalvesBySeed("questions")

    @abstractmethod
    def pose(
        self, ask: str, seed: str, size: int, length: int, options: Mapping[str, Any], encode: Encoder
    ) -> Question:
        """One question of a kind. The same seed gives the same question at any size.

        Raises:
            Exhausted: the text has no more.
        """

    def check_types(self, task: str, options: Mapping[str, Any]) -> None:
        # What these two may be, a list or null beside a text, `kinds` and `validate` say.
        super().check_types(task, {name: value for name, value in options.items() if name not in ("ask", "chat")})

    def validate(self, options: Mapping[str, Any]) -> None:
        """Refuse options that are out of their range."""

    def kind_of(self, options: Mapping[str, Any]) -> str:
        """How answers are scored: "choice", "match" or "generate"."""
        if self.choices > 1:
            return "choice"
        return "generate" if options.get("answer") == "generate" else "match"

    def units(self, options: Mapping[str, Any], limit: int | None) -> int:
        return len(self.kinds(options)) * (limit or options["questions"])

    def kinds(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The kinds of question that the options ask.

        Raises:
            Refusal: an unknown kind, no question at all, an unknown way to answer.
        """
        given = options["ask"]
        listed = given if isinstance(given, (list, tuple)) else [given]
        asked = self.asks if given == "all" else tuple(listed)
        unknown = [name for name in asked if name not in self.asks]
        if unknown or not asked or len(set(asked)) < len(asked):
            raise Refusal(f"ask={given} of the task {self.name}: give all, or some of {', '.join(self.asks)}")
        if options["questions"] < 1:
            raise Refusal(f"questions={options['questions']} of the task {self.name}: give at least 1")
        if options.get("answer", "generate") not in ("generate", "loglikelihood"):
            raise Refusal(f"answer={options['answer']} of the task {self.name}: give loglikelihood or generate")
        self.validate(options)
        return asked

    def check(self, options: Mapping[str, Any], encode: Encoder, length: int) -> None:
        """Refuse options out of range, and a length that the shortest question of a kind does not fit into."""
        for ask in self.kinds(options):
            pose = partial(self._posed, ask, f"{self.name}/{ask}/0/0", length=length, options=options, encode=encode)
            generated = self.kind_of(options) == "generate"
            try:
                least = cost(pose(0), encode, generated)
            except Exhausted as reason:
                raise text.TextTooShort(f"{self._what(ask)}: {reason}; give a longer text") from reason
            if least > length:
                raise Refusal(
                    f"length={length}: {self._what(ask)} takes at least {least} tokens; choose length={least} or more"
                )

    def _what(self, ask: str) -> str:
        return f"task {self.name}" + (f", ask={ask}," if len(self.asks) > 1 else "")

    def _posed(
        self, ask: str, seed: str, size: int, *, length: int, options: Mapping[str, Any], encode: Encoder
    ) -> Question:
        return self.pose(ask, seed, size, length, options, encode)

    def forwards(self, options: Mapping[str, Any], encode: Encoder | None, *, length: int, limit: int | None) -> int:
        """A forward for every choice of every question."""
        return len(self.kinds(options)) * (limit or options["questions"]) * self.choices

    def build(
        self, options: Mapping[str, Any], encode: Encoder, *, length: int, limit: int | None, seed: int
    ) -> list[Document]:
        """Question 0 of every kind, then question 1 of every kind, ..., each of exactly `length` tokens."""
        kind, documents = self.kind_of(options), []
        sizes: dict[str, int] = {}
        for number in range(limit or options["questions"]):
            for ask in self.kinds(options):
                place = f"{self.name}/{ask}/{seed}/{number}"
                pose = partial(self._posed, ask, place, length=length, options=options, encode=encode)
                question, sizes[ask] = largest(
                    pose,
                    encode,
                    length,
                    generated=kind == "generate",
                    guess=sizes.get(ask, 0),
                    what=self._what(ask),
                )
                facts = (("question", number), ("ask", ask), *question.facts)
                whole = Question(question.text, question.answers, question.right, question.room, facts, question.head)
                documents.append(document(whole, encode, length, kind=kind))
        return documents

    def scores(self, each: Document, answer: Any) -> dict[str, float]:
        """The metrics of one document."""
        return choose({"document": each}, answer) if each.choices else match({"document": each}, [answer])

    def yaml(self, options: Mapping[str, Any]) -> str:
        return f"{self.name}_generate" if self.kind_of(options) == "generate" else self.name

    def finish(
        self,
        metrics: dict[str, float],
        documents: Sequence[Document],
        records: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
    ) -> tuple[dict[str, float], dict[str, list[tuple[float, float]]]]:
        """Adds accuracy by kind of question, and by depth of what is asked for, in quarters of the text."""
        name = self.measure.name
        scores = [float(record[name]) for record in records]
        kinds: dict[str, list[float]] = {}
        depths: dict[float, list[float]] = {}
        for each, score in zip(documents, scores, strict=True):
            facts = dict(each.facts)
            kinds.setdefault(facts["ask"], []).append(score)
            if "depth" in facts:
                depths.setdefault(min(3, int(facts["depth"] * 4)) / 4 + 0.125, []).append(score)
        if len(kinds) > 1:
            metrics |= {f"{name}_{ask}": float(np.mean(values)) for ask, values in kinds.items()}
        series = [(depth, float(np.mean(values))) for depth, values in sorted(depths.items())]
        return metrics, {f"{name}_by_depth": series} if series else {}


def choose(row: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """Whether the right choice is the likeliest (acc), or the likeliest a token (acc_norm); NLL of it, nats a token."""
    right = row["document"].fact("right")
    sums = np.array([float(likelihood) for likelihood, _ in results])
    tokens = np.array([len(choice) for choice in row["document"].choices])
    return {
        "acc": float(np.argmax(sums) == right),
        "acc_norm": float(np.argmax(sums / tokens) == right),
        "nll_answer": -float(sums[right] / tokens[right]),
    }


def match(row: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """The share of references that a generated answer holds, upper and lower case alike; or whether it is the greedy
    one, and its NLL (nats a token)."""
    (answer,) = results
    if isinstance(answer, str):
        references = row["document"].fact("answers")
        said = answer.lower()
        return {"acc": sum(reference.lower() in said for reference in references) / len(references), **fluency(answer)}
    likelihood, greedy = answer
    return {"acc": float(greedy), "nll_answer": -float(likelihood) / row["document"].scored}


def fluency(answer: str) -> dict[str, float]:
    """How much a generated text repeats itself, in words: the share of its 4-grams that it has said before, and its
    different 1- and 2-grams over all of them (distinct-n; Li et al. 2016, https://arxiv.org/abs/1510.03055).

    What is not defined, as of a text of three words, is absent.

    >>> {name: round(value, 3) for name, value in fluency("so it goes and so it goes and so").items()}
    {'repeated_4': 0.333, 'distinct_2': 0.5, 'distinct_1': 0.444}
    """
    words = answer.split()
    share = {n: _distinct(words, n) for n in (1, 2, 4)}
    found = {f"distinct_{n}": share[n] for n in (1, 2)} | {"repeated_4": None if share[4] is None else 1 - share[4]}
    return {name: value for name, value in sorted(found.items(), reverse=True) if value is not None}


def _distinct(words: Sequence[str], n: int) -> float | None:
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
