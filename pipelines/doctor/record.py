"""An examination as a run of MLflow, with its figures: NLL by position, and inverse frequencies beside the declared."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from pipelines import track
from pipelines.doctor import show
from pipelines.doctor.examine import Examination
from pipelines.doctor.numeric import Built
from pipelines.doctor.profile import Profile, buckets, first_broken
from pipelines.doctor.rules import LEVELS, NotJudged
from pipelines.records.results import Store
from pipelines.report import drawing
from pipelines.report.drawing import Axes, Spectrum
from pipelines.track.recorder import attempt


def record(result: Examination, store: Store) -> str:
    """Draw and record it; returns where it can be seen."""
    request, folder = result.request, store.root / "doctor"
    figures = list(draw(result, folder))
    params = {
        "model": request.model.name,
        "model.path": request.model.path,
        "target": result.target,
        "dtype": request.dtype,
        "device": request.device,
        "text": request.text,
        "trained_length": result.files.limit,
    }
    page = io.StringIO()
    show.report(Console(file=page, width=120, markup=False, emoji=False, highlight=False), result)
    body = show.plain(show.whole(result))
    name = f"{request.model.name}: doctor"
    rows, text = list(metrics(result)), page.getvalue()
    reason = attempt(lambda: track.record_examination(store, name, params, rows, body, figures, text))
    place = f"not in MLflow ({reason})" if reason else "MLflow's experiment doctor"
    return f"{place}, and {', '.join(map(str, figures)) or 'no figures'}"


def metrics(result: Examination) -> Iterator[tuple[str, float, int]]:
    """(name, value, step): findings by level; NLL and its excess with the position as step."""
    for level in LEVELS:
        yield f"findings/{level}", float(sum(finding.level == level for finding in result.verdict.findings)), 0
    for bucket in buckets(result.profile) if result.profile is not None else ():
        for name, value in (("nll", bucket.nll), ("excess", bucket.excess)):
            if value is not None and math.isfinite(value):
                yield f"by position/{name}", value, bucket.start


def draw(result: Examination, folder: Path) -> Iterator[Path]:
    """The figures that there is something to draw for."""
    name = result.request.model.name
    stem = re.sub(r"[^\w.-]+", "_", name)[-80:]
    folder.mkdir(parents=True, exist_ok=True)
    if result.profile is not None:
        yield positions(result.profile, name, folder / f"{stem}_nll_by_position.png")
    if result.built is not None and held(result.built):
        yield frequencies(result.built, name, result.target, folder / f"{stem}_inv_freq.png")


def positions(profile: Profile, model: str, path: Path) -> Path:
    """NLL by position of whole documents, and of the same tokens with context within the trained length."""
    whole: list[drawing.Spot] = []
    reference: list[drawing.Spot] = []
    for bucket in buckets(profile):
        middle = (bucket.start + bucket.end) / 2
        if math.isfinite(bucket.nll):
            whole.append((middle, bucket.nll, None, None))
            # nan, where nothing was measured, interrupts the curve
            reference.append((middle, math.nan if bucket.excess is None else bucket.nll - bucket.excess, None, None))
    curves = {"the document so far as context": whole, f"context within {profile.edge:,} tokens": reference}
    first = first_broken(profile)
    breaks = f"breaks at {first.start:,}" if first else "does not break"
    title = f"{model}, {profile.text}: {breaks}"
    return drawing.lines(curves, path, Axes("position (tokens)", "NLL (nats a token)", title, profile.trained))


def held(built: Built) -> bool:
    """Whether its rotary modules hold frequencies to be shown."""
    try:
        return bool(built.modules)
    except NotJudged:
        return False


def frequencies(built: Built, model: str, target: int | None, path: Path) -> Path:
    """What the rotary modules hold, beside what the files declare."""
    spectra = []
    for module in built.modules:
        held = module.held
        layers = "" if held.layer_type == "all" else f" {held.layer_type}"
        for label, values in (
            (f"held{layers} ({held.dtype})", held.inv_freq),
            (f"declared{layers}", module.plan.inv_freq),
        ):
            finite = [value if math.isfinite(value) and value > 0 else 0.0 for value in values]
            spectra.append(Spectrum(label, finite, [2 * np.pi / value if value else math.inf for value in finite]))
    trained = built.files.global_geometry.trained_length
    marks = {f"trained length {trained:,}": float(trained)}
    marks |= {f"target {target:,}": float(target)} if target else {}
    return drawing.spectra(spectra, marks, f"{model}: frequencies held and declared", path)
