"""What plans promise before anything is measured: tables, a figure, or JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.choices.config import Workbench
from pipelines.choices.layers import layers_of_model
from pipelines.choices.outlook import FAR, Outlook, outlooks_of
from pipelines.choices.sweep import planned_of
from pipelines.records import inputs
from pipelines.records.cells import digest_of
from pipelines.records.results import Store
from pipelines.report import drawing, terminal

ROWS = 16
"""Pairs that a table shows; --json has all."""


def main(choices: Sequence[Workbench], *, as_json: bool = False, out: str | None = None) -> int:
    """Show what these choices' plans promise, each once, and draw them.

    Raises:
        Refusal: a choice whose plan cannot be computed.
    """
    planned = {(choice.label, choice.model, choice.length): choice for choice in map(planned_of, choices)}
    outlooks = [outlook for choice in planned.values() for outlook in outlooks_of(choice)]
    if as_json:
        print(json.dumps([_finite(asdict(outlook)) for outlook in outlooks], indent=1))
        return 0
    console = terminal.plain_console(160)
    for outlook in outlooks:
        terminal.table(console, *_pairs(outlook))
    terminal.table(console, "all plans", SUMMARY, [_summary(outlook) for outlook in outlooks])
    models = dict.fromkeys(choice.model for choice in planned.values())
    of_layers = [sentence for model in models for sentence in layers_of_model(model)]
    for sentence in dict.fromkeys([*map(_model, outlooks), *of_layers]):
        console.print(sentence)
    folder = Path(out).expanduser() if out else Store.at(choices[0].store).root / "theory"
    console.print(f"figure: {draw(outlooks, inputs.made(folder))}")
    return 0


def _pairs(outlook: Outlook) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and rows of one plan's table: ROWS of its pairs, evenly spaced."""
    count = min(ROWS, outlook.pairs)
    shown = sorted({round(row * (outlook.pairs - 1) / max(1, count - 1)) for row in range(count)})
    part = f"; {len(shown)} of {outlook.pairs} pairs" if len(shown) < outlook.pairs else ""
    turns = f"turns in {outlook.trained_length:,} as trained", f"in {outlook.length:,} now"
    header = ["pair", "wavelength as trained", "now", *turns, "stretch", "out-of-distribution angles"]
    columns = ("trained_wavelength", "wavelength", "trained_turns", "turns", "stretch")
    rows = [(pair, outlook.table[pair]) for pair in shown]
    body = [[str(pair), *(_number(row[name]) for name in columns), _share(row["unseen"])] for pair, row in rows]
    return f"{outlook.model}: {outlook.label}{part}", header, body


SUMMARY = (
    "plan",
    "attention factor",
    "pairs with a full turn in training",
    "largest stretch",
    "out-of-distribution angles",
    "sum negative from",
    "as base",
    "angle error bf16",
    "float32",
)


def _summary(outlook: Outlook) -> list[str]:
    far = f"beyond {FAR * outlook.length:,}"
    return [
        outlook.label,
        f"{outlook.attention_factor:.4g}",
        f"{outlook.round_trained} -> {outlook.round_now} of {outlook.pairs}",
        _number(outlook.largest_stretch),
        _share(outlook.unseen),
        far if outlook.first_negative is None else f"{outlook.first_negative:,}",
        "" if outlook.equivalent_base is None else _number(outlook.equivalent_base),
        *(f"{outlook.angle_error[dtype]:.2g}" for dtype in ("bfloat16", "float32")),
    ]


def _model(outlook: Outlook) -> str:
    trained = (
        f"{outlook.model} ({outlook.layers.partition('[')[0]} layers): trained on {outlook.trained_length:,} tokens "
        f"with a base of {outlook.base:,.0f}; {outlook.round_trained} of {outlook.pairs} pairs make a full turn in "
        "training."
    )
    if outlook.smallest_base is None:
        return trained
    return (
        f"{trained} A plain base of at least {outlook.smallest_base:,.0f} keeps the long-range sum positive to "
        f"{outlook.length:,}."
    )


def draw(outlooks: Sequence[Outlook], folder: Path) -> Path:
    """All plans in one PNG."""
    models = list(dict.fromkeys(outlook.model for outlook in outlooks))
    spectra = [
        drawing.Spectrum(
            outlook.label if len(models) == 1 else f"{outlook.model}: {outlook.label}",
            [row["inv_freq"] for row in outlook.table],
            [row["wavelength"] for row in outlook.table],
        )
        for outlook in outlooks
    ]
    marks = {f"trained length {outlook.trained_length:,}": float(outlook.trained_length) for outlook in outlooks}
    marks |= {f"length {outlook.length:,}": float(outlook.length) for outlook in outlooks}
    title = ", ".join(models)
    names = [title, *dict.fromkeys(o.name for o in outlooks), *dict.fromkeys(str(o.length) for o in outlooks)]
    stem = re.sub(r"[^\w.-]+", "_", "_".join(names))
    if len(stem) > 80:  # file names end at 255 bytes
        stem = f"{stem[:80]}-{digest_of(names)[:6]}"
    return drawing.spectra(spectra, marks, f"{title}: rotary frequencies by plan", folder / f"{stem}.png")


def _number(value: float) -> str:
    if math.isinf(value):
        return "zero frequency"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _share(value: float) -> str:
    return f"{value:.1%}" if value >= 0.0005 else "none"


def _finite(value: Any) -> Any:
    """Plain data for JSON, which has no infinity: a zero frequency has no wavelength."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and math.isinf(value) else value
