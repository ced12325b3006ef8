"""Long texts by rows, as the scorer sends them: same scores, told in provenance; whole where that is not possible."""

from __future__ import annotations

import copy
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_scorer import ids_of, requests_of

from pipelines.choices import estimate
from pipelines.models import find, load
from pipelines.records.cells import Model, frozen
from pipelines.tasks import forward
from pipelines.tasks.exact import Tokens
from pipelines.tasks.scorer import LongLM


@pytest.fixture(scope="module")
def model():
    return load.model(find.describe(Model("tiny", "models/tiny"))[0], "float32", "cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return load.tokenizer(find.describe(Model("tiny", "models/tiny"))[0])


def scored(lm, length=500):
    [value] = lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", (Tokens("", ids_of(length)),)))
    return value


@pytest.mark.parametrize("devices", [(), (torch.device("cpu"),) * 2], ids=["one device", "two"])
def test_a_long_text_by_rows_scores_what_it_scores_whole(model, tokenizer, devices):
    lm = LongLM(model, tokenizer, max_length=512, devices=devices)
    whole = scored(lm)
    assert lm.forward_pass.provenance() == {"forward": "whole"}
    lm.forward_pass.rows = 150
    by_rows = scored(lm)
    assert float(by_rows) == pytest.approx(float(whole), rel=1e-6)
    np.testing.assert_allclose(by_rows.tokens, whole.tokens, atol=1e-4)
    on = ", on 2 devices" if devices else ""
    assert lm.forward_pass.provenance() == {"forward": f"whole; layer by layer in chunks of 150 rows{on}"}


def test_texts_no_longer_than_a_chunk_go_whole(model, tokenizer):
    lm = LongLM(model, tokenizer, max_length=512)
    lm.forward_pass.rows = 499
    scored(lm)
    assert lm.forward_pass.provenance() == {"forward": "whole"}


def test_a_model_that_cannot_go_by_rows_goes_whole_and_says_why(model, tokenizer, monkeypatch):
    monkeypatch.setattr(forward, "KEPT", "_another")
    monkeypatch.setattr(model.config, "_attn_implementation", "eager")
    lm = LongLM(model, tokenizer, max_length=512)
    whole = scored(lm)
    lm.forward_pass.rows = 150
    assert float(scored(lm)) == float(whole)
    assert lm.forward_pass.provenance() == {"forward": "whole", "forward_reason": "its attention is eager, not sdpa"}


def test_both_ways_are_compared_once_a_model(model, tokenizer, monkeypatch):
    compared = []
    own = forward.ByRows.check
    monkeypatch.setattr(forward, "KEPT", "_counted")
    monkeypatch.setattr(forward.ByRows, "check", lambda by, vocabulary: (compared.append(1), own(by, vocabulary)))
    for _ in range(2):
        lm = LongLM(model, tokenizer, max_length=512)
        lm.forward_pass.rows = 150
        scored(lm), scored(lm, 400)
    assert len(compared) == 1


def test_a_model_goes_when_it_is_let_go_and_a_copy_has_its_own_layers_run(model, tokenizer):
    one = copy.deepcopy(model)
    for _ in range(2):
        lm = LongLM(one, tokenizer, max_length=512)
        lm.forward_pass.rows = 150
        scored(lm)
        other, gone = copy.deepcopy(one), weakref.ref(one)
        with torch.no_grad():
            other.model.layers[0].mlp.down_proj.weight.mul_(2.0)
        gc.disable()
        try:
            # lm-eval's class and the scorer's hold it, and nothing else
            del lm, one
            assert gone() is None
        finally:
            gc.enable()
        one = other
    lm = LongLM(one, tokenizer, max_length=512)
    whole = scored(lm)
    lm.forward_pass.rows = 150
    assert float(scored(lm)) == pytest.approx(float(whole), rel=1e-6)


def test_chunks_are_smaller_where_memory_is_short(model, monkeypatch):
    weights = sum(parameter.nbytes for parameter in model.parameters())
    lean = forward.Forward(model, 8192)
    monkeypatch.setattr(forward.memory, "limit", lambda: weights + 2**40)
    assert lean._rows(10**6) == forward.ROWS
    monkeypatch.setattr(forward.memory, "limit", lambda: weights + 4 * 20000 * 4 * 256 + 10**8)
    assert forward.FEWEST_ROWS <= lean._rows(20000) < forward.ROWS
    monkeypatch.setattr(forward.memory, "limit", lambda: weights)
    assert lean._rows(10**6) == forward.FEWEST_ROWS


def test_chunks_of_a_small_model_are_larger_on_one_gpu_as_the_estimate_says(model, monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(forward.Forward, "_device", lambda self: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**36))
    row = 4 * (3 * model.config.intermediate_size + 8 * model.config.hidden_size)
    rows = forward.Forward(model, 8192)._rows(10**6)
    assert rows * row <= forward.WORK < 2 * rows * row
    assert estimate.Shape.of(model.config.to_dict()).chunk(4, "cuda") == rows
    assert estimate.Shape.of(model.config.to_dict()).chunk(4, "cpu") == forward.ROWS
    assert forward.Forward(model, 8192, (gpu, gpu))._rows(10**6) == forward.ROWS  # there is something for each


def test_random_weights_are_drawn_on_the_device_that_computes():
    """8 billion numbers take minutes on a CPU, and more memory than this test has."""
    shape = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    built = load.model.__wrapped__(find.describe(Model("random", "random", shape=frozen(shape)))[0], "bfloat16", "meta")
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}
    assert built.num_parameters() > 6e9 and built.dtype == torch.bfloat16
