"""Hidden states -> logits -> log-probabilities of the wanted tokens; n scored tokens, V vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rope.compiled import Compiled

COMPILED_ELEMENTS = 2**28
"""Logits that are held at once where a text is long enough for compiled code: that reads them once, as they are."""


def scaled(logits: torch.Tensor, scale: float, cap: float | None) -> torch.Tensor:
    """(n, V) logits of a head -> float32, with the scale and the soft cap that the config asks for."""
    logits = logits.float()
    if scale != 1.0:
        logits = logits * scale
    if cap:
        logits = torch.tanh(logits / cap) * cap
    return logits


def likelihoods(
    logits: torch.Tensor, wanted: torch.Tensor, scale: float, cap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, V) logits of a head, (n,) token ids -> (n,) log-probabilities, and whether all of them are the likeliest."""
    logits = scaled(logits, scale, cap)
    return logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1), (logits.argmax(1) == wanted).all()


_compiled_likelihoods = Compiled(likelihoods)


@torch.no_grad()
def score(
    states: torch.Tensor,
    target: list[int],
    head: tuple[Any, float, float | None] | None,
    rows: int,
    *,
    compiled: bool = False,
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], bool]:
    """(n, H) hidden states, or (n, V) logits, and n token ids -> (n,) log-probabilities, and whether all of them are
    the likeliest; so many rows at a time.

    head: what makes logits of states, their scale and soft cap; None where they are logits.
    """
    wanted = torch.tensor(target, device=states.device)
    give, scale, cap = head or (lambda logits: logits, 1.0, None)
    terms, greedy = [], []
    for part, ids in zip(torch.split(states, rows), torch.split(wanted, rows), strict=True):
        logits = give(part)
        likely, right = (_compiled_likelihoods if compiled else likelihoods)(logits, ids.to(logits.device), scale, cap)
        terms.append(likely)
        greedy.append(right)
    return torch.cat(terms).cpu().numpy(), all(map(bool, greedy))


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
