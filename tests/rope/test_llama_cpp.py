"""Exports to llama.cpp, loaded and scored by llama.cpp itself (the package cyllama), against the patched model."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import tiny_gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.models import copies
from rope.config import geometry_of
from rope.dialects import Unsupported, deploy
from rope.llama_cpp_rules import FREQS, architecture_of, rules_of, table
from rope.patch import patched
from rope.strategies import plans

pytestmark = pytest.mark.usefixtures("one_thread")
NEEDED = "needs llama.cpp: uv sync --group engines"
needs_llama_cpp = pytest.mark.skipif(find_spec("cyllama") is None, reason=NEEDED)

TOKENS = 160
HEAD = {"head_dim": 16}
HALF = {**HEAD, "partial_rotary_factor": 0.5}
WINDOW = {"sliding_window": 16, "num_hidden_layers": 4, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
ORIGINAL = {"original_max_position_embeddings": 32}
FAMILIES = {
    "llama": ({}, {}),
    "qwen2": ({}, {}),
    "qwen3": (HEAD, {}),
    "gemma": (HEAD, {}),
    "gemma2": (
        {**HEAD, "query_pre_attn_scalar": 16, "sliding_window": 16},
        {"attention.sliding_window": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3_text": (
        {**HEAD, "query_pre_attn_scalar": 16, "sliding_window": 16, "num_hidden_layers": 6},
        {"attention.sliding_window": 16},
    ),
    "phi3": ({}, {}),
    "stablelm": ({"partial_rotary_factor": 0.25}, {"rope.dimension_count": 4}),
    "starcoder2": ({}, {}),
    "nemotron": ({"partial_rotary_factor": 0.5}, {"rope.dimension_count": 8}),
    "granite": (
        {"embedding_multiplier": 2.0, "attention_multiplier": 0.25, "logits_scaling": 2.0},
        {"embedding_scale": 2.0, "attention.scale": 0.25, "residual_scale": 1.0, "logit_scale": 2.0},
    ),
    "olmo": ({}, {}),
    "olmo2": ({}, {}),
    "olmo3": (WINDOW, {"attention.sliding_window": 16, "attention.sliding_window_pattern": [True] * 3 + [False]}),
    "cohere": ({"logit_scale": 0.5}, {"logit_scale": 0.5}),
    "cohere2": ({**HEAD, **WINDOW, "logit_scale": 0.5}, {"logit_scale": 0.5, "attention.sliding_window": 16}),
    "smollm3": ({"num_hidden_layers": 4}, {}),
    "glm": (HALF, {"rope.dimension_count": 8}),
    "glm4": (HALF, {"rope.dimension_count": 8}),
    "arcee": ({}, {}),
    "seed_oss": (HEAD, {}),
    "ernie4_5": (HEAD, {}),
    "hunyuan_v1_dense": (HEAD, {}),
    "ministral3": (
        {
            **HEAD,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0, "llama_4_scaling_beta": 0.1}
            | {"beta_fast": 16.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
            | ORIGINAL,
        },
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 2.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.yarn_beta_fast": 16.0,
            "rope.scaling.yarn_log_multiplier": 1.0,
            "attention.temperature_scale": 0.1,
        },
    ),
}
"""model_type -> its config beside tiny_gguf.SIZES, and the keys of a GGUF file that its converter writes beside the
usual."""

SETTINGS = (
    ("none", {}),
    ("linear", {}),
    ("ntk", {}),
    ("yarn", {}),
    ("yarn", {"beta_fast": 16.0, "attention_factor": 1.5}),
    ("llama3", {}),
    ("truncated", {}),
)
TABLES = ("gemma", "gemma2", "gemma3_text", "starcoder2")
"""Families with GELU, which llama.cpp looks up in a table of float16: within 1e-2 instead of 3e-4."""


def model_of(model_type):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.for_model(model_type, **{**tiny_gguf.SIZES, **FAMILIES[model_type][0]})
        model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, parameter.mean().item(), 0.2)
    return model


def written(path, model_type, model):
    return tiny_gguf.write(path, model, architecture_of(model_type), FAMILIES[model_type][1])


def ours(model, chosen, ids):
    with torch.no_grad(), patched(model, chosen):
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1).numpy()


def context(arguments):
    """Flags that act on the context, as llama.cpp's own fields."""
    fields = {"--yarn-beta-fast": "yarn_beta_fast", "--yarn-beta-slow": "yarn_beta_slow"}
    fields |= {"--rope-freq-base": "rope_freq_base", "--yarn-orig-ctx": "yarn_orig_ctx"}
    found = {}
    for flag, value in zip(arguments[::2], arguments[1::2], strict=True):
        if flag in fields:
            found[fields[flag]] = int(value) if flag == "--yarn-orig-ctx" else float(value)
        elif flag == "--rope-scale":
            found["rope_freq_scale"] = 1 / float(value)
        elif flag == "--rope-scaling":
            found["rope_scaling_type"] = ("none", "linear", "yarn").index(value)
    return found


