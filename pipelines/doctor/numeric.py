"""Numeric rules: what the rotary modules of the built model hold, against a float64 reference from its files."""

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

from pipelines.doctor.files import Files, native
from pipelines.doctor.rules import RULES, NotJudged, RuleMatch, measures
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

SMALLEST = {"float16": 2.0**-25}
"""What a format turns to zero, and by how much it rounds the smallest numbers."""

RUNNING = ("dynamic", "longrope")
"""Types whose frequencies depend on the positions of the forward."""

EXTENSIONS = (2.0, 4.0, 8.0, 16.0, 32.0)
"""Factors that are tried when the held frequencies are identified."""


@dataclass(frozen=True)
class Built:
    """A model built from its files. warned: what transformers warned of meanwhile. refused: why it was not built."""

    files: Files
    model: Any
    warned: tuple[str, ...] = ()
    refused: str = ""

    @cached_property
    def held(self) -> list[RotaryState]:
        """What every rotary module holds. NotJudged where the model has none."""
        from rope import patch  # here, so that the static stage takes no torch

        try:
            return patch.rotary_states(self.model)
        except ValueError as error:
            raise NotJudged(str(error)) from error

    @cached_property
    def modules(self) -> list[RotaryModule]:
        """Every rotary module with as many pairs as the config declares for its layers; N01 tells of the others."""
        geometries = self.files.geometries
        return [
            RotaryModule(held, geometries[held.layer_type], native(geometries[held.layer_type]))
            for held in self.held
            if held.layer_type in geometries and len(held.inv_freq) == geometries[held.layer_type].pairs
        ]

    @cached_property
    def lists(self) -> list[RotaryModule]:
        """These, and what those that change at run time come to for longer texts, such as longrope's second list."""
        from rope import patch

        further = []
        for layers, geometry in self.files.geometries.items():
            lengths = [limit for limit, _ in geometry.natives[1:]]
            lengths += [] if geometry.running is None else [2 * geometry.running.geometry.trained_length]
            kinds = {module.held.rope_type for module in self.modules if module.held.layer_type == layers}
            for length in lengths if kinds & set(RUNNING) else ():
                held = [state for state in patch.rotary_states(self.model, length) if state.layer_type == layers]
                further += [RotaryModule(state, geometry, geometry.native(length), length) for state in held]
        return self.modules + further


@dataclass(frozen=True)
class RotaryModule:
    """What a rotary module holds, the geometry of its layers, and the plan that it should hold.

    length: tokens of the text for which it holds this; None where it always does, or begins with it.
    """

    held: RotaryState
    geometry: Geometry
    plan: Plan
    length: int | None = None

    @property
    def name(self) -> str:
        return self.held.module + (f", for {self.length:,} tokens" if self.length else "")

    @cached_property
    def values(self) -> Array:
        return np.array(self.held.inv_freq, dtype=np.float64)

    @cached_property
    def shares(self) -> Array:
        """Held / declared, pair by pair; 1 where both are 0."""
        return _shares(self.values, np.array(self.plan.inv_freq))

    @property
    def difference(self) -> float:
        """The largest relative difference from the declared frequencies."""
        return float(np.abs(self.shares - 1).max())

    @property
    def rounded(self) -> bool:
        """Whether arithmetic and the format that they are held in explain the difference."""
        return _rounded(self.values, np.array(self.plan.inv_freq), self.held.dtype)

    @property
    def uninitialised(self) -> str:
        """What in the buffer cannot come from any plan; "" where nothing."""
        values, declared = self.values, np.array(self.plan.inv_freq)
        if not np.isfinite(values).all():
            return f"{int((~np.isfinite(values)).sum())} of {len(values)} are not finite"
        if (values < 0).any():
            return f"{int((values < 0).sum())} of {len(values)} are negative"
        if (values == 0).sum() > (declared <= SMALLEST.get(self.held.dtype, 0.0)).sum():
            return f"{int((values == 0).sum())} of {len(values)} are zero"
        if (np.diff(values) > 0).any() and not (np.diff(declared) > 0).any():
            return "they do not decrease"
        return ""

    @property
    def multiplied(self) -> float | None:
        """By what all pairs were multiplied, where even the first turns faster than a radian a token; else None."""
        share, tolerance = float(np.median(self.shares)), ROUNDED.get(self.held.dtype, 1e-4)
        uniform = np.allclose(self.shares, share, rtol=tolerance)
        return share if uniform and share > 1 + tolerance and self.values[0] > 1 + 1e-3 else None

    @property
    def misapplied(self) -> bool:
        """Whether its frequencies are not the declared ones, and no other rule has a name for how."""
        return not (self.rounded or self.uninitialised or self.multiplied)


