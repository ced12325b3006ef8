"""A plan for every layer type of a model, and for single layers where a strategy has other options for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from rope.cropping import cropped
from rope.geometry import Geometry, Plan, Plans, layer_numbers
from rope.pairwise import Pairwise
from rope.strategies.over import still_layers
from rope.strategies.registry import as_options, canonical_name, plan
from rope.strategies.stack import planned

LOCAL = ("sliding", "local", "chunked")
"""Words in the names of layer types that see a bounded window, shorter than any length that was trained."""


def plans(strategy: str, geometries: Mapping[str, Geometry], length: int, **options: Any) -> Plans:
    """A plan for every layer type, in the order of `geometries`, each followed by those of its single layers.

    Layers with a bounded window (sliding, local, chunked) keep their native plan: no distance in them exceeds what was
    trained. Gemma 3 and Olmo 3 were extended in that way.

    Args:
        strategy: its name or alias.
        geometries: by layer type, as rope.config.geometry_of gives them.
        length: tokens of context; at least 2.
        options: of the strategy.

    Raises:
        ValueError: what `plan` refuses, no geometry, or a change of attention itself, or knots, in a model of several
            layer types.
    """
    if not geometries:
        raise ValueError("no geometry was given; give one for every layer type, as geometry_of(config) does")
    if len(geometries) > 1 and options.get("knots") is not None:
        raise ValueError(
            f"knots run through all layers, and those of this model are of several types ({', '.join(geometries)}): "
            "give layers, such as {0-7: 2, 12: 4}"
        )
    chosen: list[tuple[str, Plan]] = []
    for layer_type, geometry in geometries.items():
        # computed for local layers too, so that a bad name or option is always refused
        stretched = [(layer_type, plan(strategy, geometry, length, **options))]
        if canonical_name(strategy) == "per_layer":
            stretched += _single_layers(layer_type, geometry, length, **options)
        if canonical_name(strategy) == "nope" and (still := still_layers(options.get("layers"))):
            everywhere = {**options, "layers": None}
            stretched += [(f"{layer_type}[{still}]", plan(strategy, geometry, length, **everywhere))]
        if len(geometries) > 1 and any(isinstance(each, Pairwise) for _, each in stretched):
            raise ValueError(
                f"{strategy} changes attention itself, and this model's layers attend in several ways "
                f"({', '.join(geometries)}); give a frequency strategy, or a model whose layers are of one type"
            )
        chosen += [(layer_type, geometry.native(length))] if bounded(layer_type) else stretched
    if (crop := cropped(tuple(chosen))) is not None:  # bounded layers see no more of the text than the others
        chosen = [(key, geometries[key].native(crop.window) if bounded(key) else each) for key, each in chosen]
    return tuple(chosen)


def _single_layers(
    layer_type: str,
    geometry: Geometry,
    length: int,
    *,
    over: Any = "linear",
    options: Any = None,
    factor: float | None = None,
    layers: Any = None,
    knots: Any = None,
) -> list[tuple[str, Plan]]:
    """The plans of the layers that `layers` names, and of those between knots, by group."""
    chosen: list[tuple[str, Plan]] = []
    group_of: dict[int, str] = {}
    for numbers, setting in (*_groups(layers).items(), *_between(knots)):
        for layer in layer_numbers(numbers):
            if layer in group_of:
                raise ValueError(f"layers name layer {layer} in {group_of[layer]!r} and in {numbers!r}; name it once")
            group_of[layer] = numbers
        own = setting if isinstance(setting, dict) else {"factor": setting}
        if own == {"factor": 1}:
            layer_plan = geometry.native(length)
        else:
            layer_plan = planned(geometry, length, over, {**as_options(options), **own}, factor)
        chosen.append((f"{layer_type}[{numbers}]", layer_plan))
    return chosen


def _groups(layers: Any) -> dict[str, Any]:
    """{numbers: factor or options}, from a mapping or from its (name, value) pairs, as a cell holds it."""
    pairs = layers.items() if isinstance(layers, Mapping) else layers or ()
    try:
        return {
            str(numbers): setting if isinstance(setting, (int, float)) else as_options(setting)
            for numbers, setting in pairs
        }
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"layers={layers!r}: give layer numbers and a factor or options, such as {{0-7: 2, 8-15: {{factor: 4}}}}"
        ) from error


def _between(knots: Any) -> list[tuple[str, float]]:
    """(numbers, factor) of every layer from the first knot to the last, neighbours with one factor together."""
    if knots is None:
        return []
    try:
        heights = sorted((int(str(layer)), float(factor)) for layer, factor in as_options(knots).items())
    except (TypeError, ValueError):
        heights = []
    apart = len({layer for layer, _ in heights}) == len(heights) > 1
    if not apart or heights[0][0] < 0 or not all(1 <= factor < math.inf for _, factor in heights):
        raise ValueError(
            f"knots={knots!r}: give at least two layer numbers from 0 on, each with a factor of at least 1, such as "
            "{0: 8, 15: 2, 29: 4}"
        )
    groups: list[tuple[list[int], float]] = []
    for (low, start), (high, end) in pairwise(heights):
        for layer in range(low, high):
            _join(groups, layer, start * (end / start) ** ((layer - low) / (high - low)))
    _join(groups, *heights[-1])
    return [(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]), factor) for run, factor in groups]


def _join(groups: list[tuple[list[int], float]], layer: int, factor: float) -> None:
    if groups and groups[-1][1] == factor:
        groups[-1][0].append(layer)
    else:
        groups.append(([layer], factor))


def bounded(layer_type: str) -> bool:
    """Whether layers of this type see a window that is no longer than what was trained."""
    return any(word in layer_type for word in LOCAL)
