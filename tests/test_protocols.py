"""Every published way of measuring equals a small loop of its own over plain transformers, on real text."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines import tasks, text
from pipelines.cells import Refusal, Task, frozen
from pipelines.scorer import LongLM
from pipelines.tasks import perplexity
from pipelines.tasks.documents import Encoder

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"
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
    return tasks.score(lm, task, length=length, limit=limit, seed=seed)


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
    told = scored(tiny, folder, **BOS[bos])
    windows = yarn_script(tiny, documents, LENGTH, STRIDE, bos, truncate=True)
    assert told.metrics["ppl"] == close(torch.exp(torch.stack([w.mean() for w in windows]).mean()))
    assert told.metrics["nll_last_32"] == close(torch.stack([w[-32:].mean() for w in windows]).mean())


@pytest.mark.parametrize("bos", BOS)
def test_means_is_the_yarn_scripts_arithmetic(tiny, folder, documents, bos):
    told = scored(tiny, folder, windows="means", stride=STRIDE, **BOS[bos])
    windows = yarn_script(tiny, documents, LENGTH, STRIDE, bos)
    assert told.metrics["ppl"] == close(torch.exp(torch.stack([w.mean() for w in windows]).mean()))
    assert len(windows) > 2 * len(documents) and sum(row["windows"] for row in told.documents) == len(windows)
    per_token = torch.cat(windows).mean()
    assert abs(float(per_token) - told.metrics["nll"]) > 1e-3, "here the two ways of averaging must differ"


@pytest.mark.parametrize("bos", BOS)
def test_sliding_counts_every_token_once_and_alike(tiny, folder, documents, bos):
    told = scored(tiny, folder, windows="sliding", stride=STRIDE, **BOS[bos])
    windows = yarn_script(tiny, documents, LENGTH, STRIDE, bos)
    assert told.metrics["nll"] == close(torch.cat(windows).mean())
    assert sum(map(len, windows)) == sum(map(len, documents)) - (bos is None) * len(documents)
    assert told.metrics["bits_per_byte"] == pytest.approx(
        float(torch.cat(windows).sum()) / math.log(2) / sum(row["bytes"] for row in told.documents), rel=1e-6
    )


def test_sliding_is_the_same_in_float64(folder, documents, tiny):
    exact = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64).eval()
    told = scored(exact, folder, windows="sliding", stride=STRIDE, bos=False)
    assert told.metrics["nll"] == close(torch.cat(yarn_script(exact, documents, LENGTH, STRIDE)).mean())


def test_overlapping_scores_whole_windows(tiny, folder, documents):
    told = scored(tiny, folder, windows="overlapping", stride=STRIDE, bos=False)
    rows = [d[b : b + LENGTH] for d in documents for b in range(0, len(d), STRIDE) if b + LENGTH <= len(d)]
    with torch.no_grad():
        means = [tiny(torch.tensor([row]), labels=torch.tensor([row])).loss.item() for row in rows]
    assert told.metrics["ppl"] == close(math.exp(np.mean(means)))
    assert "bits_per_byte" not in told.metrics and len(rows) > 2 * len(documents)


def test_a_bos_at_the_document_is_in_its_first_window_alone(tiny, folder, documents):
    told = scored(tiny, folder, windows="overlapping", stride=STRIDE, bos=True, bos_at="document")
    streams = [[END, *document] for document in documents]
    rows = [s[b : b + LENGTH] for s in streams for b in range(0, len(s), STRIDE) if b + LENGTH <= len(s)]
    assert told.metrics["nll"] == close(np.mean([losses(tiny, row, row).mean().item() for row in rows]))
    assert told.metrics["nll"] != close(
        scored(tiny, folder, windows="overlapping", stride=STRIDE, bos=True).metrics["nll"]
    )


def test_the_standard_error_is_that_of_documents_weighed_by_their_tokens(tiny, folder, documents):
    told = scored(tiny, folder, windows="sliding", stride=STRIDE, bos=False)
    nll = np.array([row["nll"] for row in told.documents])
    counts = np.array([len(document) - 1 for document in documents])
    mean = (nll * counts).sum() / counts.sum()
    assert told.metrics["nll"] == close(mean)
    spread = (counts / counts.mean() * (nll - mean)).std(ddof=1) / len(nll) ** 0.5
    assert told.metrics["nll_stderr"] == pytest.approx(spread)


def test_documents_may_be_cut_before_windows_slide_over_them(tiny, folder, documents):
    told = scored(tiny, folder, windows="sliding", stride=STRIDE, document=300, bos=False)
    assert told.metrics["nll"] == close(
        torch.cat(yarn_script(tiny, [d[:300] for d in documents], LENGTH, STRIDE)).mean()
    )


def built(encode, source, length=LENGTH, limit=None, seed=0, **options):
    options = {**perplexity.OPTIONS, "text": source, **options}
    return perplexity.build(options, encode, length=length, limit=limit, seed=seed)


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
        made = perplexity.build(options, encode, length=LENGTH, limit=None, seed=0)
        told = perplexity.forwards(options, encode, length=LENGTH, limit=None)
        assert told == sum(len(d.spans) or 1 for d in made)
    of_hub = {**perplexity.OPTIONS, "text": "hub:a/b", "windows": "means", "document": 1000, "stride": 100}
    assert perplexity.forwards(of_hub, encode, length=500, limit=3) == 3 * 6
    assert perplexity.forwards({**of_hub, "document": None}, encode, length=500, limit=3) is None


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


def test_options_that_came_later_leave_the_default_cells_as_they_were():
    told = tasks.told("perplexity", {"text": "pydoc", "bos": None, "last": 256, "buckets": 16, **perplexity.LATER})
    assert told == {"text": "pydoc", "bos": None, "last": 256, "buckets": 16}
    assert tasks.told("perplexity", {"windows": "means", "stride": 256}) == {"windows": "means"}
    assert tasks.told("gsm8k", {"num_fewshot": None}) == {"num_fewshot": None}
