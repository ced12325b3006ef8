"""Generated documents that teach a model to use its context: look up, look back, tell kinds apart, follow edges.

They ask what the tasks ask, never as the tasks ask it: keys, names, labels, templates and texts are others, drawn anew
for every document, and most words of a template are drawn too, so that it is the document that must be read.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.tasks.many_shot import KINDS
from pipelines.train.corpus import Tokens
from pipelines.train.retrieval import Ids, Weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NAMES = """
    Adam Agnes Albert Alice Amir Arthur Beatrix Carlos Cecilia Daniel Diana Edgar Emma Fatima Fiona Frank George
    Hannah Helen Henry Ingrid Isaac Jakob Julia Karim Laura Linda Lucas Maria Martin Monica Nadia Oscar Paula
    Peter Robert Sandra Sofia Thomas Ursula Walter Yusuf Zoe
"""
NAMES = tuple(_NAMES.split())
MORE_KINDS = (
    "red blue green black white yellow pink brown grey purple orange silver gold violet",
    "head hand foot arm leg eye ear nose mouth neck knee finger shoulder back skin heart bone tooth",
    "hammer saw nail drill axe knife spade rope ladder wrench screw chisel pliers shovel broom brush",
    "doctor teacher farmer baker judge sailor soldier nurse painter writer singer driver lawyer clerk guard cook",
    "January February March April May June July August September October November December Monday Tuesday Sunday",
    "run walk jump swim climb crawl fly ride drive fall turn move push pull throw catch",
    "shirt coat hat shoe sock glove scarf dress skirt belt boot jacket trousers apron cap cloak",
    "def class return import while for yield lambda assert raise except finally with pass break continue",
)
"""Kinds of words beside those of the many-shot task, whose words are here too, under other labels: that a dog is an
animal is knowledge, and which label animals have today is in the document."""

FACTS = (
    ("The {noun} of {key} is {value}.", "What is the {noun} of {key}? It is"),
    ("One {noun} of {key} is: {value}.", "The {noun} of {key} that the text tells is"),
    ("The {adjective} {noun} for {key} is: {value}.", "Which {adjective} {noun} is for {key}? The one for {key} is"),
    ("{key} has {noun} {value}.", "Q: Which {noun} has {key}?\nA:"),
    ("{noun} {key}: {value}", "{noun} {key}:"),
    ("{key} = {value}", "{key} ="),
    ("{key} | {value}", "Look up {key}\nFound:"),
    ("The {noun} {key} weighs {value} {adjective}.", "How much does the {noun} {key} weigh?\nAnswer:"),
    ("They keep {key} at {noun} {value}.", "Question: At which {noun} is {key} kept?\nAnswer:"),
    ('"{key}": "{value}",', 'The entry "{key}" holds:'),
    ('  "{key}" : "{value}"', 'Key "{key}"\nValue of it:'),
    ("{key},{value}", "{key} stands beside"),
    ("<{noun} id={key}>{value}</{noun}>", "id={key} contains"),
)
"""What a line tells, and how it is asked for. A value in quotation marks is answered in them."""

QUOTES = (
    ("Who spoke the words “{line}”?\nAnswer:", "Which line is ahead of “{line}”?\nAnswer:"),
    ('Whose line is "{line}"?\nIt is', 'The line right before "{line}" is:'),
    ('Q: "{line}" - by whom?\nA:', 'Q: "{line}" - what did they hear just before it?\nA:'),
    ('"{line}" comes from', '"{line}" follows on'),
)
TURNS = ("{name}: {line}", "{name} - {line}", "{name} says: {line}", "<{name}> {line}", "[{name}] {line}")
FOLLOWING = (
    ("What comes next after “{before}”?\nAnswer:", "# {heading}"),
    ('The part below "{before}" is called', "{heading}"),
    ("Q: {before} is followed by which {noun}?\nA:", "{heading}:"),
    ("{before} >>", "== {heading} =="),
)
EDGES = (
    ("{a} => {b}", "Which are reached from {a}? [", "Which lead to {b}? ["),
    ("{a} points to {b}", "Targets of {a}: [", "Sources of {b}: ["),
    ("{a},{b}", "{a} goes to [", "{b} is entered from ["),
    ("{a} --> {b}", "Children of {a}: [", "Parents of {b}: ["),
)

HIDDEN, ANSWER = 0, -1
"""Weights of what nobody could guess, and of what the document answers (the writer's emphasis)."""

TRIES = 6
"""Sizes that are tried, until a document fits."""


@dataclass(frozen=True)
class Pools:
    """What documents are filled with, from a corpus: plain words, and sentences of 5 to 20 words."""

    words: tuple[str, ...]
    lines: tuple[str, ...]

    @classmethod
    def of(cls, tokens: Tokens, tokenizer: Tokenizer, spans: int = 256, span: int = 16_384) -> Pools:
        """From stretches of a corpus, evenly spread."""
        starts = np.linspace(0, max(0, tokens.size - span), spans).astype(int)
        texts = tokenizer.decode_batch([tokens[start : start + span].tolist() for start in starts])
        words = {word for text in texts for word in re.findall(r"(?<![\w.])[a-z]{3,10}(?![\w.(])", text)}
        plain = re.compile(r"[A-Z][a-z][^\"\u201c\u201d=<>|{}\[\]\\#]*[.!?]")
        parts = (part for text in texts for part in re.split(r"(?<=[.!?])\s+", " ".join(text.split())))
        lines = {part for part in parts if 5 <= len(part.split()) <= 20 and plain.fullmatch(part)}
        # A small corpus may have few of them.
        return cls(tuple(sorted(words | {"word", "thing"})), tuple(sorted(lines | {*_SPARE})))


_SPARE = tuple(f"There is nothing to be said about number {number}." for number in range(64))


class Sheet:
    """A document under construction: text, and what each piece of it weighs."""

    def __init__(self) -> None:
        self.text, self.ends, self.weights = "", list[int](), list[int]()

    def say(self, text: str, weight: int = 1) -> None:
        self.text += text
        self.ends.append(len(self.text))
        self.weights.append(weight)

    def fill(self, template: str, hidden: Sequence[str] = (), **values: str) -> None:
        """A template; what stands for a name of `hidden` nobody could guess."""
        for piece in re.split(r"(\{\w+\})", template):
            name = piece[1:-1]
            if piece.startswith("{") and name in values:
                self.say(values[name], HIDDEN if name in hidden else 1)
            elif piece:
                self.say(piece)


class Exercises:
    """Writes documents in the ids of one tokenizer.

    emphasis: weight of an answer's tokens, 1 to 255.
    """

    least = 96
    """Tokens for which there is always a document."""

    def __init__(self, tokenizer: Tokenizer, pools: Pools, emphasis: int) -> None:
        self.tokenizer, self.pools, self.emphasis = tokenizer, pools, emphasis

    def __call__(self, dice: random.Random, size: int) -> tuple[Ids, Weights]:
        """(tokens,) ids and weights of a document of one kind, drawn, of at most `size` tokens.

        It is as long as a few tries make it; without room for any, it is nothing.
        """
        kind, seed = dice.choices(list(WRITERS), list(WRITERS.values()))[0], dice.random()
        pieces = size // 12
        for _ in range(TRIES):
            ids, weights = self._encoded(kind(random.Random(seed), self.pools, max(1, pieces)))
            if ids.size <= size:
                return ids, weights
            pieces = min(pieces - 1, int(0.9 * pieces * size / ids.size))
        return ids[:0], weights[:0]

    def _encoded(self, sheet: Sheet) -> tuple[Ids, Weights]:
        encoding = self.tokenizer.encode(sheet.text, add_special_tokens=False)
        last = np.array([end for _, end in encoding.offsets]) - 1
        of_piece = np.array([self.emphasis if weight == ANSWER else weight for weight in sheet.weights], dtype=np.uint8)
        places = np.searchsorted(np.array(sheet.ends), last, side="right")
        return np.array(encoding.ids, dtype=np.int32), of_piece[np.minimum(places, of_piece.size - 1)]


def lookup(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """Values told by their keys, which may be nearly alike, on their own or among sentences; some are asked for."""
    told, asked = dice.choice(FACTS)
    drawn = {"noun": dice.choice(pools.words), "adjective": dice.choice(pools.words)}
    key_kind, value_kind = dice.choice(KEYS), dice.choice(KEYS)
    among = dice.random() < 0.5
    count = max(1, min(int(pieces * dice.uniform(0.1, 0.6)), dice.randint(1, max(40, pieces // 3))))
    keys = _alike(dice, count) if dice.random() < 0.25 else [key_kind(dice, pools) for _ in range(count)]
    rows = [(key, value_kind(dice, pools)) for key in dict.fromkeys(keys)]
    sheet = Sheet()
    sheet.say(f"{dice.choice(pools.lines)}\n")
    gap = max(0, pieces - 2 * count) // (2 * count) if among else 0
    for key, value in rows:
        for _ in range(dice.randint(0, 2 * gap) if gap else 0):
            sheet.say(f"{dice.choice(pools.lines)}{dice.choice((' ', chr(10)))}")
        sheet.fill(f"{told}\n", ("key", "value"), key=key, value=value, **drawn)
    sheet.say("\n")
    quoted = '"{value}"' in told
    for key, value in dice.sample(rows, min(len(rows), dice.randint(1, 8))):
        sheet.fill(asked, key=key, **drawn)
        sheet.say(f' "{value}"' if quoted else f" {value}", ANSWER)
        sheet.say("\n")
    return sheet


def several(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """Several values of one key, or of several keys, among sentences; all are asked for, in the order of the text."""
    noun, count = dice.choice(pools.words), dice.randint(2, 4)
    keys = [_pair(dice, pools) for _ in range(count)]
    if dice.random() < 0.5:
        keys = keys[:1] * count
    rows = [(key, dice.choice((_number, _hex))(dice, pools)) for key in keys]
    sheet, gap = Sheet(), max(0, pieces // 2 - 3 * count) // count
    for key, value in rows:
        for _ in range(dice.randint(0, gap)):
            sheet.say(f"{dice.choice(pools.lines)} ")
        sheet.fill("One {noun} of {key} is: {value}. ", ("key", "value"), noun=noun, key=key, value=value)
    names = list(dict.fromkeys(keys))
    every = f"{', '.join(names[:-1])}, and {names[-1]}" if len(names) > 1 else names[0]
    sheet.say(f"\nEach {noun} of {every} in this text: they are")
    sheet.say(f" {', '.join(value for _, value in rows)}", ANSWER)
    sheet.say(".\n")
    return sheet


def dialogue(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """Who said a line, what was said before it, or a number somebody gave early on."""
    people = dice.sample(NAMES, dice.randint(3, 9))
    count = max(4, pieces // 2 - 6)
    turns = [(dice.choice(people), line) for line in _sample(dice, pools.lines, count)]
    form, (who, before), kind = dice.choice(TURNS), dice.choice(QUOTES), dice.choice(("who", "before", "number"))
    noun, name = dice.choice(pools.words), turns[0][0]
    facts = {thing: str(dice.randint(100, 99_999)) for thing in dice.sample(pools.words, dice.randint(2, 7))}
    places = sorted(dice.choices(range(max(1, len(turns) // 2)), k=len(facts)))
    sheet = Sheet()
    if dice.random() < 0.5:
        sheet.say(f"{dice.choice(pools.lines)}\n\n")
    waiting = list(zip(places, facts.items(), strict=True)) if kind == "number" else []
    for number, (speaker, line) in enumerate(turns):
        while waiting and waiting[0][0] == number:
            thing, value = waiting.pop(0)[1]
            sheet.fill(form, name=name, line="")
            sheet.fill("The {noun} of my {thing} is {value}.\n", ("value",), noun=noun, thing=thing, value=value)
        sheet.fill(f"{form}\n", name=speaker, line=line)
    sheet.say("\n")
    if kind == "number":
        for thing, value in dice.sample(sorted(facts.items()), min(len(facts), 5)):
            sheet.fill("Tell the {noun} of {thing} of {name}:", noun=noun, thing=thing, name=name)
            sheet.say(f" {value}", ANSWER)
            sheet.say("\n")
        return sheet
    for place in dice.sample(range(1, len(turns)), min(len(turns) - 1, dice.randint(1, 6))):
        sheet.fill(who if kind == "who" else before, line=turns[place][1])
        sheet.say(f" {turns[place][0] if kind == 'who' else turns[place - 1][1]}", ANSWER)
        sheet.say("\n")
    return sheet


def outline(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """Headings with the beginnings of their sections: which comes next; or sections by number: what each is about."""
    count, shown = max(3, pieces // 3), dice.randint(4, 12)
    bodies = [line.split() for line in _sample(dice, pools.lines, count)]
    noun, sheet = dice.choice(pools.words), Sheet()
    if dice.random() < 0.3:  # a heading is made of words of its section
        rows = []
        for number, words in enumerate(bodies, start=1):
            body = words[: shown + 4]
            start = dice.randrange(max(1, len(body) - 3))
            rows.append((number, " ".join(body[start : start + dice.randint(1, 3)]).strip(".,!?").capitalize()))
            sheet.say(f"{noun.capitalize()} {number}:\n{' '.join(body)}\n\n")
        for number, heading in dice.sample(rows, min(count, 5)):
            sheet.say(f"The title of {noun} {number}:")
            sheet.say(f" {heading}", ANSWER)
            sheet.say("\n")
        return sheet
    headings = [" ".join(dice.choices(pools.words, k=dice.randint(1, 4))).capitalize() for _ in bodies]
    asked, form = dice.choice(FOLLOWING)
    for heading, body in zip(headings, bodies, strict=True):
        sheet.fill(f"{form}\n{{body}}\n\n", heading=heading, body=" ".join(body[:shown]))
    for place in dice.sample(range(1, count), min(count - 1, dice.randint(1, 7))):
        sheet.fill(asked, before=headings[place - 1], noun=noun)
        sheet.say(f" {headings[place]}", ANSWER)
        sheet.say("\n")
    return sheet


def kinds(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """Words, each with the label that its kind has in this document."""
    every = [*map(tuple, map(str.split, MORE_KINDS)), *KINDS.values()]
    chosen = dice.sample(every, dice.randint(2, 5))
    if dice.random() < 0.4:
        chosen = dice.sample(list(KINDS.values()), dice.randint(2, 4))
    labels = dice.sample(pools.words, len(chosen))
    rows = [(word, label) for words, label in zip(chosen, labels, strict=True) for word in words]
    rows = dice.sample(rows, len(rows)) if dice.random() < 0.5 else dice.choices(rows, k=3 * pieces)
    between, sheet, seen = dice.choice((": ", " = ", " => ", " is ", " | ", ", ")).rstrip(), Sheet(), set[str]()
    for word, label in rows[: 2 * pieces]:
        sheet.say(f"{word}{between}")
        sheet.say(f" {label}", ANSWER if label in seen else HIDDEN)
        sheet.say("\n")
        seen.add(label)
    return sheet


def edges(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """A list of edges; where one node leads, and what leads to it."""
    form, forth, back = dice.choice(EDGES)
    draw = dice.choice((_hex, _pair, _code))
    nodes = list(dict.fromkeys(draw(dice, pools) for _ in range(max(3, pieces // 3))))
    pairs = list(dict.fromkeys((dice.choice(nodes), dice.choice(nodes)) for _ in range(max(3, pieces // 2))))
    sheet = Sheet()
    for a, b in pairs:
        sheet.fill(f"{form}\n", ("a", "b"), a=a, b=b)
    sheet.say("\n")
    asked = forth if dice.random() < 0.5 else back
    for a, b in dice.sample(pairs, min(len(pairs), 4)):
        right = [y for x, y in pairs if x == a] if asked is forth else [x for x, y in pairs if y == b]
        sheet.fill(asked, a=a, b=b)
        sheet.say(", ".join(right), ANSWER)
        sheet.say("]\n")
    return sheet


def gaps(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """Sentences, and some of them once more with a word missing."""
    lines = _sample(dice, pools.lines, max(2, pieces // 2 - 4))
    sheet = Sheet()
    for line in lines:
        sheet.say(f"{line}{dice.choice((' ', chr(10)))}")
    sheet.say("\n")
    for line in dice.sample(lines, min(len(lines), dice.randint(1, 4))):
        words = line.split()
        place = dice.randrange(1, len(words) - 1)
        sheet.say(f"{' '.join([*words[:place], '...', *words[place + 1 :]])} The gap is")
        sheet.say(f" {words[place].strip('.,;:()')}", ANSWER)
        sheet.say("\n")
    return sheet


Writer = Callable[[random.Random, Pools, int], Sheet]
WRITERS: Mapping[Writer, float] = {lookup: 5, several: 1, dialogue: 4, outline: 2, kinds: 3, edges: 1, gaps: 1}
"""Kinds of document, and how often each is drawn."""


def _number(dice: random.Random, pools: Pools) -> str:
    return str(dice.randrange(10 ** dice.randint(2, 6), 10**7))


def _hex(dice: random.Random, pools: Pools) -> str:
    return f"{dice.getrandbits(64):016x}"[: dice.randint(6, 14)]


def _uuid(dice: random.Random, pools: Pools) -> str:
    return str(uuid.UUID(int=dice.getrandbits(128), version=4))


def _word(dice: random.Random, pools: Pools) -> str:
    return dice.choice(pools.words)


def _pair(dice: random.Random, pools: Pools) -> str:
    return f"{dice.choice(pools.words)}{dice.choice('-_ ')}{dice.choice(pools.words)}"


def _code(dice: random.Random, pools: Pools) -> str:
    letters = "".join(dice.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=dice.randint(2, 5)))
    return f"{letters}{dice.choice('-/')}{dice.randrange(100, 10_000)}"


KEYS: Sequence[Callable[[random.Random, Pools], str]] = (_number, _hex, _uuid, _word, _pair, _code)


def _alike(dice: random.Random, count: int) -> list[str]:
    """Codes that differ from one in a single place."""
    first = f"{''.join(dice.choices('ABCDEFGHIJKLMNOPQRSTUVWXYZ', k=4))}-{dice.randrange(1000, 10_000)}"
    made = [first]
    for _ in range(count - 1):
        place = dice.choice([0, 1, 2, 3, 5, 6, 7, 8])
        letter = dice.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ" if place < 4 else "0123456789")
        made.append(f"{first[:place]}{letter}{first[place + 1 :]}")
    return dice.sample(made, count)


def _sample(dice: random.Random, lines: Sequence[str], count: int) -> list[str]:
    """`count` different lines, or as many as there are."""
    return dice.sample(lines, min(count, len(lines)))
