"""Every strategy's formula, options and refusals."""

from __future__ import annotations

import inspect
import math
import re

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some
from strategy_examples import FOR_SHORT_CONTEXTS, advice, examples, file_of
from support import CONF

from rope.geometry import Geometry, Plan, inverse_frequencies, layers_of
from rope.pairwise import Pairwise
from rope.strategies import (
    ALIASES,
    PROMISES,
    STRATEGIES,
    Promise,
    kinds_of,
    options_of,
    plan,
    plans,
    required_options,
)
from rope.strategies.registry import REQUIRED

SMALL = Geometry(head_dim=64, base=10_000.0, trained_length=4096)
STRETCHED = 16_384
DECLARED = Plan(tuple((inverse_frequencies(64, 10_000.0) / np.linspace(1, 8, 32)).tolist()), 1.25)
TRAINED_SCALED = Geometry(64, 10_000.0, 4096, natives=((4096, DECLARED),))
SCALING = ["linear", "ntk", "dynamic_ntk", "ntk_fixed", "ntk_mixed", "by_parts", "yarn", "llama3"]
RAMPED = ("by_parts", "yarn", "llama3")
LISTED = np.linspace(1.0, 4.0, 32).tolist()


def array(result: Plan) -> np.ndarray:
    return np.array(result.inv_freq)


@pytest.mark.parametrize("geometry", [SMALL, TRAINED_SCALED], ids=["plain", "scaled in training"])
@pytest.mark.parametrize("length", [2, 1000, 4096])
@pytest.mark.parametrize("name", [name for name in STRATEGIES if Promise.NATIVE_WHEN_TRAINED in PROMISES[name]])
def test_up_to_the_trained_length_every_strategy_is_the_native_plan_bit_for_bit(name, length, geometry):
    assert plan(name, geometry, length) == geometry.native(length)
    for options in examples(name):
        if not options.keys() & {"factor", *FOR_SHORT_CONTEXTS}:
            assert plan(name, geometry, length, **options) == geometry.native(length)


@pytest.mark.parametrize("name", SCALING)
def test_on_a_checkpoint_scaled_in_training_a_strategy_acts_on_top_of_its_own_plan(name):
    result = plan(name, TRAINED_SCALED, STRETCHED)
    alone = plan(name, SMALL, STRETCHED)
    assert result.attention_factor == pytest.approx(1.25 * alone.attention_factor, rel=1e-15)
    change = array(result) / array(DECLARED)
    assert (change <= 1 + 1e-12).all() and (change >= 1 / 4 - 1e-12).all() and change[-1] == pytest.approx(1 / 4)
    if name not in RAMPED:
        np.testing.assert_allclose(change, array(alone) / SMALL.inv_freq(2), rtol=1e-14)
    else:  # the place of a pair on the ramp depends on its frequency in training
        assert np.abs(change / (array(alone) / SMALL.inv_freq(2)) - 1).max() > 0.01


def outcome(name, options):
    """The plans of a setting, or the refusal of it."""
    try:
        return plans(name, {"all": SMALL}, STRETCHED, **options)
    except ValueError as refusal:
        return str(refusal)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_option_changes_the_plan(name):
    required = required_options(name, SMALL.pairs)
    for options in examples(name):
        result = outcome(name, options)
        assert not isinstance(result, str), f"{file_of(name)}: the example {options} of {name} is refused: {result}"
        assert hash(result)
        for option, value in options.items():
            if value != required.get(option):
                without = required | {other: kept for other, kept in options.items() if other != option}
                assert result != outcome(name, without), f"{options} changes nothing. {advice(name, option)}"


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_a_file_in_conf_that_says_what_its_options_mean(name):
    path = CONF / "strategy" / f"{name}.yaml"
    options = {option: value for option, value in options_of(name).items() if option != "factor"}  # the top level's
    lines = [f"{option}: {yaml.safe_dump(value).split()[0]} # WHAT IT MEANS" for option, value in options.items()]
    assert path.exists(), "\n".join(
        [f"write conf/strategy/{name}.yaml:", "# WHAT IT IS (SOURCE)", f"name: {name}", *lines]
    )
    text = path.read_text()
    assert re.match(r"# .+\.", text), f"conf/strategy/{name}.yaml: write a comment above all that says what it is"
    for option in options:
        line = f"`{option}: VALUE # WHAT IT MEANS`"
        assert re.search(rf"^{option}: \S+ # \S.*$", text, re.M), f"conf/strategy/{name}.yaml: write {line} on one line"


