"""llama.cpp: flags, keys of a GGUF file, and its tensors of divisors.

As in the llama.cpp of llama-cpp-python 0.3.36 (src/llama-context.cpp, src/llama-model.cpp, common/arg.cpp and
ggml_rope_cache_init), with what differs by architecture in rope/llama_cpp_rules.py; tests/rope/test_llama_cpp.py loads
exports into llama.cpp and compares log-probabilities:
    angle = position * base ** (-2 i / d) / divisors[i], mixed with itself / scale along the ramp
    attention under yarn: (0.1 ln(scale) + 1) * rope.scaling.attn_factor; --yarn-attn-factor is overwritten
    attention otherwise: --yarn-attn-factor * rope.scaling.attn_factor
    the ramp of yarn always ends at whole pairs (truncate), and follows the plain base
    a server allows no more tokens than context_length, which only yarn multiplies
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rope.config import DeclaredScaling, attention_layers, geometry_of, length_key, rope_parameters, text_config
from rope.dialects.deployment import Config, Deployment, LayerScaling, ScalingRequest, Unsupported, format_number
from rope.dialects.llama_cpp_reading import BETAS, ENGINE, from_llama_cpp
from rope.geometry import ALL_LAYERS, Plan
from rope.llama_cpp_rules import LOCAL_LAYERS, Rules, architecture_of, rules_of, table
from rope.strategies.ramps import mscale_of

STILL = {"llama4": 4, "smollm3": 4}
"""Every which layer does not rotate in an architecture, by a constant of src/models that no key of a file changes."""


@dataclass(frozen=True)
class Expression:
    """One way to say a scaling: by flags, or by keys and divisors in a file, which takes file_flags besides.

    note: what must be said of it; "" for nothing.
    """

    name: str
    flags: tuple[str, ...] = ()
    keys: Config = field(default_factory=dict)
    divisors: tuple[float, ...] = ()
    file_flags: tuple[str, ...] = ()
    note: str = ""


def deploy(request: ScalingRequest) -> Deployment:
    """What `llama-server -m FILE` takes after the file, and the GGUF keys and tensors that do the same without flags.

    linear, yarn and another base have flags, and by_parts with the index ramp is a yarn whose attention factor is
    undone; everything else is a list of divisors, which only a GGUF file can hold (needs_file), and only of an
    architecture that reads one. Layers that see a window keep a base of their own where the architecture has one
    (rope.freq_base_swa). A dynamic strategy becomes its plan at the requested length.

    Raises:
        Unsupported: an architecture that llama.cpp does not know, one that scales by rules of its own (latent
            attention) or has other layers without rotation, a list for one that reads none, a scaling of local layers
            that it never scales.
        ValueError: what transformers_v5.deploy refuses.
    """
    text = text_config(request.config)
    model_type = str(text.get("model_type", "llama"))
    architecture, rules = architecture_of(model_type), rules_of(model_type)
    if architecture is None or rules is None:
        raise Unsupported(
            f"{ENGINE} has no architecture for model_type {model_type!r} (of its {len(table()[0])} at commit "
            f"{table()[2]})"
        )
    _check_still(request.config, architecture)
    found = _found(request, rules, architecture)
    keys = dict(found.keys)
    if request.length > (text.get(length_key(text)) or 0):
        keys["context_length"] = request.length
    context = ("-c", str(request.length))
    flags, overridden = found.flags, {"rope.scaling.attn_factor", "context_length"}  # which have no flags
    if rules.temperature:
        overridden.add("rope.scaling.original_context_length")
    if not _agrees(request, found.flags, {key: keys[key] for key in overridden & set(keys)}, ()):
        flags, overridden = found.file_flags, set(keys)  # flags do not reach layers that see a window
    overrides: list[str] = []
    if not found.divisors:  # with them a file is written, and holds these too
        for key in sorted(overridden & set(keys)):
            overrides += ["--override-kv", f"{architecture}.{key}={_typed(keys[key])}"]
    return Deployment(
        ENGINE,
        found.name,
        arguments=(*(() if found.divisors else flags), *overrides, *context),
        with_file=(*found.file_flags, *context),
        keys=keys,
        rope_freqs=found.divisors,
        needs_file=bool(found.divisors),
        notes=(*request.dynamic_notes(ENGINE), *((found.note,) if found.note else ())),
    )


def _check_still(config: Any, architecture: str) -> None:
    """Refuse a model in which other layers rotate than llama.cpp rotates."""
    every = STILL.get(architecture)
    if every is None:
        return
    for layer in attention_layers(config):
        if layer.rotates == ((layer.number + 1) % every == 0):
            raise Unsupported(
                f"{ENGINE} rotates all but every fourth layer of {architecture}, whatever a file says, and layer "
                f"{layer.number} of this model {'rotates' if layer.rotates else 'does not rotate'}"
            )


def read_back(deployment: Deployment, config: Any) -> dict[str, DeclaredScaling]:
    """What llama.cpp computes with the deployment's arguments, or with its file where that is needed."""
    if deployment.name == "none" and not deployment.keys.keys() - {"context_length"}:  # the file as it is
        return {layer: DeclaredScaling("none", {}, geometry) for layer, geometry in geometry_of(config).items()}
    keys = deployment.keys if deployment.needs_file else {}
    return from_llama_cpp(deployment.arguments, _unscaled(config), keys, deployment.rope_freqs)


