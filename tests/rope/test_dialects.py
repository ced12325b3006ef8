"""A plan as config.json: transformers alone must make the same model of it."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from strategy_examples import FREQUENCY_STRATEGIES, settings_for_engines
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rope.config import geometry_of
from rope.dialects import to_transformers
from rope.dialects.transformers_v5 import LEGACY_KEYS, NAMES
from rope.geometry import inverse_frequencies
from rope.patch import patched
from rope.strategies import canonical_name, plans, required_options

TRAINED, LENGTH = 64, 160
SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": TRAINED,
    "initializer_range": 0.05,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
}
ORIGINAL = {"original_max_position_embeddings": 16}
DECLARED = {
    "plain": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | ORIGINAL,
    "yarn": {"type": "yarn", "factor": 4.0} | ORIGINAL,
    "longrope": {"type": "longrope", "short_factor": [1.5] * 16, "long_factor": [4.0] * 16} | ORIGINAL,
    "dynamic": {"type": "dynamic", "factor": 2.0},
}
NAMED = [
    ("none", {}, "default"),
    ("linear", {}, "linear"),
    ("pi", {"factor": 4.0}, "linear"),
    ("ntk", {}, "default"),
    ("dynamic_ntk", {}, "dynamic"),
    ("dynamic_ntk", {"rule": "transformers"}, "dynamic"),
    ("dynamic_ntk", {"rule": "transformers", "factor": 3.0}, "dynamic"),
    ("by_parts", {}, "llama3"),
    ("by_parts", {"beta_fast": 8.0}, "llama3"),
    ("by_parts", {"ramp": "index"}, "yarn"),
    ("by_parts", {"ramp": "index", "truncate": False}, "yarn"),
    ("yarn", {}, "yarn"),
    ("yarn", {"truncate": False, "beta_fast": 8.0, "beta_slow": 0.5}, "yarn"),
    ("yarn", {"attention_factor": 2}, "yarn"),
    ("yarn", {"mscale": 1.0, "mscale_all_dim": 0.5}, "yarn"),
    ("yarn", {"ramp": "rotations"}, "longrope"),
    ("llama3", {}, "llama3"),
    ("llama3", {"factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 2.0}, "llama3"),
    ("base", {}, "default"),
    ("dynamic", {}, "linear"),
    ("dynamic", {"over": "yarn"}, "yarn"),
    ("dynamic", {"rule": "transformers", "factor": 3.0}, "linear"),
    ("dynamic", {"over": "ntk", "rule": "transformers", "factor": 3.0}, "dynamic"),
    ("per_layer", {}, "linear"),
    ("per_layer", {"over": "yarn", "options": {"beta_fast": 8.0}, "factor": 4.0}, "yarn"),
]
"""Strategies for which transformers has a rope_type, with settings and the rope_type of each."""
UNNAMED = sorted(set(FREQUENCY_STRATEGIES) - {canonical_name(strategy) for strategy, _, _ in NAMED})
"""All others: each becomes a longrope."""


pytestmark = pytest.mark.usefixtures("one_thread")


class Warnings(logging.Handler):
    """The warnings of transformers."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def warned():
    handler, logger = Warnings(), logging.getLogger("transformers")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with the weights of a tiny random Llama."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(checkpoint):
    """That Llama once for every scaling it may have been trained with."""
    return {declared: loaded(checkpoint, SHAPE | {"rope_scaling": own}) for declared, own in DECLARED.items()}


def save_random(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)


def loaded(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model, length=LENGTH):
    with torch.no_grad():
        return model(torch.arange(length)[None] * 7 % SHAPE["vocab_size"]).logits


def written(config, strategy, length=LENGTH, **options):
    return to_transformers(config, strategy, options, geometry_of(config), length)


def test_every_strategy_that_transformers_has_a_name_for_is_compared():
    missing = set(NAMES) - {strategy for strategy, _, _ in NAMED}
    assert not missing, (
        f"tests/rope/test_dialects.py: write a line into NAMED for each of {', '.join(sorted(missing))}, to which "
        "rope/dialects/transformers_v5.py gives a rope_type"
    )


