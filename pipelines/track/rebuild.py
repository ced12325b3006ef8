"""MLflow brought to what the results on disk say; nothing is computed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.choices.sweep import Sweep
from pipelines.records.cells import Cell, Refusal, Result, distinct
from pipelines.records.numbers import duration
from pipelines.records.results import Store
from pipelines.report import page, tables
from pipelines.track.cell_runs import cell_run
from pipelines.track.curve_runs import prune_curves
from pipelines.track.database import connect, has_own_database, search
from pipelines.track.recorder import in_a_line, unrecorded
from pipelines.track.studies import StudyTracker, runs_of
from pipelines.track.sweeps import Tracker, forget, recorded

UNREADABLE = (ValueError, KeyError, TypeError)
"""What a file of a version that we cannot read any more raises."""


@dataclass(frozen=True)
class Rebuilt:
    """What became of one sweep or study. complete: whether MLflow now has all that can be expected of it."""

    label: str
    text: str
    complete: bool = True

    def __str__(self) -> str:
        return f"{self.label}: {self.text}"


def rebuild(store: Store, *, force: bool = False) -> Iterator[Rebuilt]:
    """Record every sweep and study that MLflow lacks, or has in part, or all of them anew (`force`).

    Sweeps that are no longer on disk are deleted from the store's own database, with their points of the curves; on
    a server of the user's, other stores may have theirs.

    Raises:
        Refusal: there is nothing on disk, and no database; or MLflow does not answer.
    """
    specs, studies = list(store.sweeps()), list(store.studies())
    if not specs and not studies and not (store.root / "mlflow.db").exists():
        raise store.without_sweeps()
    try:
        client = connect(store)
    except Exception as error:  # whatever a server, a network or a database makes MLflow raise
        raise Refusal(unrecorded(in_a_line(error), "the same command records them when it answers")) from error
    sweeps, cells = [], dict[str, Cell]()
    for spec in specs:
        try:
            sweep = Sweep.of(spec)
        except UNREADABLE as error:
            yield Rebuilt(str(spec.get("command", "a sweep")), f"cannot be read, left as it is: {error!r}", False)
        else:
            sweeps.append(sweep)
            cells |= {cell.id: cell for cell in sweep.cells}
    files = {path.parent.name for path in store.root.glob("sweeps/*/sweep.json")}
    if has_own_database():
        yield from _pruned(client, files)
        if len(files) == len(sweeps):  # of a sweep that cannot be read, nobody knows which points are its own
            for experiment in client.search_experiments():
                prune_curves(client, experiment.name, store, cells)
    start = time.monotonic()
    for number, sweep in enumerate(sweeps, 1):
        rebuilt = _sweep(client, sweep, store, force=force)
        left = (time.monotonic() - start) / number * (len(sweeps) - number)
        text = f"{rebuilt.text}  left {duration(left)}" if left else rebuilt.text
        yield Rebuilt(f"{number}/{len(sweeps)}  {rebuilt.label}", text, rebuilt.complete)
    for study in studies:
        yield _study(client, study, store, force=force)


def record_anew(sweep: Sweep, store: Store) -> None:
    """One sweep as `rebuild` would record it, whatever of it MLflow has.

    Raises:
        ValueError: it cannot be rebuilt from the results.
    """
    rebuilt = _sweep(connect(store), sweep, store, force=True, ours=True)
    if not rebuilt.complete:
        raise ValueError(rebuilt.text)


def record_left_over(store: Store) -> None:
    """Record the sweeps that an earlier launch could not, as far as they can be read."""
    left_over = set(store.unrecorded())
    for spec in store.sweeps() if left_over else ():
        try:
            sweep = Sweep.of(spec)
        except UNREADABLE:
            continue
        if sweep.id in left_over:
            _sweep(connect(store), sweep, store, force=True)


def record_study_anew(study: Mapping[str, Any], store: Store) -> None:
    """One finished search as `rebuild` would record it, whatever of it MLflow has."""
    _study(connect(store), study, store, force=True, ours=True)


def _pruned(client: Any, on_disk: set[str]) -> Iterator[Rebuilt]:
    for experiment in client.search_experiments():
        for run in search(client, experiment.name, "tags.`ropewalk.kind` = 'sweep'"):
            if run.data.tags["sweep_id"] not in on_disk and run.info.status != "RUNNING":
                forget(client, experiment.name, run.data.tags["sweep_id"])
                yield Rebuilt(run.info.run_name, "no longer on disk, deleted")


def _sweep(client: Any, sweep: Sweep, store: Store, *, force: bool, ours: bool = False) -> Rebuilt:
    """ours: a run of it that has not ended is this process's own, and given up."""
    results = {cell.id: result for cell in distinct(sweep.cells) if (result := store.read(cell.id)) is not None}
    expected = [(cell, result) for cell_id, result in results.items() for cell in sweep.bearing(cell_id)]
    present = recorded(client, sweep, expected)
    if present is None and not ours:
        return Rebuilt(sweep.label, "running, left alone")
    if present == len(expected) and not force:
        store.mark_recorded(sweep.id)
        return Rebuilt(sweep.label, f"in MLflow already, {present} cell{'' if present == 1 else 's'}")
    try:  # everything is built before anything is deleted
        runs = [cell_run(cell, result) for cell, result in expected]
        rows = [(cell, results[cell.id]) for cell in sweep.cells if cell.id in results]
        shown = tables.tables(rows)
    except UNREADABLE as error:
        return Rebuilt(sweep.label, f"cannot be rebuilt, left as it is: {error!r}", complete=False)
    forget(client, sweep.experiment, sweep.id)
    with Tracker.open(sweep, store, client) as tracker:
        before = {cell_id for cell_id, result in results.items() if _at(result) < sweep.created}
        tracker.recall((cell, result) for cell, result in expected if cell.id in before)
        for cell_id in (cell_id for cell_id in results if cell_id not in before):
            tracker.record(sweep.bearing(cell_id), results[cell_id])
        report, _ = page.attempt(rows, store.sweep(sweep.id), sweeps=[sweep], shown=shown)
        tracker.conclude(rows, shown)
        tracker.finish(report)
    store.mark_recorded(sweep.id)
    reasons = [run.lost for run in runs if run.lost]
    lost = f", {len(reasons)} of them without patched_config.json: {'; '.join(dict.fromkeys(reasons))}"
    return Rebuilt(
        sweep.label,
        f"recorded, {len(expected)} cell{'' if len(expected) == 1 else 's'}{lost if reasons else ''}",
        not reasons,
    )


def _at(result: Result) -> str:
    """When it was computed; "" where that is not known, as before everything."""
    return str(result.provenance.get("at", ""))


def _study(client: Any, study: Mapping[str, Any], store: Store, *, force: bool, ours: bool = False) -> Rebuilt:
    label, trials, runs = f"{study['label']}, a search", study["trials"], runs_of(client, study["id"])
    if any(run.info.status == "RUNNING" for run in runs) and not ours:
        return Rebuilt(label, "running, left alone")
    if len(runs) == len(trials) + 1 and not force:
        return Rebuilt(label, f"in MLflow already, {len(trials)} trials")
    with StudyTracker.open(store, study, client) as tracker:
        for trial in trials:
            tracker.record(trial, None)
        tracker.conclude(study, store.study(study["id"]))
    return Rebuilt(label, f"recorded, {len(trials)} trials")
