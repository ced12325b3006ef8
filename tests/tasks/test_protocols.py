"""Every published way of measuring equals a small loop of its own over plain transformers, on real text."""

from __future__ import annotations

import ast
import math
import random
import re
from functools import cache, partial

import numpy as np
import pytest
import torch
from support import TINY
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.records.cells import Refusal, Task, frozen
from pipelines.tasks import passkey, perplexity, registry, text
from pipelines.tasks.documents import Encoder
from pipelines.tasks.scorer import LongLM

LENGTH, STRIDE, END = 192, 64, 0

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def tokenizer():
    """That of models/tiny, which has no BOS, with its end of text for one."""
    made = AutoTokenizer.from_pretrained(TINY)
    made.bos_token = made.eos_token
    assert made.bos_token_id == END
    return made


@pytest.fixture(scope="module")
def encode():
    return Encoder.of(tokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three documents of real text of different lengths, and one that is too short for a window."""
    place = tmp_path_factory.mktemp("texts")
    whole = next(text.documents(text.PYDOC))
    for number, (start, size) in enumerate([(0, 1500), (40_000, 2600), (80_000, 900), (120_000, 100)]):
        (place / f"{number}.txt").write_text(whole[start : start + size])
    return place


@pytest.fixture(scope="module")
def documents(folder, encode):
    """The token ids of those that hold a window."""
    return [ids for p in sorted(folder.iterdir()) if len(ids := encode(p.read_text())) >= LENGTH]


def scored(tiny, folder, length=LENGTH, limit=None, seed=0, **options):
    lm = LongLM(tiny, tokenizer(), max_length=length)
    task = Task("perplexity", frozen({"text": str(folder), "last": 32, **options}))
    return registry.score(lm, task, length=length, limit=limit, seed=seed)


def losses(model, ids, labels):
    """Losses of the labelled tokens (-100: none), as transformers shifts them."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    labels = torch.tensor(labels[1:])
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")[labels != -100]


def yarn_script(model, documents, length, stride, bos=None, truncate=False):
    """jquesnelle/yarn, eval/perplexity.py: windows of all documents, each with its losses."""
    room = length - (bos is not None)
    found = []
    for document in documents:
        document = document[:room] if truncate else document
        previous = 0
        for begin in range(0, len(document), room if truncate else stride):
            end = min(begin + room, len(document))
            ids = ([] if bos is None else [bos]) + document[begin:end]
            labels = [-100] * (len(ids) - (end - previous)) + ids[len(ids) - (end - previous) :]
            found.append(losses(model, ids, labels))
            previous = end
            if end == len(document):
                break
    return found


def close(value):
    return pytest.approx(float(value), rel=1e-6)


BOS = {None: {"bos": False}, END: {"bos": True}}


@pytest.mark.parametrize("bos", BOS)
def test_one_window_is_what_yarn_truncates_to(tiny, folder, documents, bos):
    outcome = scored(tiny, folder, **BOS[bos])
    windows = yarn_script(tiny, documents, LENGTH, STRIDE, bos, truncate=True)
    assert outcome.metrics["ppl"] == close(torch.exp(torch.stack([w.mean() for w in windows]).mean()))
    assert outcome.metrics["nll_last_32"] == close(torch.stack([w[-32:].mean() for w in windows]).mean())


@pytest.mark.parametrize("bos", BOS)
def test_means_is_the_yarn_scripts_arithmetic(tiny, folder, documents, bos):
    outcome = scored(tiny, folder, windows="means", stride=STRIDE, **BOS[bos])
    windows = yarn_script(tiny, documents, LENGTH, STRIDE, bos)
    assert outcome.metrics["ppl"] == close(torch.exp(torch.stack([w.mean() for w in windows]).mean()))
    assert len(windows) > 2 * len(documents) and sum(row["windows"] for row in outcome.documents) == len(windows)
    per_token = torch.cat(windows).mean()
    assert abs(float(per_token) - outcome.metrics["nll"]) > 1e-3, "here the two ways of averaging must differ"


@pytest.mark.parametrize("bos", BOS)
def test_sliding_counts_every_token_once_and_alike(tiny, folder, documents, bos):
    outcome = scored(tiny, folder, windows="sliding", stride=STRIDE, **BOS[bos])
    windows = yarn_script(tiny, documents, LENGTH, STRIDE, bos)
    assert outcome.metrics["nll"] == close(torch.cat(windows).mean())
    assert sum(map(len, windows)) == sum(map(len, documents)) - (bos is None) * len(documents)
    assert outcome.metrics["bits_per_byte"] == pytest.approx(
        float(torch.cat(windows).sum()) / math.log(2) / sum(row["bytes"] for row in outcome.documents), rel=1e-6
    )


def test_sliding_is_the_same_in_float64(folder, documents, tiny):
    exact = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64).eval()
    outcome = scored(exact, folder, windows="sliding", stride=STRIDE, bos=False)
    assert outcome.metrics["nll"] == close(torch.cat(yarn_script(exact, documents, LENGTH, STRIDE)).mean())


