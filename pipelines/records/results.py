"""Results and sweeps on disk: mlruns/cells/<id>/result.json and mlruns/sweeps/<id>/sweep.json. Everything else can be
rebuilt from them.

Written atomically and checksummed: a file is whole or it is not there. A file that is damaged, of another cell, or of a
later version counts as not there, and is set aside when its cell is computed again.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pipelines.records.cells import Cell, Refusal, Result, digest_of
from pipelines.records.public import public

log = logging.getLogger(__name__)

T = TypeVar("T")

UNRECORDED = "unrecorded"
"""An empty file beside a sweep.json: MLflow does not have all of the sweep."""

STARTED, ANSWERS = "started.json", "answers.jsonl"
"""Files beside a result.json while it is computed: see journal.py and answers.py."""

SCHEMA = 1
"""Of all files below; files without a number are of version 1 too."""


class Unreadable(ValueError):
    """A file that is there and says nothing that can be believed; the sentence says why."""


@dataclass(frozen=True)
class Store:
    """The folder of all results; `mlruns` of the project unless ROPEWALK_STORE or `store=` names another."""

    root: Path

    @classmethod
    def at(cls, folder: str | None = None) -> Store:
        """The store of this name, else that of ROPEWALK_STORE, else ./mlruns.

        Raises:
            Refusal: it lies where MLflow mistakes parts of the path for escapes, or is a file.
        """
        given = folder or os.environ.get("ROPEWALK_STORE")
        root = Path(given).expanduser().resolve() if given else Path.cwd() / "mlruns"
        if wrong := [sign for sign in "%?" if sign in str(root)]:
            raise Refusal(f"store={root}: MLflow keeps no runs below a path with a {wrong[0]}; give another folder")
        if root.exists() and not root.is_dir():
            raise Refusal(f"store={root} is a file; give a folder, which is created where it is not there")
        return cls(root)

    def cell(self, cell_id: str) -> Path:
        return self.root / "cells" / cell_id

    def recall(self, cell_ids: Iterable[str]) -> dict[str, Result]:
        """The finished results among these cells. Failed ones are left out: the next launch tries them again."""
        results = {cell_id: self.read(cell_id) for cell_id in dict.fromkeys(cell_ids)}
        return {cell_id: result for cell_id, result in results.items() if result is not None and result.finished}

    def read(self, cell_id: str) -> Result | None:
        """A cell's result, or None where there is none that is whole and its own."""
        row = self.row(cell_id)
        return None if row is None else row[1]

    def row(self, cell_id: str) -> tuple[dict[str, Any], Result] | None:
        """As `read`, with the cell as it was kept (Cell.spec)."""
        return _believed(self.cell(cell_id) / "result.json", _cell_and_result)

    def newest(self, count: int) -> Iterator[tuple[dict[str, Any], Result]]:
        """The `count` latest finished cells, as (Cell.spec, Result), newest first."""
        files = sorted(self.root.glob("cells/*/result.json"), key=lambda file: file.lstat().st_mtime, reverse=True)
        for file in files[:count]:
            row = _believed(file, _cell_and_result)
            if row is not None and row[1].finished:
                yield row

    def save(self, cell: Cell, result: Result) -> Path:
        """Write a result with its cell; a failure's traceback also as error.txt. Returns its file.

        What was there before and cannot be believed is kept beside it, as result.json.corrupt-1 and so on.
        """
        folder = self.cell(result.cell_id)
        _set_aside_unless(folder / "result.json", _cell_and_result)
        if result.error:
            _write(folder / "error.txt", public(result.error))
        else:
            (folder / "error.txt").unlink(missing_ok=True)
        path = folder / "result.json"
        _write_checked(path, {"cell": cell.spec(), "result": asdict(result)})
        if result.metrics:
            (folder / ANSWERS).unlink(missing_ok=True)
        return path

    def sweep(self, sweep_id: str) -> Path:
        """The folder of a sweep."""
        return self.root / "sweeps" / sweep_id

    def save_sweep(self, sweep_id: str, sweep: dict[str, Any]) -> Path:
        path = self.sweep(sweep_id) / "sweep.json"
        _set_aside_unless(path, _body)
        _write_checked(path, sweep)
        return path

    def mark_unrecorded(self, sweep_id: str) -> None:
        """Note that MLflow lacks a sweep, or has it in part."""
        _write(self.sweep(sweep_id) / UNRECORDED, "")

    def mark_recorded(self, sweep_id: str) -> None:
        (self.sweep(sweep_id) / UNRECORDED).unlink(missing_ok=True)

    def unrecorded(self) -> list[str]:
        """The ids of the sweeps that are marked so."""
        return sorted(path.parent.name for path in self.root.glob(f"sweeps/*/{UNRECORDED}"))

    def without_sweeps(self) -> Refusal:
        """What to say where no sweep can be read."""
        damaged = len(list(self.root.glob("sweeps/*/sweep.json")))
        if not damaged:
            return Refusal(f"there are no sweeps in {self.root} yet; start with `ropewalk grid`")
        files = f"the sweep.json of {damaged} sweep{'s'[: damaged != 1]}"
        return Refusal(
            f"{files} in {self.root} cannot be read; `ropewalk results cells` lists what was measured, and the same "
            "`ropewalk grid` command as before computes none of it again"
        )

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
            if (study := _believed(path, _body)) is not None:
                yield study

    def sweeps(self) -> Iterator[dict[str, Any]]:
        """Every sweep whose file is whole, oldest first."""
        for path in sorted(self.root.glob("sweeps/*/sweep.json")):
            if (sweep := _believed(path, _body)) is not None:
                yield sweep


