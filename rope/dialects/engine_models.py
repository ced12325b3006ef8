"""Which of its model classes an engine serves a config with, and what that class gives to its rotary embedding.

The table engine_models.json is read from the engines' own source files by tests/rope/engine_facts.py, which has their
versions. A class's traits, where it has any:
    transformers  the engine runs transformers' own model, and so all that transformers does
    unscaled      its base is read, and no scaling
    fixed         neither is read
    yarn          the scaling is read as YaRN, whatever it is called
    interleaved   pairs are neighbours: a longrope is refused when the model is loaded
    whole_theta   its base is cut to a whole number
    unrotated     it does not rotate at all
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rope.config import DeclaredScaling
from rope.dialects.deployment import Config, LayerScaling, ScalingRequest, Unsupported
from rope.strategies.ramps import mscale_of

FILE = Path(__file__).with_suffix(".json")

TITLES = {"vllm": "vLLM", "sglang": "SGLang", "exllama": "ExLlamaV2"}

READ_AS_WRITTEN = frozenset({"MiniCPM3ForCausalLM"})
"""Classes with latent attention that do not turn their scaling into DeepSeek's."""

CLOSE = 1e-9
"""Relative distance within which two numbers, computed by two formulas, are equal."""


@dataclass(frozen=True)
class ModelClass:
    """The class of one engine that serves a model: `name` of its architecture; known: whether the engine has it."""

    engine: str
    name: str
    traits: frozenset[str]
    known: bool

    @property
    def title(self) -> str:
        return f"{TITLES[self.engine]}'s {self.name}"

    @property
    def version(self) -> str:
        return str(_table()["versions"][self.engine])


@cache
def _table() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


def model_class(engine: str, text: Mapping[str, Any]) -> ModelClass:
    """The class by the architecture that a config names, or else by its model_type.

    text: the config of the language model. What vLLM and SGLang do not have they leave to transformers.
    """
    architectures = text.get("architectures") or ()
    name = architectures[0] if architectures else _table()["classes"].get(text.get("model_type"), "model")
    known = name in _table()[engine]
    traits = _table()[engine][name].split() if known else ["transformers"]
    return ModelClass(engine, str(name), frozenset(traits), known)


def is_latent(model: ModelClass, text: Mapping[str, Any]) -> bool:
    """Whether the engine turns every scaling of this model into DeepSeek's YaRN."""
    own = "transformers" not in model.traits and model.name not in READ_AS_WRITTEN
    return own and bool(text.get("qk_rope_head_dim"))


def latent_parameters(scaling: LayerScaling, linear: Config | None) -> Config | None:
    """The rope parameters of a latent-attention model, whose every scaling the engine computes as DeepSeek's YaRN.

    DeepSeek's YaRN: cosines and sines times m(mscale) / m(mscale_all_dim), and the softmax times m(mscale_all_dim)
    squared, m(x) = 0.1 x ln(factor) + 1. The softmax is the checkpoint's own, so only what leaves it alone is exact.

    linear: what makes a YaRN linear in this engine; None where nothing does.

    Returns:
        None where no parameters are exact.
    """
    static, declared = scaling.static, scaling.declared
    plain = {"rope_type": "default"}
    if scaling.native:
        return dict(declared) if declared["rope_type"] in ("default", "yarn") else None
    if declared.get("mscale_all_dim") and declared["rope_type"] != "default":
        return None  # the softmax would lose its own scale
    if static.theta is not None and not scaling.geometry.natives:
        return plain | {"rope_theta": static.theta}
    if scaling.geometry.natives or static.factor <= 1:
        return None
    common = {"rope_type": "yarn", "rope_theta": declared["rope_theta"], "factor": static.factor}
    common |= {"original_max_position_embeddings": scaling.geometry.trained_length, "mscale_all_dim": 0.0}
    common |= {"mscale": (scaling.plan.attention_factor - 1) / (mscale_of(static.factor, 1.0) - 1)}
    options = static.options
    if static.strategy in ("yarn", "by_parts") and options["ramp"] == "index" and options["truncate"]:
        return common | {name: options[name] for name in ("beta_fast", "beta_slow")}
    if static.strategy == "linear" and linear is not None:
        return common | linear
    return None


def latent_scaling(parameters: Config, plain: DeclaredScaling) -> DeclaredScaling:
    """What an engine computes as DeepSeek's YaRN. plain: the scaling `none` on the original length."""
    factor = float(parameters["factor"])
    attention = mscale_of(factor, float(parameters.get("mscale", 1.0)))
    attention /= mscale_of(factor, float(parameters.get("mscale_all_dim") or 0.0))
    if parameters.get("extrapolation_factor") == 0:
        ones = {"factors": (factor,) * plain.geometry.pairs, "attention_factor": attention}
        return DeclaredScaling("factors", ones, plain.geometry)
    betas = {name: float(parameters.get(name, value)) for name, value in (("beta_fast", 32.0), ("beta_slow", 1.0))}
    options = {"factor": factor, **betas, "attention_factor": attention * float(parameters.get("attn_factor", 1.0))}
    return DeclaredScaling("yarn", options, plain.geometry)


def check_read(model: ModelClass, scaling: LayerScaling, parameters: Config) -> None:
    """Raise Unsupported where the engine's class would not compute these rope parameters."""
    rope_type, theta = parameters["rope_type"], parameters["rope_theta"]
    declared = scaling.declared
    changed = (rope_type, theta) != (declared["rope_type"], declared["rope_theta"])
    if "fixed" in model.traits and (changed or rope_type != "default"):
        raise Unsupported(f"{model.title} reads no rope parameters: {scaling.strategy} would be served without")
    if "unscaled" in model.traits and rope_type != "default":
        raise Unsupported(
            f"{model.title} reads rope_theta and no scaling ({TITLES[model.engine]} {model.version}): "
            f"{scaling.strategy} would be served without"
        )
    if "interleaved" in model.traits and rope_type == "longrope":
        raise Unsupported(
            f"{model.title} rotates neighbouring pairs, for which {TITLES[model.engine]} has no longrope, and only "
            f"that expresses {scaling.strategy} on this model"
        )
    if "yarn" in model.traits and not (rope_type == "yarn" and parameters.get("attention_factor") is None):
        raise Unsupported(
            f"{model.title} computes every scaling as YaRN with its published attention factor, which does not express "
            f"{scaling.strategy}"
        )


def verify(request: ScalingRequest, read: Mapping[str, DeclaredScaling]) -> None:
    """Refuse a deployment with which the engine computes (`read`, by layer type) another plan than asked for.

    Raises:
        Unsupported: it does.
    """
    for layer_type, scaling in request.scalings.items():
        theirs = read[layer_type].plan(request.length)
        ours = scaling.plan
        if not (
            len(theirs.inv_freq) == len(ours.inv_freq)
            and np.allclose(theirs.inv_freq, ours.inv_freq, rtol=1e-6, atol=1e-20)
            and math.isclose(theirs.attention_factor, ours.attention_factor, rel_tol=CLOSE)
        ):
            raise Unsupported(
                f"{TITLES.get(request.engine, request.engine)} would compute other frequencies, or another attention "
                f"factor, for {scaling.strategy} on this model"
            )
