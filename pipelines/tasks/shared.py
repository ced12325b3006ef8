"""Texts that begin alike, such as the answers to one question: what they share is read once, its keys and values kept.

What a layer sees of a token depends on the tokens before it alone, and a plan stays the same while a text grows
(rope/patch.py). So states after cached tokens are those of the whole text, up to rounding, under every plan; that a
model's cache does keep to this is compared before it is used.

Shapes: B rows a batch, S tokens after the shared ones, H hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from pipelines.records import memory
from rope.compared import CannotRun, is_near, off_by

Row = tuple[int, ...]

FEWEST = 256
"""Tokens that rows must share: fewer are read sooner in one batch."""

REST = 4
"""What is not shared is at most a REST-th of what is."""

CHECKED, CHECKED_SHARED = 48, 40
"""Tokens of the text on which both ways are compared, and how many of them are cached."""

FLOAT32_OFF, HALF_OFF = 1e-5, 3e-2
"""How far the states of both ways may be apart, as a share of their norm, for a cache to be used."""

MEMORY_SHARE = 8
"""Keys and values may take a MEMORY_SHARE-th of the device's whole memory: a number never depends on what is free."""


@dataclass(frozen=True)
class Group:
    """Rows of token ids that begin with the same `shared` tokens."""

    shared: int
    rows: tuple[Row, ...]


def split(rows: Mapping[Row, int]) -> tuple[list[Group], list[Row]]:
    """Rows in groups worth sharing, and those that go alone.

    rows: how many tokens at its end each row must be given states of; these are not shared.

    >>> beginning = tuple(range(300))
    >>> groups, alone = split({(*beginning, 7): 1, (*beginning, 8, 9): 2, (5, 6): 1})
    >>> [(group.shared, len(group.rows)) for group in groups], alone
    ([(300, 2)], [(5, 6)])
    """
    groups, alone = list[Group](), list[Row]()
    current, shared = list[Row](), 0

    def end() -> None:
        if len(current) > 1:
            groups.append(Group(shared, tuple(current)))
        else:
            alone.extend(current)

    for row in sorted(rows):
        free = len(row) - rows[row]
        if current:
            common = _common(current[0][:shared], row[:free])
            if common >= FEWEST and max(map(len, (*current, row))) - common <= common // REST:
                current.append(row)
                shared = common
                continue
        end()
        current, shared = [row], free
    end()
    return groups, alone


class SharedContext:
    """Reads groups of rows by a model's decoder.

    Attributes:
        reason: why the model's cache is not used; "" where it is, or was never wanted.
    """

    def __init__(self, model: Any, vocabulary: int) -> None:
        self.model, self.vocabulary, self.reason = model, vocabulary, ""

    @torch.no_grad()
    def takes(self, longest: int) -> bool:
        """Whether states after cached tokens are those of whole texts, under the plan that the model now holds, and
        the keys and values of `longest` tokens are not too large."""
        device = self.model.get_input_embeddings().weight.device
        size = 0.0

        def after_cached(ids: torch.Tensor) -> torch.Tensor:
            nonlocal size
            cache = self._read(ids[:, :CHECKED_SHARED])
            size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / CHECKED_SHARED
            return self._after(cache, ids[:, CHECKED_SHARED:])

        def whole(ids: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            return states[:, CHECKED_SHARED:]

        try:
            off = off_by(after_cached, whole, tokens=CHECKED, vocabulary=self.vocabulary, device=device)
        except CannotRun as error:
            self.reason = f"the model takes no cache of keys and values: {error}"
            return False
        cuda = device.type == "cuda"
        room = torch.cuda.get_device_properties(device).total_memory if cuda else memory.limit()
        self.reason = ""
        if not is_near(off, self.model.dtype, FLOAT32_OFF, HALF_OFF):
            self.reason = f"the model computes something else after cached tokens (off by {off:.1e})"
        elif size * longest > room / MEMORY_SHARE:
            self.reason = f"keys and values of {longest:,} tokens take {size * longest / 2**30:.1f} GiB"
        return not self.reason

    @torch.no_grad()
    def states(self, group: Group, batch_tokens: int) -> Iterator[tuple[tuple[Row, ...], torch.Tensor]]:
        """Rows, and the (B, S, H) last hidden states of what comes after the shared tokens, padded on the right.

        As many rows go together as fit into batch_tokens, the shared ones counted for each; else they go one by one.
        """
        device = self.model.get_input_embeddings().weight.device
        cache = self._read(torch.tensor([group.rows[0][: group.shared]], device=device))
        size = max(1, batch_tokens // max(map(len, group.rows)))
        for start in range(0, len(group.rows), size):
            rows = group.rows[start : start + size]
            ends = [row[group.shared :] for row in rows]
            width = max(map(len, ends))
            ids = torch.tensor([end + (0,) * (width - len(end)) for end in ends], device=device)
            yield rows, self._after(cache if len(rows) == 1 else _repeated(cache, len(rows)), ids)
            for layer in cache.layers:  # back to the shared tokens; the tensors themselves are not copied
                layer.keys, layer.values = layer.keys[:, :, : group.shared], layer.values[:, :, : group.shared]

    def _read(self, ids: torch.Tensor) -> DynamicCache:
        # Without the model's config every layer keeps all tokens, also one with a window, whose mask still hides them.
        cache = DynamicCache()
        self.model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)
        if cache.get_seq_length() != ids.shape[1]:
            raise ValueError("it keeps something else in it")
        return cache

    def _after(self, cache: DynamicCache, ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.model.get_decoder()(
            input_ids=ids, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return states


def _common(one: Row, other: Row) -> int:
    """How many tokens both begin with."""
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def _repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """The same cache for so many rows. Nothing is copied: the first tokens that come after it do that once."""
    repeated = DynamicCache()
    for number, layer in enumerate(cache.layers):
        repeated.update(layer.keys[:, :, :0], layer.values[:, :, :0], number)
        own = repeated.layers[number]
        own.keys, own.values = (kept.expand(rows, -1, -1, -1) for kept in (layer.keys, layer.values))
    return repeated
