"""Given the same words, texts and draws, the prompts of `ruler` are those of RULER's generators in lm-eval."""

from __future__ import annotations

import importlib
import random
import sys
import types

import numpy as np
import pytest

from pipelines.tasks import qa, ruler, wording

WORDS = [
    f"{first}{second}" for first in ("sun", "moon", "star", "rain", "snow", "wind") for second in "abcdefghijklmnop"
]
ESSAY = " ".join(f"Sentence {n} is about the {WORDS[n % len(WORDS)]}. And so it goes on!" for n in range(300)).split()


@pytest.fixture
def theirs(monkeypatch):
    """A file of lm-eval's RULER, with our words for those of wonderwords and our splitter for that of nltk."""
    kinds = {"nouns": ["b", "d"], "adjectives": ["a"], "verbs": [], "noun": WORDS, "adjective": [], "verb": []}
    words = types.ModuleType("wonderwords")
    words.RandomWord = lambda: types.SimpleNamespace(_categories=kinds)
    nltk = types.ModuleType("nltk")
    nltk.sent_tokenize, nltk.data = wording.sentences, types.SimpleNamespace(find=lambda name: name)
    monkeypatch.setitem(sys.modules, "wonderwords", words)
    monkeypatch.setitem(sys.modules, "nltk", nltk)

    def load(name):
        module = importlib.import_module(f"lm_eval.tasks.ruler.{name}")
        monkeypatch.delitem(sys.modules, module.__name__)
        return module

    return load


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ask", ruler.NEEDLES)
def test_needles_are_rulers(theirs, ask, seed):
    module, kind = theirs("prepare_niah"), ruler.NEEDLES[ask]
    straw = {"repeat": module.get_haystack("repeat"), "needle": module.get_haystack("needle"), "essay": ESSAY}
    random.seed(seed)
    size = 700 if kind.haystack == "essay" else 40
    text, references, query = module.generate_input_output(
        size,
        straw[kind.haystack],
        type_haystack=kind.haystack,
        num_needle_k=kind.num_k,
        type_needle_k=kind.keys,
        num_needle_v=kind.num_v,
        type_needle_v=kind.values,
        template=importlib.import_module("lm_eval.tasks.ruler.niah_utils").TEMPLATE,
        num_needle_q=kind.num_q,
    )
    one = kind.num_q * kind.num_v == 1
    values = kind.values[:-1] if one else kind.values
    prefix = f"The special magic {values} for {query} mentioned in the provided text {'is' if one else 'are'}"
    ours = ruler.needles(
        random.Random(seed), kind, size, names=module.WORDS, essay=ESSAY, split=module.cached_sent_tokenize
    )
    assert ours == (f"{text} {prefix}", references)
    assert all(reference in text for reference in references)


def test_the_depths_are_rulers(theirs):
    assert theirs("prepare_niah").DEPTHS == ruler.DEPTHS


@pytest.mark.parametrize("noises", [6, 30])
def test_variable_tracking_is_rulers(theirs, monkeypatch, noises):
    module = theirs("vt_utils")
    # numpy's draw of the value, whose upper end is left out, from the stream of the others
    monkeypatch.setattr(module.np.random, "randint", lambda low, high: random.randint(low, high - 1))
    random.seed(5)
    example, names = module.generate_input_output(ruler.NOISES, 1, 4, is_icl=True)
    example = module.randomize_icl(example + " " + " ".join(names) + "\n\n")
    text, references = module.generate_input_output(noises, 1, 4)
    assert ruler.tracking(random.Random(5), noises) == (f"{example}\n\n{text.rstrip()}", references)


@pytest.mark.parametrize("length", [2048, 8192])
def test_common_words_are_rulers(theirs, monkeypatch, length):
    module = theirs("cwe_utils")
    monkeypatch.setattr(module, "RNG", random)
    random.seed(7)
    example, text, references = module.generate_input_output(60, length)
    assert ruler.common_words(random.Random(7), 60, length, module.WORDS) == (f"{example}\n{text}", references)


@pytest.mark.parametrize("length", [1024, 16384])
def test_frequent_words_are_rulers(theirs, length):
    module = theirs("fwe_utils")
    random.seed(9)
    tokenizer = lambda text: types.SimpleNamespace(input_ids=[])  # noqa: E731
    text, references, _ = module.generate_input_output(length, tokenizer, num_words=600, vocab_size=length // 50)
    assert ruler.frequent_words(random.Random(9), 600, length) == (text, references)


@pytest.mark.parametrize("gold", [[3], [5, 2]])
def test_questions_over_documents_are_rulers(theirs, gold):
    module = theirs("qa_utils")
    texts = [f"Text number {n}." for n in range(20)]
    random.seed(11)
    asked = [{"query": "Which?", "outputs": ["this"], "context": gold}]
    text, _ = module.generate_input_output(0, 9, asked, texts)
    assert qa.prompt(random.Random(11), 9, texts, gold, "Which?") == f"{text} Answer:"


def test_an_answer_may_take_as_many_tokens_as_in_ruler(theirs):
    assert ruler.ROOM["vt"] == theirs("vt_utils").CONFIG["variable_tracking"]["tokens_to_generate"]
    assert ruler.ROOM["cwe"] == theirs("cwe_utils").CONFIG["tokens_to_generate"]
    assert ruler.ROOM["fwe"] == theirs("fwe_utils").CONFIG["tokens_to_generate"]
    assert ruler.ROOM["qa_1"] == ruler.ROOM["qa_2"] == theirs("qa_utils").CONFIG["tokens_to_generate"]


def test_a_question_of_two_documents_takes_both():
    for number in range(6):
        text, [word] = qa.two_documents(random.Random(number), 8, "pydoc")
        texts = dict(enumerate(text.partition("documents.\n\n")[2].rpartition("\n\nAnswer the")[0].split("\n\n")))
        holding = [each for each in texts.values() if f" {word}" in each or f"{word} " in each]
        begins = [part for part in text.rpartition("Question:")[2].split('"')[1::2]]
        assert len(texts) == 10 and len(holding) >= 2
        assert sum(any(begin.split()[0] in each for begin in begins) for each in holding) >= 2


def test_pairs_of_words_are_all_there_and_in_order():
    pairs = ruler.Pairs(("a", "b", "c"))
    assert list(pairs) == ["a-a", "a-b", "a-c", "b-a", "b-b", "b-c", "c-a", "c-b", "c-c"]
    assert np.isin(random.Random(0).choice(pairs), list(pairs))
