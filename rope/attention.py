"""The attention that a Pairwise plan describes, in a live model: through transformers' attention interface.

Shapes: B batch rows, H heads, G key heads, Q queries, K keys (the queries are the last of them), D head dimensions,
P rotated pairs, R queries of a block.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from rope.pairwise import LogN, Pairwise, Position, Region
from rope.rotation import Table, query_scale, rotate, table

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK_ELEMENTS, BLOCK_ROWS = 2**27, 256
"""Attention scores held at once (512 MiB in float32), and the most queries: with more, ragged ends cost more."""

FOREIGN = ("sliding_window", "softcap", "s_aux", "position_bias")
"""What a layer may ask of its attention beside keys and values, and which no region knows."""

_numbers = itertools.count()


@contextmanager
def attending(model: nn.Module, plan: Pairwise) -> Iterator[None]:
    """The model with the plan's attention in every layer, and its own again once the block ends, however it ends.

    Where the plan has regions, queries and keys must come unrotated: its rotary modules must stand still inside. Keys
    cached inside are therefore unrotated too, and of no use outside. Rows are tokens 0, 1, 2, ... from their first
    unpadded one on, whatever position_ids say.
    """
    if plan.regions:
        with _installed(model, Regions(plan), _padding):
            yield
    else:
        assert plan.query_scale is not None
        own, mask = _own(model)
        with _installed(model, ScaledQueries(plan.query_scale, own), mask):
            yield


@contextmanager
def recording(model: nn.Module) -> Iterator[Recorded]:
    """The model as it is, every answer of its attention kept."""
    own, mask = _own(model)
    recorded = Recorded(own)
    with _installed(model, recorded, mask):
        yield recorded


@contextmanager
def comparing(model: nn.Module, plan: Pairwise, recorded: Recorded) -> Iterator[Compared]:
    """The model with what was recorded, over the same tokens, compared with what the plan's attention would say."""
    compared = Compared(Regions(plan), recorded.answers)
    with _installed(model, compared, _padding):
        yield compared


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model with the attention it has outside of all blocks of `attending`."""
    config = text_config(model)
    before = getattr(config, "_attn_implementation", None)
    inside = AttentionInterface._global_mapping.get(before)
    if not isinstance(inside, _Inside):
        yield
        return
    config._attn_implementation = inside.instead_of
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _installed(model: nn.Module, inside: _Inside, mask: Any) -> Iterator[None]:
    config = text_config(model)
    before = inside.instead_of = config._attn_implementation
    name = f"ropewalk_{next(_numbers)}"  # a name of its own, so that blocks nest
    AttentionInterface.register(name, inside)
    AttentionMaskInterface.register(name, mask)
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
        del AttentionInterface._global_mapping[name], AttentionMaskInterface._global_mapping[name]


def _own(model: nn.Module) -> tuple[Any, Any]:
    """The model's own attention, and what makes its masks; "eager" is no function that all models share."""
    before = text_config(model)._attn_implementation
    name = before if before in AttentionInterface._global_mapping else "sdpa"
    return AttentionInterface._global_mapping[name], AttentionMaskInterface._global_mapping[name]


def text_config(model: nn.Module) -> Any:
    """The config of the language model, which its layers look into; None of a module without any."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


class _Inside:
    """An attention function of ours.

    instead_of: the name of the attention that it took the place of.
    """

    instead_of: str | None = None


class ScaledQueries(_Inside):
    """The model's own attention, after every query was scaled."""

    def __init__(self, scale: LogN, own: Any) -> None:
        self.scale, self.own = scale, own

    def __call__(self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=query.device)[None]
        factors = query_scale(self.scale, positions)[:, None, :, None]
        return self.own(module, (query * factors).to(query.dtype), key, *args, **kwargs)


