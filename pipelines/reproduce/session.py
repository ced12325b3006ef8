"""What reproducing numbers and testing claims have in common: cells run as a grid, and the records of a table.

Every table ends alike: JSON and figures in mlruns/published, a run in MLflow, and a line in the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import track
from pipelines.choices.config import Workbench
from pipelines.choices.sweep import Sweep
from pipelines.records.cells import Cell, Result
from pipelines.records.public import public
from pipelines.records.results import Store
from pipelines.report.terminal import console
from pipelines.reproduce import published
from pipelines.reproduce.published import PublishedTable
from pipelines.track import launch
from pipelines.track.recorder import attempt, unrecorded
from pipelines.workers.compute import Crew


@dataclass(frozen=True)
class Session:
    """One command line.

    base: its choices, but for those that are the table's own. task: options of the task that it gives, which override
    the published protocol. command: as typed.
    """

    base: Workbench
    task: Mapping[str, Any]
    command: str

    @property
    def store(self) -> Store:
        return Store.at(self.base.store)

    def measure(self, cells: Sequence[Cell]) -> dict[str, Result]:
        """Results by cell id, of one grid: finished cells are read, all are recorded as its own."""
        if not cells:
            return {}
        sweep = Sweep("published", tuple(cells), self.command)
        with closing(Crew(self.base.cluster, self.store)) as crew:
            results = launch.run(sweep, self.store, crew, force=self.base.force, retry=self.base.retry)
        return {cell.id: result for cell, result in results}

    def folder(self, *names: str) -> Path:
        """A folder of this store's mlruns/published, created where it is not there."""
        folder = self.store.root.joinpath("published", *names)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def record(
        self, table: PublishedTable, name: str, verdicts: Mapping[str, int], files: Sequence[Path], **params: str
    ) -> None:
        """One run of MLflow's experiment `published`: how often there was which verdict, and the files that show it."""
        kind = "claims" if "model" in params else "values"
        about = {"title": table.title, "source": table.source, "command": self.command, **params}
        metrics = {f"{kind}/{verdict}": float(count) for verdict, count in verdicts.items()}
        tags = {"status": counted(verdicts)}
        if reason := attempt(lambda: track.record_reproduction(self.store, name, about, metrics, files, tags)):
            console.print(unrecorded(reason, "reproducing the table again records them"))


def introduce(table: PublishedTable) -> None:
    console.print(f"\n{table.title}\n  {table.source}; {published.SURE[table.sure]}", style=None)
    for note in table.notes:
        console.print(f"  note: {note}")


def counted(verdicts: Mapping[str, int]) -> str:
    """`3 reproduced, 1 close`."""
    return ", ".join(f"{count} {name}" for name, count in verdicts.items() if count)


def write(path: Path, body: Mapping[str, Any]) -> Path:
    path.write_text(public(json.dumps(body, indent=1)), encoding="utf-8")
    return path
