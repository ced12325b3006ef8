"""What a search chooses from: ranges of a strategy's options, and lists of a divisor a pair.

On a command line a range is LOW..HIGH, and alternatives are A,B. A range that begins above 0 is searched by ratios
(on a log scale), another by differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipelines.records.cells import Refusal
from pipelines.records.refusal import suggestion
from rope import strategies, theory
from rope.geometry import Geometry

Values = Mapping[str, Any]
"""One point of a space: what each dimension has there, by its name."""

LISTS_FROM = ("linear", "ntk", "yarn")
"""The strategies whose divisors a search of lists begins with, and with which its best is compared."""

OPEN = ("options", "layers", "knots")
"""Options that hold others, which are named with a dot: options.beta_fast, layers.0-3, knots.15."""

BY_LAYER = ("layers", "knots")
"""Those of them whose names are layers, and values factors."""


@dataclass(frozen=True)
class Dimension:
    """One thing that is chosen: a number from low to high, or one of the choices.

    name: the option, without `strategy.`; log: searched by ratios.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    choices: tuple[Any, ...] = ()

    def rounded(self, value: Any) -> Any:
        """A number to four digits; a choice as it is."""
        if self.choices:
            return value
        return round(value) if self.whole else float(f"{min(max(value, self.low), self.high):.4g}")

    def holds(self, value: Any) -> bool:
        return value in self.choices if self.choices else bool(self.low <= value <= self.high)

    @property
    def text(self) -> str:
        """The range as the command line has it."""
        if not self.choices:
            return f"{self.low:.4g}..{self.high:.4g}"
        return ",".join(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in self.choices)


@dataclass(frozen=True)
class Curve:
    """Lists of a divisor a pair, fastest first, as LongRoPE constrains them: none below `least`, none decreasing.

    From the critical pair on, the divisor is at least `factor`, so that no pair beyond it meets an angle that training
    did not have; which pair that is, is searched too (LongRoPE2, https://arxiv.org/abs/2502.20082). Between the knots,
    the first pair, a third and two thirds of the way to the critical pair, that pair, and the last, the logarithm of
    the divisor runs straight, as under ntk. The paper moves every divisor by itself, in steps of 0.01 and with
    hundreds of trials (LongRoPE, https://arxiv.org/abs/2402.13753); six numbers take dozens.

    slowest: divisor of the last pair. Each share is that of the logarithm at the knot to its right; `share_critical`
    that of what lies between factor and slowest.
    """

    option: str
    pairs: int
    factor: float
    least: float
    most: float

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        lowest = self.factor if self.least <= self.factor < self.most else self.least
        shares = ("share_first", "share_third", "share_two_thirds", "share_critical")
        return (
            Dimension(f"{self.option}.critical", min(2, self.pairs - 1), self.pairs - 1, whole=True),
            Dimension(f"{self.option}.slowest", lowest, self.most, log=True),
            *(Dimension(f"{self.option}.{share}", 0.0, 1.0) for share in shares),
        )

    def divisors(self, values: Values) -> tuple[float, ...]:
        """The list at one point: (pairs,) numbers."""
        critical, slowest, first, third, two_thirds, share = (values[dimension.name] for dimension in self.dimensions)
        last = math.log(slowest / self.least)
        floor = min(math.log(max(self.factor / self.least, 1.0)), last)
        heights = [floor + share * (last - floor)]
        for lower in (two_thirds, third, first):
            heights.insert(0, lower * heights[0])
        knots = [*self._knots(critical), self.pairs - 1][: 4 if critical == self.pairs - 1 else 5]
        logs = np.interp(np.arange(self.pairs), knots, [*heights, last][: len(knots)])
        return tuple(max(self.least, round(self.least * math.exp(log), 4)) for log in logs)

    def nearest(self, divisors: np.ndarray[Any, Any]) -> dict[str, Any]:
        """The point whose list is nearest to these divisors, at the knots."""
        logs = np.log(np.clip(divisors, self.least, self.most) / self.least)
        floor = min(math.log(max(self.factor / self.least, 1.0)), float(logs[-1]))
        reached = np.flatnonzero(logs >= floor - 1e-9)
        critical = int(min(max(reached[0] if reached.size else self.pairs - 1, 2), self.pairs - 1))
        first, third, two_thirds, last = (
            float(np.interp(k, np.arange(self.pairs), logs)) for k in self._knots(critical)
        )
        beyond = float(logs[-1]) - floor
        shares = [
            low / high if high > 0 else 0.0 for low, high in ((first, third), (third, two_thirds), (two_thirds, last))
        ]
        values = [critical, self.least * math.exp(logs[-1]), *shares, (last - floor) / beyond if beyond > 1e-9 else 0.0]
        return {
            dimension.name: dimension.rounded(min(max(value, dimension.low), dimension.high))
            for dimension, value in zip(self.dimensions, values, strict=True)
        }

    @staticmethod
    def _knots(critical: int) -> tuple[float, ...]:
        return 0.0, critical / 3, 2 * critical / 3, float(critical)


