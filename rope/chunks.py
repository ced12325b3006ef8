"""Causal attention of the last rows of a text to all of it, by torch's fused kernels: no table of scores is held.

Shapes as in rope/attention.py: H heads, G key heads, Q queries (the last of K keys), D head dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from rope.compiled import Compiled

Part = tuple[torch.Tensor, torch.Tensor]
"""(1, H, Q, D) weighted means of values and (1, H, Q) float32 log-sum-exps of scores."""

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool, float], Part]

WINDOW_ROWS = 1024
"""Queries of a block where a window hides keys: such a block has a mask of its keys."""

BLOCK_ELEMENTS = 2**25
"""The most scores in memory at once where no kernel works."""

_works: dict[tuple[str, torch.dtype, int, int], str] = {}
"""Which kernel works here, by device type, dtype and head dimensions."""


def causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    window: int | None = None,
    *,
    compiled: bool = False,
) -> torch.Tensor:
    """(1, H, Q, D), (1, G, K, D), (1, G, K, D) -> (1, H, Q, D); window: only so many last keys are seen, itself one.

    The keys before the chunk are all seen and those of the chunk causally, so that both parts are what kernels are
    made for; they are merged by their log-sum-exps.

    Source: Dao 2023, FlashAttention-2, https://arxiv.org/abs/2307.08691, merges blocks of keys so
    """
    start = key.shape[2] - query.shape[2]
    if window is not None and window < key.shape[2]:
        return _in_window(query, key, value, scaling, window)
    own, peak = attend(query, key[:, :, start:], value[:, :, start:], True, scaling)
    if not start:
        return own
    before, before_peak = attend(query, key[:, :, :start], value[:, :, :start], False, scaling)
    return (_compiled_merge if compiled else _merge)(own, peak, before, before_peak)


def _merge(one: torch.Tensor, peak: torch.Tensor, other: torch.Tensor, other_peak: torch.Tensor) -> torch.Tensor:
    share = torch.sigmoid(other_peak - peak)[..., None]
    # Products of two dtypes are float32, and no operand is copied into it first.
    return torch.addcmul(other * share, one, 1 - share, out=torch.empty_like(one))


_compiled_merge = Compiled(_merge)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool, scaling: float) -> Part:
    """One part, by the first kernel that works for this device, dtype and head dimension."""
    place = (query.device.type, query.dtype, query.shape[-1], value.shape[-1])
    if place in _works:
        return KERNELS[_works[place]](query, key, value, is_causal, scaling)
    for name in _candidates(query):
        try:
            part = KERNELS[name](query, key, value, is_causal, scaling)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError):  # not for this dtype or width
            continue
        _works[place] = name
        return part
    raise ValueError(f"no kernel attends to {query.dtype} of {query.shape[-1]} dimensions on {query.device}")


def _candidates(query: torch.Tensor) -> Iterator[str]:
    if query.device.type == "cpu":
        yield "cpu"
    if query.device.type == "cuda":
        if query.dtype in (torch.bfloat16, torch.float16):
            enabled = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
            if enabled and torch.cuda.get_device_capability(query.device) >= (9, 0):
                yield "cudnn"  # the fastest from Hopper on
            yield "flash"
        yield "efficient"
    yield "blocks"


def _cudnn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool, scaling: float) -> Part:
    means, peaks, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, is_causal, False, scale=scaling
    )
    return means, _of_rows(peaks, query)


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool, scaling: float) -> Part:
    means, peaks, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, is_causal, False, scale=scaling
    )
    return means, _of_rows(peaks, query)


def _efficient(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool, scaling: float) -> Part:
    def one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Part:
        means, peaks, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, is_causal, scale=scaling
        )
        return means, _of_rows(peaks, q)

    return _by_key_heads(one, query, key, value)


def _cpu(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool, scaling: float) -> Part:
    def one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Part:
        means, peaks = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, scale=scaling
        )
        return means, _of_rows(peaks, q)

    return _by_key_heads(one, query, key, value)


def _blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool, scaling: float) -> Part:
    """In float32, a block of scores at a time: for what no kernel takes."""

    def one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Part:
        rows, means, peaks = max(1, BLOCK_ELEMENTS // (q.shape[1] * k.shape[2])), [], []
        for start in range(0, q.shape[2], rows):
            block = q[:, :, start : start + rows].float() * scaling
            scores = block @ k.float().transpose(2, 3)
            if is_causal:
                keys = torch.arange(k.shape[2], device=q.device)
                queries = torch.arange(start, start + block.shape[2], device=q.device)
                scores.masked_fill_(keys > queries[:, None], -torch.inf)
            peaks.append(scores.logsumexp(-1))
            means.append((scores - peaks[-1][..., None]).exp() @ v.float())
        return torch.cat(means, 2).to(q.dtype), torch.cat(peaks, 2)

    return _by_key_heads(one, query, key, value)


KERNELS: dict[str, Kernel] = {
    "cudnn": _cudnn,
    "flash": _flash,
    "efficient": _efficient,
    "cpu": _cpu,
    "blocks": _blocks,
}


def _of_rows(peaks: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Log-sum-exps without what a kernel pads them by."""
    return peaks.reshape(*query.shape[:2], -1)[..., : query.shape[2]].float()


def _by_key_heads(
    one: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Part],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> Part:
    """Key heads one by one where several heads share one, for kernels that take as many keys as queries: a view of one
    key is as good as its copies."""
    shared = query.shape[1] // key.shape[1]
    if shared == 1:
        return one(query, key, value)
    means = query.new_empty(*query.shape[:3], value.shape[-1])
    peaks = query.new_empty(query.shape[:3], dtype=torch.float32)
    for head in range(key.shape[1]):
        heads = slice(head * shared, (head + 1) * shared)
        views = (states[:, head : head + 1].expand(-1, shared, -1, -1) for states in (key, value))
        means[:, heads], peaks[:, heads] = one(query[:, heads], *views)
    return means, peaks


def _in_window(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, window: int
) -> torch.Tensor:
    start, shared = key.shape[2] - query.shape[2], query.shape[1] // key.shape[1]
    output = query.new_empty(*query.shape[:3], value.shape[-1])
    for top in range(0, query.shape[2], WINDOW_ROWS):
        bottom = min(top + WINDOW_ROWS, query.shape[2])
        low, high = max(0, start + top - window + 1), start + bottom
        keys = torch.arange(low, high, device=query.device)
        tokens = torch.arange(start + top, high, device=query.device)[:, None]
        seen = (keys <= tokens) & (keys > tokens - window)
        for head in range(key.shape[1]):
            heads = slice(head * shared, (head + 1) * shared)
            keys_seen, values_seen = (
                states[:, head : head + 1, low:high].expand(-1, shared, -1, -1) for states in (key, value)
            )
            output[:, heads, top:bottom] = torch.nn.functional.scaled_dot_product_attention(
                query[:, heads, top:bottom], keys_seen, values_seen, attn_mask=seen, scale=scaling
            )
    return output