def _unscaled(config: Any) -> Config:
    """The config without its scaling: the keys and flags of a deployment say all of it."""
    plain: Config = {
        layer_type: parameters
        and {key: parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in parameters}
        | {"rope_type": "default"}
        for layer_type, parameters in rope_parameters(config).items()
    }
    replaced = ("rope_scaling", "rope_theta", "rope_local_base_freq")
    text = {key: value for key, value in text_config(config).items() if key not in replaced}
    return {**text, "rope_parameters": plain.get(ALL_LAYERS, plain)}


def _found(request: ScalingRequest, rules: Rules, architecture: str) -> Expression:
    """The first expression that llama.cpp computes as the plans have it."""
    scalings = request.scalings
    native = all(scaling.native for scaling in scalings.values())
    if native and not any(scaling.geometry.natives for scaling in scalings.values()):
        return Expression("none")
    says = f"{ENGINE} does not support {request.strategy} on a {architecture}"
    own = rules.own_rules or ("latent attention" if text_config(request.config).get("qk_rope_head_dim") else "")
    if rules.alpha and any(scaling.declared.get("alpha") for scaling in scalings.values()):
        own = "base with rope.scaling.alpha"
    if (own or rules.rope == "none") and not native:
        does = f"whose {own} it scales by rules of its own" if own else "in which it rotates nothing"
        raise Unsupported(f"{says}, {does}")
    # layers that see a window keep their own plan (rope.strategies.layers): what is said is said of the others
    scaling = min(scalings.items(), key=lambda item: item[0] in LOCAL_LAYERS)[1]
    for found in () if own else _expressions(scaling, rules):
        if _agrees(request, found.file_flags, found.keys, found.divisors):
            return found
    if native:
        return Expression("none", note="llama.cpp runs the scaling that the GGUF file itself declares")
    on_top = " on top of the model's own scaling" if scaling.geometry.natives else ""
    raise Unsupported(
        f"{says}{on_top}: it reads no list of divisors (rope_freqs) there, and no flag says these frequencies"
    )


def _agrees(request: ScalingRequest, flags: Sequence[str], keys: Config, divisors: Sequence[float]) -> bool:
    """Whether llama.cpp computes every plan of the request with these flags, keys and divisors."""
    try:
        heard = from_llama_cpp(flags, _unscaled(request.config), keys, divisors)
    except ValueError:
        return False
    pairs = [(heard[layer].plan(request.length), scaling.plan) for layer, scaling in request.scalings.items()]
    return all(
        np.allclose(one.inv_freq, other.inv_freq, rtol=1e-9, atol=1e-20)
        and abs(one.attention_factor - other.attention_factor) < 1e-9
        for one, other in pairs
    )


