"""Sweeps -> MLflow: a run for the sweep, below it one for every cell, and beside it a curve a strategy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.choices.sweep import Sweep
from pipelines.records import provenance
from pipelines.records.cells import Cell, Result
from pipelines.records.public import public
from pipelines.records.results import Store
from pipelines.report import page, palette, tables
from pipelines.report.curves import Results
from pipelines.report.gain_table import as_metrics
from pipelines.tasks import text
from pipelines.track.cell_runs import CellRun, cell_run
from pipelines.track.curve_runs import draw_curves
from pipelines.track.database import (
    Run,
    connect,
    experiment_id,
    milliseconds,
    now,
    pages,
    search,
    start_run,
    transaction,
)
from pipelines.track.experiments import describe

SHOWN = 5
"""Sweeps that a description names; the file beside it names all."""

LAYOUT = "2"
"""A tag of a sweep that was written whole. Raised when it is written otherwise: `sync` then writes all anew."""

FEW = 20
"""Cells up to which a search for each is quicker than a list of all."""


class Tracker:
    """Writes one sweep into MLflow.

    before: the cells that have a run already, below the sweep of the id beside it: it is not written twice.
    """

    def __init__(self, client: Any, experiment: str, sweep: Sweep, store: Store, parent: Run) -> None:
        self.client, self.experiment, self.sweep, self.store, self.parent = client, experiment, sweep, store, parent
        self.before: list[tuple[Cell, str]] = []

    @classmethod
    @contextmanager
    def open(cls, sweep: Sweep, store: Store, client: Any = None) -> Iterator[Tracker]:
        """A tracker of the sweep, whose run ends with the block: FINISHED, or FAILED or KILLED where it raises."""
        client = client or connect(store)
        experiment = experiment_id(client, sweep.experiment, store)
        tags = {
            "ropewalk.kind": "sweep",
            "sweep_id": sweep.id,
            "mlflow.note.content": f"`{sweep.command}`",
        }
        start = milliseconds(sweep.created)
        with start_run(client, experiment, sweep.label, tags, code=sweep.code, start=start) as parent:
            yield cls(client, experiment, sweep, store, parent)

    def record(self, cells: Sequence[Cell], result: Result) -> None:
        """A result that was computed for this sweep as a run below the sweep's; where several strategies come to its
        plan, a run for each."""
        for number, cell in enumerate(cells):
            self._write(cell_run(cell, result), cached=number > 0)

    def recall(self, rows: Iterable[tuple[Cell, Result]]) -> None:
        """Results that were there before: those that have a run in this experiment are noted with the sweep of that
        run, and the others written."""
        rows = list(rows)
        known = runs_of_cells(self.client, self.experiment, {cell.id for cell, _ in rows})
        for cell, result in rows:
            if (sweep_id := known.sweep_of(cell, result)) is not None:
                self.before.append((cell, sweep_id))
            else:
                self._write(cell_run(cell, result), cached=True)

    def _write(self, content: CellRun, *, cached: bool) -> None:
        from mlflow.entities import Dataset, DatasetInput

        cell, result = content.cell, content.result
        command = f"`{self.sweep.command_of(cell)}`"
        tags = {
            "ropewalk.kind": "cell",
            "sweep_id": self.sweep.id,
            "mlflow.parentRunId": self.parent.id,
            "cell_id": cell.id,
            "status": result.status,
            "cached": str(cached).lower(),
            "device": str(result.provenance.get("device", cell.device)),
            "patched_config": content.no_config,
            "mlflow.runColor": palette.style(cell.strategy).colour,
            "mlflow.note.content": f"{command}\n\n```\n{result.error}\n```" if result.error else command,
        }
        # Its times are those of the computing, whenever that was: the UI shows how long a cell took.
        end = milliseconds(result.provenance["at"]) if "at" in result.provenance else now()
        start = end - round(1000 * result.cost.get("seconds", 0.0))
        code = result.provenance.get("code", {})
        with (
            transaction(self.client),
            start_run(self.client, self.experiment, cell.label, tags, code=code, start=start) as run,
        ):
            run.log(content.params, content.metrics, at=end)
            source = str(dict(cell.task.options).get("text", cell.task.name))
            data = Dataset(
                name=f"{cell.task.name}@{cell.length}",
                digest=result.digest or cell.data or "unknown",
                source_type="text",
                source=public(source),
                profile=text.licence(source),
            )
            self.client.log_inputs(run.id, datasets=[DatasetInput(data)])
            for name, body in content.files.items():
                run.json(body, name)
            run.files([self.store.cell(cell.id) / "result.json"])
            run.status, run.end = "FINISHED" if result.finished else "FAILED", end

    def conclude(self, rows: Results, shown: Iterable[tables.ScoreTable]) -> None:
        """The sweep's own: how it ended, its cells as one file, its tables; and the curves."""
        shown = list(shown)
        with transaction(self.client):
            # Parameters: MLflow draws a chart of every metric, and a bar of a count says nothing.
            counts = tables.counts([result for _, result in rows])
            counts |= {"finished before": len(self.before)} if self.before else {}
            self.parent.log({f"cells {status}": count for status, count in counts.items()})
            for scores in shown:
                if scores.gains is not None:
                    self.parent.log(metrics=as_metrics(scores.gains, scores.task))
            codes = provenance.code_labels(result.provenance for _, result in tables.distinct_rows(rows))
            if len(codes) > 1:
                self.parent.tag("mixed_code", "; ".join(f"{label}: {n} cells" for label, n in codes.items()))
            if self.before:
                self._note_before()
            self.parent.json(self.sweep.spec(), "sweep.json")
            self.parent.text(tables.markdown(shown), "tables.md")
        measured = [(cell, result) for cell, result in rows if result.metrics]
        draw_curves(self.client, self.experiment, self.store, measured, self.sweep.id, _gains(shown))
        with transaction(self.client):
            describe(self.client, self.experiment, milliseconds(self.sweep.created))

    def finish(self, report: page.Page | None = None) -> None:
        """The page and its figures, where they were written, and that the sweep is recorded whole."""
        with transaction(self.client):
            if report is not None:
                self.parent.files([report.html])
                if report.figures.is_dir():
                    self.client.log_artifacts(self.parent.id, str(report.figures), "figures")
            self.parent.tag("ropewalk.layout", LAYOUT)  # last: without it the sweep counts as written in part

    def _note_before(self) -> None:
        """Where the runs are of the cells that were finished before: in the sweep's description, and cell by cell."""
        sweeps = list(dict.fromkeys(sweep_id for _, sweep_id in self.before))
        searches = "\n".join(f"- `tags.sweep_id = '{sweep_id}'`" for sweep_id in sweeps[:SHOWN])
        more = f"\n- and {len(sweeps) - SHOWN} more" if len(sweeps) > SHOWN else ""
        cells = f"{len(self.before)} of its cells were finished before: finished_before.json names the sweep of each"
        note = f"`{self.sweep.command}`\n\n{cells}; to see their runs, search for\n{searches}{more}"
        self.parent.tag("mlflow.note.content", note)
        rows = [{"cell": cell.label, "cell_id": cell.id, "sweep_id": sweep_id} for cell, sweep_id in self.before]
        self.parent.json({"cells": rows}, "finished_before.json")


