"""Hidden states -> logits -> log-probabilities of the wanted tokens; n scored tokens, V vocabulary."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import torch

HEAD_ELEMENTS = 2**25
"""Logits that are held at once: 128 MiB in float32."""

CPU_ELEMENTS, KERNEL_ELEMENTS = 2**22, 2**26
"""The same on a CPU, where what was just written is still in its cache, and where a kernel reads them as they are, so
that there are no others in float32."""

_reasons: dict[tuple[torch.device, torch.dtype], str] = {}
"""Why the kernel is not taken here; "" where it is."""


def scaled(logits: torch.Tensor, scale: float, cap: float | None) -> torch.Tensor:
    """(n, V) logits of a head -> float32, with the scale and the soft cap that the config asks for."""
    logits = logits.float()
    if scale != 1.0:
        logits = logits * scale
    if cap:
        logits = torch.tanh(logits / cap) * cap
    return logits


def softmax() -> ModuleType:
    """The kernel's file, loaded where it is wanted: Triton takes its time, and is not on every system."""
    return importlib.import_module("pipelines.tasks.softmax")


def no_kernel(logits: torch.Tensor) -> str:
    """Why log-probabilities of such logits are not taken by a kernel (pipelines/tasks/softmax.py); "" where they are.

    Found out once for a device and dtype, on logits as given.
    """
    if not logits.is_cuda:
        return "it is for GPUs"
    place = (logits.device, logits.dtype)
    if place not in _reasons:
        _reasons[place] = _tried(logits)
    return _reasons[place]


def _tried(logits: torch.Tensor) -> str:
    wanted = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    try:
        terms, _ = softmax().likelihoods(logits, wanted)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of many kinds: no Triton, no C compiler, a device that Triton does not know, ...
        return " ".join(str(error).split())[:200] or type(error).__name__
    exact = logits.double().log_softmax(1)[:, 0]
    return "" if torch.allclose(terms.double(), exact, rtol=1e-5, atol=1e-5) else "it computes something else"


def wake() -> None:
    """Have the kernel compiled, which takes seconds, where this process may use a GPU."""
    if torch.cuda.is_available():
        no_kernel(torch.ones(2, 4096, device="cuda", dtype=torch.bfloat16))


def rows_of(vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows of logits to hold at once."""
    elements = CPU_ELEMENTS if device.type == "cpu" else HEAD_ELEMENTS
    if device.type == "cuda" and not no_kernel(torch.ones(2, vocabulary, dtype=dtype, device=device)):
        elements = KERNEL_ELEMENTS
    return max(1, elements // vocabulary)


def likelihoods(
    logits: torch.Tensor, wanted: torch.Tensor, asked: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(n, V) logits, (n,) token ids -> (n,) log-probabilities; and, if asked, whether all of them are the likeliest."""
    if not no_kernel(logits):
        terms, likeliest = softmax().likelihoods(logits, wanted)
        return terms, likeliest.all()
    logits = logits.float()
    terms = logits.log_softmax(1).gather(1, wanted[:, None])[:, 0]
    return terms, (logits.argmax(1) == wanted).all() if asked else None


@torch.no_grad()
def score(
    states: torch.Tensor,
    target: list[int],
    head: tuple[Any, float, float | None] | None,
    rows: int,
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], bool]:
    """(n, H) hidden states, or (n, V) logits, and n token ids -> (n,) log-probabilities, and whether all of them are
    the likeliest; so many rows at a time.

    head: what makes logits of states, their scale and soft cap; None where they are logits.
    """
    wanted = torch.from_numpy(np.array(target)).to(states.device)  # torch reads a list ten times as slowly
    give, scale, cap = head or (lambda logits: logits, 1.0, None)
    terms, greedy, asked = [], [], True
    for part, ids in zip(torch.split(states, rows), torch.split(wanted, rows), strict=True):
        logits = give(part)
        if scale != 1.0 or cap:
            logits = scaled(logits, scale, cap)
        likely, right = likelihoods(logits, ids.to(logits.device), asked)
        terms.append(likely)
        if right is not None:
            greedy.append(right)
            # Nothing is likelier than all of them once one is not; of a GPU that is not asked before the end.
            asked = right.is_cuda or bool(right)
    return torch.cat(terms).cpu().numpy(), bool(torch.stack(greedy).all())


@torch.no_grad()
def reach(model: Any, vocabulary: int, scale: float, cap: float | None) -> tuple[str, str]:
    """How to get logits: by decoder and head one by one, if these say of eight tokens what the model says."""
    ids = torch.arange(8, device=model.device)[None] % vocabulary
    try:
        theirs = model(input_ids=ids, use_cache=False, logits_to_keep=4).logits[0].float()
        fallback = "logits_to_keep" if theirs.shape[0] == 4 else "full"
    except (TypeError, ValueError):
        theirs, fallback = model(input_ids=ids, use_cache=False).logits[0].float(), "full"
    try:
        states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        ours = scaled(model.get_output_embeddings()(states), scale, cap)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        return fallback, f"the model's decoder and head do not answer one by one: {error}"
    ours = ours[-theirs.shape[0] :].to(theirs.device)
    if ours.shape != theirs.shape:
        return fallback, f"the head gives {ours.shape[-1]} logits a token and the model {theirs.shape[-1]}"
    # Half precision rounds scale and cap in the model itself, which `scaled` does in float32.
    exact = model.dtype in (torch.float32, torch.float64)
    off = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
    if off > (1e-4 if exact else 3e-2):
        return fallback, f"the model does more to its logits than its head, scale and soft cap (off by {off:.1%})"
    return "chunked", ""
