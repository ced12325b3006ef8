"""`ropewalk theory`: what plans promise before anything is measured, as tables, as a figure, or as JSON."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.choices.config import Workbench
from pipelines.choices.outlook import FAR, Outlook, outlooks_of
from pipelines.choices.sweep import planned_of
from pipelines.records.cells import digest_of
from pipelines.records.results import Store
from pipelines.report import drawing

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
