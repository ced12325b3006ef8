"""What the static rules look at: a model's files as plain data, no weights, no torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipelines.choices.layers import sentences
from pipelines.doctor import families
from pipelines.models import find, gguf_files
from pipelines.models.header import Header
from pipelines.records.cells import Model
from rope.config import (
    LENGTH_KEYS,
    SYNONYMS,
    AttentionLayer,
    attention_layers,
    geometry_of,
    rope_parameters,
    text_config,
    with_defaults,
)
from rope.families import Family, language_model, unrotated
from rope.geometry import ALL_LAYERS, Geometry, Plan
from rope.strategies import bounded

UNLIMITED = 10**12
"""A tokenizer's model_max_length from here on means none: transformers writes 1e30."""

Block = Mapping[str, Any]
"""A mapping of rope parameters."""


def _plain(block: Any) -> Any:
    """A block of rope parameters without its scaling."""
    kept = ("rope_theta", "partial_rotary_factor")
    return {key: block[key] for key in kept if block.get(key) is not None} if isinstance(block, Mapping) else block


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
    def written(self) -> dict[str, Block]:
        """The rope parameters as written, by layer type; under "all" where they are flat, {} without any."""
        block = self.text.get("rope_scaling") or self.text.get("rope_parameters") or {}
        nested = {key: value for key, value in block.items() if isinstance(value, Mapping)}
        return nested or ({ALL_LAYERS: block} if block else {})

    def rope_type(self, block: Block) -> str:
        """The type that a block of rope parameters names, as its class understands it."""
        name = str(block.get("rope_type") or block.get("type") or "default")
        own = self.family.types_of_rope if self.family else None
        return (own or SYNONYMS).get(name, SYNONYMS.get(name, name))

    def theta_beside(self, layers: str) -> Any:
        """The base that is written beside the rope parameters, where the class reads that of these layers."""
        keys = self.family.theta_keys if self.family else ("rope_theta",)
        own = keys.get(layers, ()) if isinstance(keys, Mapping) else keys
        return next((self.text[key] for key in own if self.text.get(key) is not None), None)

    @cached_property
    def declared(self) -> dict[str, Block]:
        """The same by the layer types that the class gives them to: a flat scaling of a Gemma 3 or an Olmo 3 is that of
        its full-attention layers."""
        flat = self.written.get(ALL_LAYERS)
        try:
            layers = self.parameters
        except ValueError:
            return self.written
        if flat is None or ALL_LAYERS in layers:
            return self.written
        kind = self.rope_type(flat)
        return {name: flat for name, block in layers.items() if kind in ("default", block["rope_type"])}

    @cached_property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The same with all that is implied, with the keys of transformers v5. ValueError as rope_parameters."""
        return {key: value for key, value in rope_parameters(self.config).items() if value is not None}

    def scalings(self, *types: str) -> Iterator[tuple[str, Block, Block]]:
        """(layer type, parameters, parameters as written) of the declared scalings of these types; none where the
        config cannot be read, which R01 reports."""
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

    @cached_property
    def unscaled(self) -> dict[str, Geometry]:
        """The geometries without any declared scaling. ValueError where even those cannot be read."""
        config = copy.deepcopy(dict(self.config))
        text: Any = text_config(config)
        for name in ("rope_parameters", "rope_scaling"):
            block = text.get(name)
            if isinstance(block, Mapping):
                nested = any(isinstance(value, Mapping) for value in block.values())
                text[name] = {key: _plain(value) for key, value in block.items()} if nested else _plain(block)
        return geometry_of(config, self.trained)

    @cached_property
    def family(self) -> Family | None:
        """How its class reads a config; None where transformers has none."""
        return language_model(self.config)[1]

    def without(self, *keys: str) -> Files:
        """The same without some keys of the language model's part."""
        config = copy.deepcopy(dict(self.config))
        text: Any = text_config(config)
        for key in keys:
            text.pop(key, None)
        return replace(self, config=config)

    @cached_property
    def unrotated(self) -> str | None:
        """Why nothing in it rotates; None where something does, or where that cannot be told."""
        text = with_defaults(self.config)
        if self.family is not None:
            return unrotated(text, self.family)
        kind = text.get("position_embedding_type")
        other = "alibi" if text.get("alibi") else kind if kind not in (None, "rope", "rotary") else None
        return None if other is None else f"its positions are {other}"

    @cached_property
    def layers(self) -> tuple[AttentionLayer, ...]:
        """Its attention layers; () where they cannot be read."""
        try:
            return attention_layers(self.config)
        except ValueError:
            return ()

    @cached_property
    def about_layers(self) -> tuple[str, ...]:
        """Which layers rotate and how far they see, in sentences; () where all rotate and see everything."""
        try:
            geometries = self.geometries
        except ValueError:
            return ()
        count = int(with_defaults(self.config).get("num_hidden_layers") or 0)
        return sentences(self.name, self.layers, count, geometries)

    @property
    def reach(self) -> int | None:
        """How far the rotating layers see, where none of them sees beyond the trained length; None where one does."""
        windows = [layer.window for layer in self.layers if layer.rotates]
        known = [window for window in windows if window is not None]
        trained = self.trained or self.limit
        far = len(known) < len(windows) or not known or not trained or max(known) > trained
        return None if far else max(known)

    @property
    def limit(self) -> int | None:
        """Tokens that the config says the model takes, or that its class assumes."""
        text = with_defaults(self.config)
        return next((text[key] for key in LENGTH_KEYS if text.get(key)), None)

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
    def named(self) -> bool:
        """Whether its name says that it is that checkpoint, and not its shape and length alone."""
        return self.variant is not None and self.variant.names_it(self.text, self.name)

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
        header = gguf_files.read_header(source.gguf)
        config = gguf_files.with_scaling(gguf_files.header_config(header), header, source.gguf.name)
    else:
        _, config = find.describe(model)
        tokenizer = find.side_file(model, "tokenizer_config.json")
    return Files(model.name, config, tokenizer, header, target, strategy, model.trained_length, task)
