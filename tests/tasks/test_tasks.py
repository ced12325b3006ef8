"""Perplexity and passkey measure what they say on documents that depend on nothing but their seeds."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support import PROJECT
from tokenizers import normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from pipelines.models import find
from pipelines.records.cells import Model, Refusal, Task, frozen
from pipelines.tasks import encoded, harness, named, passkey, perplexity, registry, scorer, text
from pipelines.tasks.documents import SCORER_VERSION, Encoder, _encoded, stderr
from pipelines.tasks.exact import LogLikelihood
from pipelines.tasks.scorer import LongLM

FOLDER = Path(registry.__file__).parent


@pytest.fixture
def lm(model, tokenizer):
    return LongLM(model, tokenizer, max_length=64)


@pytest.fixture
def encode(tokenizer):
    return Encoder.of(tokenizer)


def a_task(name, **options):
    return Task(name, frozen(options))


def scores(lm, task, length, limit=None, seed=0):
    return registry.score(lm, task, length=length, limit=limit, seed=seed)


def prompts(encode, length, limit=None, seed=0, **options):
    return passkey.KIND.build({**passkey.OPTIONS, **options}, encode, length=length, limit=limit, seed=seed)


# ------------------------------------------------------------------------------------------------------- perplexity


def test_perplexity_is_that_of_the_models_own_logits(lm, model, tokenizer):
    outcome = scores(lm, a_task("perplexity", last=20, buckets=4), 128, limit=3)
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[key] for key in sorted(topics))
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False)[: 3 * 128]).view(3, 128)
    with torch.no_grad():
        logp = model(ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0].double().numpy()
    nll = -logp.mean()
    assert outcome.metrics["nll"] == pytest.approx(nll, rel=1e-5)
    assert outcome.metrics["ppl"] == pytest.approx(math.exp(nll), rel=1e-5)
    assert outcome.metrics["nll_stderr"] == pytest.approx(logp.mean(1).std(ddof=1) / 3**0.5, rel=1e-4)
    assert outcome.metrics["ppl_stderr"] == pytest.approx(outcome.metrics["ppl"] * outcome.metrics["nll_stderr"])
    assert outcome.metrics["nll_last_20"] == pytest.approx(-logp[:, -20:].mean(), rel=1e-5)
    assert outcome.metrics["ppl_last_20"] == pytest.approx(math.exp(-logp[:, -20:].mean()), rel=1e-5)
    # A token is a byte here, but for the few characters beyond ASCII.
    assert outcome.metrics["bits_per_byte"] == pytest.approx(nll / math.log(2), rel=0.02)
    assert [row["nll"] for row in outcome.documents] == pytest.approx((-logp.mean(1)).tolist(), rel=1e-5)
    assert [row["tokens"] for row in outcome.documents] == [128] * 3
    ends, means = zip(*outcome.series["nll_by_position"], strict=True)
    assert ends == (32, 64, 96, 128)
    assert means == pytest.approx([-logp[:, max(a, 1) - 1 : a + 31].mean() for a in (0, 32, 64, 96)], rel=1e-5)
    assert lm.scored_tokens == lm.forward_tokens == 3 * 127


class Words:
    """A token a word, with the space before it."""

    bos_token_id = None

    def __init__(self):
        self.words = []

    def __call__(self, text, **_):
        self.words = re.findall(r" ?\S+", text)
        return {"input_ids": list(range(len(self.words)))}

    def decode(self, ids, **_):
        return "".join(self.words[number] for number in ids)


def test_bits_per_byte_leaves_out_the_bytes_of_the_first_token_which_is_context_alone(tmp_path):
    (tmp_path / "text.txt").write_text("first Ü c")
    options = {**perplexity.OPTIONS, "text": str(tmp_path / "text.txt"), "last": 1}
    [document] = perplexity.KIND.build(options, Encoder("words", Words()), length=3, limit=1, seed=0)
    # " Ü" has 3 bytes and takes 1 bit, " c" has 2 and takes 3: 4 bits for 5 bytes.
    answer = LogLikelihood(-4 * math.log(2), -np.log(2) * np.array([1, 3], np.float32))
    record = perplexity.measure({"options": options}, [answer]) | perplexity.KIND.detail(document, answer, options)
    metrics, _ = perplexity.KIND.finish({"nll": 2 * math.log(2)}, [document], [record], options)
    assert metrics["bits_per_byte"] == pytest.approx(4 / 5)


def test_one_document_has_no_standard_error_and_a_short_one_no_last_tokens(lm):
    outcome = scores(lm, a_task("perplexity"), 64, limit=1)
    assert set(outcome.metrics) == {"nll", "ppl", "bits_per_byte"}
    by = {"nll_by_position", "nll_by_distance", "tokens_by_distance"}
    assert set(outcome.documents[0]) == {"index", "tokens", "bytes", "nll", *by}


def test_standard_errors_are_there_from_two_documents_on(lm):
    outcome = scores(lm, a_task("perplexity", last=8), 64, limit=2)
    named = {name for name in outcome.metrics if not name.endswith("_stderr")}
    assert named == {"nll", "ppl", "nll_last_8", "ppl_last_8", "bits_per_byte"}
    assert {f"{name}_stderr" for name in named} <= set(outcome.metrics)
    assert stderr([1.0]) is None and stderr([1.0, 3.0]) == pytest.approx(1.0)


def test_a_part_and_what_is_skipped_arrive_in_the_documents(lm, encode):
    whole = scores(lm, a_task("perplexity", part="report"), 64, limit=5)
    later = scores(lm, a_task("perplexity", part="report", skip=3), 64, limit=2)
    other = scores(lm, a_task("perplexity", part="tune"), 64, limit=5)
    assert [d["nll"] for d in later.documents] == [d["nll"] for d in whole.documents[3:]]
    assert other.digest == scores(lm, a_task("perplexity"), 64, limit=5).digest  # a stream's first half begins with it
    assert len({whole.digest, later.digest, other.digest}) == 3
    counted = registry.forwards(a_task("perplexity", part="tune"), lm.tokenizer, length=64, limit=None)
    assert counted == len(encode(next(text.documents("pydoc")))) // 2 // 64


def test_a_bos_takes_a_token_of_the_length_and_begins_every_document(encode, tokenizer):
    def begins(bos):
        built = perplexity.KIND.build(
            {**perplexity.OPTIONS, "bos": bos}, Encoder.of(tokenizer), length=64, limit=2, seed=0
        )
        assert [len(document.ids) for document in built] == [64, 64]
        return [document.ids[0] == 256 for document in built]

    assert (begins(None), begins(True), begins(False)) == ([False] * 2, [True] * 2, [False] * 2)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    assert (begins(None), begins(False)) == ([True] * 2, [False] * 2)


def test_buckets_cover_every_scored_token_once():
    nll = np.arange(1, 100, dtype=np.float64)
    for buckets in (1, 3, 16, 99, 500):
        outcome = perplexity.by_position(nll, buckets)
        ends = [end for end, _ in outcome]
        widths = np.diff([1, *ends])
        assert ends[-1] == 100 and all(widths > 0)
        assert (widths * [mean for _, mean in outcome]).sum() == pytest.approx(nll.sum())


def test_a_model_beyond_float_has_infinite_perplexity_and_no_standard_error():
    row = {"options": perplexity.OPTIONS}
    hopeless = LogLikelihood(-8000.0, np.full(10, -800.0, np.float32))
    assert perplexity.measure(row, [hopeless]) == {"nll": 800.0}
    built = perplexity.Document((1,) * 11, 10, (("bytes", 10),))
    record = {"nll": 800.0} | perplexity.KIND.detail(built, hopeless, perplexity.OPTIONS)
    outcome, _ = perplexity.KIND.finish({"nll": 800.0}, [built], [record], perplexity.OPTIONS)
    assert outcome["ppl"] == math.inf
    assert harness._metrics({"nll,none": math.nan, "nll_stderr,none": math.nan}, [{}, {}], 64).keys() == {"nll"}


# ---------------------------------------------------------------------------------------- documents and their digest


LETTERS = """
import sys, json
from pipelines.tasks import registry
from pipelines.tasks.documents import Encoder, digest

