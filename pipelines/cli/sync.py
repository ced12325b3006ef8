"""`ropewalk sync`: MLflow rebuilt from the results on disk, which are the truth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pipelines import track
from pipelines.choices.sweep import Sweep
from pipelines.records.cells import Refusal, Result, distinct
from pipelines.records.results import Store
from pipelines.report import tables

HELP = """ropewalk sync [store=FOLDER] [force=true]

Brings MLflow to what the results on disk say: sweeps that it lacks, or has in part (after a crash, or when mlflow.db
was deleted), are recorded from the results; nothing is computed. force=true records all of them anew.
"""


def main(arguments: list[str]) -> int:
    """One command line; returns the exit code."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP, end="")
        return 0
    options = dict(argument.partition("=")[::2] for argument in arguments)
    if set(options) - {"store", "force"} or options.get("force", "false") not in ("true", "false"):
        raise Refusal(f"ropewalk sync takes store=FOLDER and force=true; given: {' '.join(arguments)}")
    store = Store.at(options.get("store"))
    specs, studies = list(store.sweeps()), list(store.studies())
    if not specs and not studies:
        raise Refusal(f"there are no sweeps in {store.root} yet; start with `ropewalk grid`")
    start, client = time.monotonic(), track.connect(store)
    for number, spec in enumerate(specs, 1):
        sweep = Sweep.of(spec)
        done = _synced(client, sweep, store, force=options.get("force") == "true")
        left = (time.monotonic() - start) / number * (len(specs) - number)
        print(f"{number}/{len(specs)}  {sweep.label}: {done}" + (f"  left {left:.0f} s" if left else ""), flush=True)
    for study in studies:
        done = _study(client, study, store, force=options.get("force") == "true")
        print(f"{study['label']}, a search: {done}", flush=True)
    return 0


def _study(client: object, study: Mapping[str, Any], store: Store, *, force: bool) -> str:
    """Record one search unless MLflow has all of it; says in a few words what was done."""
    runs = track.runs_of(client, study["id"])
    if any(run.info.status == "RUNNING" for run in runs):
        return "runs right now, left alone"
    trials = study["trials"]
    if len(runs) == len(trials) + 1 and not force:
        return f"in MLflow already, {len(trials)} trials"
    with track.Study.open(store, study, client) as tracked:
        for trial in trials:
            tracked.record(trial, None)
        tracked.conclude(study, store.study(study["id"]))
    return f"recorded, {len(trials)} trials"


def _synced(client: object, sweep: Sweep, store: Store, *, force: bool) -> str:
    """Record one sweep unless MLflow has all of it; says in a few words what was done."""
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
            tracker.record(sweep.bearing(cell_id), result, cached=_older(result, sweep))
        rows = [(cell, results[cell.id]) for cell in sweep.cells if cell.id in results]
        tracker.conclude(rows, tables.tables(rows))
    return f"recorded, {expected} cells"


def _older(result: Result, sweep: Sweep) -> bool:
    """Whether the result was there before the sweep began."""
    return str(result.provenance.get("at", "")) < sweep.created
