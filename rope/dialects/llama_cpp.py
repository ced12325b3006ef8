"""llama.cpp: flags, keys of a GGUF file, and its tensor rope_freqs.weight.

As in the llama.cpp of llama-cpp-python 0.3.36 (src/llama-context.cpp, src/llama-model.cpp, common/arg.cpp and
ggml_rope_cache_init), and compared with it by tests/rope/llama_cpp_check.py:
    angle = position * base ** (-2 i / d) / rope_freqs[i], mixed with itself / scale along the ramp
    attention under yarn: (0.1 ln(scale) + 1) * rope.scaling.attn_factor; --yarn-attn-factor is overwritten
    attention otherwise: --yarn-attn-factor * rope.scaling.attn_factor
    the ramp of yarn always ends at whole pairs (truncate), and follows the plain base
    a server allows no more tokens than context_length, which only yarn multiplies
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rope.config import DeclaredScaling, geometry_of, text_config
from rope.dialects.deployment import (
    Config,
    Deployment,
    FlagParser,
    LayerScaling,
    ScalingRequest,
    Unsupported,
    format_number,
)
from rope.geometry import ALL_LAYERS, Array, Geometry, inverse_frequencies
from rope.strategies import plan
from rope.strategies.ramps import mscale_of

ENGINE = "llama.cpp"

ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "smollm3": "smollm3"}
"""model_type of config.json -> general.architecture of a GGUF file, where they differ."""

BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""The defaults of llama.cpp."""


def deploy(request: ScalingRequest) -> Deployment:
    """What `llama-server -m FILE` takes after the file, and the GGUF keys and tensor that do the same without flags.

    linear, yarn and another base have flags, and by_parts with the index ramp is a yarn whose attention factor is
    undone; everything else is a list of divisors, which only a GGUF file can hold (needs_file).
    A dynamic strategy becomes its plan at the requested length.

    Raises:
        ValueError: what transformers_v5.deploy refuses, several layer types, or any change to latent attention.
    """
    scaling, text = request.only_scaling, text_config(request.config)
    model_type = str(text.get("model_type", "llama"))
    architecture = ARCHITECTURES.get(model_type, model_type)
    if text.get("qk_rope_head_dim") and not scaling.native:
        raise Unsupported(
            f"{ENGINE} does not support {request.strategy} on a {architecture}, whose latent attention it scales by "
            "rules of its own; the closest supported alternative is --to transformers"
        )
    name, flags, keys, divisors = _express(scaling)
    if request.length > (text.get("max_position_embeddings") or 0):
        keys["context_length"] = request.length
    overrides: list[str] = []
    if not divisors:  # with them a file is written, and holds these too
        for key in ("rope.scaling.attn_factor", "context_length"):  # which have no flags
            if key in keys:
                value = f"int:{keys[key]}" if isinstance(keys[key], int) else f"float:{float(keys[key])!r}"
                overrides += ["--override-kv", f"{architecture}.{key}={value}"]
    context = ("-c", str(request.length))
    return Deployment(
        ENGINE,
        name,
        arguments=(*flags, *overrides, *context),
        with_file=context,
        keys=keys,
        rope_freqs=tuple(divisors),
        needs_file=bool(divisors),
        notes=request.dynamic_notes(ENGINE),
    )


def read_back(deployment: Deployment, config: Any) -> dict[str, DeclaredScaling]:
    """What llama.cpp computes with the deployment's arguments, or with its file where that is needed."""
    keys = deployment.keys if deployment.needs_file else {}
    unscaled = {**text_config(config), "rope_scaling": None}  # a GGUF file is converted without
    return from_llama_cpp(deployment.arguments, unscaled, keys, deployment.rope_freqs)


def _express(scaling: LayerScaling) -> tuple[str, list[str], Config, list[float]]:
    """What llama.cpp calls the plan, its flags, its keys and its tensor."""
    if scaling.native and not scaling.geometry.natives:
        return "none", [], {}, []
    static = scaling.static
    if not scaling.geometry.natives:
        if static.theta is not None:
            flags = ["--rope-freq-base", format_number(static.theta)]
            return "--rope-freq-base", flags, {"rope.freq_base": static.theta}, []
        if static.strategy == "linear":
            flags = ["--rope-scaling", "linear", "--rope-scale", format_number(static.factor)]
            return "linear", flags, {"rope.scaling.type": "linear", "rope.scaling.factor": static.factor}, []
        options = static.options
        if static.strategy in ("yarn", "by_parts") and options["ramp"] == "index" and options["truncate"]:
            return _express_yarn(static)
    keys: Config = {"rope.scaling.type": "none"}
    if scaling.plan.attention_factor != 1:
        keys["rope.scaling.attn_factor"] = scaling.plan.attention_factor
    return "rope_freqs", [], keys, scaling.divisors


def _express_yarn(scaling: LayerScaling) -> tuple[str, list[str], Config, list[float]]:
    trained, factor = scaling.geometry.trained_length, scaling.factor
    flags = ["--rope-scaling", "yarn", "--rope-scale", format_number(factor), "--yarn-orig-ctx", str(trained)]
    keys: Config = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": trained,
    }
    for name, default in BETAS.items():
        if scaling.options[name] != default:
            flags += [f"--yarn-{name.replace('_', '-')}", format_number(scaling.options[name])]
            keys[f"rope.scaling.yarn_{name}"] = float(scaling.options[name])
    multiplier = scaling.plan.attention_factor / mscale_of(factor, 1.0)
    if abs(multiplier - 1) > 1e-12:
        keys["rope.scaling.attn_factor"] = multiplier
    return "yarn", flags, keys, []


