"""MLflow rebuilt from the results on disk, which are the truth."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines import track
from pipelines.choices.sweep import Sweep
from pipelines.records.cells import Refusal, distinct
from pipelines.records.results import Store
from pipelines.report import tables


def rebuild(store: Store, *, force: bool = False) -> Iterator[str]:
    """Record every sweep and search that MLflow lacks or has in part; with force, all. Yields a line for each.

    Raises:
        Refusal: the store has none.
    """
    specs, studies = list(store.sweeps()), list(store.studies())
    if not specs and not studies:
        raise Refusal(f"there are no sweeps in {store.root} yet; start with `ropewalk grid`")
    start, client = time.monotonic(), track.connect(store)
    for number, spec in enumerate(specs, 1):
        sweep = Sweep.of(spec)
        outcome = _rebuild_sweep(client, sweep, store, force=force)
        left = (time.monotonic() - start) / number * (len(specs) - number)
        yield f"{number}/{len(specs)}  {sweep.label}: {outcome}" + (f"  left {left:.0f} s" if left else "")
    for study in studies:
        yield f"{study['label']}, a search: {_rebuild_study(client, study, store, force=force)}"


def _rebuild_study(client: object, study: Mapping[str, Any], store: Store, *, force: bool) -> str:
    runs, trials = track.runs_of(client, study["id"]), study["trials"]
    if any(run.info.status == "RUNNING" for run in runs):
        return "runs right now, left alone"
    if len(runs) == len(trials) + 1 and not force:
        return f"in MLflow already, {len(trials)} trials"
    with track.Study.open(store, study, client) as tracked:
        for trial in trials:
            tracked.record(trial, None)
        tracked.conclude(study, store.study(study["id"]))
    return f"recorded, {len(trials)} trials"


def _rebuild_sweep(client: object, sweep: Sweep, store: Store, *, force: bool) -> str:
    results = {cell.id: result for cell in distinct(sweep.cells) if (result := store.read(cell.id)) is not None}
    expected = sum(len(sweep.bearing(cell_id)) for cell_id in results)
    present = track.recorded(client, sweep)
    if present is None:
        return "runs right now, left alone"
    if present == expected and not force:
        return f"in MLflow already, {present} cells"
    track.forget(client, sweep)
    with track.Tracker.open(sweep, store, client) as tracker:
        for cell_id, result in results.items():
            older = str(result.provenance.get("at", "")) < sweep.created
            tracker.record(sweep.bearing(cell_id), result, cached=older)
        rows = [(cell, results[cell.id]) for cell in sweep.cells if cell.id in results]
        tracker.conclude(rows, tables.tables(rows))
    return f"recorded, {expected} cells"
