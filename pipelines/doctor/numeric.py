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

EXTENSIONS = (2.0, 4.0, 8.0, 16.0, 32.0)
"""Factors that are tried when the held frequencies are identified."""


@dataclass(frozen=True)
class Built:
    """A model built from its files. warned: what transformers warned of meanwhile."""

    files: Files
    model: Any
    warned: tuple[str, ...] = ()

    @cached_property
    def modules(self) -> list[RotaryModule]:
        """Every rotary module of the layer types that the config declares."""
        from rope import patch  # here, so that the static stage takes no torch

        geometries = self.files.geometries
        modules = [
            RotaryModule(holding, geometries[holding.layer_type], native(geometries[holding.layer_type]))
            for holding in patch.rotary_states(self.model)
            if holding.layer_type in geometries
        ]
        if not modules:
            raise NotJudged("no rotary module holds the layer types that the config declares")
        return modules


@dataclass(frozen=True)
class RotaryModule:
    """What a rotary module holds, the geometry of its layers, and the plan that it should hold."""

    held: RotaryState
    geometry: Geometry
    plan: Plan

    @cached_property
    def values(self) -> Array:
        return np.array(self.held.inv_freq, dtype=np.float64)

    @cached_property
    def shares(self) -> Array:
        """Held / declared, pair by pair; 1 where both are 0."""
        declared = np.array(self.plan.inv_freq)
        both_zero = np.where(self.values == 0, 1.0, np.inf)
        return np.where(declared > 0, self.values / np.where(declared > 0, declared, 1.0), both_zero)

    @property
    def difference(self) -> float:
        """The largest relative difference from the declared frequencies."""
        return float(np.abs(self.shares - 1).max())

    @property
    def rounded(self) -> bool:
        """Whether arithmetic and the format that they are held in explain the difference."""
        return self.difference <= ROUNDED.get(self.held.dtype, EXACT)

    @property
    def uninitialised(self) -> str:
        """What in the buffer cannot come from any plan; "" where nothing."""
        values, declared = self.values, np.array(self.plan.inv_freq)
        if not np.isfinite(values).all():
            return f"{int((~np.isfinite(values)).sum())} of {len(values)} are not finite"
        if (values < 0).any():
            return f"{int((values < 0).sum())} of {len(values)} are negative"
        if (values == 0).sum() > (declared == 0).sum():
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

    def changed_after(self, built: Built) -> bool:
        """Whether the model's own config now declares what the module does not hold."""
        try:
            now = native(geometry_of(built.model.config, built.files.trained)[self.held.layer_type])
        except (ValueError, KeyError):
            return False
        if len(now.inv_freq) != len(self.values):
            return False
        return RotaryModule(self.held, self.geometry, now).difference > ROUNDED.get(self.held.dtype, 1e-4)


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


@measures("N01")
def not_applied(built: Built) -> Iterator[RuleMatch]:
    for module in built.modules:
        if module.uninitialised or module.rounded or module.multiplied or module.changed_after(built):
            continue
        held, declared = module.held, built.files.parameters[module.held.layer_type]
        first = int(np.argmax(np.abs(module.shares - 1) > EXACT))
        factor = f" factor {declared['factor']:g}" if isinstance(declared.get("factor"), (int, float)) else ""
        measured = {
            "module": held.module,
            "layers": held.layer_type,
            "largest difference": module.difference,
            "first wrong pair": first,
            "there (held, declared)": (held.inv_freq[first], module.plan.inv_freq[first]),
            "holds": identify(module.values, module.geometry, built.files),
        }
        yield RuleMatch(
            measured, values={"declared": f"{declared['rope_type']}{factor} over theta {declared['rope_theta']:g}"}
        )


@measures("N02")
def changed_after(built: Built) -> Iterator[RuleMatch]:
    for module in built.modules:
        if module.rounded and module.changed_after(built):
            now = dict(getattr(built.model.config.get_text_config(), "rope_parameters", None) or {})
            measured = {
                "model.config says": str({key: value for key, value in now.items() if not isinstance(value, list)}),
                "the module holds": identify(module.values, module.geometry, built.files),
            }
            yield RuleMatch(measured)


@measures("N03")
def uninitialised(built: Built) -> Iterator[RuleMatch]:
    for module in built.modules:
        if wrong := module.uninitialised:
            first = (module.held.inv_freq[:4], module.plan.inv_freq[:4])
            measured = {"module": module.held.module, "inv_freq": wrong, "first four (held, declared)": first}
            yield RuleMatch(measured)


@measures("N04")
def attention_factor(built: Built) -> Iterator[RuleMatch]:
    for module in built.modules:
        held, declared = module.held.attention_factor, module.plan.attention_factor
        if not math.isclose(held, declared, rel_tol=1e-4):
            yield RuleMatch({"module": module.held.module, "held": held, "declared": declared})


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
    for module in built.modules:
        share, geometry = module.multiplied, module.geometry
        if share is None or module.uninitialised:
            continue
        measured = {
            "module": module.held.module,
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
