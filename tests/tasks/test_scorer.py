"""LongLM scores as lm-eval's own model does, without its memory, its rounding and its truncation."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from pipelines.records.cells import Refusal
from pipelines.tasks import scorer
from pipelines.tasks.exact import LogLikelihood, Spans, Tokens
from pipelines.tasks.scorer import LongLM, TooLong, batches

PAIRS = [
    ("The quick brown fox", " jumps over the lazy dog"),
    ("The quick brown fox", " sleeps"),
    ("", "alone"),
    ("one two three ", "four"),
    ("a" * 150, "b" * 20),
    ("The quick brown fox", " jumps over the lazy cat"),
]
STRINGS = ["short", "a text of more than one window. " * 12, "exactly" * 10]
SIZES = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def lm(model, tokenizer):
    return LongLM(model, tokenizer, max_length=256)


def requests_of(kind, *arguments):
    return [Instance(kind, {}, tuple(one), 0) for one in arguments]


def expected(model, ids, dtype=torch.float32):
    """Log-probabilities of ids[1:] given ids[:-1], from the whole model's own logits."""
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0].to(dtype)
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def ids_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


# ------------------------------------------------------------------------------------------------ as the stock model


def test_log_likelihoods_are_those_of_the_stock_model(lm, model, tokenizer):
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=256)
    requests = requests_of("loglikelihood", *PAIRS)
    ours, theirs = lm.loglikelihood(requests), stock.loglikelihood(requests, disable_tqdm=True)
    assert [float(value) for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=1e-5)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


@pytest.mark.parametrize("max_length", [64, 256])
def test_rolling_log_likelihoods_are_those_of_the_stock_model(lm, model, tokenizer, max_length):
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=max_length)
    lm.max_length = max_length
    requests = requests_of("loglikelihood_rolling", *[(string,) for string in STRINGS])
    ours, theirs = lm.loglikelihood_rolling(requests), stock.loglikelihood_rolling(requests, disable_tqdm=True)
    assert [float(value) for value in ours] == pytest.approx(theirs, rel=1e-5)
    assert [len(value.tokens) for value in ours] == [len(string) for string in STRINGS]


def test_greedy_is_whether_the_model_would_generate_the_same_text(lm, model):
    context = ids_of(20)
    with torch.no_grad():
        best = model.generate(torch.tensor([context]), max_new_tokens=6, do_sample=False, pad_token_id=257)[0].tolist()
    said, other = best[20:], [*best[20:25], (best[25] + 1) % 256]
    answers = lm._loglikelihood_tokens([(None, context, said), (None, context, other)])
    assert [greedy for _, greedy in answers] == [True, False]


def test_generation_is_that_of_the_stock_model_and_takes_tokens_as_they_are(lm, model, tokenizer):
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=256)
    options = {"do_sample": False, "max_gen_toks": 8, "until": []}
    requests = requests_of("generate_until", ("The pass key is", options), ("Once upon", options))
    assert lm.generate_until(requests) == stock.generate_until(requests, disable_tqdm=True)
    ids = tokenizer.encode("The pass key is")
    unlike = Tokens("another text", ids)
    assert lm.generate_until(requests_of("generate_until", (unlike, options))) == lm.generate_until(requests[:1])


# -------------------------------------------------------------------------------------------------- tokens, exactly


def test_a_log_likelihood_is_a_float_that_keeps_its_terms(lm):
    for value, _ in lm.loglikelihood(requests_of("loglikelihood", *PAIRS)):
        assert isinstance(value, float) and value.tokens.dtype == np.float32
        assert float(value) == pytest.approx(value.tokens.sum(dtype=np.float64), rel=1e-12)
        for again in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
            assert again == value and np.array_equal(again.tokens, value.tokens)


def test_tokens_are_scored_in_one_forward_all_but_the_first(lm, model):
    lm.max_length = 500
    ids = ids_of(300)
    [value] = lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", (Tokens("anything", ids),)))
    np.testing.assert_allclose(value.tokens, expected(model, ids), rtol=1e-5, atol=1e-5)


def test_tokens_as_context_and_continuation_are_scored_as_they_are(lm, model):
    ids = ids_of(50)
    pair = Tokens("con", ids[:40]), Tokens("tinuation", ids[40:])
    [(value, _)] = lm.loglikelihood(requests_of("loglikelihood", pair))
    np.testing.assert_allclose(value.tokens, expected(model, ids)[-10:], rtol=1e-5, atol=1e-5)


def test_tokens_stay_strings_that_carry_their_ids_through_copies():
    tokens = Tokens("text", [1, 2])
    assert tokens == "text" and isinstance(tokens, str)
    assert copy.deepcopy(tokens).ids == pickle.loads(pickle.dumps(tokens)).ids == (1, 2)