def test_overlapping_scores_whole_windows(tiny, folder, documents):
    outcome = scored(tiny, folder, windows="overlapping", stride=STRIDE, bos=False)
    rows = [d[b : b + LENGTH] for d in documents for b in range(0, len(d), STRIDE) if b + LENGTH <= len(d)]
    with torch.no_grad():
        means = [tiny(torch.tensor([row]), labels=torch.tensor([row])).loss.item() for row in rows]
    assert outcome.metrics["ppl"] == close(math.exp(np.mean(means)))
    assert "bits_per_byte" not in outcome.metrics and len(rows) > 2 * len(documents)


def test_a_bos_at_the_document_is_in_its_first_window_alone(tiny, folder, documents):
    outcome = scored(tiny, folder, windows="overlapping", stride=STRIDE, bos=True, bos_at="document")
    streams = [[END, *document] for document in documents]
    rows = [s[b : b + LENGTH] for s in streams for b in range(0, len(s), STRIDE) if b + LENGTH <= len(s)]
    assert outcome.metrics["nll"] == close(np.mean([losses(tiny, row, row).mean().item() for row in rows]))
    assert outcome.metrics["nll"] != close(
        scored(tiny, folder, windows="overlapping", stride=STRIDE, bos=True).metrics["nll"]
    )


def test_the_standard_error_is_that_of_documents_weighed_by_their_tokens(tiny, folder, documents):
    outcome = scored(tiny, folder, windows="sliding", stride=STRIDE, bos=False)
    nll = np.array([row["nll"] for row in outcome.documents])
    counts = np.array([len(document) - 1 for document in documents])
    mean = (nll * counts).sum() / counts.sum()
    assert outcome.metrics["nll"] == close(mean)
    spread = (counts / counts.mean() * (nll - mean)).std(ddof=1) / len(nll) ** 0.5
    assert outcome.metrics["nll_stderr"] == pytest.approx(spread)


def test_documents_may_be_cut_before_windows_slide_over_them(tiny, folder, documents):
    outcome = scored(tiny, folder, windows="sliding", stride=STRIDE, document=300, bos=False)
    assert outcome.metrics["nll"] == close(
        torch.cat(yarn_script(tiny, [d[:300] for d in documents], LENGTH, STRIDE)).mean()
    )


def built(encode, source, length=LENGTH, limit=None, seed=0, **options):
    options = {**perplexity.OPTIONS, "text": source, **options}
    return perplexity.KIND.build(options, encode, length=length, limit=limit, seed=seed)


@pytest.mark.parametrize("source", ["pydoc", "folder"])
def test_at_least_gives_every_length_the_same_documents(encode, folder, source):
    source = str(folder) if source == "folder" else source
    short = built(encode, source, 64, limit=2, at_least=256)
    long = built(encode, source, 256, limit=2, at_least=256)
    assert [s.ids for s in short] == [one.ids[:64] for one in long] and len(long) == 2


def test_a_stream_is_one_document_unless_it_is_cut(encode):
    [whole] = built(encode, "pydoc", windows="sliding", bos=False, stride=100)
    cut = built(encode, "pydoc", windows="sliding", bos=False, stride=100, document=1000)
    assert whole.ids[:1000] == cut[0].ids and len(cut) > 50
    assert all(len(document.ids) == 1000 for document in cut[:-1]) and len(cut[-1].ids) >= LENGTH


