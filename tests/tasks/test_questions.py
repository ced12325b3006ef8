"""Every task that asks a question fills the length to the token, is answered by reading alone, and is scored as stock
lm-eval scores it."""

from __future__ import annotations

import dataclasses
import re
from functools import cache

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from scipy.stats import binomtest
from support import TINY
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from pipelines.records.cells import Refusal, Task, frozen
from pipelines.tasks import (
    documents,
    graph_walks,
    harness,
    many_shot,
    questions,
    registry,
    sections,
    summaries,
    summaries_rouge,
    wording,
)
from pipelines.tasks.documents import Encoder
from pipelines.tasks.exact import LogLikelihood
from pipelines.tasks.questions import QuestionTask
from pipelines.tasks.scorer import LongLM
from pipelines.tasks.shared import SharedContext
from rope.cropping import Cropped

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = {name: task for name, task in registry.OWN.items() if isinstance(task, QuestionTask)}
ASKED = [(name, ask) for name, task in TASKS.items() for ask in task.asks]
LETTERS = 8500
"""Tokens at which every task fits, where a token is a letter."""


@pytest.fixture(scope="module")
def tiny():
    return Encoder.of(AutoTokenizer.from_pretrained(TINY))


@pytest.fixture
def encode(tokenizer):
    return Encoder.of(tokenizer)


def build(encode, name, ask, length, limit=2, seed=0, **options):
    task = TASKS[name]
    return task.build({**task.options, "ask": [ask], **options}, encode, length=length, limit=limit, seed=seed)


@cache
def letters(encode, name, ask):
    """Twelve documents of LETTERS tokens, made once: these tests only read them."""
    return build(encode, name, ask, LETTERS, limit=12 if TASKS[name].choices > 1 else 8)


def scores(lm, name, length, limit, seed=0, **options):
    return registry.score(lm, Task(name, frozen(options)), length=length, limit=limit, seed=seed)


def shown(encode, document):
    return encode.text(document.ids)


def answer(encode, document):
    """The text that is right."""
    if document.choices:
        return encode.text(document.choices[document.fact("right")]).strip()
    return document.fact("answers")[0]


# ------------------------------------------------------------------------------------------------------------ length


@pytest.mark.parametrize(("name", "ask"), ASKED)
def test_every_document_fills_the_length_to_the_token(tiny, name, ask):
    for length in (1024, 1025, 1539):
        for document in build(tiny, name, ask, length):
            assert document.tokens + document.room == length


@pytest.mark.parametrize(("name", "ask"), [("recall", "near"), ("conversation", "before"), ("ruler", "qa_2")])
def test_a_token_a_letter_and_a_bos_are_counted_too(tokenizer, name, ask):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    for document in build(Encoder.of(tokenizer), name, ask, LETTERS):
        assert document.tokens + document.room == LETTERS
        assert document.ids[0] == 256 and 256 not in document.ids[1:]


def test_filler_is_exactly_as_many_tokens_and_ends_a_paragraph(tiny, encode):
    for each in (tiny, encode):
        assert [len(questions.filler(each, count)) for count in range(40)] == list(range(40))
        assert each.text(questions.filler(each, 30)).endswith("\n\n")


@pytest.mark.parametrize(("name", "ask"), ASKED)
def test_documents_depend_on_the_seed_and_nothing_else(tiny, name, ask):
    once, again, other = (build(tiny, name, ask, 1024, seed=seed) for seed in (3, 3, 4))
    assert documents.digest(once) == documents.digest(again) != documents.digest(other)
    assert build(tiny, name, ask, 1024, limit=1, seed=3) == once[:1], "more questions leave the first ones alone"


@pytest.mark.parametrize(
    ("name", "ask"),
    [(name, ask) for name, ask in ASKED if name in ("recall", "sections", "many_shot") or ask == "fact"],
)
def test_a_longer_text_asks_for_the_same(tiny, name, ask):
    short, long = (build(tiny, name, ask, length) for length in (1024, 2048))
    assert [answer(tiny, each) for each in short] == [answer(tiny, each) for each in long]


def test_the_least_length_in_a_refusal_is_enough_and_one_token_less_is_not(tiny):
    for name, ask in ASKED:
        task = TASKS[name]
        options = {**task.options, "ask": ask}
        with pytest.raises(Refusal, match=r"choose length=\d+ or more") as refused:
            task.check(options, tiny, 10)
        least = int(re.search(r"length=(\d+) or more", str(refused.value))[1])
        task.check(options, tiny, least)
        with pytest.raises(Refusal):
            task.check(options, tiny, least - 1)


