"""Numeric rules: what the rotary modules of the built model hold, against a float64 reference made from its files."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.doctor import messages
from pipelines.doctor.files import Files, native
from pipelines.doctor.rules import Finding, NotJudged, rule
from pipelines.models import load
from pipelines.records.cells import Model
from rope import strategies
from rope.config import geometry_of
from rope.geometry import Array, Geometry, Plan

if TYPE_CHECKING:
    from rope.patch import RotaryState

EXACT = 1e-5
"""Relative difference from the reference that float32 arithmetic explains."""

ROUNDED = {"bfloat16": 5e-3, "float16": 1e-3}
"""And that holding the frequencies in half precision explains."""

EXTENSIONS = (2.0, 4.0, 8.0, 16.0, 32.0)
"""Factors that are tried when a recipe is looked for."""


@dataclass(frozen=True)
class Built:
    """A model built from its files. heard: what was warned of meanwhile."""

    files: Files
    model: Any
    heard: tuple[str, ...] = ()

    @cached_property
    def pairs(self) -> list[tuple[RotaryState, Geometry, Plan]]:
        """What each rotary module holds, the geometry of its layers, and what it should hold."""
        from rope import patch  # here, so that listing the rules takes no torch

        geometries = self.files.geometries
        held = [one for one in patch.rotary_states(self.model) if one.layer_type in geometries]
        if not held:
            raise NotJudged("no rotary module holds the layer types that the config declares")
        return [(one, geometries[one.layer_type], native(geometries[one.layer_type])) for one in held]


def build(files: Files, model: Model, dtype: str, device: str) -> Built:
    """Load the model, and hear what transformers says of it.

    Raises:
        Refusal: its weights do not load.
    """
    with listening() as heard:
        loaded = load.model(model, dtype, device)
    return Built(files, loaded, tuple(heard))


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Collects what transformers logs and warns of."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear, logger = Ear(logging.WARNING), logging.getLogger("transformers")
    logger.addHandler(ear)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield heard
        heard += [str(one.message) for one in warned]
    finally:
        logger.removeHandler(ear)


@rule(
    "W01", "numeric", "warning", "warnings of transformers about rope, each translated: harmless or harmful",
    "hf#32916, vllm#6897, lmdeploy#2163: nobody can tell whether `Unrecognized keys` is fatal",
)  # fmt: skip
def warned(built: Built) -> Iterator[Finding]:
    for line, message in messages.translated(built.heard):
        yield Finding(
            level={"harmless": "info", "depends": "warning", "harmful": "error"}[message.verdict],  # type: ignore[arg-type]
            symptom=f"{message.verdict}: `{line[:160]}`",
            measured={"verdict": message.verdict},
            cause=message.means,
            fix=message.fix,
            source=f"transformers' {message.file}",
        )


def _values(held: RotaryState) -> Array:
    return np.array(held.inv_freq, dtype=np.float64)


def _uninitialised(held: RotaryState, plan: Plan) -> str:
    """What in a buffer no plan could have put there; "" where nothing."""
    values, wanted = _values(held), np.array(plan.inv_freq)
    if not np.isfinite(values).all():
        return f"{int((~np.isfinite(values)).sum())} of {len(values)} are not finite"
    if (values < 0).any():
        return f"{int((values < 0).sum())} of {len(values)} are negative"
    if (values == 0).sum() > (wanted == 0).sum():
        return f"{int((values == 0).sum())} of {len(values)} are zero"
    if (np.diff(values) > 0).any() and not (np.diff(wanted) > 0).any():
        return "they do not decrease"
    return ""


def _shares(held: RotaryState, plan: Plan) -> Array:
    """Held / wanted, pair by pair; 1 where both stand still."""
    values, wanted = _values(held), np.array(plan.inv_freq)
    return np.where(wanted > 0, values / np.where(wanted > 0, wanted, 1.0), np.where(values == 0, 1.0, np.inf))


def _off(held: RotaryState, plan: Plan) -> float:
    return float(np.abs(_shares(held, plan) - 1).max())


def _uniform(held: RotaryState, plan: Plan) -> float | None:
    """By what all pairs are faster than they should be, where it is one number; None where it is not, or is 1."""
    shares = _shares(held, plan)
    middle = float(np.median(shares))
    alike = np.allclose(shares, middle, rtol=ROUNDED.get(held.dtype, 1e-4))
    return middle if alike and abs(middle - 1) > ROUNDED.get(held.dtype, 1e-4) else None


def _multiplied(held: RotaryState, plan: Plan) -> float | None:
    """By what all pairs were multiplied, where even the first turns faster than a radian a token; else None."""
    share = _uniform(held, plan)
    return share if share is not None and share > 1 and held.inv_freq[0] > 1 + 1e-3 else None


@rule(
    "N01", "numeric", "error", "frequencies in the model that are not those its files declare",
    "unsloth#6197, mlx-vlm#1710, mlxcel#1355: the scaling is parsed and never applied; fine when short",
)  # fmt: skip
def not_applied(built: Built) -> Iterator[Finding]:
    for held, geometry, plan in built.pairs:
        off = _off(held, plan)
        if _uninitialised(held, plan) or off <= ROUNDED.get(held.dtype, EXACT) or _changed_after(built, held):
            continue
        if _multiplied(held, plan):
            continue
        shares = _shares(held, plan)
        first = int(np.argmax(np.abs(shares - 1) > EXACT))
        yield Finding(
            symptom="short prompts look right, long ones are garbage",
            measured={
                "module": held.module, "layers": held.layer_type, "largest difference": off, "first wrong pair": first,
                "there (held, declared)": (held.inv_freq[first], plan.inv_freq[first]),
                "holds": recipe(_values(held), geometry, built.files),
            },
            cause=f"the file declares {_declared(built.files, held.layer_type)}; the module runs another recipe",
            fix="load with a program that reads this rope_type, or set inv_freq from the config after loading",
        )  # fmt: skip


def _declared(files: Files, layer_type: str) -> str:
    one = files.parameters[layer_type]
    factor = f" factor {one['factor']:g}" if isinstance(one.get("factor"), (int, float)) else ""
    return f"{one['rope_type']}{factor} over theta {one['rope_theta']:g}"


def _changed_after(built: Built, held: RotaryState) -> bool:
    """Whether the model's own config says now what its module does not hold, while the files say what it does."""
    try:
        now = native(geometry_of(built.model.config, built.files.trained)[held.layer_type])
    except (ValueError, KeyError):
        return False
    return _off(held, now) > ROUNDED.get(held.dtype, 1e-4) and len(now.inv_freq) == len(held.inv_freq)


