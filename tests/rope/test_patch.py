"""Plans in live models: what they change, and that nothing of them stays."""

from __future__ import annotations

import gc
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from rope.config import geometry_of
from rope.geometry import Plan
from rope.patch import Reading, apply, patched, read
from rope.strategies import plans

TRAINED = 64
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": TRAINED,
    "initializer_range": 0.1,  # enough for attention to care where a token stands
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PLAIN = {"rope_theta": 10_000.0, "rope_type": "default"}
DYNAMIC = {"rope_theta": 10_000.0, "rope_type": "dynamic", "factor": 2.0}
LLAMA3 = {
    "rope_theta": 500_000.0,
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LLAMA3 |= {"original_max_position_embeddings": 32}
LINEAR = {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
YARN = {"rope_theta": 10_000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


pytestmark = pytest.mark.usefixtures("one_thread")


def llama(rope_parameters=PLAIN, **sizes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | sizes, rope_parameters=dict(rope_parameters))).eval()


def gemma(full=LINEAR):
    torch.manual_seed(0)
    by_type = {"full_attention": dict(full), "sliding_attention": PLAIN}
    config = Gemma3TextConfig(
        **SHAPE, sliding_window=16, layer_types=["sliding_attention", "full_attention"], rope_parameters=by_type
    )
    return Gemma3ForCausalLM(config).eval()


def logits(model, length=2 * TRAINED, plans=None, reading=None):
    ids = torch.arange(length)[None] * 7 % SHAPE["vocab_size"]
    with torch.no_grad(), nullcontext() if plans is None else patched(model, plans, reading):
        return model(ids).logits


def of(model, strategy, length=2 * TRAINED, **options):
    return plans(strategy, geometry_of(model.config), length, **options)


def reading_of(model, length=2 * TRAINED):
    return Reading(geometry_of(model.config), length)


def buffers(model):
    return {name: (id(buffer), buffer.clone()) for name, buffer in model.named_buffers()}


def same(before, after):
    return before.keys() == after.keys() and all(
        before[name][0] == after[name][0] and torch.equal(before[name][1], after[name][1]) for name in before
    )


@pytest.mark.parametrize("parameters", [PLAIN, LLAMA3, YARN], ids=lambda p: p["rope_type"])
def test_the_native_plan_changes_no_bit(parameters):
    model = llama(parameters)
    assert torch.equal(logits(model), logits(model, plans=of(model, "none")))


def test_a_strategy_changes_logits_beyond_the_trained_length_and_none_within():
    model = llama()
    assert (logits(model) - logits(model, plans=of(model, "yarn"))).abs().max() > 1e-2
    within = of(model, "yarn", TRAINED)
    assert torch.equal(logits(model, TRAINED), logits(model, TRAINED, within))


def test_what_is_read_is_what_was_written_rounded_once():
    model = llama()
    with patched(model, of(model, "yarn")):
        ((layer_type, held),) = read(model)
    ((_, plan),) = of(model, "yarn")
    assert layer_type == "all" and held.attention_factor == plan.attention_factor
    assert held.inv_freq == tuple(np.array(plan.inv_freq).astype(np.float32).astype(float).tolist())
    assert read(model)[0][1].attention_factor == 1.0 and read(model)[0][1] != held


@pytest.mark.parametrize("make", [llama, gemma, lambda: llama(DYNAMIC)], ids=["llama", "gemma3", "dynamic"])
def test_everything_is_as_before_once_the_block_ends(make):
    model = make()
    module = model.model.rotary_emb
    before, attributes, keys = logits(model, TRAINED), dict(vars(module)), list(model.state_dict())
    held = buffers(model)
    with pytest.raises(RuntimeError, match="in the middle"), patched(model, of(model, "yarn")) as inside:
        assert inside is model and not same(held, buffers(model))
        assert list(model.state_dict()) == keys
        logits(model, 4 * TRAINED)
        raise RuntimeError("in the middle")
    assert same(held, buffers(model)) and list(model.state_dict()) == keys
    after = dict(vars(module))
    assert after.keys() == attributes.keys()
    assert all(after[k] is attributes[k] or after[k] == attributes[k] for k in after if not k.startswith("_"))
    assert torch.equal(before, logits(model, TRAINED))


def test_blocks_nest_and_unwind_in_order():
    model = llama()
    with patched(model, of(model, "linear")):
        outer = logits(model)
        with patched(model, of(model, "yarn")):
            assert not torch.equal(outer, logits(model))
        assert torch.equal(outer, logits(model))


@pytest.mark.parametrize("parameters", [PLAIN, DYNAMIC], ids=["plain", "dynamic"])
def test_the_order_of_lengths_does_not_matter(parameters):
    lengths = [2 * TRAINED, 4 * TRAINED, 2 * TRAINED, TRAINED, 2 * TRAINED]
    model = llama(parameters)
    seen = {}
    for length in lengths:
        result = logits(model, length, of(model, "dynamic_ntk", length, rule="transformers", factor=2.0))
        fresh = llama(parameters)
        assert torch.equal(
            result, logits(fresh, length, of(fresh, "dynamic_ntk", length, rule="transformers", factor=2.0))
        )
        assert torch.equal(result, seen.setdefault(length, result))


def test_a_dynamic_model_left_alone_does_depend_on_the_order():
    # what the test above guards against is real
    model = llama(DYNAMIC)
    short = logits(model, 2 * TRAINED)
    logits(model, 4 * TRAINED)
    assert not torch.equal(short, logits(model, 2 * TRAINED))


@pytest.mark.parametrize("make", [llama, gemma], ids=["llama", "gemma3"])
def test_none_is_a_dynamic_model_as_transformers_runs_it_at_that_length(make):
    grown, ids = make(DYNAMIC), torch.arange(TRAINED)[None] * 7 % SHAPE["vocab_size"]
    logits(grown, 8 * TRAINED)  # what it ran before must not matter
    for length in (TRAINED, 2 * TRAINED, 4 * TRAINED):
        alone = logits(make(DYNAMIC), length)
        assert torch.equal(alone, logits(grown, length, of(grown, "none", length), reading_of(grown, length)))
        with patched(grown, of(grown, "none", length), reading_of(grown, length)), torch.no_grad():
            short = grown(ids).logits
            grown(torch.arange(8 * TRAINED)[None] % SHAPE["vocab_size"])
            assert torch.equal(short, grown(ids).logits), "a plan holds for every text inside"
    assert not torch.equal(alone, logits(make(PLAIN), length))
    if make is gemma:
        assert grown.model.rotary_emb.rope_type == {"full_attention": "dynamic", "sliding_attention": "default"}


def test_a_strategy_takes_the_place_of_a_dynamic_scaling():
    dynamic, plain = llama(DYNAMIC), llama()
    for strategy in ("linear", "yarn", "ntk", "dynamic_ntk", "self_extend"):
        chosen = of(dynamic, strategy)
        assert chosen == of(plain, strategy)
        ours = logits(dynamic, plans=chosen, reading=reading_of(dynamic))
        assert torch.equal(ours, logits(plain, plans=chosen, reading=reading_of(plain)))


def test_a_longrope_model_keeps_the_given_plan_on_both_sides_of_its_switch():
    divisors = {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16, "rope_type": "longrope", "rope_theta": 1e4}
    torch.manual_seed(0)
    config = Phi3Config(**SHAPE, original_max_position_embeddings=32, rope_parameters=divisors)
    model = Phi3ForCausalLM(config).eval()
    short, long = of(model, "none", 32), of(model, "none", 33)
    assert short != long
    assert torch.equal(logits(model, 32), logits(model, 32, short))
    torch.testing.assert_close(logits(model, 64), logits(model, 64, long), atol=1e-4, rtol=0)
    assert (logits(model, 32) - logits(model, 32, long)).abs().max() > 1e-2
    assert (logits(model, 64) - logits(model, 64, short)).abs().max() > 1e-2


def test_a_model_cast_to_bfloat16_gets_its_frequencies_in_float32():
    model = llama().to(torch.bfloat16)
    buffer = model.model.rotary_emb.inv_freq
    assert buffer.dtype == torch.bfloat16
    with patched(model, of(model, "none")):
        held = model.model.rotary_emb.inv_freq
        assert held.dtype == torch.float32
        torch.testing.assert_close(held, llama().model.rotary_emb.inv_freq, rtol=2e-7, atol=0)
        assert logits(model).dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq is buffer


def test_frequencies_that_bfloat16_holds_exactly_are_in_float32_too():
    bare = torch.nn.Module()
    bare.register_buffer("inv_freq", torch.tensor([1.0, 0.5], dtype=torch.bfloat16))
    with patched(bare, (("all", Plan((1.0, 0.5))),)):
        assert bare.inv_freq.dtype == torch.float32
    assert bare.inv_freq.dtype == torch.bfloat16


def test_layer_types_get_their_own_plans():
    model = gemma()
    chosen = of(model, "yarn")
    with patched(model, chosen):
        held = dict(read(model))
    for layer_type, plan in chosen:
        np.testing.assert_allclose(held[layer_type].inv_freq, plan.inv_freq, rtol=1e-6)
        assert held[layer_type].attention_factor == plan.attention_factor
    before = dict(read(model))
    assert held["sliding_attention"] == before["sliding_attention"] != held["full_attention"]
    assert torch.equal(logits(model), logits(model, plans=of(model, "none")))
    assert (logits(model) - logits(model, plans=chosen)).abs().max() > 1e-3


def test_a_refusal_changes_nothing():
    model, wide = llama(), Plan((1.0,) * 32)
    held = buffers(model)
    for plan, says in [
        ((("all", wide),), "has 32 inverse frequencies and LlamaRotaryEmbedding rotates 16 pairs; make the plan from"),
        ((("full_attention", wide),), "for all, and plans were given for full_attention; give one for all"),
        ((), "plans were given for no layer type"),
    ]:
        with pytest.raises(ValueError, match=says), patched(model, plan):
            raise AssertionError("must not be entered")
    model = gemma()
    good = dict(of(model, "none"))
    bad = (("full_attention", good["full_attention"]), ("sliding_attention", wide))
    with pytest.raises(ValueError, match="the plan for sliding_attention has 32"), patched(model, bad):
        raise AssertionError("must not be entered")
    model = llama()
    held = buffers(model)
    model.model.rotary_emb.cos_cached = torch.ones(1)
    with pytest.raises(ValueError, match="caches its cosines"), patched(model, of(model, "yarn")):
        raise AssertionError("must not be entered")
    assert same(held, buffers(model))


def test_a_model_without_rotary_modules_is_refused():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=8, n_positions=8))
    for refused in (lambda: read(model), lambda: patched(model, (("all", Plan((1.0,))),)).__enter__()):
        with pytest.raises(ValueError, match="GPT2LMHeadModel has no rotary module"):
            refused()


