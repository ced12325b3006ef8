"""GGUF files as models: the header as a config, and the scaling it declares.

A header is read as llama.cpp reads it: src/llama-model.cpp, with what differs by architecture in
rope/llama_cpp_rules.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.models import header
from pipelines.models.header import Header
from pipelines.records.refusal import Refusal
from rope.config import geometry_of
from rope.config_types import check_types, of_config
from rope.dialects import from_llama_cpp, to_transformers
from rope.geometry import ALL_LAYERS
from rope.llama_cpp_rules import FREQS, LONG, SHORT, Rules, rules_of

KINDS = {
    "mmproj": "a projector for images or sound, not a language model; give the model's own GGUF file",
    "clip": "a projector for images or sound, not a language model; give the model's own GGUF file",
    "adapter": "a LoRA adapter, not a whole model; merge it into its base (llama-export-lora) and give the result",
    "imatrix": "an importance matrix for quantisation, not a model; give the model's own GGUF file",
}
"""What GGUF files may be besides models, by general.type or architecture."""

MODEL_TYPES = {
    "command-r": "cohere",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gpt-oss": "gpt_oss",
    "minimax-m2": "minimax_m2",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
}
"""general.architecture -> model_type of what transformers makes of it, where they differ."""

SHARED = ("head_dim", "partial_rotary_factor", "max_position_embeddings")
"""Keys that every layer type reads."""

DEFAULT_BASE = 10_000.0
"""rope.freq_base of a file that has none (src/llama-model.cpp)."""


def read_header(path: Path) -> Header:
    """The header of a GGUF file that holds a model, or of all its parts.

    Raises:
        Refusal: the file is not GGUF, holds something else than a model, or not all of it.
    """
    try:
        read = header.read_whole(path)
    except ValueError as error:
        raise Refusal(str(error)) from error
    kind = KINDS.get(str(read.keys.get("general.type"))) or KINDS.get(read.architecture)
    if kind is not None:
        raise Refusal(f"{path.name} is {kind}")
    if not read.tensors:
        raise Refusal(f"{path.name} holds a vocabulary and no weights; give the GGUF file of a whole model")
    required = ("block_count", "context_length", "embedding_length")
    missing = [key for key in required if not isinstance(read.value(key), int)]
    if not read.architecture or missing:
        lacks = "general.architecture" if not read.architecture else f"{read.architecture}.{missing[0]}"
        raise Refusal(f"{path.name} does not say {lacks}; convert the model anew")
    numbers = (name.split(".")[1] for name in read.tensors if name.startswith("blk."))
    blocks = {int(number) for number in numbers if number.isdecimal()}
    if len(blocks) < read.value("block_count") or "token_embd.weight" not in read.tensors:
        has = f"has tensors of {len(blocks)} layers of {read.value('block_count')}"
        raise Refusal(f"{path.name} {has if blocks else 'has no weights of layers'}; download or convert it again")
    try:
        check_types(header_config(read))
    except ValueError as error:
        raise Refusal(f"{path.name}: {error}; convert the model anew") from error
    return read


@of_config
def header_config(gguf: Header) -> dict[str, Any]:
    """What a GGUF header says of positions and of sizes, under the keys of a Hugging Face config; no scaling.

    What llama.cpp fills in is filled in, so that nobody takes a model class's default for it.
    """
    named = {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "intermediate_size": "feed_forward_length",
        "head_dim": "attention.key_length",
        "max_position_embeddings": "context_length",
    }
    config = {name: gguf.value(key) for name, key in named.items()}
    # A number a layer: its largest stands for all, as an upper bound; the heads' size follows the first layer's.
    lists = {name: value for name, value in config.items() if isinstance(value, list)}
    config |= {name: max(value) for name, value in lists.items()}
    heads = lists.get("num_attention_heads", [config["num_attention_heads"]])[0]
    rules = rules_of(gguf.architecture)
    if heads and not (rules and rules.rope == "none"):
        config["head_dim"] = config["head_dim"] or config["hidden_size"] // heads
        config["rope_theta"] = gguf.value("rope.freq_base") or DEFAULT_BASE
        rotated = gguf.value("rope.dimension_count") or config["head_dim"]
        config["partial_rotary_factor"] = rotated / config["head_dim"]
        # under both names: some classes read theta here, and others there
        config["rope_parameters"] = _plain(config["rope_theta"], config["partial_rotary_factor"])
        if rules and rules.own_rules == "latent attention":
            config["qk_rope_head_dim"] = rotated
    config["model_type"] = MODEL_TYPES.get(gguf.architecture, gguf.architecture)
    config["vocab_size"] = gguf.count("tokenizer.ggml.tokens") or gguf.value("vocab_size")
    config["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    if rules is not None:
        config |= _windows(gguf, rules, config)
    return {name: entry for name, entry in config.items() if entry is not None}


def _windows(gguf: Header, rules: Rules, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model with layers that see a window alone, and of how those rotate."""
    window, pattern = gguf.value("attention.sliding_window"), gguf.value("attention.sliding_window_pattern")
    if not window or (pattern is None and rules.window_pattern is None):
        return {"layer_types": ["full_attention"] * config["num_hidden_layers"]} if rules.local else {}
    local = rules.local_layers(config["num_hidden_layers"], pattern)
    kind = "chunked_attention" if gguf.architecture == "llama4" else "sliding_attention"
    types = [kind if windowed else "full_attention" for windowed in local]
    keys = {"sliding_window": window, "layer_types": types}
    base, own = config.get("rope_theta"), gguf.value("rope.freq_base_swa")
    alike = rules.local is None or (rules.local.base == rules.local.scale == "file" and own in (None, base))
    if alike or rules.local is None or len(set(types)) < 2:
        return keys
    default = base if isinstance(rules.local.base, str) else rules.local.base
    bases = {"full_attention": base, kind: default if rules.local.base == "all" else own or default}
    if gguf.architecture == "olmo2":
        keys["model_type"] = "olmo3"
    share = config.get("partial_rotary_factor", 1.0)
    return {**keys, "rope_parameters": {layer: _plain(theta, share) for layer, theta in bases.items()}}


