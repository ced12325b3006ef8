"""Transformers v5: `rope_parameters` in config.json, as plain data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

from rope import families
from rope.config import RUNTIME, DeclaredScaling, declared_scalings, length_key, rope_parameters, text_config
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

LONGROPE_ONLY = frozenset({"phi3", "phi4_multimodal", "phimoe"})
"""model_type of families whose config takes no scaling but longrope, and mistakes yarn for a misspelling of it."""

ROTATES_OTHERWISE = {
    "gptj": "rotates by a table of its own whatever its config says",
    "codegen": "rotates by a table of its own whatever its config says",
    "roformer": "rotates by a table of its own whatever its config says",
    "blt_local_decoder": "is one of several models in one, each of which rotates by a config of its own",
}
"""model_type of families whose rope parameters do not say how the model rotates, and why."""

NOT_BY_LENGTH = frozenset({"deepseek_v4"})
"""model_type of families that rotate at other positions than the text's, from which `dynamic` takes its length."""

DEFAULT_ONLY = frozenset({"recurrent_gemma"})
"""model_type of families whose class takes no rope_type but default."""

HEADS_BY_LAYER = frozenset({"gemma4_text", "gemma4_unified_text", "dots3_note_text", "step3p5"})
"""model_type of families whose heads differ by layer even where their config does not say so."""

LEGACY_KEYS = ("rope_theta", "rope_scaling", "rope_local_base_freq", "rotary_emb_base")
"""Keys of transformers v4 that rope_parameters replaces."""

