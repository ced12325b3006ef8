"""Answers to one question: what they share is read once, and every score is that of whole texts, under any strategy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, Gemma2Config

from pipelines.tasks import scorer, shared
from pipelines.tasks.exact import Tokens
from pipelines.tasks.scorer import LongLM
from rope import strategies
from rope.config import geometry_of
from rope.cropping import cropped, uncropped
from rope.patch import patched

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH, QUESTIONS = 700, 2
ANSWERS = (3, 6, 1, 6)


@pytest.fixture
def lm(model, tokenizer):
    return LongLM(model, tokenizer, max_length=1024)


def questions(length=LENGTH, count=QUESTIONS, answers=ANSWERS):
    random = np.random.default_rng(0)
    contexts = [random.integers(0, 256, length).tolist() for _ in range(count)]
    return [
        Instance("loglikelihood", {}, (Tokens("q", ids), Tokens("a", random.integers(0, 256, n).tolist())), 0)
        for ids in contexts
        for n in answers
    ]


def scored(lm, requests):
    lm.reset_counts()
    return lm.loglikelihood(requests), lm.forward_tokens


def apart(lm, requests, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(scorer, "split", lambda keep: ([], list(keep)))
        return scored(lm, requests)


def assert_same(ours, whole):
    assert [float(value) for value, _ in ours] == pytest.approx([float(value) for value, _ in whole], rel=1e-6)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in whole]
    for (one, _), (other, _) in zip(ours, whole, strict=True):
        np.testing.assert_allclose(one.tokens, other.tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [16384, 2000, 100], ids=["together", "in parts", "one by one"])
def test_a_context_is_read_once_and_every_answer_is_scored_as_after_the_whole_text(lm, monkeypatch, batch_tokens):
    lm.batch_tokens = batch_tokens
    requests = questions()
    (ours, read), (whole, all_read) = scored(lm, requests), apart(lm, requests, monkeypatch)
    assert_same(ours, whole)
    assert all_read > QUESTIONS * LENGTH * len(ANSWERS) and read < QUESTIONS * (LENGTH + sum(ANSWERS))
    assert not lm.shared_context.reason


@pytest.mark.parametrize("name", strategies.STRATEGIES)
def test_answers_are_those_of_whole_texts_under_every_strategy(lm, monkeypatch, name):
    own = geometry_of(lm.model.config.to_dict())
    [pairs] = {geometry.pairs for geometry in own.values()}
    plans = strategies.plans(name, own, LENGTH + 8, **strategies.required_options(name, pairs))
    lm.crop = cropped(plans)
    requests = questions(count=1)
    with patched(lm.model, uncropped(plans)):
        (ours, read), (whole, all_read) = scored(lm, requests), apart(lm, requests, monkeypatch)
    assert_same(ours, whole)
    assert read < all_read or lm.crop is not None


def test_answers_after_a_window_that_slides_are_those_of_whole_texts(tokenizer, monkeypatch):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma2Config(**sizes, num_key_value_heads=2, head_dim=16, vocab_size=260, sliding_window=64)
    torch.manual_seed(0)
    lm = LongLM(AutoModelForCausalLM.from_config(config).eval(), tokenizer, max_length=1024)
    requests = questions()
    (ours, read), (whole, all_read) = scored(lm, requests), apart(lm, requests, monkeypatch)
    assert_same(ours, whole)
    assert read < all_read


def test_a_cache_that_changes_scores_is_not_used(lm, monkeypatch):
    whole = apart(lm, questions(), monkeypatch)[0]
    after = shared.SharedContext._after
    monkeypatch.setattr(shared.SharedContext, "_after", lambda self, *given: after(self, *given) * 1.001)
    ours, _ = scored(lm, questions())
    assert "something else after cached tokens" in lm.shared_context.reason
    assert ours == whole


def test_a_model_without_a_cache_is_read_whole(lm, monkeypatch):
    whole = apart(lm, questions(), monkeypatch)[0]
    monkeypatch.setattr(shared, "DynamicCache", lambda: None)
    ours, _ = scored(lm, questions())
    assert "takes no cache" in lm.shared_context.reason
    assert ours == whole


def test_texts_go_alone_where_keys_and_values_are_large_or_memory_ends(lm, monkeypatch):
    whole = apart(lm, questions(), monkeypatch)[0]
    with monkeypatch.context() as patch:
        patch.setattr(shared.memory, "limit", lambda: 1e6)
        assert scored(lm, questions())[0] == whole
        assert "keys and values of 699 tokens take" in lm.shared_context.reason

    def ends(self, group, batch_tokens):
        raise torch.OutOfMemoryError("there is no more")
        yield

    monkeypatch.setattr(shared.SharedContext, "states", ends)
    assert_same(scored(lm, questions())[0], whole)


def test_only_long_beginnings_are_shared_and_never_a_token_that_is_scored():
    long, short = tuple(range(600)), tuple(range(100))
    rows = {(*long, 1, 2): 2, (*long, 3): 1, (*short, 1): 1, (*short, 2): 1, (*range(1, 600), 5): 1}
    groups, alone = shared.split(rows)
    assert [(group.shared, set(group.rows)) for group in groups] == [(600, {(*long, 1, 2), (*long, 3)})]
    assert set(alone) == set(rows) - set(groups[0].rows)
    [group], _ = shared.split({(*long, 1): 101, (*long, 2): 1})
    assert group.shared == 500
    assert shared.split({(*long, 1): 601, (*long, 2): 1})[0] == []  # the first is scored from its beginning
    assert shared.split({long: 1, (*long, *range(400)): 1})[0] == []  # the second goes on for long


def test_documents_of_one_length_share_a_forward(lm):
    widths = list[int]()
    hook = lm.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    texts = [Tokens("t", np.random.default_rng(n).integers(0, 256, 129)) for n in range(8)]
    together = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts])
    assert widths == [8]
    alone = [lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])[0] for text in texts]
    hook.remove()
    assert list(map(float, together)) == pytest.approx(list(map(float, alone)), rel=1e-6)
