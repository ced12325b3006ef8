"""Published tables as data: conf/published/NAME.yaml, read, typed and checked; what each needs; the verdict on a value.

A row's `values` is one string, so that every digit stays as it was printed: `3.51 2.65 >10 nan -` (not given).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import yaml  # type: ignore[import-untyped]

from pipelines.records.cells import Refusal, Task, frozen
from pipelines.records.places import CONF
from pipelines.reproduce import derived
from pipelines.tasks import registry
from rope import strategies
from rope.geometry import Geometry

FOLDER = CONF / "published"
CHECKPOINTS = CONF / "checkpoints.yaml"

SURE = {
    "read": "read in the authors' own file",
    "transcribed": "from a third party's transcription of the paper: look at the paper before you quote it",
    "quoted": "from another paper that quotes it",
    "derived": "follows from formulas alone",
}
"""How sure a table's transcription is."""

VERDICTS = ("reproduced", "close", "not reproduced", "not run")
CLOSE = 4
"""What lies within so many tolerances is close."""

ERRORS = (2.0, 3.0)
"""Standard errors within which two shares of random trials count as the same, and as close."""


@dataclass(frozen=True)
class Value:
    """One published number as it was printed.

    number: None where the print says that it was not a number (nan). above: it is a lower bound (>100).
    """

    text: str
    number: float | None
    above: bool = False

    @classmethod
    def of(cls, text: str) -> Value | None:
        """A value from its print; None: not given.

        Raises:
            ValueError: it is no number.
        """
        if text == "-":
            return None
        if text.lower() == "nan":
            return cls(text, None)
        return cls(text, float(text.removeprefix(">")), text.startswith(">"))

    @property
    def half(self) -> float:
        """Half a unit of the last digit that was printed."""
        digits, _, exponent = self.text.removeprefix(">").lower().partition("e")
        return 0.5 * 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))

    def verdict(self, ours: float, tolerance: float, error: float = 0.0) -> str:
        """Reproduced, close or not.

        ours: in the published unit; infinite where the model broke down. tolerance: relative, beyond rounding.
        error: standard error of the difference of two such values, in their unit; 0 where no chance is in them.
        """
        if self.number is None:
            return "reproduced" if not math.isfinite(ours) else "not reproduced"
        if self.above:
            return "reproduced" if ours > self.number else "close" if ours > self.number / 2 else "not reproduced"
        off = abs(ours - self.number)
        if error:
            same, near = (self.half + errors * error for errors in ERRORS)
            return "reproduced" if off <= same else "close" if off <= near else "not reproduced"
        # What is printed was rounded from a binary number: a hair beyond half a digit is still its rounding.
        allowed = self.half * (1 + 1e-9) + tolerance * abs(self.number)
        close = max(CLOSE * allowed, 0.05 * abs(self.number)) if tolerance == 0 else CLOSE * allowed
        return "reproduced" if off <= allowed else "close" if off <= close else "not reproduced"


@dataclass(frozen=True)
class Column:
    """One column of a table.

    length: tokens under test; lengths: where one value is of several (registry.OVER). value: of a derived table,
        what the column's argument is.

    task, limit, metric, scale, trials: where they differ from the table's. step: between two values that can be, where
        chance may make one of the other: a step off is close. missing: why it cannot be run.
    """

    label: str
    length: int | None = None
    lengths: tuple[int, ...] = ()
    value: Any = None
    task: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    metric: str | None = None
    scale: float | None = None
    trials: int | None = None
    step: float | None = None
    missing: str | None = None


@dataclass(frozen=True)
class Row:
    """One method or model of a table.

    model: a key of conf/checkpoints.yaml. strategy: name, and options. factors: of the strategy, column by column; 1
        is no strategy. length: tokens under test, where the columns are something else.
    arguments: of a derived table. missing: why it cannot be run by anybody.
    """

    name: str
    values: tuple[Value | None, ...]
    model: str | None = None
    strategy: Mapping[str, Any] = field(default_factory=lambda: {"name": "none"})
    factors: tuple[float | None, ...] | None = None
    length: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    missing: str | None = None


