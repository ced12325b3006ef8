"""Strategies over strategies: what a list comes to, what goes together, and what is refused with the reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from test_pairwise import GEOMETRY, OPTIONS, attended, dense, distances, states

from rope.geometry import Geometry
from rope.pairwise import Pairwise, QueryScale
from rope.strategies import (
    CHANGES_ATTENTION,
    SCALES_QUERIES,
    frequency_strategies,
    plan,
    plans,
    required_options,
)

PLAIN = Geometry(64, 10_000.0, 4096)
pytestmark = pytest.mark.usefixtures("one_thread")


def composed(*members, geometry=PLAIN, length=16_384, **options):
    return plan("compose", geometry, length, of=list(members), **options)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_attention_over_frequencies_is_its_distances_with_their_frequencies_and_factor(name):
    query, key, value = states(150)
    chosen = composed("yarn", {"name": name, **OPTIONS[name]}, geometry=GEOMETRY, length=150)
    under = plan("yarn", GEOMETRY, 150)
    assert (chosen.inv_freq, chosen.attention_factor) == (under.inv_freq, under.attention_factor)
    wanted = dense(query, key, value, distances(name, 150), under.inv_freq, factor=under.attention_factor)
    torch.testing.assert_close(attended(chosen, query, key, value).double(), wanted, atol=1e-5, rtol=1e-5)
    alone = attended(plan(name, GEOMETRY, 150, **OPTIONS[name]), query, key, value)
    assert (alone.double() - wanted).abs().max() > 1e-3


def test_a_scale_on_queries_goes_over_both():
    query, key, value = states(150)
    members = ["yarn", {"name": "dual_chunk", **OPTIONS["dual_chunk"]}]
    chosen = composed(*members, "temperature", geometry=GEOMETRY, length=150)
    scales = torch.tensor([1 + 0.1 * math.log(1 + m // 64) for m in range(150)])
    under = plan("yarn", GEOMETRY, 150)
    wanted = dense(query, key, value, distances("dual_chunk", 150), under.inv_freq, scales, under.attention_factor)
    torch.testing.assert_close(attended(chosen, query, key, value).double(), wanted, atol=1e-5, rtol=1e-5)
    assert chosen == plan("temperature", GEOMETRY, 150, over=members)


def test_another_base_under_a_weaker_yarn_is_yarn_of_a_model_with_that_base():
    ours = composed({"name": "base", "theta": 57_200.0}, {"name": "yarn", "factor": 2.0})
    theirs = plan("yarn", Geometry(64, 57_200.0, 4096), 16_384, factor=2.0)
    np.testing.assert_allclose(ours.inv_freq, theirs.inv_freq, rtol=1e-12)
    assert ours.attention_factor == theirs.attention_factor


def test_factors_multiply_where_each_is_given_and_the_one_given_to_compose_goes_to_who_has_none():
    twice = composed({"name": "linear", "factor": 2.0}, {"name": "linear", "factor": 2.0})
    np.testing.assert_allclose(twice.inv_freq, plan("linear", PLAIN, 16_384, factor=4.0).inv_freq, rtol=1e-14)
    assert composed("yarn", "cope", factor=8.0).inv_freq[0] == plan("yarn", PLAIN, 16_384, factor=8.0).inv_freq[0]
    assert composed("yarn", "cope", factor=8.0) == composed({"name": "yarn", "factor": 8.0}, "cope")


def test_over_takes_the_same_lists_as_of():
    members = [{"name": "base", "theta": 57_200.0}, "yarn"]
    assert plan("resonance", PLAIN, 16_384, over=members) == composed(*members, "resonance")
    assert plan("logn", PLAIN, 16_384, over=members) == composed(*members, "logn")
    ((_, every), (group, some_layers)) = plans("per_layer", {"all": PLAIN}, 16_384, over=members, layers={"0-1": 8})
    assert every == composed(*members) and group == "all[0-1]" and some_layers == composed(*members, factor=8.0)
    one = {"name": "yarn", "beta_fast": 16.0}
    by_options = plan("dynamic", PLAIN, 16_384, over="yarn", options={"beta_fast": 16.0})
    assert plan("dynamic", PLAIN, 16_384, over=one) == by_options
    with pytest.raises(ValueError, match="give a strategy that grows from the trained length"):
        plan("dynamic", PLAIN, 16_384, over=["base", "yarn"])
    assert plan("logn", PLAIN, 16_384, over=one).inv_freq == plan("yarn", PLAIN, 16_384, beta_fast=16.0).inv_freq


def test_a_list_is_the_same_as_a_cell_keeps_it():
    pairs = ((("name", "base"), ("theta", 57_200.0)), (("factor", 2.0), ("name", "yarn")))
    written = [{"name": "base", "theta": 57_200.0}, {"name": "yarn", "factor": 2.0}]
    assert plan("compose", PLAIN, 16_384, of=pairs) == plan("compose", PLAIN, 16_384, of=written)
    assert plan("logn", PLAIN, 16_384, over=pairs[1]) == plan("logn", PLAIN, 16_384, over="yarn", factor=2.0)


def test_by_default_it_is_yarn_and_dual_chunk_and_none_where_they_are():
    assert plan("compose", PLAIN, 16_384) == composed("yarn", "dual_chunk")
    assert plan("compose", PLAIN, 2048) == PLAIN.native(2048)


FREQUENCIES = [n for n in frequency_strategies() if n not in ("none", "dynamic", "per_layer", "resonance", "nope")]
ATTENTION = sorted(CHANGES_ATTENTION - SCALES_QUERIES - {"compose", "rerope", "leaky_rerope"})


@settings(max_examples=60, deadline=None)
@given(some.sampled_from(FREQUENCIES), some.sampled_from(ATTENTION), some.sampled_from(sorted(SCALES_QUERIES)))
def test_every_frequency_strategy_goes_under_every_attention_and_scale(first, second, third):
    member = {"name": first, **required_options(first, PLAIN.pairs)}
    under, over = plan(first, PLAIN, 16_384, **required_options(first, PLAIN.pairs)), plan(second, PLAIN, 16_384)
    chosen = composed(member, second, third)
    assert isinstance(chosen, Pairwise)
    assert (chosen.inv_freq, chosen.attention_factor) == (under.inv_freq, under.attention_factor)
    assert chosen.regions == over.regions and isinstance(chosen.query_scale, QueryScale)
    with pytest.raises(ValueError, match="give frequencies first, then one strategy that changes attention"):
        composed(second, member)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        (["yarn"], "give at least two strategies, such as [yarn, dual_chunk]"),
        (["none", "yarn"], "of holds none, which adds nothing: leave it out"),
        (["yarn", "crop"], "of holds crop, which shows the plain model less text: measure it by itself"),
        (["yarn", "linear"], "of holds yarn and linear, each of which stretches by length / trained length: give each"),
        ([{"name": "yarn", "factor": 2.0}, "linear"], "each of which stretches by length / trained length"),
        ([{"name": "dynamic_ntk", "factor": 2.0}, {"name": "yarn", "factor": 2.0}], "which stretches by"),
        (["dual_chunk", "yarn"], "of has dual_chunk before yarn: give frequencies first"),
        (["temperature", "rerope"], "of has temperature before rerope: give frequencies first"),
        (["self_extend", "dual_chunk"], "each of which changes the distances of attention: give one of them"),
        (["logn", "temperature"], "each of which scales queries: give one of them"),
        (["yarn", "per_layer"], "of holds per_layer, which has layers or strategies of its own: give it alone"),
        (["yarn", "compose"], "of holds compose, which has layers or strategies of its own: give it alone"),
        (["base", {"name": "logn", "over": "yarn"}], "of holds logn with an over of its own: in a list it"),
        (["base", {"factor": 2.0}], "of holds {'factor': 2.0}: give a name"),
        (["base", 7], "of holds 7: give a name"),
        (["base", {"name": "yarn", "beta_fst": 2}], "unknown option of yarn: 'beta_fst'; did you mean 'beta_fast'?"),
        (["base", "yran"], "unknown strategy: 'yran'; did you mean 'yarn'?"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_with_the_reason(members, says):
    for length in (16_384, 4096):
        with pytest.raises(ValueError, match=r".") as refusal:
            composed(*members, length=length)
        assert says in str(refusal.value)


def test_queries_scaled_twice_and_options_beside_several_strategies_are_refused():
    with pytest.raises(ValueError, match="scales queries already: give it logn=false"):
        composed("rerope", "logn")
    assert composed({"name": "rerope", "logn": False}, "logn") == plan("rerope", PLAIN, 16_384)
    with pytest.raises(ValueError, match="beside several strategies: give each its own in over"):
        plan("resonance", PLAIN, 16_384, over=["base", "yarn"], options={"beta_fast": 16.0})
