"""What stretching must beat: cropped texts, and StreamingLLM's cache, each beside its definition written out."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rope.config import geometry_of
from rope.cropping import Cropped, cropped, uncropped
from rope.dialects import ENGINES, deploy, to_transformers
from rope.geometry import Geometry
from rope.pairwise import plan_from_dict
from rope.patch import patched
from rope.strategies import plan, plans

TRAINED = 64
GEOMETRY = Geometry(16, 10_000.0, TRAINED)

pytestmark = pytest.mark.usefixtures("one_thread")


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=96, num_key_value_heads=2, max_position_embeddings=TRAINED, initializer_range=0.2, **sizes
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("stride", [1, 7, 32, 64])
@pytest.mark.parametrize("tokens, scored", [(63, 63), (64, 64), (65, 65), (200, 200), (200, 3), (200, 100), (257, 256)])
def test_every_token_is_scored_once_and_sees_a_full_window_but_for_a_stride(tokens, scored, stride):
    crop = Cropped((1.0,), window=64, stride=stride)
    windows = list(crop.windows(tokens, scored))
    predictions = [index for _, stop, count in windows for index in range(stop - count, stop)]
    assert predictions == list(range(tokens - scored, tokens))
    for start, stop, count in windows:
        assert 0 <= start < stop <= tokens and stop - start <= 64
        for index in range(stop - count, stop):
            seen = index + 1 - start
            assert seen == index + 1 or 64 - stride < seen <= 64


def test_by_default_a_token_sees_between_half_the_trained_length_and_all_of_it():
    chosen = plan("crop", GEOMETRY, 300)
    seen = [i + 1 - start for start, stop, n in chosen.windows(300, 300) for i in range(stop - n, stop) if i >= TRAINED]
    assert min(seen) > TRAINED // 2 and max(seen) == TRAINED


def test_an_answer_at_the_end_is_read_from_exactly_the_last_trained_tokens():
    assert list(plan("crop", GEOMETRY, 300).windows(300, 4)) == [(300 - TRAINED, 300, 4)]


def test_up_to_the_trained_length_crop_is_none_and_a_token_later_it_is_not():
    assert plan("crop", GEOMETRY, TRAINED) == plan("none", GEOMETRY, TRAINED)
    longer = plan("crop", GEOMETRY, TRAINED + 1)
    assert longer.inv_freq == plan("none", GEOMETRY, TRAINED).inv_freq and (longer.window, longer.stride) == (64, 32)
    assert plan_from_dict({"inv_freq": longer.inv_freq, "attention_factor": 1.0, **longer.changes()}) == longer


@pytest.mark.parametrize("stride, says", [(0, "at least 1"), (65, "at most the trained length, 64"), (2.5, "whole")])
def test_a_stride_that_leaves_tokens_out_is_refused(stride, says):
    with pytest.raises(ValueError, match=says):
        plan("crop", GEOMETRY, 300, stride=stride)


def test_bounded_layers_see_no_more_of_a_cropped_text_than_the_others():
    scaled = plan("linear", GEOMETRY, 256)
    local = Geometry(16, 10_000.0, TRAINED, natives=((TRAINED, GEOMETRY.native(64)), (10**6, scaled)))
    chosen = plans("crop", {"full_attention": GEOMETRY, "sliding_attention": local}, 256)
    assert cropped(chosen).window == TRAINED
    assert dict(chosen)["sliding_attention"] == GEOMETRY.native(TRAINED) != scaled
    assert all(type(each) is type(GEOMETRY.native(64)) for _, each in uncropped(chosen))


def test_a_model_is_not_given_a_plan_that_would_leave_its_text_whole():
    model = llama()
    with (
        pytest.raises(ValueError, match="give it the last 64 tokens of a text"),
        patched(model, plans("crop", geometry_of(model.config), 256)),
    ):
        pass


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_needs_exporting_where_the_text_is_cropped(engine):
    config = llama().config.to_dict()
    deployment = deploy(engine, config, "crop", {}, geometry_of(config), 4 * TRAINED)
    plain = deploy(engine, config, "none", {}, geometry_of(config), TRAINED)
    assert (deployment.name, deployment.arguments, deployment.config) == (plain.name, plain.arguments, plain.config)
    assert deployment.notes[-1].startswith("nothing needs exporting") and "last 64 tokens" in deployment.notes[-1]
    assert to_transformers(config, "crop", {}, geometry_of(config), 256) == to_transformers(
        config, "none", {}, geometry_of(config), TRAINED
    )


@torch.no_grad()
def token_by_token(model, tokens, sinks, window):
    """Logits of StreamingLLM as published: a token at a time over a cache of unrotated keys, which forgets all but the
    first `sinks` and the last `window` of them, and whose places are the positions."""
    layers, states = model.model.layers, []
    cache = [([], []) for _ in layers]
    inv_freq = 1 / 10_000.0 ** (torch.arange(0, 16, 2, dtype=torch.float64) / 16)

    def rotated(vectors, positions):
        angles = positions[:, None].double() * inv_freq
        first, second = vectors.double().chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    for token in tokens:
        hidden = model.model.embed_tokens(token)[None]
        for layer, (keys, values) in zip(layers, cache, strict=True):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            query = attention.q_proj(normed).view(4, 16)
            keys.append(attention.k_proj(normed).view(2, 16))
            values.append(attention.v_proj(normed).view(2, 16))
            places = torch.arange(len(keys))
            key = rotated(torch.stack(keys, 1), places).repeat_interleave(2, 0)
            value = torch.stack(values, 1).double().repeat_interleave(2, 0)
            scores = torch.einsum("hd,hnd->hn", rotated(query, places[-1:]), key) / 4
            mixed = torch.einsum("hn,hnd->hd", scores.softmax(-1), value).flatten()[None].float()
            hidden = hidden + attention.o_proj(mixed)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            if len(keys) > sinks + window:  # evicted once the token has been read, as kv_cache.py does
                del keys[sinks], values[sinks]
        states.append(model.lm_head(model.model.norm(hidden)))
    return torch.cat(states)


@pytest.mark.parametrize("sinks, window", [(4, None), (4, 20), (0, 20), (1, 7)])
def test_streaming_is_the_published_loop_over_a_cache(sinks, window):
    model = llama()
    tokens = torch.randint(3, 96, (200,), generator=torch.Generator().manual_seed(1))
    wanted = token_by_token(model, tokens, sinks, TRAINED - sinks - 1 if window is None else window)
    with (
        torch.no_grad(),
        patched(model, plans("streaming", geometry_of(model.config), 200, sinks=sinks, window=window)),
    ):
        ours = model(tokens[None]).logits[0]
    torch.testing.assert_close(ours, wanted, atol=5e-5, rtol=1e-5)
    with torch.no_grad():
        assert (model(tokens[None]).logits[0] - wanted).abs().max() > 1e-2


def test_streaming_keeps_to_the_trained_positions_and_is_none_while_its_cache_holds_all():
    chosen = plan("streaming", GEOMETRY, 200)
    near, first = chosen.regions
    assert near.until == TRAINED - 4 and first.query.at(torch.tensor(199)) == TRAINED - 1
    assert plan("streaming", GEOMETRY, TRAINED) == plan("none", GEOMETRY, TRAINED)
    with pytest.raises(ValueError, match="leave no room in the 64 trained positions"):
        plan("streaming", GEOMETRY, 200, sinks=63)
