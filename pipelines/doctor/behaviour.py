"""Rules about behaviour: what must not change the answers of a right model. A few short forwards each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipelines.doctor.numeric import RUNNING, Built
from pipelines.doctor.rules import NotJudged, RuleMatch, measures

TOKENS = 128
"""Of the text that is scored."""

OFFSETS = (1_000, 8_192, 32_768, 100_000)
"""Positions at which the text begins."""

STEPS = 16
"""Tokens that are decoded one by one."""

TOLERANCE = {"float64": 5e-3, "float32": 5e-3, "float16": 2e-2, "bfloat16": 5e-2}
"""Relative change of the logits that a right model may show. SmolLM2 shows 1.4e-4 in float32 at the farthest offset and
1.3e-2 in bfloat16 at any, random Llamas 6e-4 and 1.5e-2; angles computed in bfloat16 0.4 to 0.76."""

NOISE = 3.0
"""And this many times what the smallest offset shows, where that is more: trained weights round louder than random."""


def _running_type(built: Built) -> str | None:
    """The running type of the model's modules, None where its frequencies never change."""
    types = [module.held.rope_type for module in built.modules]
    return next((kind for kind in types if kind in RUNNING), None)


def _exceeding(
    built: Built,
    changes: Mapping[str, float],
    more: Mapping[str, Any],
    case: str = "",
    noise: float = 0.0,
) -> Iterator[RuleMatch]:
    """A match where a relative change exceeds what rounding explains, or is not a number. more: to show with it."""
    allowed = max(TOLERANCE[str(built.model.dtype).removeprefix("torch.")], NOISE * noise)
    if not all(change <= allowed for change in changes.values()):
        yield RuleMatch({**changes, "allowed": allowed, **more}, case)


def _ids(built: Built, rows: int = 1, seed: int = 0) -> Any:
    """(rows, TOKENS) token ids, the same every time."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    vocabulary = built.model.config.get_text_config().vocab_size
    return torch.randint(0, vocabulary, (rows, TOKENS), generator=generator).to(built.model.device)


def _logits(built: Built, ids: Any, start: int | None = None, **options: Any) -> Any:
    """(rows, tokens, vocabulary) float32 logits; of a text that begins at position `start`, where it is given."""
    import torch

    if start is not None:
        options["position_ids"] = (start + torch.arange(ids.shape[1], device=ids.device))[None].expand(len(ids), -1)
    with torch.no_grad():
        return built.model(input_ids=ids, use_cache=False, **options).logits.float()


def _reset(built: Built) -> None:
    """A forward at position 0, after which modules that remember long texts have forgotten them."""
    _logits(built, _ids(built)[:, :1], 0)


def _change(logits: Any, reference: Any) -> float:
    """Relative difference of logits."""
    return float((logits - reference).norm() / reference.norm().clamp(min=1e-9))


@measures("F01")
def shift_invariance(built: Built) -> Iterator[RuleMatch]:
    if (kind := _running_type(built)) is not None:
        raise NotJudged(f"rope_type {kind} depends on the position by design; F02 and F03 measure its effects")
    ids = _ids(built)
    reference = _logits(built, ids, 0)
    noise = _change(_logits(built, ids, STEPS), reference)
    changes = {f"relative change at +{offset:,}": _change(_logits(built, ids, offset), reference) for offset in OFFSETS}
    yield from _exceeding(built, changes, {f"at +{STEPS}": noise}, noise=noise)


@measures("F02")
def cache_parity(built: Built) -> Iterator[RuleMatch]:
    import torch

    ids, kind = _ids(built)[:, : 2 * STEPS], _running_type(built)
    start = max(0, (built.files.plain_length or 0) - STEPS) if kind else 0
    _reset(built)
    whole = _logits(built, ids, start)[:, STEPS:]
    _reset(built)
    positions = (start + torch.arange(ids.shape[1], device=ids.device))[None]
    logits, cache = [], None
    with torch.no_grad():
        for first, last in [(0, STEPS), *((n, n + 1) for n in range(STEPS, 2 * STEPS))]:
            output = built.model(
                input_ids=ids[:, first:last],
                position_ids=positions[:, first:last],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            logits.append(output.logits.float())
    _reset(built)
    change = {"relative change": _change(torch.cat(logits[1:], dim=1), whole)}
    more = {"decoded from position": start + STEPS} | ({"rope_type": kind} if kind else {})
    yield from _exceeding(built, change, more, case=kind or "")


@measures("F03")
def order_and_batch(built: Built) -> Iterator[RuleMatch]:
    import torch

    ids, kind, limit = _ids(built)[:, :STEPS], _running_type(built), built.files.plain_length or 0
    far = 4 * limit if kind else TOKENS
    worst = {"relative change after a longer text": 0.0, "relative change beside a longer text": 0.0}
    for start in (0, limit) if kind else (0,):
        _reset(built)
        alone = _logits(built, ids, start)
        _logits(built, ids, far)
        after = _logits(built, ids, start)
        _reset(built)
        positions = torch.stack([first + torch.arange(STEPS, device=ids.device) for first in (start, far)])
        beside = _logits(built, torch.cat([ids, ids]), position_ids=positions)[:1]
        _reset(built)
        worst = {
            name: float(np.maximum(before, _change(logits, alone)))  # nan stays
            for (name, before), logits in zip(worst.items(), (after, beside), strict=True)
        }
    yield from _exceeding(built, worst, {"rope_type": kind} if kind else {})


@measures("D01")
def left_padding(built: Built) -> Iterator[RuleMatch]:
    import torch

    ids = _ids(built, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :STEPS] = ids[0, :STEPS] = 0
    _reset(built)
    alone = _logits(built, ids[:1, STEPS:])
    padded = _logits(built, ids, attention_mask=mask)[:1, STEPS:]
    yield from _exceeding(built, {"relative change": _change(padded, alone)}, {"padding": STEPS})


@measures("D02")
def backends(built: Built) -> Iterator[RuleMatch]:
    logits = {}
    for name in ("eager", "sdpa"):
        with _attention(built, name):
            logits[name] = _logits(built, _ids(built))
    yield from _exceeding(built, {"relative change, sdpa from eager": _change(logits["sdpa"], logits["eager"])}, {})


@contextmanager
def _attention(built: Built, name: str) -> Iterator[None]:
    """The model with another attention backend."""
    before = built.model.config._attn_implementation
    try:
        built.model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise NotJudged(f"the model has no {name} attention") from error
    try:
        yield
    finally:
        built.model.set_attn_implementation(before)


@measures("D05")
def causality(built: Built) -> Iterator[RuleMatch]:
    ids = _ids(built)
    changed = ids.clone()
    changed[:, -STEPS:] = _ids(built, seed=1)[:, -STEPS:]
    change = _change(_logits(built, changed)[:, :-STEPS], _logits(built, ids)[:, :-STEPS])
    yield from _exceeding(built, {"relative change": change}, {})