@pytest.mark.parametrize("name", SCALING)
def test_changing_the_geometry_or_the_length_changes_the_plan(name):
    result = plan(name, SMALL, STRETCHED)
    assert plan(name, SMALL, 2 * STRETCHED) != result
    for other in (
        Geometry(128, 10_000.0, 4096),
        Geometry(64, 20_000.0, 4096),
        Geometry(64, 10_000.0, 2048),
        Geometry(64, 10_000.0, 4096, partial=0.5),
        TRAINED_SCALED,
    ):
        assert plan(name, other, STRETCHED) != result


def test_linear_divides_every_pair():
    np.testing.assert_allclose(array(plan("linear", SMALL, 10_000)), SMALL.inv_freq(2) * 4096 / 10_000, rtol=1e-15)
    assert plan("pi", SMALL, 10_000) == plan("linear", SMALL, 10_000)


@pytest.mark.parametrize("name", ["ntk", "dynamic_ntk"])
def test_ntk_is_a_larger_base(name):
    expected = inverse_frequencies(64, 10_000.0 * 4 ** (64 / 62))
    np.testing.assert_allclose(array(plan(name, SMALL, STRETCHED)), expected, rtol=1e-14)
    assert plan(name, SMALL, STRETCHED).inv_freq[0] == 1.0
    assert plan(name, SMALL, STRETCHED).inv_freq[-1] == pytest.approx(SMALL.inv_freq(2)[-1] / 4, rel=1e-14)


def test_dynamic_ntk_by_the_natural_rule_ignores_factor():
    natural = plan("dynamic_ntk", SMALL, STRETCHED)
    assert plan("dynamic_ntk", SMALL, STRETCHED, factor=32.0) == natural == plan("ntk", SMALL, STRETCHED)
    assert plan("dynamic_ntk", SMALL, STRETCHED, rule="transformers", factor=1) == natural


@pytest.mark.parametrize("factor", [1.1, 2.3, 3.7])
def test_dynamic_ntk_leaves_the_trained_length_alone_whatever_the_factor(factor):
    result = plan("dynamic_ntk", SMALL, 4096, rule="transformers", factor=factor)
    assert result == SMALL.native(4096)


def test_dynamic_ntk_by_the_rule_of_transformers_overshoots():
    for factor, alpha in ((2.0, 7.0), (4.0, 13.0), (None, 13.0)):
        result = plan("dynamic_ntk", SMALL, STRETCHED, rule="transformers", factor=factor)
        np.testing.assert_allclose(array(result), array(plan("ntk", SMALL, STRETCHED, factor=alpha)), rtol=1e-14)


@pytest.mark.parametrize("ramp", ["rotations", "index"])
def test_by_parts_keeps_fast_pairs_and_interpolates_slow_ones(ramp):
    plain, result = SMALL.inv_freq(2), array(plan("by_parts", SMALL, STRETCHED, ramp=ramp, truncate=False))
    rotations = 4096 * plain / (2 * math.pi)
    np.testing.assert_array_equal(result[rotations >= 32], plain[rotations >= 32])
    np.testing.assert_allclose(result[rotations <= 1], plain[rotations <= 1] / 4, rtol=1e-14)
    kept = (result / plain - 1 / 4) / (1 - 1 / 4)
    between = np.flatnonzero((rotations > 1) & (rotations < 32))
    along = rotations[between] if ramp == "rotations" else between
    straight = np.polyfit(along, kept[between], 1)
    np.testing.assert_allclose(np.polyval(straight, along), kept[between], atol=1e-12)


