"""Our plans against the installed transformers, and against published numbers."""

from __future__ import annotations

import itertools
import types

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, modeling_rope_utils

from rope.config import geometry_of
from rope.geometry import Geometry
from rope.strategies import plan

SHAPES = [Geometry(*shape) for shape in itertools.product((32, 64, 96, 128), (1e4, 5e5, 1e6), (512, 4096, 8192))] + [
    Geometry(128, 1e4, 4096, partial=0.5),
    Geometry(80, 1e4, 2048, partial=0.4),
]
FACTORS = (1.5, 2.0, 8.0, 16.0)
FLOAT32 = 2e-6
"""Worst relative difference between float64 and transformers' float32 arithmetic at these settings."""

LLAMA_2 = Geometry(128, 10_000.0, 4096)
LLAMA_31 = Geometry(128, 500_000.0, 8192)


def theirs(rope_type, geometry, length, **parameters):
    """inv_freq and attention factor of transformers for one sequence of exactly this length."""
    plain = {"rope_theta": geometry.base, "partial_rotary_factor": geometry.partial}
    parameters = plain | parameters | {"rope_type": rope_type}
    config = LlamaConfig(
        head_dim=geometry.head_dim,
        hidden_size=geometry.head_dim,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=geometry.trained_length,
        rope_parameters=parameters,
    )
    inv_freq, attention = modeling_rope_utils.ROPE_INIT_FUNCTIONS[rope_type](config, seq_len=length)
    return inv_freq.double().numpy(), attention


def linears(shape, factor, length):
    yield length, "linear", {}, "linear", {"factor": factor}