def test_random_documents_are_drawn_by_the_seed_each_as_likely_as_any(encode, tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(f"{number} is the number of this text. " * 40)
    firsts = [d.ids for d in built(encode, str(tmp_path), 16)]
    drawn = [
        [firsts.index(d.ids) for d in built(encode, str(tmp_path), 16, 2, seed, choose="random")] for seed in range(90)
    ]
    assert drawn[3] == [firsts.index(d.ids) for d in built(encode, str(tmp_path), 16, 2, 3, choose="random")]
    assert all(first < second for first, second in drawn)
    counts = np.bincount(np.ravel(drawn), minlength=6)
    assert counts.sum() == 180 and counts.min() > 15, "each is drawn about 30 times"


def test_ids_of_a_data_set_are_taken_as_they_are(encode, tmp_path):
    import datasets

    rows = {"input_ids": [list(range(5, 305)), list(range(9, 20))]}
    datasets.Dataset.from_dict(rows).to_json(tmp_path / "test.jsonl")
    [one] = built(encode, f"hub:{tmp_path}@test:input_ids", bos=False)
    assert one.ids == tuple(range(5, 5 + LENGTH))


def test_windows_are_estimated_as_they_are_laid(encode, folder):
    for windows in perplexity.WINDOWS:
        options = {**perplexity.OPTIONS, "text": str(folder), "windows": windows, "stride": STRIDE}
        made = perplexity.KIND.build(options, encode, length=LENGTH, limit=None, seed=0)
        outcome = perplexity.KIND.forwards(options, encode, length=LENGTH, limit=None)
        assert outcome == sum(len(d.spans) or 1 for d in made)
    of_hub = {**perplexity.OPTIONS, "text": "hub:a/b", "windows": "means", "document": 1000, "stride": 100}
    assert perplexity.KIND.forwards(of_hub, encode, length=500, limit=3) == 3 * 6
    assert perplexity.KIND.forwards({**of_hub, "document": None}, encode, length=500, limit=3) is None


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"windows": "slide"}, "windows=slide of the task perplexity: give one of prefix, sliding, means, overlapping"),
        ({"windows": "sliding", "stride": 192}, "stride=192 .* at length=192: windows that slide overlap"),
        ({"document": 100}, "document=100 of the task perplexity: give at least the length, 192"),
        ({"choose": "last"}, "choose=last .* give one of first, random"),
        ({"at_least": 10**6}, "1,000,000 are needed for one document"),
    ],
)
def test_what_cannot_be_laid_is_refused(encode, folder, options, sentence):
    with pytest.raises(Refusal, match=sentence):
        built(encode, str(folder), **options)


# ---------------------------------------------------------------------------------------------- passkeys as published

ROOM = 10
PROSE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def hidden(key, before, after):
    """The prompt as Landmark Attention printed it, with filler on both sides of the key."""
    return (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        f"I will quiz you about the important information there.\n{before}\n"
        f"The pass key is {key}. Remember it. {key} is the pass key.\n{after}\n"
        "What is the pass key? The pass key is"
    )