def test_yarn_is_by_parts_with_an_attention_factor():
    for ramp in ("index", "rotations"):
        result = plan("yarn", SMALL, STRETCHED, ramp=ramp)
        assert result.inv_freq == plan("by_parts", SMALL, STRETCHED, ramp=ramp).inv_freq
        assert result.attention_factor == 0.1 * math.log(4) + 1


def test_yarn_attention_options_take_precedence_as_in_transformers():
    def attention(**options):
        return plan("yarn", SMALL, STRETCHED, **options).attention_factor

    both = {"mscale": 2.0, "mscale_all_dim": 1.0}
    assert attention(**both) == (0.1 * 2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)
    assert attention(**both, attention_factor=1.5) == 1.5
    assert (
        attention(mscale=2.0) == attention(mscale=2.0, mscale_all_dim=0) == attention(mscale_all_dim=2.0) == attention()
    )


def test_a_factor_of_1_is_refused_as_an_option_but_allowed_from_the_length():
    assert plan("yarn", SMALL, 4096) == plan("none", SMALL, 4096)
    with pytest.raises(ValueError, match=r"factor=1\.0: give a finite number above 1; None takes length / trained"):
        plan("yarn", SMALL, 4096, factor=1.0)


def test_an_index_ramp_on_native_frequencies_that_happen_to_be_plain_is_the_published_one():
    same = Geometry(64, 10_000.0, 4096, natives=((4096, SMALL.native(2)),))
    for fast, slow in ((32, 1), (1e5, 1e-3), (3, 2), (5e4, 1e4), (1e-3, 1e-4)):
        options = {"beta_fast": fast, "beta_slow": slow, "truncate": slow != 1}
        np.testing.assert_allclose(
            array(plan("yarn", same, STRETCHED, **options)),
            array(plan("yarn", SMALL, STRETCHED, **options)),
            rtol=1e-12,
        )


def test_an_index_ramp_takes_a_native_pair_that_rises_for_one_that_stays():
    def change(*native):
        geometry = Geometry(12, 10_000.0, 64, natives=((64, Plan(native)),))
        return array(plan("yarn", geometry, 256, beta_fast=8.0, beta_slow=0.3, truncate=False)) / native

    np.testing.assert_allclose(change(1, 0.05, 0.4, 0.02, 0.01, 0.005), change(1, 0.05, 0.05, 0.02, 0.01, 0.005))


def test_a_pair_of_zero_frequency_stays_so():
    geometry = Geometry(8, 10_000.0, 64, natives=((64, Plan((1.0, 0.1, 0.0, 0.0))),))
    for name in SCALING:
        assert plan(name, geometry, 256).inv_freq[2:] == (0.0, 0.0) < plan(name, geometry, 256).inv_freq[:2]


def test_an_index_ramp_between_equal_bounds_is_a_step():
    result = array(plan("by_parts", SMALL, STRETCHED, ramp="index", beta_fast=4.0, beta_slow=4.0, truncate=False))
    kept = 4096 * SMALL.inv_freq(2) / (2 * math.pi) >= 4
    np.testing.assert_allclose(result, SMALL.inv_freq(2) / np.where(kept, 1, 4), rtol=1e-14)


