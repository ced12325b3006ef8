"""What to try for a target length: candidates with their options computed, what runs them, what they take."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.choices import estimate
from pipelines.doctor.files import Files
from pipelines.records.cells import Cell, Model, Task
from pipelines.records.places import CONF
from pipelines.report import statistics
from pipelines.tasks.text import PYDOC
from rope import dialects
from rope.geometry import Geometry
from rope.strategies import bounded

UNTUNED, TUNED = "as it is", "after fine-tuning"

OVERSHOOT = (1.0, 2.0, 4.0)
"""Multiples of the factor that are worth a sweep under NTK, whose formula under-states theta: practice for Llama 3 8B
took 3.7 times the formula's at 64k and 12 times at 262k (Gradient's model card; YaRN, 2309.00071, section 3.1)."""


@dataclass(frozen=True)
class Candidate:
    """One strategy for the target.

    options: what the formula gives, in the strategy's words. formula: with its numbers. sweep: values of factor that
    are honestly worth trying; () where there is nothing to tune. when: whether weights must learn it. engines: that can
    say it, with an asterisk where they do otherwise at other lengths. note: what is wrongly believed of it.
    """

    strategy: str
    formula: str
    when: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sweep: tuple[float, ...] = ()
    engines: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Advice:
    """For `target` tokens of a model that holds to `holds`.

    kv_bytes: of a cache of one sequence; scoring_bytes: of one forward that is scored, weights included; None where the
    config does not tell. fits: the largest length that can be scored here. commands: that decide between candidates.
    """

    target: int
    holds: int
    factor: float
    candidates: tuple[Candidate, ...]
    kv_bytes: float | None
    weight_bytes: float | None
    scoring_bytes: float | None
    fits: int | None
    dtype: str
    device: str
    commands: tuple[str, ...]


def of(
    files: Files, model: Model, target: int, holds: int, dtype: str, device: str, word: str, text: str = PYDOC
) -> Advice:
    """Advice for a model that was found to hold to `holds` tokens. word: what names the model on a command line."""
    geometry = files.global_geometry
    if holds != geometry.trained_length:
        word = f"{word} model.trained_length={holds}"
    factor = target / holds
    found = candidates(files, geometry, target, holds)
    shape = estimate.Shape.of(files.config)
    size = estimate.BYTES[dtype]
    cell = Cell(model, "none", (), target, (), Task("perplexity"), "", None, 0, dtype, device)
    room = estimate.capacity(device)
    return Advice(
        target, holds, factor, found,
        kv_bytes=2.0 * shape.layers * shape.keys * target * size if shape else None,
        weight_bytes=float(shape.parameters * size) if shape else None,
        scoring_bytes=estimate.peak(shape, cell, target, target) if shape else None,
        fits=estimate.largest(shape, cell, room) if shape and room else None,
        dtype=dtype, device=device, commands=commands(found, word, target, holds, device, text),
    )  # fmt: skip


def candidates(files: Files, geometry: Geometry, target: int, holds: int) -> tuple[Candidate, ...]:
    """The strategies to try, from the plainest on; only the baseline where the model holds to the target."""
    s, d, base = target / holds, geometry.rotated, geometry.base
    told = [Candidate("none", "the trained frequencies", UNTUNED)]
    if s <= 1:
        return _with_engines(told, files, target, holds)
    on_top = f", on top of the native {kind}" if (kind := _native(files)) else ""
    reach = s ** (d / (d - 2)) if d > 2 else s
    told += [
        Candidate(
            "yarn", f"factor {s:g}{on_top}; cos and sin times 0.1 ln(factor) + 1 = {0.1 * math.log(s) + 1:.4g}",
            UNTUNED, {}, (s, 1.5 * s), note="some weights want another strategy.attention_factor",
        ),
        Candidate(
            "ntk", f"theta {base:,.0f} x {s:g}^(d/(d-2)) = {base * reach:,.0f}{on_top}", UNTUNED,
            {}, tuple(s * more for more in OVERSHOOT),
            note="acts per frequency pair, not per layer: pair i is slowed by factor^(2i/(d-2)), in every layer alike",
        ),
        Candidate(
            "dynamic_ntk", f"the same for the length at hand; transformers' factor 1 (factor {s:.4g} would be "
            f"{s * s - s + 1:.4g}x)", UNTUNED,
            note="not with a KV cache: cached keys keep the old base; vLLM's `dynamic` is a static one",
        ),
        Candidate(
            "linear", f"all frequencies / {s:g}{on_top}", TUNED, {},
            note="is position interpolation (2306.15595): one thing. Llama at 8192 (exllama#118): untuned perplexity "
            "10.1 against NTK's 5.4, tuned for it 5.8 against 7.5",
        ),
    ]  # fmt: skip
    if len(files.geometries) == 1:
        told.append(
            Candidate(
                "self_extend", "tokens beyond a window share positions", UNTUNED,
                note="changes attention itself: llama.cpp has it as --grp-attn, others have no words for it",
            )
        )  # fmt: skip
    told.append(
        Candidate(
            "base", f"theta {base * reach ** 2:,.0f} and up, then continued training (ABF, 2309.16039)", TUNED,
            {"theta": float(f"{base * reach**2:.3g}")},
        )
    )  # fmt: skip
    return _with_engines(told, files, target, holds)


def _native(files: Files) -> str:
    kinds = {one["rope_type"] for one in files.parameters.values()} - {"default", "dynamic"}
    return ", ".join(sorted(kinds))


def _with_engines(told: Sequence[Candidate], files: Files, target: int, holds: int) -> tuple[Candidate, ...]:
    geometries = {
        layers: geometry if bounded(layers) else replace(geometry, trained_length=holds)
        for layers, geometry in files.geometries.items()
    }

    def said(one: Candidate) -> Iterator[str]:
        for engine in dialects.ENGINES:
            try:
                how = dialects.deploy(engine, files.config, one.strategy, one.options, geometries, target)
            except ValueError:
                continue
            yield f"{engine}{'*' if how.notes else ''}"

    return tuple(
        Candidate(
            one.strategy, one.formula, one.when, one.options, one.sweep,
            tuple(said(one)), one.note,
        )
        for one in told
    )  # fmt: skip


def commands(found: Sequence[Candidate], word: str, target: int, holds: int, device: str, text: str) -> tuple[str, ...]:
    """The grids to run: one that decides between the strategies, and one over the factors of the best untuned two."""
    untuned = [one for one in found if one.when == UNTUNED]
    names = ",".join(one.strategy for one in untuned)
    start = f"ropewalk grid model={word}"
    end = " cluster=gpu" if device == "cuda" else ""
    own = f" task.text={text}" if text != PYDOC else ""  # a key that passkey does not have
    if target <= holds:
        return (f"{start} strategy=none length={target} task=perplexity,passkey limit=6{end}",)
    # Both tasks: perplexity alone does not show what is found far back. As many documents as a comparison takes.
    limit = statistics.needed(len(untuned) - 1)
    lengths = ",".join(map(str, dict.fromkeys([holds, target])))
    decide = f"{start} strategy={names} length={lengths} limit={limit}{end} task="
    factors = ",".join(f"{value:g}" for one in found if one.strategy == "ntk" for value in one.sweep)
    sweep = f"{start} strategy=ntk,yarn factor={factors} length={target} task=perplexity limit={limit}{end}{own}"
    tasks = [f"perplexity{own}", "passkey"] if own else ["perplexity,passkey"]
    return *(decide + task for task in tasks), sweep


def word_of(model: Model) -> str:
    """What names a model on a command line: its name in conf/model, or its path."""
    return model.name if (CONF / "model" / f"{model.name}.yaml").is_file() else shlex.quote(model.path)