def read_file(path: Path) -> tuple[Cell, Result]:
    """The cell and the result of a result.json that lies anywhere.

    Raises:
        Refusal: it is no such file, or cannot be believed.
    """
    try:
        spec, result = _parsed(path)
        return Cell.of(spec), result
    except (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refusal(f"{path}: it is no result of a cell ({error}); give a result.json of a store") from error


def _cell_and_result(path: Path) -> tuple[dict[str, Any], Result]:
    """(Cell.spec, Result) of a result.json, which must be of the cell whose folder it lies in."""
    spec, result = _parsed(path)
    if (owners := {spec["id"], result.cell_id}) != {path.parent.name}:
        raise Unreadable(f"it is of cell {' and '.join(sorted(map(str, owners)))}")
    return spec, result


def _parsed(path: Path) -> tuple[dict[str, Any], Result]:
    body = _body(path)
    try:
        spec, fields = body["cell"], body["result"]
        spec["id"]
        series = {name: [tuple(point) for point in row] for name, row in fields["series"].items()}
        result = Result(**{**fields, "series": series})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Unreadable(f"it is no result of this version: {error!r}") from error
    return spec, result


def _write_checked(path: Path, body: dict[str, Any]) -> None:
    plain = json.loads(public(json.dumps({"schema": SCHEMA, **body}, allow_nan=False)))
    _write(path, json.dumps({"checksum": digest_of(plain), **plain}, indent=1))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _body(path: Path) -> dict[str, Any]:
    """What a file of ours holds, without its checksum and version.

    Raises:
        FileNotFoundError: there is none.
        Unreadable: it is damaged, no file, or of a later version.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"it is damaged ({type(error).__name__})") from error
    if not isinstance(body, dict) or digest_of(_without(body, "checksum")) != body.get("checksum"):
        raise Unreadable("it is damaged (its checksum does not match)")
    version = body.get("schema", 1)
    if not isinstance(version, int) or version > SCHEMA:
        raise Unreadable(f"a later version of ropewalk wrote it (schema {version}; this one reads up to {SCHEMA})")
    return _without(body, "checksum", "schema")


def _without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key not in names}


def _believed(path: Path, read: Callable[[Path], T]) -> T | None:
    """What a file says; None, with a warning, where it is there and cannot be believed."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except Unreadable as reason:
        _say_once(path, str(reason))
        return None


@lru_cache(maxsize=10_000)
def _say_once(path: Path, reason: str) -> None:
    """A launch looks at a result more than once; that it is damaged is said once."""
    log.warning("%s counts as not there: %s", path, reason)


def _set_aside_unless(path: Path, read: Callable[[Path], Any]) -> None:
    """Set a file aside, or whatever is in its place, unless it can be believed."""
    try:
        read(path)
    except FileNotFoundError:
        return
    except Unreadable as reason:
        log.warning("%s is kept as %s: %s", path, set_aside(path).name, reason)


def set_aside(path: Path) -> Path:
    """Rename what cannot be believed to NAME.corrupt-1 (2, ...), which nothing reads; returns its new place."""
    number = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.corrupt-{n}").exists())
    return path.rename(path.with_name(f"{path.name}.corrupt-{number}"))
