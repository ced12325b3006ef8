"""Published numbers that follow from formulas alone: each a function of plain arguments, computed from rope."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rope import strategies, theory
from rope.geometry import Geometry, Plan


def smallest_base(length: int, search: str) -> float:
    """search: two_digits, the first of two significant digits; or refined, Su's five ever finer grids."""
    if search == "two_digits":
        return _number(theory.first_base(theory.two_digit_bases(), length))
    return theory.smallest_base(length)


def first_negative(base: float = 10_000.0, **scaling: Any) -> float:
    """Distance at which the long-range sum is first negative."""
    return _number(theory.first_negative(_plan(base=base, **scaling), 2**20))


def critical_dimension(head_dim: int, base: float, trained_length: int) -> float:
    return float(theory.critical_dimension(head_dim, base, trained_length))


def critical_pair(head_dim: int, base: float, trained_length: int) -> float:
    """As LongRoPE2 counts: half of the critical dimension."""
    return critical_dimension(head_dim, base, trained_length) / 2


def attention_factor(**scaling: Any) -> float:
    """On cos and sin."""
    return float(_plan(**scaling).attention_factor)


def correction_range(end: str, truncate: bool = True, **geometry: Any) -> float:
    """end: low or high, a pair counted from 0."""
    whole = Geometry(**{"head_dim": 128, "base": 10_000.0, "trained_length": 4096, **geometry})
    ends = strategies.ramps.correction_range(whole, whole.native(2), 32.0, 1.0, truncate)
    return float(ends[("low", "high").index(end)])


def inverse_frequency(pair: int, **scaling: Any) -> float:
    """Of one pair, radians a token."""
    return float(_plan(**scaling).inv_freq[pair])


def interpolation_divisor(base: float) -> float:
    """What position interpolation's bound divides d max |h| by."""
    return 1 / theory.interpolation_bound(1, base)


def pairs_split(part: str, **scaling: Any) -> float:
    """How many pairs a plan keeps, mixes and divides by the whole factor."""
    native, plan = _plan(**{**scaling, "strategy": "none", "factor": None}), _plan(**scaling)
    stretched = theory.stretches(native, plan)
    unscaled, divided = int((stretched == 1).sum()), int((abs(stretched - scaling["factor"]) < 1e-9).sum())
    return float({"kept": unscaled, "mixed": len(stretched) - unscaled - divided, "divided": divided}[part])


def equivalent_factor(theta: float, base: float = 10_000.0, head_dim: int = 128) -> float:
    """By how much another base slows the last pair: the factor of the interpolation that would."""
    changed = _plan(strategy="base", theta=theta, base=base, head_dim=head_dim)
    return float(theory.stretches(_plan(strategy="none", base=base, head_dim=head_dim), changed)[-1])


def equivalent_base(**scaling: Any) -> float:
    """The plain base that ends at the same last pair."""
    return _number(theory.equivalent_base(_plan(**scaling)))


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _plan(
    strategy: str = "none",
    head_dim: int = 128,
    base: float = 10_000.0,
    trained_length: int = 4096,
    length: int | None = None,
    factor: float | None = None,
    **options: Any,
) -> Plan:
    geometry = Geometry(head_dim, base, trained_length)
    if factor is not None:
        options["factor"] = factor
    return strategies.plan(strategy, geometry, length or trained_length, **options)


DERIVED: Mapping[str, Callable[..., float]] = {
    function.__name__: function
    for function in (
        smallest_base,
        first_negative,
        critical_dimension,
        critical_pair,
        attention_factor,
        correction_range,
        inverse_frequency,
        interpolation_divisor,
        pairs_split,
        equivalent_factor,
        equivalent_base,
    )
}
