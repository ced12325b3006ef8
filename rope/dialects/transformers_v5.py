"""A plan in the words of transformers v5: `rope_parameters` in config.json, as plain data; and back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

from rope.config import LENGTH_KEYS, RUNTIME, Declared, declared_in, rope_parameters, text_config
from rope.dialects.words import Case, Deployment, Unsayable, Words, as_json, cases_of, running_note
from rope.geometry import ALL_LAYERS, Geometry

ENGINE = "transformers"

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
    cases, own = cases_of(ENGINE, config, strategy, options, geometries, length)
    return config_with(config, cases, own, words_of)


def deploy(
    config: Any, strategy: str, options: Mapping[str, Any], geometries: Mapping[str, Geometry], length: int
) -> Deployment:
    """to_transformers as a deployment: config.json is all that is needed."""
    cases, own = cases_of(ENGINE, config, strategy, options, geometries, length)
    return as_deployment(ENGINE, config_with(config, cases, own, words_of), cases)


def declared(config: Any) -> dict[str, Declared]:
    """The strategy that a config.json names, by layer type: transformers reads nothing else."""
    return declared_in(config)


def as_deployment(engine: str, patched: Words, cases: Mapping[str, Case]) -> Deployment:
    name = name_in(patched, cases)
    notes = () if name == "dynamic" else running_note(engine, cases)
    return Deployment(engine, name, config=patched, needs_file=True, notes=notes)


def name_in(config: Any, cases: Mapping[str, Case]) -> str:
    """What a patched config calls its scaling: the rope_type, or `rope_theta` where it is a base alone."""
    for key, parameters in rope_parameters(config).items():
        if parameters is not None and parameters["rope_type"] != "default":
            return str(parameters["rope_type"])
        if parameters is not None and parameters["rope_theta"] != cases[key].geometry.base:
            return "rope_theta"
    return "default"


def overriding(
    engine: str, title: str, patched: Words, cases: Mapping[str, Case], overrides: Words, flags: tuple[str, str],
    length: int,
) -> Deployment:  # fmt: skip
    """A patched config.json as a command line over the checkpoint's own.

    overrides: keys of its text config that differ; none: nothing is overridden. flags: of the overrides, and of the
    length that is served.
    """
    text, (given, served) = text_config(patched), flags
    if "original_max_position_embeddings" in text:  # beside the rope parameters, where it wins
        overrides = {**overrides, "original_max_position_embeddings": text["original_max_position_embeddings"]}
    if overrides and text is not patched:
        overrides = {"text_config": overrides}
    told = (given, as_json(overrides)) if overrides else ()
    return Deployment(
        engine,
        name_in(patched, cases),
        arguments=(*told, served, str(length)),
        with_file=(served, str(length)),
        config=patched,
        notes=running_note(title, cases),
    )


def config_with(
    config: Any, cases: Mapping[str, Case], own: Mapping[str, Words | None], say: Callable[[Case], Words]
) -> Words:
    """config.json with what `say` has for every layer type in its rope_parameters, and the lengths that go with it."""
    result = copy.deepcopy(dict(config if isinstance(config, Mapping) else config.to_dict()))
    text: Any = text_config(result)  # result itself, or the part of it that is the language model's
    written: dict[str, Words | None] = {key: say(cases[key]) if key in cases else None for key in own}
    for key in LEGACY_KEYS:
        text.pop(key, None)
    _set_lengths(text, cases, [words for words in written.values() if words])
    text["rope_parameters"] = written.get(ALL_LAYERS, written)
    return result


def words_of(case: Case) -> Words:
    """The rope parameters of one layer type.

    Raises:
        Unsayable: a longrope in a model whose heads differ by layer.
    """
    declared = case.own["rope_type"]
    if case.native and declared not in RUNTIME:
        return copy.deepcopy(dict(case.own))
    return {**kept(case), "rope_theta": case.own["rope_theta"], **(_named(case) or longrope(case))}


def kept(case: Case) -> Words:
    """Of the checkpoint's own parameters those that outlive its scaling."""
    # a proportional share counts turning pairs, and under any other name it would count dimensions
    lost = SCALING_KEYS | ({"partial_rotary_factor"} if case.own["rope_type"] == "proportional" else set())
    return {key: copy.deepcopy(value) for key, value in case.own.items() if key not in lost}


