"""A plan in the words of SGLang: `--json-model-override-args` over config.json, and `--context-length`; and back.

Read in SGLang 0.5.23, srt/layers/rotary_embedding and srt/utils/hf_transformers. Its override of rope_scaling is merged
into what the checkpoint declares, under transformers v4 and v5 alike. It differs from transformers: nothing follows the
length of a sequence; yarn takes no attention_factor but an attn_factor, which multiplies its own; longrope takes its
attention factor from short_mscale and long_mscale, and where it switches lists, at the original length, it rotates the
token at that very place as if it were the first: so its original length is put past all that is served.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rope.config import LENGTH_KEYS, Declared, declared_in, rope_parameters, text_config
from rope.dialects.transformers_v5 import config_with, overriding, words_of
from rope.dialects.words import Case, Deployment, Unsayable, Words, cases_of, only
from rope.geometry import ALL_LAYERS, Geometry
from rope.strategies.ramps import mscale_of

ENGINE = "sglang"


def to_sglang(
    config: Any, strategy: str, options: Mapping[str, Any], geometries: Mapping[str, Geometry], length: int
) -> Deployment:
    """What `python -m sglang.launch_server --model-path MODEL` takes after the model, and the config.json to the same.

    A dynamic strategy becomes its plan at `length`. Arguments and refusals as of rope.dialects.to_transformers.

    Raises:
        ValueError: what to_transformers refuses, several layer types, or a proportional scaling that would change.
    """
    cases, own = cases_of(ENGINE, config, strategy, options, geometries, length)
    case = only(ENGINE, cases)
    patched = config_with(config, cases, own, words_of_sglang)
    text: Any = text_config(patched)
    words = text["rope_parameters"]
    key = next(name for name in LENGTH_KEYS if text.get(name) is not None)
    overrides: Words = {}
    if not case.native or rope_parameters(config) != rope_parameters(patched):
        overrides["rope_scaling"] = words
        if words["rope_theta"] != case.own["rope_theta"]:
            overrides["rope_theta"] = words["rope_theta"]  # where SGLang on transformers v4 looks for it
    if text_config(config).get(key) != text[key]:
        overrides[key] = text[key]
    flags = ("--json-model-override-args", "--context-length")
    return overriding(ENGINE, "SGLang", patched, cases, overrides, flags, length)


def words_of_sglang(case: Case) -> Words:
    """The rope parameters of the one layer type."""
    if case.own["rope_type"] == "proportional" and not case.native:
        raise Unsayable(
            f"SGLang rotates Gemma 4's proportional layers by a rule of its own, which takes no {case.strategy}; the "
            "nearest is --to transformers"
        )
    words = words_of(case if case.native else case.settled)
    if words["rope_type"] == "yarn" and not case.native:
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            words.pop(name, None)
        times = case.plan.attention_factor / mscale_of(words["factor"], 1.0)
        if abs(times - 1) > 1e-12:
            words["attn_factor"] = times
    elif words["rope_type"] == "longrope" and not case.native:
        words |= {"short_mscale": case.plan.attention_factor, "long_mscale": case.plan.attention_factor}
        words["original_max_position_embeddings"] = max(case.length, case.geometry.trained_length)
    return words


def from_sglang(overrides: Mapping[str, Any], config: Any) -> dict[str, Declared]:
    """The strategy that `--json-model-override-args` over a checkpoint's config comes to in SGLang.

    Raises:
        ValueError: parameters that are not known.
    """
    merged = copy.deepcopy(dict(config if isinstance(config, Mapping) else config.to_dict()))
    text: Any = text_config(merged)
    inner = dict(overrides.get("text_config", overrides) if text is not merged else overrides)
    words: Words = dict(rope_parameters(merged)[ALL_LAYERS] or {})
    for key in ("rope_parameters", "rope_scaling"):
        words |= copy.deepcopy(inner.pop(key, {}))
    for key in ("rope_scaling", "rope_theta"):
        text.pop(key, None)
    text.update({key: value for key, value in inner.items() if key != "rope_theta"})
    rope_type, plain = words["rope_type"], {"rope_type": "default", "rope_theta": words["rope_theta"]}
    if rope_type == "dynamic":
        factor = words.get("factor", 1.0)
        alpha = float(words.get("alpha", factor * factor - (factor - 1)))
        found = _read(text, plain, words)
        return {ALL_LAYERS: replace(found, strategy="ntk", options={"factor": alpha}) if alpha > 1 else found}
    found = _read(text, words, words)
    if rope_type == "yarn" and found.strategy == "yarn":
        mscales = {name: words[name] for name in ("mscale", "mscale_all_dim") if words.get(name)}
        own = replace(found, options={**_shape_of(found), **mscales}).plan(found.geometry.trained_length)
        attention = {"attention_factor": own.attention_factor * words.get("attn_factor", 1.0)}
        found = replace(found, options={**_shape_of(found), **attention})
    if rope_type == "longrope":
        scales: Words = {name: words[name] for name in ("short_mscale", "long_mscale") if name in words}
        found = replace(found, options={**found.options, "attention_factor": None, **scales})
    return {ALL_LAYERS: found}


def _shape_of(found: Declared) -> Words:
    """Options of yarn that say nothing of attention."""
    return {name: found.options[name] for name in found.options if "scale" not in name and name != "attention_factor"}


def _read(text: Mapping[str, Any], words: Words, share: Words) -> Declared:
    """What transformers would read in these words."""
    partial = {"partial_rotary_factor": share["partial_rotary_factor"]} if "partial_rotary_factor" in share else {}
    return declared_in({**text, "rope_parameters": {**partial, **words}})[ALL_LAYERS]
