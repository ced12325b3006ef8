"""A plan in the words of ExLlamaV2: alpha, scale and yarn flags, or lists in a config.json in v4 words; and back.

Read in exllamav2 0.3.2, rope.py, config.py and device.py:
    -ra alpha: base * alpha ** (d / (d - 2)), so alpha = (theta / base) ** ((d - 2) / d)
    -rs factor: positions divided by factor
    -ry factor: YaRN with its published defaults, whose ramp however is computed for -l, the length that is served, and
                not for the trained one: as if beta_fast and beta_slow were divided by length / trained_length
    longrope: attention factor sqrt(1 + ln(length / original) / ln(original)), or 1 up to the original length
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from rope.config import Declared, declared_in, geometry_of, rope_parameters, text_config
from rope.dialects.transformers_v4 import to_transformers_v4
from rope.dialects.words import Case, Deployment, Unsayable, Words, cases_of, only, running_note, shortest
from rope.geometry import ALL_LAYERS, Geometry
from rope.strategies.ramps import mscale_of

ENGINE = "exllama"

READ = frozenset({"linear", "yarn", "longrope", "llama3"})
"""Values of rope_type in a config.json that ExLlamaV2 looks at; others it takes for none."""

CLOSE = 1e-9
"""Relative distance within which two factors, computed by two formulas, are one."""


def to_exllama(
    config: Any, strategy: str, options: Mapping[str, Any], geometries: Mapping[str, Geometry], length: int
) -> Deployment:
    """What ExLlamaV2's programs take after `-m FOLDER`, and the config.json to put there where flags do not say it.

    A dynamic strategy becomes its plan at `length`.

    Raises:
        ValueError: what rope.dialects.to_transformers refuses, several layer types, or an attention factor that no list
            can have.
    """
    cases, _ = cases_of(ENGINE, config, strategy, options, geometries, length)
    case = only(ENGINE, cases)
    flags = _flags(case)
    served, notes = ("-l", str(length)), running_note("ExLlamaV2", cases)
    if flags is not None:
        old = _own_in_v4(config, geometries)
        name = flags[0] if flags else "none"
        told = (*flags, *served)
        return Deployment(
            ENGINE,
            name,
            told,
            told,
            config=old,
            needs_file=bool(text_config(config).get("rope_parameters")),
            notes=notes,
        )
    patched = to_transformers_v4(config, strategy, options, geometries, length)
    text: Any = text_config(patched)
    name = "llama3"
    if (text.get("rope_scaling") or {}).get("rope_type") != "llama3":
        name = "longrope"
        original = _original(case)
        lists = {"short_factor": case.divisors, "long_factor": case.divisors}
        text["rope_theta"], text["rope_scaling"] = case.geometry.base, {"rope_type": name, **lists}
        text["original_max_position_embeddings"] = original
    return Deployment(ENGINE, name, arguments=served, with_file=served, config=patched, needs_file=True, notes=notes)


def _own_in_v4(config: Any, geometries: Mapping[str, Geometry]) -> Words:
    """The checkpoint's own config for ExLlamaV2, which reads no rope_parameters."""
    return to_transformers_v4(config, "none", {}, geometries, min(one.trained_length for one in geometries.values()))


def _flags(case: Case) -> list[str] | None:
    """The flags that say a plan; None where it takes a config.json."""
    settled = case.settled
    if case.native and case.own["rope_type"] in ("default", "linear", "llama3"):
        return []
    if case.geometry.natives:
        return None
    rotated = case.geometry.rotated
    if settled.strategy == "none":
        return []
    if settled.theta is not None:
        return ["-ra", shortest((settled.theta / case.geometry.base) ** ((rotated - 2) / rotated))]
    if settled.strategy == "linear":
        return ["-rs", shortest(settled.factor)]
    if settled.strategy == "yarn" and settled.options["ramp"] == "index" and settled.options["truncate"]:
        served = case.length / case.geometry.trained_length
        betas = settled.options["beta_fast"] * served / 32, settled.options["beta_slow"] * served
        own = case.plan.attention_factor / mscale_of(settled.factor, 1.0)
        if served > 1 and all(math.isclose(value, 1.0, rel_tol=CLOSE) for value in (*betas, own)):
            return ["-ry", shortest(settled.factor)]
    return None