def test_half_precision_logits_are_normalised_and_summed_in_float(tiny_folder, tokenizer):
    half = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16).eval()
    ids = ids_of(200)
    request = requests_of("loglikelihood_rolling", (Tokens("", ids),))
    [value] = LongLM(half, tokenizer, max_length=256).loglikelihood_rolling(request)
    assert float(value) == pytest.approx(float(expected(half, ids).sum(dtype=np.float64)), rel=1e-6)


# ------------------------------------------------------------------------------------------------ memory and batches


def test_logits_are_never_held_for_more_rows_than_requested(lm, model):
    rows = []
    lm.head_rows = 32
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape))
    try:
        [value] = lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", (Tokens("", ids_of(250)),)))
    finally:
        hook.remove()
    assert len(value.tokens) == 249
    assert [shape[0] for shape in rows] == [32] * 7 + [25] and {len(shape) for shape in rows} == {2}


def test_windows_of_long_documents_are_cut_as_they_are_scored(lm, monkeypatch):
    """64 tokens at a time here; the two documents have 250 windows, of 16,000 tokens."""
    monkeypatch.setattr(scorer, "WINDOW_TOKENS", 64)
    document = Spans("", ids_of(1000), [(start, start + 64, 8) for start in range(0, 1000 - 64, 8)])
    cut, most, score = 0, 0, lm._loglikelihood_tokens

    def counted(text):
        nonlocal cut
        for window in LongLM._windows(lm, text):
            cut += 1
            yield window

    def watched(windows, *arguments):
        nonlocal cut, most
        most, cut = max(most, cut), 0
        return score(windows, *arguments)

    monkeypatch.setattr(lm, "_windows", counted)
    monkeypatch.setattr(lm, "_loglikelihood_tokens", watched)
    bounded = lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", (document,), (document,)))
    assert most <= 2, "one to score, and one that did not fit with it"
    monkeypatch.undo()
    assert [len(value.tokens) for value in bounded] == [8 * len(document.spans)] * 2
    for value in bounded:
        np.testing.assert_allclose(
            value.tokens, lm.loglikelihood_rolling(requests_of("", (document,)))[0].tokens, rtol=1e-4
        )


def test_only_scored_rows_reach_the_head(lm, model):
    rows = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[0]))
    try:
        lm._loglikelihood_tokens([(None, ids_of(200), [1, 2, 3])])
    finally:
        hook.remove()
    assert rows == [3]


def test_batches_change_no_score(model, tokenizer):
    requests = requests_of("loglikelihood", *PAIRS)
    alone = LongLM(model, tokenizer, max_length=256, batch_tokens=1).loglikelihood(requests)
    together = LongLM(model, tokenizer, max_length=256, batch_tokens=4096).loglikelihood(requests)
    assert [float(a) for a, _ in alone] == pytest.approx([float(b) for b, _ in together], rel=1e-6)


def test_what_meets_in_a_batch_does_not_depend_on_the_order_of_requests(lm):
    forth, back = (
        lm.loglikelihood(requests_of("loglikelihood", *PAIRS)),
        lm.loglikelihood(requests_of("loglikelihood", *PAIRS[::-1])),
    )
    assert forth == back[::-1]
    rows = [tuple(ids_of(n, n)) for n in (3, 9, 4, 9, 1, 30)]
    made = list(batches(rows, 20))
    assert made == list(batches(rows[::-1], 20))
    assert sorted(row for batch in made for row in batch) == sorted(rows)
    assert all(len(batch) == 1 or max(map(len, batch)) * len(batch) <= 20 for batch in made)


def test_requests_that_differ_in_the_last_token_share_a_forward(lm):
    context = ids_of(30)
    answers = lm._loglikelihood_tokens([(None, context, [token]) for token in range(4)])
    assert lm.forward_tokens == 30 and lm.scored_tokens == 4
    assert len({float(value) for value, _ in answers}) == 4


def test_tokens_are_counted_until_reset(lm):
    lm.loglikelihood_rolling(
        requests_of("loglikelihood_rolling", (Tokens("", ids_of(100)),), (Tokens("", ids_of(50)),))
    )
    assert (lm.scored_tokens, lm.forward_tokens) == (99 + 49, 99 + 49)
    lm.generate_until(requests_of("generate_until", ("abcde", {"do_sample": False, "max_gen_toks": 4, "until": []})))
    assert lm.forward_tokens == 99 + 49 + 5 + 4
    lm.reset_counts()
    assert (lm.scored_tokens, lm.forward_tokens) == (0, 0)


# ------------------------------------------------------------------------------------------------------- truncation


