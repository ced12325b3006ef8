"""Results as they lie in a store: all of them, those of a sweep, a cell or a file, and those that filters leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.records.cells import Cell, Refusal, Result, option_text
from pipelines.records.refusal import suggestion
from pipelines.records.results import Store, read_file
from pipelines.report.curves import Results
from pipelines.report.statistics import DECIDING

LATEST = "latest"
"""The name of the newest sweep."""

LEAST_CELL = 4
"""Characters of a cell's id that name it."""


def rows_of(store: Store) -> list[tuple[Cell, Result]]:
    """Everything that was measured into a store, oldest first.

    A cell that was measured under several names (yarn at the trained length is none; one file as two models) is listed
    under each.

    Raises:
        Refusal: there is no such store.
    """
    if not store.root.is_dir():
        raise Refusal(f"there is no folder {store.root}; give the store of a grid, such as mlruns")
    named = [Cell.of(spec) for sweep in store.sweeps() for spec in sweep["cells"]]
    rows, known = _with_results(named, store), {cell.id for cell in named}
    others = [(Cell.of(spec), result) for spec, result in store.newest(10**9) if spec["id"] not in known]
    return [*rows, *reversed(others)]


def rows_of_sweep(sweep: Mapping[str, Any], store: Store) -> list[tuple[Cell, Result]]:
    """The results of a sweep (Sweep.spec), in its order."""
    return _with_results([Cell.of(spec) for spec in sweep["cells"]], store)


def selected(word: str, store: Store) -> list[tuple[Cell, Result]]:
    """What a word names: `latest`, a sweep or a cell by the beginning of its id, a result.json, a folder of a sweep or
    a cell, or another store.

    Raises:
        Refusal: it names nothing, or several; or what it names has no results.
    """
    rows = _selected(word, store)
    if not rows:
        raise Refusal(f"{word}: it has no results yet; `ropewalk results` lists what there is")
    return rows


def _selected(word: str, store: Store) -> list[tuple[Cell, Result]]:
    path = Path(word).expanduser()
    if path.is_file():
        return [read_file(path)]
    if path.is_dir() and (path / "result.json").is_file():
        return [read_file(path / "result.json")]
    if path.is_dir() and (path / "sweep.json").is_file():
        path = path.resolve()
        return _selected(path.name, Store(path.parent.parent))
    if path.is_dir():
        return rows_of(Store.at(word))
    sweeps = {str(sweep["id"]): sweep for sweep in store.sweeps()}
    if word == LATEST and sweeps:
        return rows_of_sweep(max(sweeps.values(), key=lambda sweep: str(sweep["created"])), store)
    found = [name for name in sweeps if name == word] or [name for name in sweeps if name.startswith(word)]
    if len(found) == 1:
        return rows_of_sweep(sweeps[found[0]], store)
    cells = {folder.name for folder in store.root.glob(f"cells/{word}*")} if _may_be_a_cell(word) else set()
    if len(found) + len(cells) > 1:
        raise Refusal(f"{word}: {len(found) + len(cells)} have an id that begins so; give more of it")
    if cells and (row := store.row(cells.pop())) is not None:
        return [(Cell.of(row[0]), row[1])]
    hint = suggestion(word, sweeps)
    raise Refusal(
        f"{word}: no sweep and no cell in {store.root} has an id that begins so, and there is no such file or folder; "
        f"{hint}`ropewalk results` lists the sweeps"
    )


def everything(store: Store) -> list[tuple[Cell, Result]]:
    """One row for every result that lies on disk, failed ones too, whatever names it."""
    rows = [row for folder in sorted(store.root.glob("cells/*")) if (row := store.row(folder.name)) is not None]
    return [(Cell.of(spec), result) for spec, result in rows]


def ids(names: Iterable[str], store: Store) -> tuple[list[str], list[str]]:
    """The ids of the sweeps, and of the cells, whose ids begin with these names.

    Raises:
        Refusal: a name that is of none, or of several.
    """
    sweeps, cells = list[str](), list[str]()
    for name in names:
        of_sweeps = [path.parent.name for path in store.root.glob("sweeps/*/sweep.json") if _begins(path, name)]
        of_cells = [path.name for path in store.root.glob("cells/*") if path.name.startswith(name)]
        of_cells = of_cells if _may_be_a_cell(name) else []
        if len(of_sweeps) + len(of_cells) != 1:
            found = (
                f"{len(of_sweeps) + len(of_cells)} sweeps and cells have" if of_sweeps or of_cells else "nothing has"
            )
            raise Refusal(f"{name}: {found} an id that begins so; `ropewalk results` and `results cells` list them")
        sweeps += of_sweeps
        cells += of_cells
    return sweeps, cells


