"""A text through a decoder in chunks of rows, against the same text whole."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo.exc
from transformers import AutoConfig, AutoModelForCausalLM

from rope import chunks, rows, strategies
from rope.attention import text_config
from rope.compiled import Compiled
from rope.config import geometry_of
from rope.patch import patched
from rope.rows import ByRows, NotByRows

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENGTH, ROWS = 700, 192
CPU = torch.device("cpu")

FAMILIES = {
    "grouped heads": ("llama", {}),
    "tied head, biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "window in every layer": ("mistral", {"sliding_window": 100}),
    "windows in some layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1}),
    "norms of queries and keys": ("qwen3", {}),
    "four norms, two rotations, windows": ("gemma3_text", {"sliding_window": 100}),
    "scaled embeddings": ("gemma", {}),
    "norms after": ("olmo2", {}),
    "one matrix for queries, keys and values": ("phi3", {}),
    "multipliers": ("granite", {"residual_multiplier": 0.3, "attention_multiplier": 0.2}),
    "attention and MLP side by side": ("cohere", {}),
    "layers without rotation": ("smollm3", {}),
    "experts": ("mixtral", {"num_local_experts": 4}),
}


def model_of(kind, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **changes})).eval()


@pytest.fixture(scope="module")
def llama():
    return model_of("llama")


def ids_of(length=LENGTH):
    return torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def whole(model, ids):
    return model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state


@torch.no_grad()
def nll(model, states, ids):
    logits = model.get_output_embeddings()(states[0, :-1]).double()
    return -logits.log_softmax(-1).gather(1, ids[0, 1:, None])


def assert_same(model, ours, ids, off=1e-6):
    expected, found = nll(model, whole(model, ids), ids), nll(model, ours, ids)
    assert float((found.mean() - expected.mean()).abs() / expected.mean()) < off
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "changes"), FAMILIES.values(), ids=FAMILIES)
def test_chunks_of_rows_score_what_whole_texts_score(kind, changes):
    model, ids = model_of(kind, **changes), ids_of()
    by = ByRows(model)
    by.check(256)
    assert_same(model, by.states(ids, ROWS), ids)


@pytest.mark.parametrize("count", [2, 3])
def test_devices_that_take_chunks_in_turn_score_what_one_scores(count):
    model, ids = model_of("gemma3_text", sliding_window=100), ids_of()
    by = ByRows(model, [CPU] * count)
    by.check(256)
    ran = [0] * count
    for place, layers in enumerate(by.copies):
        layers[0].mlp.register_forward_hook(lambda *_, place=place: ran.__setitem__(place, ran[place] + 1))
    ours = by.states(ids, 64)
    assert sum(ran) == 11 and max(ran) - min(ran) == 1, "chunks of the first layer, by device"
    assert_same(model, ours, ids)


@pytest.mark.parametrize(
    ("strategy", "devices"),
    [("yarn", 1), ("self_extend", 1), ("self_extend", 2), ("string", 1), ("streaming", 1), ("logn", 1)],
)
def test_plans_go_by_rows_too(strategy, devices):
    model, ids = model_of("llama", num_hidden_layers=1, max_position_embeddings=64), ids_of(300)
    with patched(model, strategies.plans(strategy, geometry_of(model.config), 300)):
        by = ByRows(model, [CPU] * devices)
        by.check(256)
        assert_same(model, by.states(ids, 128), ids)


def test_no_layer_sees_more_than_a_chunk(llama):
    seen = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
        for name, module in llama.named_modules()
        if name.endswith(("gate_proj", "q_proj", "k_proj", "norm"))
    ]
    try:
        ByRows(llama).states(ids_of(), ROWS)
    finally:
        for hook in hooks:
            hook.remove()
    # the whole model's last norm is called once, with all rows, and works on a chunk at a time
    assert sorted(set(seen)) == [LENGTH - 3 * ROWS, ROWS, LENGTH] and seen.count(LENGTH) == 1


def test_a_model_is_afterwards_as_before(llama):
    attention, ids = text_config(llama)._attn_implementation, ids_of()
    before = whole(llama, ids)
    ByRows(llama).states(ids, ROWS)
    assert text_config(llama)._attn_implementation == attention
    assert not [name for name, module in llama.named_modules() if "forward" in module.__dict__]
    assert torch.equal(whole(llama, ids), before)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gemma2", {"sliding_window": 100}, "its attention is eager"),
        ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2}, "no list of layers"),
    ],
    ids=["eager", "other names"],
)
def test_what_cannot_go_by_rows_is_refused_with_the_reason(kind, changes, reason):
    model = model_of(kind, **changes)
    with pytest.raises(NotByRows, match=reason):
        ByRows(model).check(256)


def test_an_attention_with_a_soft_cap_or_sinks_is_refused(llama):
    states = torch.zeros(1, 4, 8, 16)
    for name in ("softcap", "s_aux", "position_bias"):
        with pytest.raises(NotByRows, match=name):
            rows._causal(llama.model.layers[0].self_attn, states, states, states, None, **{name: torch.ones(4)})


def test_layers_that_mix_rows_are_found_out(llama):
    mixing = copy.deepcopy(llama)
    mlp = mixing.model.layers[1].mlp
    own = mlp.forward
    mlp.forward = lambda states: own(states).cumsum(1)
    with pytest.raises(NotByRows, match="compute something else"):
        ByRows(mixing).check(256)


def test_a_mask_that_is_no_window_is_refused():
    mask = rows._Windowed(lambda b, h, q, k: (k <= q) & (k // 64 == q // 64), 300)
    with pytest.raises(NotByRows, match="no window of 64"):
        mask.check(64, CPU)
    with pytest.raises(NotByRows, match="do not say what"):
        mask.check(None, CPU)


@pytest.mark.parametrize("window", [None, 1, 50, 1000])
@pytest.mark.parametrize("kernel", ["cpu", "blocks"])
def test_merged_parts_are_the_attention_of_all_keys(monkeypatch, kernel, window):
    monkeypatch.setattr(chunks, "_works", {})
    monkeypatch.setattr(chunks, "_candidates", lambda query: [kernel])
    monkeypatch.setattr(chunks, "BLOCK_ELEMENTS", 4000)
    monkeypatch.setattr(chunks, "WINDOW_ROWS", 64)
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 6, 150, 16), torch.randn(1, 2, 400, 16), torch.randn(1, 2, 400, 16)
    tokens, keys = torch.arange(250, 400)[:, None], torch.arange(400)
    seen = (keys <= tokens) & (keys > tokens - (window or 400))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=0.2, enable_gqa=True)
    torch.testing.assert_close(chunks.causal(query, key, value, 0.2, window), expected)


def test_a_kernel_that_does_not_work_here_is_passed_over(monkeypatch):
    monkeypatch.setattr(chunks, "_works", {})
    monkeypatch.setattr(chunks, "_candidates", lambda query: ["cudnn", "flash", "efficient", "blocks"])
    query = torch.randn(1, 2, 8, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    torch.testing.assert_close(chunks.causal(query, query, query, 0.25), expected)
    assert set(chunks._works.values()) == {"blocks"}


def test_without_a_compiler_layers_run_as_they_are_and_say_so(llama, monkeypatch):
    def broken(function):
        def call(*args, **kwargs):
            raise torch._dynamo.exc.BackendCompilerFailed(None, RuntimeError("no C++ compiler"), None)

        return call

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(rows, "_COMPILED", {})
    monkeypatch.setattr(chunks, "_compiled_merge", Compiled(chunks._merge))
    by, ids = ByRows(llama, compiled=True), ids_of()
    assert_same(llama, by.states(ids, ROWS), ids)
    assert not by.compiled and "no C++ compiler" in by.uncompiled


def test_an_error_of_a_layer_is_not_taken_for_one_of_the_compiler():
    def wrong(number):
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        Compiled(wrong)(1)


@pytest.mark.slow
def test_compiled_layers_score_what_layers_score(llama):
    by, ids = ByRows(llama, compiled=True), ids_of(3 * ROWS)
    assert_same(llama, by.states(ids, ROWS), ids)
    assert by.compiled, by.uncompiled