SCALING_KEYS = frozenset(
    {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "truncate"}
    | {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor"}
    | {"short_factor", "long_factor", "short_mscale", "long_mscale", "alpha"}
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
    return deploy(ScalingRequest(ENGINE, config, strategy, options, geometries, length).served).config or {}


def deploy(request: ScalingRequest) -> Deployment:
    """The config.json of to_transformers, which is all that transformers needs.

    Raises:
        ValueError: as to_transformers.
    """
    config = as_mapping(request.config)
    known = families.family(config.get("model_type"))
    if config.get("auto_map") and (known is None or known.source):
        raise Unsupported(
            f"transformers has no {config.get('model_type')}: the model brings code of its own (auto_map), which need "
            "not read rope_parameters; the closest supported alternative is --to transformers-v4, where that code "
            "reads rope_theta and rope_scaling"
        )
    return config_deployment(ENGINE, request, patched_config(request, transformers_parameters))


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
    if overrides:
        for key in reversed(families.nest(patched)):
            overrides = {key: overrides}
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
    text = _language_model(result)
    written: dict[str, Config | None] = {
        key: parameters_of(request.scalings[key]) if key in request.scalings else None for key in request.declared
    }
    for key in LEGACY_KEYS:
        text.pop(key, None)
    _set_lengths(text, request.scalings, [parameters for parameters in written.values() if parameters])
    text["rope_parameters"] = written.get(ALL_LAYERS, written)
    if text.get("layer_rope_theta"):  # of Granite SWA, in which it takes precedence; 0 is a layer without rotation
        theta = text["rope_parameters"]["rope_theta"]
        text["layer_rope_theta"] = [own and theta for own in text["layer_rope_theta"]]
    return result


def transformers_parameters(scaling: LayerScaling) -> Config:
    """The rope parameters of one layer type, where the class of the model rotates by them.

    Raises:
        Unsupported: it does not, or what parameters_for refuses.
    """
    reason = ROTATES_OTHERWISE.get(scaling.family)
    thetas = {theta for theta in scaling.text.get("layer_rope_theta") or () if theta}
    if thetas - {scaling.geometry.base}:
        reason = f"has layers with bases of their own (layer_rope_theta: {', '.join(map(str, sorted(thetas)))})"
    if reason and not scaling.native:
        raise Unsupported(
            f"transformers does not support {scaling.strategy} on a {scaling.family}, which {reason}; the closest "
            "supported alternative is none"
        )
    parameters = parameters_for(scaling)
    if scaling.family in DEFAULT_ONLY and parameters["rope_type"] != "default":
        raise Unsupported(
            f"transformers does not support {scaling.strategy} on a {scaling.family}, whose class takes a rope_theta "
            "alone; the closest supported alternative is ntk"
        )
    return parameters


def _language_model(config: Config) -> Any:
    """The part of a config that describes the language model, to be written to: config itself, or one within.

    Where a config of several models leaves that part out altogether, it is there afterwards.
    """
    text: Any = text_config(config)
    known = families.family(text.get("model_type"))
    while known is not None and known.inside and "hidden_size" not in text:  # else it is flat, as of older versions
        key, model_type = known.inside
        text[key] = {"model_type": model_type}
        text, known = text[key], families.family(model_type)
    return text


def parameters_for(scaling: LayerScaling) -> Config:
    """The rope parameters of one layer type.

    Raises:
        Unsupported: a longrope in a model whose heads differ by layer.
    """
    if scaling.native and scaling.declared["rope_type"] not in RUNTIME:
        return copy.deepcopy(dict(scaling.declared))
    named = None if read_by_attention(scaling.declared) else _named(scaling)
    return base_parameters(scaling) | (named or longrope(scaling))


def base_parameters(scaling: LayerScaling) -> Config:
    """The checkpoint's own parameters that stay under another scaling, and its theta."""
    # a proportional share counts rotating pairs, and under any other rope_type it would count dimensions
    dropped = SCALING_KEYS | ({"partial_rotary_factor"} if scaling.declared["rope_type"] == "proportional" else set())
    own = {key: copy.deepcopy(value) for key, value in scaling.declared.items() if key not in dropped}
    if scaling.text.get("partial_rotary_factor") is not None and "partial_rotary_factor" not in dropped:
        # the share beside the parameters would go into them; some classes overlook it in a plain rotation only
        own["partial_rotary_factor"] = scaling.geometry.partial
    return own | {"rope_theta": scaling.geometry.base}


def read_by_attention(declared: Mapping[str, Any]) -> Config:
    """The checkpoint's rope parameters that its attention reads too, so that they stay under another scaling.

    In a live model they stay as well. A longrope with an attention factor can carry them, as it computes nothing from
    them; the other types would take them for their own.

    Source:
        transformers 5.23: yarn_apply_mscale of DeepSeek V2 and V3 and twelve more, which multiplies the softmax;
        get_llama_4_attn_scale of Ministral 3 and Mistral 4, by which queries grow with their position
    """
    names: tuple[str, ...] = ()
    if declared.get("mscale_all_dim") and declared["rope_type"] != "default":
        names += ("factor", "mscale_all_dim")
    if declared.get("llama_4_scaling_beta") is not None:
        names += ("original_max_position_embeddings",)
    return {name: declared[name] for name in names if name in declared}


def longrope(scaling: LayerScaling) -> Config:
    """Any plan, as a longrope whose two lists are both its divisors."""
    if scaling.family in HEADS_BY_LAYER or scaling.text.get("per_layer_config") or scaling.text.get("global_head_dim"):
        plain = scaling.declared["rope_type"] == "proportional" or not scaling.geometry.natives
        raise Unsupported(
            f"transformers does not support {scaling.strategy} on a {scaling.family}, whose heads differ by layer: it "
            f"refuses longrope there; the closest supported alternative is {'linear, or ntk' if plain else 'none'}; "
            "or use a live model"
        )
    divisors = scaling.divisors
    attention = scaling.plan.attention_factor
    # PhiMoE takes its attention factor from elsewhere
    mscales = {"short_mscale": attention, "long_mscale": attention} if scaling.family == "phimoe" else {}
    return {
        "rope_type": "longrope",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.geometry.trained_length,
        "attention_factor": attention,
        "short_factor": divisors,
        "long_factor": list(divisors),
        **mscales,
        **read_by_attention(scaling.declared),
    }


def _named(scaling: LayerScaling) -> Config | None:
    """The scaling under a rope_type of its own; None where transformers has none."""
    if scaling.native:
        return {"rope_type": "default"}
    declared, static = scaling.declared, scaling.static
    if declared["rope_type"] == "proportional" and static.strategy in ("linear", "ntk", "base"):
        # its factor and its theta do to the rotating pairs what these strategies do
        plain = NAMES[static.strategy](static) or {}
        factor = plain.get("factor", 1.0) * declared.get("factor", 1.0)
        share = {"partial_rotary_factor": declared.get("partial_rotary_factor", 1.0)}
        return plain | share | {"rope_type": "proportional"} | ({"factor": factor} if factor != 1 else {})
    if scaling.geometry.natives or scaling.strategy not in NAMES:
        return None
    parameters = NAMES[scaling.strategy](scaling)
    if parameters and parameters["rope_type"] != "default" and scaling.family in LONGROPE_ONLY:
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


def _dynamic_ntk(scaling: LayerScaling) -> Config | None:
    if scaling.family in NOT_BY_LENGTH:
        return None
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
    key = length_key(text)
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
