"""A plan in the words of vLLM: `--hf-overrides` over the checkpoint's config.json, and `--max-model-len`; and back.

Read in vLLM 0.33.0, model_executor/layers/rotary_embedding and config/model.py. It takes transformers v5's
rope_parameters, and differs in four ways: its cosines are tabulated once, so nothing follows the length of a sequence;
under yarn the table ends at the original length times the factor, whatever is served; longrope takes its attention
factor from short_mscale and long_mscale alone; and it has a type of its own, `ntk`, which is Su's (ntk_fixed, and
ntk_mixed with mixed_b).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rope.config import LENGTH_KEYS, Declared, declared_in, rope_parameters, text_config
from rope.dialects.transformers_v5 import config_with, kept, longrope, overriding, words_of
from rope.dialects.words import Case, Deployment, Unsayable, Words, cases_of
from rope.geometry import ALL_LAYERS, Geometry

ENGINE = "vllm"


def to_vllm(
    config: Any, strategy: str, options: Mapping[str, Any], geometries: Mapping[str, Geometry], length: int
) -> Deployment:
    """What `vllm serve MODEL` takes after the model, and the config.json that says the same.

    A dynamic strategy becomes its plan at `length`. Arguments and refusals as of rope.dialects.to_transformers.

    Raises:
        ValueError: what to_transformers refuses, or a proportional scaling of the checkpoint's own that would change.
    """
    cases, own = cases_of(ENGINE, config, strategy, options, geometries, length)
    patched = config_with(config, cases, own, words_of_vllm)
    text = text_config(patched)
    overrides: Words = {"rope_parameters": text["rope_parameters"]}
    key = next(name for name in LENGTH_KEYS if text.get(name) is not None)
    if _reach(text_config(config), rope_parameters(patched)) < length:
        overrides[key] = text[key]
    if all(case.native for case in cases.values()) and rope_parameters(config) == rope_parameters(patched):
        del overrides["rope_parameters"]
    flags = ("--hf-overrides", "--max-model-len")
    return overriding(ENGINE, "vLLM", patched, cases, overrides, flags, length)


def words_of_vllm(case: Case) -> Words:
    """The rope parameters of one layer type."""
    settled = case.settled
    if case.own["rope_type"] == "proportional" and not case.native:
        raise Unsayable(
            f"vLLM rotates Gemma 4's proportional layers by a rule of its own, which takes no {case.strategy}; the "
            "nearest is --to transformers"
        )
    if settled.strategy in ("ntk_fixed", "ntk_mixed") and not case.geometry.natives and not case.native:
        mixed = {"mixed_b": settled.options["mixed_b"]} if settled.strategy == "ntk_mixed" else {}
        return {
            **kept(case),
            "rope_theta": case.own["rope_theta"],
            "rope_type": "ntk",
            "factor": settled.factor,
            **mixed,
        }
    words = words_of(case if case.native else settled)
    if (
        words["rope_type"] == "yarn"
        and words["factor"] * words["original_max_position_embeddings"] < case.length - 1e-6
    ):
        words = {**kept(case), "rope_theta": case.own["rope_theta"], **longrope(case)}  # its table would end before
    if words["rope_type"] == "longrope":
        words |= {"short_mscale": case.plan.attention_factor, "long_mscale": case.plan.attention_factor}
    return words


def from_vllm(overrides: Mapping[str, Any], config: Any) -> dict[str, Declared]:
    """The strategies that `--hf-overrides` over a checkpoint's config come to in vLLM, by layer type.

    Raises:
        ValueError: parameters that are not known.
    """
    merged = copy.deepcopy(dict(config if isinstance(config, Mapping) else config.to_dict()))
    text: Any = text_config(merged)
    inner = overrides.get("text_config", overrides) if text is not merged else overrides
    if "rope_parameters" in inner:
        for key in ("rope_scaling", "rope_theta", "rope_local_base_freq"):
            text.pop(key, None)
    text.update(copy.deepcopy(dict(inner)))
    limit = next(text[name] for name in LENGTH_KEYS if text.get(name) is not None)
    found = {}
    for layer_type, parameters in rope_parameters(merged).items():
        if parameters is not None:
            found[layer_type] = _heard(merged, layer_type, parameters, limit)
    return found


def _heard(config: Words, layer_type: str, parameters: Words, limit: int) -> Declared:
    """One layer type as vLLM computes it; what it computes as transformers does is transformers' to read."""
    rope_type = parameters["rope_type"]
    plain = _read_as(config, layer_type, {"rope_type": "default", "rope_theta": parameters["rope_theta"]}, parameters)
    if rope_type == "ntk":
        mixed = {"mixed_b": parameters["mixed_b"]} if "mixed_b" in parameters else {}
        return replace(
            plain, strategy="ntk_mixed" if mixed else "ntk_fixed", options={"factor": parameters["factor"], **mixed}
        )
    if rope_type == "dynamic":
        factor = parameters.get("factor", 1.0)
        growth = factor * limit / parameters.get("max_trained_positions", limit) - (factor - 1)
        alpha = float(parameters.get("alpha", growth))
        return replace(plain, strategy="ntk", options={"factor": alpha}) if alpha > 1 else plain
    found = _read_as(config, layer_type, parameters, parameters)
    if rope_type == "longrope":
        original = found.geometry.trained_length
        rule = math.sqrt(1 + math.log(limit / original) / math.log(original)) if limit > original else 1.0
        scales = {name: parameters.get(name, rule) for name in ("short_mscale", "long_mscale")}
        return replace(found, options={**found.options, **scales})
    return found


def _read_as(config: Words, layer_type: str, words: Words, parameters: Words) -> Declared:
    """What transformers would read in a layer type's words."""
    result = dict(text_config(config))
    share = (
        {"partial_rotary_factor": parameters["partial_rotary_factor"]} if "partial_rotary_factor" in parameters else {}
    )
    inner = {**share, **words}
    result["rope_parameters"] = inner if layer_type == ALL_LAYERS else {layer_type: inner}
    result.pop("rope_scaling", None)
    return declared_in(result)[layer_type]


def _reach(text: Mapping[str, Any], own: Mapping[str, Words | None]) -> float:
    """Tokens that vLLM allows, and has cosines for, by the checkpoint's own length, which a linear type multiplies."""
    limit = next((text[name] for name in LENGTH_KEYS if text.get(name) is not None), 0)
    words = own.get(ALL_LAYERS)
    return float(limit * words["factor"] if words and words["rope_type"] == "linear" else limit)