def _fit(scaled: Plan) -> tuple[float, float]:
    """The base and the factor whose plan this is, where it is one of these."""
    frequencies = np.array(scaled.inv_freq)
    if frequencies[-1] <= 0 or len(frequencies) < 2:
        return 1.0, float("inf")
    pairs = len(frequencies)
    return float((frequencies[0] / frequencies[-1]) ** (pairs / (pairs - 1))), float(1 / frequencies[0])


def _expressions(scaling: LayerScaling, rules: Rules) -> Iterator[Expression]:
    """How llama.cpp may say a scaling, best first; not all of them compute it."""
    keys: Config = {}
    if rules.temperature:  # which follows this length, unless it is said, context_length
        original = scaling.declared.get("original_max_position_embeddings") or scaling.geometry.trained_length
        keys["rope.scaling.original_context_length"] = int(original)
    if not scaling.geometry.natives:
        yield from _named(scaling.static, keys, rules)
    if not rules.tensors:
        yield _fitted(scaling, keys)
    if rules.tensors:
        keys = {**keys, "rope.scaling.type": "none"}
        if scaling.plan.attention_factor != 1:
            keys["rope.scaling.attn_factor"] = scaling.plan.attention_factor
        yield Expression("rope_freqs", (), keys, tuple(scaling.divisors))


def _named(scaling: LayerScaling, keys: Config, rules: Rules) -> Iterator[Expression]:
    """A strategy that has flags of its own."""
    if scaling.native:
        yield Expression("none", (), keys)
        return
    if scaling.theta is not None:
        base = ("--rope-freq-base", format_number(scaling.theta))
        yield Expression("--rope-freq-base", base, {**keys, "rope.freq_base": scaling.theta})
    if scaling.strategy == "linear":
        flags = ("--rope-scaling", "linear", "--rope-scale", format_number(scaling.factor))
        said = {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
        yield Expression("linear", flags, {**keys, **said})
    options, trained = scaling.options, scaling.geometry.trained_length
    another = rules.temperature and keys["rope.scaling.original_context_length"] != trained
    if scaling.strategy in ("yarn", "by_parts") and options["ramp"] == "index" and options["truncate"] and not another:
        yield _yarn(scaling, keys, rules)


def _fitted(scaling: LayerScaling, keys: Config) -> Expression:
    """A base and a factor, in the place of the scaling that the file declares."""
    base, factor = _fit(scaling.plan)
    kind = "linear" if factor > 1 + 1e-9 else "none"
    flags = ("--rope-scaling", kind, "--rope-scale", format_number(factor), "--rope-freq-base", format_number(base))
    said = {"rope.scaling.type": kind, "rope.scaling.factor": factor, "rope.freq_base": base}
    return Expression(kind, flags, {**keys, **said, "rope.scaling.attn_factor": scaling.plan.attention_factor})


def _yarn(scaling: LayerScaling, given: Config, rules: Rules) -> Expression:
    trained, factor = scaling.geometry.trained_length, scaling.factor
    keys: Config = {
        **given,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": trained,
    }
    betas: list[str] = []
    file_flags: list[str] = []
    for name, default in BETAS.items():
        if scaling.options[name] != default:
            flag = [f"--yarn-{name.replace('_', '-')}", format_number(scaling.options[name])]
            betas += flag
            if f"yarn_{name}" in rules.yarn_keys:
                keys[f"rope.scaling.yarn_{name}"] = float(scaling.options[name])
            else:
                file_flags += flag
    multiplier = scaling.plan.attention_factor / mscale_of(factor, 1.0)
    if abs(multiplier - 1) > 1e-12:
        keys["rope.scaling.attn_factor"] = multiplier
    flags = ("--rope-scaling", "yarn", "--rope-scale", format_number(factor), "--yarn-orig-ctx", str(trained), *betas)
    return Expression("yarn", flags, keys, file_flags=tuple(file_flags))


def _typed(value: int | float | str) -> str:
    """A value as --override-kv takes it."""
    kinds = {str: "str", int: "int"}
    return f"{kinds.get(type(value), 'float')}:{value}"
