"""Published configs of many architectures, at small widths: what the engines' own classes are built from."""

from __future__ import annotations

from typing import Any

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "attention_bias": False,
    "num_key_value_heads": 4,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32, "beta_slow": 1}


def _of(model_type: str, architecture: str, theta: float = 10_000.0, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture]} | SMALL | {"rope_theta": theta} | more


def _lists(pairs: int, rising: bool) -> list[float]:
    return [1.0 + (3.0 * pair / (pairs - 1) if rising else 0.05) for pair in range(pairs)]


CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _of("llama", "LlamaForCausalLM", head_dim=32),
    "llama-3.1": _of(
        "llama",
        "LlamaForCausalLM",
        5e5,
        head_dim=32,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ),
    "llama-linear": _of("llama", "LlamaForCausalLM", head_dim=32, rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "mistral": _of("mistral", "MistralForCausalLM", 1e6, head_dim=32, sliding_window=None),
    "ministral3": _of(
        "ministral3",
        "Ministral3ForCausalLM",
        head_dim=32,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    ),
    "mixtral": _of("mixtral", "MixtralForCausalLM", 1e6, num_local_experts=2, num_experts_per_tok=1),
    "qwen2": _of("qwen2", "Qwen2ForCausalLM", 1e6, use_sliding_window=False, sliding_window=512, max_window_layers=4),
    "qwen2-yarn": _of("qwen2", "Qwen2ForCausalLM", 1e6, use_sliding_window=False, rope_scaling=dict(YARN)),
    "qwen3": _of("qwen3", "Qwen3ForCausalLM", 1e6, head_dim=32, attention_bias=False),
    "qwen3_moe": _of(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        1e6,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        norm_topk_prob=True,
    ),
    "phi3": _of("phi3", "Phi3ForCausalLM", original_max_position_embeddings=512),
    "phi3-longrope": _of(
        "phi3",
        "Phi3ForCausalLM",
        original_max_position_embeddings=128,
        rope_scaling={"type": "longrope", "short_factor": _lists(8, False), "long_factor": _lists(8, True)},
    ),
    "phi": _of("phi", "PhiForCausalLM", partial_rotary_factor=0.5, layer_norm_eps=1e-5, qk_layernorm=False),
    "gemma": _of("gemma", "GemmaForCausalLM", head_dim=32, hidden_activation="gelu_pytorch_tanh"),
    "gemma2": _of(
        "gemma2",
        "Gemma2ForCausalLM",
        head_dim=32,
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        sliding_window=128,
        query_pre_attn_scalar=32,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    "gemma3": _of(
        "gemma3_text",
        "Gemma3ForCausalLM",
        1e6,
        head_dim=32,
        hidden_activation="gelu_pytorch_tanh",
        sliding_window=128,
        sliding_window_pattern=2,
        query_pre_attn_scalar=32,
        rope_local_base_freq=1e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "deepseek_v2": _of(
        "deepseek_v2", "DeepseekV2ForCausalLM", **LATENT | {"scoring_func": "softmax", "topk_method": "greedy"}
    ),
    "deepseek_v2-yarn": _of(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        **LATENT | {"scoring_func": "softmax", "topk_method": "greedy"},
        rope_scaling=YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    ),
    "deepseek_v3": _of("deepseek_v3", "DeepseekV3ForCausalLM", **LATENT),
    "deepseek_v3-yarn": _of(
        "deepseek_v3", "DeepseekV3ForCausalLM", **LATENT, rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}
    ),
    "kimi_k2": _of(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        50_000.0,
        **LATENT,
        rope_scaling=YARN | {"beta_fast": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "minicpm3": _of(
        "minicpm3",
        "MiniCPM3ForCausalLM",
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
        scale_emb=1,
        scale_depth=1.4,
        dim_model_base=64,
    ),
    "gpt-oss": _of(
        "gpt_oss",
        "GptOssForCausalLM",
        150_000.0,
        head_dim=32,
        sliding_window=128,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        swiglu_limit=7.0,
        rope_scaling={key: value for key, value in YARN.items() if key != "type"}
        | {"rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    ),
    "glm": _of("glm", "GlmForCausalLM", head_dim=32, partial_rotary_factor=0.5),
    "glm4": _of("glm4", "Glm4ForCausalLM", head_dim=32, partial_rotary_factor=0.5, attention_bias=True),
    "cohere": _of("cohere", "CohereForCausalLM", layer_norm_eps=1e-5, logit_scale=0.06, use_qk_norm=False),
    "cohere2": _of(
        "cohere2",
        "Cohere2ForCausalLM",
        50_000.0,
        head_dim=16,
        layer_norm_eps=1e-5,
        logit_scale=0.25,
        sliding_window=128,
        sliding_window_pattern=4,
    ),
    "olmo": _of("olmo", "OlmoForCausalLM", clip_qkv=None),
    "olmo2": _of("olmo2", "Olmo2ForCausalLM", 5e5),
    "olmo3": _of(
        "olmo3", "Olmo3ForCausalLM", 5e5, sliding_window=128, layer_types=["sliding_attention", "full_attention"] * 2
    ),
    "smollm3": _of("smollm3", "SmolLM3ForCausalLM", 5e6, no_rope_layers=[1, 1, 1, 0], no_rope_layer_interval=4),
    "stablelm": _of(
        "stablelm", "StableLmForCausalLM", partial_rotary_factor=0.25, layer_norm_eps=1e-5, use_qkv_bias=True
    ),
    "granite": _of(
        "granite",
        "GraniteForCausalLM",
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.0156,
        logits_scaling=8.0,
        attention_bias=False,
    ),
    "granitemoe": _of(
        "granitemoe",
        "GraniteMoeForCausalLM",
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.0156,
        logits_scaling=8.0,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "exaone4": _of(
        "exaone4",
        "Exaone4ForCausalLM",
        1e6,
        head_dim=16,
        sliding_window=128,
        sliding_window_pattern="LLLG",
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
    ),
    "falcon": _of(
        "falcon",
        "FalconForCausalLM",
        num_kv_heads=4,
        new_decoder_architecture=True,
        parallel_attn=True,
        alibi=False,
        bias=False,
        multi_query=False,
        layer_norm_epsilon=1e-5,
        num_ln_in_parallel_attn=2,
    ),
    "starcoder2": _of(
        "starcoder2",
        "Starcoder2ForCausalLM",
        1e5,
        norm_epsilon=1e-5,
        layer_norm_epsilon=1e-5,
        sliding_window=None,
        use_bias=True,
    ),
    "gpt_neox": {key: value for key, value in _of("gpt_neox", "GPTNeoXForCausalLM").items() if key != "rope_theta"}
    | {"rotary_pct": 0.25, "rotary_emb_base": 10_000, "layer_norm_eps": 1e-5, "use_parallel_residual": True},
    "nemotron": _of("nemotron", "NemotronForCausalLM", partial_rotary_factor=0.5, norm_eps=1e-5, head_dim=16),
    "persimmon": _of("persimmon", "PersimmonForCausalLM", 25_000.0, partial_rotary_factor=0.5, layer_norm_eps=1e-5),
    "hunyuan": _of("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", head_dim=16, use_qk_norm=True),
    "seed_oss": _of("seed_oss", "SeedOssForCausalLM", 1e7, head_dim=16, attention_bias=True, attention_out_bias=False),
}
