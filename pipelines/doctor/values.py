"""Static rules about the values of a config: factors and lengths, known families, tokenizer, GGUF header."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipelines.doctor import mends
from pipelines.doctor.files import UNLIMITED, Files
from pipelines.doctor.rules import Finding, rule
from rope import strategies
from rope.geometry import Geometry

NATIVE = ("llama3", "yarn", "longrope")
"""Scalings that a checkpoint was trained with, and that are lost when another takes their place."""


def scalings(files: Files, *kinds: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The declared scalings of these types, by layer type; nothing where the config cannot be read (S12 says so)."""
    try:
        found = files.parameters
    except ValueError:
        return
    yield from ((layers, one) for layers, one in found.items() if one["rope_type"] in kinds)


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


@rule(
    "S01", "static", "error", "a scaling that does not say which length it extends",
    "hf#33783, hf#38224; without an original length transformers 5 takes max_position_embeddings, silently",
)  # fmt: skip
def no_original(files: Files) -> Iterator[Finding]:
    for layers, one in scalings(files, *NATIVE):
        raw = files.declared.get(layers, {})
        factor, limit = _number(one.get("factor")), files.limit
        told = raw.get("original_max_position_embeddings") or files.text.get("original_max_position_embeddings")
        if told or not factor or factor <= 1 or not limit:
            continue
        known = files.known_length
        before = known or round(limit / factor)
        extended = known is not None and limit > 1.5 * known
        yield Finding(
            level="error" if extended else "warning",
            symptom="a little worse at every length, as if the scaling were tuned badly",
            measured={"layers": layers, "taken for the original": limit, "probably": before}
            | _changed(files, layers, one, limit, before),
            cause=f"the ramp of {one['rope_type']} is laid for the original length, and none is given",
            fix=f"add original_max_position_embeddings: {before}"
            + ("" if extended else f" (or {limit}, if max_position_embeddings was never raised)"),
            mend=mends.within(original_max_position_embeddings=before) if extended else None,
        )


def _changed(files: Files, layers: str, one: Mapping[str, Any], taken: int, before: int) -> dict[str, Any]:
    """How many frequencies differ between the two readings, and by how much at most."""
    if one["rope_type"] == "longrope":
        return {}
    geometry = files.geometries[layers]
    options = {name: one[name] for name in strategies.options_of(one["rope_type"]) if one.get(name) is not None}
    ours, theirs = (
        np.array(strategies.plan(one["rope_type"], _plain(geometry, length), length, **options).inv_freq)
        for length in (before, taken)
    )
    ratio = theirs / ours
    differ = np.abs(ratio - 1) > 1e-3
    return {"frequencies that differ": f"{int(differ.sum())} of {len(ratio)}", "by up to": _times(ratio)}


def _plain(geometry: Geometry, length: int) -> Geometry:
    return Geometry(geometry.head_dim, geometry.base, length, geometry.partial)


def _times(ratio: Any) -> str:
    worst = float(ratio[np.argmax(np.abs(np.log(ratio)))])
    return f"{max(worst, 1 / worst):.2f}x"


@rule(
    "S02", "static", "warning", "a factor that does not fit the lengths beside it",
    "hf#40320, vllm#56446, NVIDIA-NeMo/Safe-Synthesizer#623: which of the two counts differs by program",
)  # fmt: skip
def factor_against_lengths(files: Files) -> Iterator[Finding]:
    for layers, one in scalings(files, "yarn", "longrope"):
        factor, original = _number(one.get("factor")), one.get("original_max_position_embeddings")
        raw = files.declared.get(layers, {})
        if not factor or factor <= 1 or not original or not files.limit or raw.get("factor") is None:
            continue
        implied = files.limit / original
        if abs(implied - factor) <= 0.01 * factor or not raw.get("original_max_position_embeddings"):
            continue
        raised = "it was not raised with the scaling" if implied == 1 else "one of the three is wrong"
        yield Finding(
            symptom="programs disagree about how long a prompt may be, or about the scaling itself",
            measured={
                "layers": layers, "factor": factor, "max_position_embeddings": files.limit,
                "original_max_position_embeddings": original, "their ratio": implied,
            },
            cause=f"transformers scales by the factor ({factor:g}); vLLM takes prompts of factor x "
            f"original ({factor * original:,.0f}); lm-eval of max_position_embeddings ({files.limit:,}); {raised}",
            fix=f"max_position_embeddings: {factor * original:.0f}, or factor: {implied:g}",
            mend=mends.top(max_position_embeddings=round(factor * original)) if implied == 1 else None,
        )  # fmt: skip