def test_a_text_that_ends_before_the_length_does_is_refused(tiny, tmp_path):
    book = "".join(f"Heading {n}\n=========\n\n{'word and word. ' * 40}\n\n" for n in range(9))
    (tmp_path / "book.txt").write_text(book)
    source = str(tmp_path / "book.txt")
    assert len(wording.sections(source)) == 9
    with pytest.raises(Refusal, match=r"9 sections with headings .* choose a shorter length, or a longer text"):
        build(tiny, "sections", "heading", 4000, text=source)
    (tmp_path / "few.txt").write_text(book[:900])
    with pytest.raises(Refusal, match="has 1 sections with headings of their own; give a longer text"):
        TASKS["sections"].check({**sections.KIND.options, "text": str(tmp_path / "few.txt")}, tiny, 4000)


# ----------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(("name", "ask"), ASKED)
def test_the_text_holds_the_answer_and_the_question_does_not(encode, name, ask):
    for document in letters(encode, name, ask)[:4]:
        text = encode.text(document.ids[: len(document.ids) - document.scored])
        right = answer(encode, document)
        before, _, after = text.rpartition("\n")
        if name == "many_shot":
            assert f"-> {right}\n" in before
        elif ask not in ("heading", "qa_1", "sentence"):  # there what is asked for is left out
            assert right in before
        if ask != "cwe":  # whose words may be those of its question, in RULER too
            assert right not in after


@pytest.mark.parametrize(("name", "ask"), [(n, a) for n, a in ASKED if TASKS[n].choices > 1])
def test_choices_are_different_and_none_can_be_ruled_out_by_the_demonstrations(encode, name, ask):
    places = []
    for document in letters(encode, name, ask)[:12]:
        choices = [encode.text(choice).strip() for choice in document.choices]
        assert len(set(choices)) == TASKS[name].choices == len(choices)
        places.append(document.fact("right"))
        if ask in ("heading", "order", "before", "fact"):
            demonstrated = shown(encode, document).rpartition("\n\n")[2]
            given = re.findall(r"(?:Answer|is|section): (.+)", demonstrated)
            assert len(given) == 2 and not set(given) & set(choices)
    assert len(set(places)) > 1, "the right choice moves"


def test_the_section_before_is_no_choice(encode):
    for document in letters(encode, "sections", "order")[:12]:
        asked = re.search(r'After the section "(.+)" comes the section:$', shown(encode, document))[1]
        assert asked not in [encode.text(choice).strip() for choice in document.choices]


def test_the_answers_are_those_of_the_text(encode):
    for document in letters(encode, "conversation", "speaker")[:6]:
        text = shown(encode, document)
        line = re.search(r'Who said "(.+)"\?\nAnswer:$', text)[1]
        assert f"\n{answer(encode, document)}: {line}\n" in text
    for document in letters(encode, "conversation", "before")[:6]:
        text = shown(encode, document)
        line = re.search(r'directly before "(.+)"\?\nAnswer:$', text)[1]
        assert re.search(rf": {re.escape(answer(encode, document))}\n\w+: {re.escape(line)}\n", text)
    for document in letters(encode, "conversation", "fact")[:6]:
        text = shown(encode, document)
        thing = re.search(r"number of \w+'s (\w+)\?\nAnswer:$", text)[1]
        assert f"number of my {thing} is {answer(encode, document)}," in text
        assert text.index(f"number of my {thing} is") < len(text) / 3, "a fact from an early turn"
    for document in letters(encode, "sections", "order")[:6]:
        text = shown(encode, document)
        asked = re.search(r'After the section "(.+)" comes the section:$', text)[1]
        assert 0 < text.index(f"{asked}\n") < text.index(f"\n{answer(encode, document)}\n")
    for document in letters(encode, "recall", "json")[:6]:
        text = shown(encode, document)
        key = re.findall(r'Key: "(.+)"', text)[-1]
        assert f'"{key}": {answer(encode, document)}' in text
    for document in letters(encode, "recall", "near")[:6]:
        text = shown(encode, document)
        key = re.findall(r"What does (.+) cost", text)[-1]
        assert f"The product {key} costs {answer(encode, document)} crowns." in text
        alike = [
            sum(a != b for a, b in zip(key, name, strict=True)) for name in re.findall(r"product (\S+) costs", text)
        ]
        assert alike.count(0) == 1 and alike.count(1) >= 20, "near-duplicates differ in one place"


