"""RULER's thirteen tasks (Hsieh et al. 2024, https://arxiv.org/abs/2404.06654), made here without any download.

The prompts, their order of draws and the scoring are those of NVIDIA/RULER's generators (scripts/data/synthetic) as
lm-eval has them, and given the same words, essays and questions they are the same. Ours: the texts (`text` for the
essays and the questions, words from it too), and that the noise is as much as fits to the token, where RULER goes by
steps. A score is the share of references found in the answer.
"""

from __future__ import annotations

import math
import random
import string
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pipelines.tasks import passkey, text, wording
from pipelines.tasks.documents import Encoder
from pipelines.tasks.qa import one_document, two_documents
from pipelines.tasks.questions import Exhausted, Question, QuestionTask
from pipelines.tasks.questions import match as measure

__all__ = ["KIND", "measure"]

NIAH = (
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. I will quiz "
    "you about the {type_needle_v} afterwards.\n{context}\nWhat are all the special magic {type_needle_v} for {query} "
    "mentioned in the provided text?"
)
NIAH_PREFIX = "The special magic {type_needle_v} for {query} mentioned in the provided text"
NEEDLE = "One of the special magic {type_needle_v} for {key} is: {value}."
DEPTHS = [round(100 * step / 39) for step in range(40)]
"""Percent of the sentences before a needle."""

VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find "
    "all variables that are assigned the value {query} in the text above."
)
VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables are assgined the "
    "value {query}, they are: "
)
CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?"
    " Answer: The top 10 words that appear most often in the list are:"
)
FWE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
    "three most frequently appeared words in the above coded text?"
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
NOISES = 6
"""Lines of filler that a chain takes, at least: one more than it has links. RULER has as many in its worked example as
fit into 500 tokens."""

SEED = 42
"""Of RULER's own shuffles, which are the same for every question."""


@dataclass(frozen=True)
class Needles:
    """One of RULER's needle tasks. haystack: repeat, essay or needle. keys, values: words, numbers or uuids."""

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    num_k: int = 1
    num_v: int = 1
    num_q: int = 1