def _begins(path: Path, name: str) -> bool:
    return bool(name) and path.parent.name.startswith(name)


def _may_be_a_cell(word: str) -> bool:
    return len(word) >= LEAST_CELL and word.isalnum()


def _with_results(cells: Iterable[Cell], store: Store) -> list[tuple[Cell, Result]]:
    # A cell under another name of its strategy, or of its model, is a row of its own.
    named = {(cell.id, cell.model.name, cell.strategy, cell.options): cell for cell in cells}
    results = {cell_id: store.read(cell_id) for cell_id in {cell.id for cell in named.values()}}
    return [(cell, result) for cell in named.values() if (result := results[cell.id]) is not None]


def attributes(cell: Cell, result: Result) -> dict[str, Any]:
    """All that two results may differ in, by the name that the command line or the provenance gives it."""
    return {
        "model": cell.model.name,
        "model.path": cell.model.path,
        "model.revision": cell.model.revision,
        "model.fingerprint": cell.model.fingerprint,
        "model.trained_length": cell.model.trained_length,
        "strategy": cell.strategy,
        **{f"strategy.{name}": value for name, value in cell.options},
        "length": cell.length,
        "task": cell.task.name,
        **{f"task.{name}": value for name, value in cell.task.options},
        "data": cell.data,
        "limit": cell.limit,
        "seed": cell.seed,
        "dtype": cell.dtype,
        "device class": cell.device,
        **{f"versions.{name}": value for name, value in cell.versions},
        **{name: result.provenance[name] for name in DECIDING if name in result.provenance},
    }


FILTERS = {
    "model": "by its name",
    "strategy": "with or without its options",
    "task": "by its name",
    "length": "tokens",
    "status": "ok, diverged, oom, failed or invalid",
    "dtype": "such as bfloat16",
    "device": "cpu or cuda",
    "limit": "documents",
    "seed": "of generated documents",
}
"""What cells are filtered by; commas give several values."""


def filtered(rows: Results, filters: Mapping[str, str]) -> list[tuple[Cell, Result]]:
    """The rows of which every filter has one of its values.

    Raises:
        Refusal: a value that none of the rows has, with those that they have.
    """
    kept = list(rows)
    for key, given in filters.items():
        left = [row for row in kept if fits(row, {key: given})]
        if kept and not left:
            there = ", ".join(dict.fromkeys(sorted(_values(key, *row), key=len)[0] for row in kept))
            raise Refusal(f"{key}={given}: no result here has that; there are {there}")
        kept = left
    return kept


def fits(row: tuple[Cell, Result], filters: Mapping[str, str]) -> bool:
    """Whether every filter has the row's value among its own."""
    return all({value.strip() for value in given.split(",")} & _values(key, *row) for key, given in filters.items())


def _values(key: str, cell: Cell, result: Result) -> set[str]:
    """Under which words a row is found."""
    if key == "strategy":
        return {cell.strategy, cell.strategy_label}
    if key == "model":
        return {cell.model.name}
    if key == "task":
        return {cell.task.name}
    if key == "status":
        return {result.status}
    return {"null" if (value := getattr(cell, key)) is None else str(value)}


def value_text(value: Any) -> str:
    """An attribute's value as a line shows it."""
    return "null" if value is None else option_text(value)


def differing(first: Results, second: Results) -> list[tuple[str, str, str]]:
    """(name, values there, values here) of every attribute in which two sides differ."""
    sides = [[attributes(*row) for row in rows] for rows in (first, second)]
    names = dict.fromkeys(name for side in sides for row in side for name in row)
    lines = []
    for name in names:
        ours, theirs = (list(dict.fromkeys(value_text(row.get(name)) for row in side)) for side in sides)
        if set(ours) != set(theirs):
            lines.append((name, _listed(ours), _listed(theirs)))
    return lines


def _listed(values: Sequence[str]) -> str:
    return ", ".join(value[:60] for value in values[:6]) + (f" and {len(values) - 6} more" if len(values) > 6 else "")