def test_plans_of_single_layers_are_refused():
    says = "transformers does not support per_layer with different plans for single layers; the closest supported"
    with pytest.raises(ValueError, match=says):
        written(SHAPE, "per_layer", layers={"0": 2})
    with pytest.raises(ValueError, match=says):
        written(SHAPE, "per_layer", knots={0: 4, 1: 2})


def compared(checkpoint, model, strategy, options, declared="plain"):
    """The rope_type of an export, whose logits by a plain from_pretrained are those of the plan in the live model."""
    config = SHAPE | {"rope_scaling": DECLARED[declared]}
    before = copy.deepcopy(config)
    result = written(config, strategy, **options)
    assert config == before
    assert "rope_theta" not in result and "rope_scaling" not in result
    with patched(model, plans(strategy, geometry_of(config), LENGTH, **options)):
        ours = logits(model)
    torch.testing.assert_close(logits(loaded(checkpoint, result)), ours, atol=1e-5, rtol=0)
    if strategy != "none" and declared != "dynamic":
        assert (logits(model) - ours).abs().max() > 1e-3
    return result["rope_parameters"]["rope_type"]


@pytest.mark.parametrize("strategy, options, rope_type", NAMED, ids=str)
def test_a_plain_from_pretrained_gives_the_plan(checkpoint, models, warned, strategy, options, rope_type):
    assert compared(checkpoint, models["plain"], strategy, options) == rope_type
    assert not warned


@pytest.mark.parametrize("strategy", UNNAMED)
def test_a_plain_from_pretrained_gives_the_plan_as_a_longrope(checkpoint, models, warned, strategy):
    for options in settings_for_engines(strategy, pairs=16):
        assert compared(checkpoint, models["plain"], strategy, options) == "longrope"
    assert not warned


@pytest.mark.parametrize("strategy", FREQUENCY_STRATEGIES)
@pytest.mark.parametrize("declared", [declared for declared in DECLARED if declared != "plain"])
def test_on_top_of_a_declared_scaling_it_gives_the_plan_too(checkpoint, models, warned, declared, strategy):
    options = required_options(strategy, pairs=16)
    rope_type = compared(checkpoint, models[declared], strategy, options, declared)
    if declared == "dynamic":
        expected = {name: rope_type for name, setting, rope_type in NAMED if not setting}
        # left alone, it stays what it declares; a strategy takes the place of that
        assert rope_type == ("dynamic" if strategy == "none" else expected.get(strategy, "longrope"))
    else:
        assert rope_type == (declared if strategy == "none" else "longrope")
    # served beyond its declared reach, a yarn or llama3 checkpoint is warned about, and rightly so
    assert not warned or (declared != "dynamic" and strategy == "none")


def test_warnings_of_transformers_are_noticed(checkpoint, warned):
    loaded(checkpoint, written(SHAPE, "yarn") | {"max_position_embeddings": 1234})
    assert any("does not match the ratio" in line for line in warned)


def test_the_native_plan_is_the_checkpoints_own_parameters():
    for declared in ("linear", "llama3", "yarn", "longrope"):
        own = DECLARED[declared]
        for strategy in ("none", "yarn"):
            result = written(SHAPE | {"rope_scaling": own}, strategy, length=TRAINED)
            expected = {key: value for key, value in own.items() if key != "type"} | {"rope_type": declared}
            assert expected.items() <= result["rope_parameters"].items()
            assert result["max_position_embeddings"] == TRAINED
    assert written(SHAPE, "yarn", length=32)["rope_parameters"] == {"rope_type": "default", "rope_theta": 10_000.0}


def test_a_declared_factor_that_depends_on_the_length_is_written_out():
    # transformers takes it from max_position_embeddings, which grows here
    result = written(SHAPE | {"rope_scaling": DECLARED["longrope"]}, "none")
    assert result["max_position_embeddings"] == LENGTH and result["rope_parameters"]["factor"] == 4.0