@rule(
    "S04", "static", "error", "a factor that is no stretch: inverted, below 1, or no number",
    "llama.cpp#2530, #2544: --rope-freq-scale 8 for 8x, which must be 0.125; transformers only warns",
)  # fmt: skip
def factor_itself(files: Files) -> Iterator[Finding]:
    for layers, one in files.declared.items():
        kind = one.get("rope_type") or one.get("type") or "default"
        if kind not in ("linear", "dynamic", "yarn", "llama3", "longrope") or "factor" not in one:
            continue
        value = _number(one["factor"])
        if value is None and one["factor"] is None and kind in ("yarn", "longrope"):
            continue  # max_position_embeddings / original, by transformers' own rule
        if value is not None and (value > 1 or (value == 1 and kind in ("dynamic", "longrope"))):
            continue  # of longrope it is only for the attention factor: its lists stretch
        inverse = 1 / value if value and 0 < value < 1 else None
        yield Finding(
            level="warning" if value == 1 else "",
            symptom="nonsense from the first tokens on" if value != 1 else "the scaling does nothing",
            measured={"layers": layers, "rope_type": kind, "factor": one["factor"]},
            cause="factor is wanted length / trained length; below 1 it makes every pair turn faster and the usable "
            "context shrink" if value is not None and value != 1 else "a factor of 1 stretches nothing"
            if value == 1 else "transformers wants a number",
            fix=f"factor: {inverse:g} (llama.cpp: --rope-scale {inverse:g}, which is --rope-freq-scale {value:g})"
            if inverse else "give wanted length / trained length, such as 4.0",
            mend=None if inverse is None else mends.within(factor=inverse),
        )  # fmt: skip


@rule(
    "S05", "static", "warning", "a static factor far larger than the target needs",
    "vllm#18728, sglang#6030, exllamav3#29; Qwen's model cards: factor 2 where 65,536 tokens are typical",
)  # fmt: skip
def oversized(files: Files) -> Iterator[Finding]:
    for layers, one in scalings(files, "yarn", "linear"):
        factor, before = _number(one.get("factor")), files.plain_length
        if files.target is None or not factor or not before or (files.variant and files.variant.scaling == "linear"):
            continue
        needed = max(1.0, files.target / before)
        if factor > math.ceil(needed):
            yield Finding(
                symptom="short prompts became worse; endless loops on them have been seen",
                measured={"layers": layers, "factor": factor, "target": files.target, "target / original": needed},
                cause=f"factor {factor:g} serves {factor * before:,.0f} tokens, and a static scaling costs at every "
                "length below",
                fix=f"factor: {needed:g} unless the checkpoint was fine-tuned with {factor:g}; F06 tells its cost",
            )


@rule(
    "S07", "static", "error", "dynamic NTK that never begins, for max_position_embeddings was raised",
    "LlamaFactory#633, vllm#3892: dynamic reads max_position_embeddings alone; with it raised, nothing is scaled",
)  # fmt: skip
def dynamic_raised(files: Files) -> Iterator[Finding]:
    for layers, _ in scalings(files, "dynamic"):
        raw, limit = files.declared.get(layers, {}), files.limit
        original = raw.get("original_max_position_embeddings") or files.text.get("original_max_position_embeddings")
        known = files.known_length
        before = original or known
        if not limit or not before or limit <= 1.01 * before:
            continue
        yield Finding(
            symptom="as bad beyond the trained length as without any scaling",
            measured={"layers": layers, "max_position_embeddings": limit, "trained": before},
            cause=f"dynamic begins above max_position_embeddings ({limit:,}) and reads no original length; between "
            f"{before:,} and {limit:,} nothing is scaled",
            fix=f"max_position_embeddings: {before}",
            mend=mends.top(max_position_embeddings=before),
        )


@rule(
    "S11", "static", "warning", "a tokenizer that allows fewer tokens than the model, or than the target",
    "vllm recipes#794, ms-swift#1591: some servers take the smaller of the two, or cut the prompt",
)  # fmt: skip
def tokenizer_limit(files: Files) -> Iterator[Finding]:
    limit = _number(files.tokenizer.get("model_max_length"))
    if limit is None or limit >= UNLIMITED or not files.limit:
        return
    wanted = max(files.limit, files.target or 0)
    if limit < wanted:
        yield Finding(
            symptom="`Token indices sequence length is longer than the specified maximum`; prompts cut by some servers",
            measured={"model_max_length": int(limit), "max_position_embeddings": files.limit, "target": files.target},
            cause="tokenizer_config.json has a limit of its own, which truncation=True cuts at",
            fix=f"model_max_length: {wanted} in tokenizer_config.json",
            mend=mends.nothing(),  # fix.py writes tokenizer_config.json anew
        )


