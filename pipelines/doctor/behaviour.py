"""Rules about behaviour: what a right model says alike, however it is asked. A few short forwards each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.doctor.numeric import Built
from pipelines.doctor.rules import Finding, NotJudged, rule

TOKENS = 128
"""Of the text that is asked about."""

OFFSETS = (1_000, 8_192, 32_768, 100_000)
"""Positions at which it is made to begin."""

STEPS = 16
"""Tokens that are decoded one by one."""

TOLERANCE = {"float64": 5e-3, "float32": 5e-3, "float16": 2e-2, "bfloat16": 5e-2}
"""Relative change of the logits that a right model may show. SmolLM2 shows 1.4e-4 in float32 at the farthest offset and
1.3e-2 in bfloat16 at any, random Llamas 6e-4 and 1.5e-2; angles computed in bfloat16 0.4 to 0.76."""

NOISE = 3.0
"""And so many times what the smallest offset shows, where that is more: trained weights round louder than random."""

RUNNING = ("dynamic", "longrope")
"""Types whose frequencies depend on the positions of the forward."""


def _kind(built: Built) -> str | None:
    """The running type of the model's modules, None where its frequencies never change."""
    return next((held.rope_type for held, _, _ in built.pairs if held.rope_type in RUNNING), None)


def _tolerance(built: Built) -> float:
    return TOLERANCE[str(built.model.dtype).removeprefix("torch.")]


def _ids(built: Built, rows: int = 1, seed: int = 0) -> Any:
    """(rows, TOKENS) token ids, the same every time."""
    import torch

    chance = torch.Generator().manual_seed(seed)
    vocabulary = built.model.config.get_text_config().vocab_size
    return torch.randint(0, vocabulary, (rows, TOKENS), generator=chance).to(built.model.device)


def _logits(built: Built, ids: Any, start: int | None = None, **more: Any) -> Any:
    """(rows, tokens, vocabulary) float32 logits; of a text that begins at position `start`, where one is given."""
    import torch

    if start is not None:
        more["position_ids"] = (start + torch.arange(ids.shape[1], device=ids.device))[None].expand(ids.shape[0], -1)
    with torch.no_grad():
        return built.model(input_ids=ids, use_cache=False, **more).logits.float()


def _settle(built: Built) -> None:
    """A forward at position 0, after which modules that remember long texts have forgotten them."""
    _logits(built, _ids(built)[:, :1], 0)


def _change(ours: Any, theirs: Any) -> float:
    """Relative difference of logits."""
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-9))


@rule(
    "F01", "behaviour", "error", "the same text at other positions, with other logits",
    "hf#29285, Modalities#462: angles in low precision; RoFormer (2104.09864): scores depend on distances alone",
)  # fmt: skip
def shift_invariance(built: Built) -> Iterator[Finding]:
    if (kind := _kind(built)) is not None:
        raise NotJudged(f"rope_type {kind} depends on the position by design; F02 and F03 tell what comes of it")
    ids = _ids(built)
    here = _logits(built, ids, 0)
    noise = _change(_logits(built, ids, STEPS), here)
    changes = {offset: _change(_logits(built, ids, offset), here) for offset in OFFSETS}
    if not max(changes.values()) <= max(_tolerance(built), NOISE * noise):  # nan is no agreement either
        yield Finding(
            symptom="good at the beginning of a long text, worse the further on",
            measured={f"relative change at +{offset:,}": change for offset, change in changes.items()}
            | {f"at +{STEPS}": noise, "allowed": max(_tolerance(built), NOISE * noise)},
            cause="angles are computed in low precision, or taken from a table that ends",
            fix="float32 positions, frequencies and angles; cast cos and sin last (N05 tells if it is the buffer)",
        )