def pi_prompt(key, depth, count):
    words = (PROSE.split() * (count // 18 + 1))[:count]
    return hidden(key, " ".join(words[: round(count * depth)]), " ".join(words[: count - round(count * depth)]))


def yarn_prompt(key, depth, count):
    garbage, before = (PROSE + " ") * (count // 50 + 1), round(count * depth)
    return hidden(key, garbage[:before], garbage[: count - before])


@cache
def short_functions():
    """Functions of at most twelve lines at the margin of a module, found line by line."""
    found, block = [], None
    for line in next(text.documents(text.STDLIB)).split("\n"):
        if block is not None and (not line.strip("\r") or line[0] in " \t"):
            block.append(line)
            continue
        if block is not None:
            found.append("\n".join(block).rstrip())
        block = [line] if line.startswith("def ") else None
    return list(dict.fromkeys(one for one in found if one.count("\n") < 12 and compiles(one)))


def compiles(code):
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def code_prompt(key, depth, count):
    known = short_functions()
    code = [known[(key + number) % len(known)] for number in range(count)]
    code.insert(round(count * depth), f"def my_function():\n    return {key}")
    return "\n\n\n".join([*code, "assert my_function() == "])


def five_digits(number):
    return random.Random(f"passkey/0/{number}").randint(10_000, 99_999)


def pi_examples(trials):
    return [(five_digits(n), d / 32) for n in range(trials) for d in range(32)]


def yarn_examples(trials):
    dice = [random.Random(f"passkey/yarn/0/{n}") for n in range(trials)]
    return [(die.randint(1, 50_000), die.random()) for die in dice]


def code_examples(trials):
    return [(five_digits(n), depth) for n in range(trials) for depth in (0, 0.2, 0.4)]


def fullest(encode, write, room):
    """The longest prompt of at most so many tokens, by adding filler until one no longer fits."""
    count = 0
    while len(encode(write(count + 1))) <= room:
        count += 1
    return encode(write(count))


def greedy(model, ids):
    """Ten tokens, each the likeliest after all before it, by whole forwards; an end of text ends them."""
    ids = torch.tensor([ids])
    with torch.no_grad():
        for _ in range(ROOM):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    said = ids[0, -ROOM:].tolist()
    return said[: said.index(END)] if END in said else said


@pytest.mark.slow
@pytest.mark.parametrize(
    "protocol, write, examples, trials, length",
    [
        ("pi", pi_prompt, pi_examples, 1, 256),
        ("yarn", yarn_prompt, yarn_examples, 6, 320),
        ("codellama", code_prompt, code_examples, 4, 384),
    ],
)
def test_a_published_passkey_is_what_a_small_loop_asks_and_hears(
    tiny, monkeypatch, protocol, write, examples, trials, length
):
    plain = AutoTokenizer.from_pretrained(TINY)
    answered = []
    detail = passkey.KIND.detail

    def overheard(document, answer, options):
        answered.append((document, answer))
        return detail(document, answer, options)

    monkeypatch.setattr(passkey.KIND, "detail", overheard)
    task = Task("passkey", frozen({"protocol": protocol}))
    outcome = registry.score(LongLM(tiny, plain, max_length=length), task, length=length, limit=trials, seed=0)
    asked = examples(trials)
    assert len(answered) == len(asked) == len(outcome.documents)
    found = []
    for (key, depth), (document, answer), row in zip(asked, answered, outcome.documents, strict=True):
        ids = fullest(
            lambda written: plain.encode(written, add_special_tokens=False), partial(write, key, depth), length - ROOM
        )
        assert list(document.ids) == ids and document.fact("key") == key
        said = plain.decode(greedy(tiny, ids))
        assert answer.strip() == said.strip()
        first = re.search(r"\d+", said)
        found.append((depth, bool(first) and int(first[0]) == key))
        assert row["acc"] == found[-1][1]
    assert outcome.metrics["acc"] == np.mean([right for _, right in found])
    if protocol != "codellama":
        assert outcome.metrics["acc"] > 0, "a loop that never finds a key shows nothing"
    if protocol == "pi":
        near = sorted(((1 - depth) * max(row["tokens"] for row in outcome.documents), right) for depth, right in found)
        reached = [tokens for n, (tokens, _) in enumerate(near) if all(right for _, right in near[: n + 1])]
        assert outcome.metrics["effective_length"] == pytest.approx(max(reached, default=0))


def test_key_retrieval_in_code_is_python_that_holds_and_is_counted_by_position(encode):
    options = {**passkey.OPTIONS, "protocol": "codellama"}
    made = passkey.KIND.build(options, encode, length=700, limit=2, seed=0)
    assert passkey.KIND.forwards(options, encode, length=700, limit=None) == 3 * 64
    for document in made:
        said, key = encode.text(document.ids), document.fact("key")
        *functions, question = ast.parse(f"{said}{key}").body
        assert all(isinstance(one, ast.FunctionDef) for one in functions) and isinstance(question, ast.Assert)
        names = [one.name for one in functions]
        assert names.index("my_function") == round((len(names) - 1) * document.fact("depth")) and len(names) > 5
    answers = [
        f"{document.fact('key')}\n\ndef f(): return 7" if document.fact("depth") else f"7 or {document.fact('key')}"
        for document in made
    ]
    records = [passkey.measure({"document": d}, [answer]) for d, answer in zip(made, answers, strict=True)]
    outcome, _ = passkey.KIND.finish({}, made, records, options)
    assert {name: outcome[name] for name in outcome if name.startswith("acc_at")} == {
        "acc_at_0": 0,
        "acc_at_0.2": 1,
        "acc_at_0.4": 1,
    }
