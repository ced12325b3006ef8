"""What the static rules look at: a model's files as plain data, no weights, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

Block = Mapping[str, Any]
"""A mapping of rope parameters."""


@dataclass(frozen=True)
class Files:
    """A model's files, and what the model is wanted for.

    config: config.json as it is, or what a GGUF header says, with the same keys. tokenizer: tokenizer_config.json.
    header: of a GGUF file. target: tokens wanted, None where not given. strategy, task: what is to be put on the model,
    and measured with.
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
    def declared(self) -> dict[str, Block]:
        """The rope parameters as written, by layer type; under "all" where they are flat, {} without any."""
        block = self.text.get("rope_scaling") or self.text.get("rope_parameters") or {}
        nested = {key: value for key, value in block.items() if isinstance(value, Mapping)}
        return nested or ({ALL_LAYERS: block} if block else {})

    @cached_property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The same with all that is implied, with the keys of transformers v5. ValueError as rope_parameters."""
        return {key: value for key, value in rope_parameters(self.config).items() if value is not None}

    def scalings(self, *types: str) -> Iterator[tuple[str, Block, Block]]:
        """(layer type, parameters, parameters as written) of the declared scalings of these types; none where the
        config cannot be read, which S12 reports."""
        try:
            parameters = self.parameters
        except ValueError:
            return
        for layers, block in parameters.items():
            if block["rope_type"] in types:
                yield layers, block, self.declared.get(layers, {})

    def original_length(self, declared: Block) -> Any:
        """The original length as written in a block of rope parameters or beside it."""
        key = "original_max_position_embeddings"
        return declared.get(key) or self.text.get(key)

    @cached_property
    def geometries(self) -> dict[str, Geometry]:
        """ValueError as geometry_of."""
        return geometry_of(self.config, self.trained)

    @cached_property
    def global_geometry(self) -> Geometry:
        """Of the layers that see the whole context."""
        unbounded = [geometry for layers, geometry in self.geometries.items() if not bounded(layers)]
        return (unbounded or list(self.geometries.values()))[0]

    @property
    def limit(self) -> int | None:
        """Tokens that the config says the model takes."""
        return next((self.text[key] for key in LENGTH_KEYS if self.text.get(key)), None)

    @property
    def plain_length(self) -> int | None:
        """Tokens that the plain frequencies were trained on: as the scaling says, the family, or the config."""
        lengths = [block.get("original_max_position_embeddings") for block in self.declared.values()]
        lengths += [self.original_length({}), self.trained, self.known_length, self.limit]
        return next((int(length) for length in lengths if length), None)

    @cached_property
    def variant(self) -> families.Variant | None:
        """The published checkpoint that this should be, where it is known."""
        return families.variant(self.text, self.name)

    @property
    def known_length(self) -> int | None:
        """Tokens of plain training of the known family; None where it is not known, or its members differ."""
        known = [self.variant] if self.variant else families.variants(self.text)
        lengths = {variant.plain_length for variant in known}
        return lengths.pop() if len(lengths) == 1 else None


def native(geometry: Geometry) -> Plan:
    """What the modules of a freshly built model must hold: the plan up to the first limit, as transformers begins."""
    return geometry.natives[0][1] if geometry.natives else geometry.native(2)


def read(model: Model, target: int | None = None, strategy: str = "none", task: str = "perplexity") -> Files:
    """A model's files.

    Raises:
        Refusal: they are not there, or cannot be read.
    """
    source = find.locate(model)
    header, tokenizer = None, {}
    if source.gguf is not None:
        header = find.gguf_header(source.gguf)
        config = find.gguf_config(header)
        # The header's own values where it has some: they are what is to be judged.
        if header.rope_freqs:
            config = find.with_scaling(config, header, source.gguf.name)
        else:
            config |= header_scaling(header)
    else:
        _, config = find.describe(model)
        tokenizer = find.side_file(model, "tokenizer_config.json")
    return Files(model.name, config, tokenizer, header, target, strategy, model.trained_length, task)


def header_scaling(header: Header) -> dict[str, Any]:
    """The scaling that a GGUF header declares, with the keys of a config; {} without any."""
    kind = header.value("rope.scaling.type")
    if kind in (None, "none"):
        return {}
    block = {
        "rope_type": kind,
        "factor": header.value("rope.scaling.factor"),
        "original_max_position_embeddings": header.value("rope.scaling.original_context_length"),
        "attention_factor": header.value("rope.scaling.attn_factor"),
    }
    return {"rope_scaling": {key: value for key, value in block.items() if value is not None}}