def test_graph_walks_are_those_of_a_plain_search(encode):
    for ask in ("bfs", "parents"):
        for document in letters(encode, "graph_walks", ask)[:8]:
            graph = shown(encode, document).partition("Here is the graph to operate on:")[2]
            edges = re.findall(r"^(\w+) -> (\w+)$", graph, re.MULTILINE)
            right = set(document.fact("answers"))
            assert len(set(edges)) == len(edges) == document.fact("edges") and 1 <= len(right) <= 4
            if ask == "parents":
                node = re.search(r"parents of node (\w+)\.", graph)[1]
                assert right == {a for a, b in edges if b == node}
                continue
            node, depth = re.search(r"BFS from node (\w+) with depth (\d)\.", graph).groups()
            distance = {node: 0}
            queue = [node]
            for here in queue:
                for a, b in edges:
                    if a == here and b not in distance:
                        distance[b] = distance[here] + 1
                        queue.append(b)
            assert right == {other for other, steps in distance.items() if steps == int(depth)}


@pytest.mark.parametrize(
    ("said", "f1"), [("aa, bb]", 1), ("aa, cc, bb, dd]", 2 / 3), ("'aa']\nmore", 2 / 3), ("]", 0), ("no", 0)]
)
def test_graph_walks_score_the_f1_of_the_nodes_named(said, f1):
    document = documents.Document((1,), 0, (("answers", ("aa", "bb")),), room=8)
    assert graph_walks.measure({"document": document}, [said])["f1"] == pytest.approx(f1)


def test_labels_of_many_shots_are_drawn_anew_and_consistent(encode):
    kinds = {word: kind for kind, words in many_shot.KINDS.items() for word in words}
    maps = []
    for document in build(encode, "many_shot", "kind", 3000, limit=6):
        rows = re.findall(r"^(\w+) -> (\w+)$", shown(encode, document), re.MULTILINE)
        asked = re.search(r"(\w+) ->$", shown(encode, document))[1]
        labels = {kinds[word]: label for word, label in rows}
        assert {(kinds[word], label) for word, label in rows} == set(labels.items()) and len(set(labels.values())) == 4
        assert labels[kinds[asked]] == answer(encode, document) and asked not in dict(rows)
        assert len(rows) == document.fact("examples") > 100
        maps.append(tuple(sorted(labels.items())))
    assert len(set(maps)) > 1


@pytest.mark.parametrize("name", ["summaries", "summaries_rouge"])
def test_a_summary_is_missing_from_its_section_and_the_others_are_of_the_same_text(encode, name):
    of = {first: words for first, words in summaries.summarised("pydoc")}
    for document in build(encode, name, "sentence", LETTERS, limit=4):
        shown_text = shown(encode, document)
        choices = [encode.text(ids).strip() for ids in document.choices] or [answer(encode, document)]
        number = int(re.search(r"Summary of section (\d+):$", shown_text)[1])
        section = shown_text.split(f"Section {number}:\n")[1].split("\n\n")[0]
        assert " ".join(of[answer(encode, document)]).startswith(section)
        sections_shown = re.findall(r"(?m)^Section \d+:\n(.*)", shown_text)
        for choice in choices:
            assert choice not in shown_text
            assert any(" ".join(of[choice]).startswith(each) for each in sections_shown)


def test_the_wrong_summaries_are_the_ones_most_like_the_right_one(encode):
    share = {True: [], False: []}
    every = [first for first, _ in summaries.summarised("pydoc")]
    for document in build(encode, "summaries", "sentence", LETTERS, limit=6):
        right = answer(encode, document)
        wrong = {encode.text(ids).strip() for ids in document.choices} - {right}
        for each in every:
            share[each in wrong].append(summaries._shared(each, right))
    assert np.mean(share[True]) > 1.5 * np.mean(share[False])


def test_a_written_summary_is_scored_by_rouge():
    document = documents.Document((1,), 0, (("answers", ("The cat sat on the mats.",)),), room=8)
    assert summaries_rouge.measure({"document": document}, [" the cat sat on the mat\nmore"])["rougeL"] == 1
    half = summaries_rouge.measure({"document": document}, ["The cat sat"])
    assert half["rouge1"] == pytest.approx(2 / 3) and half["rougeL"] == pytest.approx(2 / 3)
    assert half["rouge2"] == pytest.approx(4 / 7)
    assert summaries_rouge.measure({"document": document}, [""])["rougeL"] == 0


