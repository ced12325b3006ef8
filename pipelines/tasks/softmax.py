"""Logits -> log-probabilities of the wanted tokens by a kernel that reads them once from memory; n rows, V vocabulary.

torch's own functions write as many numbers as they read, in float32, and read the logits again to find the likeliest:
34 bytes a logit in bfloat16, of which this reads 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 8192
"""Logits of a row that are read at a time."""


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(logits, wanted, terms, likeliest, width, stride, BLOCK: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    lanes = tl.arange(0, BLOCK)
    peaks = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, width, BLOCK):
        at = start + lanes
        peaks = tl.maximum(peaks, tl.load(logits + at, mask=at < width, other=float("-inf")).to(tl.float32))
    peak = tl.max(peaks, 0)
    sums = tl.zeros((BLOCK,), tl.float32)
    places = tl.full((BLOCK,), width, tl.int32)
    for start in range(0, width, BLOCK):  # the row lies in the cache by now
        at = start + lanes
        block = tl.load(logits + at, mask=at < width, other=float("-inf")).to(tl.float32)
        sums += tl.exp(block - peak)
        places = tl.minimum(places, tl.where(block == peak, at, width))
    target = tl.load(wanted + row)
    own = tl.load(logits + target).to(tl.float32)
    tl.store(terms + row, own - peak - tl.log(tl.sum(sums, 0)))
    tl.store(likeliest + row, tl.min(places, 0) == target)


def likelihoods(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, V) logits, (n,) token ids -> (n,) float32 log-probabilities, and (n,) whether each is the first likeliest."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    terms = torch.empty(len(logits), device=logits.device)
    likeliest = torch.empty(len(logits), dtype=torch.bool, device=logits.device)
    if len(logits):
        width, stride = logits.shape[1], logits.stride(0)
        _kernel[(len(logits),)](logits, wanted, terms, likeliest, width, stride, BLOCK=BLOCK, num_warps=8)
    return terms, likeliest