class Recorded(_Inside):
    """The model's own attention; answers: (B, Q, H, D) a layer, in the order of the layers."""

    def __init__(self, own: Any) -> None:
        self.own = own
        self.answers: list[torch.Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.own(*args, **kwargs)
        self.answers.append(answer[0])
        return answer


class Compared(_Inside):
    """Recorded answers, each compared with what `regions` says instead.

    Every layer sees what it saw when they were recorded, so that roundings do not grow from layer to layer.

    off: the largest distance of any layer, as a share of its answer's norm.
    """

    def __init__(self, regions: Regions, answers: list[torch.Tensor]) -> None:
        self.regions, self.answers, self.off = regions, iter(answers), 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        said, (ours, _) = next(self.answers), self.regions(*args, **kwargs)
        off = (ours.float() - said.float()).norm() / said.float().norm().clip(min=1e-12)
        self.off = max(self.off, float(off))
        return said, None


class Regions(_Inside):
    """Attention over the regions of a plan, row by row where rows are padded."""

    fuses = True
    """Whether kernels can be made here; of the class, for what fails once fails for every plan of the process."""

    def __init__(self, plan: Pairwise) -> None:
        self.plan = plan
        self.tables: tuple[Any, dict[Position, Table]] = (None, {})
        self.masks: tuple[Any, dict[Region, BlockMask]] = (None, {})

    def __call__(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        attention_mask: torch.Tensor | None, scaling: float | None = None, **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        """(B, H, Q, D) unrotated queries, (B, G, K, D) keys and values, (B, K) padding -> (B, Q, H, D)."""
        asked = [name for name in FOREIGN if kwargs.get(name) is not None]
        if asked:
            raise ValueError(
                f"{type(module).__name__} attends with {', '.join(asked)}, and a Pairwise plan replaces attention by "
                "plain rotated products; give another model or strategy"
            )
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if attention_mask is None:
            return self._attend(query, key, value, scaling).transpose(1, 2).contiguous(), None
        found = query.new_zeros(*query.shape[:3], value.shape[-1])
        before = key.shape[2] - query.shape[2]
        for row, real in enumerate(attention_mask):
            start, stop = _unpadded(real)
            begin = max(before, start)
            if stop > begin:
                found[row : row + 1, :, begin - before : stop - before] = self._attend(
                    query[row : row + 1, :, begin - before : stop - before],
                    key[row : row + 1, :, start:stop], value[row : row + 1, :, start:stop], scaling,
                )  # fmt: skip
        return found.transpose(1, 2).contiguous(), None

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        from rope import fused  # and with it torch's compiler, most of a second that only these plans need

        tables = self._tables(key.shape[2], key.device)
        if self.fuses and fused.pays(query, key, value):
            try:
                masks = self._masks(query.shape[2], key.shape[2], key.device)
                return fused.attend(query, key, value, self.plan, scaling, tables, masks)
            except fused.NotCompiled as failure:  # for want of a C compiler, say
                Regions.fuses = False
                why = str(failure).strip().partition("\n")[0]
                warnings.warn(
                    f"attention goes by blocks of scores, which is slower: no fused kernel ({why})", stacklevel=2
                )
        return attend(query, key, value, self.plan, scaling, tables)

    def _tables(self, length: int, device: torch.device) -> dict[Position, Table]:
        # Every layer asks for the same ones, so those of the last length are kept.
        if self.tables[0] != (length, device):
            places = {place for region in self.plan.regions for place in (region.query, region.key)}
            self.tables = ((length, device), {place: table(self.plan, place, length, device) for place in places})
        return self.tables[1]

    def _masks(self, queries: int, length: int, device: torch.device) -> dict[Region, BlockMask]:
        from rope import fused

        if self.masks[0] != (queries, length, device):
            self.masks = ((queries, length, device), fused.masks(self.plan, queries, length, device))
        return self.masks[1]


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: Pairwise, scaling: float,
    tables: dict[Position, Table],
) -> torch.Tensor:  # fmt: skip
    """Causal attention over a plan's regions: one softmax over all of them, no more than a block of scores at a time.

    (B, H, Q, D), (B, G, K, D), (B, G, K, D) -> (B, H, Q, D) in the query's dtype, computed in float32.
    """
    batch, heads, queries, width = query.shape
    length, shared = key.shape[2], heads // key.shape[1]
    keys = {place: rotate(key.float(), tables[place]) for place in {region.key for region in plan.regions}}
    values = value.float()
    rows = max(1, min(BLOCK_ROWS, BLOCK_ELEMENTS // (batch * heads * length)))
    found = query.new_empty(batch, heads, queries, value.shape[-1])
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        tokens = range(length - queries + start, length - queries + stop)
        asked = query[:, :, start:stop].float() * scaling
        if plan.query_scale is not None:
            asked = asked * query_scale(plan.query_scale, _tensor(tokens, query.device))[:, None]
        merged = _Merged()
        for region in plan.regions:
            turned = rotate(asked, tuple(part[tokens.start : tokens.stop] for part in tables[region.query]))
            # Heads that share a key are rows of one product, so that no key is repeated.
            folded = turned.reshape(batch, heads // shared, shared * (stop - start), width)
            merged.add(folded, keys[region.key], values, region, tokens)
        found[:, :, start:stop] = merged.mean().view(batch, heads, stop - start, -1)
    return found


class _Merged:
    """Softmax-weighted means of the regions seen so far, and what it takes to merge another: the online softmax."""

    def __init__(self) -> None:
        self.parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, region: Region, tokens: range) -> None:
        """(B, G, H / G * R, D) rotated queries of R tokens, all rotated keys and all values."""
        top, bottom = tokens[0], tokens[-1]  # numbers, not tensors: to ask a GPU for them is to wait for it
        start, stop = max(0, region.first(top)), min(bottom, region.last(bottom)) + 1
        if stop <= start:
            return
        scores = query @ key[:, :, start:stop].transpose(2, 3)
        ragged = scores.view(*scores.shape[:2], -1, len(tokens), stop - start)
        # Only at its two ends does a block's rectangle hold pairs that are not of the region.
        for low, high in ((start, region.first(bottom)), (min(top, region.last(top)) + 1, stop)):
            low, high = max(low, start), min(high, stop)
            if low < high:
                columns, row = _tensor(range(low, high), query.device), _tensor(tokens, query.device)[:, None]
                inside = (columns >= region.first(row)) & (columns <= region.last(row)) & (columns <= row)
                ragged[..., low - start : high - start].masked_fill_(~inside, -torch.inf)
        # A row without a pair in the region has no score but -inf: a finite peak makes of it weights of 0.
        peak = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
        weights = scores.sub_(peak).exp_()
        self.parts.append((peak, weights.sum(-1, keepdim=True), weights @ value[:, :, start:stop]))

    def mean(self) -> torch.Tensor:
        """(B, G, H / G * R, D)."""
        peak = torch.stack([part[0] for part in self.parts]).amax(0)
        shares = [torch.exp(part[0] - peak) for part in self.parts]
        above, below = (
            torch.stack([share * part[field] for share, part in zip(shares, self.parts, strict=True)]).sum(0)
            for field in (2, 1)
        )
        return above / below


def _tensor(tokens: range, device: torch.device) -> torch.Tensor:
    return torch.arange(tokens.start, tokens.stop, device=device)


def _padding(
    batch_size: int, kv_length: int, q_length: int | None = None, q_offset: Any = 0, mask_function: Any = None,
    attention_mask: torch.Tensor | None = None, cache_position: torch.Tensor | None = None, **kwargs: Any,
) -> torch.Tensor | None:  # fmt: skip
    """(B, K) true where a token is no padding; None where none is. What transformers asks for before the layers."""
    if mask_function not in (None, causal_mask_function):
        raise ValueError(
            "this model masks more than the future (a sliding window, or several texts in a row), and a Pairwise plan "
            "covers all pairs; give another model or strategy"
        )
    if q_length is None:  # earlier releases of transformers say instead where the queries stand
        assert cache_position is not None
        q_length, q_offset = len(cache_position), int(cache_position[0])
    if isinstance(q_offset, torch.Tensor) or q_offset + q_length != kv_length:
        raise ValueError(
            "this cache has places that are not filled yet; a Pairwise plan takes one that grows: give a DynamicCache"
        )
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask


def _unpadded(real: torch.Tensor) -> tuple[int, int]:
    """The first token of a row that is no padding, and the first behind the last one."""
    if real.ndim != 1:
        raise ValueError("this attention mask is of (query, key) pairs; a Pairwise plan takes one of (rows, tokens)")
    places = real.nonzero()[:, 0]
    if not len(places):
        return 0, 0
    start, stop = int(places[0]), int(places[-1]) + 1
    if len(places) != stop - start:
        raise ValueError("a row has padding between its tokens; give it before or behind them")
    return start, stop
