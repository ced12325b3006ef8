"""Strategies of other people's code, against that code's arithmetic written out pair by pair."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from tiny_families import tiny_config
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

from rope.config import geometry_of, scaled_queries
from rope.geometry import Geometry, inverse_frequencies
from rope.patch import patched
from rope.rotation import query_scale
from rope.strategies import plan, plans

SHAPES = [Geometry(*shape) for shape in itertools.product((32, 64, 128), (1e4, 5e5), (512, 4096))]
FACTORS = (1.5, 4.0, 16.0)


def ramp(fast, slow, geometry):
    """(pairs,) 0 up to the pair of `fast` rotations, 1 from that of `slow` on: the published code's, pair by pair."""
    dim, base, trained = geometry.rotated, geometry.base, geometry.trained_length
    low, high = (dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (fast, slow))
    low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
    high = high + 0.001 if low == high else high
    return [min(max((pair - low) / (high - low), 0.0), 1.0) for pair in range(dim // 2)]


def part_ntk(geometry, scale, ntk_factor=1.0, extrapolation_factor=1.0, beta=(1.25, 0.75), gamma=(16.0, 2.0)):
    dim = geometry.rotated
    frequencies = []
    for pair, (interpolated, extrapolated) in enumerate(
        zip(ramp(*beta, geometry), ramp(*gamma, geometry), strict=True)
    ):
        plain = geometry.base ** (-2 * pair / dim)
        larger = (geometry.base * scale ** (dim / (dim - 2))) ** (-2 * pair / dim)
        share = (1 - interpolated) * ntk_factor
        mixed = plain / scale * (1 - share) + larger * share
        kept = (1 - extrapolated) * extrapolation_factor
        frequencies.append(mixed * (1 - kept) + plain * kept)
    return frequencies


@pytest.mark.parametrize("factor", FACTORS)
def test_part_ntk_is_yarns_own_code_pair_by_pair(factor):
    for geometry in SHAPES:
        length = int(factor * geometry.trained_length)
        wanted = part_ntk(geometry, factor)
        np.testing.assert_allclose(plan("part_ntk", geometry, length).inv_freq, wanted, rtol=1e-12)
        # by the running length, as LlamaDynamicPartNTKScaledRotaryEmbedding has it
        dynamic = plan("dynamic", geometry, length, over="part_ntk")
        np.testing.assert_allclose(dynamic.inv_freq, wanted, rtol=1e-12)
        assert plan("dynamic", geometry, geometry.trained_length, over="part_ntk") == geometry.native(2)
        options = {"ntk_factor": 0.5, "extrapolation_factor": 0.25}
        bounds = {"beta_0": 3.0, "beta_1": 0.5, "gamma_0": 64.0, "gamma_1": 1.0}
        wanted = part_ntk(geometry, factor, 0.5, 0.25, (3.0, 0.5), (64.0, 1.0))
        np.testing.assert_allclose(plan("part_ntk", geometry, length, **options, **bounds).inv_freq, wanted, rtol=1e-12)


def test_part_ntk_is_no_other_strategy():
    geometry = Geometry(128, 1e4, 4096)
    ours = np.array(plan("part_ntk", geometry, 16_384).inv_freq)
    for name, options in (("by_parts", {"ramp": "index", "beta_fast": 16.0, "beta_slow": 2.0}), ("ntk", {})):
        assert np.abs(ours / plan(name, geometry, 16_384, **options).inv_freq - 1).max() > 0.1


@pytest.mark.parametrize("clipped", [1, 2, 20, 64, 100])
def test_cope_fades_the_slowest_pairs_along_half_a_cosine_or_stops_them(clipped):
    geometry = Geometry(128, 5e5, 8192)
    plain = inverse_frequencies(128, 5e5)
    count, wanted = min(clipped, 64), plain.copy()
    for k in range(count):
        angle = math.pi * k / (count - 1) if count > 1 else 0.0
        wanted[64 - count + k] *= 0.5 * (1 + math.cos(angle))
    soft = plan("cope", geometry, 65_536, clip_low_n=clipped)
    np.testing.assert_allclose(soft.inv_freq, wanted, rtol=1e-12, atol=1e-20)
    hard = plan("cope", geometry, 65_536, clip_low_n=clipped, hard=True)
    assert hard.inv_freq == (*plain[: 64 - count].tolist(), *[0.0] * count)
    if clipped == 20:
        assert soft == plan("cope", geometry, 2)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, lambda m: 1 + 0.1 * math.log(1 + math.floor(m / 64))),  # Ministral 3, trained on 64 tokens
        (
            {"floor_scale": 40, "offset": 1, "attn_scale": 0.3},
            lambda m: math.log1p(math.floor((m + 1.0) / 40)) * 0.3 + 1.0,  # Llama 4
        ),
        (
            {"start": 0.0, "floor_scale": 1, "smooth": True, "attn_scale": 0.43},
            lambda m: 0.43 * math.log(m + 1),
        ),  # SSMax
        (
            {"start": 0.0, "floor_scale": 1, "smooth": True, "attn_scale": 1 / math.log(64)},
            lambda m: math.log(m + 1) / math.log(64),  # log-n, not clipped
        ),
        ({"smooth": True, "start": 0.5}, lambda m: 0.5 + 0.1 * math.log(1 + m / 64)),
    ],
    ids=["ministral3", "llama4", "ssmax", "logn", "smooth"],
)
def test_a_temperature_is_the_published_factor_of_every_position(options, wanted):
    chosen = plan("temperature", Geometry(16, 1e4, 64), 1000, **options)
    ours = query_scale(chosen.query_scale, torch.arange(1000))
    np.testing.assert_allclose(ours.numpy(), [wanted(m) for m in range(1000)], rtol=1e-6, atol=1e-7)