def test_the_length_that_is_served_is_written_except_for_dynamic_ntk():
    def written_length(strategy, length):
        options = required_options(strategy, pairs=16)
        return written(SHAPE, strategy, length=length, **options)["max_position_embeddings"]

    served = {name: written_length(name, LENGTH) for name in FREQUENCY_STRATEGIES}
    assert served == dict.fromkeys(FREQUENCY_STRATEGIES, LENGTH) | {"dynamic_ntk": TRAINED}
    assert {written_length(name, 32) for name in FREQUENCY_STRATEGIES} == {TRAINED}
    assert written(SHAPE, "linear", factor=4.01)["max_position_embeddings"] == 257
    assert written(SHAPE, "linear", length=32, factor=2.0)["max_position_embeddings"] == 128
    # 106 / 49 * 49 is above 106 in floating point: no token too many
    for trained, length in ((49, 106), (49, 117), (49, 212)):
        config = SHAPE | {"max_position_embeddings": trained}
        assert written(config, "linear", length=length)["max_position_embeddings"] == length


def test_dynamic_ntk_is_written_for_a_given_trained_length():
    geometries = geometry_of(SHAPE, trained_length=32)
    result = to_transformers(SHAPE, "dynamic_ntk", {}, geometries, 128)
    assert result["max_position_embeddings"] == 32 and result["rope_parameters"]["factor"] == 1.0
    rule = to_transformers(SHAPE, "dynamic_ntk", {"rule": "transformers"}, geometries, 128)
    assert rule["rope_parameters"]["factor"] == 4.0


def test_ntk_is_a_larger_theta():
    theta = written(SHAPE, "ntk")["rope_parameters"]["rope_theta"]
    assert theta == pytest.approx(10_000.0 * 2.5 ** (32 / 30), rel=1e-15)


def test_what_is_no_part_of_a_scaling_stays():
    sections = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
    config = {key: value for key, value in SHAPE.items() if "rope" not in key} | {"rope_parameters": sections}
    result = written(config, "yarn")["rope_parameters"]
    assert (result["mrope_section"], result["rope_type"]) == ([4, 6, 6], "yarn")


def test_inside_a_multimodal_config_the_language_model_is_written():
    outer = {"model_type": "llava", "text_config": dict(SHAPE), "vision_config": {"rope_theta": 1.0}}
    result = to_transformers(outer, "linear", {}, geometry_of(outer), LENGTH)
    assert result.keys() == outer.keys() and result["vision_config"] == outer["vision_config"]
    assert result["text_config"]["rope_parameters"]["factor"] == 2.5 and "rope_theta" not in result["text_config"]
    assert outer["text_config"] == SHAPE


GEMMA = SHAPE | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}


@pytest.mark.parametrize(
    "strategy, options, rope_type",
    [
        ("none", {}, "default"),
        ("yarn", {}, "yarn"),
        ("yarn", {"truncate": False}, "longrope"),  # transformers overlooks truncate by layer type
        ("dynamic_ntk", {}, "dynamic"),
        ("llama3", {}, "llama3"),
        ("by_parts", {"ramp": "index"}, "yarn"),
    ],
)
def test_layer_types_are_written_apart(tmp_path, warned, strategy, options, rope_type):
    result = written(GEMMA, strategy, **options)
    parameters = result["rope_parameters"]
    assert parameters["full_attention"]["rope_type"] == rope_type
    assert parameters["sliding_attention"] == {"rope_type": "default", "rope_theta": 1e4}
    assert not {"rope_theta", "rope_scaling", "rope_local_base_freq"} & result.keys()
    save_random(tmp_path, GEMMA)
    model = loaded(tmp_path, GEMMA)
    with patched(model, plans(strategy, geometry_of(GEMMA), LENGTH, **options)):
        ours = logits(model)
    torch.testing.assert_close(logits(loaded(tmp_path, result)), ours, atol=1e-5, rtol=0)
    assert not warned