def test_yarn_with_bounds_that_no_pair_reaches_keeps_the_published_guard():
    # both bounds fall before the first pair, so the ramp has no width and only pair 0 stays
    tiny = Geometry(64, 10_000.0, 64)
    result = array(plan("by_parts", tiny, 256, ramp="index", beta_fast=500.0, beta_slow=12.0, truncate=True))
    np.testing.assert_allclose(result, tiny.inv_freq(2) / np.array([1.0] + [4.0] * 31), rtol=1e-14)


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("linear", {"factor": 1}, "factor=1: give a finite number above 1"),
        ("ntk", {"factor": 0.5}, "factor=0.5: give a finite number above 1"),
        ("yarn", {"factor": math.inf}, "factor=inf: give a finite number above 1"),
        ("llama3", {"factor": "8"}, "factor='8': give a finite number above 1"),
        ("linear", {"factor": True}, "factor=True: give a finite number above 1"),
        ("dynamic_ntk", {"rule": "transformers", "factor": 0.9}, "factor=0.9: give a finite number of at least 1"),
        ("dynamic_ntk", {"rule": "hf"}, "rule='hf': give one of natural, transformers"),
        ("by_parts", {"ramp": "steep"}, "ramp='steep': give one of rotations, index"),
        ("by_parts", {"beta_slow": 0}, "beta_slow=0: give a finite number above 0"),
        (
            "yarn",
            {"beta_fast": 1, "beta_slow": 2},
            "beta_fast=1 with beta_slow=2: give beta_fast of at least beta_slow",
        ),
        ("yarn", {"truncate": 1}, "truncate=1: give true or false"),
        ("yarn", {"attention_factor": 0}, "attention_factor=0: give a finite number above 0"),
        ("yarn", {"mscale": -1.0}, "mscale=-1.0: give a finite number of at least 0"),
        ("llama3", {"low_freq_factor": 5.0}, "high_freq_factor=4.0 with low_freq_factor=5.0"),
        (
            "yarn",
            {"beta_fst": 3},
            "unknown option of yarn: 'beta_fst'; did you mean 'beta_fast'? options: factor, beta",
        ),
        ("ntk_mixed", {"mixed_b": 0}, "mixed_b=0: give a finite number above 0; 1 is ntk_fixed"),
        ("base", {"theta": 1}, "theta=1: give a finite number above 1"),
        ("longrope", {"mscale": "mid"}, "mscale='mid': give one of su, yarn, none"),
        ("longrope", {"long_factor": [1.0]}, "long_factor has 1 numbers; give 32, one per rotated pair"),
        ("longrope", {"short_factor": "abc"}, "short_factor has 0 numbers; give 32"),
        ("longrope", {"long_factor": [*LISTED[:-1], 0]}, "long_factor[31]=0: give a finite number above 0"),
        ("longrope", {"original_length": 1}, "original_length=1: give a whole number of at least 2"),
        ("longrope", {"long_mscale": 0}, "long_mscale=0: give a finite number above 0"),
        ("factors", {}, "factors has 0 numbers; give 32, one per rotated pair"),
        ("factors", {"factors": LISTED, "attention_factor": 0}, "attention_factor=0: give a finite number above 0"),
        ("power", {"k": -1}, "k=-1: give a finite number of at least 0"),
        ("truncated", {"cutoff": 1}, "cutoff=1: give a whole number of at least 2"),
        ("truncated", {"floor": 4.0}, "floor=4.0: give a finite number of at least 8; that is `still`"),
        ("truncated", {"still": 0.5}, "still=0.5: give a finite number of at least 1"),
        ("proportional", {"p": 1.5}, "p=1.5: give a finite number of at least 0 and at most 1"),
        ("proportional", {"p": -0.1}, "p=-0.1: give a finite number of at least 0"),
        ("dynamic", {"over": "base"}, "over='base': give a strategy that grows from the trained length: "),
        ("dynamic", {"over": "resonance"}, "over='resonance': give a strategy that grows"),
        ("dynamic", {"over": "logn"}, "over='logn': give a strategy that grows"),
        ("dynamic", {"options": {"factor": 2.0}}, "options of dynamic hold a factor, which follows the length"),
        ("dynamic", {"options": {"beta": 2.0}}, "unknown option of linear: 'beta'"),
        ("dynamic", {"rule": "hf"}, "rule='hf': give one of natural, transformers"),
        ("resonance", {"over": "zzz"}, "unknown strategy: 'zzz'"),
        ("resonance", {"options": 7}, "options=7: give names and values, such as {beta_fast: 16}"),
        ("none", {"factor": 2.0}, "unknown option of none: 'factor'; options: none at all"),
        ("yran", {}, "unknown strategy: 'yran'; did you mean 'yarn'? strategies: "),
        ("zzz", {}, "unknown strategy: 'zzz'; strategies: "),
        (None, {}, "unknown strategy: None;"),
    ],
)
def test_a_strategy_refuses_in_sentences(name, options, says):
    for length in (STRETCHED, 4096):  # at the trained length too, where the value would not matter
        with pytest.raises(ValueError, match=r".") as refusal:
            plan(name, SMALL, length, **options)
        assert says in str(refusal.value)


