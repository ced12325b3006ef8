"""ExLlamaV2: alpha, scale and yarn flags, or lists in a config.json as of transformers v4.

As in exllamav2 0.3.2, rope.py, config.py and device.py:
    -ra alpha: base * alpha ** (d / (d - 2)), so alpha = (theta / base) ** ((d - 2) / d)
    -rs factor: positions divided by factor
    -ry factor: YaRN with its published defaults, whose ramp however is computed for -l, the length that is served, and
                not for the trained one: as if beta_fast and beta_slow were divided by length / trained_length
    longrope: attention factor sqrt(1 + ln(length / original) / ln(original)), or 1 up to the original length; so the
              original length that gives an attention factor a at a length is length ** (1 / a ** 2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rope.config import DeclaredScaling, declared_scalings, geometry_of, length_key, rope_parameters, text_config
from rope.dialects.deployment import Deployment, FlagParser, LayerScaling, ScalingRequest, Unsupported, format_number
from rope.dialects.engine_models import CLOSE, model_class
from rope.dialects.transformers_v4 import v4_config
from rope.geometry import ALL_LAYERS, Geometry
from rope.strategies.ramps import mscale_of

ENGINE = "exllama"

SUPPORTED = frozenset({"linear", "yarn", "longrope", "llama3"})
"""Values of rope_type in a config.json that ExLlamaV2 reads; it ignores others."""


def deploy(request: ScalingRequest) -> Deployment:
    """What ExLlamaV2's programs take after `-m FOLDER`, and the config.json to put there where flags are not enough.

    A dynamic strategy becomes its plan at the requested length.

    Raises:
        ValueError: what transformers_v5.deploy refuses, several layer types, an architecture that ExLlamaV2 does
            not have, or an attention factor below 1 that no list can have.
    """
    scaling = request.only_scaling
    model = model_class(ENGINE, scaling.text)
    if not model.known or "unrotated" in model.traits or scaling.text.get("qk_rope_head_dim"):
        raise Unsupported(f"ExLlamaV2 {model.version} does not have the architecture {model.name}")
    flags = _flags(scaling)
    served, notes = ("-l", str(request.length)), request.dynamic_notes("ExLlamaV2")
    if flags is not None:
        arguments = (*flags, *served)
        trained = scaling.geometry.trained_length
        deployment = Deployment(
            ENGINE,
            flags[0] if flags else "none",
            arguments=arguments,
            with_file=arguments,
            config=v4_config(replace(request, strategy="none", options={}, length=trained)),
            needs_file=bool(text_config(request.config).get("rope_parameters")),  # which it does not read
            notes=notes,
        )
        return deployment
    patched = v4_config(request)
    text: Any = text_config(patched)
    name = "llama3"
    if (text.get("rope_scaling") or {}).get("rope_type") != name:
        name, divisors = "longrope", scaling.divisors
        original = _original_length(scaling)
        text["rope_theta"] = scaling.geometry.base
        text["rope_scaling"] = {"rope_type": name, "short_factor": divisors, "long_factor": divisors}
        text["original_max_position_embeddings"] = original
    deployment = Deployment(
        ENGINE, name, arguments=served, with_file=served, config=patched, needs_file=True, notes=notes
    )
    return deployment


def read_back(deployment: Deployment, config: Any) -> dict[str, DeclaredScaling]:
    """What ExLlamaV2 computes with the deployment's arguments over its config.json."""
    return read_arguments(deployment.arguments, deployment.config)


def _flags(scaling: LayerScaling) -> list[str] | None:
    """The flags for a plan; None where it needs a config.json."""
    static = scaling.static
    if scaling.native and scaling.declared["rope_type"] in ("default", "linear", "llama3"):
        return []
    if scaling.geometry.natives:
        return None
    rotated = scaling.geometry.rotated
    if static.strategy == "none":
        return []
    if static.theta is not None:
        return ["-ra", format_number((static.theta / scaling.geometry.base) ** ((rotated - 2) / rotated))]
    if static.strategy == "linear":
        return ["-rs", format_number(static.factor)]
    if static.strategy == "yarn" and static.options["ramp"] == "index" and static.options["truncate"]:
        stretched = scaling.length / scaling.geometry.trained_length
        betas = static.options["beta_fast"] * stretched / 32, static.options["beta_slow"] * stretched
        attention = scaling.plan.attention_factor / mscale_of(static.factor, 1.0)
        if stretched > 1 and all(math.isclose(value, 1.0, rel_tol=CLOSE) for value in (*betas, attention)):
            return ["-ry", format_number(static.factor)]
    return None