def test_phi_3_takes_no_rope_type_but_longrope():
    config = SHAPE | {"model_type": "phi3", "original_max_position_embeddings": TRAINED}
    plain = inverse_frequencies(32, 10_000.0)
    for strategy in ("linear", "yarn", "dynamic_ntk", "llama3", "by_parts"):
        result = written(config, strategy)
        parameters = result["rope_parameters"]
        ((_, plan),) = plans(strategy, geometry_of(config), LENGTH)
        assert parameters["rope_type"] == "longrope" and parameters["short_factor"] == parameters["long_factor"]
        assert (plain / parameters["long_factor"]).tolist() == pytest.approx(plan.inv_freq, rel=1e-14)
        assert parameters["attention_factor"] == plan.attention_factor
        assert result["max_position_embeddings"] == LENGTH
    assert written(config, "ntk")["rope_parameters"]["rope_type"] == "default"
    scaled = config | {"original_max_position_embeddings": 16, "rope_scaling": DECLARED["longrope"]}
    assert written(scaled, "none")["original_max_position_embeddings"] == 16
    result = written(scaled, "yarn")
    assert result["original_max_position_embeddings"] == result["rope_parameters"]["original_max_position_embeddings"]


def test_deepseek_keeps_the_scale_of_its_softmax():
    declared = {"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0} | ORIGINAL
    config = SHAPE | {"model_type": "deepseek_v3", "qk_rope_head_dim": 32, "rope_scaling": declared}
    parameters = written(config, "linear")["rope_parameters"]
    assert (parameters["rope_type"], parameters["factor"], parameters["mscale_all_dim"]) == ("longrope", 4.0, 1.0)
    plain = config | {"rope_scaling": None}
    parameters = written(plain, "yarn", mscale=1.0, mscale_all_dim=0.5)["rope_parameters"]
    assert "mscale_all_dim" not in parameters and parameters["attention_factor"] > 1


PROPORTIONAL = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
SLIDING = {"rope_type": "default", "rope_theta": 1e4}


def test_a_zero_frequency_is_written_as_a_finite_divisor():
    config = SHAPE | {"model_type": "of_layer_types"}
    config |= {"rope_parameters": {"full_attention": PROPORTIONAL, "sliding_attention": SLIDING}}
    ((_, plan), _) = plans("yarn", geometry_of(config), LENGTH)
    parameters = written(config, "yarn")["rope_parameters"]["full_attention"]
    assert parameters["rope_type"] == "longrope" and parameters["long_factor"][4:] == [1e28] * 12
    assert (inverse_frequencies(32, 1e6)[:4] / parameters["long_factor"][:4]).tolist() == pytest.approx(
        plan.inv_freq[:4]
    )
    assert "partial_rotary_factor" not in parameters
    assert json.loads(json.dumps(parameters)) == parameters


def test_gemma_4_is_written_as_proportional_or_refused(tmp_path, warned):
    config = GEMMA | {
        "model_type": "gemma4_text",
        "architectures": ["Gemma4ForCausalLM"],
        "global_head_dim": 64,
        "vocab_size_per_layer_input": 96,
        "hidden_size_per_layer_input": 16,
        "rope_parameters": {"full_attention": PROPORTIONAL, "sliding_attention": SLIDING},
    }
    config = {key: value for key, value in config.items() if key not in LEGACY_KEYS}
    save_random(tmp_path, config)
    for strategy in ("none", "linear", "ntk"):
        with patched(model := loaded(tmp_path, config), plans(strategy, geometry_of(config), LENGTH)):
            ours = logits(model)
        torch.testing.assert_close(logits(loaded(tmp_path, written(config, strategy))), ours, atol=1e-5, rtol=0)
        assert (logits(model) - ours).abs().max() > 1e-4 or strategy == "none"
    # transformers uses this factor and does not know that it does
    assert set(warned) == {"Unrecognized keys in `rope_parameters` for 'rope_type'='proportional': {'factor'}"}
    assert "factor" not in written(config, "ntk")["rope_parameters"]["full_attention"]
    with pytest.raises(ValueError, match="does not support yarn on a gemma4_text, whose heads differ by layer"):
        written(config, "yarn")


def test_geometries_of_another_model_are_refused():
    with pytest.raises(
        ValueError, match="the geometries are for full_attention, sliding_attention and the config for all"
    ):
        to_transformers(SHAPE, "yarn", {}, geometry_of(GEMMA), LENGTH)
    with pytest.raises(ValueError, match="unknown option of yarn"):
        written(SHAPE, "yarn", beta=2)
