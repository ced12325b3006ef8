"""What a search chooses from: ranges and their refusals, and lists under LongRoPE's constraints."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from pipelines.records.cells import Refusal
from pipelines.tune.space import LISTS_FROM, Curve, seeds, space_of
from rope import strategies, theory
from rope.geometry import Geometry

TINY = Geometry(64, 10_000.0, 512)
LENGTH = 4096


def a_point(space, share):
    """The point at a share of every range."""
    return {
        d.name: d.choices[int(share * (len(d.choices) - 1))]
        if d.choices
        else d.rounded(d.low + share * (d.high - d.low))
        for d in space.searched
    }


@pytest.mark.parametrize("strategy", [name for name in strategies.STRATEGIES if name not in ("none", "crop")])
def test_the_usual_ranges_of_every_strategy_give_plans_from_end_to_end(strategy):
    space = space_of(strategy, {}, {}, TINY, LENGTH)
    plans = {strategies.plan(strategy, TINY, LENGTH, **space.options(a_point(space, s))) for s in (0.0, 0.5, 1.0)}
    assert len(plans) > 1 or strategy in ("dynamic", "logn", "compose")
    for point in seeds(space, TINY, LENGTH):
        whole = {**a_point(space, 0.5), **point}
        strategies.plan(strategy, TINY, LENGTH, **space.options(whole))


def test_a_range_given_leaves_all_else_at_its_default_or_as_held():
    space = space_of("yarn", {"truncate": False}, {"beta_fast": "8..64", "ramp": "index,rotations"}, TINY, LENGTH)
    assert [one.name for one in space.searched] == ["beta_fast", "ramp"]
    found = space.options({"beta_fast": 12.34567, "ramp": "index"})
    assert found == {"truncate": False, "beta_fast": 12.35, "ramp": "index"}
    assert space.text == "strategy.beta_fast=8..64 strategy.ramp=index,rotations"


def test_the_point_that_is_the_default_is_the_default_itself():
    space = space_of("yarn", {}, {}, TINY, LENGTH)
    [point] = seeds(space, TINY, LENGTH)
    assert space.options(point) == {}


def test_options_within_options_and_layers_are_named_with_a_dot():
    space = space_of("dynamic", {"over": "yarn"}, {"options.beta_fast": "8..64"}, TINY, LENGTH)
    assert space.options({"options.beta_fast": 16.0}) == {"over": "yarn", "options": {"beta_fast": 16.0}}
    space = space_of("per_layer", {"over": "ntk"}, {"layers.0-3": "2..8", "factor": "4..16"}, TINY, LENGTH)
    assert space.options({"layers.0-3": 3.0, "factor": 8.0}) == {"over": "ntk", "factor": 8.0, "layers": {"0-3": 3.0}}


def test_layers_are_searched_by_the_factors_of_three_from_the_uniform_one():
    space = space_of("per_layer", {"over": "yarn"}, {}, TINY, LENGTH, 8)
    factor = LENGTH / TINY.trained_length
    assert [one.name for one in space.searched] == ["knots.0", "knots.3", "knots.7"]
    [uniform] = seeds(space, TINY, LENGTH)
    assert set(uniform.values()) == {factor} and space.options(uniform) == {"over": "yarn"}
    chosen = space.options({"knots.0": 8.0, "knots.3": 2.0, "knots.7": 1.0})
    assert chosen == {"over": "yarn", "knots": {"0": 8.0, "3": 2.0, "7": 1.0}}
    given = space_of("per_layer", {"over": "yarn"}, {"knots.2": "1..4", "knots.5": "1..4"}, TINY, LENGTH, 8)
    assert [one.name for one in given.searched] == ["knots.2", "knots.5"]
    assert "knots" not in space_of("per_layer", {}, {}, TINY, LENGTH).text  # layers of several types


@pytest.mark.parametrize(
    ("strategy", "ranges", "says"),
    [
        (
            "yarn",
            {"beta_fst": "8..64"},
            r"has no option beta_fst; did you mean beta_fast\? it has strategy.factor=4..64, strategy.beta_fast=4..128",
        ),
        ("yarn", {"beta_fast": "64..8"}, "beta_fast=64..8: the range is empty; .* such as 4..128"),
        ("yarn", {"beta_fast": "8..8"}, "the range is empty"),
        ("yarn", {"beta_fast": "8..many"}, "'many' is not a number"),
        ("yarn", {"ramp": "1..2"}, "ramp takes no range of numbers; .* such as index,rotations"),
        ("yarn", {"truncate": "true"}, "there is nothing to choose"),
        ("yarn", {"truncate": "true,maybe"}, "'maybe' is not true or false"),
        ("rerope", {"window": "1.5..9"}, "'1.5' is not a whole number"),
        ("dynamic", {"options.beta": "1..9"}, "an option of linear: factor"),
        ("factors", {"factors": "0.5..8"}, "no divisor may be below 1"),
        ("none", {}, "no option with a usual range"),
    ],
)
def test_an_unknown_option_and_an_empty_range_are_refused_with_the_allowed_ones(strategy, ranges, says):
    with pytest.raises(Refusal, match=says):
        space_of(strategy, {}, ranges, TINY, LENGTH)


@given(some.data())
def test_every_list_that_can_be_drawn_keeps_longropes_constraints(data):
    pairs, factor = data.draw(some.integers(4, 64)), data.draw(some.floats(1, 64))
    least = data.draw(some.floats(1, 4))
    curve = Curve("factors", pairs, factor, least, least * data.draw(some.floats(1.1, 64)))
    values = {
        one.name: data.draw(some.integers(int(one.low), int(one.high)) if one.whole else some.floats(one.low, one.high))
        for one in curve.dimensions
    }
    found = np.array(curve.divisors(values))
    assert found.shape == (pairs,) and (np.diff(found) >= 0).all()
    assert found[0] >= least and found[-1] <= curve.most * 1.0001
    assert (found[values["factors.critical"] :] >= min(factor, found[-1]) * 0.9999).all()


@pytest.mark.parametrize("length", [1024, 4096])
def test_lists_begin_as_linear_ntk_and_yarn(length):
    space = space_of("factors", {}, {}, TINY, length)
    native, [curve] = TINY.native(length), space.curves
    for name, point in zip(reversed(LISTS_FROM), seeds(space, TINY, length), strict=True):
        plan = strategies.plan(name, TINY, length)
        off = np.abs(np.log(np.array(curve.divisors(point)) / theory.stretches(native, plan))).max()
        assert off < (0.3 if name == "yarn" else 0.001), name  # yarn's ramp is not straight in the logarithm
        assert point["attention_factor"] == plan.attention_factor


def test_the_critical_pair_moves_where_the_whole_factor_is_reached():
    curve = Curve("factors", 32, 8.0, 1.0, 32.0)
    for critical in (2, 10, 31):
        shares = {"first": 0.0, "third": 0.5, "two_thirds": 0.6667, "critical": 0.0}
        values = {f"factors.share_{name}": share for name, share in shares.items()}
        found = np.array(curve.divisors({**values, "factors.critical": critical, "factors.slowest": 8.0}))
        assert int(np.flatnonzero(found >= 8.0)[0]) == critical
