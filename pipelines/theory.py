"""`ropewalk theory`: what plans promise before anything is measured, as tables, as a figure, or as JSON."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipelines import drawing
from pipelines.cells import digest_of, thawed
from pipelines.config import Workbench
from pipelines.results import Store
from pipelines.sweep import Planned, planned_of
from rope import theory
from rope.geometry import ALL_LAYERS, Geometry, Plan, layers_of
from rope.strategies import bounded

HELP = """ropewalk theory [OVERRIDES] [--json] [out=FOLDER]

What plans promise, from the model's config alone: wavelengths, turns within the trained length, the stretch of every
pair, angles never seen in training, how far the long-range sum stays positive, precision. Overrides as for grid:
  ropewalk theory strategy=none,linear,yarn length=2048
  ropewalk theory model=smollm2 strategy=yarn strategy.beta_fast=16,32 length=32768
  ropewalk theory strategy=per_layer 'strategy.layers={0-3: 2}' length=2048
A PNG of all plans goes to out (default: theory/ in the store, mlruns). --json prints every number in place of tables.
"""

ROWS = 16
"""Pairs that a table shows; --json has all."""

FAR = 4
"""The long-range sum is followed up to this many lengths."""

SEARCHED = 2**20
"""Lengths up to which the smallest base is searched for, in a second or so."""


@dataclass(frozen=True)
class Outlook:
    """What is said of one plan.

    pairs: rotated pairs. round_trained, round_now: those that come round within the trained length, as trained and
    under the plan. unseen: share of the angles taken that training never took. first_negative: the first distance at
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


def main(choices: Sequence[Workbench], *, as_json: bool = False, out: str | None = None) -> int:
    """Show what these choices' plans promise, and draw them.

    Raises:
        Refusal: a choice whose plan cannot be computed.
    """
    outlooks = [one for choice in choices for one in outlooks_of(planned_of(choice))]
    if as_json:
        print(json.dumps([_finite(asdict(one)) for one in outlooks], indent=1))
        return 0
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    for one in outlooks:
        console.print(_pairs(one))
    console.print(_summary(outlooks))
    for sentence in dict.fromkeys(map(_model, outlooks)):
        console.print(sentence)
    folder = Path(out).expanduser() if out else Store.at(choices[0].store).root / "theory"
    console.print(f"drawn: {draw(outlooks, folder)}")
    return 0


def outlooks_of(planned: Planned) -> list[Outlook]:
    """What is said of every plan of one choice: one for each layer type, and for layers with plans of their own."""
    return [_outlook(planned, layers, plan, planned.geometries[layers_of(layers)[0]]) for layers, plan in planned.plans]


def _outlook(planned: Planned, layers: str, plan: Plan, geometry: Geometry) -> Outlook:
    trained = geometry.trained_length
    # within a bounded window no distance is longer than those of training
    length = min(planned.length, trained) if bounded(layers) else planned.length
    native = geometry.native(trained)
    columns = {
        "inv_freq": np.array(plan.inv_freq),
        "trained_wavelength": theory.wavelengths(native),
        "wavelength": theory.wavelengths(plan),
        "trained_turns": theory.rotations(native, trained),
        "turns": theory.rotations(plan, length),
        "stretch": theory.stretches(native, plan),
        "unseen": theory.unseen(native, plan, trained, length),
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


def _pairs(one: Outlook) -> Table:
    shown = sorted({round(row * (one.pairs - 1) / max(1, min(ROWS, one.pairs) - 1)) for row in range(ROWS)})
    shown = [pair for pair in shown if pair < one.pairs]
    more = f"; {len(shown)} of {one.pairs} pairs" if len(shown) < one.pairs else ""
    table = Table(title=f"{one.model}: {one.label}{more}", title_justify="left", title_style="bold")
    header = ["pair", "wavelength as trained", "now", f"turns in {one.trained_length:,} as trained"]
    for name in [*header, f"in {one.length:,} now", "stretch", "angles unseen"]:
        table.add_column(name, justify="right")
    names = ("trained_wavelength", "wavelength", "trained_turns", "turns", "stretch")
    for pair in shown:
        row = one.table[pair]
        table.add_row(str(pair), *(_number(row[name]) for name in names), _share(row["unseen"]))
    return table


def _summary(outlooks: Sequence[Outlook]) -> Table:
    table = Table(title="all plans", title_justify="left", title_style="bold")
    header = ["plan", "cos, sin times", "pairs that come round in training", "largest stretch", "angles unseen"]
    for number, name in enumerate([*header, "sum negative from", "as base", "angle error bf16", "float32"]):
        table.add_column(name, justify="right" if number else "left")
    for one in outlooks:
        negative = f"beyond {FAR * one.length:,}" if one.first_negative is None else f"{one.first_negative:,}"
        table.add_row(
            one.label,
            f"{one.attention_factor:.4g}",
            f"{one.round_trained} -> {one.round_now} of {one.pairs}",
            _number(one.largest_stretch),
            _share(one.unseen),
            negative,
            "" if one.equivalent_base is None else _number(one.equivalent_base),
            *(f"{one.angle_error[dtype]:.2g}" for dtype in ("bfloat16", "float32")),
        )
    return table


def _model(one: Outlook) -> str:
    told = (
        f"{one.model} ({one.layers.partition('[')[0]} layers): trained on {one.trained_length:,} tokens with a base of "
        f"{one.base:,.0f}; {one.round_trained} of {one.pairs} pairs come round in training."
    )
    if one.smallest_base is None:
        return told
    return (
        f"{told} A plain base of at least {one.smallest_base:,.0f} keeps the long-range sum positive to {one.length:,}."
    )


def draw(outlooks: Sequence[Outlook], folder: Path) -> Path:
    """All plans in one PNG."""
    drawn = [
        drawing.Spectrum(
            one.label if len({o.model for o in outlooks}) == 1 else f"{one.model}: {one.label}",
            [row["inv_freq"] for row in one.table],
            [row["wavelength"] for row in one.table],
        )
        for one in outlooks
    ]
    marks = {f"trained length {one.trained_length:,}": float(one.trained_length) for one in outlooks}
    marks |= {f"length {one.length:,}": float(one.length) for one in outlooks}
    models = ", ".join(dict.fromkeys(one.model for one in outlooks))
    asked = [models, *dict.fromkeys(one.name for one in outlooks), *dict.fromkeys(str(one.length) for one in outlooks)]
    stem = re.sub(r"[^\w.-]+", "_", "_".join(asked))
    if len(stem) > 80:  # file names end at 255 bytes
        stem = f"{stem[:80]}-{digest_of(asked)[:6]}"
    return drawing.spectra(drawn, marks, f"{models}: rotary frequencies by plan", folder / f"{stem}.png")


def _number(value: float) -> str:
    if math.isinf(value):
        return "stands still"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _share(value: float) -> str:
    return f"{value:.1%}" if value >= 0.0005 else "none"


def _finite(value: Any) -> Any:
    """Plain data for JSON, which has no infinity: what stands still has no wavelength."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and math.isinf(value) else value