def test_an_unknown_strategy_is_answered_with_all_names():
    with pytest.raises(ValueError, match="unknown strategy: 'zzz'") as refusal:
        plan("zzz", SMALL, 64)
    assert set(str(refusal.value).rpartition("strategies: ")[2].split(", ")) == {*STRATEGIES, *ALIASES}


NUMBERS = (math.nan, math.inf, -1.0, "8", True, [2.0])
OUT_OF_RANGE = {
    "number": NUMBERS,
    "whole": NUMBERS,
    "flag": ("yes", 1),
    "word": ("zzz", 7),
    "list": ("abc", [2.0], [math.nan] * 32, [-1.0] * 32),
    "mapping": ("zzz", 7),
}
"""By the kind of an option: values out of its range, or of another kind."""


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_option_out_of_its_range_is_refused_with_what_is_allowed(name):
    for option, kind in kinds_of(name).items():
        others = required_options(name, SMALL.pairs)
        if option == "factor" and "over" in options_of(name):
            others = {"over": "linear"}  # some are by default over `none`, which has no factor to refuse
        for value in OUT_OF_RANGE[kind]:
            result = outcome(name, others | {option: value})
            named = option in ("over", "options") or option in str(result)
            assert isinstance(result, str) and named and re.search("give|strategies: ", result), (
                f"{file_of(name)}: {name} must refuse {option}={value!r} in a sentence with its name and what "
                f"to give, as check_number(), check_integer() and check_choice() do; now the outcome is {result!s:.80}"
            )


@pytest.mark.parametrize("length", [1, 0, -4, 4096.0, "4096", True, None])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_length_that_is_no_count_of_tokens_is_refused(name, length):
    with pytest.raises(ValueError, match=r"length=.*: give a whole number of at least 2"):
        plan(name, SMALL, length, **required_options(name, SMALL.pairs))


def test_ntk_refuses_a_single_pair():
    with pytest.raises(ValueError, match=r"head_dim=2 with partial=1\.0 rotates one; use linear"):
        plan("ntk", Geometry(2, 100.0, 64), 128)


def test_options_are_the_keyword_only_arguments_with_their_defaults():
    assert options_of("llama3") == {"factor": None, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert options_of("pi") == options_of("linear") == {"factor": None} and options_of("none") == {}
    for name, function in STRATEGIES.items():
        assert function.__name__ == name
        assert list(inspect.signature(function).parameters) == ["geometry", "length", *options_of(name)]
    assert set(ALIASES.values()) <= set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_leaves_layers_of_a_bounded_window_alone(name):
    sliding = Geometry(64, 100.0, 4096)
    geometries = {"full_attention": SMALL, "sliding_attention": sliding}
    options = required_options(name, SMALL.pairs)
    if isinstance(plan(name, SMALL, STRETCHED, **options), Pairwise):
        with pytest.raises(ValueError, match="changes attention itself"):
            plans(name, geometries, STRETCHED, **options)
        return
    kept = dict(plans(name, geometries, STRETCHED, **options))["sliding_attention"]
    assert kept.inv_freq == sliding.native(STRETCHED).inv_freq


def test_layers_of_a_bounded_window_keep_their_native_plan():
    sliding = Geometry(64, 100.0, 4096)
    result = dict(plans("yarn", {"full_attention": SMALL, "sliding_attention": sliding}, STRETCHED, factor=8.0))
    assert result == {
        "full_attention": plan("yarn", SMALL, STRETCHED, factor=8.0),
        "sliding_attention": sliding.native(STRETCHED),
    }
    assert plans("yarn", {"all": SMALL}, STRETCHED) == (("all", plan("yarn", SMALL, STRETCHED)),)
    with pytest.raises(ValueError, match="unknown option of yarn"):
        plans("yarn", {"sliding_attention": sliding}, STRETCHED, beta=1)
    with pytest.raises(ValueError, match="no geometry was given"):
        plans("yarn", {}, STRETCHED)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if "list" in kinds_of(name).values()])
