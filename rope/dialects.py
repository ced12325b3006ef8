"""A plan in the words of an inference engine: config.json as plain data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rope.config import LENGTH_KEYS, RUNTIME, rope_parameters, text_config
from rope.geometry import ALL_LAYERS, Geometry, Plan, inverse_frequencies, layers_of
from rope.pairwise import Pairwise
from rope.strategies import named, options_of, plans, stretch

STANDING_STILL = 1e28
"""Divisor that stands for a frequency of 0: JSON has no infinity, and float32 ends at 3e38."""

LONGROPE_ONLY = frozenset({"phi3", "phi4_multimodal"})
"""model_type of families whose config knows no scaling but longrope, and takes yarn for a misspelling of it."""

LEGACY_KEYS = ("rope_theta", "rope_scaling", "rope_local_base_freq", "rotary_emb_base")
"""Keys of transformers v4 that rope_parameters replaces."""

SCALING_KEYS = frozenset(
    {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "truncate"}
    | {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor"}
    | {"short_factor", "long_factor", "short_mscale", "long_mscale"}
)
"""Rope parameters that belong to one scaling; all others (a partial rotation, multimodal sections) outlive it."""

Words = dict[str, Any]


def to_transformers(
    config: Any, strategy: str, options: Mapping[str, Any], geometries: Mapping[str, Geometry], length: int
) -> dict[str, Any]:
    """config.json with which a plain transformers `from_pretrained` runs a strategy: v5 rope_parameters, no v4 keys.

    linear, yarn, llama3 and dynamic_ntk keep their names; ntk becomes a larger rope_theta; by_parts is yarn without
    attention factor (index) or llama3 (rotations); whatever has no name of its own, as all that acts on top of a
    scaling the checkpoint declares, becomes a longrope whose two lists are both this plan. Where a plan is the native
    one, the checkpoint's own parameters stay; only a declared dynamic scaling is then dropped, being no part of a plan.

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
            where transformers refuses that.
    """
    name, full = named(strategy), {**options_of(strategy), **options}
    chosen, own = dict(plans(strategy, geometries, length, **options)), rope_parameters(config)
    if any(isinstance(plan, Pairwise) for plan in chosen.values()):
        raise ValueError(f"transformers has no words for {name}: it changes attention itself, not frequencies alone")
    if any(layers_of(layers)[1] for layers in chosen):
        raise ValueError(
            f"transformers has no words for {strategy}, whose layers differ; run its plans in a live model"
        )
    if set(chosen) != {layer_type for layer_type, parameters in own.items() if parameters is not None}:
        raise ValueError(f"the geometries are of {', '.join(chosen)} and the config of {', '.join(own)}; give its own")
    result = copy.deepcopy(dict(config if isinstance(config, Mapping) else config.to_dict()))
    text: Any = text_config(result)  # result itself, or the part of it that is the language model's
    nested = ALL_LAYERS not in own
    cases = {
        layer_type: _Case(name, full, geometries[layer_type], plan, length, own[layer_type] or {}, nested, text)
        for layer_type, plan in chosen.items()
    }
    written: dict[str, Words | None] = {key: cases[key].words() if key in cases else None for key in own}
    for key in LEGACY_KEYS:
        text.pop(key, None)
    _set_lengths(text, cases, [words for words in written.values() if words])
    text["rope_parameters"] = written.get(ALL_LAYERS, written)
    return result


@dataclass(frozen=True)
class _Case:
    """One layer type's plan on its way into words, with all that the words depend on."""

    strategy: str
    options: Mapping[str, Any]
    geometry: Geometry
    plan: Plan
    length: int
    own: Mapping[str, Any]  # the rope parameters that the checkpoint came with
    nested: bool  # whether the config has them by layer type
    text: Mapping[str, Any]  # the config that holds them

    @property
    def native(self) -> bool:
        return self.plan == self.geometry.native(self.length)

    @property
    def factor(self) -> float:
        """By how much the context is stretched; the `factor` of dynamic ones is another thing."""
        given = None if self.strategy in ("dynamic", "dynamic_ntk") else self.options.get("factor")
        return stretch(self.geometry, self.length, given)

    def words(self) -> Words:
        declared = self.own["rope_type"]
        if self.native and declared not in RUNTIME:
            return copy.deepcopy(dict(self.own))
        # a proportional share counts turning pairs, and under any other name it would count dimensions
        lost = SCALING_KEYS | ({"partial_rotary_factor"} if declared == "proportional" else set())
        words = {key: copy.deepcopy(value) for key, value in self.own.items() if key not in lost}
        return words | {"rope_theta": self.own["rope_theta"]} | (self._named() or self._longrope())

    def _named(self) -> Words | None:
        """The scaling by a name that transformers has for it; None where it has none."""
        if self.native:
            return {"rope_type": "default"}
        if self.own["rope_type"] == "proportional" and self.strategy in ("linear", "ntk"):
            # its factor and its theta mean what these two do, to the pairs that turn
            plain = NAMES[self.strategy](self) or {}
            factor = plain.get("factor", 1.0) * self.own.get("factor", 1.0)
            share = {"partial_rotary_factor": self.own.get("partial_rotary_factor", 1.0)}
            return plain | share | {"rope_type": "proportional"} | ({"factor": factor} if factor != 1 else {})
        if self.geometry.natives:
            return None
        words = NAMES.get(self.strategy, _none)(self)
        known = words is None or self.text.get("model_type") not in LONGROPE_ONLY or words["rope_type"] == "default"
        return words if known else None

    def _longrope(self) -> Words:
        if self.text.get("per_layer_config") or self.text.get("global_head_dim"):
            raise ValueError(
                f"transformers has no word for {self.strategy} on a {self.text.get('model_type', 'model')}, whose "
                "heads differ by layer: it refuses longrope there; write linear or ntk, or run the plan in a live model"
            )
        plain = inverse_frequencies(self.geometry.rotated, self.geometry.base)
        scaled = np.array(self.plan.inv_freq)
        divisors = np.where(scaled > 0, plain / np.where(scaled > 0, scaled, 1.0), STANDING_STILL).tolist()
        words = {
            "rope_type": "longrope",
            "factor": self.factor,
            "original_max_position_embeddings": self.geometry.trained_length,
            "attention_factor": self.plan.attention_factor,
            "short_factor": divisors,
            "long_factor": list(divisors),
        }
        if self.own.get("mscale_all_dim"):
            # DeepSeek also scales its softmax, by these two; they stay the checkpoint's, as they do in a live model
            words |= {key: self.own[key] for key in ("factor", "mscale_all_dim")}
        return words


