"""vLLM: `--hf-overrides` over the checkpoint's config.json, and `--max-model-len`.

As in vLLM 0.33.0, model_executor and config/model.py. It takes transformers v5's rope_parameters, and differs: its
cosines are computed once, so nothing follows the length of a sequence; under yarn their table ends at the original
length times the factor, whatever is served; longrope takes its attention factor from short_mscale and long_mscale
alone; models with latent attention compute every scaling as DeepSeek's YaRN. Some classes read less than that
(engine_models), and 20 are run as transformers' own.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rope.config import DeclaredScaling, declared_scalings, length_key, rope_parameters, text_config
from rope.dialects.deployment import Config, Deployment, LayerScaling, ScalingRequest, Unsupported, as_mapping
from rope.dialects.engine_models import check_read, is_latent, latent_parameters, latent_scaling, model_class
from rope.dialects.transformers_v5 import (
    base_parameters,
    longrope,
    override_deployment,
    parameters_for,
    patched_config,
)
from rope.geometry import ALL_LAYERS

ENGINE = "vllm"
OVERRIDES, LENGTH = "--hf-overrides", "--max-model-len"


def deploy(request: ScalingRequest) -> Deployment:
    """What `vllm serve MODEL` takes after the model, and the config.json that does the same.

    A dynamic strategy becomes its plan at the requested length.

    Raises:
        ValueError: what transformers_v5.deploy refuses, or a change to a proportional scaling of the checkpoint's own.
    """
    patched = patched_config(request, vllm_parameters)
    text = text_config(patched)
    overrides: Config = {}
    unchanged = request.declared == rope_parameters(patched)
    if not unchanged or not all(scaling.native for scaling in request.scalings.values()):
        overrides["rope_parameters"] = text["rope_parameters"]
    if _reach(text_config(request.config), rope_parameters(patched)) < request.length:
        key = length_key(request.config)
        overrides[key] = text[key]
    if "llama_4_scaling" in text:  # a temperature on queries, which the class of Mistral has
        overrides |= {key: text[key] for key in ("architectures", "llama_4_scaling")}
    return override_deployment(request, "vLLM", patched, overrides, override_flag=OVERRIDES, length_flag=LENGTH)


def read_back(deployment: Deployment, config: Any) -> dict[str, DeclaredScaling]:
    """What vLLM computes with the deployment's arguments over the checkpoint's own config, by layer type."""
    arguments = dict(zip(deployment.arguments[::2], deployment.arguments[1::2], strict=True))
    return read_overrides(json.loads(arguments.get(OVERRIDES, "{}")), config)


def vllm_parameters(scaling: LayerScaling) -> Config:
    """The rope parameters of one layer type."""
    model = model_class(ENGINE, scaling.text)
    if scaling.declared["rope_type"] == "proportional" and not scaling.native:
        raise Unsupported(
            f"vLLM does not support {scaling.strategy} on Gemma 4's proportional layers, for which it has a rule of "
            "its own"
        )
    if is_latent(model, scaling.text):
        return _latent(scaling)
    parameters = parameters_for(scaling if scaling.native else scaling.static)
    if "transformers" not in model.traits:
        if parameters["rope_type"] == "yarn" and _end_of_table(parameters) < scaling.length:
            parameters = base_parameters(scaling) | longrope(scaling)
        if parameters["rope_type"] == "longrope":
            attention = scaling.plan.attention_factor
            parameters |= {"short_mscale": attention, "long_mscale": attention}
    check_read(model, scaling, parameters)
    return parameters


def _latent(scaling: LayerScaling) -> Config:
    parameters = latent_parameters(scaling, linear=None)
    if parameters is None:
        raise Unsupported(
            f"vLLM computes every scaling of a model with latent attention as DeepSeek's YaRN, which does not express "
            f"{scaling.strategy} on this model"
        )
    if parameters["rope_type"] == "yarn" and _end_of_table(parameters) < scaling.length:
        raise Unsupported(
            f"vLLM's cosines of this model end at {int(_end_of_table(parameters)):,} tokens, its original length times "
            f"the factor: not enough for {scaling.length:,}"
        )
    return base_parameters(scaling) | parameters if not scaling.native else parameters


def _end_of_table(parameters: Config) -> float:
    """Tokens for which vLLM computes cosines under yarn."""
    return float(parameters["factor"] * parameters["original_max_position_embeddings"]) + 1e-6


def read_overrides(overrides: Mapping[str, Any], config: Any) -> dict[str, DeclaredScaling]:
    """The strategies that vLLM runs with `--hf-overrides` over a checkpoint's config, by layer type.

    Raises:
        ValueError: unknown parameters.
    """
    merged = copy.deepcopy(as_mapping(config))
    text: Any = text_config(merged)
    inner = overrides.get("text_config", overrides) if text is not merged else overrides
    if "rope_parameters" in inner:
        for key in ("rope_scaling", "rope_theta", "rope_local_base_freq"):
            text.pop(key, None)
    text.update(copy.deepcopy(dict(inner)))
    limit = text[length_key(merged)]
    return {
        layer_type: _computed(merged, layer_type, parameters, limit)
        for layer_type, parameters in rope_parameters(merged).items()
        if parameters is not None
    }


def _computed(config: Config, layer_type: str, parameters: Config, limit: int) -> DeclaredScaling:
    """The scaling of one layer type; where vLLM computes what transformers does, read as by transformers."""
    rope_type = parameters["rope_type"]
    theta = {"rope_type": "default", "rope_theta": parameters["rope_theta"]}
    plain = _as_transformers(config, layer_type, theta, parameters)
    model = model_class(ENGINE, text_config(config))
    if "transformers" in model.traits:
        return _as_transformers(config, layer_type, parameters, parameters)
    if rope_type != "default" and is_latent(model, text_config(config)):
        original = parameters.get("original_max_position_embeddings", limit)
        return latent_scaling(parameters, replace(plain, geometry=replace(plain.geometry, trained_length=original)))
    if rope_type == "dynamic":
        factor = parameters.get("factor", 1.0)
        growth = factor * limit / parameters.get("max_trained_positions", limit) - (factor - 1)
        alpha = float(parameters.get("alpha", growth))
        return replace(plain, strategy="ntk", options={"factor": alpha}) if alpha > 1 else plain
    scaling = _as_transformers(config, layer_type, parameters, parameters)
    if rope_type == "longrope":
        original = scaling.geometry.trained_length
        rule = math.sqrt(1 + math.log(limit / original) / math.log(original)) if limit > original else 1.0
        scales = {name: parameters.get(name, rule) for name in ("short_mscale", "long_mscale")}
        return replace(scaling, options={**scaling.options, **scales})
    return scaling


def _as_transformers(config: Config, layer_type: str, changed: Config, parameters: Config) -> DeclaredScaling:
    """What transformers reads in these parameters of a layer type, with the partial rotation of `parameters`."""
    share = {key: parameters[key] for key in ("partial_rotary_factor",) if key in parameters}
    by_type = share | changed if layer_type == ALL_LAYERS else {layer_type: share | changed}
    text = {key: value for key, value in text_config(config).items() if key != "rope_scaling"}
    return declared_scalings(text | {"rope_parameters": by_type})[layer_type]


def _reach(text: Mapping[str, Any], own: Mapping[str, Config | None]) -> float:
    """Tokens that vLLM allows, and has cosines for, by the checkpoint's own length, which a linear type multiplies."""
    limit = text.get(length_key(text), 0)
    parameters = own.get(ALL_LAYERS)
    linear = parameters is not None and parameters["rope_type"] == "linear"
    return float(limit * parameters["factor"] if parameters and linear else limit)