def test_modules_that_disagree_are_not_read_as_one():
    layers = torch.nn.ModuleList([torch.nn.Module(), torch.nn.Module()])
    for layer, inv_freq in zip(layers, (1.0, 0.5), strict=True):
        layer.register_buffer("inv_freq", torch.tensor([inv_freq]))
    with pytest.raises(
        ValueError, match="the rotary modules of ModuleList hold different plans for all; read them one"
    ):
        read(layers)
    with patched(layers, (("all", Plan((0.25,))),)):
        assert read(layers) == (("all", Plan((0.25,))),)


def test_a_module_without_a_scaling_takes_no_attention_factor():
    bare = torch.nn.Module()
    bare.register_buffer("inv_freq", torch.ones(2))
    model = torch.nn.ModuleList([bare])
    with patched(model, (("all", Plan((0.5, 0.25))),)):
        assert bare.inv_freq.tolist() == [0.5, 0.25]
    with (
        pytest.raises(ValueError, match="has no attention_scaling"),
        patched(model, (("all", Plan((0.5, 0.25), 1.1)),)),
    ):
        raise AssertionError("must not be entered")


def test_only_the_rotary_modules_of_the_language_model_are_touched():
    model = llama()
    tower = torch.nn.Module()
    tower.register_buffer("inv_freq", torch.ones(5))
    model.tower = tower
    with patched(model, of(model, "yarn")):
        assert tower.inv_freq.tolist() == [1.0] * 5
    tower.attention_scaling, tower.config = 1.0, object()
    assert read(model) == read(llama())
    bare, scaled = torch.nn.Module(), torch.nn.Module()
    for module in (bare, scaled):
        module.register_buffer("inv_freq", torch.ones(2))
    scaled.attention_scaling = 1.0
    with patched(torch.nn.ModuleList([bare, scaled]), (("all", Plan((0.5, 0.25))),)):
        assert (bare.inv_freq.tolist(), scaled.inv_freq.tolist()) == ([1.0, 1.0], [0.5, 0.25])