@dataclass(frozen=True)
class Space:
    """All that is searched of one strategy.

    fixed: options with one value, given by hand. default: the point that is the published defaults, where there is one.
    """

    strategy: str
    dimensions: tuple[Dimension, ...]
    curves: tuple[Curve, ...]
    fixed: Mapping[str, Any]
    default: Values = field(default_factory=dict)

    @property
    def searched(self) -> tuple[Dimension, ...]:
        """Every dimension, those of the lists among them."""
        return (*self.dimensions, *(dimension for curve in self.curves for dimension in curve.dimensions))

    def rounded(self, values: Values) -> dict[str, Any]:
        return {dimension.name: dimension.rounded(values[dimension.name]) for dimension in self.searched}

    def options(self, values: Values) -> dict[str, Any]:
        """The strategy's options at one point."""
        rounded = self.rounded(values)
        if self.default and rounded == self.rounded(self.default):
            return dict(self.fixed)  # not a rounded twin of the default, but the default itself
        chosen: dict[str, Any] = {name: value for name, value in self.fixed.items() if name not in OPEN}
        held = {name: dict(self.fixed.get(name) or {}) for name in OPEN}
        for dimension in self.dimensions:
            head, _, leaf = dimension.name.partition(".")
            if leaf:
                held[head][leaf] = rounded[dimension.name]
            else:
                chosen[head] = rounded[dimension.name]
        chosen |= {name: inside for name, inside in held.items() if inside}
        return chosen | {curve.option: list(curve.divisors(rounded)) for curve in self.curves}

    @property
    def text(self) -> str:
        """Every range as the command line has it."""
        lists = (f"strategy.{curve.option}={curve.least:.4g}..{curve.most:.4g}" for curve in self.curves)
        return " ".join([*(f"strategy.{dimension.name}={dimension.text}" for dimension in self.dimensions), *lists])


def space_of(
    strategy: str,
    fixed: Mapping[str, Any],
    ranges: Mapping[str, str],
    geometry: Geometry,
    length: int,
    layers: int | None = None,
) -> Space:
    """What is searched: the ranges given, or where none is, the usual one of every option that has one.

    fixed: options given one value by hand. ranges: name -> LOW..HIGH or A,B. layers: of the model, where all are of one
    type.

    Raises:
        Refusal: an unknown option, or an empty range; with what is allowed.
    """
    usual = usual_ranges(strategy, geometry, length, layers)
    kinds = strategies.kinds_of(strategy)
    searched = dict(ranges) or {name: text for name, text in usual.items() if name not in fixed}
    if not searched:
        have = (
            f"its options: {', '.join(kinds)}; give LOW..HIGH"
            if kinds
            else "it has no options at all, so give another strategy"
        )
        raise Refusal(f"strategy {strategy} has no option with a usual range left to search; {have}")
    dimensions, curves = [], []
    for name, text in searched.items():
        kind = _kind(strategy, name, fixed, usual)
        if kind == "list":
            curves.append(_curve(name, text, geometry, length))
        else:
            dimensions.append(_dimension(name, kind, text, usual.get(name)))
    space = Space(strategy, tuple(dimensions), tuple(curves), {n: v for n, v in fixed.items() if n not in searched})
    [first, *_] = [*seeds(space, geometry, length), {}]
    whole = not space.curves and set(first) == {dimension.name for dimension in space.searched}
    return replace(space, default=first) if whole else space


@dataclass(frozen=True)
class _Place:
    """What usual ranges depend on."""

    factor: float
    trained: int
    length: int
    formula: float  # theta by the NTK-aware formula


