"""A Llama's weights under another class, by config.json alone: from_pretrained gives the patched model's logits."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rope.config import geometry_of
from rope.dialects import Unsupported, deploy, relabel, to_transformers
from rope.patch import patched
from rope.strategies import plans

TRAINED, LENGTH = 64, 200
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED,
    "initializer_range": 0.2,
}
pytestmark = pytest.mark.usefixtures("one_thread")


def llama(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).eval()


@torch.no_grad()
def logits(model, tokens):
    return model(tokens).logits


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
CASES = [
    ("Ministral3ForCausalLM", "temperature", {}, {}),
    ("Ministral3ForCausalLM", "temperature", {"attn_scale": 0.4, "floor_scale": 40, "over": "yarn"}, {}),
    ("Ministral3ForCausalLM", "temperature", {"over": "linear", "factor": 8.0}, {"tie_word_embeddings": True}),
    ("Ministral3ForCausalLM", "temperature", {"over": ["base", {"name": "yarn", "factor": 2.0}]}, {}),
    ("SmolLM3ForCausalLM", "nope", {"layers": [1, 3]}, {}),
    ("SmolLM3ForCausalLM", "nope", {"layers": "0-2", "over": "yarn"}, {"head_dim": 32, "tie_word_embeddings": True}),
    ("SmolLM3ForCausalLM", "nope", {"layers": [3], "over": "ntk"}, {"num_key_value_heads": 4, "rms_norm_eps": 1e-3}),
    ("SmolLM3ForCausalLM", "nope", {"layers": [0]}, {"rope_parameters": YARN}),
]


@pytest.mark.parametrize(("architecture", "strategy", "options", "changes"), CASES)
def test_the_exported_folder_is_the_patched_model(architecture, strategy, options, changes, tmp_path):
    model = llama(**changes)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    geometries = geometry_of(config)
    exported = to_transformers(config, strategy, options, geometries, LENGTH)
    assert config["model_type"] == "llama" and exported["architectures"] == [architecture]
    assert deploy("transformers", config, strategy, options, geometries, LENGTH).name == architecture
    (tmp_path / "config.json").write_text(json.dumps(exported))
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert type(loaded).__name__ == architecture and not any(report.values())
    tokens = torch.randint(0, 96, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    with patched(model, plans(strategy, geometries, LENGTH, **options)):
        wanted = logits(model, tokens)
    torch.testing.assert_close(logits(loaded.eval(), tokens), wanted, atol=1e-4, rtol=1e-5)
    assert (wanted - logits(model, tokens)).abs().max() > 1e-2  # the test would notice


def test_what_a_llama_assumes_is_what_its_class_assumes():
    theirs = LlamaConfig()
    assert {key: getattr(theirs, key) for key in relabel.LLAMA} == relabel.LLAMA
    assert not any(getattr(theirs, bias) for bias in relabel.BIASES)


@pytest.mark.parametrize(("strategy", "options"), [("temperature", {}), ("nope", {"layers": [1]})])
def test_a_config_that_leaves_things_out_is_read_as_the_llama_that_it_was(strategy, options):
    sparse = {"model_type": "llama", "rope_theta": 1e4}
    exported = to_transformers(sparse, strategy, options, geometry_of(sparse), 4096)
    before, after = LlamaConfig(**sparse).to_dict(), AutoConfig.for_model(**exported).to_dict()
    meant = {"model_type", "architectures", "rope_parameters", "max_position_embeddings"}
    assert {key: after[key] for key in before.keys() & after.keys() - meant} == {
        key: before[key] for key in before.keys() & after.keys() - meant
    }
    assert len(before.keys() & after.keys()) > 15


@pytest.mark.parametrize(
    ("strategy", "options", "changes"),
    [
        ("temperature", {"smooth": True}, {}),
        ("temperature", {"offset": 1}, {}),
        ("temperature", {"start": 0.5}, {}),
        ("temperature", {"over": "dual_chunk"}, {}),
        ("temperature", {}, {"attention_bias": True}),
        ("nope", {"layers": [0], "softmax_scale": 0.4}, {}),
        ("nope", {"layers": [0]}, {"mlp_bias": True}),
        ("nope", {"layers": [0]}, {"model_type": "mistral"}),
        ("logn", {}, {}),
    ],
)
def test_what_no_class_computes_is_refused_with_an_alternative(strategy, options, changes):
    config = SHAPE | {"model_type": "llama", "rope_theta": 1e4} | changes
    with pytest.raises(Unsupported, match=rf"transformers does not support {strategy}.*closest supported alternative"):
        deploy("transformers", config, strategy, options, geometry_of(config), LENGTH)


def test_a_scale_on_queries_is_answered_with_the_one_that_a_class_has():
    config = SHAPE | {"model_type": "llama", "rope_theta": 1e4}
    with pytest.raises(Unsupported, match="the closest supported alternative is temperature"):
        deploy("transformers", config, "logn", {}, geometry_of(config), LENGTH)
    with pytest.raises(Unsupported, match=r"sglang does not support temperature.*alternatives are .*--to transformers"):
        deploy("sglang", config, "temperature", {}, geometry_of(config), LENGTH)


@pytest.mark.parametrize("over", ["none", "yarn"])
def test_vllm_takes_a_temperature_by_flags_over_the_unchanged_checkpoint(over):
    config = SHAPE | {"model_type": "llama", "rope_theta": 1e4}
    options = {"over": over, "attn_scale": 0.3, "floor_scale": 40}
    deployment = deploy("vllm", config, "temperature", options, geometry_of(config), LENGTH)
    assert deployment.name == "MistralForCausalLM" and not deployment.needs_file
    flags = dict(zip(deployment.arguments[::2], deployment.arguments[1::2], strict=True))
    overrides = json.loads(flags["--hf-overrides"])
    assert overrides["architectures"] == ["MistralForCausalLM"]
    assert overrides["llama_4_scaling"] == {"original_max_position_embeddings": 40, "beta": 0.3}
    assert overrides.get("rope_parameters", {"rope_type": "default"})["rope_type"] == (
        "yarn" if over == "yarn" else "default"
    )


def test_up_to_the_first_step_the_plain_model_is_exported():
    config = SHAPE | {"model_type": "llama", "rope_theta": 1e4}
    exported = to_transformers(config, "temperature", {}, geometry_of(config), TRAINED)
    assert exported["model_type"] == "llama"
