"""What to try for a target length: candidates with their options computed, what runs them, what they take."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.choices import estimate
from pipelines.doctor.files import Files
from pipelines.records.cells import Cell, Model, Task
from pipelines.records.places import CONF
from pipelines.report import statistics
from pipelines.tasks.text import PYDOC
from rope import dialects
from rope.config import scaled_queries
from rope.geometry import Geometry
from rope.strategies import bounded

UNTUNED, TUNED = "as it is", "after fine-tuning"

OVERSHOOT = (1.0, 2.0, 4.0)
"""Multiples of the factor that are worth a sweep under NTK, whose formula under-states theta: practice for Llama 3 8B
took 3.7 times the formula's at 64k and 12 times at 262k (Gradient's model card; YaRN, 2309.00071, section 3.1)."""


@dataclass(frozen=True)
class Candidate:
    """A strategy for the target.

    options: what the formula gives, as the strategy's options. formula: with its numbers. sweep: values of factor that
    are worth trying; () where there is nothing to tune. when: whether weights must be tuned for it. engines: that can
    run it, with an asterisk where they do otherwise at other lengths. note: a common misunderstanding of it.
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
    config does not say. fits: the largest length that can be scored here. commands: that decide between candidates.
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


def advise(files: Files, model: Model, target: int, holds: int, dtype: str, device: str, text: str = PYDOC) -> Advice:
    """Advice for a model that was found to hold to `holds` tokens."""
    suggested = candidates(files, target, holds)
    name = model.name if (CONF / "model" / f"{model.name}.yaml").is_file() else shlex.quote(model.path)
    if holds != files.global_geometry.trained_length:
        name = f"{name} model.trained_length={holds}"
    shape = estimate.Shape.of(files.config)
    size = estimate.BYTES[dtype]
    cell = Cell(model, "none", (), target, (), Task("perplexity"), "", None, 0, dtype, device)
    room = estimate.capacity(device)
    return Advice(
        target,
        holds,
        target / holds,
        suggested,
        kv_bytes=2.0 * shape.layers * shape.keys * target * size if shape else None,
        weight_bytes=float(shape.parameters * size) if shape else None,
        scoring_bytes=estimate.peak(shape, cell, target, target) if shape else None,
        fits=estimate.largest(shape, cell, room) if shape and room else None,
        dtype=dtype,
        device=device,
        commands=commands(suggested, name, target, holds, device, text),
    )