NEEDLES: Mapping[str, Needles] = {
    "niah_single_1": Needles("repeat"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", values="uuids"),
    "niah_multikey_1": Needles("essay", num_k=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", keys="uuids", values="uuids"),
    "niah_multivalue": Needles("essay", num_v=4),
    "niah_multiquery": Needles("essay", num_k=4, num_q=4),
}

ROOM: Mapping[str, int] = {**dict.fromkeys(NEEDLES, 128), "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
"""Tokens of an answer, as in RULER."""

Sentences = Callable[[str], list[str]]
Drawn = tuple[str, list[str]]
"""A prompt with the beginning of its answer, and the references."""


def needles(
    dice: random.Random, kind: Needles, size: int, *, names: Sequence[str], essay: Sequence[str], split: Sentences
) -> Drawn:
    """RULER's niah. size: words of the essay, or sentences of the other haystacks (at least one a needle)."""

    def draw(what: str) -> str:
        if what == "numbers":
            return str(dice.randint(10**6, 10**7 - 1))
        return dice.choice(names) if what == "words" else str(uuid.UUID(int=dice.getrandbits(128), version=4))

    keys, values, hidden = [], [], []
    for _ in range(kind.num_k):
        keys.append(draw(kind.keys))
        values.append([draw(kind.values) for _ in range(kind.num_v)])
        hidden += [NEEDLE.format(type_needle_v=kind.values, key=keys[-1], value=value) for value in values[-1]]
    random.Random(SEED).shuffle(hidden)

    if kind.haystack == "essay":
        parts = split(" ".join(essay[:size]).strip())
        cuts = [0, *sorted(int(len(parts) * (depth / 100)) for depth in dice.sample(DEPTHS, len(hidden))), len(parts)]
        pieces = []
        for number in range(len(cuts) - 1):
            pieces += [" ".join(parts[cuts[number] : cuts[number + 1]]), *hidden[number : number + 1]]
        context = " ".join(pieces)
    else:
        straw = [passkey.FILLER] * size
        if kind.haystack == "needle":
            straw = [
                NEEDLE.format(type_needle_v=kind.values, key=draw(kind.keys), value=draw(kind.values))
                for _ in range(size)
            ]
        places = sorted(dice.sample(range(size), len(hidden)), reverse=True)
        for place, needle in zip(places, hidden, strict=True):
            straw.insert(place, needle)
        context = "\n".join(straw)

    asked = dice.sample(range(kind.num_k), kind.num_q)
    queries = [keys[number] for number in asked]
    query = ", ".join(queries[:-1]) + ", and " + queries[-1] if len(queries) > 1 else queries[0]
    template, values_are, one = NIAH, kind.values, kind.num_q * kind.num_v == 1
    if one:
        template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
        values_are = values_are[:-1]
    prompt = template.format(type_needle_v=values_are, context=context, query=query)
    prefix = NIAH_PREFIX.format(type_needle_v=values_are, query=query) + (" is" if one else " are")
    return f"{prompt} {prefix}", [value for number in asked for value in values[number]]


def _chain(dice: random.Random, noises: int, *, hops: int = 4, letters: int = 5) -> Drawn:
    names = ["".join(dice.choices(string.ascii_uppercase, k=letters)) for _ in range(hops + 1)]
    while len(set(names)) < hops + 1:
        names = ["".join(dice.choices(string.ascii_uppercase, k=letters)) for _ in range(hops + 1)]
    value = dice.randint(10_000, 99_998)
    chain = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in pairwise(names))]
    lines = [f"{passkey.FILLER}\n"] * noises
    for number, place in enumerate(sorted(dice.sample(range(len(lines)), len(chain)))):
        lines.insert(place + number, chain[number])
    context = " ".join(lines).replace(". \n", ".\n")
    return (VT + VT_PREFIX).format(context=context, query=value, num_v=hops + 1), names


def tracking(dice: random.Random, noises: int) -> Drawn:
    """RULER's vt: one chain of four hops, after a worked example whose names are drawn anew.

    noises: lines of filler, at least NOISES; the example has as many as that.
    """
    example, names = _chain(dice, NOISES, letters=3)
    shown = f"{example} {' '.join(names)}\n\n"
    for name in names:
        shown = shown.replace(name, "".join(dice.choices(string.ascii_uppercase, k=len(name))))
    prompt, answer = _chain(dice, noises)
    return f"{shown}\n\n{prompt}".rstrip(), answer


def _word_list(dice: random.Random, names: Sequence[str], count: int, common: int, uncommon: int) -> Drawn:
    drawn = dice.sample(names, count)
    often, rare = drawn[:10], drawn[10:]
    listed = often * common + rare * uncommon
    dice.shuffle(listed)
    return " ".join(f"{number + 1}. {word}" for number, word in enumerate(listed)), often


def common_words(dice: random.Random, count: int, length: int, names: Sequence[str]) -> Drawn:
    """RULER's cwe: ten words more often than `count` - 10 others, after an example; below 4,096 all less often."""
    example, repeats = ((20, 3, 1), (6, 1)) if length < 4096 else ((40, 10, 3), (30, 3))
    shown, answer = _word_list(dice, names, *example)
    numbered = " ".join(f"{number + 1}. {word}" for number, word in enumerate(answer))
    context, answer = _word_list(dice, names, count, *repeats)
    return f"{CWE.format(context=shown)}{numbered}\n{CWE.format(context=context)}", answer


def frequent_words(dice: random.Random, count: int, length: int) -> Drawn:
    """RULER's fwe: coded words by a zeta distribution (alpha 2), the most frequent written as dots."""
    size = max(4, length // 50)
    names = ["".join(dice.choices(string.ascii_lowercase, k=6)) for _ in range(size)]
    while len(set(names)) < size:
        names.append("".join(dice.choices(string.ascii_lowercase, k=6)))
    names = sorted(set(names))
    random.Random(SEED).shuffle(names)
    names[0] = "..."
    rank = np.arange(1, len(names) + 1)
    counts = (count * (rank**-2.0) / (math.pi**2 / 6)).astype(int)
    coded = [name for name, often in zip(names, counts, strict=True) for _ in range(often)]
    random.Random(SEED).shuffle(coded)
    return FWE.format(context=" ".join(coded)), names[1:4]


class Ruler(QuestionTask):
    name = "ruler"
    asks = tuple(ROOM)
    options: Mapping[str, Any] = {"ask": "all", "questions": 4, "text": text.PYDOC, "answer": "generate"}

    def pose(
        self, ask: str, seed: str, size: int, length: int, options: Mapping[str, Any], encode: Encoder
    ) -> Question:
        prompt, references = self._draw(ask, random.Random(seed), size, length, str(options["text"]))
        if options["answer"] == "loglikelihood":
            references = [", ".join(references)] if ask in ("cwe", "fwe", "vt") or ask in NEEDLES else references[:1]
        return Question(prompt, tuple(references), room=ROOM[ask])

    def _draw(self, ask: str, dice: random.Random, size: int, length: int, source: str) -> Drawn:
        if ask in NEEDLES:
            kind = NEEDLES[ask]
            essay: Sequence[str] = ()
            if kind.haystack == "essay":
                essay = _essay(dice, source, size)
            least = 0 if kind.haystack == "essay" else kind.num_k * kind.num_v
            names = wording.vocabulary(source)
            if not names:
                raise Exhausted(f"text {source} has no plain words")
            return needles(dice, kind, size + least, names=Pairs(names), essay=essay, split=wording.sentences)
        if ask == "vt":
            return tracking(dice, size + NOISES)
        if ask == "cwe":
            names = wording.vocabulary(source)
            if max(size + 20, 40) > len(names):
                raise Exhausted(f"text {source} has {len(names)} different plain words")
            return common_words(dice, size + 20, length, names)
        if ask == "fwe":
            return frequent_words(dice, size + 40, length)
        return (one_document if ask == "qa_1" else two_documents)(dice, size, source)


def _essay(dice: random.Random, source: str, size: int) -> Sequence[str]:
    """The words of a source from a random one on, round its end."""
    everything = wording.words(source)
    if not everything:
        raise Exhausted(f"text {source} has no words")
    start = dice.randrange(len(everything))
    rounds = (start + size) // len(everything) + 1
    return (everything * rounds)[start : start + size] if rounds > 1 else everything[start : start + size]


class Pairs(Sequence[str]):
    """Every pair of two words as word-word, in the order of the words; there are too many to write them out."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names) ** 2

    def __getitem__(self, number: Any) -> Any:
        first, second = divmod(number, len(self._names))
        return f"{self._names[first]}-{self._names[second]}"


KIND = Ruler()