def build(files: Files, model: Model, dtype: str, device: str) -> Built:
    """Load the model, and collect what transformers warns of.

    Raises:
        Refusal: its weights do not load.
    """
    with collected_warnings() as warned:
        loaded = load.model(model, dtype, device)
    return Built(files, loaded, tuple(warned))


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collects what transformers logs and warns of."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    collector, logger = Collector(logging.WARNING), logging.getLogger("transformers")
    logger.addHandler(collector)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield lines
        lines += [str(warning.message) for warning in caught]
    finally:
        logger.removeHandler(collector)


@measures("W01")
def known_warnings(built: Built) -> Iterator[RuleMatch]:
    cases = RULES["W01"].cases
    for line in dict.fromkeys(built.warned):
        case = next((part for part in cases if part in line), None)
        if case is not None:
            verdict = cases[case]["symptom"].partition(":")[0]
            yield RuleMatch({"verdict": verdict}, case, {"line": line[:160]})


@measures("W02")
def not_built(built: Built) -> Iterator[RuleMatch]:
    if built.refused:
        yield RuleMatch({"model": built.files.name}, values={"reason": built.refused})


@measures("N01")
def not_applied(built: Built) -> Iterator[RuleMatch]:
    geometries = built.files.geometries
    states = ((state.module, state.layer_type, len(state.inv_freq), state.rope_type) for state in built.held)
    for module, layers, pairs, rope_type in dict.fromkeys(states):
        measured = {"module": module, "layers": layers}
        if layers not in geometries:
            yield RuleMatch(measured | {"declared layers": ", ".join(geometries)}, "undeclared")
        elif pairs != geometries[layers].pairs:
            yield RuleMatch(measured | {"pairs (held, declared)": (pairs, geometries[layers].pairs)}, "pairs")
        elif (kind := _running(rope_type)) != (declared := _running(built.files.parameters[layers]["rope_type"])):
            yield RuleMatch(measured | {"at run time (held, declared)": (kind, declared)}, "running")
    there = {state.layer_type for state in built.held}
    used = built.files.text.get("layer_types") or geometries
    for layers in geometries:
        if layers not in there and layers in used:
            yield RuleMatch({"layers": layers, "modules": ", ".join(sorted(there))}, "missing")
    for different in filter(lambda module: module.misapplied, built.lists):
        yield _misapplied(different, built.files)
    yield from _computed_otherwise(built)


def _running(rope_type: str) -> str:
    """How frequencies of this type change while the model runs."""
    return rope_type if rope_type in RUNNING else "no change"


def _misapplied(module: RotaryModule, files: Files) -> RuleMatch:
    held, declared = module.held, files.parameters[module.held.layer_type]
    first = int(np.argmax(np.abs(module.shares - 1) > EXACT))
    factor = f" factor {declared['factor']:g}" if isinstance(declared.get("factor"), (int, float)) else ""
    measured = {
        "module": module.name,
        "layers": held.layer_type,
        "largest difference": module.difference,
        "first wrong pair": first,
        "there (held, declared)": (held.inv_freq[first], module.plan.inv_freq[first]),
        "holds": identify(module.values, module.geometry, files),
    }
    return RuleMatch(
        measured, values={"declared": f"{declared['rope_type']}{factor} over theta {declared['rope_theta']:g}"}
    )


def _computed_otherwise(built: Built) -> Iterator[RuleMatch]:
    """Modules whose forward turns by other angles than the frequencies that they hold."""
    from rope import patch

    length = max(built.files.target or 0, built.files.limit or 0, 2)
    for module, layers, difference in patch.computed_otherwise(built.model, length):
        yield RuleMatch({"module": module, "layers": layers, "difference": difference}, "computed")


@measures("N02")
def changed_after(built: Built) -> Iterator[RuleMatch]:
    for module in built.modules:
        if not module.rounded:
            continue  # another module than the file declares, whatever the config says by now
        try:
            now = native(geometry_of(built.model.config, built.files.trained)[module.held.layer_type])
        except (ValueError, KeyError):
            continue
        if not _alike(now, module.plan):
            declared = dict(getattr(built.model.config.get_text_config(), "rope_parameters", None) or {})
            measured = {
                "model.config says": str(
                    {key: value for key, value in declared.items() if not isinstance(value, list)}
                ),
                "the module holds": identify(module.values, module.geometry, built.files),
            }
            yield RuleMatch(measured)


