"""Which layers of a model rotate, how far they see, and on which a strategy acts: in sentences, from its config."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pipelines.choices.sweep import geometry_for
from pipelines.records.cells import Model, Refusal
from rope.config import AttentionLayer, attention_layers, with_defaults
from rope.geometry import Geometry
from rope.strategies import bounded

LISTED = 12
"""Layer numbers that a sentence lists; of more, it says how many there are."""


def layers_of_model(model: Model) -> tuple[str, ...]:
    """What is to be known of a model's layers before its lengths are scaled; () where all rotate and see everything.

    Raises:
        Refusal: as `geometry_for`.
    """
    described, config, geometries = geometry_for(model)
    try:
        count = int(with_defaults(config).get("num_hidden_layers") or 0)
        return sentences(described.name, attention_layers(config), count, geometries)
    except ValueError as error:
        raise Refusal(f"model {described.name}: {error}") from error


def sentences(
    name: str, layers: Sequence[AttentionLayer], count: int, geometries: Mapping[str, Geometry]
) -> tuple[str, ...]:
    """The same of layers and geometries. count: decoder layers, those without attention included."""
    rotating = [layer for layer in layers if layer.rotates]
    windows = Counter(layer.window for layer in layers if layer.window is not None)
    if len(rotating) == count and not windows:
        return ()
    parts = [f"rotates in {len(rotating)} of {count} layers"]
    if still := [layer.number for layer in layers if not layer.rotates]:
        parts.append(f"{len(still)} attend{'s' if len(still) == 1 else ''} without rotation{_numbers(still)}")
    if len(layers) < count:
        parts.append(f"{count - len(layers)} have no attention")
    parts += [
        f"{number} see{'s' if number == 1 else ''} at most {window:,} tokens" for window, number in windows.items()
    ]
    said = [f"{name}: {'; '.join(parts)}."]
    reach = [layer for layer in rotating if not _within(layer, geometries)]
    if not rotating:
        return tuple(said)
    if not reach:
        said.append(f"{name}: no rotating layer sees beyond the trained length, so scaling cannot help.")
    acted = [layer for layer in rotating if not bounded(layer.layer_type)]
    if len(acted) < count:
        kinds = ", ".join(dict.fromkeys(layer.layer_type for layer in acted if len(geometries) > 1))
        where = f"of the type {kinds}" if kinds else "with rotation"
        said.append(f"{name}: strategies act on the {len(acted)} layer{'s' if len(acted) > 1 else ''} {where}.")
    return tuple(said)


def _within(layer: AttentionLayer, geometries: Mapping[str, Geometry]) -> bool:
    """Whether a layer sees no further than it was trained."""
    return layer.window is not None and layer.window <= geometries[layer.layer_type].trained_length


def _numbers(layers: Sequence[int]) -> str:
    return f" ({', '.join(map(str, layers))})" if len(layers) <= LISTED else ""
