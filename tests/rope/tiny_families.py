"""Every causal family of transformers that rotates, a few layers deep and 64 numbers wide, with random weights."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TRAINED, ORIGINAL = 32, 16
"""Tokens: max_position_embeddings, and original_max_position_embeddings where a class declares a scaling."""

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "vocab_size_per_layer_input": 96,
    "hidden_size": 64,
    "hidden_size_per_layer_input": 16,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": TRAINED,
    "original_max_position_embeddings": TRAINED,
    "sliding_window": 16,
    "attention_chunk_size": 16,
    "num_kv_shared_layers": 0,
    "laurel_rank": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # latent attention; an indexer that keeps every token, as rounding could change which it drops
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "qk_head_dim": 24,
    "v_head_dim": 16,
    "o_groups": 2,
    "o_lora_rank": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 1024,
    # experts
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "shared_experts_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "ffn_hidden_size": 96,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "zero_expert_num": 2,
    "num_hash_layers": 1,
    # state spaces and linear attention
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "mamba_d_ssm": 128,
    "n_mamba_heads": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
"""Sizes by the names that config classes give them."""

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "out_hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "depth": 1,
    "num_heads": 2,
    "image_size": 28,
    "crop_size": 28,
    "patch_size": 14,
    "feature_layer": -1,
    "embed_dim": 32,
    "mlp_dim": 32,
    "output_channels": 32,
    "num_blocks": 1,
    "ext_pw_out_channel": 32,
    "depthwise_separable_out_channel": 32,
    "nemo_conv_channels": 32,
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "max_position_embeddings": 9,
    "audio_vocab_size": 64,
    "codebook_size": 64,
    "codebook_dim": 8,
    "upsampling_ratios": [2],
    "num_filters": 8,
    "input_size": 64,
    "hidden_size_global": 64,
    "mm_embed_dim": 32,
    "output_proj_dims": 32,
}
"""The same for the parts that see and hear, which no text passes through."""

LOCAL_ROPE = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": None}
OWN: dict[str, dict[str, Any]] = {
    "blt": {
        "vocab_size": 260,
        "encoder_hash_byte_group_vocab": 50,
        "encoder_hash_byte_group_size": [3],
        "global_config": {"hidden_size": 64},
    },
    "bamba": {"attn_layer_indices": [1]},
    "bailing_hybrid": {"layer_types": ["full_attention", "linear_attention"]},
    "codegen": {"max_position_embeddings": 128, "n_ctx": 128, "rotary_dim": 8},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"], "rope_parameters": LOCAL_ROPE},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},  # no attention without this theta
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64},
    },
    "deepseek_v4": {"head_dim": 32, "partial_rotary_factor": 0.5},
    "dots3_note_text": {
        "head_dim": 24,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
        "swa_q_lora_rank": 32,
        "swa_kv_lora_rank": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
    },
    "gemma4_text": {"global_head_dim": 32},
    "gemma4_unified_text": {"global_head_dim": 32},
    "gptj": {"max_position_embeddings": 128, "rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["full_attention", "linear_attention"], "position_embedding_type": "rope"},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"no_rope_layers": [1, 0]},
    "longcat_flash": {"num_layers": 2, "head_dim": 8},
    "mimo_v2_flash": {"head_dim": 24},
    "moshi": {"sliding_window": 512},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 1024,
        "indexer_compress_ratio": 4,
        "ple_layer_ids": [],
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "roformer": {"is_decoder": True},
    "smollm3": {"no_rope_layers": [1, 0]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4, "use_mem_rope": True},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs beside."""


def tiny_config(family: str) -> Any:
    """The config of a family, by its model_type."""
    config_class = CONFIG_MAPPING[family]
    parts = config_class.sub_configs
    if "text_config" in parts:
        text = _class_of(config_class, "text_config")
        options = {"text_config": _text_options(text, text.model_type) | {"model_type": text.model_type}}
        options |= OWN.get(family, {})
    else:
        options = _text_options(config_class, family)
    for name in parts:
        if name.endswith("_config") and name not in ("text_config", "attn_config", "ffn_config"):
            part = _class_of(config_class, name)
            options[name] = {key: value for key, value in TOWER.items() if key in _names(part)}
            options[name] |= {"model_type": part.model_type} | OWN.get(family, {}).get(name, {})
    return config_class(**options)


def tiny_model(config: Any) -> Any:
    """A model with random weights, none of them 0."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    assert size < 4e6, (
        f"a {config.model_type} of {size:,} parameters: write smaller sizes into tests/rope/tiny_families.py"
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _text_options(config_class: Any, family: str) -> dict[str, Any]:
    names, default = _names(config_class), config_class()
    options = {key: value for key, value in TINY.items() if key in names}
    if "kv_lora_rank" in names:
        options["num_key_value_heads"] = options["num_attention_heads"]
    if default.to_dict().get("rope_parameters"):
        options["rope_parameters"] = _shortened(default.rope_parameters)
    types = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
    if "layer_types" in names - set(config_class.attribute_map) and len(types) > 1:
        options |= {"layer_types": types, "num_hidden_layers": len(types)}
    return options | OWN.get(family, {})


def _shortened(parameters: Any) -> Any:
    if not isinstance(parameters, dict):
        return parameters
    shorter = {key: _shortened(value) for key, value in parameters.items() if key != "max_position_embeddings"}
    return shorter | (
        {"original_max_position_embeddings": ORIGINAL} if "original_max_position_embeddings" in shorter else {}
    )


def _names(config_class: Any) -> set[str]:
    names = set(inspect.signature(config_class.__init__).parameters) | set(config_class.attribute_map)
    return names | (
        {field.name for field in dataclasses.fields(config_class)} if dataclasses.is_dataclass(config_class) else set()
    )


def _class_of(config_class: Any, part: str) -> Any:
    named = config_class.sub_configs[part]
    return type(getattr(config_class(), part)) if named.__name__ == "AutoConfig" else named
