"""The attention of a Pairwise plan, in a live model, through transformers' attention interface.

Shapes: B batch rows, H heads, G key heads, Q queries, K keys (the queries are the last of them), D head dimensions,
P rotated pairs, R queries of a block.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from rope.pairwise import Pairwise, Position, QueryScale, Region
from rope.rotation import Table, query_scale, rotate, table

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK_ELEMENTS, BLOCK_ROWS = 2**27, 256
"""The most attention scores in memory at once (512 MiB in float32), and the most queries of a block: with more, the
ragged ends of regions cost more."""

UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")
"""Arguments of attention functions, beside keys and values, that no region can express."""

Undo = Callable[[], None]

_numbers = itertools.count()


def install(model: nn.Module, plan: Pairwise) -> Undo:
    """Give every layer of the model the plan's attention; returns a function that gives them back the one they had.

    Where the plan has regions, queries and keys must come unrotated: the rotary modules must hold zero frequencies.
    Keys cached meanwhile are therefore unrotated too, and of no use afterwards. Rows are tokens 0, 1, 2, ... from
    their first unpadded one on, whatever position_ids say.
    """
    if plan.regions:
        return replace_attention(model, RegionAttention(plan), padding)
    assert plan.query_scale is not None
    own, mask = _current(model)
    return replace_attention(model, ScaledQueryAttention(plan.query_scale, own), mask)


def installed(model: nn.Module) -> tuple[str, Any]:
    """The name of the attention that the model has now, and its function; None for one that is the model's own."""
    name = text_config(model)._attn_implementation
    return name, AttentionInterface._global_mapping.get(name)


def install_original(model: nn.Module) -> Undo:
    """Give the model the attention that it had before any `install`; returns a function that takes it away again."""
    config = text_config(model)
    before = getattr(config, "_attn_implementation", None)
    ours = AttentionInterface._global_mapping.get(before)
    if isinstance(ours, Replacement):
        config._attn_implementation = ours.replaced

    def undo() -> None:
        if isinstance(ours, Replacement):
            config._attn_implementation = before

    return undo


@contextmanager
def recording(model: nn.Module) -> Iterator[RecordedAttention]:
    """The model's own attention, with its outputs recorded."""
    own, mask = _current(model)
    recorded = RecordedAttention(own)
    undo = replace_attention(model, recorded, mask)
    try:
        yield recorded
    finally:
        undo()


@contextmanager
def comparing(model: nn.Module, plan: Pairwise, recorded: RecordedAttention) -> Iterator[ComparedAttention]:
    """The recorded outputs over the same tokens, compared with those of the plan's attention."""
    compared = ComparedAttention(RegionAttention(plan), recorded.outputs)
    undo = replace_attention(model, compared, padding)
    try:
        yield compared
    finally:
        undo()


def replace_attention(model: nn.Module, replacement: Replacement, mask: Any, name: str | None = None) -> Undo:
    """Give the model an attention and a mask function; a name of its own each time unless given, so that they nest."""
    config = text_config(model)
    before = replacement.replaced = config._attn_implementation
    name = name or f"ropewalk_{next(_numbers)}"
    AttentionInterface.register(name, replacement)
    AttentionMaskInterface.register(name, mask)
    config._attn_implementation = name

    def undo() -> None:
        config._attn_implementation = before
        del AttentionInterface._global_mapping[name], AttentionMaskInterface._global_mapping[name]

    return undo


def _current(model: nn.Module) -> tuple[Any, Any]:
    """The model's attention and mask functions; those of sdpa where it has "eager", which each model defines itself."""
    before = text_config(model)._attn_implementation
    name = before if before in AttentionInterface._global_mapping else "sdpa"
    return AttentionInterface._global_mapping[name], AttentionMaskInterface._global_mapping[name]


def text_config(model: nn.Module) -> Any:
    """The config of the language model, which its layers read; None for a module without one."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


class Replacement:
    """An attention function of ours.

    replaced: the name of the attention that it replaces.
    """

    replaced: str | None = None


class ScaledQueryAttention(Replacement):
    """The model's own attention over queries that were scaled by their position."""

    def __init__(self, scale: QueryScale, own: Any) -> None:
        self.scale, self.own = scale, own

    def __call__(self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=query.device)[None]
        factors = query_scale(self.scale, positions)[:, None, :, None]
        return self.own(module, (query * factors).to(query.dtype), key, *args, **kwargs)