@rule(
    "N02", "numeric", "error", "a config that was changed after the model was built, with no effect",
    "Soup#793, FastChat#2124: `long context enabled`, and inv_freq is byte-identical",
)  # fmt: skip
def changed_after(built: Built) -> Iterator[Finding]:
    for held, geometry, plan in built.pairs:
        if _off(held, plan) <= ROUNDED.get(held.dtype, EXACT) and _changed_after(built, held):
            yield Finding(
                symptom="a scaling was switched on, and long texts are as bad as before",
                measured={
                    "model.config says": geometry_words(built), "the module holds":
                    recipe(_values(held), geometry, built.files),
                },
                cause="rotary modules read the config once, when they are built",
                fix="change the config first, then from_pretrained(..., config=config)",
            )  # fmt: skip


def geometry_words(built: Built) -> str:
    """What the model's own config declares now."""
    declared = getattr(built.model.config.get_text_config(), "rope_parameters", None)
    return str({key: value for key, value in dict(declared or {}).items() if not isinstance(value, list)})


@rule(
    "N03", "numeric", "error", "frequencies that were never initialised",
    "hf#45902, torchtitan#4783: inv_freq is not in the checkpoint, and to_empty() leaves it as memory was",
)  # fmt: skip
def uninitialised(built: Built) -> Iterator[Finding]:
    for held, _, plan in built.pairs:
        wrong = _uninitialised(held, plan)
        if wrong:
            yield Finding(
                symptom="loss or perplexity near random, and no error",
                measured={
                    "module": held.module, "inv_freq": wrong,
                    "first four (held, declared)": (held.inv_freq[:4], plan.inv_freq[:4]),
                },
                cause="the buffer was made on the meta device and never computed",
                fix="compute it anew: module.inv_freq = module.rope_init_fn(config, device)[0], or load with "
                "from_pretrained",
            )  # fmt: skip


@rule(
    "N04", "numeric", "warning", "an attention factor that is not the declared one",
    "vllm#46280, vllm#48351: 1.4159 used where 1.0 is asked; YaRN (2309.00071), section 3.4",
)  # fmt: skip
def attention(built: Built) -> Iterator[Finding]:
    for held, _, plan in built.pairs:
        if not math.isclose(held.attention_factor, plan.attention_factor, rel_tol=1e-4):
            yield Finding(
                symptom="attention a little too sharp or too flat at every length",
                measured={"module": held.module, "held": held.attention_factor, "declared": plan.attention_factor},
                cause="cos and sin are multiplied by another factor than the config asks for; logits by its square",
                fix=f"attention_factor: {plan.attention_factor:g} in the config, spelt so",
            )