def dynamics(shape, factor, length):
    for given in (1.0, 2.0, factor):
        options = {"rule": "transformers", "factor": given}
        for running in (length, shape.trained_length // 2):
            yield running, "dynamic_ntk", options, "dynamic", {"factor": given}
            yield running, "dynamic", options | {"over": "ntk"}, "dynamic", {"factor": given}
    yield length, "dynamic_ntk", {}, "dynamic", {"factor": 1.0}


def yarns(shape, factor, length):
    for options in (
        {},
        {"truncate": False},
        {"beta_fast": 64.0, "beta_slow": 2.0},
        {"attention_factor": 1.25},
        {"mscale": 1.0, "mscale_all_dim": 0.8},
        {"mscale": 0.7},
        {"beta_fast": 1e4, "beta_slow": 1e-4, "truncate": False},
    ):
        given = options | {"factor": factor}
        yield length, "yarn", given, "yarn", given | {"original_max_position_embeddings": shape.trained_length}


def llama3s(shape, factor, length):
    for low, high in ((1.0, 4.0), (2.0, 16.0)):
        given = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
        yield length, "llama3", given, "llama3", given | {"original_max_position_embeddings": shape.trained_length}


def longropes(shape, factor, length):
    trained = shape.trained_length
    short, long = (np.linspace(1, end, shape.pairs).tolist() for end in (1.25, 2 * factor))
    for options in ({}, {"attention_factor": 1.25}):
        given = {"short_factor": short, "long_factor": long, "factor": factor} | options
        for running in (trained // 2, trained, trained + 1, length):
            yield running, "longrope", given, "longrope", given | {"original_max_position_embeddings": trained}


def proportionals(shape, factor, length):
    if shape.partial == 1:
        for share in (0.25, 0.3, 0.5, 0.75, 1.0):
            yield length, "proportional", {"p": share}, "proportional", {"partial_rotary_factor": share}


def thetas(shape, factor, length):
    # linear with factor 1 stands for default, which every model of transformers computes by itself
    theta = shape.base * factor ** (shape.rotated / (shape.rotated - 2))
    for strategy, options in (("ntk", {}), ("base", {"theta": theta}), ("dynamic", {"over": "ntk"})):
        yield length, strategy, options, "linear", {"factor": 1.0, "rope_theta": theta}


KINDS = {
    "linear": linears,
    "dynamic": dynamics,
    "yarn": yarns,
    "llama3": llama3s,
    "longrope": longropes,
    "proportional": proportionals,
    "theta": thetas,
}
"""By rope type: (shape, factor, length) -> (running length, our strategy and options, their type and parameters)."""


def settings(kind):
    """Hundreds of settings."""
    for shape, factor in itertools.product(SHAPES, FACTORS):
        for setting in KINDS[kind](shape, factor, int(shape.trained_length * factor)):
            yield shape, *setting


def worst_difference(kind):
    worst, count = 0.0, 0
    for shape, length, strategy, options, rope_type, parameters in settings(kind):
        ours = plan(strategy, shape, length, **options)
        inv_freq, attention = theirs(rope_type, shape, length, **parameters)
        assert ours.attention_factor == attention, (shape, strategy, options)
        turning = np.array(ours.inv_freq) > 0
        assert (inv_freq[~turning] == 0).all(), (shape, strategy, options)
        difference = np.abs(np.array(ours.inv_freq)[turning] / inv_freq[turning] - 1).max()
        worst, count = max(worst, difference), count + 1
    assert count >= 150
    return worst


@pytest.fixture
def in_float64(monkeypatch):
    """transformers' own functions with every float32 in them turned into float64."""
    double = types.SimpleNamespace(**{name: getattr(torch, name) for name in dir(torch) if not name.startswith("__")})
    double.float = double.float32 = torch.float64
    monkeypatch.setattr(modeling_rope_utils, "torch", double)


def test_every_rope_type_of_transformers_is_compared():
    assert set(modeling_rope_utils.ROPE_INIT_FUNCTIONS) == set(KINDS) - {"theta"}


@pytest.mark.parametrize("kind", KINDS)
def test_plans_are_those_of_transformers_up_to_its_float32(kind):
    assert 0 < worst_difference(kind) <= FLOAT32


@pytest.mark.parametrize("kind", KINDS)
def test_plans_are_those_of_transformers_computed_in_float64(kind, in_float64):
    # longrope names float32 in another way, so its lists and exponents stay in it
    assert worst_difference(kind) <= (FLOAT32 if kind == "longrope" else 1e-13)


def test_declared_scalings_are_read_as_transformers_computes_them(in_float64):
    short, long = np.linspace(1, 2, 64).tolist(), np.linspace(1, 32, 64).tolist()
    original = {"original_max_position_embeddings": 1024}
    declared = {
        "linear": {"factor": 4.0},
        "yarn": {"factor": 4.0, "beta_fast": 16.0, "truncate": False} | original,
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | original,
        "longrope": {"short_factor": short, "long_factor": long, "factor": 4.0} | original,
        "proportional": {"partial_rotary_factor": 0.3, "factor": 4.0},
    }
    for rope_type, parameters in declared.items():
        config = {"head_dim": 128, "max_position_embeddings": 4096, "rope_theta": 1e4}
        (geometry,) = geometry_of(config | {"rope_parameters": parameters | {"rope_type": rope_type}}).values()
        for length in (1024, 1025, 4096):
            inv_freq, attention = theirs(rope_type, LLAMA_2, length, **parameters)
            # longrope names float32 in another way, so it stays in it
            rtol = 2e-7 if rope_type == "longrope" else 1e-13
            np.testing.assert_allclose(geometry.inv_freq(length), inv_freq, rtol=rtol)
            assert geometry.native(length).attention_factor == attention


def test_yarn_on_llama_2_has_the_known_numbers():
    result = plan("yarn", LLAMA_2, 32_768)
    expected = [
        1.0,
        5.623412877e-02,
        2.736586519e-02,
        5.961538758e-03,
        1.033821609e-03,
        1.666901808e-04,
        1.443477413e-05,
    ]
    picked = [result.inv_freq[pair] for pair in (0, 20, 24, 32, 40, 46, 63)]
    # the record is of float32 arithmetic
    np.testing.assert_allclose(picked, expected, rtol=1e-6)
    assert result.attention_factor == 1.2079441541679836
    whole, exact = (np.array(plan("yarn", LLAMA_2, 32_768, truncate=t).inv_freq) for t in (True, False))
    assert np.abs(whole / exact - 1).max() == pytest.approx(0.259, abs=0.001)


def test_the_two_ramps_of_yarn_differ_as_known():
    plain = LLAMA_2.inv_freq(2)
    by_index, by_rotations = (
        plain / np.array(plan("yarn", LLAMA_2, 32_768, ramp=r).inv_freq) for r in ("index", "rotations")
    )
    np.testing.assert_allclose(by_index[[28, 36, 40]], [1.37, 2.17, 3.06], atol=0.005)
    np.testing.assert_allclose(by_rotations[[28, 36, 40]], [2.36, 4.99, 6.45], atol=0.005)


# 1.305 was recorded as 1.31
@pytest.mark.parametrize("factor, most", [(8, 1.305), (16, 2.04)])
def test_the_two_ramps_of_yarn_are_at_most_so_far_apart(factor, most):
    by_index, by_rotations = (
        np.array(plan("yarn", LLAMA_2, 4096 * factor, ramp=r).inv_freq) for r in ("index", "rotations")
    )
    assert np.abs(by_index / by_rotations - 1).max() == pytest.approx(most, abs=0.002)


@pytest.mark.parametrize("truncate, low, high", [(True, 20, 46), (False, 20.944, 45.027)])
def test_the_ramp_of_yarn_on_llama_2_has_the_known_ends(truncate, low, high):
    divisors = LLAMA_2.inv_freq(2) / np.array(plan("yarn", LLAMA_2, 32_768, truncate=truncate).inv_freq)
    kept = (1 / divisors - 1 / 8) / (1 - 1 / 8)  # falls in a line from 1 at the low end to 0 at the high one
    slope = kept[31] - kept[30]
    assert 30 + (1 - kept[30]) / slope == pytest.approx(low, abs=0.001)
    assert 30 - kept[30] / slope == pytest.approx(high, abs=0.001)


@pytest.mark.parametrize(
    "head_dim, bases",
    [
        (128, {2: 20221.3, 4: 40889.9, 8: 82684.6, 16: 167198.7, 32: 338096.9}),
        (64, {2: 20452.2, 4: 41829.4, 8: 85550.4, 16: 174969.6, 32: 357851.8}),
    ],
)
def test_ntk_bases_are_the_known_ones(head_dim, bases):
    for factor, base in bases.items():
        result = plan("ntk", Geometry(head_dim, 1e4, 4096), 4096 * factor)
        assert result.inv_freq[1] ** (-head_dim / 2) == pytest.approx(base, abs=0.05)


@pytest.mark.parametrize(
    "factor, length, base",
    [
        (2.0, 8192, 30527.7),
        (2.0, 16384, 72195.86),
        (2.0, 32768, 156588.3),
        (1.0, 8192, 20221.3),
        (4.0, 32768, 305922.0),
    ],
)
def test_dynamic_ntk_bases_are_the_known_ones(factor, length, base):
    result = plan("dynamic_ntk", LLAMA_2, length, rule="transformers", factor=factor)
    assert result.inv_freq[1] ** -64 == pytest.approx(base, abs=0.05)


def test_llama_3_1_keeps_29_pairs_blends_6_and_divides_29():
    divisors = LLAMA_31.inv_freq(2) / np.array(plan("llama3", LLAMA_31, 131_072, factor=8.0).inv_freq)
    assert (divisors == 1).sum() == 29
    assert np.isclose(divisors, 8, rtol=1e-12).sum() == 29
    assert ((divisors > 1.001) & (divisors < 7.999)).sum() == 6


def test_llama3_is_by_parts_along_rotations_from_1_to_4():
    for shape in SHAPES:
        by_parts = plan("by_parts", shape, 65_536, ramp="rotations", beta_slow=1.0, beta_fast=4.0)
        assert plan("llama3", shape, 65_536) == by_parts


def test_the_last_frequency_under_another_base_is_divided_as_known():
    slowed = LLAMA_2.inv_freq(2) / np.array(plan("base", LLAMA_2, 4096, theta=1e6).inv_freq)
    assert slowed[-1] == pytest.approx(93.1, abs=0.05)


def test_mixed_ntk_has_the_multipliers_of_its_published_code():
    # rerope: k = 12, b = 0.75, a = ln k / (d / 2) ** b
    result = np.array(plan("ntk_mixed", LLAMA_2, 4096, factor=12.0).inv_freq)
    theirs = np.exp(-np.log(12) / 64**0.75 * np.arange(1, 65) ** 0.75)
    np.testing.assert_allclose(result / LLAMA_2.inv_freq(2), theirs, rtol=1e-13)
