"""Rotary settings of published checkpoints, the sizes that they depend on, and what the doctor rightly finds in them.

Where a list of LongRoPE's divisors stands in the original, its length is kept and not its numbers.
"""

from __future__ import annotations

from typing import Any

from planted import LLAMA_31, LLAMA_32, PHI_3_128K

LLAMA_3_BOUNDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
EVERY_FOURTH = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]


def sized(model_type: str, hidden: int, layers: int, heads: int, keys: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": model_type, **sizes, "num_key_value_heads": keys, **more}


def lists(pairs: int) -> dict[str, list[float]]:
    return {"short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs}


SCOUT = sized(
    *("llama4_text", 5120, 48, 40, 8),
    head_dim=128,
    max_position_embeddings=10485760,
    rope_theta=500000.0,
    attention_chunk_size=8192,
    rope_scaling={**LLAMA_3_BOUNDS, "high_freq_factor": 1.0, "factor": 16.0, "rope_type": "llama3"},
)
GEMMA_3 = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
OLMO_3 = {
    "attention_factor": 1.2079441541679836,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "yarn",
}
DEEPSEEK = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
GPT_OSS = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "rope_type": "yarn",
    "truncate": False,
}
MINISTRAL_3 = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 16.0,
    "llama_4_scaling_beta": 0.1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16384,
    "rope_theta": 1000000.0,
    "rope_type": "yarn",
    "type": "yarn",
}

PUBLISHED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "Llama-3.1-8B": (LLAMA_31, ()),
    "Llama-3.2-1B": (LLAMA_32, ()),
    # its rotating layers attend in chunks of the original length
    "Llama-4-Scout-17B-16E": ({"model_type": "llama4", "text_config": SCOUT}, ("S15",)),
    "gemma-3-4b-it": ({"model_type": "gemma3", "text_config": GEMMA_3}, ()),
    "Olmo-3-1025-7B": (
        sized(
            *("olmo3", 4096, 32, 32, 32),
            max_position_embeddings=65536,
            rope_theta=500000,
            sliding_window=4096,
            layer_types=EVERY_FOURTH * 8,
            rope_scaling=OLMO_3,
        ),
        (),
    ),
    # TensorRT-LLM's test of modeling_exaone4 has this config; the layers that see everything do not rotate
    "EXAONE-4.0-32B": (
        sized(
            *("exaone4", 5120, 64, 40, 8),
            head_dim=128,
            max_position_embeddings=131072,
            rope_theta=1000000,
            sliding_window=4096,
            sliding_window_pattern="LLLG",
            layer_types=EVERY_FOURTH * 16,
            rope_scaling={**LLAMA_3_BOUNDS, "factor": 16.0, "rope_type": "llama3"},
        ),
        ("S15",),
    ),
    "gpt-oss-20b": (
        sized(
            *("gpt_oss", 2880, 24, 64, 8),
            head_dim=64,
            max_position_embeddings=131072,
            initial_context_length=4096,
            rope_theta=150000,
            sliding_window=128,
            layer_types=["sliding_attention", "full_attention"] * 12,
            rope_scaling=GPT_OSS,
        ),
        (),
    ),
    "Ministral-3-8B": (
        sized(*("ministral3", 4096, 34, 32, 8), max_position_embeddings=262144, rope_parameters=MINISTRAL_3),
        (),
    ),
    "SmolLM3-3B": (
        sized(
            *("smollm3", 2048, 36, 16, 4),
            max_position_embeddings=65536,
            rope_theta=5000000.0,
            rope_scaling=None,
            no_rope_layers=[1, 1, 1, 0] * 9,
            layer_types=["full_attention"] * 36,
            use_sliding_window=False,
        ),
        (),
    ),
    "Qwen2.5-VL-7B": (
        sized(
            *("qwen2_5_vl", 3584, 28, 28, 4),
            max_position_embeddings=128000,
            rope_theta=1000000.0,
            sliding_window=32768,
            use_sliding_window=False,
            rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        ),
        (),
    ),
    "DeepSeek-V3": (
        sized(
            *("deepseek_v3", 7168, 61, 128, 128),
            max_position_embeddings=163840,
            rope_theta=10000,
            qk_rope_head_dim=64,
            qk_nope_head_dim=128,
            rope_scaling=DEEPSEEK,
        ),
        (),
    ),
    "Phi-3-mini-128k": (
        {**PHI_3_128K, "original_max_position_embeddings": 4096, "rope_scaling": {"type": "su", **lists(48)}},
        (),
    ),
    "Phi-3.5-MoE": (
        sized(
            *("phimoe", 4096, 32, 32, 8),
            max_position_embeddings=131072,
            original_max_position_embeddings=4096,
            rope_theta=10000.0,
            rope_scaling={
                "type": "longrope",
                "short_mscale": 1.243163121016122,
                "long_mscale": 1.243163121016122,
                "original_max_position_embeddings": 4096,
                **lists(64),
            },
        ),
        (),
    ),
    "Mistral-7B-v0.1": (
        sized(
            *("mistral", 4096, 32, 32, 8),
            max_position_embeddings=32768,
            rope_theta=10000.0,
            sliding_window=4096,
            vocab_size=32000,
        ),
        ("S15",),
    ),
    "granite-4.0-h": (
        sized(
            *("granitemoehybrid", 1536, 40, 12, 4),
            max_position_embeddings=131072,
            position_embedding_type="nope",
            rope_theta=10000,
        ),
        ("R02",),
    ),
}
"""Name -> its config, and the warnings and errors that it rightly gets."""
