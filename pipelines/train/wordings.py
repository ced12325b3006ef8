"""How generated documents tell and ask, drawn anew for each: what the words around a key or a line say does not matter.

A dozen wordings are learned by heart, and what was learned with them stays with them. So most of a wording is random:
its form (prose, JSON, tables, markup, random words), the order in which key and value come, nouns and verbs, marks
between records, what stands before a question and what leads to its answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.tasks.conversation import NAMES as TASK_NAMES
from pipelines.train.corpus import Tokens


@dataclass(frozen=True)
class Pools:
    """What documents are filled with, from a corpus.

    words: plain ones. lines: sentences of 5 to 20 words. passages: stretches of some 40 words, whatever they are.
    titled: (name of a function or a class as words, what its docstring says).
    """

    words: tuple[str, ...]
    lines: tuple[str, ...]
    passages: tuple[str, ...]
    titled: tuple[tuple[str, str], ...]

    @classmethod
    def of(
        cls, tokens: Tokens, decode: Callable[[list[list[int]]], list[str]], spans: int = 1024, span: int = 16_384
    ) -> Pools:
        """From stretches of a corpus, evenly spread. decode: ids of some texts -> the texts."""
        starts = np.linspace(0, max(0, tokens.size - span), spans).astype(int)
        texts = decode([tokens[start : start + span].tolist() for start in starts])
        words = {word for text in texts for word in re.findall(r"(?<![\w.])[a-z]{3,10}(?![\w.(])", text)}
        plain = re.compile(r"[A-Z][a-z][^\"\u201c\u201d=<>|{}\[\]\\#]*[.!?]")
        parts = (part for text in texts for part in re.split(r"(?<=[.!?])\s+", " ".join(text.split())))
        lines = {part for part in parts if 5 <= len(part.split()) <= 20 and plain.fullmatch(part)}
        split = [text.split() for text in texts]
        passages = [" ".join(each[start : start + 40]) for each in split for start in range(0, len(each) // 4, 40)]
        named = {match[1]: match[2] for text in texts for match in _DEFINED.finditer(text)}
        titled = [(_title(name), " ".join(said.split())) for name, said in named.items() if _title(name).count(" ")]
        # A small corpus may have few of them.
        words = (words | {"word", "thing"}) - {*_OF_TASKS}
        return cls(*map(tuple, (sorted(words), sorted(lines | {*_SPARE}), passages or _SPARE, titled or _SPARE_TITLED)))

    def phrase(self, dice: random.Random, most: int = 4) -> str:
        return " ".join(dice.choices(self.words, k=dice.randint(1, most)))


_DEFINED = re.compile(r'(?:def|class) _*([A-Za-z]\w+)(?:\([^()]*\))?[^:\n]*:\s+r?"""(\w[^"]{40,500})')


def _title(name: str) -> str:
    """
    >>> _title("get_itemsOf")
    'Get items of'
    """
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).capitalize()


_OF_TASKS = ("said", "cost", "costs", "section", "magic", "heading")
"""Words that belong to how tasks ask."""

_SPARE_TITLED = tuple(
    (f"Number {number}", f"There is nothing to be said about number {number}.") for number in range(64)
)
_SPARE = tuple(f"There is nothing to be said about number {number}." for number in range(64))

_VERBS = """
    is has holds weighs takes needs gets keeps shows marks means owns counts reads measures equals wants earns
"""
VERBS = tuple(_VERBS.split())
SAID = (
    *("The {noun} of {key} is {value}", "{key} has the {noun} {value}", "{value} is the {noun} of {key}"),
    *("For {key} the {noun} is {value}", "{key} {verb} {value}", "{noun} {key} {verb} {value} {adjective}"),
    *("The {adjective} {noun} {key} {verb} {value}", "The {adjective} {noun} for {key} is: {value}"),
    *("One {noun} of {key} is: {value}", "Among {adjective} {noun} things, {key} {verb}: {value}"),
    *("Under {key} there is {value}", "{value} was found at {key}", "As for {key}, the {adjective} {noun} is {value}"),
    *("{noun} {key}: {value}", "Remember {value} whenever {key} comes up", "The {noun} {key} {verb} {value} {phrase}"),
    *("{Phrase} {key} {phrase} {value}", "{Phrase} {value} {phrase} {key}", "{key} {phrase} {value} {phrase}"),
    *("{Phrase} {adjective} {noun} {phrase} {key} {verb}: {value}", "{Phrase}: {key} {phrase}: {value}"),
)
"""A record in words."""

DATA = (
    *(
        '"{key}": "{value}"',
        "'{key}': '{value}'",
        "{key}: {value}",
        "{key} = {value}",
        "{key}={value}",
        "{key},{value}",
    ),
    *(
        "{key}\t{value}",
        "| {key} | {value} |",
        "{key} | {value}",
        "<{noun} id={key}>{value}</{noun}>",
        "- {key}: {value}",
    ),
    *('{"{noun}": "{key}", "{adjective}": "{value}"}', '("{key}", "{value}")', "[{key}] {value}", "{value} <- {key}"),
    *('<{noun} {adjective}="{value}">{key}</{noun}>', "{key}\n  {value}", "{value};{key}", 'set {key} "{value}"'),
    *("{noun}[{key}] := {value}", "{key} => {value}", "{key} .... {value}", "* {key} ({value})", '"{key}":"{value}"'),
)
"""A record as data."""

OPENINGS = ("", "", "", "Q: ", "Question: ", "> ", "- ", "Query: ", "Now: ", "* ", "Task: ", "{Phrase}: ", "{Phrase}. ")
ASKING = (
    *("Which {noun} has {key}", "What {noun} goes with {key}", "{key} has which {noun}", "Look up {key}", "Find {key}"),
    *("The {noun} of {key}", "Tell the {adjective} {noun} for {key}", "Name the {noun} next to {key}", "{key}"),
    *("Which is the {adjective} {noun} of {key}", "What are {adjective} {noun} things for {key} in this text"),
    *(
        "Give what stands at {key}",
        "{noun} {key}",
        "How much {adjective} {noun} {verb} {key}",
        "What {verb} {key} there",
    ),
    *('{noun} "{key}"', "{noun}[{key}]", "{Phrase} {key} {phrase}", "{Phrase} {key}", "{key} {phrase}"),
    *("{Phrase} {noun} {phrase} {key} {phrase}", '{Phrase} "{key}" {phrase}'),
)
MARKS = ("?", "?", "?", ":", ".", "", ",", " =", " =>", "...")
LEADS = (
    *("", "", "\nA:", " A:", "\nAnswer:", "\nAnswer:", " Answer:", "\nReply:", "\nIt is", " It is", "\nResult:", "\n>"),
    *(
        "\nThe {noun} of {key} is",
        " The {adjective} {noun} for {key} is",
        " The {adjective} {noun} for {key} {phrase} is",
    ),
    *(
        "\n{Phrase}:",
        "\n{Phrase}:",
        " {Phrase}:",
        "\n{Phrase} {key} {phrase}",
        " {Phrase} {key} {phrase} is",
        "\n{noun}:",
    ),
)
"""Before a question, the question, its mark, and what leads to the answer."""

BETWEEN = ("\n", "\n", ".\n", "\n\n", ";\n", "\n- ")
JOINTS = ("\n", "\n", ",\n", ", ", ",\n  ", ",\n    ", "; ", "\n\n", ";\n", " ")


@dataclass(frozen=True)
class Wording:
    """How one document tells its records and asks for them: templates with {key} and {value}.

    head, joint, tail: before all records, between two of them, after the last. asked: up to where the answer begins.
    answer: as it is written. after: behind an answer.
    """

    head: str
    told: str
    joint: str
    tail: str
    asked: str
    answer: str
    after: str


def drawn(dice: random.Random, pools: Pools, template: str, noun: str, adjective: str) -> str:
    """A template with words for all but key, value, line and name; every phrase is another."""

    def word(match: re.Match[str]) -> str:
        name = match[1]
        if name == "noun":
            return noun
        if name == "adjective":
            return adjective
        if name == "verb":
            return dice.choice(VERBS)
        phrase = pools.phrase(dice)
        return phrase.capitalize() if name == "Phrase" else phrase

    return re.sub(r"\{(noun|adjective|verb|phrase|Phrase)\}", word, template)


def question(dice: random.Random, pools: Pools, asking: Sequence[str], noun: str, adjective: str) -> str:
    """A question with what leads to its answer."""
    parts = (dice.choice(OPENINGS), dice.choice(asking), dice.choice(MARKS), dice.choice(LEADS))
    return drawn(dice, pools, "".join(parts), noun, adjective)


def records(dice: random.Random, pools: Pools, *, apart: bool) -> Wording:
    """A wording for records. apart: other text stands between them, so that each must be read by itself."""
    noun, adjective = dice.choice(pools.words), dice.choice(pools.words)
    as_data = dice.random() < (0.25 if apart else 0.6)
    told = drawn(dice, pools, dice.choice(DATA if as_data else SAID), noun, adjective)
    if not as_data:
        told = f"{told}{dice.choice(('.', '.', '.', ';', '', '!'))}"
    joint, (head, tail) = dice.choice(JOINTS if as_data else ("\n", " ", "\n\n")), ("", "")
    if apart:
        joint = dice.choice(("\n", " "))
    elif as_data:
        head, tail = dice.choice((("", ""), ("{", "}"), ("{\n", "\n}"), ("[", "]"), ("(\n", "\n)"), ("```\n", "\n```")))
    if dice.random() < 0.3:
        noun, adjective = dice.choice(pools.words), dice.choice(pools.words)
    asked = question(dice, pools, ASKING, noun, adjective)
    quote = next((mark for mark in "\"'" if f"{mark}{{value}}{mark}" in told), "") if dice.random() < 0.7 else ""
    return Wording(head, told, joint, tail, asked, f" {quote}{{value}}{quote}", dice.choice(BETWEEN))


def opening(dice: random.Random, pools: Pools) -> str:
    """What a document begins with: nothing, a sentence, some words."""
    return dice.choice(
        (
            "",
            f"{dice.choice(pools.lines)}\n\n",
            f"{dice.choice(pools.lines)}\n",
            f"{pools.phrase(dice, 12).capitalize()}.\n\n",
        )
    )


TURNS = (
    *(
        "{name}: {line}",
        "{name} - {line}",
        "{name} {verb}: {line}",
        "<{name}> {line}",
        "[{name}] {line}",
        "{name}\t{line}",
    ),
    *('{name}: "{line}"', '{name}, {phrase}: "{line}"', "{name}\n{line}\n", "{line} ({name})", "{line} -- {name}"),
    *(
        '{"{noun}": "{name}", "{adjective}": "{line}"}',
        '"{line}", {verb} {name}.',
        "{name} | {line}",
        "* {name}: {line}",
    ),
    *("({name}) {line}", "{name}> {line}", "{name}; {line}", "{noun} {name}: {line}", "{name} {phrase}: {line}"),
)
WHO = (
    *(
        "Who spoke the words {line}",
        "Whose line is {line}",
        "{line} - by whom",
        "{line} comes from",
        "Who {verb} {line}",
    ),
    *("Which {noun} wrote {line}", "Who uttered {line}", "By whom is {line}", "Name who came up with {line}", "{line}"),
    *("{Phrase} {line}", "{line} {phrase}", "Who {phrase} {line}", "{Phrase} {noun} {line} {phrase}"),
)
AHEAD = (
    *("Which line is ahead of {line}", "The line right before {line}", "{line} - what was heard just before it"),
    *("{line} follows on", "Before {line} there was", "{Phrase} before {line}", "What precedes {line}"),
)
FOLLOWS = (
    *("What comes next after {line}", "The part below {line}", "{line} is followed by which {noun}", "Next to {line}"),
    *("{line} >>", "After {line}", "Below {line} stands", "{Phrase} after {line}", "Which {noun} follows {line}"),
    *("What is after {line} {phrase}", "Following on {line} is", "{Phrase} {noun} {line} is before {phrase}"),
)
HEADINGS = (
    *("{line}", "{line}", "# {line}", "## {line}", "{line}:", "== {line} ==", "<h2>{line}</h2>", "{noun}: {line}"),
    *("{line}\n----", "{line}\n~~~~~~", "[{line}]", "* {line}", "**{line}**", "{Phrase}: {line}", "{line} -"),
)
QUOTES = ('"{line}"', '"{line}"', "“{line}”", "'{line}'", "{line}", "<{line}>", "`{line}`")
GAPS = ("...", "___", "[?]", "(blank)", "####", "<mask>", "-----", "_")


def quoting(dice: random.Random, pools: Pools, asking: Sequence[str], noun: str) -> str:
    """A question that quotes a line: template with {line}."""
    asked = question(dice, pools, asking, noun, dice.choice(pools.words)).replace("{key}", "it")
    return asked.replace("{line}", dice.choice(QUOTES))


_PARTS = """
    ba be bo da de do fa fi ga go ha he ja jo ka ke la le li lo ma me mi mo na ne no pa pe ra re ri ro sa se ta te to va
    vi za
"""
_SYLLABLES = tuple(_PARTS.split())


def people(dice: random.Random, pools: Pools, known: Sequence[str], count: int) -> list[str]:
    """Speakers, none of them of the task's: known names, made ones, words, or the same word with numbers."""
    kind = dice.random()
    if kind < 0.5:
        return dice.sample(known, count)
    if kind < 0.6:
        return [f"{dice.choice(pools.words).capitalize()} {number}" for number in range(1, count + 1)]
    made: dict[str, None] = {}
    while len(made) < count:
        parts = dice.choices(_SYLLABLES, k=dice.randint(2, 3))
        name = "".join(parts) + dice.choice(("", "", "n", "s", "l", "r")) if kind < 0.85 else dice.choice(pools.words)
        if name.capitalize() not in TASK_NAMES:
            made.setdefault(name.capitalize())
    return list(made)