def _plain(theta: Any, share: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}


def with_scaling(config: dict[str, Any], gguf: Header, file: str) -> dict[str, Any]:
    """The config with the scaling that a GGUF file declares, as llama.cpp runs it: transformers reads none from there.

    Raises:
        Refusal: the scaling is none that llama.cpp takes.
    """
    own = {key.removeprefix(f"{gguf.architecture}."): value for key, value in gguf.keys.items()}
    rules = rules_of(gguf.architecture)
    if rules and rules.own_rules == "layers of several kinds":
        raise Refusal(
            f"{file} is of a {gguf.architecture}, whose layers rotate in several ways that are not read from a GGUF "
            "file; give the folder that it was made from"
        )
    try:
        _check_lists(gguf, own)
        if gguf.long_factors:
            return _longrope(config, gguf, own)
        if not gguf.rope_freqs and not any(key.startswith(("rope.scaling.", "rope.scale_linear")) for key in own):
            return config
        scaled = {}
        heard = from_llama_cpp((), {"model_type": gguf.architecture, **config}, own, gguf.rope_freqs)
        for layers, declared in heard.items():
            geometry = declared.geometry
            flat = config
            if layers != ALL_LAYERS:  # as of a model of no known family, all of whose layers are of this type
                flat = {key: value for key, value in config.items() if key in SHARED} | {"rope_theta": geometry.base}
            scaled[layers] = to_transformers(
                flat, declared.strategy, declared.options, {ALL_LAYERS: geometry}, geometry.trained_length
            )
    except ValueError as error:
        raise Refusal(f"{file}: {error}") from error
    # How far it was trained, or extended, is what the file says, whatever a factor comes to.
    length = {"max_position_embeddings": config["max_position_embeddings"]}
    if ALL_LAYERS in scaled:
        return {**scaled[ALL_LAYERS], **length}
    return {**config, **length, "rope_parameters": {layer: of["rope_parameters"] for layer, of in scaled.items()}}


def _check_lists(gguf: Header, own: Mapping[str, Any]) -> None:
    """Refuse lists that the architecture does not read: with them llama.cpp loads no file."""
    rules = rules_of(gguf.architecture)
    if rules is None:
        return
    given = {"rope_freqs": gguf.rope_freqs, "rope_factors": gguf.long_factors or gguf.short_factors}
    longrope = own.get("rope.scaling.type") == "longrope"
    for name, numbers in given.items():
        other = rules.lists == ("rope_freqs", "rope_factors") and longrope != (name == "rope_factors")
        if numbers and (name not in rules.lists or other):
            tensor = FREQS if name == "rope_freqs" else f"{LONG} and {SHORT}"
            under = f" under rope.scaling.type {own.get('rope.scaling.type')}" if other else ""
            raise ValueError(f"it holds {tensor}, which llama.cpp does not read in a {gguf.architecture}{under}")


def _longrope(config: dict[str, Any], gguf: Header, own: Mapping[str, Any]) -> dict[str, Any]:
    """Two lists: one up to the original length, and one beyond."""
    length = config["max_position_embeddings"]
    original = own.get("rope.scaling.original_context_length") or length
    block = {
        "rope_type": "longrope",
        "rope_theta": config["rope_theta"],
        "short_factor": list(gguf.short_factors),
        "long_factor": list(gguf.long_factors),
        "attention_factor": float(own.get("rope.scaling.attn_factor", 1.0)),
        "factor": max(1.0, length / original),
        "original_max_position_embeddings": original,
        "partial_rotary_factor": config["partial_rotary_factor"],
    }
    scaled = {**config, "original_max_position_embeddings": original, "rope_parameters": block}
    geometry_of(scaled)  # refuses lists of another length than the pairs
    return scaled
