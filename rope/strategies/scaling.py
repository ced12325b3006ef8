"""By how much a context is stretched, a plan times its multipliers, and checks that several strategies share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from rope.geometry import Array, Geometry, Plan, check_integer, check_number

RULES = ("natural", "transformers")
"""How a running length becomes a factor: see running_factor."""


def stretch(geometry: Geometry, length: int, factor: float | None) -> float:
    """By how much the context is stretched: `factor` as given, else length / trained_length and at least 1.

    Raises:
        ValueError: length is not a whole number of at least 2, or factor is not None and not a finite number above 1.
    """
    check_integer("length", length, least=2)
    if factor is None:
        return max(1.0, length / geometry.trained_length)
    check_number("factor", factor, above=1, remedy="None takes length / trained_length; to scale nothing, use none")
    return float(factor)


def running_factor(geometry: Geometry, length: int, rule: str, factor: float | None) -> float:
    """The factor of a dynamic strategy, for a sequence that is currently `length` tokens long.

    natural:      max(1, length / trained_length)
    transformers: factor * max(1, length / trained_length) - (factor - 1)

    Raises:
        ValueError: length is no whole number of at least 2, the rule is another, or the factor is below 1.
    """
    check_choice("rule", rule, RULES)
    ratio = stretch(geometry, length, None)
    growth = ratio if factor is None else factor
    check_number("factor", growth, least=1, remedy="1 is the natural rule, None takes length / trained_length")
    if rule == "natural":
        return ratio
    return growth * ratio - (growth - 1)


def scaled(native: Plan, multipliers: Array | float, factor: float | None = None) -> Plan:
    """The native plan with its inverse frequencies multiplied; at a factor of exactly 1 the native plan itself."""
    if factor == 1:
        return native  # itself, so that equal plans are equal bit for bit
    return Plan(tuple((np.array(native.inv_freq) * multipliers).tolist()), native.attention_factor)


def check_bounds(lower_name: str, lower: float, upper_name: str, upper: float) -> None:
    check_number(lower_name, lower, above=0)
    check_number(upper_name, upper, above=0)
    if not (lower >= 1e-12 and upper <= 1e12):
        raise ValueError(f"{lower_name}={lower}, {upper_name}={upper}: give numbers from 1e-12 to 1e12")
    if upper < lower:
        raise ValueError(f"{upper_name}={upper} with {lower_name}={lower}: give {upper_name} of at least {lower_name}")


def check_share(name: str, value: float) -> None:
    check_number(name, value, least=0)
    if value > 1:
        raise ValueError(f"{name}={value!r}: give a finite number of at least 0 and at most 1")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: give one of {', '.join(choices)}")


def divisors(name: str, values: Sequence[float] | None, geometry: Geometry) -> Array:
    """A list of one divisor per rotated pair, as an array.

    Raises:
        ValueError: another number of entries than geometry.pairs, or one that is no finite number above 0.
    """
    numbers: Sequence[Any] = values if isinstance(values, Sequence) and not isinstance(values, str) else ()
    if len(numbers) != geometry.pairs:
        raise ValueError(f"{name} has {len(numbers)} numbers; give {geometry.pairs}, one per rotated pair: its divisor")
    for pair, divisor in enumerate(numbers):
        check_number(f"{name}[{pair}]", divisor, above=0)
    return np.array(numbers, dtype=np.float64)