def _none(case: _Case) -> Words | None:
    return None


def _linear(case: _Case) -> Words | None:
    return {"rope_type": "linear", "factor": case.factor}


def _ntk(case: _Case) -> Words | None:
    rotated = case.geometry.rotated
    return {"rope_type": "default", "rope_theta": case.geometry.base * case.factor ** (rotated / (rotated - 2))}


def _base(case: _Case) -> Words | None:
    return {"rope_type": "default", "rope_theta": float(case.options["theta"])}


def _dynamic_ntk(case: _Case) -> Words | None:
    factor = case.factor if case.options["factor"] is None else float(case.options["factor"])
    return {"rope_type": "dynamic", "factor": 1.0 if case.options["rule"] == "natural" else factor}


def _by_parts(case: _Case) -> Words | None:
    options = case.options
    if options["ramp"] == "rotations":
        return _llama3_words(case, options["beta_slow"], options["beta_fast"])
    return _yarn_words(case) | {"attention_factor": 1.0} if _truncates(case) else None


def _yarn(case: _Case) -> Words | None:
    options = case.options
    if options["ramp"] == "rotations" or not _truncates(case):
        return None
    scales = {key: options[key] for key in ("mscale", "mscale_all_dim") if options[key]}
    if options["attention_factor"] is not None or (scales and case.text.get("qk_rope_head_dim")):
        # in DeepSeek, mscale_all_dim would scale the softmax as well
        return _yarn_words(case) | {"attention_factor": case.plan.attention_factor}
    return _yarn_words(case) | scales


def _llama3(case: _Case) -> Words | None:
    return _llama3_words(case, case.options["low_freq_factor"], case.options["high_freq_factor"])


NAMES: dict[str, Callable[[_Case], Words | None]] = {
    "linear": _linear,
    "ntk": _ntk,
    "dynamic_ntk": _dynamic_ntk,
    "base": _base,
    "by_parts": _by_parts,
    "yarn": _yarn,
    "llama3": _llama3,
}
"""How a strategy is called in transformers, where it has a name there; all others are longropes."""


def _yarn_words(case: _Case) -> Words:
    return {
        "rope_type": "yarn",
        "factor": case.factor,
        "original_max_position_embeddings": case.geometry.trained_length,
        "beta_fast": case.options["beta_fast"],
        "beta_slow": case.options["beta_slow"],
        "truncate": case.options["truncate"],
    }


def _truncates(case: _Case) -> bool:
    """Whether transformers will heed `truncate`: it looks beside the layer types for it, where none can stand."""
    return bool(case.options["truncate"]) or not case.nested


def _llama3_words(case: _Case, low: float, high: float) -> Words:
    return {
        "rope_type": "llama3",
        "factor": case.factor,
        "original_max_position_embeddings": case.geometry.trained_length,
        "low_freq_factor": low,
        "high_freq_factor": high,
    }


def _set_lengths(text: Any, cases: Mapping[str, _Case], written: list[Words]) -> None:
    key = next((name for name in LENGTH_KEYS if text.get(name) is not None), LENGTH_KEYS[0])
    changed = [case for case in cases.values() if not case.native]
    trained = max(case.geometry.trained_length for case in cases.values())
    length = next(iter(cases.values())).length
    if any(words["rope_type"] == "dynamic" for words in written):
        text[key] = trained
    elif not changed:
        text[key] = max(text.get(key) or trained, length)
    else:
        # a hair less, so that a factor of length / trained does not round up to one token more
        text[key] = max([trained, length, *(math.ceil(case.factor * trained - 1e-6) for case in changed)])
    if "original_max_position_embeddings" in text and ALL_LAYERS in cases:
        # beside the rope parameters, as Phi-3 has it, it would win over the one within
        text["original_max_position_embeddings"] = written[0].get("original_max_position_embeddings", trained)
