"""What a plan promises before anything is measured: one record a plan, from the model's config alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pipelines.choices.sweep import PlanChoice
from pipelines.records.cells import thawed
from rope import theory
from rope.cropping import Cropped
from rope.geometry import ALL_LAYERS, Geometry, Plan, layers_of
from rope.pairwise import Pairwise
from rope.strategies import bounded

FAR = 4
"""The long-range sum is followed up to this many lengths."""

SEARCHED = 2**20
"""Lengths up to which the smallest base is searched for, in a second or so."""


@dataclass(frozen=True)
class Outlook:
    """What is said of one plan.

    pairs: rotated pairs. round_trained, round_now: those that complete a turn within the trained length, as trained and
    under the plan. unseen: share of out-of-distribution angles. first_negative: the first distance at
    which the long-range sum is negative, None where it is not within FAR lengths. smallest_base: of two digits, with
    which plain frequencies would keep it positive over the length; None where it was not searched.
    angle_error: radians by which an angle at the length may be off, by format of its arithmetic.
    table: a row a pair.
    """

    model: str
    name: str
    strategy: str
    options: Mapping[str, Any]
    layers: str
    length: int
    trained_length: int
    base: float
    pairs: int
    attention_factor: float
    round_trained: int
    round_now: int
    largest_stretch: float
    unseen: float
    first_negative: int | None
    equivalent_base: float | None
    smallest_base: float | None
    angle_error: Mapping[str, float]
    table: Sequence[Mapping[str, float]]

    @property
    def label(self) -> str:
        layers = "" if self.layers == ALL_LAYERS else f" {self.layers}"
        return f"{self.name}{layers} @{self.length:,}"


def outlooks_of(planned: PlanChoice) -> list[Outlook]:
    """What is said of every plan of one choice: one for each layer type, and for layers with plans of their own."""
    return [_outlook(planned, layers, plan, planned.geometries[layers_of(layers)[0]]) for layers, plan in planned.plans]


def _outlook(planned: PlanChoice, layers: str, plan: Plan, geometry: Geometry) -> Outlook:
    trained = geometry.trained_length
    length = planned.length
    if isinstance(plan, Pairwise):
        length = plan.reach(length) + 1
    elif bounded(layers) or isinstance(plan, Cropped):
        length = min(length, trained)  # no distance is longer than those of training
    native = geometry.native(trained)
    columns = {
        "inv_freq": np.array(plan.inv_freq),
        "trained_wavelength": theory.wavelengths(native),
        "wavelength": theory.wavelengths(plan),
        "trained_turns": theory.rotations(native, trained),
        "turns": theory.rotations(plan, length),
        "stretch": theory.stretches(native, plan),
        "unseen": theory.out_of_distribution(native, plan, trained, length),
    }
    table = [
        {"pair": pair} | {name: float(column[pair]) for name, column in columns.items()}
        for pair in range(geometry.pairs)
    ]
    return Outlook(
        model=planned.model.name,
        name=planned.label,
        strategy=planned.strategy,
        options={name: thawed(value) for name, value in planned.options},
        layers=layers,
        length=planned.length,
        trained_length=trained,
        base=geometry.base,
        pairs=geometry.pairs,
        attention_factor=plan.attention_factor,
        round_trained=theory.critical_pair(native, trained),
        round_now=theory.critical_pair(plan, trained),
        largest_stretch=float(columns["stretch"].max()),
        unseen=float(columns["unseen"].mean()),
        first_negative=theory.first_negative(plan, FAR * length),
        equivalent_base=theory.equivalent_base(plan),
        smallest_base=_smallest_base(length, geometry.rotated),
        angle_error={dtype: float(theory.angle_error(plan, length, dtype).max()) for dtype in theory.SIGNIFICANT_BITS},
        table=table,
    )


@lru_cache(maxsize=64)
def _smallest_base(length: int, head_dim: int) -> float | None:
    return theory.first_base(theory.two_digit_bases(), length, head_dim) if length <= SEARCHED else None