def per_layer(model, layers, **options):
    return of(model, "per_layer", layers=layers, **options)


def by_hand(model, plans_of_layers):
    """Logits of a Llama whose layers are run one by one, each with the cosines and sines of its own plan."""
    ids = torch.arange(2 * TRAINED)[None] * 7 % SHAPE["vocab_size"]
    positions = torch.arange(ids.shape[1])[None]
    inner = model.model
    mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        states = inner.embed_tokens(ids)
        for layer, plan in zip(inner.layers, plans_of_layers, strict=True):
            with patched(model, (("all", plan),)):
                angles = inner.rotary_emb(states, positions)
            states = layer(states, attention_mask=mask, position_ids=positions, position_embeddings=angles)
        return model.lm_head(inner.norm(states))


def test_single_layers_run_under_their_own_plans():
    model = llama()
    chosen = per_layer(model, {"1": 8.0}, over="yarn", factor=2.0)
    ((_, first), (_, second)) = chosen
    assert first != second
    result = logits(model, plans=chosen)
    torch.testing.assert_close(result, by_hand(model, [first, second]), atol=2e-5, rtol=0)
    assert (result - by_hand(model, [second, first])).abs().max() > 1e-3
    assert (result - logits(model, plans=(("all", first),))).abs().max() > 1e-3