IDS = (np.arange(TOKENS) * 37 % 250).tolist()


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_llama_cpp_computes_an_export_as_the_patched_model(model_type, tmp_path):
    model = model_of(model_type)
    config, limit = model.config.to_dict(), 1e-2 if model_type in TABLES else 3e-4
    geometries, rules = geometry_of(config), rules_of(model_type)
    file, copy = written(tmp_path / "model.gguf", model_type, model), tmp_path / "copy.gguf"
    refused, apart = set(), {}
    for strategy, options in SETTINGS:
        chosen = plans(strategy, geometries, TOKENS, **options)
        try:
            deployment = deploy("llama.cpp", config, strategy, options, geometries, TOKENS)
        except Unsupported:
            refused.add(strategy)
            continue
        expected = ours(model, chosen, IDS)
        if deployment.keys or deployment.rope_freqs:
            copies.copy_gguf([file], copy, deployment.keys, deployment.rope_freqs)
            scores = tiny_gguf.llama_cpp_scores(copy, IDS, **context(deployment.with_file))
            apart[f"{strategy} {options} in a file"] = np.abs(scores - expected).max()
        if not deployment.needs_file and "rope." not in " ".join(deployment.arguments):
            scores = tiny_gguf.llama_cpp_scores(file, IDS, **context(deployment.arguments))
            apart[f"{strategy} {options} by flags"] = np.abs(scores - expected).max()
    assert max(apart.values()) < limit, apart
    assert not refused or not rules.tensors, f"{refused} can be said as a list"
    # an attention factor of one's own reaches Gemma's layers with a window too, and so does another base Olmo 3's
    inexact = {"gemma3_text": {"yarn"}, "olmo3": {"ntk"}, "ministral3": {"linear", "ntk", "yarn"}}
    assert refused <= {"llama3", "truncated", *inexact.get(model_type, ())}


@needs_llama_cpp
def test_llama_cpp_loads_no_list_that_its_table_does_not_name(tmp_path):
    for model_type in ("qwen2", "llama"):
        file = written(tmp_path / "model.gguf", model_type, model_of(model_type))
        listed = tmp_path / "listed.gguf"
        tiny_gguf.with_list(file, listed, FREQS, np.linspace(1, 4, 8))
        if "rope_freqs" in rules_of(model_type).lists:
            assert np.abs(tiny_gguf.llama_cpp_scores(listed, IDS) - tiny_gguf.llama_cpp_scores(file, IDS)).max() > 0.1
        else:
            with pytest.raises(ValueError, match="could not load"):
                tiny_gguf.llama_cpp_scores(listed, IDS)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_of_the_check_is_in_the_table(model_type):
    rules, types, commit = table()
    assert types[model_type] in rules and len(commit) == 9
    assert rules_of(model_type).rope in ("norm", "neox")


def test_a_latent_attention_is_refused_and_an_unknown_family_too():
    latent = {"model_type": "deepseek_v2", "qk_rope_head_dim": 16, "rope_theta": 1e4, "max_position_embeddings": 64}
    with pytest.raises(Unsupported, match="deepseek2, whose latent attention it scales by rules of its own"):
        deploy("llama.cpp", latent, "linear", {}, geometry_of(latent), 256)
    unknown = {"model_type": "abacus", "head_dim": 16, "rope_theta": 1e4, "max_position_embeddings": 64}
    with pytest.raises(Unsupported, match="no architecture for model_type 'abacus'"):
        deploy("llama.cpp", unknown, "linear", {}, geometry_of(unknown), 256)


def test_flags_that_do_not_reach_layers_with_a_window_are_not_given():
    config = {"model_type": "gemma2", "head_dim": 16, "rope_theta": 1e4, "max_position_embeddings": 64}
    deployment = deploy("llama.cpp", config, "linear", {}, geometry_of(config), 256)
    line = " ".join(deployment.arguments)
    assert "--override-kv gemma2.rope.scaling.factor=float:4.0" in line and "--rope-scale" not in line