class RecordedAttention(Replacement):
    """The model's own attention; outputs: (B, Q, H, D) per layer, in the order of the layers."""

    def __init__(self, own: Any) -> None:
        self.own = own
        self.outputs: list[torch.Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.own(*args, **kwargs)
        self.outputs.append(output[0])
        return output


class ComparedAttention(Replacement):
    """Recorded outputs, each compared with that of `regions`.

    Every layer gets the input it had when they were recorded, so that rounding errors do not grow from layer to layer.

    difference: the largest distance of any layer, as a share of its output's norm.
    """

    def __init__(self, regions: RegionAttention, outputs: list[torch.Tensor]) -> None:
        self.regions, self.outputs, self.difference = regions, iter(outputs), 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        recorded, (ours, _) = next(self.outputs), self.regions(*args, **kwargs)
        difference = (ours.float() - recorded.float()).norm() / recorded.float().norm().clip(min=1e-12)
        self.difference = max(self.difference, float(difference))
        return recorded, None


class RegionAttention(Replacement):
    """Attention over the regions of a plan, row by row where rows are padded."""

    can_fuse = True
    """Whether kernels can be compiled here; a class attribute, as what fails once fails in the whole process."""

    def __init__(self, plan: Pairwise) -> None:
        self.plan = plan
        self.tables: dict[torch.device, tuple[int, dict[Position, Table]]] = {}
        self.masks: tuple[Any, dict[Region, BlockMask]] = (None, {})

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """(B, H, Q, D) unrotated queries, (B, G, K, D) keys and values, (B, K) padding -> (B, Q, H, D)."""
        unsupported = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
        if unsupported:
            raise ValueError(
                f"{type(module).__name__} attends with {', '.join(unsupported)}, and a Pairwise plan replaces "
                "attention by plain rotated products; give another model or strategy"
            )
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if attention_mask is None:
            return self._attend(query, key, value, scaling).transpose(1, 2).contiguous(), None
        output = query.new_zeros(*query.shape[:3], value.shape[-1])
        before = key.shape[2] - query.shape[2]
        for row, unpadded in enumerate(attention_mask):
            start, stop = _unpadded_range(unpadded)
            begin = max(before, start)
            if stop > begin:
                rows, tokens, queries = slice(row, row + 1), slice(start, stop), slice(begin - before, stop - before)
                states = query[rows, :, queries], key[rows, :, tokens], value[rows, :, tokens]
                output[rows, :, queries] = self._attend(*states, scaling)
        return output.transpose(1, 2).contiguous(), None

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        from rope import fused  # imports torch's compiler, most of a second that only these plans need

        tables = self._tables(key.shape[2], key.device)
        if self.can_fuse and fused.pays(query, key, value):
            try:
                masks = self._masks(query.shape[2], key.shape[2], key.device)
                return fused.attend(query, key, value, self.plan, scaling, tables, masks)
            except fused.NotCompiled as failure:  # for want of a C compiler, say
                RegionAttention.can_fuse = False
                reason = str(failure).strip().partition("\n")[0]
                warnings.warn(
                    f"no fused kernel ({reason}); attention is computed block by block, which is slower", stacklevel=2
                )
        return attend(query, key, value, self.plan, scaling, tables)

    def _tables(self, length: int, device: torch.device) -> dict[Position, Table]:
        # All layers use the same ones, and shorter texts their first rows: those of the longest so far are kept.
        longest, tables = self.tables.get(device, (0, {}))
        if longest < length:
            positions = {position for region in self.plan.regions for position in (region.query, region.key)}
            tables = {each: table(self.plan, each, length, device) for each in positions}
            self.tables[device] = (length, tables)
        return {each: (cos[:length], sin[:length]) for each, (cos, sin) in tables.items()}

    def _masks(self, queries: int, length: int, device: torch.device) -> dict[Region, BlockMask]:
        from rope import fused

        if self.masks[0] != (queries, length, device):
            self.masks = ((queries, length, device), fused.masks(self.plan, queries, length, device))
        return self.masks[1]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: Pairwise,
    scaling: float,
    tables: dict[Position, Table],
) -> torch.Tensor:
    """Causal attention over a plan's regions: one softmax over all of them, in blocks of at most BLOCK_ELEMENTS scores.

    (B, H, Q, D), (B, G, K, D), (B, G, K, D) -> (B, H, Q, D) in the query's dtype, computed in float32.
    """
    batch, heads, queries, width = query.shape
    length, shared = key.shape[2], heads // key.shape[1]
    keys = {position: rotate(key.float(), tables[position]) for position in {region.key for region in plan.regions}}
    values = value.float()
    rows = max(1, min(BLOCK_ROWS, BLOCK_ELEMENTS // (batch * heads * length)))
    output = query.new_empty(batch, heads, queries, value.shape[-1])
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        tokens = range(length - queries + start, length - queries + stop)
        block = query[:, :, start:stop].float() * scaling
        if plan.query_scale is not None:
            block = block * query_scale(plan.query_scale, _tensor(tokens, query.device))[:, None]
        merged = _OnlineSoftmax()
        for region in plan.regions:
            rotated = rotate(block, tuple(part[tokens.start : tokens.stop] for part in tables[region.query]))
            # Heads that share a key are rows of one product, so that no key is repeated.
            folded = rotated.reshape(batch, heads // shared, shared * (stop - start), width)
            merged.add(folded, keys[region.key], values, region, tokens)
        output[:, :, start:stop] = merged.mean().view(batch, heads, stop - start, -1)
    return output


class _OnlineSoftmax:
    """Softmax-weighted means of values, region by region."""

    def __init__(self) -> None:
        self.parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, region: Region, tokens: range) -> None:
        """(B, G, H / G * R, D) rotated queries of R tokens, all rotated keys and all values."""
        top, bottom = tokens[0], tokens[-1]  # numbers, not tensors: reading those from a GPU would wait for it
        start, stop = max(0, region.first(top)), min(bottom, region.last(bottom)) + 1
        if stop <= start:
            return
        scores = query @ key[:, :, start:stop].transpose(2, 3)
        ragged = scores.view(*scores.shape[:2], -1, len(tokens), stop - start)
        # Only at its two ends does a block's rectangle hold pairs outside of the region.
        for low, high in ((start, region.first(bottom)), (min(top, region.last(top)) + 1, stop)):
            low, high = max(low, start), min(high, stop)
            if low < high:
                columns, row = _tensor(range(low, high), query.device), _tensor(tokens, query.device)[:, None]
                inside = (columns >= region.first(row)) & (columns <= region.last(row)) & (columns <= row)
                ragged[..., low - start : high - start].masked_fill_(~inside, -torch.inf)
        # A row without a pair in the region has only scores of -inf: with a finite peak their weights are 0.
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


def padding(
    batch_size: int,
    kv_length: int,
    q_length: int | None = None,
    q_offset: Any = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    cache_position: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """(B, K) true where a token is no padding; None where none is. Called by transformers before the layers."""
    if mask_function not in (None, causal_mask_function):
        raise ValueError(
            "this model masks more than the future (a sliding window, or several texts in a row), and a Pairwise plan "
            "covers all pairs; give another model or strategy"
        )
    if q_length is None:  # earlier releases of transformers give the positions of the queries instead
        assert cache_position is not None
        q_length, q_offset = len(cache_position), int(cache_position[0])
    if isinstance(q_offset, torch.Tensor) or q_offset + q_length != kv_length:
        raise ValueError(
            "this cache has places that are not filled yet; a Pairwise plan needs one that grows: give a DynamicCache"
        )
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask


def _unpadded_range(unpadded: torch.Tensor) -> tuple[int, int]:
    """The first token of a row that is no padding, and the end of the last one."""
    if unpadded.ndim != 1:
        raise ValueError("this attention mask is of (query, key) pairs; a Pairwise plan takes one of (rows, tokens)")
    tokens = unpadded.nonzero()[:, 0]
    if not len(tokens):
        return 0, 0
    start, stop = int(tokens[0]), int(tokens[-1]) + 1
    if len(tokens) != stop - start:
        raise ValueError("a row has padding between its tokens; give it before or after them")
    return start, stop
