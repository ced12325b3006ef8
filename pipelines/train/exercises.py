"""Generated documents that teach a model to use its context: look up, look back, tell kinds apart, follow edges.

They ask what the tasks ask, never as the tasks ask it: keys, names, labels, templates and texts are others, drawn anew
for every document, and most words of a template are drawn too, so that it is the document that must be read.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pipelines.tasks import passkey
from pipelines.tasks.many_shot import KINDS
from pipelines.train import wordings
from pipelines.train.keys import KEYS, alike, code_key, hex_key, number_key, pair_key, word_key
from pipelines.train.retrieval import Ids, Weights
from pipelines.train.wordings import Pools, Wording

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

BETWEEN_KINDS = (":", " =", " =>", " is", " |", ",", " -", " >>", " ::", " /", " ~", " ..", ";", ":=")
"""Between a word and its label."""

EDGES = (
    ("{a} => {b}", "Which are reached from {a}? [", "Which lead to {b}? ["),
    ("{a} points to {b}", "Targets of {a}: [", "Sources of {b}: ["),
    ("{a},{b}", "{a} goes to [", "{b} is entered from ["),
    ("{a} --> {b}", "Children of {a}: [", "Parents of {b}: ["),
)

HIDDEN, ANSWER = 0, -1
"""Weights of what nobody could guess, and of what the document answers (the writer's emphasis)."""

TRIES = 8
"""Sizes that are tried, until a document fits."""


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
        for piece in _pieces(template):
            name = piece[1:-1]
            if piece.startswith("{") and name in values:
                self.say(values[name], HIDDEN if name in hidden else 1)
            elif piece:
                self.say(piece)


@lru_cache(maxsize=256)
def _pieces(template: str) -> list[str]:
    return re.split(r"(\{\w+\})", template)


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
    """Values told by their keys, which may be nearly alike, on their own or among other text; some are asked for."""
    apart = dice.random() < 0.5
    words = wordings.records(dice, pools, apart=apart)
    key_kind, value_kind = dice.choice(KEYS), dice.choice(KEYS)
    if dice.random() < 0.2:
        value_kind = key_kind
    count = max(1, min(int(pieces * dice.uniform(0.05, 0.9)), dice.randint(1, max(40, pieces // 3))))
    if apart:
        count = dice.randint(1, max(1, min(count, 8)))
    keys = (
        alike(dice, pools.words, count) if dice.random() < 0.25 else [key_kind(dice, pools.words) for _ in range(count)]
    )
    rows = [(key, value_kind(dice, pools.words)) for key in dict.fromkeys(keys)]
    sheet = Sheet()
    sheet.say(wordings.opening(dice, pools))
    questions = dice.choice((1, 1, 2, 3, 3, 4, 6, 8))
    straw = _straw(dice, pools, max(0, pieces - 2 * (count + questions))) if apart else []
    cuts = sorted(dice.choices(range(len(straw) + 1), k=len(rows)))
    _records(sheet, words, rows, [straw[a:b] for a, b in pairwise([0, *cuts, len(straw)])])
    sheet.say(dice.choice(("\n", "\n\n", "\n\n")))
    for key, value in dice.sample(rows, min(len(rows), questions)):
        sheet.fill(words.asked, key=key)
        sheet.say(words.answer.replace("{value}", value), ANSWER)
        sheet.say(words.after)
    return sheet


def _records(sheet: Sheet, words: Wording, rows: Sequence[tuple[str, str]], straw: Sequence[Sequence[str]]) -> None:
    """All records, and before each of them, and after the last, the straw for that place."""
    sheet.say(words.head)
    for number, (key, value) in enumerate(rows):
        for line in straw[number]:
            sheet.say(f"{line}{words.joint}")
        sheet.fill(words.told, ("key", "value"), key=key, value=value)
        if number + 1 < len(rows) or straw[-1]:
            sheet.say(words.joint)
    sheet.say(words.joint.join(straw[-1]))
    sheet.say(words.tail)


def _straw(dice: random.Random, pools: Pools, pieces: int) -> list[str]:
    """So many pieces of text to hide records in: sentences, any text, or one sentence over and over."""
    kind = dice.random()
    if kind < 0.4:
        return dice.choices(pools.lines, k=2 * pieces // 3)
    if kind < 0.75:
        text = " ".join(dice.choices(pools.passages, k=(pieces + 3) // 7))
        return re.split(r"(?<=[.!?]) ", text)
    line = dice.choice(pools.lines) if kind < 0.9 else passkey.FILLER
    return [line] * (pieces * 40 // len(line))


def several(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """Several values of one key, or of several keys, among sentences; all are asked for, in the order of the text."""
    words, count = wordings.records(dice, pools, apart=True), dice.randint(2, 4)
    keys = [pair_key(dice, pools.words) for _ in range(count)]
    if dice.random() < 0.5:
        keys = keys[:1] * count
    value_kind = dice.choice((number_key, hex_key, word_key))
    rows = [(key, value_kind(dice, pools.words)) for key in keys]
    straw = _straw(dice, pools, max(0, pieces - 4 * count))
    cuts = sorted(dice.choices(range(len(straw) + 1), k=len(rows)))
    sheet = Sheet()
    sheet.say(wordings.opening(dice, pools))
    _records(sheet, words, rows, [straw[a:b] for a, b in pairwise([0, *cuts, len(straw)])])
    names = list(dict.fromkeys(keys))
    every = f"{', '.join(names[:-1])}, and {names[-1]}" if len(names) > 1 else names[0]
    sheet.say("\n")
    sheet.fill(words.asked, key=every)
    sheet.say(f" {', '.join(value for _, value in rows)}", ANSWER)
    sheet.say(words.after)
    return sheet


def dialogue(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """Who said a line, what was said before it, or a value somebody gave early on."""
    people = wordings.people(dice, pools, NAMES, dice.randint(3, 9))
    questions = min(dice.choice((1, 2, 3, 3, 4, 6)), 1 + pieces // 8)
    turns = [(dice.choice(people), line) for line in _sample(dice, pools.lines, max(4, pieces // 2 - questions - 2))]
    noun, kind = dice.choice(pools.words), dice.choices(("who", "before", "fact"), (3, 1, 1))[0]
    form = wordings.drawn(dice, pools, dice.choice(wordings.TURNS), noun, dice.choice(pools.words))
    if kind == "fact":
        return _given_early(dice, pools, turns, form, min(dice.randint(2, 7), 2 + pieces // 8))
    asked = wordings.quoting(dice, pools, wordings.WHO if kind == "who" else wordings.AHEAD, noun)
    joint, after = dice.choice(("\n", "\n", "\n\n")), dice.choice(wordings.BETWEEN)
    sheet = Sheet()
    sheet.say(wordings.opening(dice, pools))
    for speaker, line in turns:
        sheet.fill(f"{form}{joint}", ("name",), name=speaker, line=line)
    sheet.say("\n")
    for place in dice.sample(range(1, len(turns)), min(len(turns) - 1, questions)):
        sheet.fill(asked, line=turns[place][1])
        sheet.say(f" {turns[place][0] if kind == 'who' else turns[place - 1][1]}", ANSWER)
        sheet.say(after)
    return sheet


def _given_early(dice: random.Random, pools: Pools, turns: list[tuple[str, str]], form: str, count: int) -> Sheet:
    """Somebody tells the values of some things in the first half of a conversation."""
    words, name = wordings.records(dice, pools, apart=True), turns[0][0]
    facts = {thing: str(dice.randint(100, 99_999)) for thing in dice.sample(pools.words, count)}
    places = sorted(dice.choices(range(max(1, len(turns) // 2)), k=len(facts)))
    sheet, waiting = Sheet(), list(zip(places, facts.items(), strict=True))
    sheet.say(wordings.opening(dice, pools))
    for number, (speaker, line) in enumerate(turns):
        while waiting and waiting[0][0] == number:
            thing, value = waiting.pop(0)[1]
            told = words.told.replace("{key}", f"{dice.choice(('my', 'the', 'our'))} {{key}}")
            sheet.fill(f"{form}\n".replace("{line}", told), ("key", "value"), name=name, key=thing, value=value)
        sheet.fill(f"{form}\n", ("name",), name=speaker, line=line)
    sheet.say("\n")
    for thing, value in dice.sample(sorted(facts.items()), min(len(facts), 4)):
        sheet.fill(words.asked, key=f"{name}'s {thing}")
        sheet.say(f" {value}", ANSWER)
        sheet.say(words.after)
    return sheet


def outline(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """Headings with the beginnings of their sections: which comes next."""
    questions, bodies = _bodies(dice, pools, pieces)
    noun, after, sheet = dice.choice(pools.words), dice.choice(wordings.BETWEEN), Sheet()
    sheet.say(wordings.opening(dice, pools))
    headings = list(dict.fromkeys(_heading(dice, pools) for _ in bodies))
    form = wordings.drawn(dice, pools, dice.choice(wordings.HEADINGS), noun, dice.choice(pools.words))
    asked, joint = wordings.quoting(dice, pools, wordings.FOLLOWS, noun), dice.choice(("\n", "\n", " "))
    for heading, words in zip(headings, bodies, strict=False):
        sheet.fill(f"{form}{joint}{{body}}\n\n", line=heading, body=" ".join(words))
    for place in dice.sample(range(1, len(headings)), min(len(headings) - 1, questions)):
        sheet.fill(asked, line=headings[place - 1])
        sheet.say(f" {headings[place]}", ANSWER)
        sheet.say(after)
    return sheet


def titles(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """Sections by number, without titles; some titles are asked for: words of it, or the name of what it is about."""
    questions, bodies = _bodies(dice, pools, pieces)
    if dice.random() < 0.6:
        shown = len(bodies[0])
        rows = [(title, body.split()[:shown]) for title, body in dice.choices(pools.titled, k=len(bodies))]
    else:
        rows = [(_part(dice, words, 3), words) for words in bodies]
    noun, after, sheet = dice.choice(pools.words), dice.choice(wordings.BETWEEN), Sheet()
    sheet.say(wordings.opening(dice, pools))
    asked = wordings.question(dice, pools, wordings.ASKING, noun, dice.choice(pools.words))
    mark = dice.choice(("{noun} {key}:\n", "{noun} {key}. ", "[{key}] ", "{key}) ", "# {key}\n", "{noun} {key}\n"))
    for number, (_, body) in enumerate(rows, start=1):
        sheet.fill(f"{mark}{{body}}\n\n", noun=noun.capitalize(), key=str(number), body=" ".join(body))
    for place in dice.sample(range(len(rows)), min(len(rows), questions)):
        sheet.fill(asked, key=f"{noun} {place + 1}")
        sheet.say(f" {rows[place][0]}", ANSWER)
        sheet.say(after)
    return sheet


def _bodies(dice: random.Random, pools: Pools, pieces: int) -> tuple[int, list[list[str]]]:
    """How many questions there are, and the first words of each section."""
    questions, shown = dice.choice((1, 2, 3, 3, 4, 6)), dice.randint(4, 16)
    count = max(3, (pieces - 3 * questions) * 6 // (shown + 6))
    texts = dice.choices(pools.passages, k=count) if dice.random() < 0.5 else _sample(dice, pools.lines, count)
    return questions, [text.split()[:shown] for text in texts]


def _heading(dice: random.Random, pools: Pools) -> str:
    """Words drawn one by one, or in a row from a sentence."""
    if dice.random() < 0.5:
        return pools.phrase(dice).capitalize()
    return _part(dice, dice.choice(pools.lines).split(), 5)


def _part(dice: random.Random, words: Sequence[str], most: int) -> str:
    """Some words in a row, as a heading."""
    start = dice.randrange(max(1, len(words) - 2))
    part = " ".join(words[start : start + dice.randint(1, most)]).strip(".,!?")
    return f"{part[:1].upper()}{part[1:]}"


def kinds(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """Words, each with the label that its kind has in this document."""
    every = [*map(tuple, map(str.split, MORE_KINDS)), *KINDS.values()]
    chosen = dice.sample(every, dice.randint(2, 5))
    if dice.random() < 0.4:
        chosen = dice.sample(list(KINDS.values()), dice.randint(2, 4))
    labels = dice.sample(pools.words, len(chosen))
    rows = [(word, label) for words, label in zip(chosen, labels, strict=True) for word in words]
    rows = dice.sample(rows, len(rows)) if dice.random() < 0.5 else dice.choices(rows, k=3 * pieces)
    between, sheet, seen = dice.choice(BETWEEN_KINDS), Sheet(), set[str]()
    for word, label in rows[: 2 * pieces]:
        sheet.say(f"{word}{between}")
        sheet.say(f" {label}", ANSWER if label in seen else HIDDEN)
        sheet.say("\n")
        seen.add(label)
    return sheet


def edges(dice: random.Random, pools: Pools, pieces: int) -> Sheet:
    """A list of edges; where one node leads, and what leads to it."""
    form, forth, back = dice.choice(EDGES)
    draw = dice.choice((hex_key, pair_key, code_key))
    nodes = list(dict.fromkeys(draw(dice, pools.words) for _ in range(max(3, pieces // 3))))
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
    questions, mark = dice.choice((1, 2, 3, 4)), dice.choice(wordings.GAPS)
    lines = _sample(dice, pools.lines, max(2, pieces // 2 - questions))
    asked = wordings.quoting(dice, pools, ("{line}", "{Phrase}: {line}", "{line} {phrase}"), dice.choice(pools.words))
    joint, after, sheet = dice.choice((" ", "\n", "\n\n")), dice.choice(wordings.BETWEEN), Sheet()
    sheet.say(wordings.opening(dice, pools))
    sheet.say(joint.join(lines))
    sheet.say("\n\n")
    for line in dice.sample(lines, min(len(lines), questions)):
        words = line.split()
        place = dice.randrange(1, len(words) - 1)
        sheet.fill(asked, line=" ".join([*words[:place], mark, *words[place + 1 :]]))
        sheet.say(f" {words[place].strip('.,;:()')}", ANSWER)
        sheet.say(after)
    return sheet


Writer = Callable[[random.Random, Pools, int], Sheet]
WRITERS: Mapping[Writer, float] = {
    lookup: 7,
    several: 1,
    dialogue: 4,
    outline: 2,
    titles: 1.5,
    kinds: 2,
    edges: 0.5,
    gaps: 1,
}
"""Kinds of document, and how often each is drawn."""


def _sample(dice: random.Random, lines: Sequence[str], count: int) -> list[str]:
    """`count` different lines, or as many as there are."""
    return dice.sample(lines, min(count, len(lines)))