@dataclass(frozen=True)
class Claim:
    """What a table is cited for, such that any model can be asked: see pipelines/claims.py, which knows the kinds.

    lengths: in trained lengths of the model that is asked.
    """

    says: str
    kind: str
    strategies: tuple[Mapping[str, Any], ...]
    lengths: tuple[float, ...]
    winners: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """A published table: where it stands, how it was measured, what it says.

    metric: ours that answers it; scale: times which it is theirs. tolerance: relative, beyond the rounding of a print.
    trials: of shares found, out of how many random trials each is: they are compared as two draws.
    compute: of a derived table, a function of pipelines/derived.py; argument: its parameter that the columns are.
    missing: why nobody can run it. claims: what it is cited for.
    """

    name: str
    title: str
    source: str
    sure: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    metric: str = "ppl"
    scale: float = 1.0
    task: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    length: int | None = None
    dtype: str = "bfloat16"
    tolerance: float = 0.005
    trials: int | None = None
    compute: str | None = None
    argument: str | None = None
    missing: str | None = None
    notes: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def derived(self) -> bool:
        return self.compute is not None

    def values(self) -> Iterable[tuple[Row, int, Value]]:
        """Every value that was given: its row, its column's number, and itself."""
        return (
            (row, number, value) for row in self.rows for number, value in enumerate(row.values) if value is not None
        )

    def task_of(self, column: Column) -> Mapping[str, Any]:
        return {**self.task, **column.task}

    def metric_of(self, column: Column) -> str:
        return column.metric or self.metric

    def limit_of(self, column: Column) -> int | None:
        return column.limit or self.limit

    def trials_of(self, column: Column) -> int | None:
        return column.trials or self.trials

    def scale_of(self, column: Column) -> float:
        return self.scale if column.scale is None else column.scale

    def lengths_of(self, row: Row, column: Column) -> tuple[int, ...]:
        """Every length that a value takes, tokens; none: it is not said."""
        length = row.length or column.length
        return column.lengths or (() if length is None else (length,))

    def missing_of(self, row: Row, column: Column) -> str | None:
        """Why a value cannot be run by anybody; None: it can."""
        told = self.missing or row.missing or column.missing
        return told or (None if row.model and self.lengths_of(row, column) else "its length is not said")

    def judged(self, column: Column, value: Value, ours: float, limit: int | None = None) -> str:
        """The verdict on ours, in the table's own unit. limit: of its trials, where it is another than the table's."""
        theirs, scale = self.trials_of(column), self.scale_of(column)
        if value.number is None or not math.isfinite(ours):
            return value.verdict(ours, self.tolerance)
        if not theirs:
            found = value.verdict(ours, self.tolerance)
            near = column.step and abs(ours - value.number) <= column.step
            return "close" if near and found == "not reproduced" else found
        trials = theirs * (limit or 0) / (self.limit_of(column) or theirs) or theirs
        # Of both draws together, one more found and one more missed: no share of 0 or 1 is without error.
        share = ((ours * trials + value.number * theirs) / scale + 1) / (trials + theirs + 2)
        return value.verdict(ours, self.tolerance, scale * math.sqrt(share * (1 - share) * (1 / trials + 1 / theirs)))


@dataclass(frozen=True)
class Checkpoint:
    """A model that tables name. shape: keys of its config.json that decide memory and time."""

    name: str
    path: str
    trained_length: int | None = None
    gated: bool = False
    shape: Mapping[str, Any] = field(default_factory=dict)

    @property
    def to_get(self) -> str:
        licence = "accept its licence on the hub, log in (`hf auth login`), then " if self.gated else ""
        return f"to get it: {licence}`hf download {self.path}`"


def names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


