"""A checkpoint's geometry: what it accepts, and how it is read from configs of every version."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rope.config import geometry_of, rope_parameters
from rope.geometry import ALL_LAYERS, Geometry, Plan, inverse_frequencies

LLAMA = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 4096}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def only(config, trained_length=None):
    geometries = geometry_of(config, trained_length)
    assert list(geometries) == [ALL_LAYERS]
    return geometries[ALL_LAYERS]


def native(config, length):
    return np.array(only(config).native(length).inv_freq)


@given(st.integers(1, 128), st.floats(1.5, 1e9))
def test_inverse_frequencies_fall_from_one_to_almost_one_over_the_base(pairs, base):
    inv_freq = inverse_frequencies(2 * pairs, base)
    assert inv_freq.dtype == np.float64 and inv_freq.shape == (pairs,)
    assert inv_freq[0] == 1.0 and (np.diff(inv_freq) < 0).all()
    assert inv_freq[-1] == pytest.approx(base ** (1 / pairs) / base, rel=1e-12)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"head_dim": 7}, "head_dim=7: rotated dimensions come in pairs; give an even number"),
        ({"head_dim": 0}, "head_dim=0: give a whole number of at least 2"),
        ({"head_dim": 8.0}, "head_dim=8.0: give a whole number"),
        ({"base": 1.0}, "base=1.0: give a finite number above 1"),
        ({"base": math.inf}, "base=inf: give a finite number above 1"),
        ({"base": "10000"}, "base='10000': give a finite number"),
        ({"trained_length": 1}, "trained_length=1: give a whole number of at least 2"),
        ({"trained_length": True}, "trained_length=True: give a whole number"),
        ({"partial": 0.0}, "partial=0.0: give a finite number above 0"),
        ({"partial": 1.5}, "partial=1.5: give the rotated share of head_dim, above 0 and at most 1"),
        ({"partial": 0.4}, "rotates 3 dimensions; give a share that rotates an even number"),
        ({"natives": ((64, Plan((1.0,))),)}, "1 inverse frequencies; this geometry rotates 4 pairs"),
        ({"natives": ((64, Plan((1.0,) * 4)), (32, Plan((1.0,) * 4)))}, "give them in ascending order"),
    ],
)
def test_a_geometry_refuses_in_sentences(arguments, says):
    good = {"head_dim": 8, "base": 10_000.0, "trained_length": 64}
    Geometry(**good)
    with pytest.raises(ValueError, match=r".") as refusal:
        Geometry(**good | arguments)
    assert says in str(refusal.value)


def test_a_partial_rotation_has_the_frequencies_of_its_rotated_dimensions_alone():
    geometry = Geometry(head_dim=96, base=10_000.0, trained_length=64, partial=32 / 96)
    assert (geometry.rotated, geometry.pairs) == (32, 16)
    np.testing.assert_array_equal(geometry.inv_freq(64), inverse_frequencies(32, 10_000.0))


def test_a_share_read_from_a_count_of_dimensions_gives_that_count_back():
    # 44 * (30 / 44) is a hair below 30 in floating point
    assert all(Geometry(d, 1e4, 64, r / d).rotated == r for d in range(2, 130, 2) for r in range(2, d, 2))


def test_the_first_native_plan_that_reaches_applies_and_the_last_one_beyond():
    short, long = Plan((1.0, 0.5)), Plan((1.0, 0.25), 1.2)
    geometry = Geometry(4, 100.0, 64, natives=((32, short), (64, long)))
    assert [geometry.native(n) for n in (2, 32, 33, 64, 4096)] == [short, short, long, long, long]
    assert geometry.inv_freq(33).tolist() == [1.0, 0.25]
    with pytest.raises(ValueError, match="length=1: give a whole number of at least 2"):
        geometry.native(1)


@pytest.mark.parametrize(
    "changes, head_dim, base, partial",
    [
        ({}, 128, 10_000.0, 1.0),  # Llama 2, whose config names no theta
        ({"rope_theta": 500_000.0, "head_dim": 64}, 64, 500_000.0, 1.0),
        ({"rope_theta": 5e5, "head_dim": None, "rope_scaling": None}, 128, 5e5, 1.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 128, 1e6, 1.0),
        ({"model_type": "phi", "rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, 128, 1e6, 0.5),
        ({"model_type": "phi", "rope_theta": 1e6, "partial_rotary_factor": 0.25}, 128, 1e6, 0.25),
        ({"rope_theta": 1e6, "partial_rotary_factor": 0.25}, 128, 1e6, 1.0),  # Llama's plain rotation takes whole heads
        ({"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 20_000}, 128, 20_000.0, 0.25),
        ({"model_type": "minimax_m2", "rope_theta": 5e6, "rotary_dim": 64}, 128, 5e6, 0.5),
        ({"model_type": "deepseek_v3", "rope_theta": 1e4, "qk_rope_head_dim": 64}, 64, 1e4, 1.0),
        ({"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, 128, 1e6, 1.0),
    ],
)
def test_a_config_without_scaling_is_read_whatever_its_version(changes, head_dim, base, partial):
    assert only(LLAMA | changes) == Geometry(head_dim, base, 4096, partial)


def test_the_keys_of_gpt_j_are_read():
    config = {"n_embd": 4096, "n_head": 16, "n_positions": 2048, "rotary_dim": 64}
    assert only(config) == Geometry(256, 10_000.0, 2048, 0.25)


def test_the_language_model_is_read_inside_a_multimodal_config():
    outer = {"model_type": "llava", "vision_config": {"rope_theta": 1.0}, "text_config": LLAMA | {"rope_theta": 5e5}}
    assert only(outer) == Geometry(128, 5e5, 4096)


def test_an_object_with_to_dict_is_read_as_its_mapping():
    class Config:
        def to_dict(self):
            return LLAMA

    assert geometry_of(Config()) == geometry_of(LLAMA)


def test_a_given_trained_length_takes_precedence_over_the_config():
    assert only(LLAMA, trained_length=2048).trained_length == 2048
    unknown = {"rope_theta": 1e4, "head_dim": 64}
    assert only(unknown, trained_length=512).trained_length == 512


def test_gemma_3_has_two_geometries_in_its_old_config_and_in_its_new():
    shared = {"model_type": "gemma3_text", "head_dim": 256, "max_position_embeddings": 131_072}
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = shared | {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": scaling}
    new = shared | {
        "rope_parameters": {
            "full_attention": scaling | {"rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "no_rotation": None,
        }
    }
    read = geometry_of(old)
    assert read == geometry_of(new)
    assert read["sliding_attention"] == Geometry(256, 1e4, 131_072)
    np.testing.assert_allclose(read["full_attention"].inv_freq(4096), inverse_frequencies(256, 1e6) / 8, rtol=1e-15)


def test_olmo_3_scales_its_full_attention_layers_only():
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    config = LLAMA | {"model_type": "olmo3", "rope_theta": 5e5, "rope_scaling": scaling}
    read = geometry_of(config)
    assert read["sliding_attention"] == Geometry(128, 5e5, 4096)
    assert read["full_attention"].native(4096).attention_factor == 0.1 * math.log(4.0) + 1
    assert geometry_of(config | {"rope_scaling": None, "rope_parameters": rope_parameters(config)}) == read


def test_gemma_4_has_zero_frequency_in_most_pairs_of_its_wider_heads():
    by_type = {
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = {"head_dim": 16, "global_head_dim": 32, "max_position_embeddings": 64, "rope_parameters": by_type}
    read = geometry_of(config)
    assert (read["full_attention"].head_dim, read["sliding_attention"].head_dim) == (32, 16)
    assert read["full_attention"].inv_freq(64).tolist() == [*inverse_frequencies(32, 1e6)[:4], *[0.0] * 12]
    layers = {"layer_types": ["sliding_attention", "full_attention"], "per_layer_config": {"1": {"head_dim": 32}}}
    assert geometry_of({k: v for k, v in config.items() if k != "global_head_dim"} | layers) == read


def test_a_declared_linear_scaling_is_native():
    read = native(LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}, 16)
    np.testing.assert_allclose(read, inverse_frequencies(128, 1e4) / 4, rtol=1e-15)


def test_a_declared_llama3_scaling_is_native():
    read = native(LLAMA | {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 2048}}, 4096)
    plain = inverse_frequencies(128, 1e4)
    rotations = 2048 * plain / (2 * math.pi)
    np.testing.assert_array_equal(read[rotations >= 4], plain[rotations >= 4])
    np.testing.assert_allclose(read[rotations <= 1], plain[rotations <= 1] / 8, rtol=1e-15)
    between = (rotations > 1) & (rotations < 4)
    assert between.any() and (read[between] < plain[between]).all() and (read[between] > plain[between] / 8).all()


def test_llama_4_declares_a_llama3_scaling_without_a_ramp():
    declared = LLAMA3 | {"high_freq_factor": 1.0, "original_max_position_embeddings": 2048}
    read, plain = native(LLAMA | {"rope_scaling": declared}, 4096), inverse_frequencies(128, 1e4)
    kept = 2048 * plain / (2 * math.pi) >= 1
    np.testing.assert_allclose(read, np.where(kept, plain, plain / 8), rtol=1e-15)


def test_a_declared_yarn_scaling_brings_its_attention_factor():
    assert only(LLAMA | {"rope_scaling": YARN}).native(4096).attention_factor == 0.1 * math.log(4.0) + 1
    given = YARN | {"attention_factor": 1.5}
    assert only(LLAMA | {"rope_scaling": given}).native(4096).attention_factor == 1.5
    same = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}
    assert only(LLAMA | {"rope_scaling": same}).native(4096).attention_factor == 1.0
    still = only(LLAMA | {"rope_scaling": given | {"factor": 1.0}}).native(4096)
    assert still == Plan(tuple(inverse_frequencies(128, 1e4).tolist()), 1.5)
    assert only(LLAMA | {"rope_scaling": YARN | {"factor": None}}) == only(LLAMA | {"rope_scaling": YARN})


def test_a_declared_longrope_has_a_short_and_a_long_native_plan():
    short, long = [1.0 + i / 48 for i in range(48)], [2.0 + i for i in range(48)]
    config = LLAMA | {
        "model_type": "phi3",
        "head_dim": 96,
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,  # where Phi-3 keeps it
        "rope_scaling": {"type": "su", "short_factor": short, "long_factor": long},
    }
    geometry, plain = only(config), inverse_frequencies(96, 1e4)
    np.testing.assert_allclose(geometry.inv_freq(4096), plain / short, rtol=1e-15)
    np.testing.assert_allclose(geometry.inv_freq(4097), plain / long, rtol=1e-15)
    expected = math.sqrt(1 + math.log(32) / math.log(4096))
    assert {geometry.native(n).attention_factor for n in (4096, 4097)} == {expected}
    untouched = config | {"max_position_embeddings": 4096}  # a factor of 1, with lists all the same
    assert [only(untouched).native(n).attention_factor for n in (4096, 4097)] == [1.0, 1.0]
    np.testing.assert_allclose(only(untouched).inv_freq(4097), plain / long, rtol=1e-15)
    with pytest.raises(ValueError, match="the declared longrope scaling: long_factor has 3 numbers; give 48"):
        geometry_of(config | {"rope_scaling": {"type": "su", "short_factor": short, "long_factor": [1, 2, 3]}})


@pytest.mark.parametrize(
    "config, says",
    [
        ({"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_positions": 1024}, "a gpt2 describes no rotary"),
        (LLAMA | {"model_type": "falcon", "alibi": True}, "FalconForCausalLM has none with alibi=true"),
        (LLAMA | {"model_type": "unknown", "alibi": True, "rope_theta": 1e4}, "its positions are alibi"),
        (
            LLAMA | {"model_type": "granitemoehybrid", "position_embedding_type": "nope"},
            "none with position_embedding_",
        ),
        (
            {"model_type": "unknown", "rope_theta": 1e4, "head_dim": 64},
            "no max_position_embeddings: give trained_length",
        ),
        (
            {"model_type": "unknown", "rope_theta": 1e4, "max_position_embeddings": 64},
            "neither head_dim nor hidden_size",
        ),
        (LLAMA | {"max_position_embeddings": 1}, "max_position_embeddings=1: give a whole number of at least 2"),
        (LLAMA | {"rope_scaling": {"type": "spiral"}}, "declares rope_type='spiral'; known are default, linear"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 0.5}}, "declared linear scaling=0.5: give a finite"),
        (LLAMA | {"rope_parameters": {"full_attention": None, "x": {}}, "rope_theta": -1.0}, "base=-1.0"),
        (7, "7 is not a config"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused_in_a_sentence(config, says):
    with pytest.raises(ValueError, match=r".") as refusal:
        geometry_of(config)
    assert says in str(refusal.value)


def test_reading_changes_nothing_in_the_config():
    config = LLAMA | {"rope_scaling": dict(YARN), "text_config": None}
    before = json.dumps(config)
    geometry_of(config)
    assert json.dumps(config) == before