@rule(
    "S13", "static", "info", "a rotation that is not over hidden_size / heads dimensions",
    "hf modeling_rope_utils: head_dim x partial_rotary_factor is what rotates, and what formulas must use",
)  # fmt: skip
def odd_rotation(files: Files) -> Iterator[Finding]:
    hidden, heads, own = (files.text.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    try:
        geometry = files.global_geometry
    except ValueError:
        return
    usual = hidden // heads if hidden and heads else None
    if geometry.partial != 1 or (own and usual and own != usual):
        yield Finding(
            symptom="none by itself; calculators that take hidden_size / heads are off",
            measured={"head_dim": geometry.head_dim, "hidden_size / heads": usual, "rotated": geometry.rotated},
            cause="only these dimensions of a head turn",
            fix=f"use d = {geometry.rotated} in every formula (ropewalk does)",
        )


@rule(
    "S15", "static", "info", "a sliding window shorter than the target: no layer sees further back than it",
    "Mistral 7B v0.1 declares 32,768 tokens and a window of 4,096 (transformers' MistralConfig)",
)  # fmt: skip
def sliding_window(files: Files) -> Iterator[Finding]:
    window, wanted = files.text.get("sliding_window"), files.target or files.limit
    if files.text.get("use_sliding_window") is False or not window or not wanted or window >= wanted:
        return
    kinds = files.text.get("layer_types")
    if kinds and any("full" in kind for kind in kinds):
        return
    yield Finding(
        symptom="flat perplexity far beyond the trained length, and nothing found that lies further back",
        measured={"sliding_window": window, "target": wanted},
        cause=f"every layer attends to the last {window:,} tokens; no frequency scaling makes it see more",
        fix="judge by retrieval (task=passkey), not by perplexity",
    )


@rule(
    "S16", "static", "error", "llama3's bounds in the wrong order",
    "hf _validate_llama3_rope_parameters, which warns only",
)  # fmt: skip
def bounds(files: Files) -> Iterator[Finding]:
    for layers, one in scalings(files, "llama3"):
        low, high = _number(one.get("low_freq_factor")), _number(one.get("high_freq_factor"))
        if low is None or high is None or high <= low:
            yield Finding(
                symptom="a jump in the frequencies: wrong at every length",
                measured={"layers": layers, "low_freq_factor": low, "high_freq_factor": high},
                cause="the ramp runs from low_freq_factor up to high_freq_factor rotations",
                fix="low_freq_factor: 1.0, high_freq_factor: 4.0 (as all Llamas have)",
                mend=mends.within(low_freq_factor=1.0, high_freq_factor=4.0),
            )


@rule(
    "P02", "static", "error", "a GGUF file whose scaling transformers does not read",
    "llama.cpp#8676, #2772, #13331; transformers' integrations/ggml.py maps rope.freq_base and no scaling",
)  # fmt: skip
def gguf_scaling(files: Files) -> Iterator[Finding]:
    if files.header is None:
        return
    declared = {key: value for key, value in files.header.keys.items() if ".rope.scaling." in key}
    factors = [name for name in files.header.tensors if name.startswith("rope_f")]
    kind = files.header.value("rope.scaling.type")
    if factors or kind not in (None, "none"):
        lost = bool(factors) and not files.header.rope_freqs
        yield Finding(
            level="error" if lost else "warning",
            symptom="fine in llama.cpp"
            + ("" if lost else " and in a grid, which adds it")
            + "; loaded by transformers"
            + (", as by a grid," if lost else "")
            + " garbage on long texts",
            measured={**declared, **({"tensors": factors} if factors else {})},
            cause="the scaling lies in "
            + (f"the tensor {factors[0]}" if factors else "header keys")
            + ", which transformers leaves out when it converts the file",
            fix="measure the original folder (config.json with its rope_scaling), or give the scaling as a strategy"
            if lost
            else "the original folder, or the copy that ropewalk export strategy=none --to transformers makes",
        )


@rule(
    "E04", "static", "warning", "a task that cannot tell about long context",
    "lm-eval#2467, #1642: wikitext is scored in disjoint windows; arXiv 2410.23771 on perplexity's blind spot",
)  # fmt: skip
def short_task(files: Files) -> Iterator[Finding]:
    if "wikitext" in files.task:
        yield Finding(
            symptom="perplexity falls with every longer max_length, so that every scaling seems to work",
            measured={"task": files.task, "windows": "disjoint, each with 1 token of context"},
            cause="a longer window only means fewer cold starts; word_perplexity divides by words of the original text "
            "and has no axis of position: wikitext word perplexity does not measure long context",
            fix="task=perplexity (NLL by position on documents of the full length) and task=passkey",
        )