def test_a_list_is_of_the_models_own_number_of_pairs(name):
    options = {option: LISTED[:16] for option, kind in kinds_of(name).items() if kind == "list"}
    assert plan(name, Geometry(64, 1e4, 4096, partial=0.5), STRETCHED, **options)
    with pytest.raises(ValueError, match="has 16 numbers; give 32, one per rotated pair"):
        plan(name, SMALL, STRETCHED, **options)


def test_longrope_needs_its_long_list_beyond_the_original_length_only():
    assert plan("longrope", SMALL, 4096) == SMALL.native(4096)
    with pytest.raises(ValueError, match="long_factor has 0 numbers; give 32"):
        plan("longrope", SMALL, 4097)
    assert plan("longrope", SMALL, 4097, original_length=8192).attention_factor > 1


def test_longrope_switches_lists_at_the_original_length_and_keeps_its_attention_factor():
    lists = {"short_factor": [1.5] * 32, "long_factor": LISTED, "original_length": 1024}
    short, long = (plan("longrope", SMALL, length, factor=8.0, **lists) for length in (1024, 1025))
    np.testing.assert_allclose(SMALL.inv_freq(2) / array(short), 1.5, rtol=1e-14)
    np.testing.assert_allclose(SMALL.inv_freq(2) / array(long), LISTED, rtol=1e-14)
    assert short.attention_factor == long.attention_factor == math.sqrt(1 + math.log(8) / math.log(1024))
    given = {"attention_factor": 1.3, "short_mscale": 1.1, "long_mscale": 1.2}
    assert [plan("longrope", SMALL, n, **lists, **given).attention_factor for n in (1024, 1025)] == [1.1, 1.2]
    assert plan("longrope", SMALL, 4096, **lists, attention_factor=1.3).attention_factor == 1.3
    rules = [plan("longrope", SMALL, 8192, factor=8.0, mscale=rule, **lists) for rule in ("yarn", "none")]
    assert [result.attention_factor for result in rules] == [0.1 * math.log(8) + 1, 1.0]


def test_fixed_ntk_is_a_base_times_factor_with_a_remainder_for_all():
    expected = inverse_frequencies(64, 40_000.0) / 4 ** (2 / 64)
    np.testing.assert_allclose(array(plan("ntk_fixed", SMALL, STRETCHED)), expected, rtol=1e-14)


def test_mixed_ntk_lies_between_fixed_ntk_and_linear():
    fixed, linear = (array(plan(name, SMALL, STRETCHED)) for name in ("ntk_fixed", "linear"))
    np.testing.assert_allclose(array(plan("ntk_mixed", SMALL, STRETCHED, mixed_b=1.0)), fixed, rtol=1e-14)
    mixed = array(plan("ntk_mixed", SMALL, STRETCHED))
    assert (mixed[:-1] < fixed[:-1]).all() and (mixed[:-1] > linear[:-1]).all()
    a = math.log(4) / 32**0.75
    np.testing.assert_allclose(mixed / SMALL.inv_freq(2), np.exp(-a * np.arange(1, 33) ** 0.75), rtol=1e-14)


def test_another_base_is_another_base():
    np.testing.assert_allclose(array(plan("base", SMALL, 64, theta=1e6)), inverse_frequencies(64, 1e6), rtol=1e-14)
    assert plan("base", SMALL, 64, theta=10_000.0) == SMALL.native(64)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if REQUIRED[name]])
def test_what_is_required_is_refused_when_it_is_missing(name):
    for option in REQUIRED[name]:
        with pytest.raises(ValueError, match=f"{option} has 0 numbers; give 32"):
            plan(name, SMALL, STRETCHED)


def test_giraffe_bends_or_truncates_slow_pairs():
    plain, wavelengths = SMALL.inv_freq(2), 2 * math.pi / SMALL.inv_freq(2)
    np.testing.assert_allclose(array(plan("power", SMALL, 64)), plain * np.sqrt(1 - np.arange(32) / 32), rtol=1e-14)
    result = array(plan("truncated", SMALL, 64, cutoff=256))
    kept, stopped = wavelengths <= 256, wavelengths > 8 * 256
    np.testing.assert_array_equal(result[kept], plain[kept])
    np.testing.assert_array_equal(result[stopped], 0.0)
    np.testing.assert_allclose(2 * math.pi / result[~kept & ~stopped], 16 * 256, rtol=1e-14)
    assert kept.any() and stopped.any() and (~kept & ~stopped).any()


