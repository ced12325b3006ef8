"""Transformers v5: `rope_parameters` in config.json, as plain data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

from rope.config import LENGTH_KEYS, RUNTIME, DeclaredScaling, declared_scalings, rope_parameters, text_config
from rope.dialects.deployment import (
    Config,
    Deployment,
    LayerScaling,
    ScalingRequest,
    Unsupported,
    as_mapping,
    to_json,
)
from rope.geometry import ALL_LAYERS, Geometry

ENGINE = "transformers"

LONGROPE_ONLY = frozenset({"phi3", "phi4_multimodal"})
"""model_type of families whose config takes no scaling but longrope, and mistakes yarn for a misspelling of it."""

LEGACY_KEYS = ("rope_theta", "rope_scaling", "rope_local_base_freq", "rotary_emb_base")
"""Keys of transformers v4 that rope_parameters replaces."""

SCALING_KEYS = frozenset(
    {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "truncate"}
    | {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor"}
    | {"short_factor", "long_factor", "short_mscale", "long_mscale"}
)
"""Rope parameters that belong to one scaling; others (a partial rotation, multimodal sections) stay under another."""


def to_transformers(
    config: Any, strategy: str, options: Mapping[str, Any], geometries: Mapping[str, Geometry], length: int
) -> Config:
    """config.json with which a plain transformers `from_pretrained` runs a strategy: v5 rope_parameters, no v4 keys.

    linear, yarn, llama3 and dynamic_ntk keep their names; ntk becomes a larger rope_theta; by_parts is yarn without
    attention factor (index) or llama3 (rotations); everything else, and everything on top of a scaling that the
    checkpoint declares, becomes a longrope whose two lists are both this plan. Where a plan is the native one, the
    checkpoint's own parameters stay; only a declared dynamic scaling is then dropped, being no part of a plan.

    max_position_embeddings grows to what is served. dynamic_ntk alone leaves it at the trained length, as transformers
    measures the growth of a sequence by it; with it, a forward of exactly `length` tokens has exactly this plan.

    Args:
        config: the checkpoint's config.json as a mapping, or its config object; not changed.
        strategy: name or alias, as in rope.strategies.plan.
        options: the strategy's options.
        geometries: by layer type, as rope.config.geometry_of gives them.
        length: tokens of context; at least 2.

    Raises:
        ValueError: what rope.strategies.plan refuses, geometries of other layer types than the config's, a plan that
            changes attention itself, or one that would have to be a longrope in a model whose heads differ by layer,
            which transformers refuses.
    """
    return patched_config(ScalingRequest(ENGINE, config, strategy, options, geometries, length), parameters_for)


def deploy(request: ScalingRequest) -> Deployment:
    """The config.json of to_transformers, which is all that transformers needs."""
    return config_deployment(ENGINE, request, patched_config(request, parameters_for))


def read_back(deployment: Deployment, config: Any) -> dict[str, DeclaredScaling]:
    """What transformers computes, by layer type: it reads nothing but config.json."""
    return declared_scalings(deployment.config)


def config_deployment(engine: str, request: ScalingRequest, patched: Config) -> Deployment:
    """A deployment that is a config.json alone."""
    name = scaling_name(patched, request.scalings)
    notes = () if name == "dynamic" else request.dynamic_notes(engine)
    return Deployment(engine, name, config=patched, needs_file=True, notes=notes)


def scaling_name(config: Any, scalings: Mapping[str, LayerScaling]) -> str:
    """What a patched config calls its scaling: the rope_type, or `rope_theta` where it is a base alone."""
    for key, parameters in rope_parameters(config).items():
        if parameters is not None and parameters["rope_type"] != "default":
            return str(parameters["rope_type"])
        if parameters is not None and parameters["rope_theta"] != scalings[key].geometry.base:
            return "rope_theta"
    return "default"


def override_deployment(
    request: ScalingRequest, title: str, patched: Config, overrides: Config, *, override_flag: str, length_flag: str
) -> Deployment:
    """A patched config.json as a command line that overrides the checkpoint's own.

    overrides: keys of its text config that differ; {}: nothing is overridden.
    """
    text = text_config(patched)
    if "original_max_position_embeddings" in text:  # beside the rope parameters, where it takes precedence
        overrides = {**overrides, "original_max_position_embeddings": text["original_max_position_embeddings"]}
    if overrides and text is not patched:
        overrides = {"text_config": overrides}
    length_arguments = (length_flag, str(request.length))
    return Deployment(
        request.engine,
        scaling_name(patched, request.scalings),
        arguments=((override_flag, to_json(overrides)) if overrides else ()) + length_arguments,
        with_file=length_arguments,
        config=patched,
        notes=request.dynamic_notes(title),
    )


def patched_config(request: ScalingRequest, parameters_of: Callable[[LayerScaling], Config]) -> Config:
    """config.json with what `parameters_of` gives for every layer type in rope_parameters, and the matching lengths."""
    result = copy.deepcopy(as_mapping(request.config))
    text: Any = text_config(result)  # result itself, or its part for the language model
    written: dict[str, Config | None] = {
        key: parameters_of(request.scalings[key]) if key in request.scalings else None for key in request.declared
    }
    for key in LEGACY_KEYS:
        text.pop(key, None)
    _set_lengths(text, request.scalings, [parameters for parameters in written.values() if parameters])
    text["rope_parameters"] = written.get(ALL_LAYERS, written)
    return result


def parameters_for(scaling: LayerScaling) -> Config:
    """The rope parameters of one layer type.

    Raises:
        Unsupported: a longrope in a model whose heads differ by layer.
    """
    if scaling.native and scaling.declared["rope_type"] not in RUNTIME:
        return copy.deepcopy(dict(scaling.declared))
    return base_parameters(scaling) | (_named(scaling) or longrope(scaling))


def base_parameters(scaling: LayerScaling) -> Config:
    """The checkpoint's own parameters that stay under another scaling, and its theta."""
    # a proportional share counts rotating pairs, and under any other rope_type it would count dimensions
    dropped = SCALING_KEYS | ({"partial_rotary_factor"} if scaling.declared["rope_type"] == "proportional" else set())
    own = {key: copy.deepcopy(value) for key, value in scaling.declared.items() if key not in dropped}
    return own | {"rope_theta": scaling.declared["rope_theta"]}