def _original(case: Case) -> int:
    """The original length by which ExLlamaV2's longrope comes to the plan's attention factor."""
    attention, trained = case.plan.attention_factor, case.geometry.trained_length
    if attention == 1:
        return case.length  # none is longer, so the rule is not asked
    if math.isclose(attention, _rule(case.length, trained), rel_tol=CLOSE):
        return trained
    served = case.length / trained
    near = (
        f"-ry {shortest(case.factor)}, which is yarn with beta_fast={32 / served:g} and beta_slow={1 / served:g}"
        if served > 1
        else "the same without an attention factor"
    )
    raise Unsayable(
        f"ExLlamaV2 has no words for an attention factor of {attention:.6g} with the frequencies of {case.strategy}; "
        f"the nearest that it can say are {near}, and by_parts, which leaves attention as it is"
    )


def _rule(length: int, original: int) -> float:
    return math.sqrt(1 + math.log(length / original) / math.log(original)) if length > original else 1.0


def from_exllama(arguments: Sequence[str], config: Any) -> dict[str, Declared]:
    """The strategy that ExLlamaV2 runs with these arguments over a folder with this config.json.

    Raises:
        ValueError: flags that it refuses, or several scalings at once.
    """
    flags = _parser().parse_known_args(list(arguments))[0]
    text = text_config(config)
    limit = int(text["max_position_embeddings"])
    length = flags.length or limit
    v4 = {key: value for key, value in text.items() if key != "rope_parameters"}
    (own,) = (words or {} for words in rope_parameters(v4).values())
    rope_type = "yarn" if flags.rope_yarn else own["rope_type"] if own["rope_type"] in READ else "default"
    plain = next(iter(geometry_of({**v4, "rope_scaling": None}).values()))
    rotated = plain.rotated
    base = plain.base * (flags.rope_alpha or 1.0) ** (rotated / (rotated - 2))
    scale = flags.rope_scale or (own["factor"] if rope_type == "linear" else 1.0)
    if sum((scale != 1, base != plain.base, rope_type not in ("default", "linear"))) > 1:
        raise ValueError(f"{' '.join(arguments)} over a {own['rope_type']} config: several scalings at once")
    if rope_type in ("default", "linear"):
        return {ALL_LAYERS: _simple(plain, base, scale)}
    if rope_type == "yarn":
        original = own.get("original_max_position_embeddings", limit)
        factor = flags.rope_yarn or own["factor"]
        if length <= original:
            return {ALL_LAYERS: Declared("none", {}, plain)}
        betas = {"beta_fast": 32 * original / length, "beta_slow": original / length}
        return {ALL_LAYERS: Declared("yarn", {"factor": factor, **betas}, replace(plain, trained_length=original))}
    (found,) = declared_in(v4).values()
    if rope_type == "longrope":
        original = int(text["original_max_position_embeddings"])
        scales = {"short_mscale": 1.0, "long_mscale": _rule(length, original)}
        found = replace(found, options={**found.options, **scales})
    return {ALL_LAYERS: found}


def _simple(plain: Geometry, base: float, scale: float) -> Declared:
    if scale != 1:
        return Declared("linear", {"factor": scale}, plain)
    return Declared("none", {}, plain) if base == plain.base else Declared("base", {"theta": base}, plain)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"ExLlamaV2's flags: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-l", "--length", type=int)
    parser.add_argument("-rs", "--rope_scale", type=float)
    parser.add_argument("-ra", "--rope_alpha", type=float)
    parser.add_argument("-ry", "--rope_yarn", type=float)
    return parser
