"""Texts through a decoder: whole, or, where they are long, layer by layer in chunks of rows (rope/rows.py).

Shapes: B rows a batch, L tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from pipelines.records import memory
from pipelines.records.phases import timed
from rope.attention import RegionAttention, installed
from rope.rows import ByRows, NotByRows

ROWS, FEWEST_ROWS = 16384, 1024
"""Rows of a chunk, and the fewest where memory is short: products of fewer leave a GPU idle."""

WORK = 5 * 2**29
"""Bytes that a chunk's work may take on one GPU for twice as many rows, and so on: as much as ROWS of an 8B model in 16
bits. A small model's long texts then go whole, as sooner done: by chunks of ROWS, 32,768 tokens take 6 % longer."""

LEAN_FROM = 1024
"""Tokens from which a text in float32 on a GPU goes by rows where queries share keys: torch has no fused attention for
that, and a table of all scores."""

COMPILED_FROM = 1e15
"""FLOP in a text's matrix products from which layers are compiled on a GPU: some 20 s a process, for a tenth of every
such text's time."""

KEPT = "_ropewalk_by_rows"
"""Attribute of a model: what runs it in chunks of rows, and under which attention it may."""


class Forward:
    """The decoder of a model.

    Args:
        model: a causal language model of transformers, on its device.
        vocabulary: its token ids are below it.
        devices: that share a long text, the model's own first; () for that alone.

    Attributes:
        rows: tokens of a chunk; a longer text goes in chunks. None: as many as memory allows, at most ROWS; more
            of a small model on one GPU.
        reason: why long texts go whole; "" where they do not, or none came.
        ways: how texts went. compiled: whether the last one went through compiled layers.
    """

    def __init__(self, model: Any, vocabulary: int, devices: Sequence[torch.device] = ()) -> None:
        self.model, self.vocabulary, self.devices = model, vocabulary, tuple(devices)
        self.rows: int | None = None
        self.reason = ""
        self.ways: dict[str, None] = {}
        self.compiled = False

    def provenance(self) -> dict[str, str]:
        """For a result's provenance: how texts went through the model, and why long ones went whole."""
        ways = {"forward": "; ".join(self.ways)} if self.ways else {}
        return {**ways, **({"forward_reason": self.reason} if self.reason else {})}

    @timed("forward")
    @torch.no_grad()
    def states(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, L) token ids -> (B, L, H) last hidden states."""
        length = ids.shape[1]
        rows, self.compiled = self.rows or self._rows(length), False
        if length > rows or (length > LEAN_FROM and self._has_no_fused_attention()):
            by = self._chosen()
            if by is not None:
                by.compiled = self._is_worth_compiling(length) and not by.uncompiled
                one_by_one = [by.states(row[None], rows) for row in ids]
                states = one_by_one[0] if len(ids) == 1 else torch.cat(one_by_one)
                self.compiled = by.compiled
                self._tell(by, length, rows)
                return states
        self.ways["whole"] = None
        whole: torch.Tensor = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return whole

    def _tell(self, by: ByRows, length: int, rows: int) -> None:
        way = f"layer by layer in chunks of {min(length, rows):,} rows"
        way += f", on {len(by.devices)} devices" if len(by.devices) > 1 else ""
        way += ", compiled" if by.compiled else f", not compiled ({by.uncompiled})" if by.uncompiled else ""
        self.ways[way] = None

    def _chosen(self) -> ByRows | None:
        """What runs chunks of rows, compared once with the model's own forward under each kind of attention."""
        kept = self.model.__dict__.setdefault(KEPT, {})  # every cell has a Forward of its own
        kind = (type(installed(self.model)[1]).__name__, self.devices)
        by = kept.get(self.devices)
        if by is not None and by.model is not self.model:  # it came with a copy of the model
            by = None
            kept.clear()
        if kind not in kept:
            try:
                by = by or ByRows(self.model, self.devices)
                by.check(self.vocabulary)
                kept[self.devices], kept[kind] = by, ""
            except NotByRows as reason:
                kept[kind] = str(reason)
        self.reason = kept[kind]
        return None if self.reason else kept[self.devices]

    def _device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def _has_no_fused_attention(self) -> bool:
        config, (_, attention) = self.model.config.get_text_config(), installed(self.model)
        heads = getattr(config, "num_attention_heads", 0)
        grouped = (getattr(config, "num_key_value_heads", None) or heads) < heads
        plain = not isinstance(attention, RegionAttention)
        return self._device().type == "cuda" and self.model.dtype == torch.float32 and grouped and plain

    def _is_worth_compiling(self, length: int) -> bool:
        layers = getattr(self.model.get_decoder(), "layers", ())
        weights = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
        return self._device().type == "cuda" and 2.0 * weights * length >= COMPILED_FROM

    @cached_property
    def _weights(self) -> int:
        """Bytes. Walking through a model of 30 layers takes as long as a tenth of a short text's forward on a GPU."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    def _rows(self, length: int) -> int:
        """ROWS, or more where WORK allows, halved while a chunk's work takes more than half of what the weights and all
        rows leave.

        Of the device's whole memory, not of what is free at the moment, so that a number never depends on that.
        """
        config, device = self.model.config.get_text_config(), self._device()
        hidden = config.hidden_size
        wide = getattr(config, "intermediate_size", None)
        wide = 4 * hidden if not isinstance(wide, int) else wide
        size = self.model.dtype.itemsize
        room = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory.limit()
        left, rows, row = room - self._weights - size * length * 4 * hidden, ROWS, size * (3 * wide + 8 * hidden)
        while device.type == "cuda" and len(self.devices) < 2 and 2 * rows * row <= WORK:
            rows *= 2
        while rows > FEWEST_ROWS and rows * row > left / 2:
            rows //= 2
        return rows