def candidates(files: Files, target: int, holds: int) -> tuple[Candidate, ...]:
    """The strategies to try, from the plainest on; only the baseline, and string, where the model holds to the target;
    only the baseline where no rotating layer sees beyond what was trained."""
    geometry = files.global_geometry
    s, d, base = target / holds, geometry.rotated, geometry.base
    result = [Candidate("none", "the trained frequencies", UNTUNED)]
    still = [layer for layer in files.layers if not layer.rotates]
    # what changes attention itself must do so in every layer
    alike = len(files.geometries) == 1 and not still and len({layer.window for layer in files.layers}) < 2
    third = holds // 3
    if alike and files.reach is None and target <= holds + third - min(128, third // 4):  # no distance is new
        result.append(
            Candidate(
                "string",
                f"from {third:,} tokens back on, distances as many tokens shorter",
                UNTUNED,
                note="published for needles and RULER in the window that a model claims (2410.18745), not for "
                "perplexity: SmolLM2's grew by 3.4 % at its trained length (docs/strategies.md)",
            )
        )
    if s > 1 and files.reach is None:
        natives = {block["rope_type"] for block in files.parameters.values()} - {"default", "dynamic"}
        on_top = f", on top of the native {', '.join(sorted(natives))}" if natives else ""
        reach = s ** (d / (d - 2)) if d > 2 else s
        result += [
            Candidate(
                "yarn",
                f"factor {s:g}{on_top}; attention factor 0.1 ln(factor) + 1 = {0.1 * math.log(s) + 1:.4g}",
                UNTUNED,
                sweep=(s, 1.5 * s),
                note="some weights want another strategy.attention_factor" + _of_others(files, len(still)),
            ),
            Candidate(
                "ntk",
                f"theta {base:,.0f} x {s:g}^(d/(d-2)) = {base * reach:,.0f}{on_top}",
                UNTUNED,
                sweep=tuple(s * more for more in OVERSHOOT),
                note="acts per frequency pair, not per layer: pair i is slowed by factor^(2i/(d-2)), in every layer "
                "alike",
            ),
            Candidate(
                "dynamic_ntk",
                f"the same for the length at hand; transformers' factor 1 (factor {s:.4g} would be "
                f"{s * s - s + 1:.4g}x)",
                UNTUNED,
                note="not with a KV cache: cached keys keep the old base; vLLM's `dynamic` is a static one",
            ),
            Candidate(
                "linear",
                f"all frequencies / {s:g}{on_top}",
                TUNED,
                note="is position interpolation (2306.15595), the same thing. Llama at 8192 (exllama#118): untuned "
                "perplexity 10.1 against NTK's 5.4, tuned for it 5.8 against 7.5",
            ),
        ]
        if alike:
            result += _of_attention(files, target, holds, "yarn" in natives)
        theta = base * reach**2
        result.append(
            Candidate(
                "base",
                f"theta {theta:,.0f} and up, then continued training (ABF, 2309.16039)",
                TUNED,
                {"theta": float(f"{theta:.3g}")},
            )
        )
    geometries = {
        layers: geometry if bounded(layers) else replace(geometry, trained_length=holds)
        for layers, geometry in files.geometries.items()
    }
    return tuple(replace(candidate, engines=_engines(candidate, files, geometries, target)) for candidate in result)


def _of_others(files: Files, still: int) -> str:
    """What yarn's note says of layers that do not rotate."""
    if not still:
        return ""
    known = files.family is not None and files.family.name == "smollm3"
    published = ", as SmolLM3's authors go from 64k to 128k (Hugging Face's post of July 2025)" if known else ""
    return f"; acts on the {len(files.layers) - still} of {len(files.layers)} layers that rotate{published}"


def _of_attention(files: Files, target: int, holds: int, over_yarn: bool) -> list[Candidate]:
    """What changes attention itself, alone or over yarn. over_yarn: whether the model's own frequencies are yarn's."""
    result = [
        Candidate(
            "self_extend",
            "tokens beyond a window share positions",
            UNTUNED,
            note="changes attention itself: llama.cpp has it as --grp-attn, other engines do not support it",
        ),
        Candidate(
            "dual_chunk",
            "positions begin anew in every chunk"
            + (", over the native yarn: as Qwen2 is served (2407.10671)" if over_yarn else ""),
            UNTUNED,
            note="SmolLM2 at 4 times its length: +0.2 % over cropping, yarn -11.4 % (docs/strategies.md)",
        ),
    ]
    if not over_yarn:
        result.append(
            Candidate(
                "compose",
                "dual_chunk over yarn, as Qwen2 is served (2407.10671, table 12)",
                TUNED,
                {"of": ["yarn", "dual_chunk"]},
                note="SmolLM2, which was not tuned with yarn, at 4 times its length: -16.6 % (docs/strategies.md)",
            )
        )
    if scaled_queries(files.config) is None:
        grown = 1 + 0.1 * math.log(1 + (target - 1) // holds)
        result.append(
            Candidate(
                "temperature",
                f"over yarn, queries growing to {grown:.4g} times, as Ministral 3 was trained (2601.08584)",
                TUNED,
                {"over": "yarn"},
                note="alone it stretches nothing",
            )
        )
    if len(files.layers) >= 4:
        result.append(
            Candidate(
                "nope",
                "every fourth layer without rotation, as SmolLM3 was trained; yarn in the others",
                TUNED,
                {"layers": list(range(3, len(files.layers), 4)), "over": "yarn"},
                note="DroPE (2512.12167) recalibrates without any rotation: recipe=drope_tiny; models/tiny was better "
                "with yarn after as many tokens (docs/training.md)",
            )
        )
    return result


def _engines(candidate: Candidate, files: Files, geometries: Mapping[str, Geometry], target: int) -> tuple[str, ...]:
    engines = []
    for engine in dialects.ENGINES:
        try:
            deployment = dialects.deploy(
                engine, files.config, candidate.strategy, candidate.options, geometries, target
            )
        except ValueError:
            continue
        engines.append(f"{engine}{'*' if deployment.notes else ''}")
    return tuple(engines)


def commands(
    suggested: Sequence[Candidate], name: str, target: int, holds: int, device: str, text: str
) -> tuple[str, ...]:
    """The grids to run: one that decides between the strategies, and one over the factors of the best untuned two."""
    untuned = [candidate for candidate in suggested if candidate.when == UNTUNED]
    start = f"ropewalk grid model={name}"
    end = " cluster=gpu" if device == "cuda" else ""
    own = f" task.text={text}" if text != PYDOC else ""  # a key that passkey does not have
    if len(suggested) == 1:
        return (f"{start} strategy=none length={target} task=perplexity,passkey limit=6{end}",)
    # Both tasks, as perplexity alone does not show retrieval from far back; as many documents as a comparison takes.
    # And cropping: a strategy is of use only where it is better than to throw the far text away.
    limit = statistics.needed(len(untuned))
    lengths = ",".join(map(str, dict.fromkeys([min(holds, target), target])))
    first, *others = (candidate.strategy for candidate in untuned)
    names = ",".join([first, *(["crop"] if target > holds else []), *others])
    decide = f"{start} strategy={names} length={lengths} limit={limit}{end} task="
    factors = [",".join(f"{factor:g}" for factor in c.sweep) for c in untuned if c.strategy == "ntk"]
    sweeps = [
        f"{start} strategy=ntk,yarn factor={values} length={target} task=perplexity limit={limit}{end}{own}"
        for values in factors
    ]
    tasks = [f"perplexity{own}", "passkey"] if own else ["perplexity,passkey"]
    return *(decide + task for task in tasks), *sweeps