USUAL: Mapping[str, Callable[[_Place], str]] = {
    "factor": lambda at: f"{max(1.01, at.factor / 2):.4g}..{8 * at.factor:.4g}",
    # practice with frozen models takes 4 to 30 times the formula's
    "theta": lambda at: f"{max(1.01, at.formula / 4):.4g}..{32 * at.formula:.4g}",
    "beta_fast": lambda at: "4..128",
    "beta_slow": lambda at: "0.125..4",
    "low_freq_factor": lambda at: "0.125..4",
    "high_freq_factor": lambda at: "4..128",
    "ramp": lambda at: "index,rotations",
    "truncate": lambda at: "true,false",
    "attention_factor": lambda at: "0.9..1.5",
    "rule": lambda at: "natural,transformers",
    "mixed_b": lambda at: "0.1..2",
    "factors": lambda at: f"1..{4 * at.factor:.4g}",
    "long_factor": lambda at: f"1..{4 * at.factor:.4g}",
    "clip_low_n": lambda at: "2..24",
    "k": lambda at: "0..1",
    "p": lambda at: "0.25..1",
    "cutoff": lambda at: f"{max(2, at.trained // 4)}..{max(at.length, at.trained)}",
    "still": lambda at: "1..8",
    "floor": lambda at: "8..128",
    "window": lambda at: f"{max(1, at.trained // 16)}..{max(2, 5 * at.trained // 8)}",
    "group_size": lambda at: f"2..{max(4, math.ceil(4 * at.factor))}",
    "step": lambda at: "2..64",
    "chunk_size": lambda at: f"{max(2, at.trained // 4)}..{at.trained}",
    "local_window": lambda at: f"{at.trained // 64}..{max(1, at.trained // 5)}",
    "shifted_offset": lambda at: f"{max(4, at.trained // 7)}..{max(8, at.trained // 2)}",
    "local_value": lambda at: f"0..{max(2, at.trained // 14)}",
    "attn_scale": lambda at: "0.01..0.5",
    "softmax_scale": lambda at: "0..1",
    "logn": lambda at: "true,false",
    "clip": lambda at: "true,false",
}
"""What is searched of an option where no range is given; of others, only what is given."""


