"""Every strategy keeps its promises, at any geometry, length and setting of its options."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategy_examples import FOR_SHORT_CONTEXTS, FREQUENCY_STRATEGIES, file_of

from rope.geometry import Geometry
from rope.strategies import PROMISES, STRATEGIES, Promise, kinds_of, options_of, plan, stretch
from rope.strategies.registry import EXAMPLES, REQUIRED

PROMISING = [name for name in STRATEGIES if PROMISES[name]]


def settings_of(name, pairs):
    """Values of any of a strategy's options, by what they take; some settings are refused, as a bound below another."""

    def values(option, kind):
        default = options_of(name)[option]
        if kind == "number":
            return st.floats(1.01, 64.0) if default is None else st.floats(default / 20, default * 20)
        if kind in ("word", "mapping"):
            return st.sampled_from([default, *(example[option] for example in EXAMPLES[name] if option in example)])
        return {"whole": st.integers(2, 8192), "flag": st.booleans(), "list": lists}[kind]

    lists = st.lists(st.floats(0.1, 64.0), min_size=pairs, max_size=pairs)
    drawn = {
        option: values(option, kind) for option, kind in kinds_of(name).items() if option not in FOR_SHORT_CONTEXTS
    }
    required = {option: drawn.pop(option) for option in REQUIRED[name]}
    return st.fixed_dictionaries(required, optional=drawn)


def case(name):
    return st.integers(2, 64).flatmap(
        lambda pairs: st.tuples(
            st.builds(partial(Geometry, 2 * pairs), st.floats(10, 1e7), st.integers(64, 8192)),
            st.floats(0.05, 40),
            settings_of(name, pairs),
        )
    )


def keeps(promise, name, geometry, length, given):
    """Asserts one promise at one setting. Compared values may differ by rounding; copied ones may not."""
    native, result = geometry.native(length), plan(name, geometry, length, **given)
    before, after = np.array(native.inv_freq), np.array(result.inv_freq)
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
        assert plan(name, geometry, 2 * length, **given) == result
    elif promise is Promise.ATTENTION_KEPT:
        assert result.attention_factor == native.attention_factor
    elif promise is Promise.WHOLE_WAVELENGTHS:
        wavelengths = 2 * math.pi / after[after > 0]
        np.testing.assert_allclose(wavelengths, np.round(wavelengths), rtol=1e-12)
    else:
        raise AssertionError(f"{promise} has no test")


@pytest.mark.parametrize("name", PROMISING)
def test_every_strategy_keeps_its_promises(name):
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
    @given(case(name))
    def check(drawn):
        geometry, ratio, options = drawn
        length = max(2, int(geometry.trained_length * ratio))
        try:
            plan(name, geometry, length, **options)
        except ValueError:
            assume(False)
        for promise in PROMISES[name]:
            try:
                keeps(promise, name, geometry, length, options)
            except AssertionError as broken:
                raise AssertionError(
                    f"{file_of(name)}: {name} promises {promise.name} ({promise.value}) and breaks it at {length} "
                    f"tokens with {options} on {geometry}: correct its formula, or remove the promise"
                ) from broken

    check()


def test_every_promise_applies_to_some_strategy():
    assert set().union(*PROMISES.values()) == set(Promise)


@pytest.mark.parametrize("name", FREQUENCY_STRATEGIES)
def test_a_frequency_strategy_without_a_factor_promises_the_same_plan_at_every_length(name):
    if "factor" in options_of(name):
        assert Promise.ANY_LENGTH not in PROMISES[name]
    else:
        assert Promise.ANY_LENGTH in PROMISES[name], (
            f"{file_of(name)}: {name} has no factor: add Promise.ANY_LENGTH to its @strategy(...), or give it a factor"
        )


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
        ("part_ntk", Promise.FIRST_PAIR_KEPT): {"extrapolation_factor": 0.5, "ntk_factor": 0.5},
        ("part_ntk", Promise.LAST_PAIR_DIVIDED): {"gamma_1": 0.01, "beta_1": 0.01},
        ("cope", Promise.FIRST_PAIR_KEPT): {"clip_low_n": 32, "hard": True},
        ("resonance", Promise.NATIVE_WHEN_TRAINED): {},
        ("resonance", Promise.NONE_FASTER): {},
    }
    geometry = Geometry(64, 10_000.0, 4096)
    for (name, promise), options in broken.items():
        assert promise not in PROMISES[name]
        with pytest.raises(AssertionError):
            keeps(promise, name, geometry, 16_384, options)
