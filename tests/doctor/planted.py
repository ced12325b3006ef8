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

LISTS = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
MISTRAL = {**PLAIN, "model_type": "mistral"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
GEMMA_3 = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 128,
}
"""Its class keeps rope parameters by layer type, and gives a flat scaling to the full-attention layers."""

MODERNBERT = {**GEMMA_3, "model_type": "modernbert-decoder", "local_attention": 128}
"""As Gemma 3, but a flat scaling goes to all layers."""

YARN_1M = {**YARN, "rope_theta": 1e6}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}
EXAONE_4 = {
    **PLAIN,
    "model_type": "exaone4",
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 128,
}
"""Its sliding layers rotate, the others do not."""


def by_type(full: dict[str, Any], local: dict[str, Any] = LOCAL, **more: Any) -> Files:
    """A Gemma 3 with these rope parameters."""
    return of({**GEMMA_3, "rope_parameters": {"full_attention": full, "sliding_attention": local}, **more})


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


STATIC: dict[str, list[tuple[Files | None, Files | None]]] = {
    "R01": [
        (of({}), of({"model_type": "llama"})),
        (of({"model_type": "no_such", "hidden_size": 64, "num_attention_heads": 4}), of(PLAIN)),
        (
            of({**without(PLAIN, "max_position_embeddings"), "model_type": "no_such"}),
            of({**PLAIN, "model_type": "no_such"}),
        ),
        (of({**PLAIN, "model_type": "no_such", "head_dim": 15}), None),
        (scaled({**YARN, "beta_fast": 1.0, "beta_slow": 32.0}), scaled({**YARN, "beta_fast": 32.0, "beta_slow": 1.0})),
        (v5({"full_attention": {**YARN, "rope_theta": 1e4}}, layer_types=["full_attention"] * 2), by_type(YARN_1M)),
        (None, scaled({"type": "linear", "factor": 0.25})),  # which S04 explains
    ],
    "R02": [
        (of({**PLAIN, "model_type": "granitemoehybrid", "position_embedding_type": "nope"}), of(PLAIN)),
        (of({"model_type": "gpt2"}), of({"model_type": "llama"})),
        (of({**PLAIN, "model_type": "no_such", "alibi": True}), of({**PLAIN, "model_type": "no_such"})),
    ],
    "V01": [
        (v5({"rope_type": "default", "rope_theta": 5e5}), v5({"rope_type": "default", "rope_theta": 1e4})),
        (
            v5({**YARN, "rope_theta": 1e4}),
            of({**PLAIN, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ),
        (by_type({**LOCAL, "rope_theta": 5e5}), by_type({**LOCAL, "rope_theta": 1e6})),  # as the class has it
        (by_type(LOCAL, {**YARN, "rope_theta": 1e4}), None),
    ],
    "V02": [
        (
            by_type(YARN_1M, rope_scaling={"rope_type": "linear", "factor": 8.0}),
            by_type(YARN_1M, rope_scaling=YARN, rope_theta=1e6),
        ),
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
        (of({**PLAIN, "rope_theta": "5e5"}), of(PLAIN)),
        (
            of({**GEMMA_3, "rope_theta": None}),
            of({**GEMMA_3, "rope_theta": None, "rope_parameters": {"full_attention": YARN_1M}}),
        ),
        (None, of({**PLAIN, "model_type": "gpt_neox", "rope_theta": None})),  # which reads another key
    ],
    "V04": [
        (of(without(LLAMA_3, "rope_theta")), of(LLAMA_3)),
        (of(without(scaled({"type": "linear", "factor": 2.0}).config, "rope_theta")), scaled(YARN)),
        (gguf({}), gguf({"llama.rope.freq_base": 5e5})),
        (
            of({**LLAMA_2, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            of({**LLAMA_2, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ),
        (None, of(without(PLAIN, "rope_theta"))),  # the first Llamas: 10000 was in the code
        (of({**without(PLAIN, "rope_theta"), "model_type": "cohere"}), of({**PLAIN, "model_type": "cohere"})),
        (
            None,
            of({"model_type": "gemma3", "text_config": {**GEMMA_3, "rope_scaling": {"type": "linear", "factor": 8.0}}}),
        ),
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
        (
            of({**GEMMA_3, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
            of({**GEMMA_3, "model_type": "olmo3", "rope_scaling": YARN}),
        ),
    ],
    "S02": [
        (
            of({**GEMMA_3, "model_type": "olmo3", "rope_scaling": {**YARN, "factor": 8.0}}),
            of({**GEMMA_3, "model_type": "olmo3", "rope_scaling": YARN}),
        ),
        (scaled(YARN, max_position_embeddings=4096), scaled(YARN, max_position_embeddings=2048)),
        (scaled(YARN), of(LLAMA_31)),  # llama3's factor 8 of 8192 to 131072 is as published
    ],
    "S03": [
        (of({**LLAMA_31, "rope_scaling": {"type": "linear", "factor": 2.0}}), of(LLAMA_31)),
        (of(without(LLAMA_31, "rope_scaling")), of(LLAMA_31)),
        (of({**LLAMA_3}, name="Llama-3.1-8B"), of(LLAMA_31, name="Llama-3.1-8B")),
        (None, of(LLAMA_3, name="Meta-Llama-3-8B")),
        (of(LLAMA_31, strategy="linear"), of(LLAMA_31, strategy="yarn")),
        (of({**PHI_3_128K, "rope_scaling": {"type": "linear", "factor": 32.0}}), None),
    ],
    "S04": [
        (scaled({"type": "linear", "factor": 0.25}), scaled({"type": "linear", "factor": 4.0})),
        (scaled({"type": "yarn", "factor": "4"}), scaled({"type": "dynamic", "factor": 1.0})),
        (scaled({"type": "linear", "factor": 1.0}), scaled({"type": "linear", "factor": 1.5})),
        (scaled({**LISTS, "type": "longrope", "factor": 0.5}), scaled({**LISTS, "type": "longrope", "factor": 1.0})),
    ],
    "S05": [(of(scaled(YARN).config, target=1024), of(scaled(YARN).config, target=2048))],
    "S06": [
        (scaled({**YARN, "attn_factor": 0.9}), scaled({**YARN, "attention_factor": 0.9})),
        (scaled({**YARN, "beta_fst": 16}), scaled({**YARN, "beta_fast": 16})),
        (scaled({**YARN, "alpha": 2}), scaled({"type": "linear", "factor": 2.0})),
        (
            v5({**YARN, "rope_theta": 1e6, "llama_4_scaling_beta": 0.1}),
            v5({**YARN, "rope_theta": 1e6, "llama_4_scaling_beta": 0.1}, model_type="ministral3"),
        ),
        (by_type({**YARN_1M, "beta_fst": 16}), by_type({**YARN_1M, "beta_fast": 16})),
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
        (of({**MODERNBERT, "rope_scaling": YARN}), of({**GEMMA_3, "rope_scaling": YARN})),
        (by_type(YARN_1M, {**YARN, "rope_theta": 1e4}), by_type(YARN_1M)),
        (by_type({**YARN_1M, "truncate": False}), scaled({**YARN, "truncate": False})),
        # one block for all layers, as they were trained, and for the sliding layers, which alone rotate
        (
            None,
            scaled(YARN, model_type="gpt_oss", layer_types=["sliding_attention", "full_attention"], sliding_window=128),
        ),
        (None, of({**EXAONE_4, "rope_scaling": LLAMA3_BLOCK})),
    ],
    "S19": [
        (
            of({**PLAIN, "dual_chunk_attention_config": {"original_max_position_embeddings": 256}}),
            of({**PLAIN, "dual_chunk_attention_config": None}),
        ),
    ],
    "S10": [
        (of({**LLAMA_32, "rope_scaling": LLAMA3_BLOCK}), of(LLAMA_32)),
        (of({**LLAMA_3, "rope_theta": 1e4}), of(LLAMA_3)),
        (of({**LLAMA_3, "rope_theta": 2e8}), of({**PLAIN, "rope_theta": 2e8})),
        (of({**LLAMA_3, "rope_theta": 1e5}, name="llama-3-8b"), of(LLAMA_3)),
        (None, of({**LLAMA_3, "rope_theta": 1e5})),  # another model of that shape
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
        (
            scaled({"type": "linear", "factor": 2.0}, model_type="phi3"),
            scaled({**LISTS, "type": "yarn", "factor": 2.0}, model_type="phi3"),  # by which its class means longrope
        ),
    ],
    "S13": [
        (of({**PLAIN, "model_type": "phi", "partial_rotary_factor": 0.5}), of(PLAIN)),
        (of({**PLAIN, "head_dim": 128}), of({**PLAIN, "head_dim": 64})),
    ],
    "S14": [
        (
            scaled({"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 16}),
            scaled({"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}),
        )
    ],
    "S15": [
        (of({**MISTRAL, "sliding_window": 128}), of({**MISTRAL, "sliding_window": None})),
        (of({**MISTRAL, "sliding_window": 512}, target=2048), of({**MISTRAL, "sliding_window": 512})),
        (of(EXAONE_4), of({**EXAONE_4, "sliding_window": 1024})),
        (
            None,
            scaled(YARN, model_type="gpt_oss", layer_types=["sliding_attention", "full_attention"], sliding_window=128),
        ),
        (None, of({**PLAIN, "sliding_window": 128})),  # a Llama has none
    ],
    "S16": [
        (scaled({**LLAMA3_BLOCK, "high_freq_factor": 0.5}), scaled(LLAMA3_BLOCK)),
        (scaled({**LLAMA3_BLOCK, "low_freq_factor": 4.0, "high_freq_factor": 1.0}), scaled(LLAMA3_BLOCK)),
        (None, scaled({**LLAMA3_BLOCK, "high_freq_factor": 1.0})),  # as Llama 4 Scout has them
    ],
    "S17": [
        (scaled({"type": "yarn"}), scaled(YARN)),
        (scaled(without(LLAMA3_BLOCK, "low_freq_factor")), scaled({"type": "linear", "factor": 2.0})),
        (scaled({**LLAMA3_BLOCK, "low_freq_factor": None}), scaled({**YARN, "factor": None})),
        (
            scaled({**LISTS, "type": "longrope"}, model_type="phimoe"),
            scaled({**LISTS, "type": "longrope", "short_mscale": 1.1, "long_mscale": 1.2}, model_type="phimoe"),
        ),
    ],
    "S18": [
        (of({**GEMMA_3, "model_type": "gemma4_text", "rope_scaling": YARN}), of({**GEMMA_3, "rope_scaling": YARN})),
        (of({**GEMMA_3, "rope_parameters": YARN_1M}), by_type(YARN_1M)),  # ignored in silence
        (scaled(YARN, model_type="mixtral"), scaled(YARN, model_type="mixtral", head_dim=64)),
        (of({**PLAIN, "model_type": "ministral"}), of({**PLAIN, "model_type": "ministral", "head_dim": 64})),
        (None, scaled({"type": "linear", "factor": 2.0}, model_type="mixtral")),
        (v5({"full_attention": {**YARN, "rope_theta": 1e4}}), v5({**YARN, "rope_theta": 1e4})),  # ignored in silence
    ],
    "P02": [
        (gguf({"llama.rope.scaling.type": "yarn"}), gguf({"llama.rope.scaling.type": "none"})),
        (gguf({}, "rope_freqs.weight"), gguf({"llama.rope.freq_base": 5e5})),
    ],
    "E04": [(of(PLAIN, task="wikitext"), of(PLAIN))],
}
"""Rule -> (faulty, clean), either of which may be None where another row has it."""
