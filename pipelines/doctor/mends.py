"""Mechanical corrections of a config: each makes a function that changes the language model's part in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipelines.doctor.rules import Mend

BLOCKS = ("rope_parameters", "rope_scaling")


def nothing() -> Mend:
    """Nothing of its own: whatever the doctor writes has the keys of transformers v4 and v5."""
    return lambda text: None


def top(**values: Any) -> Mend:
    """Keys beside the rope parameters, such as max_position_embeddings."""
    return lambda text: text.update(values)


def within(**values: Any) -> Mend:
    """Keys of every mapping of rope parameters."""
    return _each(lambda block: block.update(values))


def renamed(old: str, new: str) -> Mend:
    """Another name for a key of the rope parameters; where both are there, the right one stays."""

    def rename(block: dict[str, Any]) -> None:
        if old in block:
            block.setdefault(new, block.pop(old))

    return _each(rename)


def theta(value: float) -> Mend:
    """The base, wherever it is written."""

    def write(text: dict[str, Any]) -> None:
        text["rope_theta"] = value
        for block in _blocks(text):
            if "rope_theta" in block:
                block["rope_theta"] = value

    return write


def scaling(block: Mapping[str, Any]) -> Mend:
    """Another scaling in place of the declared one, with its theta."""

    def write(text: dict[str, Any]) -> None:
        text.pop("rope_parameters", None)
        text["rope_scaling"], text["rope_theta"] = dict(block), block["rope_theta"]

    return write


def unscaled(layer_type: str) -> Mend:
    """No scaling for one layer type."""

    def write(text: dict[str, Any]) -> None:
        for name in BLOCKS:
            block = text.get(name)
            if isinstance(block, dict) and isinstance(block.get(layer_type), dict):
                kept = block[layer_type].get("rope_theta")
                block[layer_type] = {"rope_type": "default"} | ({} if kept is None else {"rope_theta": kept})

    return write


def _each(change: Callable[[dict[str, Any]], None]) -> Mend:
    def write(text: dict[str, Any]) -> None:
        for block in _blocks(text):
            change(block)

    return write


def _blocks(text: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every mapping of rope parameters in a config: one, or one a layer type."""
    for name in BLOCKS:
        block = text.get(name)
        if isinstance(block, dict):
            nested = [value for value in block.values() if isinstance(value, dict)]
            yield from nested or [block]
