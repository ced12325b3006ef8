"""An examination as a run of MLflow, with its figures: NLL by position, and inverse frequencies beside the declared."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console

from pipelines import track
from pipelines.doctor import show
from pipelines.doctor.examine import Examination
from pipelines.doctor.profile import Profile, buckets, first_broken
from pipelines.doctor.rules import LEVELS
from pipelines.records.results import Store
from pipelines.report import drawing
from pipelines.report.drawing import Axes, Spectrum


def record(found: Examination, store: Store) -> str:
    """Draw and record it; returns where it is to be seen."""
    order = found.order
    folder = store.root / "doctor"
    figures = list(draw(found, folder))
    params = {
        "model": order.model.name, "model.path": order.model.path, "target": found.target, "dtype": order.dtype,
        "device": order.device, "text": order.text, "trained_length": found.files.limit,
    }  # fmt: skip
    page = io.StringIO()
    show.report(Console(file=page, width=120, highlight=False), found)
    body = show.plain(show.whole(found))
    track.record_examination(
        store, f"{order.model.name}: doctor", params, list(metrics(found)), body, figures, page.getvalue()
    )
    return f"MLflow's experiment doctor, and {', '.join(map(str, figures)) or 'no figures'}"


def metrics(found: Examination) -> Iterator[tuple[str, float, int]]:
    """(name, value, step): findings by level; NLL and its excess with the position as step."""
    for level in LEVELS:
        yield f"findings/{level}", float(sum(one.level == level for one in found.verdict.findings)), 0
    if found.profile is None:
        return
    for one in buckets(found.profile):
        for name, value in (("nll", one.nll), ("excess", one.excess)):
            if value is not None and math.isfinite(value):
                yield f"by position/{name}", value, one.start


def draw(found: Examination, folder: Path) -> Iterator[Path]:
    """The figures that there is something to draw for."""
    stem = re.sub(r"[^\w.-]+", "_", found.order.model.name)[-80:]
    folder.mkdir(parents=True, exist_ok=True)
    if found.profile is not None:
        yield positions(found.profile, found.order.model.name, folder / f"{stem}_nll_by_position.png")
    if found.built is not None:
        yield frequencies(found, folder / f"{stem}_inv_freq.png")


def positions(profile: Profile, model: str, path: Path) -> Path:
    """NLL by position of whole documents, and of the same tokens with context within the trained length."""
    told = [one for one in buckets(profile) if math.isfinite(one.nll)]
    reference: list[tuple[float, float, None]] = []
    for before, one in pairwise([None, *told]):
        if one is not None and one.excess is not None:
            middle = (one.start + one.end) / 2
            if before is not None and before.excess is None and reference:
                reference.append((middle, math.nan, None))  # nothing was measured in between
            reference.append((middle, one.nll - one.excess, None))
    curves = {
        "the document so far as context": [((one.start + one.end) / 2, one.nll, None) for one in told],
        f"context within {profile.edge:,} tokens": reference,
    }
    first = first_broken(profile)
    breaks = f"breaks at {first.start:,}" if first else "does not break"
    title = f"{model}, {profile.text}: {breaks}"
    return drawing.lines(curves, path, Axes("position (tokens)", "NLL (nats a token)", title, profile.trained))


def frequencies(found: Examination, path: Path) -> Path:
    """What the rotary modules hold, beside what the files declare."""
    assert found.built is not None
    drawn = []
    for held, _, plan in found.built.pairs:
        layers = "" if held.layer_type == "all" else f" {held.layer_type}"
        for label, speeds in ((f"held{layers} ({held.dtype})", held.inv_freq), (f"declared{layers}", plan.inv_freq)):
            finite = [speed if math.isfinite(speed) and speed > 0 else 0.0 for speed in speeds]
            lengths = [2 * np.pi / speed if speed else math.inf for speed in finite]
            drawn.append(Spectrum(label, finite, lengths))
    trained = found.files.global_geometry.trained_length
    marks = {f"trained length {trained:,}": float(trained)}
    marks |= {f"target {found.target:,}": float(found.target)} if found.target else {}
    return drawing.spectra(drawn, marks, f"{found.order.model.name}: frequencies held and declared", path)