def test_ministrals_and_llama_4s_own_code_give_the_same_factors():
    positions = torch.arange(5000)
    theirs = get_llama_4_attn_scale(positions[None], 0.1, 512).flatten()
    ours = query_scale(plan("temperature", Geometry(16, 1e4, 512), 5000).query_scale, positions)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_a_temperature_in_steps_is_nothing_up_to_the_first_step_and_never_below_its_start():
    geometry = Geometry(16, 1e4, 64)
    assert plan("temperature", geometry, 64) == geometry.native(64)
    assert plan("temperature", geometry, 64, over="yarn", factor=4.0) == plan("yarn", geometry, 64, factor=4.0)
    for changed in ({"offset": 1}, {"smooth": True}, {"start": 1.1}, {"floor_scale": 63}):
        assert plan("temperature", geometry, 64, **changed) != geometry.native(64)
    assert plan("temperature", geometry, 64, offset=1).query_scale.offset == 1
    factors = query_scale(plan("temperature", geometry, 4096).query_scale, torch.arange(4096))
    assert (factors.diff() >= 0).all() and (factors[:64] == 1).all() and len(factors.unique()) == 64
    with pytest.raises(ValueError, match="start=0: give a finite number above 0"):
        plan("temperature", geometry, 512, start=0, attn_scale=0)


@settings(max_examples=60, deadline=None)
@given(
    slope=some.floats(0, 2),
    step=some.integers(1, 300),
    start=some.floats(0.1, 2),
    offset=some.integers(0, 50),
    smooth=some.booleans(),
)
def test_a_temperature_never_falls_and_in_steps_never_exceeds_the_smooth_one(slope, step, start, offset, smooth):
    options = {"attn_scale": slope, "floor_scale": step, "start": start, "offset": offset}
    geometry = Geometry(16, 1e4, 64)
    chosen = plan("temperature", geometry, 500, smooth=smooth, **options)
    assert chosen.inv_freq == geometry.native(500).inv_freq
    if chosen == geometry.native(500):
        assert start == 1 and (slope == 0 or (not smooth and 499 + offset < step))
        return
    factors = query_scale(chosen.query_scale, torch.arange(500))
    assert (factors.diff() >= 0).all() and factors[0] >= np.float32(start)
    if not smooth and (rising := plan("temperature", geometry, 500, smooth=True, **options)) != geometry.native(500):
        assert (factors <= query_scale(rising.query_scale, torch.arange(500))).all()