def longrope(scaling: LayerScaling) -> Config:
    """Any plan, as a longrope whose two lists are both its divisors."""
    if scaling.text.get("per_layer_config") or scaling.text.get("global_head_dim"):
        raise Unsupported(
            f"transformers does not support {scaling.strategy} on a {scaling.text.get('model_type', 'model')}, whose "
            "heads differ by layer: it refuses longrope there; the closest supported alternatives are linear and ntk; "
            "or use a live model"
        )
    divisors = scaling.divisors
    parameters = {
        "rope_type": "longrope",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.geometry.trained_length,
        "attention_factor": scaling.plan.attention_factor,
        "short_factor": divisors,
        "long_factor": list(divisors),
    }
    if scaling.declared.get("mscale_all_dim"):
        # DeepSeek also scales its softmax, by these two; they stay the checkpoint's, as they do in a live model
        parameters |= {key: scaling.declared[key] for key in ("factor", "mscale_all_dim")}
    return parameters


def _named(scaling: LayerScaling) -> Config | None:
    """The scaling under a rope_type of its own; None where transformers has none."""
    if scaling.native:
        return {"rope_type": "default"}
    declared = scaling.declared
    if declared["rope_type"] == "proportional" and scaling.strategy in ("linear", "ntk"):
        # its factor and its theta do to the rotating pairs what these two strategies do
        plain = NAMES[scaling.strategy](scaling) or {}
        factor = plain.get("factor", 1.0) * declared.get("factor", 1.0)
        share = {"partial_rotary_factor": declared.get("partial_rotary_factor", 1.0)}
        return plain | share | {"rope_type": "proportional"} | ({"factor": factor} if factor != 1 else {})
    if scaling.geometry.natives or scaling.strategy not in NAMES:
        return None
    parameters = NAMES[scaling.strategy](scaling)
    if parameters and parameters["rope_type"] != "default" and scaling.text.get("model_type") in LONGROPE_ONLY:
        return None
    return parameters