def longrope(case: Case) -> Words:
    """Any plan, as a longrope whose two lists are both its divisors."""
    if case.text.get("per_layer_config") or case.text.get("global_head_dim"):
        raise Unsayable(
            f"transformers has no word for {case.strategy} on a {case.text.get('model_type', 'model')}, whose "
            "heads differ by layer: it refuses longrope there; the nearest that it can say are linear and ntk; or run "
            "the plan in a live model"
        )
    divisors = case.divisors
    words = {
        "rope_type": "longrope",
        "factor": case.factor,
        "original_max_position_embeddings": case.geometry.trained_length,
        "attention_factor": case.plan.attention_factor,
        "short_factor": divisors,
        "long_factor": list(divisors),
    }
    if case.own.get("mscale_all_dim"):
        # DeepSeek also scales its softmax, by these two; they stay the checkpoint's, as they do in a live model
        words |= {key: case.own[key] for key in ("factor", "mscale_all_dim")}
    return words


def _named(case: Case) -> Words | None:
    """The scaling by a name that transformers has for it; None where it has none."""
    if case.native:
        return {"rope_type": "default"}
    if case.own["rope_type"] == "proportional" and case.strategy in ("linear", "ntk"):
        # its factor and its theta mean what these two do, to the pairs that turn
        plain = NAMES[case.strategy](case) or {}
        factor = plain.get("factor", 1.0) * case.own.get("factor", 1.0)
        share = {"partial_rotary_factor": case.own.get("partial_rotary_factor", 1.0)}
        return plain | share | {"rope_type": "proportional"} | ({"factor": factor} if factor != 1 else {})
    if case.geometry.natives:
        return None
    words = NAMES.get(case.strategy, _none)(case)
    known = words is None or case.text.get("model_type") not in LONGROPE_ONLY or words["rope_type"] == "default"
    return words if known else None


def _none(case: Case) -> Words | None:
    return None


def _linear(case: Case) -> Words | None:
    return {"rope_type": "linear", "factor": case.factor}


def _theta(case: Case) -> Words | None:
    return {"rope_type": "default", "rope_theta": case.theta}


def _dynamic(case: Case) -> Words | None:
    settled = case.settled
    if settled.strategy == "ntk":
        return _dynamic_ntk(case)
    return None if settled.strategy == case.strategy else NAMES.get(settled.strategy, _none)(settled)


def _dynamic_ntk(case: Case) -> Words | None:
    factor = case.factor if case.options["factor"] is None else float(case.options["factor"])
    return {"rope_type": "dynamic", "factor": 1.0 if case.options["rule"] == "natural" else factor}


def _by_parts(case: Case) -> Words | None:
    options = case.options
    if options["ramp"] == "rotations":
        return _llama3_words(case, options["beta_slow"], options["beta_fast"])
    return _yarn_words(case) | {"attention_factor": 1.0} if _truncates(case) else None


def _yarn(case: Case) -> Words | None:
    options = case.options
    if options["ramp"] == "rotations" or not _truncates(case):
        return None
    scales = {key: options[key] for key in ("mscale", "mscale_all_dim") if options[key]}
    if options["attention_factor"] is not None or (scales and case.text.get("qk_rope_head_dim")):
        # in DeepSeek, mscale_all_dim would scale the softmax as well
        return _yarn_words(case) | {"attention_factor": case.plan.attention_factor}
    return _yarn_words(case) | scales


def _llama3(case: Case) -> Words | None:
    return _llama3_words(case, case.options["low_freq_factor"], case.options["high_freq_factor"])


NAMES: dict[str, Callable[[Case], Words | None]] = {
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
"""How a strategy is called in transformers, where it has a name there; all others are longropes."""


def _yarn_words(case: Case) -> Words:
    return {
        "rope_type": "yarn",
        "factor": case.factor,
        "original_max_position_embeddings": case.geometry.trained_length,
        "beta_fast": case.options["beta_fast"],
        "beta_slow": case.options["beta_slow"],
        "truncate": case.options["truncate"],
    }


def _truncates(case: Case) -> bool:
    """Whether transformers will heed `truncate`: it looks beside the layer types for it, where none can stand."""
    return bool(case.options["truncate"]) or not case.nested


def _llama3_words(case: Case, low: float, high: float) -> Words:
    return {
        "rope_type": "llama3",
        "factor": case.factor,
        "original_max_position_embeddings": case.geometry.trained_length,
        "low_freq_factor": low,
        "high_freq_factor": high,
    }


def _set_lengths(text: Any, cases: Mapping[str, Case], written: list[Words]) -> None:
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
