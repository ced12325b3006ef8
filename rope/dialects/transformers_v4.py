"""Transformers v4: `rope_theta` and `rope_scaling` in config.json.

transformers v5 reads these too, so one file serves both; v4 ignores rope_parameters, and runs such a file with a theta
of 10000 and no scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rope.config import DeclaredScaling, declared_scalings, text_config
from rope.dialects.deployment import Config, Deployment, LayerScaling, ScalingRequest, Unsupported
from rope.dialects.transformers_v5 import config_deployment, parameters_for, patched_config
from rope.geometry import ALL_LAYERS

ENGINE = "transformers-v4"

FLAT = frozenset({"gemma3_text", "olmo3"})
"""model_type of families whose v4 config gives the scaling of full-attention layers flat, the others having none."""

ORIGINAL = "original_max_position_embeddings"

NEW_IN_V5 = frozenset({"proportional"})
"""Values of rope_type that v4 does not know."""


def deploy(request: ScalingRequest) -> Deployment:
    """config.json with which transformers v4 (and v5) runs a strategy: rope_theta, rope_scaling, no rope_parameters.

    Raises:
        ValueError: what transformers_v5.deploy refuses, a rope_type that v4 does not know, or layer types in a family
            where v4 has none.
    """
    return config_deployment(ENGINE, request, v4_config(request))


def read_back(deployment: Deployment, config: Any) -> dict[str, DeclaredScaling]:
    """What transformers v4 computes, by layer type; it does not look at rope_parameters."""
    return read_config(deployment.config)


def read_config(config: Any) -> dict[str, DeclaredScaling]:
    """The strategies that transformers v4 (4.57) runs with a config.json, by layer type.

    For longrope it looks for the original length beside rope_scaling alone, and else takes max_position_embeddings.
    """
    known = {key: value for key, value in text_config(config).items() if key != "rope_parameters"}
    scaling = dict(known.get("rope_scaling") or {})
    if "longrope" in (scaling.get("rope_type"), scaling.get("type")):
        known["rope_scaling"] = {key: value for key, value in scaling.items() if key != ORIGINAL}
    return declared_scalings(known)


def v4_config(request: ScalingRequest) -> Config:
    """config.json for transformers v4; ValueError as `deploy`."""
    scalings = request.scalings
    result = patched_config(request, parameters_for)
    text: Any = text_config(result)
    declared = text.pop("rope_parameters")
    if ALL_LAYERS not in request.declared:
        local, declared = _by_layer_type(scalings, declared)
        if text.get("model_type") == "gemma3_text":
            text["rope_local_base_freq"] = local["rope_theta"]
    if declared["rope_type"] in NEW_IN_V5:
        raise Unsupported(f"{ENGINE} does not support rope_type {declared['rope_type']!r}, which is new in v5")
    if declared["rope_type"] == "longrope":
        # v4 looks for the original length beside rope_scaling, and takes an attention factor from it and the new one
        plan = scalings.get(ALL_LAYERS, scalings.get("full_attention", next(iter(scalings.values())))).plan
        text["original_max_position_embeddings"] = declared["original_max_position_embeddings"]
        declared["attention_factor"] = plan.attention_factor
    text["rope_theta"] = declared.pop("rope_theta")
    if (share := declared.pop("partial_rotary_factor", None)) is not None:
        text["partial_rotary_factor"] = share
    text["rope_scaling"] = declared if declared != {"rope_type": "default"} else None
    return result


def _by_layer_type(scalings: Mapping[str, LayerScaling], declared: Config) -> tuple[Config, Config]:
    """The parameters of the sliding layers, which are plain in v4, and of the full-attention ones."""
    family = next(iter(scalings.values())).text.get("model_type", "model")
    flat = family in FLAT and set(declared) == {"sliding_attention", "full_attention"}
    local = declared["sliding_attention"] if flat else {}
    if local.get("rope_type") != "default":
        raise Unsupported(f"{ENGINE} does not support layer types ({', '.join(declared)}) in a {family}")
    return local, dict(declared["full_attention"])