def _linear(scaling: LayerScaling) -> Config:
    return {"rope_type": "linear", "factor": scaling.factor}


def _theta(scaling: LayerScaling) -> Config:
    return {"rope_type": "default", "rope_theta": scaling.theta}


def _dynamic(scaling: LayerScaling) -> Config | None:
    static = scaling.static
    if static.strategy == "ntk":
        return _dynamic_ntk(scaling)
    return NAMES[static.strategy](static) if static.strategy in NAMES else None


def _dynamic_ntk(scaling: LayerScaling) -> Config:
    factor = scaling.factor if scaling.options["factor"] is None else float(scaling.options["factor"])
    return {"rope_type": "dynamic", "factor": 1.0 if scaling.options["rule"] == "natural" else factor}


def _by_parts(scaling: LayerScaling) -> Config | None:
    options = scaling.options
    if options["ramp"] == "rotations":
        return _llama3_parameters(scaling, options["beta_slow"], options["beta_fast"])
    return _yarn_parameters(scaling) | {"attention_factor": 1.0} if _reads_truncate(scaling) else None


def _yarn(scaling: LayerScaling) -> Config | None:
    options = scaling.options
    if options["ramp"] == "rotations" or not _reads_truncate(scaling):
        return None
    mscales = {key: options[key] for key in ("mscale", "mscale_all_dim") if options[key]}
    if options["attention_factor"] is not None or (mscales and scaling.text.get("qk_rope_head_dim")):
        # in DeepSeek, mscale_all_dim would scale the softmax as well
        return _yarn_parameters(scaling) | {"attention_factor": scaling.plan.attention_factor}
    return _yarn_parameters(scaling) | mscales


def _llama3(scaling: LayerScaling) -> Config:
    return _llama3_parameters(scaling, scaling.options["low_freq_factor"], scaling.options["high_freq_factor"])


NAMES: dict[str, Callable[[LayerScaling], Config | None]] = {
    "linear": _linear,
    "ntk": _theta,
    "dynamic_ntk": _dynamic_ntk,
    "dynamic": _dynamic,
    "per_layer": _dynamic,
    "base": _theta,
    "by_parts": _by_parts,
    "yarn": _yarn,
    "llama3": _llama3,
}
"""Strategies that transformers has a rope_type for, with their rope parameters; all others become longropes."""


def _yarn_parameters(scaling: LayerScaling) -> Config:
    return {
        "rope_type": "yarn",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.geometry.trained_length,
        "beta_fast": scaling.options["beta_fast"],
        "beta_slow": scaling.options["beta_slow"],
        "truncate": scaling.options["truncate"],
    }


def _reads_truncate(scaling: LayerScaling) -> bool:
    """Whether transformers will see `truncate`: it looks for it beside the layer types, where it cannot be."""
    return bool(scaling.options["truncate"]) or not scaling.by_layer_type


def _llama3_parameters(scaling: LayerScaling, low: float, high: float) -> Config:
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.geometry.trained_length,
        "low_freq_factor": low,
        "high_freq_factor": high,
    }


def _set_lengths(text: Any, scalings: Mapping[str, LayerScaling], written: list[Config]) -> None:
    key = next((name for name in LENGTH_KEYS if text.get(name) is not None), LENGTH_KEYS[0])
    changed = [scaling for scaling in scalings.values() if not scaling.native]
    trained = max(scaling.geometry.trained_length for scaling in scalings.values())
    length = next(iter(scalings.values())).length
    if any(parameters["rope_type"] == "dynamic" for parameters in written):
        text[key] = trained
    elif not changed:
        text[key] = max(text.get(key) or trained, length)
    else:
        # a hair less, so that a factor of length / trained does not round up to one token more
        text[key] = max([trained, length, *(math.ceil(scaling.factor * trained - 1e-6) for scaling in changed)])
    if "original_max_position_embeddings" in text and ALL_LAYERS in scalings:
        # beside the rope parameters, as in Phi-3, it takes precedence over the one within
        text["original_max_position_embeddings"] = written[0].get("original_max_position_embeddings", trained)