@measures("N03")
def uninitialised(built: Built) -> Iterator[RuleMatch]:
    for module in built.lists:
        if wrong := module.uninitialised:
            first = (module.held.inv_freq[:4], module.plan.inv_freq[:4])
            yield RuleMatch({"module": module.name, "inv_freq": wrong, "first four (held, declared)": first})


@measures("N04")
def attention_factor(built: Built) -> Iterator[RuleMatch]:
    for module in built.lists:
        held, declared = module.held.attention_factor, module.plan.attention_factor
        if not math.isclose(held, declared, rel_tol=1e-4):
            yield RuleMatch({"module": module.name, "held": held, "declared": declared})


@measures("N05")
def half_precision(built: Built) -> Iterator[RuleMatch]:
    for module in built.modules:
        if module.held.dtype in ROUNDED:
            far = built.files.target or built.files.limit or 0
            angle = far * (module.values - np.array(module.plan.inv_freq))
            off = int((np.abs((angle + np.pi) % (2 * np.pi) - np.pi) > 0.5).sum())
            measured = {
                "module": module.held.module,
                "dtype": module.held.dtype,
                "largest relative error": module.difference,
                f"pairs off by more than 0.5 rad at {far:,}": f"{off} of {len(angle)}",
            }
            yield RuleMatch(measured)


@measures("N06")
def wrong_way(built: Built) -> Iterator[RuleMatch]:
    for module in built.lists:
        share, geometry = module.multiplied, module.geometry
        if share is None or module.uninitialised:
            continue
        measured = {
            "module": module.name,
            "every pair faster by": share,
            "context that looks like the trained one": round(geometry.trained_length / share),
        }
        theta = geometry.base * share ** (geometry.rotated / max(1, geometry.rotated - 2))
        yield RuleMatch(measured, values={"share": share, "theta": theta, "base": geometry.base})


@measures("N07")
def short_table(built: Built) -> Iterator[RuleMatch]:
    tokens = max(built.files.target or 0, built.files.limit or 0)
    for module in built.modules:
        rows = module.held.rows
        if rows is not None and rows < tokens:
            yield RuleMatch({"module": module.held.module, "rows": rows, "tokens": tokens})


def _shares(values: Array, declared: Array) -> Array:
    both_zero = np.where(values == 0, 1.0, np.inf)
    return np.where(declared > 0, values / np.where(declared > 0, declared, 1.0), both_zero)


def _rounded(values: Array, declared: Array, dtype: str) -> bool:
    allowed = ROUNDED.get(dtype, EXACT) * declared + SMALLEST.get(dtype, 0.0)
    return bool((np.abs(values - declared) <= allowed).all())


def _alike(one: Plan, other: Plan) -> bool:
    """Whether two plans that were read are the same, up to rounding."""
    if len(one.inv_freq) != len(other.inv_freq):
        return False
    same = np.allclose(one.inv_freq, other.inv_freq, rtol=1e-4, atol=0.0)
    return same and math.isclose(one.attention_factor, other.attention_factor, rel_tol=1e-4)


def identify(values: Array, geometry: Geometry, files: Files) -> str:
    """The known scaling that gives these frequencies, in words."""
    positive = values[values > 0]
    if len(positive) > 2:
        steps = np.diff(np.log(positive))
        if np.allclose(steps, steps[0], rtol=1e-3):
            # the base to the four digits that rounded frequencies are good for
            base, first = float(f"{math.exp(-steps[0] * geometry.rotated / 2):.4g}"), float(positive[0])
            if abs(first - 1) < 1e-3:
                return f"plain frequencies of theta {base:,.6g}, no scaling"
            return f"linear scaling by {1 / first:.4g} over theta {base:,.6g}"
    for name, plan in _candidates(geometry, files):
        if len(plan.inv_freq) == len(values) and np.allclose(values, plan.inv_freq, rtol=1e-3):
            return name
    return "no known scaling"


def _candidates(geometry: Geometry, files: Files) -> Iterator[tuple[str, Plan]]:
    lengths = dict.fromkeys(filter(None, [files.plain_length, files.limit, 8192, 4096]))
    for base in dict.fromkeys([geometry.base, 1e4, 5e5, 1e6]):
        for length in lengths:
            plain = Geometry(geometry.head_dim, base, length, geometry.partial)
            for kind in ("llama3", "yarn"):
                for factor in EXTENSIONS:
                    name = f"{kind} factor {factor:g} of {length:,} over theta {base:,.6g}"
                    yield name, strategies.plan(kind, plain, length, factor=factor)
    for limit, plan in geometry.natives:
        yield f"the declared scaling for up to {limit:,} tokens", plan
