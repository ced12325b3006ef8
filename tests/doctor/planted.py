"""Files with one fault each, and their clean twins: what every static rule finds, and what it leaves alone."""

from __future__ import annotations

from typing import Any

from pipelines.doctor.files import Files
from pipelines.models.header import Header

LLAMA3_BLOCK = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")


def shaped(*shape: str | int, **more: Any) -> dict[str, Any]:
    """A config of these dimensions."""
    return {**dict(zip(SHAPE, shape, strict=True)), **more}


SHAPE_8B = shaped("llama", 4096, 32, 32, 8, 128256)
SHAPE_1B = {**SHAPE_8B, "hidden_size": 2048, "num_hidden_layers": 16, "head_dim": 64}
LLAMA_3 = {**SHAPE_8B, "max_position_embeddings": 8192, "rope_theta": 5e5}
LLAMA_31 = {**SHAPE_8B, "max_position_embeddings": 131072, "rope_theta": 5e5, "rope_scaling": LLAMA3_BLOCK}
LLAMA_32 = {**LLAMA_31, **SHAPE_1B, "rope_scaling": {**LLAMA3_BLOCK, "factor": 32.0}}
LLAMA_2 = shaped("llama", 4096, 32, 32, 32, 32000, max_position_embeddings=4096)
PHI_3_128K = shaped("phi3", 3072, 32, 32, 32, 32064, max_position_embeddings=131072, rope_theta=1e4)
PLAIN = shaped("llama", 256, 2, 4, 4, 1000, max_position_embeddings=512, rope_theta=5e5)
"""Of no known family."""

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 128}


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def scaled(block: dict[str, Any], **more: Any) -> Files:
    """The plain config with a scaling and some other values."""
    return of({**PLAIN, "rope_scaling": block, **more})


def of(config: dict[str, Any], name: str = "mine", **more: Any) -> Files:
    return Files(name, config, **more)


def v5(block: dict[str, Any], **more: Any) -> Files:
    return of({**without(PLAIN, "rope_theta"), "rope_parameters": block, **more})


def gguf(keys: dict[str, Any], *tensors: str) -> Files:
    named = {"general.architecture": "llama", **keys}
    config = without(PLAIN, "rope_theta") | ({"rope_theta": 5e5} if "llama.rope.freq_base" in keys else {})
    return of(config, header=Header(named, ("token_embd.weight", *tensors)))


