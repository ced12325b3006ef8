"""Results and sweeps on disk: mlruns/cells/<id>/result.json and mlruns/sweeps/<id>/sweep.json. Everything else can be
rebuilt from them.

Written atomically and checksummed: a file is whole or it is not there.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.records.cells import Cell, Result, digest_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """The folder of all results; `mlruns` of the project unless ROPEWALK_STORE or `store=` names another."""

    root: Path

    @classmethod
    def at(cls, folder: str | None = None) -> Store:
        given = folder or os.environ.get("ROPEWALK_STORE")
        return cls(Path(given).resolve() if given else Path.cwd() / "mlruns")

    def cell(self, cell_id: str) -> Path:
        return self.root / "cells" / cell_id

    def recall(self, cell_ids: Iterable[str]) -> dict[str, Result]:
        """The finished results among these cells. Failed ones are left out: the next launch tries them again."""
        results = {cell_id: self.read(cell_id) for cell_id in dict.fromkeys(cell_ids)}
        return {cell_id: result for cell_id, result in results.items() if result is not None and result.finished}

    def read(self, cell_id: str) -> Result | None:
        """A cell's result, or None where there is none that is whole."""
        body = _read(self.cell(cell_id) / "result.json")
        return None if body is None else _result(body)

    def newest(self, count: int) -> Iterator[tuple[dict[str, Any], Result]]:
        """The `count` latest finished cells, as (Cell.spec, Result), newest first."""
        files = sorted(self.root.glob("cells/*/result.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files[:count]:
            body = _read(file)
            if body is not None and (result := _result(body)).finished:
                yield body["cell"], result

    def save(self, cell: Cell, result: Result) -> Path:
        """Write a result with its cell; a failure's traceback also as error.txt. Returns its file."""
        folder = self.cell(result.cell_id)
        if result.error:
            _write(folder / "error.txt", result.error)
        else:
            (folder / "error.txt").unlink(missing_ok=True)
        path = folder / "result.json"
        _write_checked(path, {"cell": cell.spec(), "result": asdict(result)})
        return path

    def save_sweep(self, sweep_id: str, sweep: dict[str, Any]) -> Path:
        path = self.root / "sweeps" / sweep_id / "sweep.json"
        _write_checked(path, sweep)
        return path

    def study(self, study_id: str) -> Path:
        """The folder of a search."""
        return self.root / "tune" / study_id

    def save_study(self, study: dict[str, Any]) -> Path:
        path = self.study(study["id"]) / "study.json"
        _write_checked(path, study)
        return path

    def studies(self) -> Iterator[dict[str, Any]]:
        """Every finished search, by id."""
        for path in sorted(self.root.glob("tune/*/study.json")):
            if (study := _read(path)) is not None:
                yield study

    def sweeps(self) -> Iterator[dict[str, Any]]:
        """Every sweep whose file is whole, oldest first."""
        for path in sorted(self.root.glob("sweeps/*/sweep.json")):
            if (sweep := _read(path)) is not None:
                yield sweep


def _result(body: dict[str, Any]) -> Result:
    """The result in a result.json, whose series JSON turned from pairs into lists."""
    series = {name: [tuple(point) for point in row] for name, row in body["result"]["series"].items()}
    return Result(**{**body["result"], "series": series})


def _write_checked(path: Path, body: dict[str, Any]) -> None:
    plain = json.loads(json.dumps(body, allow_nan=False))
    _write(path, json.dumps({"checksum": digest_of(plain), **plain}, indent=1))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        body = {}
    if digest_of({key: value for key, value in body.items() if key != "checksum"}) != body.get("checksum"):
        log.warning("%s is damaged (its checksum does not match) and counts as not there", path)
        return None
    return body
