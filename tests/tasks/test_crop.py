"""A cropped text: whatever the task, the plain model is fed the last tokens, and the same tokens are scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from pipelines.tasks.exact import Spans, Tokens
from pipelines.tasks.scorer import LongLM, TooLong
from rope.cropping import Cropped

WINDOW, STRIDE, BOS = 64, 16, 256

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def lm(model, tokenizer):
    lm = LongLM(model, tokenizer, max_length=256, batch_tokens=256)
    lm.crop = Cropped((1.0,), window=WINDOW, stride=STRIDE)
    return lm


def text(length, seed=0, bos=False):
    ids = np.random.default_rng(seed).integers(97, 122, length).tolist()
    return (BOS, *ids) if bos else tuple(ids)


def rolling(lm, tokens):
    (answer,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (tokens,), 0)])
    return answer.tokens


@torch.no_grad()
def log_probabilities(model, ids):
    """Of every token after any tokens: (len(ids) + 1, V)."""
    return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def by_hand(model, ids, bos=()):
    """Of each token but the first, given at most WINDOW tokens before it, in strides, without a line of ours."""
    scores, done = [], 0
    while done < len(ids) - 1:
        stop = min(len(ids) - 1, max(WINDOW, done + STRIDE))
        start = max(0, stop - WINDOW)
        seen = list(ids[start:stop]) if start == 0 else [*bos, *ids[start + len(bos) : stop]]
        table = log_probabilities(model, seen)
        scores += [table[i - start, ids[i + 1]].item() for i in range(done, stop)]
        done = stop
    return scores


@pytest.mark.parametrize("length", [10, 64, 65, 66, 150, 200])
def test_a_document_is_scored_as_by_hand(lm, model, length):
    ids = text(length)
    np.testing.assert_allclose(rolling(lm, Tokens("", ids)), by_hand(model, ids), atol=2e-5)


def test_a_document_cropped_is_not_the_document(lm, model):
    ids = text(200)
    whole = log_probabilities(model, ids[:-1])[range(199), ids[1:]].numpy()
    ours = rolling(lm, Tokens("", ids))
    np.testing.assert_allclose(ours[:WINDOW], whole[:WINDOW], atol=2e-5)
    assert np.abs(ours[WINDOW:] - whole[WINDOW:]).max() > 1e-2
    lm.crop = None
    np.testing.assert_allclose(rolling(lm, Tokens("", ids)), whole, atol=2e-5)


def test_a_beginning_of_text_stays_at_the_beginning_of_what_is_seen(lm, model):
    ids = text(150, bos=True)
    np.testing.assert_allclose(rolling(lm, Tokens("", ids)), by_hand(model, ids, bos=(BOS,)), atol=2e-5)
    assert np.abs(np.array(by_hand(model, ids)) - by_hand(model, ids, bos=(BOS,))).max() > 1e-2


def test_windows_of_a_document_are_cropped_each(lm, model):
    ids = text(200)
    ours = rolling(lm, Spans("", ids, [(0, 120, 119), (40, 200, 80)]))
    np.testing.assert_allclose(ours[:119], by_hand(model, ids[:120]), atol=2e-5)
    seen = log_probabilities(model, ids[199 - WINDOW : 199])
    np.testing.assert_allclose(ours[-STRIDE:], seen[range(WINDOW - STRIDE, WINDOW), ids[-STRIDE:]], atol=2e-5)


def test_an_answer_is_read_after_the_last_tokens_before_it(lm, model):
    ids = text(180)
    prompt, answer = Tokens("prompt", ids[:-5]), Tokens("answer", ids[-5:])
    ((likelihood, greedy),) = lm.loglikelihood([Instance("loglikelihood", {}, (prompt, answer), 0)])
    table = log_probabilities(model, ids[:-1][-WINDOW:])
    np.testing.assert_allclose(likelihood.tokens, table[range(WINDOW - 5, WINDOW), ids[-5:]].numpy(), atol=2e-5)
    best = table[WINDOW - 5 :].argmax(-1).tolist()
    assert greedy == (best == list(ids[-5:]))
    continued = (*ids[:-5], best[0])
    ((_, greedy),) = lm.loglikelihood([Instance("loglikelihood", {}, (prompt, Tokens("best", continued[-1:])), 0)])
    assert greedy


def test_an_answer_is_generated_after_the_last_tokens_and_seen_with_them(lm, model):
    ids = text(180)
    options = {"do_sample": False, "max_gen_toks": 6, "until": []}
    (ours,) = lm.generate_until([Instance("generate_until", {}, (Tokens("", ids), options), 0)])
    seen = list(ids[-(WINDOW - 6) :])
    for _ in range(6):
        seen.append(log_probabilities(model, seen)[-1].argmax().item())
    assert len(seen) == WINDOW and ours == lm.tokenizer.decode(seen[-6:], skip_special_tokens=True)
    lm.crop = None
    assert lm.generate_until([Instance("generate_until", {}, (Tokens("", ids), options), 0)]) != [ours]


def test_what_does_not_fit_the_length_under_test_is_still_refused(lm):
    lm.max_length = 100
    with pytest.raises(TooLong, match="needs 149 tokens of context and 100 are allowed"):
        rolling(lm, Tokens("", text(150)))


def test_windows_share_forwards_and_are_counted(lm):
    lm.reset_counts()
    rolling(lm, Tokens("", text(65 + 4 * STRIDE)))
    assert lm.forward_tokens == 5 * WINDOW and lm.scored_tokens == 64 + 4 * STRIDE
