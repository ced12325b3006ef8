"""A plan as config.json: transformers alone must make the same model of it."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rope.config import geometry_of
from rope.dialects import to_transformers
from rope.dialects.transformers_v5 import LEGACY_KEYS, NAMES
from rope.geometry import inverse_frequencies
from rope.patch import patched
from rope.strategies import STRATEGIES, named, plans

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
CASES = [
    ("none", {}, "default"),
    ("linear", {}, "linear"),
    ("pi", {"factor": 4.0}, "linear"),
    ("ntk", {}, "default"),
    ("dynamic_ntk", {}, "dynamic"),
    ("dynamic_ntk", {"rule": "transformers"}, "dynamic"),
    ("dynamic_ntk", {"rule": "transformers", "factor": 3.0}, "dynamic"),
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
    ("ntk_fixed", {}, "longrope"),
    ("ntk_mixed", {}, "longrope"),
    ("base", {}, "default"),
    ("longrope", {"long_factor": [2.0] * 16}, "longrope"),
    ("factors", {"factors": [3.0] * 16, "attention_factor": 1.2}, "longrope"),
    ("power", {}, "longrope"),
    ("truncated", {}, "longrope"),
    ("proportional", {"p": 0.5}, "longrope"),
    ("dynamic", {"over": "yarn"}, "yarn"),
    ("dynamic", {"rule": "transformers", "factor": 3.0}, "linear"),
    ("dynamic", {"over": "ntk", "rule": "transformers", "factor": 3.0}, "dynamic"),
    ("per_layer", {"over": "yarn", "options": {"beta_fast": 8.0}, "factor": 4.0}, "yarn"),
    ("resonance", {}, "longrope"),
]


pytestmark = pytest.mark.usefixtures("one_thread")


class Said(logging.Handler):
    """What transformers warned of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def said():
    handler, logger = Said(), logging.getLogger("transformers")
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


def test_every_strategy_has_words():
    assert set(NAMES) <= set(STRATEGIES)
    assert set(STRATEGIES) == {named(strategy) for strategy, _, _ in CASES}
    with pytest.raises(ValueError, match="transformers has no words for per_layer, whose layers differ; the nearest"):
        written(SHAPE, "per_layer", layers={"0": 2})


# every case on a plainly trained checkpoint, and one of each kind on top of every scaling declared in training
ON_TOP = [case for case in CASES if not case[1]]
GRID = [("plain", *case) for case in CASES] + [(kind, *case) for kind in list(DECLARED)[1:] for case in ON_TOP]


@pytest.mark.parametrize("declared, strategy, options, rope_type", GRID, ids=str)
def test_a_plain_from_pretrained_gives_the_plan(checkpoint, models, said, declared, strategy, options, rope_type):
    config = SHAPE | {"rope_scaling": DECLARED[declared]}
    before = copy.deepcopy(config)
    result = written(config, strategy, **options)
    assert config == before
    assert "rope_theta" not in result and "rope_scaling" not in result
    on_top = declared not in ("plain", "dynamic")
    expected = rope_type if not on_top else declared if strategy == "none" else "longrope"
    assert result["rope_parameters"]["rope_type"] == expected
    fresh = loaded(checkpoint, result)
    # served beyond its declared reach, a yarn or llama3 checkpoint is warned about, and rightly so
    assert not said or (on_top and strategy == "none")
    model = models[declared]
    with patched(model, plans(strategy, geometry_of(config), LENGTH, **options)):
        ours = logits(model)
    torch.testing.assert_close(logits(fresh), ours, atol=1e-5, rtol=0)
    if strategy != "none" and declared != "dynamic":
        assert (logits(model) - ours).abs().max() > 1e-3


def test_what_transformers_warns_of_is_heard(checkpoint, said):
    loaded(checkpoint, written(SHAPE, "yarn") | {"max_position_embeddings": 1234})
    assert any("does not match the ratio" in line for line in said)


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
    bare = set(STRATEGIES) - {"longrope", "factors"}  # those need a list
    served = {name: written(SHAPE, name)["max_position_embeddings"] for name in bare}
    assert served == dict.fromkeys(bare, LENGTH) | {"dynamic_ntk": TRAINED}
    assert {written(SHAPE, name, length=32)["max_position_embeddings"] for name in bare} == {TRAINED}
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


def test_what_is_no_part_of_a_scaling_outlives_it():
    sections = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    config = {key: value for key, value in SHAPE.items() if "rope" not in key} | {"rope_parameters": sections}
    result = written(config, "yarn")["rope_parameters"]
    assert (result["mrope_section"], result["partial_rotary_factor"]) == ([4, 6, 6], 0.5)
    assert result["rope_type"] == "yarn"


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
def test_layer_types_are_written_apart(tmp_path, said, strategy, options, rope_type):
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
    assert not said


def test_phi_3_knows_no_word_but_longrope():
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
    words = written(config, "linear")["rope_parameters"]
    assert (words["rope_type"], words["factor"], words["mscale_all_dim"]) == ("longrope", 4.0, 1.0)
    plain = config | {"rope_scaling": None}
    words = written(plain, "yarn", mscale=1.0, mscale_all_dim=0.5)["rope_parameters"]
    assert "mscale_all_dim" not in words and words["attention_factor"] > 1


PROPORTIONAL = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
SLIDING = {"rope_type": "default", "rope_theta": 1e4}


def test_a_pair_that_stands_still_is_written_as_a_finite_divisor():
    config = SHAPE | {"rope_parameters": {"full_attention": PROPORTIONAL, "sliding_attention": SLIDING}}
    ((_, plan), _) = plans("yarn", geometry_of(config), LENGTH)
    words = written(config, "yarn")["rope_parameters"]["full_attention"]
    assert words["rope_type"] == "longrope" and words["long_factor"][4:] == [1e28] * 12
    assert (inverse_frequencies(32, 1e6)[:4] / words["long_factor"][:4]).tolist() == pytest.approx(plan.inv_freq[:4])
    assert "partial_rotary_factor" not in words
    assert json.loads(json.dumps(words)) == words


def test_gemma_4_is_written_in_its_own_words_or_refused(tmp_path, said):
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
    # transformers heeds this factor and does not know that it does
    assert set(said) == {"Unrecognized keys in `rope_parameters` for 'rope_type'='proportional': {'factor'}"}
    assert "factor" not in written(config, "ntk")["rope_parameters"]["full_attention"]
    with pytest.raises(ValueError, match="no word for yarn on a gemma4_text, whose heads differ by layer"):
        written(config, "yarn")


def test_geometries_of_another_model_are_refused():
    with pytest.raises(
        ValueError, match="the geometries are of full_attention, sliding_attention and the config of all"
    ):
        to_transformers(SHAPE, "yarn", {}, geometry_of(GEMMA), LENGTH)
    with pytest.raises(ValueError, match="unknown option of yarn"):
        written(SHAPE, "yarn", beta=2)