def test_nope_stops_every_pair_and_scales_the_softmax():
    geometry = Geometry(64, 1e4, 4096)
    chosen = plan("nope", geometry, 16_384, softmax_scale=0.412)
    assert chosen.inv_freq == (0.0,) * 32
    assert chosen.attention_factor**2 == pytest.approx(1 + 0.412 * math.log(4), rel=1e-14)
    assert plan("nope", geometry, 4096, softmax_scale=0.412).attention_factor == 1
    still = plan("nope", geometry, 16_384)
    for layers, key in (([1, 3], "all[1,3]"), (("0-1", 3), "all[0-1,3]"), ("2", "all[2]")):
        under = plan("yarn", geometry, 16_384)
        assert plans("nope", {"all": geometry}, 16_384, layers=layers, over="yarn") == (("all", under), (key, still))
    sliding = {"full_attention": geometry, "sliding_attention": geometry}
    native = ("sliding_attention", geometry.native(16_384))
    assert plans("nope", sliding, 16_384) == (("full_attention", still), native)


def test_a_model_whose_layers_do_not_rotate_attends_by_unrotated_products():
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    config.max_position_embeddings, tokens = 64, torch.arange(3, 93)[None]
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    chosen = plans("nope", geometry_of(config), 90, softmax_scale=0.4)
    with patched(model, chosen), torch.no_grad():
        ours = model(tokens).logits
    with torch.no_grad():
        states = model.model.embed_tokens(tokens)
        for layer in model.model.layers:
            normed = layer.input_layernorm(states)
            query, key, value = (
                getattr(layer.self_attn, f"{part}_proj")(normed).view(1, 90, 4, 16).transpose(1, 2) for part in "qkv"
            )
            scores = query @ key.mT / 4 * (1 + 0.4 * math.log(90 / 64))
            weights = scores.masked_fill(torch.ones(90, 90).triu(1).bool(), -torch.inf).softmax(-1)
            states = states + layer.self_attn.o_proj((weights @ value).transpose(1, 2).flatten(2))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        wanted = model.lm_head(model.model.norm(states))
        plain = model(tokens).logits
    torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-5)
    assert (plain - wanted).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": 7}, "layers=7: give a list of layer numbers and ranges from 0 on, such as [0-7, 12]"),
        ({"layers": []}, "layers=[]: give a list of layer numbers"),
        ({"layers": ["a"]}, "layers 'a': give layer numbers and ranges"),
        ({"layers": [1, 1]}, "layers '1,1': a layer is in it twice"),
        ({"layers": [0], "over": "rerope"}, "over changes attention itself, which all layers must do alike"),
        ({"softmax_scale": -1}, "softmax_scale=-1: give a finite number of at least 0"),
    ],
)
def test_nope_refuses_in_sentences(options, says):
    with pytest.raises(ValueError, match=r".") as refusal:
        plan("nope", Geometry(64, 1e4, 4096), 16_384, **options)
    assert says in str(refusal.value)
    with pytest.raises(ValueError, match=r"where 0\.5 of a head rotates: a plan scales no more than that"):
        plan("nope", Geometry(64, 1e4, 4096, partial=0.5), 16_384, softmax_scale=0.4)


@settings(max_examples=60, deadline=None)
@given(trained=some.integers(8, 2000), ratio=some.floats(0.1, 1.0), share=some.floats(0.05, 0.9))
def test_string_never_lengthens_a_distance_and_none_within_the_trained_length_is_new(trained, ratio, share):
    geometry, length = Geometry(16, 1e4, trained), max(2, int(ratio * trained))
    shifted = max(1, int(share * trained))
    chosen = plan("string", geometry, length, shifted_offset=shifted)
    regions = chosen.changes().get("regions", [])
    assert bool(regions) == (length > shifted)
    if regions:
        near, far = chosen.regions
        nearer = shifted - min(128, shifted // 4)
        assert near.until == far.since == shifted and far.query.at(length - 1) - far.key.at(0) == length - 1 - nearer
        assert chosen.reach(length) < length <= trained


def test_a_config_that_scales_its_queries_is_known_and_no_other():
    for family in ("ministral3", "llama", "smollm3"):
        said = scaled_queries(json.loads(tiny_config(family).to_json_string()))
        assert bool(said) == (family == "ministral3"), family
    qwen = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64}
    assert scaled_queries({**qwen, "use_logn_attn": True}) == "use_logn_attn=True"
    assert scaled_queries({**qwen, "use_logn_attn": False}) is None