def from_llama_cpp(
    arguments: Sequence[str], config: Any, keys: Mapping[str, Any] | None = None, rope_freqs: Sequence[float] = ()
) -> dict[str, DeclaredScaling]:
    """The strategy that llama.cpp runs with these flags.

    Args:
        arguments: the command line; flags that do not concern positions are ignored.
        config: the checkpoint's, as for transformers, without a scaling.
        keys: of the GGUF file, without the architecture in front.
        rope_freqs: its tensor rope_freqs.weight.

    Raises:
        ValueError: values that llama.cpp refuses, a mixture (--yarn-ext-factor between 0 and 1) or a scale below 1.
    """
    (geometry,) = geometry_of(config).values()
    flags = _parser().parse_known_args(list(arguments))[0]
    metadata = {**(keys or {}), **dict(map(_parse_override, flags.override_kv or ()))}
    base = float(flags.rope_freq_base or metadata.get("rope.freq_base", geometry.base))
    scaling_type = flags.rope_scaling or metadata.get("rope.scaling.type", "linear")
    factor = 1.0 if scaling_type == "none" else _factor(flags, metadata)
    mixture = flags.yarn_ext_factor if flags.yarn_ext_factor >= 0 else float(scaling_type == "yarn")
    if mixture not in (0.0, 1.0):
        raise ValueError(f"--yarn-ext-factor {mixture}: no strategy mixes in this way; give 0 or 1, or leave it out")
    yarn = mixture == 1
    attention = float(metadata.get("rope.scaling.attn_factor", 1.0))
    if yarn:
        attention *= mscale_of(factor, 1.0)
    elif flags.yarn_attn_factor >= 0:
        attention *= flags.yarn_attn_factor
    original = flags.yarn_orig_ctx or metadata.get("rope.scaling.original_context_length", geometry.trained_length)
    betas = {
        name: getattr(flags, f"yarn_{name}") or metadata.get(f"rope.scaling.yarn_{name}", default)
        for name, default in BETAS.items()
    }
    plain = Geometry(geometry.head_dim, base, int(original) if yarn else geometry.trained_length, geometry.partial)
    ramp = {**betas, "ramp": "index"} if yarn else {}
    return {ALL_LAYERS: _scaling(geometry, plain, factor, attention, ramp, np.array(rope_freqs))}


def _scaling(
    geometry: Geometry, plain: Geometry, factor: float, attention: float, ramp: Config, divisors: Array
) -> DeclaredScaling:
    """plain: with the base and length in force. ramp: options of yarn; {} without yarn. divisors: (pairs,) or (0,)."""
    if divisors.size == 0:
        if ramp and factor > 1:
            return DeclaredScaling("yarn", {"factor": factor, **ramp, "attention_factor": attention}, plain)
        if attention == 1 and factor > 1:
            return DeclaredScaling("linear", {"factor": factor}, plain)
        if attention == 1:
            name, options = ("none", {}) if plain.base == geometry.base else ("base", {"theta": plain.base})
            return DeclaredScaling(name, options, geometry)
        divisors = np.ones(plain.pairs)
    if factor > 1:
        stretched = plan("by_parts" if ramp else "linear", plain, plain.trained_length, factor=factor, **ramp)
        divisors = divisors * inverse_frequencies(plain.rotated, plain.base) / np.array(stretched.inv_freq)
    return DeclaredScaling("factors", {"factors": divisors.tolist(), "attention_factor": attention}, plain)


def _factor(flags: argparse.Namespace, metadata: Mapping[str, Any]) -> float:
    scale = float(flags.rope_scale or metadata.get("rope.scaling.factor") or 1.0)
    factor = 1.0 / float(flags.rope_freq_scale) if flags.rope_freq_scale else scale
    if factor < 1:
        raise ValueError(
            f"the scale divides frequencies by {factor:g}, which makes every pair faster; to stretch the context by "
            f"{1 / factor:g}, give --rope-scale {1 / factor:g} or --rope-freq-scale {factor:g}"
        )
    return factor


def _parse_override(text: str) -> tuple[str, Any]:
    """`llama.rope.scaling.attn_factor=float:1.1` as (key without architecture, value)."""
    key, _, typed = text.partition("=")
    kind, _, value = typed.partition(":")
    if kind not in ("int", "float", "str", "bool"):
        raise ValueError(f"--override-kv {text}: give KEY=TYPE:VALUE, with int, float, bool or str for TYPE")
    return key.partition(".")[2], {"int": int, "float": float}.get(kind, str)(value)


def _parser() -> FlagParser:
    parser = FlagParser("llama.cpp")
    parser.add_argument("--rope-scaling", choices=("none", "linear", "yarn"))
    for name in ("--rope-scale", "--rope-freq-base", "--rope-freq-scale", "--yarn-beta-fast", "--yarn-beta-slow"):
        parser.add_argument(name, type=float)
    for name in ("--yarn-ext-factor", "--yarn-attn-factor"):
        parser.add_argument(name, type=float, default=-1.0)
    parser.add_argument("--yarn-orig-ctx", type=int)
    parser.add_argument("--override-kv", action="append")
    return parser