@rule(
    "F02", "behaviour", "error", "other answers with a KV cache than without",
    "hf#25104, hf#27227, hf#33129: keys that were cached keep the frequencies of a shorter text",
)  # fmt: skip
def cache_parity(built: Built) -> Iterator[Finding]:
    import torch

    ids, kind = _ids(built)[:, : 2 * STEPS], _kind(built)
    start = max(0, (built.files.plain_length or 0) - STEPS) if kind else 0
    _settle(built)
    whole = _logits(built, ids, start)[:, STEPS:]
    _settle(built)
    positions = (start + torch.arange(ids.shape[1], device=ids.device))[None]
    said, cache = [], None
    with torch.no_grad():
        for first, last in [(0, STEPS), *((n, n + 1) for n in range(STEPS, 2 * STEPS))]:
            out = built.model(
                input_ids=ids[:, first:last],
                position_ids=positions[:, first:last],
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            said.append(out.logits.float())
    _settle(built)
    change = _change(torch.cat(said[1:], dim=1), whole)
    if not change <= _tolerance(built):
        trained_so = kind == "longrope"  # its two lists are the checkpoint's own, and nothing is mis-set
        yield Finding(
            level="warning" if trained_so else "",
            symptom="generation drifts from what one forward says",
            measured={"relative change": change, "allowed": _tolerance(built), "decoded from position": start + STEPS}
            | ({"rope_type": kind} if kind else {}),
            cause=f"{kind} changes its frequencies at that length, and cached keys keep the old ones"
            if kind
            else "keys in the cache are not those of a forward without one",
            fix=f"keep prompt and answer on one side of {start + STEPS:,} tokens, or use_cache=False"
            if trained_so
            else "a static plan (yarn, ntk), or use_cache=False"
            if kind
            else "look into the model's cache",
        )


@rule(
    "F03", "behaviour", "error", "answers that depend on what was asked before, or beside it in the batch",
    "hf#25306, hf#46624, hf#27033; lm-eval asks longest first, so every later text gets the longest one's base",
)  # fmt: skip
def order_and_batch(built: Built) -> Iterator[Finding]:
    import torch

    ids, kind, limit = _ids(built)[:, :STEPS], _kind(built), built.files.plain_length or 0
    far = 4 * limit if kind else TOKENS
    worst: dict[str, float] = {}
    for start in (0, limit) if kind else (0,):
        _settle(built)
        alone = _logits(built, ids, start)
        _logits(built, ids, far)
        after = _logits(built, ids, start)
        _settle(built)
        rows = torch.cat([ids, ids])
        positions = torch.stack([first + torch.arange(STEPS, device=ids.device) for first in (start, far)])
        beside = _logits(built, rows, position_ids=positions)[:1]
        _settle(built)
        for name, other in (("after a longer text", after), ("beside a longer text", beside)):
            worst[name] = max(worst.get(name, 0.0), _change(other, alone))
    if not max(worst.values()) <= _tolerance(built):
        yield Finding(
            symptom="results cannot be repeated; scores depend on batch size and order",
            measured={f"relative change {name}": change for name, change in worst.items()}
            | {"allowed": _tolerance(built)} | ({"rope_type": kind} if kind else {}),
            cause="the rotary module keeps, or takes for the whole batch, what the longest text asked for",
            fix="one length a batch and a fresh state for each (ropewalk's grid does), or a static plan",
        )  # fmt: skip


@rule(
    "D01", "behaviour", "error", "other answers with padding on the left: not a matter of RoPE",
    "unsloth#3699, hf#26072, LlamaFactory#7754",
)  # fmt: skip
def left_padding(built: Built) -> Iterator[Finding]:
    import torch

    ids = _ids(built, rows=2)
    pad = STEPS
    mask = torch.ones_like(ids)
    mask[0, :pad] = 0
    ids[0, :pad] = 0
    _settle(built)
    alone = _logits(built, ids[:1, pad:])
    change = _change(_logits(built, ids, attention_mask=mask)[:1, pad:], alone)
    if not change <= _tolerance(built):
        yield Finding(
            symptom="wrong in batches only, more so the shorter the row",
            measured={"relative change": change, "allowed": _tolerance(built), "padding": pad},
            cause="padding is attended to, or positions are counted from it: frequencies have no part in it",
            fix="pass attention_mask, and position_ids made of it; or batch texts of one length",
        )


@rule(
    "D02", "behaviour", "warning", "attention backends that disagree: not a matter of RoPE",
    "hf#41944, hf#36585, hf#30658: SDPA that is not causal gave a *better* perplexity",
)  # fmt: skip
def backends(built: Built) -> Iterator[Finding]:
    ids = _ids(built)
    said = {}
    for name in ("eager", "sdpa"):
        with _attending(built, name):
            said[name] = _logits(built, ids)
    change = _change(said["sdpa"], said["eager"])
    if not change <= _tolerance(built):
        yield Finding(
            symptom="another score with another attn_implementation",
            measured={"relative change, sdpa from eager": change, "allowed": _tolerance(built)},
            cause="one of the two is given another mask, or scales otherwise; the rotation comes before either",
            fix="attn_implementation='eager' until it is mended; compare results of one backend only",
        )


@contextmanager
def _attending(built: Built, name: str) -> Iterator[None]:
    before = built.model.config._attn_implementation
    try:
        built.model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise NotJudged(f"the model has no {name} attention") from error
    try:
        yield
    finally:
        built.model.set_attn_implementation(before)


@rule(
    "D05", "behaviour", "error", "tokens that see what comes after them: not a matter of RoPE",
    "hf#30658: perplexity 2.62 in place of 3.84 without the causal mask",
)  # fmt: skip
def causality(built: Built) -> Iterator[Finding]:
    ids, other = _ids(built), _ids(built, seed=1)
    changed = ids.clone()
    changed[:, -STEPS:] = other[:, -STEPS:]
    change = _change(_logits(built, changed)[:, :-STEPS], _logits(built, ids)[:, :-STEPS])
    if not change <= _tolerance(built):
        yield Finding(
            symptom="perplexity too good to be true, and generation that is nonsense",
            measured={"relative change": change, "allowed": _tolerance(built)},
            cause="attention is not causal",
            fix="check is_causal and the mask of this attention backend; D02 tells whether the other one is right",
        )
