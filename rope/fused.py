"""Attention over a plan's regions, one fused kernel per region, which keeps scores on the chip (flex_attention).

Shapes as in rope/attention.py, whose `attend` is the reference: B batch rows, H heads, G key heads, Q queries, K keys
(the queries are the last of them), D head dimensions, P rotated pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch._dynamo.config
import torch._dynamo.exc
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from rope.pairwise import Pairwise, Position, Region
from rope.rotation import Table, query_scale, rotate

FEWEST_QUERIES = 1024
"""With fewer, blocks of scores are small, and no kernel is worth the seconds it takes to compile."""

CHIP = 160 * 1024
"""Bytes of shared memory that torch's choice of tiles may need: an A100 or H100 has them, consumer GPUs 100 KiB."""

ROW, TUNED = 256, (128, 256)
"""Bytes of a head's row that always fit, and head dimensions for which torch chooses smaller tiles."""

BLOCK = 128
"""Queries, and keys, that a kernel computes or skips together: its own default."""

VARIANTS = 64
"""The most kernels compiled in a process, by shape and dtype, one or two per model; torch's own limit is 8."""

NotCompiled = torch._dynamo.exc.TorchDynamoException
"""What torch raises where it cannot compile a kernel."""


def pays(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernel works here, and is faster than blocks of scores: on CUDA, without gradients."""
    training = torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value))
    if not query.is_cuda or training or query.shape[2] < FEWEST_QUERIES:
        return False
    chip = getattr(torch.cuda.get_device_properties(query.device), "shared_memory_per_block_optin", 0)
    return chip >= CHIP and all(_fits(states.shape[-1], value.element_size()) for states in (query, value))


def _fits(width: int, size: int) -> bool:
    return width >= 16 and (width * size <= ROW or width in TUNED)  # tensor cores need 16


def masks(plan: Pairwise, queries: int, length: int, device: torch.device) -> dict[Region, BlockMask]:
    """The mask of every region that has a pair: the last Q of K tokens against all of them."""
    reached = [region for region in plan.regions if region.last(length - 1) >= 0]
    return {region: mask_of(region, queries, length, device) for region in reached}


def mask_of(region: Region, queries: int, length: int, device: torch.device) -> BlockMask:
    """The blocks of a region's pairs, computed from the ends of its rows, without a (Q, K) mask.

    Neither end of a row decreases from one row to the next, and the rows leave no gap between keys. So the first and
    last row of a block determine which blocks of keys have any pair, and which have all of them.
    """
    tokens = torch.arange(length - queries, length, device=device)
    first = region.first(tokens).clip(min=0).int()
    last = torch.minimum(region.last(tokens), tokens).int()
    top = torch.arange(0, queries, BLOCK, device=device)
    bottom = (top + BLOCK - 1).clip(max=queries - 1)
    begin, end = first[top] // BLOCK, last[bottom] // BLOCK + 1
    full, full_end = (first[bottom] + BLOCK - 1) // BLOCK, (last[top] + 1) // BLOCK
    fulls = (full_end - full).clip(min=0)
    ragged = (end - begin).clip(min=0) - fulls
    columns = torch.arange(-(-length // BLOCK), device=device, dtype=torch.int32)
    # Ragged blocks lie on either side of the full ones. Entries beyond their number are never read.
    either = begin[:, None] + columns
    either = either + torch.where(either >= full[:, None], fulls[:, None], 0)

    def inside(b: torch.Tensor, h: torch.Tensor, m: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        # From tensors, not from the region's numbers, so that one kernel works for every region.
        return torch.logical_and(n >= first[m], n <= last[m])

    counts, places = ragged[None, None], either.clip(max=len(columns) - 1)[None, None]
    full_counts, full_places = fulls[None, None], (full[:, None] + columns).clip(max=len(columns) - 1)[None, None]
    return BlockMask.from_kv_blocks(
        counts, places, full_counts, full_places, BLOCK, mask_mod=inside, seq_lengths=(queries, length)
    )


def part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scales: torch.Tensor,
    query_table: Table,
    key_table: Table,
    mask: BlockMask,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One region alone: softmax-weighted means, 0 where a row has no pair, and log-sum-exps, there -inf.

    (B, H, Q, D), two of (B, G, K, D), (Q,) float32 factors on the queries, (Q, P) and (K, P) tables
    -> (B, H, Q, D), (B, H, Q) float32. Products are of the values' dtype: rotations are rounded to it once.
    """
    queries = rotate(query.float() * scales[:, None], query_table).to(value.dtype)
    keys = rotate(key.float(), key_table).to(value.dtype)
    means, aux = flex_attention(
        queries, keys, value, block_mask=mask, scale=1.0, enable_gqa=True, return_aux=AuxRequest(lse=True)
    )
    assert aux.lse is not None
    return means, aux.lse


compiled: Any = torch.compile(part, fullgraph=True)
"""Compiled twice: for the first length, and, once the length changes, for any."""


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: Pairwise,
    scaling: float,
    tables: Mapping[Position, Table],
    masks: Mapping[Region, BlockMask],
) -> torch.Tensor:
    """Causal attention over a plan's regions, computed one by one and merged by their log-sum-exps.

    (B, H, Q, D), (B, G, K, D), (B, G, K, D) -> (B, H, Q, D) in the query's dtype.

    Raises:
        NotCompiled: torch cannot compile the kernel here.

    Source:
        Dong et al. 2024, Flex Attention, https://arxiv.org/abs/2412.05496; merged as Dao 2023, FlashAttention-2,
        https://arxiv.org/abs/2307.08691, merges blocks of keys
    """
    queries, length = query.shape[2], key.shape[2]
    scales = torch.full((queries,), scaling, dtype=torch.float32, device=query.device)
    if plan.query_scale is not None:
        scales = scales * query_scale(plan.query_scale, torch.arange(length - queries, length, device=query.device))
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=VARIANTS):
        parts = []
        for region, mask in masks.items():
            query_table = tables[region.query]
            rows = (query_table[0][-queries:], query_table[1][-queries:])
            parts.append(compiled(query, key, value, scales, rows, tables[region.key], mask))
        # Every query sees itself, so that in no row all are -inf.
        shares = torch.stack([peak for _, peak in parts]).softmax(0)[..., None]
        merged: torch.Tensor = shares[0] * parts[0][0]
        for share, (means, _) in zip(shares[1:], parts[1:], strict=True):
            merged.addcmul_(share, means.float())
    return merged.to(query.dtype)
