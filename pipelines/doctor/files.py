"""What the static rules look at: a model's files as plain data, no weights, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipelines.doctor import families
from pipelines.models import find
from pipelines.models.header import Header
from pipelines.records.cells import Model
from rope.config import LENGTH_KEYS, geometry_of, rope_parameters, text_config
from rope.geometry import ALL_LAYERS, Geometry, Plan
from rope.strategies import bounded

UNLIMITED = 10**12
"""A tokenizer's model_max_length from here on means none: transformers writes 1e30."""


@dataclass(frozen=True)
class Files:
    """A model's files, and what is asked of it.

    config: config.json as it lies there, or what a GGUF header says in its words. tokenizer: tokenizer_config.json.
    header: of a GGUF file. target: tokens wanted, None where nobody said. strategy: that is to be put on, with
    its options; "none" where nobody said. task, text: that are to be measured with.
    """

    name: str
    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    header: Header | None = None
    target: int | None = None
    strategy: str = "none"
    trained: int | None = None
    task: str = "perplexity"

    @cached_property
    def text(self) -> Mapping[str, Any]:
        """The language model's part of the config."""
        return text_config(self.config)

    @cached_property
    def declared(self) -> dict[str, Mapping[str, Any]]:
        """The rope parameters as they are written, by layer type; under "all" where they are flat, {} if none are."""
        block = self.text.get("rope_scaling") or self.text.get("rope_parameters") or {}
        nested = {key: value for key, value in block.items() if isinstance(value, Mapping)}
        return nested or ({ALL_LAYERS: block} if block else {})

    @cached_property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The same with all that is implied, in the words of transformers v5. ValueError as rope_parameters."""
        return {key: value for key, value in rope_parameters(self.config).items() if value is not None}

    @cached_property
    def geometries(self) -> dict[str, Geometry]:
        """ValueError as geometry_of."""
        return geometry_of(self.config, self.trained)

    @cached_property
    def global_geometry(self) -> Geometry:
        """Of the layers that see the whole context."""
        seeing = [one for layers, one in self.geometries.items() if not bounded(layers)]
        return (seeing or list(self.geometries.values()))[0]

    @property
    def limit(self) -> int | None:
        """Tokens that the config says the model takes."""
        return next((self.text[key] for key in LENGTH_KEYS if self.text.get(key)), None)

    @property
    def plain_length(self) -> int | None:
        """Tokens that the plain frequencies were trained on: what the scaling says, the family, or the config."""
        told = [one.get("original_max_position_embeddings") for one in self.declared.values()]
        told += [self.text.get("original_max_position_embeddings"), self.trained]
        told += [self.known_length, self.limit]
        return next((int(length) for length in told if length), None)

    @cached_property
    def variant(self) -> families.Variant | None:
        """The published checkpoint that this should be, where it is known."""
        return families.variant(self.text, self.name)

    @property
    def known_length(self) -> int | None:
        """Tokens of plain training of the known family; None where it is not known, or its members differ."""
        lengths = {one.plain_length for one in ([self.variant] if self.variant else families.variants(self.text))}
        return lengths.pop() if len(lengths) == 1 else None


def native(geometry: Geometry, length: int | None = None) -> Plan:
    """What the modules of a freshly built model must hold: the plan up to the first limit, as transformers begins."""
    return geometry.natives[0][1] if length is None and geometry.natives else geometry.native(length or 2)


def of(model: Model, **asked: Any) -> Files:
    """A model's files.

    Raises:
        Refusal: they are not there, or cannot be read.
    """
    source = find.locate(model)
    if source.gguf is not None:
        found = find.gguf_header(source.gguf)
        config = find.gguf_config(found)
        # The header's own words where it has some: they are what is to be judged.
        if found.rope_freqs:
            config = find.with_scaling(config, found, source.gguf.name)
        else:
            config |= scaling_of(found)
        return Files(model.name, config, {}, found, trained=model.trained_length, **asked)
    _, config = find.describe(model)
    tokenizer = find.side_file(model, "tokenizer_config.json")
    return Files(model.name, config, tokenizer, trained=model.trained_length, **asked)


def scaling_of(found: Header) -> dict[str, Any]:
    """The scaling that a GGUF header declares, in the words of a config; {} where it declares none."""
    kind = found.value("rope.scaling.type")
    if kind in (None, "none"):
        return {}
    block = {
        "rope_type": kind,
        "factor": found.value("rope.scaling.factor"),
        "original_max_position_embeddings": found.value("rope.scaling.original_context_length"),
        "attention_factor": found.value("rope.scaling.attn_factor"),
    }
    return {"rope_scaling": {key: value for key, value in block.items() if value is not None}}
