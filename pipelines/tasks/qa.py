"""RULER's questions over documents, with questions made from any text: of one document (qa_1), and of two (qa_2)."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from pipelines.tasks import wording
from pipelines.tasks.questions import Exhausted

TEMPLATE = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query} Answer:"
)
SEED = 42
"""Of RULER's shuffle of documents."""

LETTERS = 7
"""Of the words that are asked for, at least."""

TRIES = 5000
"""Pairs of documents that are drawn, at most, in search of two that share one word."""


def prompt(dice: random.Random, count: int, documents: Sequence[str], gold: Sequence[int], query: str) -> str:
    """RULER's prompt: a question and `count` documents, those that answer it (`gold`) among them.

    Raises:
        Exhausted: there are not so many documents.
    """
    if count > len(documents):
        raise Exhausted(f"its text has {len(documents)} paragraphs")
    others = [number for number in range(len(documents)) if number not in gold]
    chosen = [documents[number] for number in [*gold, *dice.sample(others, count - len(gold))]]
    random.Random(SEED).shuffle(chosen)
    context = "\n\n".join(f"Document {number + 1}:\n{document}" for number, document in enumerate(chosen))
    return TEMPLATE.format(context=context, query=query)


def one_document(dice: random.Random, size: int, source: str) -> tuple[str, list[str]]:
    """Which word is missing in a sentence of one of `size` + 1 paragraphs; the word is in no other."""
    documents, rare = wording.paragraphs(source), _rare(wording.paragraphs(source))
    if not rare:
        raise Exhausted(f"text {source} has no paragraph with a word of its own")
    gold, sentence, word = rare[dice.randrange(len(rare))]
    blank = re.sub(rf"\b{word}\b", "____", sentence)
    query = f'Which word is missing in this sentence of a document: "{blank}"?'
    return prompt(dice, size + 1, documents, [gold], query), [word]


def two_documents(dice: random.Random, size: int, source: str) -> tuple[str, list[str]]:
    """The one long word that two paragraphs share, among `size` + 2; each is named by its first words."""
    documents, plain = wording.paragraphs(source), _plain(wording.paragraphs(source))
    if len(documents) < 2:
        raise Exhausted(f"text {source} has {len(documents)} paragraphs")
    for _ in range(TRIES):
        first, second = dice.sample(range(len(documents)), 2)
        shared = plain[first] & plain[second]
        if len(shared) == 1:
            begins = [" ".join(documents[number].split()[:6]) for number in (first, second)]
            query = (
                f'Which word of {LETTERS} or more letters is both in the document that begins with "{begins[0]}" '
                f'and in the document that begins with "{begins[1]}"?'
            )
            return prompt(dice, size + 2, documents, [first, second], query), sorted(shared)
    raise Exhausted(f"text {source} has no two paragraphs that share one long word")


@lru_cache(maxsize=4)
def _plain(documents: tuple[str, ...]) -> tuple[frozenset[str], ...]:
    word = re.compile(rf"\b[a-z]{{{LETTERS},}}\b")
    return tuple(frozenset(word.findall(document)) for document in documents)


@lru_cache(maxsize=4)
def _rare(documents: tuple[str, ...]) -> tuple[tuple[int, str, str], ...]:
    """(document, sentence, word) for the first long word of each document that no other has, and it has once."""
    plain = _plain(documents)
    count = Counter(word for each in plain for word in each)
    found = []
    for number, document in enumerate(documents):
        for sentence in wording.sentences(document):
            words = [word for word in re.findall(r"\b[a-z]+\b", sentence) if word in plain[number] and count[word] == 1]
            once = [word for word in words if len(re.findall(rf"\b{word}\b", document)) == 1]
            if once and 5 <= len(sentence.split()) <= 30:
                found.append((number, sentence, once[0]))
                break
    return tuple(found)