@pytest.mark.parametrize("p, rotating", [(0.0, 0), (0.25, 8), (0.75, 24), (1.0, 32)])
def test_proportional_sets_slow_frequencies_to_zero(p, rotating):
    result = plan("proportional", SMALL, 64, p=p).inv_freq
    assert result == (*SMALL.native(64).inv_freq[:rotating], *[0.0] * (32 - rotating))


def test_dynamic_is_the_strategy_it_goes_over_at_the_running_length():
    for over in ("linear", "ntk", "ntk_mixed", "by_parts", "yarn", "llama3"):
        assert plan("dynamic", SMALL, STRETCHED, over=over) == plan(over, SMALL, STRETCHED, factor=4.0)
    for options in ({}, {"rule": "transformers"}, {"rule": "transformers", "factor": 2.0}):
        result = plan("dynamic", SMALL, STRETCHED, over="ntk", **options)
        np.testing.assert_allclose(result.inv_freq, plan("dynamic_ntk", SMALL, STRETCHED, **options).inv_freq)
    pairs = (("beta_fast", 16.0),)  # as a cell keeps its options
    expected = plan("yarn", SMALL, STRETCHED, beta_fast=16.0)
    assert plan("dynamic", SMALL, STRETCHED, over="yarn", options=pairs) == expected


def test_resonance_rounds_the_wavelengths_of_the_plan_it_goes_over():
    result, under = plan("resonance", SMALL, STRETCHED), plan("yarn", SMALL, STRETCHED)
    np.testing.assert_allclose(2 * math.pi / array(result), np.round(2 * math.pi / array(under)), rtol=1e-14)
    assert result.attention_factor == under.attention_factor
    nested = plan("resonance", SMALL, STRETCHED, over="dynamic", options={"over": "yarn"})
    assert nested == result and plan("resonance", SMALL, 4096).inv_freq[0] == 2 * math.pi / 6
    assert plan("resonance", SMALL, 64, over="proportional").inv_freq[-1] == 0.0


def test_resonance_keeps_what_a_strategy_does_to_attention():
    result, before = plan("resonance", SMALL, STRETCHED, over="rerope"), plan("rerope", SMALL, STRETCHED)
    assert isinstance(result, Pairwise) and result.changes() == before.changes()
    assert result.inv_freq == plan("resonance", SMALL, STRETCHED, over="none").inv_freq


def test_single_layers_have_their_own_plans():
    layers = {"0-1": 1, "2,5-6": 8, "7": {"factor": 2.0, "beta_slow": 3.0}}
    options = {"over": "yarn", "factor": 4.0, "options": {"beta_slow": 2.0}}
    sliding = Geometry(64, 100.0, 4096)
    geometries = {"full_attention": SMALL, "sliding_attention": sliding}
    result = plans("per_layer", geometries, STRETCHED, layers=layers, **options)
    assert result == (
        ("full_attention", plan("yarn", SMALL, STRETCHED, factor=4.0, beta_slow=2.0)),
        ("full_attention[0-1]", SMALL.native(STRETCHED)),
        ("full_attention[2,5-6]", plan("yarn", SMALL, STRETCHED, factor=8.0, beta_slow=2.0)),
        ("full_attention[7]", plan("yarn", SMALL, STRETCHED, factor=2.0, beta_slow=3.0)),
        ("sliding_attention", sliding.native(STRETCHED)),
    )
    pairs = (("0-1", 1), ("2,5-6", 8), ("7", (("beta_slow", 3.0), ("factor", 2.0))))
    assert plans("per_layer", geometries, STRETCHED, layers=pairs, **options) == result


