"""In a process of its own: our scorer and lm-eval's as it comes over the same tokens, and what the device can do.

python -m pipelines.bench.scorer OVERRIDE...   # a line of JSON a measurement
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from pipelines.choices.compose import expand
from pipelines.choices.sweep import cell_of
from pipelines.models import load
from pipelines.records.cells import Cell
from pipelines.tasks.scorer import LongLM, quiet
from pipelines.workers.evaluate import PeakMemory, loaded

REPEATS = 3
"""Of which the fastest counts, where one takes less than ENOUGH seconds."""

ENOUGH = 5.0


def main(overrides: list[str]) -> None:
    """Print every measurement as it is made."""
    for row in measured(overrides):
        print(json.dumps(row), flush=True)


def measured(overrides: list[str]) -> Iterator[dict[str, Any]]:
    """The device's ceilings, then each length by both scorers; a scorer that ran out of memory is asked no more.

    Yields {"what": "ceilings", "matmul": FLOP/s, "attention": FLOP/s, ...} and {"what": "scorer", "scorer": "ours" or
    "stock", "length": tokens, "seconds": ..., "bytes": peak, "sum": log-likelihood, "flop": [matmul, attention]};
    instead of the numbers "oom": true.
    """
    cells = {cell.length: cell for cell in map(cell_of, expand(overrides))}
    first = cells[min(cells)]
    lm = loaded(first)
    yield {"what": "ceilings", "device": _device(), "dtype": first.dtype, **ceilings(lm.model, max(cells))}
    with quiet():
        stock = HFLM(pretrained=lm.model, tokenizer=load.tokenizer(first.model), batch_size=1)
    over = set[str]()
    for length in sorted(cells):
        ids = (torch.arange(length + 1) * 7919 % 50021 % lm.vocabulary).tolist()
        ways: dict[str, Callable[[], float]] = {"ours": partial(_ours, lm, ids), "stock": partial(_stock, stock, ids)}
        for name, score in ways.items():
            if name not in over:
                row = timed(score, cells[length])
                over |= {name} if row.get("oom") else set()
                yield {"what": "scorer", "scorer": name, "length": length, "flop": flop(lm.model, length), **row}


def _ours(lm: LongLM, ids: list[int]) -> float:
    lm.max_length = len(ids)
    [answer] = lm._loglikelihood_tokens([(None, ids[:1], ids[1:])], disable_tqdm=True)
    return float(answer[0])


def _stock(stock: HFLM, ids: list[int]) -> float:
    stock._max_length = len(ids)
    [answer] = stock._loglikelihood_tokens([(("", ""), ids[:1], ids[1:])], disable_tqdm=True)
    return float(answer[0])


def timed(score: Callable[[], float], cell: Cell) -> dict[str, Any]:
    """Seconds of the fastest of some calls, peak memory, and what it returned."""
    memory, seconds = PeakMemory(cell.device), list[float]()
    memory.reset()
    try:
        # The first call may compile, or make what later ones find: it is not the only one.
        while len(seconds) < 2 or (len(seconds) < REPEATS and sum(seconds) < ENOUGH):
            start = time.perf_counter()
            value = score()
            seconds.append(time.perf_counter() - start)
    except (torch.OutOfMemoryError, MemoryError):
        torch.cuda.empty_cache()
        return {"oom": True}
    return {"seconds": min(seconds), "bytes": memory.peak(), "sum": value, "repeats": len(seconds)}


def flop(model: Any, length: int) -> list[float]:
    """FLOP of the matrix products and of causal attention, each product counted as two a multiplication."""
    config = model.config.get_text_config()
    layers = model.get_decoder().layers
    weights = sum(parameter.numel() for parameter in layers.parameters() if parameter.ndim > 1)
    head = model.get_output_embeddings().weight.numel()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return [2.0 * (weights + head) * length, 2.0 * len(layers) * heads * width * length * length]


@torch.no_grad()
def ceilings(model: Any, length: int) -> dict[str, float]:
    """FLOP/s of a large matrix product and of causal attention of the model's width, at most 16,384 tokens of it."""
    cuda = model.device.type == "cuda"
    kind = {"device": model.device, "dtype": model.dtype}
    size, config = 8192 if cuda else 1024, model.config.get_text_config()
    left, right = torch.randn(size, size, **kind), torch.randn(size, size, **kind)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    tokens = min(length, 16384)
    query, key, value = (torch.randn(1, heads, tokens, width, **kind) for _ in range(3))
    attend = torch.nn.functional.scaled_dot_product_attention
    return {
        "matmul": 2.0 * size**3 / _fastest(lambda: left @ right, cuda),
        "attention": 2.0
        * heads
        * width
        * tokens**2
        / _fastest(lambda: attend(query, key, value, is_causal=True), cuda),
    }


def _fastest(work: Callable[[], Any], cuda: bool) -> float:
    seconds = list[float]()
    while len(seconds) < 10 and (len(seconds) < 3 or sum(seconds) < 2):
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main(sys.argv[1:])