def _gains(shown: Iterable[tables.ScoreTable]) -> dict[tuple[str, str, str], dict[int, float]]:
    """(model, task, strategy with its options) -> gain over cropping by length."""
    return {
        (scores.model, scores.task, one.strategy): {
            length: gain.gain for length, gain in one.gains.items() if not gain.refusal
        }
        for scores in shown
        if scores.gains is not None
        for one in scores.gains.standings
    }


@dataclass(frozen=True)
class CellRuns:
    """Runs of cells in one experiment. rows: by cell id and label, when each ended and below which sweep."""

    rows: Mapping[tuple[str, str], Sequence[tuple[int, str]]]

    def sweep_of(self, cell: Cell, result: Result) -> str | None:
        """The sweep below which a cell has a run of this very result; None where there is no such run."""
        at = milliseconds(result.provenance["at"]) if "at" in result.provenance else None
        ends = self.rows.get((cell.id, cell.label), ())
        return next((sweep_id for end, sweep_id in ends if at in (None, end)), None)


def runs_of_cells(client: Any, experiment: str, cell_ids: Collection[str]) -> CellRuns:
    """The runs of these cells in an experiment, given by its id."""
    # MLflow has no search for one of many: a few are looked for one by one, and for many all cells are listed.
    few = [f"tags.cell_id = '{cell_id}'" for cell_id in sorted(cell_ids)]
    rows: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for query in few if len(few) <= FEW else ["tags.`ropewalk.kind` = 'cell'"]:
        for run in pages(client, experiment, query):
            if (cell_id := run.data.tags.get("cell_id")) in cell_ids and run.info.status != "RUNNING":
                row = (run.info.end_time, run.data.tags["sweep_id"])
                rows.setdefault((cell_id, run.info.run_name), []).append(row)
    return CellRuns(rows)


def recorded(client: Any, sweep: Sweep, rows: Sequence[tuple[Cell, Result]]) -> int | None:
    """Of how many results MLflow has the run, below this sweep or an earlier one; -1: it lacks the sweep, or has it as
    an earlier version wrote it; None: the sweep is running."""
    runs = _runs_of(client, sweep.experiment, sweep.id)
    if any(run.info.status == "RUNNING" for run in runs):
        return None
    written = [run.data.tags for run in runs if run.data.tags["ropewalk.kind"] == "sweep"]
    if not any(tags.get("ropewalk.layout") == LAYOUT for tags in written):
        return -1
    experiment = client.get_experiment_by_name(sweep.experiment).experiment_id
    known = runs_of_cells(client, experiment, {cell.id for cell, _ in rows})
    return sum(known.sweep_of(cell, result) is not None for cell, result in rows)


def forget(client: Any, experiment: str, sweep_id: str) -> None:
    """Delete a sweep and its cells from MLflow; its curves hold other sweeps' points and stay."""
    for run in _runs_of(client, experiment, sweep_id):
        client.delete_run(run.info.run_id)


def _runs_of(client: Any, experiment: str, sweep_id: str) -> list[Any]:
    return search(client, experiment, f"tags.sweep_id = '{sweep_id}' AND tags.`ropewalk.kind` != 'curve'")
