"""A strategy as inference engines take it: one file per engine.

An engine's file has ENGINE, the name that a user gives; deploy(ScalingRequest) -> Deployment; and
read_back(Deployment, config) -> {layer type: DeclaredScaling}, whose `plan(length)` is what the engine computes. What
an engine cannot run is refused (Unsupported, a ValueError) with the closest supported alternative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from rope.config import DeclaredScaling, geometry_of
from rope.dialects import exllama, llama_cpp, sglang, transformers_v4, transformers_v5, vllm
from rope.dialects.deployment import Config, Deployment, ScalingRequest, Unsupported
from rope.dialects.engine_models import verify
from rope.dialects.llama_cpp_reading import from_llama_cpp
from rope.dialects.transformers_v5 import to_transformers
from rope.geometry import ALL_LAYERS, Geometry, Plan, inverse_frequencies, layers_of
from rope.strategies import (
    CHANGES_ATTENTION,
    CROPS_TEXT,
    SCALES_QUERIES,
    STRATEGIES,
    canonical_name,
    options_of,
    plans,
    required_options,
)

__all__ = [
    "ENGINES",
    "DeclaredScaling",
    "Deployment",
    "Engine",
    "Unsupported",
    "deploy",
    "from_llama_cpp",
    "support",
    "support_table",
    "to_transformers",
]


class Engine(Protocol):
    """A module of this folder that is an engine's."""

    ENGINE: str

    def deploy(self, request: ScalingRequest) -> Deployment: ...

    def read_back(self, deployment: Deployment, config: Any) -> dict[str, DeclaredScaling]: ...


ENGINES: dict[str, Engine] = {
    engine.ENGINE: engine for engine in (transformers_v5, transformers_v4, vllm, sglang, llama_cpp, exllama)
}
"""The engines by the name that a user gives."""

EXAMPLE = {"model_type": "llama", "head_dim": 64, "rope_theta": 10_000.0, "max_position_embeddings": 4096}
"""The checkpoint of `support`: a plain Llama."""

EXAMPLE_LENGTH = 16_384


def deploy(
    engine: str,
    config: Any,
    strategy: str,
    options: Mapping[str, Any],
    geometries: Mapping[str, Geometry],
    length: int,
) -> Deployment:
    """A strategy as one engine takes it.

    Args:
        engine: a key of ENGINES.
        config: the checkpoint's config.json as a mapping, or its config object; not changed.
        strategy: name or alias, as in rope.strategies.plan.
        options: the strategy's options.
        geometries: by layer type, as rope.config.geometry_of gives them.
        length: tokens of context; at least 2.

    Raises:
        Unsupported: a plan that this engine cannot run, with the closest supported alternative.
        ValueError: an unknown engine, or what rope.strategies.plan refuses.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine: {engine!r}; engines: {', '.join(ENGINES)}")
    request = ScalingRequest(engine, config, strategy, options, geometries, length)
    try:
        return _verified(request)
    except Unsupported as refusal:
        reason = str(refusal).partition("; the closest supported alternative")[0]  # as it is known without trying
        raise Unsupported(f"{reason}; {_advice(request)}") from refusal


def _verified(request: ScalingRequest) -> Deployment:
    """What the engine takes, if it computes the plan with it."""
    engine, served = ENGINES[request.engine], request.served
    deployment = engine.deploy(served)
    verify(served, engine.read_back(deployment, served.config))
    if served is request:
        return deployment
    if served.config is not request.config:  # under another class
        return replace(deployment, name=served.config["architectures"][0])
    note = f"nothing needs exporting: serve the model as it is, and give it the last {served.length:,} tokens of a text"
    return replace(deployment, notes=(*deployment.notes, note))


def _advice(request: ScalingRequest) -> str:
    """What comes closest to a refused request, tried before it is named: a strategy here, and this one elsewhere."""
    asked = canonical_name(request.strategy)
    # those that change attention have no frequencies to be compared by; but a scale on queries is near another one
    near = SCALES_QUERIES if asked in SCALES_QUERIES else set()
    left_out = {"none", "nope", asked, *CROPS_TEXT, *(CHANGES_ATTENTION - near)}
    candidates = [name for name in STRATEGIES if name not in left_out]
    others = sorted(filter(lambda name: _runs(_another(request, name)), candidates), key=partial(_distance, request))
    others = sorted(others, key=lambda name: name not in near)
    here = [others[0]] if others else []
    elsewhere = [f"--to {name}" for name in ENGINES if name != request.engine and _runs(replace(request, engine=name))]
    found = here + elsewhere[:1] or ["none"] * _runs(_another(request, "none"))
    if not found:
        return "no engine supports it, and this one no other strategy on this model; use a live model"
    alternatives = "alternatives are" if len(found) > 1 else "alternative is"
    return f"the closest supported {alternatives} {' and '.join(found)}"


def _another(request: ScalingRequest, strategy: str) -> ScalingRequest:
    """The request with another strategy at its published defaults, and with its own factor where both have one."""
    kept = {"factor": request.options.get("factor")} if "factor" in options_of(strategy) else {}
    return replace(request, strategy=strategy, options={key: value for key, value in kept.items() if value})


def _runs(request: ScalingRequest) -> bool:
    try:
        _verified(request)
    except ValueError:
        return False
    return True


def _distance(request: ScalingRequest, strategy: str) -> float:
    """How far a strategy's plans are from those asked for: the mean distance of frequencies, in shares of the plain."""
    asked = _plans(request) or _plans(replace(request, strategy="yarn", options={}))
    total = 0.0
    for layer_type, plan in (_plans(_another(request, strategy)) or {}).items():
        wanted, geometry = asked[layer_type], request.geometries[layer_type]
        plain = inverse_frequencies(geometry.rotated, geometry.base)
        total += float(np.abs((np.array(plan.inv_freq) - wanted.inv_freq) / plain).mean())
        total += abs(plan.attention_factor - wanted.attention_factor)
    return total


def _plans(request: ScalingRequest) -> dict[str, Plan]:
    """By layer type; {} where a plan changes attention itself, or differs for single layers."""
    chosen = dict(plans(request.strategy, request.geometries, request.length, **request.options))
    if any(plan.changes() or layers_of(key)[1] for key, plan in chosen.items()):
        return {}
    return chosen


def support(strategy: str, engine: str) -> Deployment | None:
    """How an engine runs a strategy with its published defaults on a plain Llama; None where it cannot."""
    geometries = geometry_of(EXAMPLE)
    options: Config = required_options(strategy, geometries[ALL_LAYERS].pairs)
    if strategy == "per_layer":
        options["layers"] = {"0": 2.0}
    try:
        return deploy(engine, EXAMPLE, strategy, options, geometries, EXAMPLE_LENGTH)
    except Unsupported:
        return None


def support_table() -> str:
    """The table of strategies x engines of docs/deploy.md: what each engine calls a strategy, `-` where it cannot.

    An asterisk marks the plan of one length, where the strategy has others at other lengths.
    """
    rows = [["strategy", *ENGINES], ["---"] * (1 + len(ENGINES))]
    for strategy in STRATEGIES:
        deployments = [support(strategy, engine) for engine in ENGINES]
        cells = (f"{it.name}{'*' if it.notes else ''}" if it else "-" for it in deployments)
        rows.append([f"`{strategy}`", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
