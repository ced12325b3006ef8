"""A plan for every layer type of a model, and for single layers where a strategy treats them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rope.geometry import Geometry, Plan, Plans, layer_numbers
from rope.pairwise import Pairwise
from rope.strategies.over import with_factor
from rope.strategies.registry import named, options_given, plan

LOCAL = ("sliding", "local", "chunked")
"""Words in the names of layer types that see a bounded window, shorter than any length that was trained."""


def plans(strategy: str, geometries: Mapping[str, Geometry], length: int, **options: Any) -> Plans:
    """A plan for every layer type, in the order of `geometries`, each followed by those of its single layers.

    Layers of a bounded window (sliding, local, chunked) keep their native plan: no distance in them exceeds what was
    trained. Gemma 3 and Olmo 3 were extended in that way.
    """
    if not geometries:
        raise ValueError("no geometry was given; give one for every layer type, as geometry_of(config) does")
    found: list[tuple[str, Plan]] = []
    for layer_type, geometry in geometries.items():
        # computed for local layers too, so that a bad name or option never passes unseen
        stretched = [(layer_type, plan(strategy, geometry, length, **options))]
        if named(strategy) == "per_layer":
            stretched += _apart(layer_type, geometry, length, **options)
        if len(geometries) > 1 and any(isinstance(one, Pairwise) for _, one in stretched):
            raise ValueError(
                f"{strategy} changes attention itself, and this model's layers attend in several ways "
                f"({', '.join(geometries)}); give a frequency strategy, or a model whose layers are of one type"
            )
        found += [(layer_type, geometry.native(length))] if bounded(layer_type) else stretched
    return tuple(found)


def _apart(
    layer_type: str,
    geometry: Geometry,
    length: int,
    *,
    over: str = "linear",
    options: Any = None,
    factor: float | None = None,
    layers: Any = None,
) -> list[tuple[str, Plan]]:
    found: list[tuple[str, Plan]] = []
    taken: dict[int, str] = {}
    for numbers, given in _groups(layers).items():
        for layer in layer_numbers(numbers):
            if layer in taken:
                raise ValueError(f"layers name layer {layer} in {taken[layer]!r} and in {numbers!r}; name it once")
            taken[layer] = numbers
        own = given if isinstance(given, dict) else {"factor": given}
        if own == {"factor": 1}:
            chosen = geometry.native(length)
        else:
            chosen = plan(over, geometry, length, **with_factor(over, {**options_given(options), **own}, factor))
        found.append((f"{layer_type}[{numbers}]", chosen))
    return found


def _groups(layers: Any) -> dict[str, Any]:
    """{numbers: factor or options}; from a mapping, or from the pairs that a hashable record holds in its place."""
    pairs = layers.items() if isinstance(layers, Mapping) else layers or ()
    try:
        return {
            str(numbers): given if isinstance(given, (int, float)) else options_given(given) for numbers, given in pairs
        }
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"layers={layers!r}: give layer numbers and a factor or options, such as {{0-7: 2, 8-15: {{factor: 4}}}}"
        ) from error


def bounded(layer_type: str) -> bool:
    """Whether layers of this type see a window that is no longer than what was trained."""
    return any(word in layer_type for word in LOCAL)