@rule(
    "N05", "numeric", "error", "frequencies held in half precision",
    "hf#29285, DeepSpeed#5812, LlamaFactory#2483: model.to(torch.bfloat16) casts the buffer, from_pretrained does not",
)  # fmt: skip
def half_precision(built: Built) -> Iterator[Finding]:
    for held, _, plan in built.pairs:
        if held.dtype in ROUNDED:
            far = built.files.target or built.files.limit or 0
            values, wanted = _values(held), np.array(plan.inv_freq)
            angle = np.abs((far * (values - wanted) + np.pi) % (2 * np.pi) - np.pi)
            yield Finding(
                symptom="good when short, worse the longer the text",
                measured={
                    "module": held.module, "dtype": held.dtype, "largest relative error": _off(held, plan),
                    f"pairs off by more than 0.5 rad at {far:,}": f"{int((angle > 0.5).sum())} of {len(angle)}",
                },
                cause=".to(bfloat16) or .half() on the model casts its buffers too",
                fix="from_pretrained(..., dtype=torch.bfloat16), which leaves inv_freq in float32; or restore it",
            )  # fmt: skip


@rule(
    "N06", "numeric", "error", "all frequencies multiplied by one number: scaling the wrong way round",
    "llama.cpp#2530, mlxcel#1324; the popular snippet that multiplies inv_freq by a scale and calls it dynamic NTK",
)  # fmt: skip
def wrong_way(built: Built) -> Iterator[Finding]:
    for held, geometry, plan in built.pairs:
        share = _multiplied(held, plan)
        if share is None or _uninitialised(held, plan):
            continue
        stretch, d = f"{share:g}", geometry.rotated
        yield Finding(
            symptom="worse from the first hundreds of tokens on; the usable context shrinks",
            measured={
                "module": held.module, "every pair faster by": share,
                "context that looks like the trained one": round(geometry.trained_length / share),
            },
            cause=f"inv_freq was multiplied by {stretch}, and stretching divides. One factor for all pairs is linear "
            "scaling (position interpolation: the same thing), not NTK: that changes theta, so that pair i is slowed "
            "by factor^(2i/(d-2)), pair by pair and not layer by layer (all layers share one table); dynamic means by "
            "the length at hand",
            fix=f"linear: inv_freq / {stretch}; NTK: rope_theta {geometry.base * share ** (d / max(1, d - 2)):,.0f}, "
            f"which is {geometry.base:g} x {stretch}^(d/(d-2)); or strategy=dynamic_ntk",
        )  # fmt: skip


@rule(
    "N07", "numeric", "error", "a table of cosines with fewer rows than the target",
    "vllm#56446, pegainfer#220: a 4096-row table and 40960 tokens admitted, silently",
)  # fmt: skip
def short_table(built: Built) -> Iterator[Finding]:
    wanted = max(built.files.target or 0, built.files.limit or 0)
    for held, _, _ in built.pairs:
        if held.rows is not None and held.rows < wanted:
            yield Finding(
                symptom="an index error, an assertion on the device, or garbage from one position on",
                measured={"module": held.module, "rows": held.rows, "tokens": wanted},
                cause="cosines were computed ahead for fewer positions than are asked for",
                fix=f"build the table for {wanted:,} positions (max_position_embeddings before the model is built)",
            )


def recipe(values: Array, geometry: Geometry, files: Files) -> str:
    """The known recipe that gives these frequencies, in words."""
    speeds = values[values > 0]
    if len(speeds) > 2:
        steps = np.diff(np.log(speeds))
        if np.allclose(steps, steps[0], rtol=1e-3):
            base, first = math.exp(-steps[0] * geometry.rotated / 2), float(speeds[0])
            told = f"plain frequencies of theta {_round(base):,.6g}"
            if abs(first - 1) < 1e-3:
                return f"{told}, no scaling"
            return f"linear scaling by {1 / first:.4g} over theta {_round(base):,.6g}"
    for name, plan in _candidates(geometry, files):
        if len(plan.inv_freq) == len(values) and np.allclose(values, plan.inv_freq, rtol=1e-3):
            return name
    return "no recipe that is known"


def _round(base: float) -> float:
    """A base read from rounded frequencies, to the four digits that they are good for."""
    return float(f"{base:.4g}")


def _candidates(geometry: Geometry, files: Files) -> Iterator[tuple[str, Plan]]:
    bases = dict.fromkeys([geometry.base, 1e4, 5e5, 1e6])
    lengths = dict.fromkeys(filter(None, [files.plain_length, files.limit, 8192, 4096]))
    for base in bases:
        for length in lengths:
            plain = Geometry(geometry.head_dim, base, length, geometry.partial)
            for kind in ("llama3", "yarn"):
                for factor in EXTENSIONS:
                    name = f"{kind} factor {factor:g} of {length:,} over theta {base:,.6g}"
                    yield name, strategies.plan(kind, plain, length, factor=factor)
    for limit, plan in geometry.natives:
        yield f"the declared scaling for up to {limit:,} tokens", plan