# ------------------------------------------------------------------------------------- chance, cheats and stock lm-eval


RANDOM = [("sections", 3000, 24), ("conversation", 2400, 16), ("many_shot", 700, 48), ("summaries", 3000, 24)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "length", "limit"), RANDOM)
def test_a_random_model_scores_chance_within_its_interval(model, tokenizer, name, length, limit):
    outcome = scores(LongLM(model, tokenizer, max_length=length), name, length, limit)
    for metric in ("acc", "acc_norm"):
        hits = round(outcome.metrics[metric] * len(outcome.documents))
        interval = binomtest(hits, len(outcome.documents)).proportion_ci(0.999)
        assert interval.low < 1 / TASKS[name].choices < interval.high, (hits, len(outcome.documents))


@pytest.mark.parametrize(
    ("name", "length", "options"),
    [
        ("recall", 3000, {}),
        ("graph_walks", 2000, {}),
        ("ruler", 2600, {"ask": ["niah_multikey_2", "fwe", "qa_2"]}),
    ],
)
def test_a_random_model_matches_nothing(model, tokenizer, name, length, options):
    outcome = scores(LongLM(model, tokenizer, max_length=length), name, length, 2, **options)
    assert outcome.metrics[TASKS[name].measure.name] == 0


class Copier(LongLM):
    """Says what followed the last time its latest words were said. Ids of this tokenizer are bytes."""

    def following(self, ids):
        seen = bytes(ids)
        for size in range(min(400, len(seen) - 1), 0, -1):
            found = seen.rfind(seen[-size:], 0, len(seen) - 1)
            if found >= 0:
                return seen[found + size]
        return 0

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        answers = []
        for _, context, continuation in requests:
            whole, start = [*context, *continuation], len(context)
            right = [self.following(whole[:n]) == whole[n] for n in range(start, len(whole))]
            answers.append((LogLikelihood(sum(right) - len(right), np.array(right, np.float32) - 1), all(right)))
        return answers

    def _model_generate(self, context, max_length, **kwargs):
        ids = context[0].tolist()
        while len(ids) < max_length:
            ids.append(self.following(ids))
        return torch.tensor([ids])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in TASKS if name != "ruler"),
        ("ruler", {"answer": "loglikelihood"}),
        ("ruler", {"ask": ["niah_single_2", "niah_multikey_3", "niah_multivalue"]}),
        ("recall", {"answer": "generate"}),
    ],
)
def test_a_model_that_copies_scores_one_where_the_answer_is_planted_in_the_question(
    model, tokenizer, monkeypatch, name, options
):
    task = TASKS[name]
    pose = type(task).pose

    def planted(self, ask, seed, size, length, settings, encode):
        question = pose(self, ask, seed, size, length, settings, encode)
        said = question.answers[question.right] if self.choices > 1 else ", ".join(question.answers)
        said += "]" if name == "graph_walks" else ""
        return dataclasses.replace(question, text=f"{question.text} {said}\n{question.text[-300:]}")

    monkeypatch.setattr(type(task), "pose", planted)
    monkeypatch.setattr(summaries_rouge.SummariesRouge, "room", 256)  # a token is a letter
    registry._documents.cache_clear()
    outcome = scores(Copier(model, tokenizer, max_length=64), name, LETTERS, 2, **options)
    registry._documents.cache_clear()
    assert outcome.metrics[task.measure.name] == 1


@pytest.mark.parametrize(
    ("name", "length", "options"),
    [
        ("sections", 3000, {}),
        ("conversation", 2400, {}),
        ("many_shot", 700, {}),
        ("summaries", 3000, {}),
        ("summaries_rouge", 3000, {}),
        ("recall", 3000, {}),
        ("recall", 3000, {"answer": "generate"}),
        ("graph_walks", 2000, {}),
        ("ruler", 2200, {"ask": ["niah_multivalue", "qa_1"]}),
    ],
)
def test_stock_lm_eval_gives_the_same_scores(model, tokenizer, name, length, options):
    task, encode = TASKS[name], Encoder.of(tokenizer)
    settings = {**task.options, **options}
    ours = scores(LongLM(model, tokenizer, max_length=length), name, length, 2, **options)
    built = task.build(settings, encode, length=length, limit=2, seed=0)
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=length)
    prepared = harness.prepared(task.yaml(settings), harness.Rows(built, encode, settings))
    theirs = lm_eval.evaluate(lm=stock, task_dict={"tasks": {prepared.task_name: prepared}}, bootstrap_iters=10)
    [result] = theirs["results"].values()
    for metric in [task.measure.name, *(["acc_norm"] if task.choices > 1 else [])]:
        assert ours.metrics[metric] == result[f"{metric},none"]
    key = next(k for k in ("nll_answer", "distinct_2", "distinct_1") if k in ours.metrics)
    assert ours.metrics[key] == pytest.approx(result[f"{key},none"], rel=1e-5)