STATIC: dict[str, list[tuple[Files, Files]]] = {
    "V01": [
        (v5({"rope_type": "default", "rope_theta": 5e5}), v5({"rope_type": "default", "rope_theta": 1e4})),
        (
            v5({**YARN, "rope_theta": 1e4}),
            of({**PLAIN, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ),
        (v5({"full_attention": {**YARN, "rope_theta": 1e4}}, **MIXED), None),
    ],
    "V02": [
        (
            of({**PLAIN, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
            of({**PLAIN, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ),
        (
            scaled({"type": "linear", "factor": 2.0}, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
            scaled(YARN, rope_parameters={**YARN, "rope_theta": 5e5}),
        ),
    ],
    "V03": [
        (v5({"rope_type": "linear", "factor": 2.0, "rope_theta": None}), v5({**YARN, "rope_theta": 5e5})),
        (of({**LLAMA_3, "rope_theta": None}), of(LLAMA_3)),
    ],
    "V04": [
        (of(without(LLAMA_3, "rope_theta")), of(LLAMA_3)),
        (of(without(scaled({"type": "linear", "factor": 2.0}).config, "rope_theta")), scaled(YARN)),
        (gguf({}), gguf({"llama.rope.freq_base": 5e5})),
        (of({**LLAMA_2, "rope_scaling": {"type": "linear", "factor": 2.0}}), of({**LLAMA_2, "rope_theta": 1e4})),
        (None, of(without(PLAIN, "rope_theta"))),  # the first Llamas: 10000 was in the code
    ],
    "V05": [(scaled({**YARN, "type": "linear"}), scaled({**YARN, "type": "yarn"}))],
    "S01": [
        (
            of({**LLAMA_3, "max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}),
            of(
                {
                    **LLAMA_3,
                    "max_position_embeddings": 32768,
                    "rope_scaling": {**YARN, "original_max_position_embeddings": 8192},
                }
            ),
        ),
        (scaled({"rope_type": "yarn", "factor": 4.0}, max_position_embeddings=2048), scaled(YARN)),
    ],
    "S02": [
        (scaled(YARN, max_position_embeddings=4096), scaled(YARN, max_position_embeddings=2048)),
        (scaled(YARN), of(LLAMA_31)),  # llama3's factor 8 of 8192 to 131072 is as published
    ],
    "S03": [
        (of({**LLAMA_31, "rope_scaling": {"type": "linear", "factor": 2.0}}), of(LLAMA_31)),
        (of(without(LLAMA_31, "rope_scaling")), of(LLAMA_3)),
        (of({**LLAMA_3}, name="Llama-3.1-8B"), of(LLAMA_3, name="Meta-Llama-3-8B")),
        (of(LLAMA_31, strategy="linear"), of(LLAMA_31, strategy="yarn")),
        (of({**PHI_3_128K, "rope_scaling": {"type": "linear", "factor": 32.0}}), None),
    ],
    "S04": [
        (scaled({"type": "linear", "factor": 0.25}), scaled({"type": "linear", "factor": 4.0})),
        (scaled({"type": "yarn", "factor": "4"}), scaled({"type": "dynamic", "factor": 1.0})),
        (scaled({"type": "linear", "factor": 1.0}), scaled({"type": "linear", "factor": 1.5})),
        (scaled({"type": "longrope", "factor": 0.5}), scaled({"type": "longrope", "factor": 1.0})),
    ],
    "S05": [(of(scaled(YARN).config, target=1024), of(scaled(YARN).config, target=2048))],
    "S06": [
        (scaled({**YARN, "attn_factor": 0.9}), scaled({**YARN, "attention_factor": 0.9})),
        (scaled({**YARN, "beta_fst": 16}), scaled({**YARN, "beta_fast": 16})),
        (scaled({**YARN, "alpha": 2}), scaled({"type": "linear", "factor": 2.0})),
    ],
    "S07": [
        (
            scaled(
                {"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 512},
                max_position_embeddings=2048,
            ),
            scaled({"type": "dynamic", "factor": 4.0}),
        ),
        (
            of({**LLAMA_3, "max_position_embeddings": 32768, "rope_scaling": {"type": "dynamic", "factor": 4.0}}),
            of({**LLAMA_3, "rope_scaling": {"type": "dynamic", "factor": 4.0}}),
        ),
    ],
    "S08": [
        (
            of({"model_type": "llava", "text_config": PLAIN, "rope_scaling": YARN}),
            of({"model_type": "llava", "text_config": {**PLAIN, "rope_scaling": YARN}}),
        )
    ],
    "S09": [
        (scaled(YARN, **MIXED), of({**PLAIN, **MIXED})),
        (
            v5(
                {"full_attention": {**YARN, "rope_theta": 1e4}, "sliding_attention": {**YARN, "rope_theta": 1e4}},
                **MIXED,
            ),
            v5(
                {
                    "full_attention": {**YARN, "rope_theta": 1e4},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
                **MIXED,
            ),
        ),
        (
            v5({"full_attention": {**YARN, "rope_theta": 1e4, "truncate": False}}, **MIXED),
            scaled({**YARN, "truncate": False}),
        ),
    ],
    "S10": [
        (of({**LLAMA_32, "rope_scaling": LLAMA3_BLOCK}), of(LLAMA_32)),
        (of({**LLAMA_3, "rope_theta": 1e4}), of(LLAMA_3)),
        (of({**LLAMA_3, "rope_theta": 2e8}), of({**PLAIN, "rope_theta": 2e8})),
    ],
    "S11": [
        (of(PLAIN, tokenizer={"model_max_length": 256}), of(PLAIN, tokenizer={"model_max_length": 512})),
        (of(PLAIN, tokenizer={"model_max_length": 512}, target=1024), of(PLAIN, tokenizer={"model_max_length": 1e30})),
    ],
    "S12": [
        (
            scaled({"type": "ntk", "factor": 4.0}),
            scaled({"type": "su", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}),
        ),
    ],
    "S13": [
        (of({**PLAIN, "partial_rotary_factor": 0.5}), of(PLAIN)),
        (of({**PLAIN, "head_dim": 128}), of({**PLAIN, "head_dim": 64})),
    ],
    "S14": [
        (
            scaled({"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 16}),
            scaled({"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}),
        )
    ],
    "S15": [
        (of({**PLAIN, "sliding_window": 128}), of({**PLAIN, "sliding_window": 128, "use_sliding_window": False})),
        (of({**PLAIN, "sliding_window": 512}, target=2048), of({**PLAIN, "sliding_window": 512})),
    ],
    "S16": [(scaled({**LLAMA3_BLOCK, "high_freq_factor": 0.5}), scaled(LLAMA3_BLOCK))],
    "S17": [
        (scaled({"type": "yarn"}), scaled(YARN)),
        (scaled(without(LLAMA3_BLOCK, "low_freq_factor")), scaled({"type": "linear", "factor": 2.0})),
    ],
    "P02": [
        (gguf({"llama.rope.scaling.type": "yarn"}), gguf({"llama.rope.scaling.type": "none"})),
        (gguf({}, "rope_freqs.weight"), gguf({"llama.rope.freq_base": 5e5})),
    ],
    "E04": [(of(PLAIN, task="wikitext"), of(PLAIN))],
}
"""Rule -> (faulty, clean), either of which may be None where another row has it."""
