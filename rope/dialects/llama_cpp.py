"""A plan in the words of llama.cpp: flags, keys of a GGUF file, and its tensor rope_freqs.weight; and back.

Read in the llama.cpp of llama-cpp-python 0.3.36 (src/llama-context.cpp, src/llama-model.cpp, common/arg.cpp and
ggml_rope_cache_init), and compared with it by tests/rope/llama_cpp_check.py:
    angle = position * base ** (-2 i / d) / rope_freqs[i], and of that a mixture with itself / scale, along the ramp
    attention under yarn: (0.1 ln(scale) + 1) * rope.scaling.attn_factor; --yarn-attn-factor is overwritten
    attention otherwise: --yarn-attn-factor * rope.scaling.attn_factor
    the ramp of yarn always ends at whole pairs (truncate), and goes by the plain base
    a server allows no more tokens than context_length, which yarn alone multiplies
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from rope.config import Declared, geometry_of, text_config
from rope.dialects.words import Case, Deployment, Unsayable, Words, cases_of, only, running_note, shortest
from rope.geometry import ALL_LAYERS, Geometry, inverse_frequencies
from rope.strategies import plan
from rope.strategies.ramps import mscale_of

ENGINE = "llama.cpp"

ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "smollm3": "smollm3"}
"""model_type of config.json -> general.architecture of a GGUF file, where they differ."""

BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""What llama.cpp takes where nothing is said."""


def to_llama_cpp(
    config: Any,
    strategy: str,
    options: Mapping[str, Any],
    geometries: Mapping[str, Geometry],
    length: int,
    architecture: str | None = None,
) -> Deployment:
    """What `llama-server -m FILE` takes after the file, and the GGUF keys and tensor that say the same without flags.

    linear, yarn and another base have flags, and by_parts with the index ramp is a yarn whose attention factor is taken
    back; whatever else is a list of divisors, which only a GGUF file can hold (needs_file).
    A dynamic strategy becomes its plan at `length`.

    Args:
        architecture: general.architecture of the GGUF file; None for what llama.cpp makes of the config's model_type.

    Raises:
        ValueError: what rope.dialects.to_transformers refuses, several layer types, or any change to latent attention.
    """
    cases, _ = cases_of(ENGINE, config, strategy, options, geometries, length)
    case, text = only(ENGINE, cases), text_config(config)
    architecture = architecture or ARCHITECTURES.get(text.get("model_type", ""), str(text.get("model_type", "llama")))
    if text.get("qk_rope_head_dim") and not case.native:
        raise Unsayable(
            f"{ENGINE} scales latent attention by rules of its own; {strategy} on a {architecture} cannot be said; the "
            "nearest is --to transformers"
        )
    name, flags, keys, divisors = _said(case)
    if length > (text.get("max_position_embeddings") or 0):
        keys["context_length"] = length
    only_keys = {key: keys[key] for key in ("rope.scaling.attn_factor", "context_length") if key in keys}
    overrides = () if divisors else tuple(
        part for key, value in only_keys.items() for part in ("--override-kv", _override(architecture, key, value))
    )  # fmt: skip
    return Deployment(
        ENGINE,
        name,
        arguments=(*flags, *overrides, "-c", str(length)),
        with_file=("-c", str(length)),
        keys=keys,
        rope_freqs=tuple(divisors),
        needs_file=bool(divisors),
        notes=running_note(ENGINE, cases),
    )


def _said(case: Case) -> tuple[str, list[str], Words, list[float]]:
    """What llama.cpp calls the plan, its flags, its keys and its tensor."""
    if case.native and not case.geometry.natives:
        return "none", [], {}, []
    settled = case.settled
    if not case.geometry.natives:
        if settled.theta is not None:
            theta = settled.theta
            return "--rope-freq-base", ["--rope-freq-base", shortest(theta)], {"rope.freq_base": theta}, []
        factor = shortest(settled.factor)
        if settled.strategy == "linear":
            flags = ["--rope-scaling", "linear", "--rope-scale", factor]
            return "linear", flags, {"rope.scaling.type": "linear", "rope.scaling.factor": settled.factor}, []
        options = settled.options
        if settled.strategy in ("yarn", "by_parts") and options["ramp"] == "index" and options["truncate"]:
            return _yarn(settled)
    keys: Words = {"rope.scaling.type": "none"}
    if case.plan.attention_factor != 1:
        keys["rope.scaling.attn_factor"] = case.plan.attention_factor
    return "rope_freqs", [], keys, case.divisors


def _yarn(case: Case) -> tuple[str, list[str], Words, list[float]]:
    trained, factor = case.geometry.trained_length, case.factor
    flags = ["--rope-scaling", "yarn", "--rope-scale", shortest(factor), "--yarn-orig-ctx", str(trained)]
    keys: Words = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": trained,
    }
    for name, published in BETAS.items():
        if case.options[name] != published:
            flags += [f"--yarn-{name.replace('_', '-')}", shortest(case.options[name])]
            keys[f"rope.scaling.yarn_{name}"] = float(case.options[name])
    times = case.plan.attention_factor / mscale_of(factor, 1.0)
    if abs(times - 1) > 1e-12:
        keys["rope.scaling.attn_factor"] = times
    return "yarn", flags, keys, []


