"""Every strategy keeps what it promises, at any geometry, length and setting of its options."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope.geometry import Geometry
from rope.strategies import PROMISES, STRATEGIES, Promise, options_of, plan, stretch

FACTOR = st.none() | st.floats(1.01, 64.0)
POSITIVE = st.floats(0.5, 2.0)
OVER = st.sampled_from(["linear", "ntk", "ntk_fixed", "by_parts", "yarn", "llama3", "dynamic_ntk"])


def bounds(low, high):
    """Two options of which the first is at most the second."""
    numbers = st.tuples(st.floats(0.01, 100.0), st.floats(0.01, 100.0))
    return numbers.map(sorted).map(lambda pair: {low: pair[0], high: pair[1]})


def options(**drawn):
    return st.fixed_dictionaries({}, optional=drawn)


def both(*drawn):
    return st.tuples(*drawn).map(lambda parts: {key: value for part in parts for key, value in part.items()})


def listed(pairs):
    return st.lists(st.floats(0.1, 64.0), min_size=pairs, max_size=pairs)


RAMP = both(
    bounds("beta_slow", "beta_fast"), options(ramp=st.sampled_from(["index", "rotations"]), truncate=st.booleans())
)
SETTINGS = {
    "none": lambda pairs: options(),
    "linear": lambda pairs: options(factor=FACTOR),
    "ntk": lambda pairs: options(factor=FACTOR),
    "ntk_fixed": lambda pairs: options(factor=FACTOR),
    "ntk_mixed": lambda pairs: options(factor=FACTOR, mixed_b=st.floats(0.05, 3.0)),
    "dynamic_ntk": lambda pairs: options(rule=st.sampled_from(["natural", "transformers"]), factor=FACTOR),
    "base": lambda pairs: options(theta=st.floats(2.0, 1e9)),
    "by_parts": lambda pairs: both(RAMP, options(factor=FACTOR)),
    "yarn": lambda pairs: both(
        RAMP, options(factor=FACTOR, attention_factor=POSITIVE, mscale=POSITIVE, mscale_all_dim=POSITIVE)
    ),
    "llama3": lambda pairs: both(bounds("low_freq_factor", "high_freq_factor"), options(factor=FACTOR)),
    "longrope": lambda pairs: both(
        st.fixed_dictionaries({"long_factor": listed(pairs)}),
        options(factor=FACTOR, mscale=st.sampled_from(["su", "yarn", "none"]), attention_factor=POSITIVE),
        options(long_mscale=POSITIVE),
    ),
    "factors": lambda pairs: both(
        st.fixed_dictionaries({"factors": listed(pairs)}), options(attention_factor=POSITIVE)
    ),
    "power": lambda pairs: options(k=st.floats(0.0, 4.0)),
    "truncated": lambda pairs: both(
        options(cutoff=st.integers(2, 8192)), bounds("still", "floor").filter(lambda drawn: drawn["still"] >= 1)
    ),
    "proportional": lambda pairs: options(p=st.floats(0.0, 1.0)),
    "dynamic": lambda pairs: options(over=OVER, rule=st.sampled_from(["natural", "transformers"]), factor=FACTOR),
    "resonance": lambda pairs: options(over=OVER, factor=FACTOR),
    "per_layer": lambda pairs: options(over=OVER, factor=FACTOR),
}
"""Settings of every strategy at which its promises hold; LongRoPE's without a list for short contexts."""


def case(name):
    return st.integers(2, 64).flatmap(
        lambda pairs: st.tuples(
            st.builds(partial(Geometry, 2 * pairs), st.floats(10, 1e7), st.integers(64, 8192)),
            st.floats(0.05, 40),
            SETTINGS[name](pairs),
        )
    )


def keeps(promise, name, geometry, length, given):
    """Asserts one promise at one setting. A hair of floating point is allowed where values are compared, not copied."""
    native, found = geometry.native(length), plan(name, geometry, length, **given)
    before, after = np.array(native.inv_freq), np.array(found.inv_freq)
    with np.errstate(divide="ignore"):
        slowed = np.where(after > 0, before / after, math.inf)
    factor = stretch(geometry, length, given.get("factor"))
    hair = 1e-9
    if promise is Promise.NATIVE_WHEN_TRAINED:
        if name not in ("dynamic", "dynamic_ntk"):  # theirs is another factor, which does nothing there
            given = {key: value for key, value in given.items() if key != "factor"}
        trained = min(length, geometry.trained_length)
        assert plan(name, geometry, trained, **given) == geometry.native(trained)
    elif promise is Promise.FIRST_PAIR_KEPT:
        assert after[0] == before[0]
    elif promise is Promise.LAST_PAIR_DIVIDED:
        assert slowed[-1] == pytest.approx(factor, rel=hair)
    elif promise is Promise.NONE_FASTER:
        assert (slowed >= 1 - hair).all()
    elif promise is Promise.WITHIN_FACTOR:
        assert (slowed <= factor * (1 + hair)).all()
    elif promise is Promise.SLOWER_MORE:
        assert (slowed[1:] >= slowed[:-1] * (1 - hair)).all()
    elif promise is Promise.ORDER_KEPT:
        assert (after[1:] <= after[:-1] * (1 + hair)).all()
    elif promise is Promise.ANY_LENGTH:
        assert plan(name, geometry, 2 * length, **given) == found
    elif promise is Promise.ATTENTION_KEPT:
        assert found.attention_factor == native.attention_factor
    elif promise is Promise.WHOLE_WAVELENGTHS:
        wavelengths = 2 * math.pi / after[after > 0]
        np.testing.assert_allclose(wavelengths, np.round(wavelengths), rtol=1e-12)
    else:
        raise AssertionError(f"{promise} has no test")


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_keeps_its_promises(name):
    @settings(max_examples=60, deadline=None)
    @given(case(name))
    def kept(drawn):
        geometry, ratio, options = drawn
        for promise in PROMISES[name]:
            keeps(promise, name, geometry, max(2, int(geometry.trained_length * ratio)), options)

    kept()


def test_every_strategy_has_promises_and_settings_to_hold_them_at():
    assert set(SETTINGS) == set(PROMISES) == set(STRATEGIES)
    assert set().union(*PROMISES.values()) == set(Promise)
    for name in STRATEGIES:
        assert (Promise.ANY_LENGTH in PROMISES[name]) == ("factor" not in options_of(name))


def test_promises_are_not_modest_what_is_left_out_does_not_hold():
    broken = {
        ("linear", Promise.FIRST_PAIR_KEPT): {},
        ("linear", Promise.ANY_LENGTH): {},
        ("dynamic_ntk", Promise.WITHIN_FACTOR): {"rule": "transformers", "factor": 8.0},
        ("yarn", Promise.ATTENTION_KEPT): {},
        ("yarn", Promise.LAST_PAIR_DIVIDED): {"beta_slow": 0.01},
        ("base", Promise.NATIVE_WHEN_TRAINED): {},
        ("base", Promise.NONE_FASTER): {"theta": 100.0},
        ("truncated", Promise.SLOWER_MORE): {"cutoff": 64, "still": 32.0, "floor": 64.0},
        ("proportional", Promise.FIRST_PAIR_KEPT): {"p": 0.0},
        ("resonance", Promise.NATIVE_WHEN_TRAINED): {},
        ("resonance", Promise.NONE_FASTER): {},
    }
    geometry = Geometry(64, 10_000.0, 4096)
    for (name, promise), options in broken.items():
        assert promise not in PROMISES[name]
        with pytest.raises(AssertionError):
            keeps(promise, name, geometry, 16_384, options)
