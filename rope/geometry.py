"""What a checkpoint was trained with (Geometry) and what its rotary module must hold (Plan)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
"""(pairs,) float64; every array of the mathematics is one."""

ALL_LAYERS = "all"
"""The layer type of a model whose layers share one rotary embedding."""


@dataclass(frozen=True)
class Plan:
    """What one rotary module must hold for one context length.

    inv_freq: (rotated dims / 2,) float64, radians per token.
    attention_factor: multiplies cos and sin alike, so attention logits get its square.
    """

    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.inv_freq or not all(math.isfinite(f) and f >= 0 for f in self.inv_freq):
            raise ValueError("a plan needs finite inverse frequencies of at least 0, one per rotated pair")
        if not (math.isfinite(self.attention_factor) and self.attention_factor > 0):
            raise ValueError(f"attention_factor={self.attention_factor}: give a finite number above 0")

    def changes(self) -> dict[str, Any]:
        """What it does beyond setting frequencies, as plain data."""
        return {}


Plans = tuple[tuple[str, Plan], ...]
"""A plan for every layer type of a model, and for single layers where they have their own: ((layers, plan), ...).

layers: a layer type, or some layers of it by number: `all`, `all[0-7,12]`. Numbers take precedence over their type.
"""


def layers_of(key: str) -> tuple[str, tuple[int, ...] | None]:
    """The layer type that a key of Plans names, and the layer numbers, from 0; None for all layers of the type.

    >>> layers_of("all[0-2,5]")
    ('all', (0, 1, 2, 5))
    """
    layer_type, bracket, numbers = key.partition("[")
    return layer_type, layer_numbers(numbers.removesuffix("]")) if bracket else None


def layer_numbers(text: str) -> tuple[int, ...]:
    """Layer numbers in ascending order, from ranges that include both ends: "0-2,5" is (0, 1, 2, 5).

    Raises:
        ValueError: anything else, or a number that is in it twice.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = (end.strip() for end in part.partition("-"))
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() for end in ends) or int(ends[1]) < int(ends[0]):
            raise ValueError(f"layers {text!r}: give layer numbers and ranges from 0 on, such as 0-7,12")
        if len(ends[1]) > 5:
            raise ValueError(f"layers {text[:60]!r}: no model has that many layers; give numbers up to 99999")
        numbers += range(int(ends[0]), int(ends[1]) + 1)
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"layers {text!r}: a layer is in it twice; name each once")
    return tuple(sorted(numbers))


def check_integer(name: str, value: Any, least: int) -> None:
    """Refuse anything but a whole number of at least `least`, in a sentence (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number of at least {least}")


def check_number(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, remedy: str = ""
) -> None:
    """Refuse anything but a finite number above `above`, or of at least `least`, in a sentence (ValueError)."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (above is not None and value <= above) or (least is not None and value < least):
        bound = f"of at least {least:g}" if above is None else f"above {above:g}"
        raise ValueError(f"{name}={value!r}: give a finite number {bound}{remedy and '; '}{remedy}")


def check_flag(name: str, value: Any) -> None:
    """Refuse anything but true and false, in a sentence (ValueError)."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: give true or false")


def inverse_frequencies(head_dim: int, base: float) -> Array:
    """Inverse frequency of each rotated pair, fastest first.

    inv_freq[i] = base ** (-2 i / head_dim)

    Args:
        head_dim: rotated dimensions per head; even, at least 2.
        base: theta; greater than 1.

    Returns:
        (head_dim / 2,) float64, radians per token, decreasing from 1.

    Raises:
        ValueError: head_dim is odd or below 2, or base is not a finite number above 1.

    Source:
        Su et al. 2021, RoFormer, section 3.2.2, https://arxiv.org/abs/2104.09864
        (transformers computes the same in float32, so its numbers are a rounding away)

    >>> inverse_frequencies(head_dim=4, base=10_000.0)
    array([1.  , 0.01])
    """
    check_integer("head_dim", head_dim, least=2)
    if head_dim % 2:
        raise ValueError(f"head_dim={head_dim}: rotated dimensions come in pairs; give an even number")
    check_number("base", base, above=1)
    return np.asarray(float(base) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim))


class RunTimeScaling(Protocol):
    """A scaling that a checkpoint's code applies while it runs, by the length of the text.

    strategy, options: what it amounts to, on this geometry.
    """

    @property
    def strategy(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Any]: ...

    @property
    def geometry(self) -> Geometry: ...

    def plan(self, length: int) -> Plan:
        """What it comes to for this many tokens."""


@dataclass(frozen=True)
class Geometry:
    """What the rotary embedding of a checkpoint was trained with; one layer type of it where there are several.

    head_dim: dimensions per head; even, at least 2.
    base: theta; greater than 1.
    trained_length: tokens of context seen in training; at least 2.
    partial: share of head_dim that is rotated; above 0, at most 1.
    natives: the plans it was trained with where its config declares a scaling: ((up to this length, plan), ...),
        ascending, the last for all longer lengths; empty means plain base ** (-2 i / rotated).
    running: the scaling that its code applies at run time on top of a training without it; None for none. The model
        left alone runs it, and a strategy takes its place.

    Raises ValueError for anything else, saying what to give.
    """

    head_dim: int
    base: float
    trained_length: int
    partial: float = 1.0
    natives: tuple[tuple[int, Plan], ...] = ()
    running: RunTimeScaling | None = None

    def __post_init__(self) -> None:
        check_integer("head_dim", self.head_dim, least=2)
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: rotated dimensions come in pairs; give an even number")
        check_number("base", self.base, above=1)
        check_integer("trained_length", self.trained_length, least=2)
        check_number("partial", self.partial, above=0)
        if self.partial > 1:
            raise ValueError(f"partial={self.partial}: give the rotated share of head_dim, above 0 and at most 1")
        if self.rotated < 2 or self.rotated % 2:
            raise ValueError(
                f"partial={self.partial} of head_dim={self.head_dim} rotates {self.rotated} dimensions; "
                "give a share that rotates an even number of at least 2"
            )
        limits = [limit for limit, _ in self.natives]
        for limit in limits:
            check_integer("the length up to which a native plan applies", limit, least=1)
        if limits != sorted(set(limits)):
            raise ValueError(f"natives apply up to the lengths {limits}; give them in ascending order, each once")
        for _, plan in self.natives:
            if len(plan.inv_freq) != self.pairs:
                raise ValueError(
                    f"a native plan has {len(plan.inv_freq)} inverse frequencies; "
                    f"this geometry rotates {self.pairs} pairs, so give it {self.pairs}"
                )

    @property
    def rotated(self) -> int:
        """Rotated dimensions per head: head_dim * partial, rounded down."""
        # a share read as rotary_dim / head_dim may multiply back to a hair below the whole number it came from
        return math.floor(self.head_dim * self.partial + 1e-6)

    @property
    def pairs(self) -> int:
        """Rotated pairs per head, each with its own inverse frequency."""
        return self.rotated // 2

    def native(self, length: int) -> Plan:
        """The plan the checkpoint itself uses at this length: the declared one, else the plain one."""
        check_integer("length", length, least=2)
        if self.running is not None:
            return self.running.plan(length)
        if not self.natives:
            return Plan(tuple(inverse_frequencies(self.rotated, self.base).tolist()))
        return next((plan for limit, plan in self.natives if limit >= length), self.natives[-1][1])

    def inv_freq(self, length: int) -> Array:
        """The native plan's inverse frequencies: (pairs,) float64, radians per token."""
        return np.array(self.native(length).inv_freq, dtype=np.float64)
