"""A checkpoint's weights under the class of another family, which computes what the plan wants of them: by config.json.

Ministral 3 scales queries by their position, and SmolLM3 has layers that do not rotate; but for that both are Llamas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rope.config import rope_parameters, with_defaults
from rope.geometry import ALL_LAYERS, Geometry, layer_numbers
from rope.pairwise import Pairwise, QueryScale
from rope.strategies import canonical_name, options_of, plans
from rope.strategies.over import still_layers
from rope.strategies.stack import alone

RELABELLING = frozenset({"transformers", "vllm"})
"""Engines whose classes compute it. vLLM 0.33.0 (model_executor/models/mistral.py) scales queries in its Mistral class,
by `llama_4_scaling` beside the rope parameters. SGLang 0.5.23 (srt/models/ministral3.py) takes the step from
`original_max_position_embeddings` there, and makes its table of cosines that long."""

LLAMA = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
"""What a Llama assumes where its config is silent, and the other classes otherwise; transformers 5.23."""

BIASES = ("attention_bias", "mlp_bias")

Relabelled = tuple[dict[str, Any], str, dict[str, Any]]
"""config.json of the other class, and the strategy and options that are left for its rope parameters."""


def relabelled(
    engine: str, config: Any, strategy: str, options: Mapping[str, Any], geometries: Mapping[str, Geometry], length: int
) -> Relabelled | None:
    """The same weights under another class, with which a strategy is one of frequencies alone.

    Returns:
        None where no other class is needed, or none computes it: a temperature in steps from 1 becomes Ministral 3's,
        layers without rotation and without a softmax scale SmolLM3's; of a Llama without biases.
    """
    name, given = canonical_name(strategy), {**options_of(strategy), **options}
    if name not in ("temperature", "nope") or set(geometries) != {ALL_LAYERS}:
        return None
    plain = dict(config if isinstance(config, Mapping) else config.to_dict())
    if plain.get("model_type") != "llama" or any(plain.get(bias) for bias in BIASES):
        return None
    under = alone(given["over"], None, given["factor"])
    if name == "temperature":
        ((_, plan),) = plans(strategy, geometries, length, **options)
        scale = plan.query_scale if isinstance(plan, Pairwise) and not plan.regions else None
        if scale is None or scale != QueryScale(None, False, 1.0, scale.slope, scale.step, 0, True):
            return None
        if engine == "vllm":
            own = {"original_max_position_embeddings": scale.step, "beta": scale.slope}
            return {**plain, "architectures": ["MistralForCausalLM"], "llama_4_scaling": own}, *under
        other = _as("ministral3", "Ministral3ForCausalLM", plain)
        other["rope_parameters"] |= {
            "llama_4_scaling_beta": scale.slope,
            "original_max_position_embeddings": scale.step,
        }
        return other, *under
    still = still_layers(given["layers"])
    if not still or given["softmax_scale"] or engine == "vllm":  # which would need a file of its own for that
        return None
    other = _as("smollm3", "SmolLM3ForCausalLM", plain)
    numbers, count = layer_numbers(still), other["num_hidden_layers"]
    other["no_rope_layers"] = [int(number not in numbers) for number in range(count)]
    return other, *under


def _as(model_type: str, architecture: str, llama: Mapping[str, Any]) -> dict[str, Any]:
    """A Llama's config under another class, with everything said that the two assume differently."""
    full = with_defaults(llama)
    other: dict[str, Any] = {**LLAMA, **llama}
    other |= {"model_type": model_type, "architectures": [architecture]}
    other["num_key_value_heads"] = llama.get("num_key_value_heads") or other["num_attention_heads"]
    other["head_dim"] = full.get("head_dim") or other["hidden_size"] // other["num_attention_heads"]
    for key in ("rope_scaling", "rope_theta", "layer_types", "pretraining_tp"):
        other.pop(key, None)
    other |= {"sliding_window": None, "rope_parameters": dict(rope_parameters(llama)[ALL_LAYERS] or {})}
    return other