# --------------------------------------------------------------------------------------------------- what else it shows


def test_scores_are_shown_by_kind_and_by_depth(model, tokenizer):
    outcome = scores(LongLM(model, tokenizer, max_length=3000), "recall", 3000, 4)
    assert {"acc", "acc_json", "acc_near", "nll_answer"} <= set(outcome.metrics)
    assert {row["ask"] for row in outcome.documents} == {"json", "near"}
    assert all(row["tokens"] == 3000 and 0 <= row["depth"] <= 1 for row in outcome.documents)
    assert [depth for depth, _ in outcome.series["acc_by_depth"]] == sorted(
        {d for d, _ in outcome.series["acc_by_depth"]}
    )


def test_what_is_generated_is_measured_for_repetition():
    assert questions.fluency("a a a a a a") == {
        "repeated_4": pytest.approx(2 / 3),
        "distinct_2": 0.2,
        "distinct_1": 1 / 6,
    }
    assert questions.fluency("one two three four five") == {"repeated_4": 0, "distinct_2": 1, "distinct_1": 1}
    assert questions.fluency("") == {} and set(questions.fluency("one two")) == {"distinct_1", "distinct_2"}


def test_references_are_found_in_capitals_too_and_counted():
    document = documents.Document((1,), 0, (("answers", ("Alpha", "beta", "gamma", "delta")),), room=8)
    assert questions.match({"document": document}, ["ALPHA and Beta, or gam ma"])["acc"] == 0.5


def test_a_kind_or_an_answer_that_is_unknown_is_refused(tokenizer):
    for options, sentence in (
        ({"ask": "niah"}, "ask=niah of the task ruler: give all, or some of niah_single_1"),
        ({"ask": []}, "give all, or some of"),
        ({"questions": 0}, "questions=0 of the task ruler: give at least 1"),
        ({"answer": "guess"}, "answer=guess of the task ruler: give loglikelihood or generate"),
    ):
        with pytest.raises(Refusal, match=re.escape(sentence)):
            registry.prepare(Task("ruler", frozen(options)), tokenizer, length=4096, limit=None, seed=0)


def test_forwards_are_counted_for_every_choice(tokenizer):
    task = Task("conversation", frozen({"ask": ["speaker", "fact"]}))
    assert registry.forwards(task, tokenizer, length=LETTERS, limit=3) == 2 * 3 * 4
    assert registry.forwards(Task("ruler"), None, length=4096, limit=2) == 26


TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>it:{% endif %}"
)


def test_a_conversation_is_put_into_the_chat_template_where_there_is_one(tokenizer):
    plain = build(Encoder.of(tokenizer), "conversation", "speaker", LETTERS)
    tokenizer.chat_template = TEMPLATE
    chat = build(Encoder.of(tokenizer), "conversation", "speaker", LETTERS)
    without = build(Encoder.of(tokenizer), "conversation", "speaker", LETTERS, chat=None)
    assert documents.digest(without) == documents.digest(plain) != documents.digest(chat)
    for document in chat:
        text = tokenizer.decode(document.ids)
        assert document.tokens == LETTERS and text.startswith("<s>user: ") and text.endswith("</s><s>it:Answer:")
        assert text.count("<s>") == 2 and document.ids[0] == 256


@pytest.mark.parametrize(
    ("name", "options"), [("conversation", {"ask": ["speaker"]}), ("recall", {}), ("graph_walks", {})]
)
def test_a_cropped_text_is_scored_by_its_end_alone(model, tokenizer, name, options, monkeypatch):
    monkeypatch.setattr(SharedContext, "takes", lambda *_: False)  # every answer reads all of its text
    whole, cropped = (LongLM(model, tokenizer, max_length=3000) for _ in range(2))
    cropped.crop = Cropped((1.0,), window=256, stride=128)
    outcomes = [scores(lm, name, 3000, 2, **options) for lm in (whole, cropped)]
    assert outcomes[0].digest == outcomes[1].digest and len(outcomes[0].documents) == len(outcomes[1].documents)
    assert cropped.forward_tokens < whole.forward_tokens / 4