def test_nothing_is_truncated(lm):
    ids = ids_of(258)
    # The last token is only scored: 257 ids take 256 tokens of context.
    assert (
        len(lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", (Tokens("", ids[:257]),)))[0].tokens) == 256
    )
    with pytest.raises(TooLong, match=r"needs 257 tokens of context and 256 are allowed") as refused:
        lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", (Tokens("", ids),)))
    assert (refused.value.needed, refused.value.allowed) == (257, 256)
    with pytest.raises(TooLong):
        lm.loglikelihood(requests_of("loglikelihood", ("a" * 250, "b" * 8)))
    options = {"do_sample": False, "max_gen_toks": 10, "until": []}
    with pytest.raises(TooLong, match="needs 260 tokens"):
        lm.generate_until(requests_of("generate_until", ("a" * 250, options)))
    with pytest.raises(TooLong, match="needs 303 tokens"):
        lm.generate_until(requests_of("generate_until", ("abc", {**options, "max_gen_toks": 300})))
    with pytest.raises(TooLong):
        lm.tok_encode("a" * 10, left_truncate_len=9)
    with pytest.raises(TooLong):
        lm.tok_batch_encode(["a" * 10], left_truncate_len=9)


def test_too_little_to_score_is_refused(lm):
    with pytest.raises(Refusal, match="at least 2"):
        lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", (Tokens("x", [1]),)))
    with pytest.raises(Refusal, match="at least 1 token of context"):
        lm._loglikelihood_tokens([(None, [1, 2], [])])
    with pytest.raises(Refusal, match="max_length=0"):
        lm.max_length = 0


# -------------------------------------------------------------------------------------------------------------- BOS


def test_bos_is_added_on_request_and_otherwise_where_the_tokenizer_adds_it(model, tokenizer):
    def begins(bos):
        return LongLM(model, tokenizer, max_length=256, bos=bos).tok_encode("ab")[:1] == [256]

    assert [begins(bos) for bos in (None, True, False)] == [False, True, False]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    assert [begins(bos) for bos in (None, True, False)] == [True, True, False]
    assert LongLM(model, tokenizer, max_length=256, bos=True).tok_encode("<s>ab")[:2] != [256, 256]


def test_a_bos_that_does_not_exist_is_refused(model, tokenizer):
    tokenizer.bos_token = None
    with pytest.raises(Refusal, match="no BOS token"):
        LongLM(model, tokenizer, max_length=256, bos=True)


# ------------------------------------------------------------------------------------- models that change their logits


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SIZES, final_logit_softcapping=3.0, query_pre_attn_scalar=16),
        CohereConfig(**{key: value for key, value in SIZES.items() if key != "head_dim"}, logit_scale=0.0625),
        GraniteConfig(**{key: value for key, value in SIZES.items() if key != "head_dim"}, logits_scaling=8.0),
    ],
    ids=lambda config: config.model_type,
)
def test_scales_and_soft_caps_are_the_models_own(config, tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    lm = LongLM(model, tokenizer, max_length=256)
    assert lm.head == "chunked", lm.head_reason
    ids = ids_of(60)
    [value] = lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", (Tokens("", ids),)))
    np.testing.assert_allclose(value.tokens, expected(model, ids), rtol=2e-5, atol=2e-5)
    lm._scale, lm._cap = 1.0, None
    [plain] = lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", (Tokens("", ids),)))
    assert abs(float(plain) - float(value)) > 0.1


@pytest.mark.parametrize("head", ["logits_to_keep", "full"])
def test_a_head_that_is_more_than_known_is_left_to_the_model(tiny_folder, tokenizer, head):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    whole = model.forward

    def doubled(input_ids, use_cache=True, logits_to_keep=0):
        output = whole(input_ids=input_ids, use_cache=use_cache, logits_to_keep=logits_to_keep)
        output.logits = output.logits * 2
        return output

    def deaf(input_ids, use_cache=True):
        return doubled(input_ids)

    model.forward = doubled if head == "logits_to_keep" else deaf
    lm = LongLM(model, tokenizer, max_length=256)
    assert lm.head == head and "does more to its logits" in lm.head_reason
    ids, short = ids_of(60), ids_of(20, seed=1)
    answers = lm._loglikelihood_tokens([(None, ids[:50], ids[50:]), (None, short[:5], short[5:])])
    np.testing.assert_allclose(answers[0][0].tokens, expected(model, ids)[-10:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(answers[1][0].tokens, expected(model, short)[-15:], rtol=1e-5, atol=1e-5)


def test_a_model_that_diverged_gives_no_number(lm, model):
    weight = model.model.norm.weight
    saved = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        [value] = lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", (Tokens("", ids_of(10)),)))
    finally:
        with torch.no_grad():
            weight.copy_(saved)
    assert isinstance(value, LogLikelihood) and np.isnan(float(value))