@settings(max_examples=40, deadline=None)
@given(
    some.dictionaries(some.integers(0, 12), some.floats(1, 32), min_size=2, max_size=5),
    some.sampled_from(["linear", "yarn"]),
)
def test_between_knots_the_logarithm_of_a_layers_factor_runs_straight(knots, over):
    by_layer = {}
    for key, held in plans("per_layer", {"all": SMALL}, STRETCHED, over=over, factor=4.0, knots=knots):
        for layer in layers_of(key)[1] or ():
            assert layer not in by_layer
            by_layer[layer] = held
    assert sorted(by_layer) == list(range(min(knots), max(knots) + 1))
    for layer, held in by_layer.items():
        factor = math.exp(np.interp(layer, sorted(knots), [math.log(knots[knot]) for knot in sorted(knots)]))
        wanted = plan(over, SMALL, STRETCHED, factor=factor) if factor > 1 + 1e-12 else SMALL.native(STRETCHED)
        np.testing.assert_allclose(held.inv_freq, wanted.inv_freq, rtol=1e-9)
        assert held.attention_factor == pytest.approx(wanted.attention_factor)


def test_equal_knots_are_one_group_and_knots_go_beside_layers():
    flat = plans("per_layer", {"all": SMALL}, STRETCHED, knots={0: 4, 5: 4, 7: 1})
    assert flat[1] == ("all[0-5]", plan("linear", SMALL, STRETCHED, factor=4.0))
    assert flat[-1] == ("all[7]", SMALL.native(STRETCHED)) and [key for key, _ in flat[2:]] == ["all[6]", "all[7]"]
    beside = plans("per_layer", {"all": SMALL}, STRETCHED, layers={"9": 2}, knots=(("0", 4), ("5", 4)))
    assert [key for key, _ in beside] == ["all", "all[9]", "all[0-5]"]


@pytest.mark.parametrize(
    "knots, says",
    [
        ({"0": 4}, "knots={'0': 4}: give at least two layer numbers from 0 on, each with a factor of at least 1"),
        ({"0": 4, "x": 2}, "give at least two layer numbers"),
        ({"0": 4, "7": 0.5}, "give at least two layer numbers"),
        ({"0": 4, "00": 2}, "give at least two layer numbers"),
        ([4, 2], "give at least two layer numbers"),
    ],
)
def test_knots_are_refused_in_sentences(knots, says):
    with pytest.raises(ValueError, match=r".") as refusal:
        plans("per_layer", {"all": SMALL}, STRETCHED, knots=knots)
    assert says in str(refusal.value)


def test_knots_over_layers_that_have_a_group_or_of_several_types_are_refused():
    with pytest.raises(ValueError, match="layers name layer 3 in '3' and in '3'; name it once"):
        plans("per_layer", {"all": SMALL}, STRETCHED, layers={"3": 2}, knots={0: 4, 7: 2})
    geometries = {"full_attention": SMALL, "sliding_attention": SMALL}
    with pytest.raises(ValueError, match="knots run through all layers, and those of this model are of several types"):
        plans("per_layer", geometries, STRETCHED, knots={0: 4, 7: 2})


@pytest.mark.parametrize(
    "layers, says",
    [
        ({"a": 2}, "layers 'a': give layer numbers and ranges from 0 on, such as 0-7,12"),
        ({"3-1": 2}, "layers '3-1': give layer numbers"),
        ({"0,0-2": 2}, "layers '0,0-2': a layer is in it twice"),
        ({"0-3": 2, "3-4": 4}, "layers name layer 3 in '0-3' and in '3-4'; name it once"),
        ({"0": 0.5}, "factor=0.5: give a finite number above 1"),
        ({"0": {"beta": 2}}, "unknown option of linear: 'beta'"),
        ({"0": "x"}, "layers={'0': 'x'}: give layer numbers and a factor or options"),
        ("0-3", "layers='0-3': give layer numbers and a factor or options"),
    ],
)
def test_layers_are_refused_in_sentences(layers, says):
    with pytest.raises(ValueError, match=r".") as refusal:
        plans("per_layer", {"all": SMALL}, STRETCHED, layers=layers)
    assert says in str(refusal.value)