def _override(architecture: str, key: str, value: int | float) -> str:
    kind = "int" if isinstance(value, int) else "float"
    return f"{architecture}.{key}={kind}:{shortest(value) if kind == 'int' else repr(float(value))}"


def from_llama_cpp(
    arguments: Sequence[str], config: Any, keys: Mapping[str, Any] | None = None, rope_freqs: Sequence[float] = ()
) -> dict[str, Declared]:
    """The strategy that llama.cpp runs with these flags.

    Args:
        arguments: the command line; what does not speak of positions is left aside.
        config: the checkpoint's, in the words of transformers, without a scaling.
        keys: of the GGUF file, without the architecture in front.
        rope_freqs: its tensor rope_freqs.weight.

    Raises:
        ValueError: values that llama.cpp refuses, a mixture (--yarn-ext-factor between 0 and 1) or a scale below 1.
    """
    (geometry,) = geometry_of(config).values()
    flags = _parser().parse_known_args(list(arguments))[0]
    told = {**(keys or {}), **dict(map(_overridden, flags.override_kv or ()))}
    base = float(flags.rope_freq_base or told.get("rope.freq_base", geometry.base))
    scaling = flags.rope_scaling or told.get("rope.scaling.type", "linear")
    factor = 1.0 if scaling == "none" else _factor(flags, told)
    yarn = (1.0 if scaling == "yarn" else 0.0) if flags.yarn_ext_factor < 0 else flags.yarn_ext_factor
    if yarn not in (0.0, 1.0):
        raise ValueError(f"--yarn-ext-factor {yarn}: a mixture that no strategy is; give 0 or 1, or leave it out")
    attention = float(told.get("rope.scaling.attn_factor", 1.0))
    if yarn:
        attention *= mscale_of(factor, 1.0)
    elif flags.yarn_attn_factor >= 0:
        attention *= flags.yarn_attn_factor
    original = flags.yarn_orig_ctx or told.get("rope.scaling.original_context_length", geometry.trained_length)
    betas = {
        name: getattr(flags, f"yarn_{name}") or told.get(f"rope.scaling.yarn_{name}", published)
        for name, published in BETAS.items()
    }
    plain = Geometry(geometry.head_dim, base, int(original) if yarn else geometry.trained_length, geometry.partial)
    shape = {"factor": factor, **betas, "ramp": "index"} if factor > 1 else {}
    found = _found(geometry, plain, bool(yarn), factor, attention, shape, np.array(rope_freqs))
    return {ALL_LAYERS: found}


def _found(
    geometry: Geometry, plain: Geometry, yarn: bool, factor: float, attention: float, shape: Words, divisors: Any
) -> Declared:
    if divisors.size == 0:
        if yarn and factor > 1:
            return Declared("yarn", {**shape, "attention_factor": attention}, plain)
        if attention == 1 and factor > 1:
            return Declared("linear", {"factor": factor}, plain)
        if attention == 1:
            named = ("none", {}) if plain.base == geometry.base else ("base", {"theta": plain.base})
            return Declared(*named, geometry)
        divisors = np.ones(plain.pairs)
    if factor > 1:
        by = plan(
            "by_parts" if yarn else "linear", plain, plain.trained_length, **shape if yarn else {"factor": factor}
        )
        divisors = divisors * inverse_frequencies(plain.rotated, plain.base) / np.array(by.inv_freq)
    return Declared("factors", {"factors": divisors.tolist(), "attention_factor": attention}, plain)


def _factor(flags: argparse.Namespace, keys: Mapping[str, Any]) -> float:
    if flags.rope_freq_scale:
        factor = 1.0 / flags.rope_freq_scale
    else:
        factor = float(flags.rope_scale or keys.get("rope.scaling.factor") or 1.0)
    if factor < 1:
        raise ValueError(
            f"the scale divides frequencies by {factor:g}, so that every pair turns faster; to stretch the context by "
            f"{1 / factor:g}, give --rope-scale {1 / factor:g} or --rope-freq-scale {factor:g}"
        )
    return float(factor)


def _overridden(text: str) -> tuple[str, Any]:
    """`llama.rope.scaling.attn_factor=float:1.1` as (key without architecture, value)."""
    key, _, typed = text.partition("=")
    kind, _, value = typed.partition(":")
    if kind not in ("int", "float", "str", "bool"):
        raise ValueError(f"--override-kv {text}: give KEY=TYPE:VALUE, with int, float, bool or str for TYPE")
    read = {"int": int, "float": float}.get(kind, str)
    return key.partition(".")[2], read(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"llama.cpp's flags: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--rope-scaling", choices=("none", "linear", "yarn"))
    for name in ("--rope-scale", "--rope-freq-base", "--rope-freq-scale", "--yarn-beta-fast", "--yarn-beta-slow"):
        parser.add_argument(name, type=float)
    for name in ("--yarn-ext-factor", "--yarn-attn-factor"):
        parser.add_argument(name, type=float, default=-1.0)
    parser.add_argument("--yarn-orig-ctx", type=int)
    parser.add_argument("--override-kv", action="append")
    return parser
