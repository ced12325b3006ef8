"""Which attention layers of a small random model rotate, and how far they see: by running them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from family_table import LAYER_RULES, Decoder
from transformers.models.auto import modeling_auto as auto

from rope.families import NO_ATTENTION

TOKENS = 24

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "num_hidden_layers": 8,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "sliding_window": 6,
    "attention_chunk_size": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "index_topk": 64,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "shared_expert_intermediate_size": 32,
}
"""Sizes of the model, as far as its class has them. The window, or chunk, is shorter than the text."""


def attending(decoder: Decoder) -> tuple[Any, dict[int, tuple[bool, int]]]:
    """The config, and of each layer that attends whether it rotates, and how many tokens the last one sees.

    An attention rotates if it gives something else for the angles of other positions. A token is seen if the output at
    the last one has a gradient to it.
    """
    torch.manual_seed(0)
    config, model = _model(decoder)
    own = [
        m
        for m in getattr(model, "get_decoder", lambda: model)().modules()
        if isinstance(getattr(m, "layer_idx", None), int) and not type(m).__name__.endswith("Indexer")
    ]
    attentions = [m for m in own if not any(inner in own for inner in list(m.modules())[1:])]
    types = getattr(config, "layer_types", None) or {}
    attentions = [m for m in attentions if not types or types[m.layer_idx] not in NO_ATTENTION]
    attentions = [m for m in attentions if "position_embeddings" in inspect.signature(m.forward).parameters]
    ids = torch.randint(3, 60, (1, TOKENS))
    here = _arguments(model, attentions, ids, torch.arange(TOKENS)[None])
    there = _arguments(model, attentions, ids, 3 * torch.arange(TOKENS)[None] + 1)
    found = {}
    for module in attentions:
        keywords = dict(here[module])
        states = keywords["hidden_states"].detach().clone().requires_grad_()
        output = module(**keywords | {"hidden_states": states})[0]
        moved = module(**keywords | {"position_embeddings": there[module]["position_embeddings"]})[0]
        rotates = bool((output - moved).abs().max() > 1e-6 * output.abs().max())
        (output[:, -1] * torch.randn_like(output[:, -1])).sum().backward()
        assert states.grad is not None
        found[module.layer_idx] = rotates, int((states.grad[0].abs().sum(-1) > 0).sum())
    return config, found


def _model(decoder: Decoder) -> tuple[Any, Any]:
    has = {*decoder.config.__dataclass_fields__, *decoder.config.attribute_map}
    keys = {key: value for key, value in TINY.items() if key in has}
    if LAYER_RULES.get(decoder.kind) == "attn_layer_indices":
        keys["attn_layer_indices"] = [1, 4]
    config = decoder.make(**keys)
    mapping = auto.MODEL_FOR_CAUSAL_LM_MAPPING
    mapping = mapping if type(config) in mapping else auto.MODEL_MAPPING
    model = mapping[type(config)]._from_config(config, dtype=torch.float32, attn_implementation="eager")
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.2)
    return config, model.eval()


def _arguments(model: Any, modules: list[Any], ids: torch.Tensor, positions: torch.Tensor) -> dict[Any, dict[str, Any]]:
    """What each module is called with, by name of the parameter, in a forward at these positions."""
    called: dict[Any, dict[str, Any]] = {}

    def keep(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        called[module] = inspect.signature(module.forward).bind(*arguments, **keywords).arguments
        called[module] |= called[module].pop("kwargs", {})

    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    with torch.no_grad():
        model(input_ids=ids, position_ids=positions, use_cache=False)
    for handle in handles:
        handle.remove()
    return called