def test_layers_between_knots_run_under_factors_between_theirs():
    model = llama(num_hidden_layers=3)
    chosen = of(model, "per_layer", over="yarn", knots={0: 8, 2: 2})
    layers = [dict(of(model, "yarn", factor=factor))["all"] for factor in (8.0, 4.0, 2.0)]
    result = logits(model, plans=chosen)
    torch.testing.assert_close(result, by_hand(model, layers), atol=2e-5, rtol=0)
    assert (result - by_hand(model, layers[::-1])).abs().max() > 1e-3


def test_groups_that_name_all_layers_are_the_plan_for_all():
    model = llama()
    whole = logits(model, plans=of(model, "yarn", factor=4.0))
    for layers in ({"0-1": 4.0}, {"0": 4.0, "1": 4.0}):
        assert torch.equal(whole, logits(model, plans=per_layer(model, layers, over="yarn", factor=2.0)))
    native = logits(model)
    assert torch.equal(native, logits(model, plans=per_layer(model, {"0,1": 1}, over="yarn")))


def test_plans_of_single_layers_leave_with_the_block_and_yield_to_one_within():
    model = llama()
    before, held = logits(model), buffers(model)
    apart, plain = per_layer(model, {"0": 8.0}), of(model, "yarn")
    alone = logits(model, plans=plain)
    with patched(model, apart):
        outer = logits(model)
        assert torch.equal(logits(model, plans=plain), alone)
        assert torch.equal(logits(model), outer)
    assert torch.equal(before, logits(model)) and same(held, buffers(model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not torch.equal(outer, alone)


def test_single_layers_of_one_type_get_their_own_plans():
    model = gemma(PLAIN)
    chosen = per_layer(model, {"0-1": 8.0})
    assert [layers for layers, _ in chosen] == ["full_attention", "full_attention[0-1]", "sliding_attention"]
    plain = dict(chosen)
    whole = (("full_attention", plain["full_attention[0-1]"]), ("sliding_attention", plain["sliding_attention"]))
    assert torch.equal(logits(model, plans=chosen), logits(model, plans=whole))  # layer 0 slides
    with pytest.raises(ValueError, match="none of these layers is of the type full_attention"):
        logits(model, plans=per_layer(model, {"0": 8.0}))


def test_layers_that_the_model_does_not_have_are_refused_before_anything_changes():
    model = llama()
    held = buffers(model)
    with pytest.raises(
        ValueError, match=r"all\[1-2\] names layer 2, and LlamaForCausalLM has 2 layers whose attention"
    ):
        logits(model, plans=per_layer(model, {"1-2": 8.0}))
    ((_, plan),) = of(model, "none")
    with pytest.raises(ValueError, match="has 0 rotary modules for full_attention; give plans for layers of all"):
        logits(model, plans=(("all", plan), ("full_attention[0]", plan)))
    with pytest.raises(ValueError, match="has 32 inverse frequencies"):
        logits(model, plans=(("all", plan), ("all[0]", Plan((1.0,) * 32))))
    assert same(held, buffers(model))


def test_applied_plans_stay_until_they_are_undone():
    model = llama()
    before, held = logits(model), buffers(model)
    for strategy, options in (("yarn", {}), ("per_layer", {"layers": {"0": 8.0}}), ("rerope", {})):
        chosen = of(model, strategy, **options)
        wanted = logits(model, plans=chosen)
        undo = apply(model, chosen)
        gc.collect()
        assert torch.equal(logits(model), wanted)
        assert torch.equal(logits(model, plans=of(model, "none")), before)
        assert torch.equal(logits(model), wanted)
        undo()
        assert torch.equal(logits(model), before) and same(held, buffers(model))


def test_applied_plans_replace_those_applied_before():
    model = llama()
    wanted = logits(model, plans=of(model, "yarn"))
    for strategy, options in (("per_layer", {"layers": {"0": 8.0}}), ("rerope", {}), ("linear", {})):
        apply(model, of(model, strategy, **options))
        gc.collect()
        apply(model, of(model, "yarn"))
        assert torch.equal(logits(model), wanted)


def test_a_refusal_to_apply_changes_nothing():
    model = llama()
    before, held = logits(model), buffers(model)
    ((_, pairwise),) = of(model, "rerope")
    with pytest.raises(ValueError, match="give the same one for every layer"):
        apply(model, (("all", pairwise), ("all[0]", of(model, "yarn")[0][1])))
    assert torch.equal(logits(model), before) and same(held, buffers(model))