@lru_cache(maxsize=64)
def table(name: str) -> Table:
    """A table by its file's name.

    Raises:
        Refusal: there is none, or the file does not say what a table says.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise Refusal(f"published={name}: there is none of that name; there are {', '.join(names())}")
    try:
        made = _table(name, yaml.safe_load(path.read_text(encoding="utf-8")))
        _check(made)
    except (ValueError, TypeError, KeyError) as error:
        raise Refusal(f"conf/published/{name}.yaml: {error}") from error
    return made


@lru_cache(maxsize=1)
def checkpoints() -> Mapping[str, Checkpoint]:
    given = yaml.safe_load(CHECKPOINTS.read_text(encoding="utf-8"))
    shapes = given["shapes"]
    return {
        name: Checkpoint(name=name, **{**entry, "shape": shapes[entry["shape"]]})
        for name, entry in given["checkpoints"].items()
    }


def _table(name: str, given: Mapping[str, Any]) -> Table:
    given = dict(given)
    _known(Table, given)
    columns = tuple(map(_column, given.pop("columns", None) or [{"label": "value"}]))
    rows = tuple(_row(entry, len(columns)) for entry in given.pop("rows", ()))
    claims = tuple(_claim(entry) for entry in given.pop("claims", ()))
    notes = tuple(given.pop("notes", ()))
    return Table(name=name, columns=columns, rows=rows, claims=claims, notes=notes, **given)


def _column(entry: Any) -> Column:
    if isinstance(entry, Mapping):
        _known(Column, entry)
        label = str(entry.get("label", entry.get("length", entry.get("value"))))
        return Column(**{**entry, "label": label, "lengths": tuple(entry.get("lengths", ()))})
    return Column(str(entry), length=entry if isinstance(entry, int) else None, value=entry)


def _row(entry: Mapping[str, Any], columns: int) -> Row:
    _known(Row, entry)
    values = tuple(Value.of(text) for text in str(entry["values"]).split())
    if len(values) != columns:
        raise ValueError(f"row {entry['name']} has {len(values)} values and there are {columns} columns")
    told = {**entry, "values": values, "name": str(entry["name"])}
    if "strategy" in entry:
        told["strategy"] = _strategy(entry["strategy"])
    if "factors" in entry:
        told["factors"] = tuple(entry["factors"])
        if len(told["factors"]) != columns:
            raise ValueError(f"row {entry['name']} has {len(told['factors'])} factors for {columns} columns")
    return Row(**told)


def _claim(entry: Mapping[str, Any]) -> Claim:
    _known(Claim, entry)
    told = {name: tuple(entry[name]) for name in ("lengths", "winners") if name in entry}
    return Claim(**{**entry, **told, "strategies": tuple(map(_strategy, entry["strategies"]))})


def _strategy(given: Any) -> Mapping[str, Any]:
    return {"name": given} if isinstance(given, str) else dict(given)


def _known(record: Any, given: Mapping[str, Any]) -> None:
    unknown = set(given) - {one.name for one in fields(record)}
    if unknown:
        raise ValueError(f"a {record.__name__.lower()} has no {', '.join(sorted(unknown))}")


def _check(told: Table) -> None:
    """Every name that a table uses is there, and every plan can be built.

    Raises:
        ValueError: one is not.
    """
    if told.sure not in SURE:
        raise ValueError(f"sure={told.sure}: give one of {', '.join(SURE)}")
    if told.compute is not None:
        if told.compute not in derived.DERIVED:
            raise ValueError(f"compute={told.compute}: there are {', '.join(derived.DERIVED)}")
        return
    for column in told.columns:
        _measurable(told, column)
    for row in told.rows:
        if row.model is not None and row.model not in checkpoints():
            raise ValueError(f"model {row.model} of row {row.name} is not in {CHECKPOINTS.name}")
        if row.model is None and not (row.missing or told.missing):
            raise ValueError(f"row {row.name} names no model and does not say why")
        for number, column in enumerate(told.columns):
            _buildable(strategy_at(row, number), column.length or 2)
    for claim in told.claims:
        for strategy in claim.strategies:
            _buildable(strategy, 2)


def _measurable(told: Table, column: Column) -> None:
    metric, options = told.metric_of(column), dict(told.task_of(column))
    if bool(column.lengths) != (metric in registry.OVER):
        raise ValueError(f"column {column.label}: lengths go with the metrics {', '.join(registry.OVER)}, not {metric}")
    if options:
        registry.options_of(Task(str(options.pop("name")), frozen(options)), told.limit_of(column))


def strategy_at(row: Row, column: int) -> Mapping[str, Any]:
    """A row's strategy in one column, with the factor that it has there."""
    factor = None if row.factors is None else row.factors[column]
    if factor is None or factor == 1:
        return {"name": "none"} if factor == 1 else row.strategy
    return {**row.strategy, "factor": factor}


def _buildable(strategy: Mapping[str, Any], length: int) -> None:
    options = dict(strategy)
    strategies.plan(options.pop("name"), Geometry(head_dim=128, base=10_000.0, trained_length=4096), length, **options)


def chosen(told: Table, rows: Sequence[str] | None, columns: Sequence[str] | None) -> Table:
    """The table with some rows and columns alone.

    Raises:
        Refusal: it has none of that name.
    """
    for kind, asked, there in (
        ("rows", rows, [row.name for row in told.rows]),
        ("columns", columns, [column.label for column in told.columns]),
    ):
        for one in asked or ():
            if one not in there:
                raise Refusal(f"{kind}={one}: {told.name} has {', '.join(there)}")
    places = [n for n, column in enumerate(told.columns) if columns is None or column.label in columns]
    kept = [
        replace(
            row,
            values=tuple(row.values[n] for n in places),
            factors=None if row.factors is None else tuple(row.factors[n] for n in places),
        )
        for row in told.rows
        if rows is None or row.name in rows
    ]
    return replace(told, columns=tuple(told.columns[n] for n in places), rows=tuple(kept))