class Letters:
    bos_token_id = None
    def __call__(self, text, **_): return {"input_ids": [ord(letter) for letter in text]}
    def decode(self, ids, **_): return "".join(map(chr, ids))

def built(name, length):
    task = registry.OWN[name]
    return digest(task.build(task.options, Encoder("letters", Letters()), length=length, limit=2, seed=3))

asked = json.loads(sys.argv[1]) if __name__ == "__main__" else []
print(*[built(name, length) for name, length in asked])
"""


def test_documents_depend_on_neither_process_nor_order_nor_other_lengths():
    here = {}
    exec(LETTERS, here)
    asked = [("perplexity", 200), ("passkey", 600), ("perplexity", 100), ("passkey", 700)]
    command = [sys.executable, "-c", LETTERS, json.dumps(asked)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=True)
    assert ran.stdout.split() == [here["built"](*one) for one in asked[::-1]][::-1]
    assert len(set(ran.stdout.split())) == 4


def test_a_digest_follows_limit_seed_and_text(lm, tmp_path):
    (tmp_path / "text.txt").write_text("another text " * 100)
    other = a_task("perplexity", text=str(tmp_path / "text.txt"))
    digests = [
        scores(lm, a_task("perplexity"), 64, limit=1).digest,
        scores(lm, a_task("perplexity"), 64, limit=2).digest,
        scores(lm, other, 64, limit=1).digest,
        scores(lm, a_task("passkey"), 600, limit=1).digest,
        scores(lm, a_task("passkey"), 600, limit=1, seed=1).digest,
    ]
    assert len(set(digests)) == 5
    (tmp_path / "text.txt").write_text("changed under its name " * 100)
    assert scores(lm, other, 64, limit=1).digest not in digests


def test_tokenizers_are_equal_where_they_give_every_text_the_same_ids(tiny_folder, tokenizer):
    again = AutoTokenizer.from_pretrained(tiny_folder)
    again.pad_token = "</s>"
    again(["a", "bcd"], padding=True, truncation=True, max_length=8)
    assert Encoder.of(again) == Encoder.of(tokenizer)
    split = AutoTokenizer.from_pretrained(tiny_folder, split_special_tokens=True)
    assert Encoder.of(split)("<s>") != Encoder.of(tokenizer)("<s>")
    without = AutoTokenizer.from_pretrained(tiny_folder)
    without.bos_token = None
    again.add_tokens(["new"])
    assert len({Encoder.of(other) for other in (again, split, without, tokenizer)}) == 4


def test_a_tokenizer_that_is_changed_in_place_is_another_encoder():
    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "models" / "tiny")
    seen = [Encoder.of(tokenizer)]
    assert Encoder.of(tokenizer) == seen[0]

    def lower():
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()

    def split():
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

    def bos():
        tokenizer.bos_token = "<new>"

    for change in (lambda: tokenizer.add_tokens(["<new>"]), lower, split, bos):
        change()
        seen.append(Encoder.of(tokenizer))
    assert len(set(seen)) == 5


def test_an_encoder_says_of_ids_what_its_tokenizer_says():
    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "models" / "tiny")
    ids = (0, *tokenizer.encode("def first(rows) :  # Grün\n\treturn 1 , 2 ."), 0, 7999)
    assert Encoder.of(tokenizer).text(ids) == tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert "<|endoftext|>" in Encoder.of(tokenizer).text(ids)


def test_a_text_is_encoded_once_for_two_tokenizers_that_wrap_the_same_parts(tiny_folder, tokenizer, monkeypatch):
    plain = find.plain_tokenizer(find.describe(Model("tiny", str(tiny_folder)))[0])
    said = "encoded once, by the one that needs no transformers"
    ids = Encoder.of(plain)(said)
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *_, **__: pytest.fail("encoded again"))
    assert Encoder.of(tokenizer)(said) == ids


@pytest.mark.parametrize("words", [False, True])
def test_the_first_ids_of_a_text_are_those_of_the_whole_and_no_more_of_it_is_encoded(encode, words, monkeypatch):
    encode = Encoder.of(AutoTokenizer.from_pretrained(PROJECT / "models" / "tiny")) if words else encode
    pydoc = next(text.documents("pydoc"))
    whole, sizes = encode(pydoc), []
    call = type(encode.tokenizer).__call__
    monkeypatch.setattr(
        type(encode.tokenizer), "__call__", lambda own, said, **on: sizes.append(len(said)) or call(own, said, **on)
    )
    for count in (1, 5000, 300, 20_000):
        first = encode.first(pydoc, count)
        assert len(first) >= count and first == whole[: len(first)]
    _encoded.cache_clear()
    found = text.pieces("pydoc", encode, text.Cut(900, 900, 900, 3, skip=1))
    assert sum(sizes) < len(pydoc) / 2
    assert encode.first(pydoc, len(whole) + 1) == whole
    assert [window.ids for window in found] == [tuple(whole[n * 900 :][:900]) for n in (1, 2, 3)]


def test_the_ids_of_a_long_text_are_kept_between_processes_for_the_same_tokenizer_alone(encode, tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path))
    monkeypatch.setattr(encoded, "KEPT_FROM", 1000)
    calls, call = [], type(encode.tokenizer).__call__
    monkeypatch.setattr(
        type(encode.tokenizer), "__call__", lambda own, said, **on: calls.append(own) or call(own, said, **on)
    )
    words = Encoder.of(AutoTokenizer.from_pretrained(PROJECT / "models" / "tiny"))
    said = next(text.documents("pydoc"))[:50_000]

    def ids(encode, said=said):
        _encoded.cache_clear()  # as in another process
        return encode(said)

    first = ids(encode)
    assert first == call(encode.tokenizer, said, add_special_tokens=False)["input_ids"]
    assert ids(encode) == first and len(calls) == 1
    assert ids(words) != first and ids(encode, said[:20_000]) != first
    files = list((tmp_path / "encoded").iterdir())
    assert len(files) == 3
    for file in files:  # one bit of each is another
        file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    before = len(calls)
    assert ids(encode) == first and len(calls) == before + 1
    ids(encode, "short"), ids(encode, "short")
    assert len(calls) == before + 3 and len(list((tmp_path / "encoded").iterdir())) == 3


def test_ids_of_a_tokenizer_whose_parts_cannot_be_read_are_not_kept(tmp_path, monkeypatch):
    class Numbers:
        bos_token_id = None

        def __call__(self, said, **_):
            return {"input_ids": [*map(ord, said)]}

    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path))
    monkeypatch.setattr(encoded, "KEPT_FROM", 3)
    assert Encoder.of(Numbers())("four") == [*map(ord, "four")] and not list(tmp_path.iterdir())


def test_where_ids_depend_on_what_follows_the_whole_text_is_encoded():
    class Backwards:
        def __call__(self, said, **_):
            return {"input_ids": [ord(letter) for letter in reversed(said)]}

    said = "a line\n" * 5000
    assert Encoder("backwards", Backwards()).first(said, 10) == [ord(letter) for letter in reversed(said)]


# ---------------------------------------------------------------------------------------------------------- passkey


@pytest.mark.parametrize("answer", ["loglikelihood", "generate"])
@pytest.mark.parametrize("length", [400, 1000, 4096])
def test_a_prompt_fills_the_length_but_for_a_word_and_never_exceeds_it(encode, length, answer):
    for document in prompts(encode, length, answer=answer):
        context = len(document.ids) + (passkey.NEW_TOKENS if answer == "generate" else 0)
        assert length - len(" yellow.") < context <= length


def test_the_key_lies_at_its_depth(encode):
    for document in prompts(encode, 8192):
        position = encode.text(document.ids).index(f"The pass key is {document.fact('key')}.") / 8192
        assert position == pytest.approx(document.fact("depth"), abs=0.03)


def test_the_key_alone_is_scored(encode):
    for document in prompts(encode, 600):
        assert encode.text(document.ids[-document.scored :]) == f" {document.fact('key')}"
        assert 10_000 <= document.fact("key") <= 99_999


def test_keys_are_the_same_at_every_depth_and_length(encode):
    short, long = prompts(encode, 600, keys=3), prompts(encode, 1200, keys=3)
    assert [document.facts for document in short] == [document.facts for document in long]
    keys = [document.fact("key") for document in short]
    assert keys == [key for key in dict.fromkeys(keys) for _ in range(4)]
    assert [document.fact("key") for document in prompts(encode, 600, seed=1)][:4] != keys[:4]


def test_a_limit_takes_keys_and_leaves_no_depth_out(encode):
    assert prompts(encode, 600, limit=1) == prompts(encode, 600)[:4]
    assert [document.fact("depth") for document in prompts(encode, 600, limit=1)] == [0.1, 0.35, 0.65, 0.9]
    assert prompts(encode, 600, limit=9) == prompts(encode, 600)


def test_most_finds_the_last_that_fits_with_few_looks():
    looks = []

    def cost(n):
        looks.append(n)
        return 300 + n + n // 3 + (n % 7 == 0)

    assert all(
        cost(passkey.most(cost, budget)) <= budget < cost(passkey.most(cost, budget) + 1) for budget in (301, 5000)
    )
    looks.clear()
    passkey.most(cost, 100_000)
    assert len(looks) < 10


class Copier(LongLM):
    """Says what followed the last time its latest words were said, looking back over `memory` tokens."""

    memory = 10**9

    def following(self, ids):
        seen = bytes(ids[-self.memory :])
        for size in range(40, 0, -1):
            found = seen.rfind(seen[-size:], 0, len(seen) - 1)
            if found >= 0:
                return seen[found + size]
        return 0

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        for _, context, continuation in requests:
            whole, start = [*context, *continuation], len(context)
            right = [self.following(whole[:n]) == whole[n] for n in range(start, len(whole))]
            yield LogLikelihood(-float(len(right) - sum(right)), np.array(right, np.float32) - 1), all(right)

    def loglikelihood(self, requests, disable_tqdm=False):
        return list(super().loglikelihood(requests, disable_tqdm))

    def _model_generate(self, context, max_length, **kwargs):
        ids = context[0].tolist()
        while len(ids) < max_length:
            ids.append(self.following(ids))
        return torch.tensor([ids])


@pytest.fixture
def copier(model, tokenizer):
    # Ids of this tokenizer are bytes already, in the order of its alphabet.
    return Copier(model, tokenizer, max_length=64)


@pytest.mark.parametrize("answer", ["loglikelihood", "generate"])
def test_a_model_that_copies_finds_every_key(copier, answer):
    outcome = scores(copier, a_task("passkey", answer=answer), 800)
    assert outcome.metrics["acc"] == outcome.metrics["consistency"] == 1
    assert outcome.metrics["acc_stderr"] == 0
    assert outcome.series["acc_by_depth"] == [(depth, 1.0) for depth in (0.1, 0.35, 0.65, 0.9)]
    assert ("nll_key" in outcome.metrics) == (answer == "loglikelihood")
    assert [row["depth"] for row in outcome.documents] == [0.1, 0.35, 0.65, 0.9] * 2
    assert all(790 - passkey.NEW_TOKENS <= row["tokens"] <= 800 and row["acc"] == 1 for row in outcome.documents)


@pytest.mark.parametrize("answer", ["loglikelihood", "generate"])
def test_a_model_that_forgets_finds_only_late_keys(copier, answer):
    copier.memory = 300
    outcome = scores(copier, a_task("passkey", answer=answer), 800)
    assert outcome.series["acc_by_depth"] == [(0.1, 0), (0.35, 0), (0.65, 1), (0.9, 1)]
    assert outcome.metrics["acc"] == pytest.approx(0.5) and outcome.metrics["consistency"] == 0


def test_a_random_model_finds_nothing(lm):
    outcome = scores(lm, a_task("passkey", keys=1), 500)
    assert outcome.metrics["acc"] == 0 and outcome.metrics["consistency"] == 1 and outcome.metrics["nll_key"] > 2


def test_consistency_is_the_share_of_keys_answered_alike_at_every_depth():
    assert passkey.consistency([[True] * 3, [False] * 3, [True, True, False]]) == pytest.approx(2 / 3)
    assert passkey.consistency([[True], [False]]) is None and passkey.consistency([]) is None


def test_consistency_leaves_out_keys_not_scored_at_every_depth(copier):
    assert "consistency" not in scores(copier, a_task("passkey", depths=(0.5,)), 600).metrics
    assert scores(copier, a_task("passkey"), 600, limit=1).metrics["consistency"] == 1


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("task", "length", "limit", "sentence"),
    [
        (a_task("perplexity"), 10**6, None, "text pydoc holds [0-9,]+ tokens and 1,000,000 are needed"),
        (a_task("perplexity", text="nowhere.txt"), 64, None, "no such file or folder"),
        (a_task("perplexity", buckets=0), 64, None, "buckets=0 of the task perplexity: give at least 1"),
        (a_task("perplexity", skip=-1), 64, None, "skip=-1 of the task perplexity: give a whole number of at least 0"),
        (a_task("perplexity"), 1, None, "length=1: perplexity takes at least 2 tokens"),
        (a_task("perplexity", depth=1), 64, None, "takes no option depth; its options: text, bos, last, buckets"),
        (a_task("passkey"), 200, None, r"length=200: the passkey prompt alone takes \d+ tokens; choose length=\d+"),
        (a_task("passkey", depths=(0.5, 1.5)), 600, None, "shares from 0 to 1"),
        (a_task("passkey", keys=0), 600, None, "keys=0 of the task passkey: give at least 1"),
        (a_task("passkey", answer="guess"), 600, None, "answer=guess .* give loglikelihood or generate"),
        (a_task("passkey"), 600, 0, "limit=0: give at least 1 document"),
        (a_task("wikitex"), 64, None, "unknown task wikitex; .* did you mean wikitext?"),
        (a_task("babilong"), 4096, None, "task babilong is a group"),
        (a_task("niah_single_1"), 512, None, "length=512: RULER's prompts take at least 1024 tokens"),
        (a_task("niah_single_1"), 4096, None, "at most 2.5 tokens a word and this tokenizer takes"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_model(tokenizer, monkeypatch, task, length, limit, sentence):
    monkeypatch.setattr(named, "RULER_PACKAGES", ())
    with pytest.raises(Refusal, match=sentence):
        registry.prepare(task, tokenizer, length=length, limit=limit, seed=0)


def test_the_least_length_in_the_message_is_enough_and_one_token_less_is_not(tokenizer):
    with pytest.raises(Refusal) as refused:
        registry.prepare(a_task("passkey"), tokenizer, length=10, limit=None, seed=0)
    least = int(re.search(r"length=(\d+) or more", str(refused.value))[1])
    registry.prepare(a_task("passkey"), tokenizer, length=least, limit=None, seed=0)
    with pytest.raises(Refusal):
        registry.prepare(a_task("passkey"), tokenizer, length=least - 1, limit=None, seed=0)


def test_missing_packages_are_reported_with_the_extra_that_installs_them(tokenizer, monkeypatch):
    monkeypatch.setattr(named, "RULER_PACKAGES", ("a_package_that_is_not_there",))
    with pytest.raises(Refusal, match=r"needs packages .* \(a_package_that_is_not_there\): `uv sync --extra ruler`"):
        registry.prepare(a_task("niah_single_1"), tokenizer, length=4096, limit=None, seed=0)


# -------------------------------------------------------------------------------------------- tasks that lm-eval brings

NAMED = """
task: colours
custom_dataset: !function colours.rows
test_split: test
output_type: multiple_choice
doc_to_text: "The {{thing}} is"
doc_to_target: "{{answer}}"
doc_to_choice: ["green", "blue"]
"""
LIKE_RULER = """
task: like_ruler
custom_dataset: !function colours.rows
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{thing}} {{drawn}}"
process_results: !function colours.by_length
metric_list:
  - {metric: "4096", aggregation: !function colours.sentinel, higher_is_better: true}
