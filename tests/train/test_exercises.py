"""Exercises: documents that can be answered from what they say, and that are not the tasks' own."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from support import PROJECT
from tokenizers import Tokenizer

from pipelines.tasks import conversation, graph_walks, many_shot, recall, ruler
from pipelines.train import corpus, exercises, wordings
from pipelines.train.ahead import Ahead
from pipelines.train.batches import Batches
from pipelines.train.exercises import Exercises, Sheet
from pipelines.train.overlap import overlap
from pipelines.train.retrieval import Retrieval
from pipelines.train.wordings import Pools

PIECES = 40
KINDS = list(exercises.WRITERS)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(PROJECT / "models/tiny/tokenizer.json"))


@pytest.fixture(scope="module")
def tokens(tokenizer):
    """The ids of some modules."""
    root = Path(sys.modules["json"].__file__).parents[1]
    text = "".join((root / f"{name}.py").read_text() for name in ("argparse", "ast", "shlex", "statistics", "textwrap"))
    return np.array(tokenizer.encode(text).ids, dtype=np.uint16)


@pytest.fixture(scope="module")
def pools(tokens, tokenizer):
    return Pools.of(tokens, tokenizer.decode_batch)


@pytest.fixture(scope="module")
def writer(tokenizer, pools):
    return Exercises(tokenizer, pools, emphasis=8)


def answered(sheet: Sheet) -> list[tuple[str, str]]:
    """(what came before an answer, the answer), for every one of a document."""
    starts = [0, *sheet.ends]
    return [
        (sheet.text[:start], sheet.text[start:end])
        for start, end, weight in zip(starts, sheet.ends, sheet.weights, strict=False)
        if weight == exercises.ANSWER
    ]


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind is not exercises.titles], ids=lambda kind: kind.__name__
)
def test_every_answer_is_said_in_the_document_before_it(kind, pools):
    told = 0
    for number in range(40):
        for before, answer in answered(kind(random.Random(number), pools, PIECES)):
            parts = answer.strip().split(", ") if kind in (exercises.edges, exercises.several) else [answer.strip()]
            assert all(part.lower().strip('"') in before.lower() for part in parts), (before, answer)
            told += 1
    assert told >= 40


def test_what_is_asked_decides_the_answer(pools):
    """Two answers to one question of a document are one."""
    asked = 0
    for kind in (exercises.lookup, exercises.edges, exercises.dialogue, exercises.outline):
        for number in range(40):
            right: dict[str, str] = {}
            at = 0
            for before, answer in answered(kind(random.Random(number), pools, PIECES)):
                question = before[at:] if at else before.rpartition("\n\n")[2]
                assert right.setdefault(question.strip("\n]"), answer) == answer, (kind, question)
                at = len(before) + len(answer)
                asked += 1
    assert asked > 300


def test_a_title_is_of_the_section_that_was_asked_for(pools):
    asked, bodies = 0, dict(pools.titled)
    for number in range(80):
        for before, answer in answered(exercises.titles(random.Random(number), pools, PIECES)):
            place = int(re.findall(r"(\d+)", before.rpartition("\n\n")[2] or before)[-1])
            section = re.split(rf"(?m)^(?:\[|# |[A-Z][a-z]+ )?{place}(?:\] |\) |\. |:?\n)", before)[1].split("\n\n")[0]
            body = bodies.get(answer.strip(), "")
            assert (body and body.startswith(section)) or answer.strip().lower() in section.lower(), (before, answer)
            asked += 1
    assert asked > 100


def test_a_line_is_given_back_to_who_said_it(pools, monkeypatch):
    monkeypatch.setattr(wordings, "TURNS", ("{name}: {line}",))
    monkeypatch.setattr(wordings, "QUOTES", ("<<{line}>>",))
    asked = 0
    for number in range(80):
        for before, answer in answered(exercises.dialogue(random.Random(number), pools, PIECES)):
            if found := re.findall(r"<<(.*?)>>", before):
                said = dict((line, name) for name, _, line in (row.partition(": ") for row in before.splitlines()))
                lines = list(said)
                right = {said[found[-1]], lines[lines.index(found[-1]) - 1]}
                assert answer.strip() in right, (before, answer)
                asked += 1
    assert asked > 40


def test_a_label_is_that_of_its_kind(pools):
    words = {word: name for name, group in many_shot.KINDS.items() for word in group}
    for number in range(40):
        sheet = exercises.kinds(random.Random(number), pools, PIECES)
        rows = [re.match(r"(\w+)\W+(?:is )?(\w+)$", row) for row in sheet.text.splitlines()]
        labels: dict[str, set[str]] = {}
        for row in rows:
            if row is not None and row[1] in words and row[1] != "orange":  # which is a colour too
                labels.setdefault(words[row[1]], set()).add(row[2])
        assert all(len(each) == 1 for each in labels.values())
        known = {word for row in exercises.MORE_KINDS for word in row.split()}
        assert not {*sheet.text.split()} & {*many_shot.LABELS} - known


def test_they_ask_in_other_words_than_the_tasks(writer, tokenizer):
    own = {
        *(recall.JSON, recall.NEAR, "Corresponding value", "costs", "What does", "What is the number of"),
        *("Who said", "was said directly before", "This is a conversation", "please remember it"),
        *("These are sections of a book", "The heading of section", "After the section", "comes the section"),
        *("special magic", "mentioned in the provided text", "Which word is missing", "in the document that begins"),
        *(graph_walks.RULES.partition(".")[0], "Final Answer", "Perform a BFS", "Find the parents of"),
    }
    assert not {*exercises.NAMES} & {*conversation.NAMES}
    texts = [tokenizer.decode(writer(random.Random(number), 512)[0].tolist()) for number in range(400)]
    found = {words for words in own for text in texts if words in text}
    assert not found
    forms = (*wordings.SAID, *wordings.DATA, *wordings.MARKS, *wordings.LEADS, *exercises.BETWEEN_KINDS)
    assert not any(" -> " in form for form in (*forms, *sum(exercises.EDGES, ())))
    assert ruler.NIAH.startswith("Some special magic"), "what is looked for is the tasks' wording"


def test_a_document_fits_and_its_weights_are_of_its_answers(writer, tokenizer):
    sizes = []
    for number in range(200):
        ids, weights = writer(random.Random(number), 300)
        assert ids.size == weights.size <= 300
        assert {*weights.tolist()} <= {0, 1, 8}
        sizes.append(ids.size)
        text = tokenizer.decode(ids.tolist())
        assert tokenizer.encode(text).ids == ids.tolist()
    assert np.mean(sizes) > 150 and np.mean(np.array(sizes) == 0) < 0.02
    ids, weights = writer._encoded(exercises.lookup(random.Random(3), writer.pools, 12))
    sheet = exercises.lookup(random.Random(3), writer.pools, 12)
    assert tokenizer.decode(ids[weights == 8].tolist()) == "".join(answer for _, answer in answered(sheet))


def test_a_step_is_the_same_from_processes_and_from_a_thread(writer, tokens, tokenizer):
    retrieval = Retrieval(corpus.encoder(tokenizer), 8)
    batches = Batches(tokens, 0, 256, 8, seed=1, share=0.75, retrieval=retrieval, exercised=0.8, exercises=writer)
    with Ahead(batches, makers=2) as processes, Ahead(batches, makers=0) as thread:
        for step in (5, 6, 7):
            made, other = processes(step), thread(step)
            assert all((a == b).all() for a, b in zip(made, other, strict=True))
            assert all((a == b).all() for a, b in zip(made, batches(step), strict=True))
            assert (made[1] == 8).any()


def test_overlap_is_the_share_of_tokens_that_were_read_in_a_run(monkeypatch):
    monkeypatch.setattr("pipelines.train.overlap.CHUNK", 100)
    dice = np.random.default_rng(0)
    trained, ids = dice.integers(0, 8000, 5000), dice.integers(0, 8000, 1000)
    assert overlap(trained, ids, 8) == 0
    ids[100:150], ids[300:307], ids[990:] = trained[80:130], trained[7:14], trained[4990:]
    assert overlap(trained, ids, 8) == (50 + 10) / 1000, "a run of seven is too short, and chunks lose none"
    assert overlap(trained, trained, 8) == 1
    assert overlap(trained, ids[:5], 8) == 0