def _original_length(scaling: LayerScaling) -> int | float:
    """The original length from which ExLlamaV2's longrope computes the plan's attention factor."""
    attention, length = scaling.plan.attention_factor, scaling.length
    if attention == 1:
        return length  # nothing is longer, so the attention factor is 1
    if attention < 1:
        raise Unsupported(
            f"ExLlamaV2 does not support an attention factor below 1, and that of {scaling.strategy} is {attention:.6g}"
        )
    trained = scaling.geometry.trained_length
    if math.isclose(attention, _longrope_attention(length, trained), rel_tol=CLOSE):
        return trained
    return float(length ** (1 / attention**2))


def _longrope_attention(length: int, original: float) -> float:
    return math.sqrt(1 + math.log(length / original) / math.log(original)) if length > original else 1.0


def read_arguments(arguments: Sequence[str], config: Any) -> dict[str, DeclaredScaling]:
    """The strategy that ExLlamaV2 runs with these arguments over a folder with this config.json.

    Raises:
        ValueError: flags that it refuses, or several scalings at once.
    """
    flags = _parser().parse_known_args(list(arguments))[0]
    text = text_config(config)
    limit = int(text[length_key(config)])
    length = flags.length or limit
    v4 = {key: value for key, value in text.items() if key != "rope_parameters"}
    (own,) = (parameters or {} for parameters in rope_parameters(v4).values())
    rope_type = "yarn" if flags.rope_yarn else own["rope_type"] if own["rope_type"] in SUPPORTED else "default"
    (plain,) = geometry_of({**v4, "rope_scaling": None}).values()
    base = plain.base * (flags.rope_alpha or 1.0) ** (plain.rotated / (plain.rotated - 2))
    scale = flags.rope_scale or (own["factor"] if rope_type == "linear" else 1.0)
    if sum((scale != 1, base != plain.base, rope_type not in ("default", "linear"))) > 1:
        raise ValueError(f"{' '.join(arguments)} over a {own['rope_type']} config: several scalings at once")
    if rope_type in ("default", "linear"):
        if scale != 1:
            return {ALL_LAYERS: DeclaredScaling("linear", {"factor": scale}, plain)}
        name, options = ("none", {}) if base == plain.base else ("base", {"theta": base})
        return {ALL_LAYERS: DeclaredScaling(name, options, plain)}
    if rope_type == "yarn":
        return {ALL_LAYERS: _declared_yarn(flags.rope_yarn, own, plain, limit, length)}
    if rope_type == "longrope":
        original = float(text["original_max_position_embeddings"])
        divisors = own["long_factor" if length > original else "short_factor"]
        options = {"factors": divisors, "attention_factor": _longrope_attention(length, original)}
        return {ALL_LAYERS: DeclaredScaling("factors", options, plain)}
    return declared_scalings(v4)


def _declared_yarn(
    factor: float | None, own: Mapping[str, Any], plain: Geometry, limit: int, length: int
) -> DeclaredScaling:
    original = own.get("original_max_position_embeddings", limit)
    if length <= original:
        return DeclaredScaling("none", {}, plain)
    betas = {"beta_fast": 32 * original / length, "beta_slow": original / length}
    options = {"factor": factor or own["factor"], **betas}
    return DeclaredScaling("yarn", options, replace(plain, trained_length=original))


def _parser() -> FlagParser:
    parser = FlagParser("ExLlamaV2")
    parser.add_argument("-l", "--length", type=int)
    parser.add_argument("-rs", "--rope_scale", type=float)
    parser.add_argument("-ra", "--rope_alpha", type=float)
    parser.add_argument("-ry", "--rope_yarn", type=float)
    return parser