"""
COLOURS = """
import random
import datasets

def rows(max_seq_lengths, tokenizer, **_):
    assert tokenizer
    things = ["grass", "sky", "sea", "leaf"]
    rows = [{"thing": t, "answer": i % 2, "max_length": max_seq_lengths[0]} for i, t in enumerate(things)]
    return {"test": datasets.Dataset.from_list([{**row, "drawn": random.random()} for row in rows])}

def by_length(doc, results):
    return {"4096": -1.0, str(doc["max_length"]): 0.25 * len(doc["thing"])}

def sentinel(values):
    return -1.0
"""


@pytest.fixture
def by_name(tmp_path, monkeypatch):
    (tmp_path / "colours.py").write_text(COLOURS)
    for name, content in {"colours": NAMED, "like_ruler": LIKE_RULER}.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    monkeypatch.setattr(named, "find", lambda name, ours=(): tmp_path / f"{name}.yaml")


def test_a_task_of_the_harness_runs_by_its_name(lm, by_name):
    outcome = scores(lm, a_task("colours"), 64, limit=3)
    assert set(outcome.metrics) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"} | (
        set(outcome.metrics) & {"acc_bytes", "acc_bytes_stderr"}
    )
    assert outcome.metrics["acc"] == pytest.approx(np.mean([row["acc"] for row in outcome.documents]))
    assert [row["index"] for row in outcome.documents] == [0, 1, 2]
    assert outcome.documents[0]["tokens"] == len("The grass is green")
    assert outcome.digest != scores(lm, a_task("colours"), 64, limit=2).digest


def test_a_metric_named_by_the_length_is_the_score_and_a_sentinel_is_none(lm, by_name):
    outcome = scores(lm, a_task("like_ruler"), 64, limit=2)
    assert outcome.metrics == {"score": 1.0, "score_stderr": pytest.approx(stderr([1.25, 0.75]))}
    assert [row["score"] for row in outcome.documents] == [1.25, 0.75]


def test_data_that_a_task_draws_depend_on_the_seed_alone(lm, by_name):
    def digest(seed):
        harness.by_name.cache_clear()
        return scores(lm, a_task("like_ruler"), 64, limit=2, seed=seed).digest

    assert digest(0) == digest(0) != digest(1)


def test_a_request_of_the_harness_that_does_not_fit_is_refused(lm, by_name):
    with pytest.raises(scorer.TooLong):
        scores(lm, a_task("colours"), 8)


def test_tasks_of_the_harness_are_located_by_their_yaml():
    assert named.find("wikitext").name == "wikitext.yaml"
    assert named.find("niah_single_1").parent.name == "ruler"
    found, groups = named._index()
    assert len(found) > 5000 and {"ruler", "mmlu"} <= groups


# ------------------------------------------------------------------------------------------------------------- laws


def test_the_versions_of_a_cell_are_those_of_what_computes_it():
    for name, task in registry.OWN.items():
        assert f"version: {task.version}\n" in (FOLDER / f"{name}.yaml").read_text()
        assert registry.versions(a_task(name)) == {"scorer": SCORER_VERSION, "task": task.version}
    assert set(registry.versions(a_task("wikitext"))) == {"scorer", "lm_eval"}


def test_the_room_for_an_answer_is_what_generation_asks_for():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    asked = yaml.load((FOLDER / "passkey_generate.yaml").read_text(), Loader)
    assert asked["generation_kwargs"]["max_gen_toks"] == passkey.NEW_TOKENS


def test_planning_loads_neither_torch_nor_the_harness():
    script = (
        "import sys; from pipelines import tasks; "
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'datasets') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert ran.stdout.strip() == "[]"


def test_scoring_prints_nothing(lm, capfd):
    scores(lm, a_task("passkey", keys=1), 500)
    assert capfd.readouterr() == ("", "")


def test_the_pi_protocol_asks_ten_keys_at_each_of_32_distances(encode):
    built = prompts(encode, 700, protocol="pi")
    assert len(built) == 320 and len({document.fact("depth") for document in built}) == 32
    assert all(document.scored == 0 and len(document.ids) + passkey.NEW_TOKENS <= 700 for document in built)
    found = ["" if document.fact("depth") < 0.5 else f" {document.fact('key')}." for document in built]
    records = [passkey.measure({"document": d}, [answer]) for d, answer in zip(built, found, strict=True)]
    outcome, _ = passkey.KIND.finish({}, built, records, {**passkey.OPTIONS, "protocol": "pi"})
    assert outcome["effective_length"] == pytest.approx(max(len(d.ids) for d in built) / 2)


def test_the_yarn_protocol_hides_any_number_at_any_character(encode):
    built = prompts(encode, 800, protocol="yarn", limit=10)
    keys = [document.fact("key") for document in built]
    assert len(built) == 10 and all(1 <= key <= 50_000 for key in keys) and min(keys) < 10_000
    assert len({document.fact("depth") for document in built}) == 10
    for document in built:
        said = encode.text(document.ids)
        assert said.count(f" {document.fact('key')}") == 2 and said.endswith(passkey.QUESTION)
        assert len(document.ids) + passkey.NEW_TOKENS == 800, "a character is a token here: it fills the length"
    curve = [(1, 1.0), (2, 0.8), (3, 0.5)]
    assert passkey.passkey_context(curve) == 2 and passkey.passkey_accuracy(curve) == pytest.approx(0.9)
    assert passkey.passkey_context([(1, 0.5)]) == 0 == passkey.passkey_accuracy([(1, 0.5)])
    with pytest.raises(Refusal, match="protocol=lambada of the task passkey: give grid, pi, yarn, codellama"):
        prompts(encode, 800, protocol="lambada")


@pytest.mark.parametrize(("length", "size"), [(700, "0k"), (4095, "2k"), (4608, "4k"), (200_000, "128k")])
def test_babilong_gets_the_length_as_the_name_of_a_size(encode, monkeypatch, length, size):
    asked = []

    def load_dataset(path, name=None, split=None, **_):
        asked.append((name, split))
        raise OSError("no network")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(Refusal, match="data of task babilong_qa1 cannot be loaded: no network"):
        harness.by_name(
            "babilong_qa1",
            named.check("babilong_qa1", encode, length),
            length=length,
            encode=encode,
            folder=".",
            seed=0,
            num_fewshot=None,
        )
    assert asked == [(size, "qa1")]


LONG = ["babilong_qa1", "graphwalks_128k", "infinitebench_passkey", "longbench_narrativeqa", "longbench2_table"]


@pytest.mark.parametrize("name", [*LONG, "scrolls_quality", "ruler_vt"])
def test_a_long_task_of_lm_eval_is_found_by_its_name_and_refused_in_a_sentence_where_it_cannot_be_had(
    encode, monkeypatch, name
):
    def load_dataset(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(named, "RULER_PACKAGES", ("a_package_that_is_not_there",))
    with pytest.raises(
        Refusal, match=f"task {name} (cannot be loaded: no network|needs packages)|data of task {name} "
    ):
        path = named.check(name, encode, 4096)
        harness.by_name(name, path, length=4096, encode=encode, folder=".", seed=0, num_fewshot=None)
