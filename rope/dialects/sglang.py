"""SGLang: `--json-model-override-args` over config.json, and `--context-length`.

As in SGLang 0.5.23, srt/layers/rotary_embedding, srt/models and srt/utils/hf_transformers. Its override of rope_scaling
is merged into what the checkpoint declares, under transformers v4 and v5 alike. It differs from transformers: nothing
follows the length of a sequence; some classes read less than others (engine_models); models with latent attention
compute every scaling as DeepSeek's YaRN; yarn takes no attention_factor but an attn_factor, which multiplies its own;
longrope takes its attention factor from short_mscale and long_mscale, and where it switches lists, at the original
length, it rotates the token at that very place as if it were the first: so its original length is set past all that is
served.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rope.config import DeclaredScaling, declared_scalings, length_key, rope_parameters, text_config
from rope.dialects.deployment import Config, Deployment, LayerScaling, ScalingRequest, Unsupported, as_mapping
from rope.dialects.engine_models import check_read, is_latent, latent_parameters, latent_scaling, model_class
from rope.dialects.transformers_v5 import base_parameters, override_deployment, parameters_for, patched_config
from rope.geometry import ALL_LAYERS
from rope.strategies.ramps import mscale_of

ENGINE = "sglang"
OVERRIDES, LENGTH = "--json-model-override-args", "--context-length"


def deploy(request: ScalingRequest) -> Deployment:
    """What `python -m sglang.launch_server --model-path MODEL` takes after the model, and the equivalent config.json.

    A dynamic strategy becomes its plan at the requested length.

    Raises:
        ValueError: what transformers_v5.deploy refuses, several layer types, or a change to a proportional scaling.
    """
    scaling = request.only_scaling
    patched = patched_config(request, sglang_parameters)
    text: Any = text_config(patched)
    parameters = text["rope_parameters"]
    key = length_key(request.config)
    overrides: Config = {}
    if not scaling.native or request.declared[ALL_LAYERS] != parameters:
        overrides["rope_scaling"] = parameters
        if parameters["rope_theta"] != scaling.declared["rope_theta"]:
            overrides["rope_theta"] = parameters["rope_theta"]  # where SGLang on transformers v4 looks for it
    if text_config(request.config).get(key) != text[key]:
        overrides[key] = text[key]
    return override_deployment(request, "SGLang", patched, overrides, override_flag=OVERRIDES, length_flag=LENGTH)


def read_back(deployment: Deployment, config: Any) -> dict[str, DeclaredScaling]:
    """What SGLang computes with the deployment's arguments over the checkpoint's own config."""
    arguments = dict(zip(deployment.arguments[::2], deployment.arguments[1::2], strict=True))
    return read_overrides(json.loads(arguments.get(OVERRIDES, "{}")), config)


def sglang_parameters(scaling: LayerScaling) -> Config:
    """The rope parameters of the one layer type."""
    if scaling.declared["rope_type"] == "proportional" and not scaling.native:
        raise Unsupported(
            f"SGLang does not support {scaling.strategy} on Gemma 4's proportional layers, for which it has a rule of "
            "its own"
        )
    model = model_class(ENGINE, scaling.text)
    if is_latent(model, scaling.text):
        latent = latent_parameters(scaling, linear={"extrapolation_factor": 0.0})
        if latent is None:
            raise Unsupported(
                "SGLang computes every scaling of a model with latent attention as DeepSeek's YaRN, which does not "
                f"express {scaling.strategy} on this model"
            )
        return latent if scaling.native else base_parameters(scaling) | latent
    parameters = parameters_for(scaling if scaling.native else scaling.static)
    check_read(model, scaling, parameters)
    if "transformers" in model.traits:
        return parameters
    if "whole_theta" in model.traits and parameters["rope_theta"] != scaling.declared["rope_theta"]:
        parameters["rope_theta"] = float(round(parameters["rope_theta"]))
    attention = scaling.plan.attention_factor
    if parameters["rope_type"] == "yarn" and not scaling.native:
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            parameters.pop(name, None)
        multiplier = attention / mscale_of(parameters["factor"], 1.0)
        if abs(multiplier - 1) > 1e-12:
            parameters["attn_factor"] = multiplier
    elif parameters["rope_type"] == "longrope":
        parameters |= {"short_mscale": attention, "long_mscale": attention}
    if parameters["rope_type"] == "longrope" and not scaling.native:
        parameters["original_max_position_embeddings"] = max(scaling.length, scaling.geometry.trained_length)
    return parameters


def read_overrides(overrides: Mapping[str, Any], config: Any) -> dict[str, DeclaredScaling]:
    """The strategy that SGLang runs with `--json-model-override-args` over a checkpoint's config.

    Raises:
        ValueError: unknown parameters.
    """
    merged = copy.deepcopy(as_mapping(config))
    text: Any = text_config(merged)
    inner = dict(overrides.get("text_config", overrides) if text is not merged else overrides)
    parameters: Config = dict(rope_parameters(merged)[ALL_LAYERS] or {})
    for key in ("rope_parameters", "rope_scaling"):
        parameters |= copy.deepcopy(inner.pop(key, {}))
    for key in ("rope_scaling", "rope_theta"):
        text.pop(key, None)
    text.update({key: value for key, value in inner.items() if key != "rope_theta"})
    rope_type = parameters["rope_type"]
    model = model_class(ENGINE, text)
    if "transformers" in model.traits:
        return {ALL_LAYERS: _as_transformers(text, parameters, parameters)}
    if rope_type != "default" and is_latent(model, text):
        plain = _as_transformers(text, {"rope_type": "default", "rope_theta": parameters["rope_theta"]}, parameters)
        original = parameters.get("original_max_position_embeddings", plain.geometry.trained_length)
        plain = replace(plain, geometry=replace(plain.geometry, trained_length=original))
        return {ALL_LAYERS: latent_scaling(parameters, plain)}
    if rope_type == "dynamic":
        plain = _as_transformers(text, {"rope_type": "default", "rope_theta": parameters["rope_theta"]}, parameters)
        factor = parameters.get("factor", 1.0)
        alpha = float(parameters.get("alpha", factor * factor - (factor - 1)))
        return {ALL_LAYERS: replace(plain, strategy="ntk", options={"factor": alpha}) if alpha > 1 else plain}
    scaling = _as_transformers(text, parameters, parameters)
    if rope_type == "yarn" and scaling.strategy == "yarn":
        mscales = {name: parameters[name] for name in ("mscale", "mscale_all_dim") if parameters.get(name)}
        ramp = {
            name: value for name, value in scaling.options.items() if "attention" not in name and "scale" not in name
        }
        own = replace(scaling, options=ramp | mscales).plan(scaling.geometry.trained_length)
        attention = own.attention_factor * parameters.get("attn_factor", 1.0)
        scaling = replace(scaling, options=ramp | {"attention_factor": attention})
    if rope_type == "longrope":
        scales: Config = {name: parameters[name] for name in ("short_mscale", "long_mscale") if name in parameters}
        scaling = replace(scaling, options={**scaling.options, "attention_factor": None, **scales})
    return {ALL_LAYERS: scaling}


def _as_transformers(text: Mapping[str, Any], changed: Config, parameters: Config) -> DeclaredScaling:
    """What transformers reads in these parameters, with the partial rotation of `parameters`."""
    share = {key: parameters[key] for key in ("partial_rotary_factor",) if key in parameters}
    return declared_scalings({**text, "rope_parameters": share | changed})[ALL_LAYERS]