def usual_ranges(strategy: str, geometry: Geometry, length: int, layers: int | None = None) -> dict[str, str]:
    """The range of every option of a strategy that has a usual one, as the command line takes it; of per_layer, factors
    at the first, the middle and the last of so many layers."""
    factor = max(1.0, length / geometry.trained_length)
    rotated = geometry.rotated
    formula = geometry.base * factor ** (rotated / max(2, rotated - 2))
    at = _Place(factor, geometry.trained_length, length, formula)
    if strategy == "per_layer" and layers is not None and layers > 2:
        most = f"1..{max(1.01, 2 * factor):.4g}"
        return {f"knots.{layer}": most for layer in (0, (layers - 1) // 2, layers - 1)}
    without = {"longrope": "factor", "logn": "factor", "temperature": "factor"}.get(
        strategy
    )  # which sets nothing there that is not searched
    return {name: USUAL[name](at) for name in strategies.options_of(strategy) if name in USUAL and name != without}


def seeds(space: Space, geometry: Geometry, length: int) -> list[dict[str, Any]]:
    """Where a search begins: the published defaults; of lists, those of linear, ntk and yarn; of theta, the formula's.

    A dimension without a default in its range is left to the sampler.
    """
    native = geometry.native(length)
    if space.curves:
        points = []
        for name in reversed(LISTS_FROM):  # the best first as a rule, so that the others are soon left behind
            plan = strategies.plan(name, geometry, length)
            point = {k: v for c in space.curves for k, v in c.nearest(theory.stretches(native, plan)).items()}
            points.append(_within(space, {"attention_factor": plan.attention_factor / native.attention_factor} | point))
        return points
    defaults = strategies.options_of(space.strategy)
    known = {name: value for name, value in defaults.items() if value is not None}
    known["factor"] = max(1.0, length / geometry.trained_length)
    known |= {d.name: known["factor"] for d in space.dimensions if d.name.partition(".")[0] in BY_LAYER}
    if "attention_factor" in defaults:
        plan = strategies.plan(space.strategy, geometry, length)
        known["attention_factor"] = plan.attention_factor / native.attention_factor
    starts = [known]
    if "theta" in defaults:
        formula = geometry.base * known["factor"] ** (geometry.rotated / max(2, geometry.rotated - 2))
        starts += [{"theta": formula}, {"theta": 4 * formula}]
    points = [_within(space, start) for start in starts]
    return [point for number, point in enumerate(points) if point and point not in points[:number]]


def _within(space: Space, point: Mapping[str, Any]) -> dict[str, Any]:
    values = {dimension.name: point.get(dimension.name) for dimension in space.searched}
    return {d.name: values[d.name] for d in space.searched if values[d.name] is not None and d.holds(values[d.name])}


def _kind(strategy: str, name: str, fixed: Mapping[str, Any], usual: Mapping[str, str]) -> str:
    head, _, leaf = name.partition(".")
    kinds = strategies.kinds_of(strategy)
    if head not in kinds:
        hint = suggestion(head, kinds)
        raise Refusal(f"strategy.{name}: {strategy} has no option {head}; {hint}{_allowed(kinds, usual)}")
    if kinds[head] != "mapping":
        if leaf:
            raise Refusal(f"strategy.{name}: {head} of {strategy} holds no other options; {_allowed(kinds, usual)}")
        return kinds[head]
    if head in BY_LAYER and leaf:
        return "number"
    over = fixed.get("over") or strategies.options_of(strategy).get("over", "")
    inside = strategies.kinds_of(over) if isinstance(over, str) and over else {}
    if head != "options" or leaf not in inside or inside[leaf] in ("list", "mapping"):
        raise Refusal(
            f"strategy.{name}: give strategy.options.NAME=LOW..HIGH with an option of {over}: "
            f"{', '.join(inside) or 'it has none'}"
        )
    return inside[leaf]


def _allowed(kinds: Mapping[str, str], usual: Mapping[str, str]) -> str:
    options = [f"strategy.{name}={usual[name]}" if name in usual else f"strategy.{name}" for name in kinds]
    return f"it has {', '.join(options)}" if options else "it has no options at all"


def _dimension(name: str, kind: str, text: str, usual: str | None) -> Dimension:
    key, such = f"strategy.{name}={text}", f", such as {usual}" if usual else ""
    if ".." not in text:
        choices = tuple(dict.fromkeys(_parsed(key, kind, part.strip(), such) for part in text.split(",")))
        if len(choices) < 2:
            raise Refusal(f"{key}: there is nothing to choose; give at least two values, A,B{such}")
        return Dimension(name, choices=choices)
    if kind not in ("number", "whole"):
        raise Refusal(f"{key}: {name} takes no range of numbers; give its alternatives with commas{such}")
    low, high = (_parsed(key, kind, part.strip(), such) for part in text.split("..", 1))
    if not low < high:
        raise Refusal(f"{key}: the range is empty; give LOW..HIGH with LOW below HIGH{such}")
    return Dimension(name, low, high, whole=kind == "whole", log=low > 0)


def _curve(name: str, text: str, geometry: Geometry, length: int) -> Curve:
    such = f", such as {USUAL[name](_Place(max(1.0, length / geometry.trained_length), 0, 0, 0))}"
    bounds = _dimension(name, "number", text, such.removeprefix(", such as "))
    if bounds.choices or bounds.low < 1:
        raise Refusal(f"strategy.{name}={text}: no divisor may be below 1; give LOW..HIGH with LOW of at least 1{such}")
    if geometry.pairs < 4:
        raise Refusal(f"strategy.{name}: this model rotates {geometry.pairs} pairs, too few for a list to have a shape")
    return Curve(name, geometry.pairs, max(1.0, length / geometry.trained_length), bounds.low, bounds.high)


def _parsed(key: str, kind: str, part: str, such: str) -> Any:
    flags = {"true": True, "false": False}
    try:
        if kind == "flag":
            return flags[part.lower()]
        value = {"number": float, "whole": int}.get(kind, str)(part)
        if kind == "number" and not math.isfinite(float(value)):
            raise ValueError(part)
        return value
    except (KeyError, ValueError) as error:
        wanted = {"flag": "true or false", "whole": "a whole number", "number": "a number"}[kind]
        raise Refusal(f"{key}: {part!r} is not {wanted}; give LOW..HIGH or A,B{such}") from error
