"""Published tables as data: conf/published/NAME.yaml, read, typed and checked; and the verdict on a value.

A row's `values` is one string, so that every digit stays as it was printed: `3.51 2.65 >10 nan -` (not given).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from pipelines.choices import schema
from pipelines.records.cells import Refusal, Task, frozen
from pipelines.records.places import CONF
from pipelines.records.refusal import suggestion
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
class PublishedValue:
    """One published number as it was printed.

    number: None where the print says that it was not a number (nan). above: it is a lower bound (>100).
    """

    text: str
    number: float | None
    above: bool = False

    @classmethod
    def parse(cls, text: str) -> PublishedValue | None:
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
class PublishedColumn:
    """One column of a table. In a file it may be its length or label alone.

    length: tokens under test; lengths: where one value is of several (registry.OVER). value: of a derived table,
        what the column's argument is.
    metric: ours that answers it; scale: times which it is theirs. limit: documents.
    trials: of shares found, out of how many random trials each is: they are compared as two draws.
    step: between two values that can be, where chance may make one of the other: a step off is close.
    missing: why it cannot be run.
    """

    label: str
    length: int | None = None
    lengths: list[int] = field(default_factory=list)
    value: Any = None
    task: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    metric: str = "ppl"
    scale: float = 1.0
    trials: int | None = None
    step: float | None = None
    missing: str | None = None


@dataclass(frozen=True)
class PublishedRow:
    """One method or model of a table.

    values: as printed, one a column. model: a key of conf/checkpoints.yaml. strategy: name, and options.
    factors: of the strategy, column by column; 1 is no strategy. length: tokens under test, where the columns are
        something else.
    arguments: of a derived table. missing: why it cannot be run by anybody.
    """

    name: str
    values: str
    model: str | None = None
    strategy: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    factors: list[float | None] | None = None
    length: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    missing: str | None = None

    @property
    def parsed(self) -> list[PublishedValue | None]:
        return [PublishedValue.parse(text) for text in self.values.split()]

    def strategy_at(self, column: int) -> Mapping[str, Any]:
        """The strategy in one column, with the factor that it has there."""
        factor = None if self.factors is None else self.factors[column]
        if factor is None or factor == 1:
            return {"name": "none"} if factor == 1 else self.strategy
        return {**self.strategy, "factor": factor}


@dataclass(frozen=True)
class Claim:
    """What a table is cited for, testable on any model; claims.py has the kinds.

    lengths: in trained lengths of the tested model.
    """

    says: str
    kind: str
    strategies: list[dict[str, Any]]
    lengths: list[float]
    winners: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class PublishedTable:
    """A published table: where it stands, how it was measured, what it says.

    metric, scale, task, limit, trials: of the columns that do not say otherwise.
    tolerance: relative, beyond the rounding of a print.
    compute: of a derived table, a function of derived.py; argument: its parameter that the columns are.
    missing: why nobody can run it. claims: what it is cited for.
    """

    name: str
    title: str
    source: str
    sure: str
    columns: list[PublishedColumn]
    rows: list[PublishedRow] = field(default_factory=list)
    metric: str = "ppl"
    scale: float = 1.0
    task: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    dtype: str = "bfloat16"
    tolerance: float = 0.005
    trials: int | None = None
    compute: str | None = None
    argument: str | None = None
    missing: str | None = None
    notes: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    @property
    def derived(self) -> bool:
        return self.compute is not None

    def values(self) -> Iterator[tuple[PublishedRow, int, PublishedValue]]:
        """Every value that was given: its row, its column's number, and itself."""
        for row in self.rows:
            for number, value in enumerate(row.parsed):
                if value is not None:
                    yield row, number, value

    def lengths_of(self, row: PublishedRow, column: PublishedColumn) -> Sequence[int]:
        """Every length that a value takes, tokens; none: it is not said."""
        length = row.length or column.length
        return column.lengths or ([] if length is None else [length])

    def missing_of(self, row: PublishedRow, column: PublishedColumn) -> str | None:
        """Why a value cannot be run by anybody; None: it can."""
        reason = self.missing or row.missing or column.missing
        return reason or (None if row.model and self.lengths_of(row, column) else "its length is not said")

    def verdict(self, column: PublishedColumn, value: PublishedValue, ours: float, limit: int | None = None) -> str:
        """The verdict on ours, in the table's own unit. limit: of its trials, where it is another than the table's."""
        theirs, scale = column.trials, column.scale
        if value.number is None or not math.isfinite(ours):
            return value.verdict(ours, self.tolerance)
        if not theirs:
            verdict = value.verdict(ours, self.tolerance)
            near = column.step and abs(ours - value.number) <= column.step
            return "close" if near and verdict == "not reproduced" else verdict
        trials = theirs * (limit or 0) / (column.limit or theirs) or theirs
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
    shape: dict[str, Any] = field(default_factory=dict)

    @property
    def to_get(self) -> str:
        licence = "accept its licence on the hub, log in (`hf auth login`), then " if self.gated else ""
        return f"to get it: {licence}`hf download {self.path}`"


def names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


@lru_cache(maxsize=64)
def table(name: str) -> PublishedTable:
    """A table by its file's name.

    Raises:
        Refusal: there is none, or the file does not say what a table says.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        hint = suggestion(name, names())
        raise Refusal(f"published={name}: there is none of that name; {hint}there are {', '.join(names())}")
    try:
        return from_values({"name": name, **schema.read(path)})
    except (ValueError, TypeError) as error:
        raise Refusal(f"conf/published/{name}.yaml: {error}") from error


@lru_cache(maxsize=1)
def checkpoints() -> Mapping[str, Checkpoint]:
    content = schema.read(CHECKPOINTS)
    return {
        name: schema.structured(Checkpoint, {"name": name, **entry, "shape": content["shapes"][entry["shape"]]})
        for name, entry in content["checkpoints"].items()
    }


def from_values(values: Mapping[str, Any]) -> PublishedTable:
    """A table from plain values, as a file has them; every name in it checked, every plan built.

    Raises:
        Refusal: a key is unknown or missing, or a value of another type.
        ValueError: a name is not there, or a plan cannot be built.
    """
    inherited = {name: values[name] for name in ("metric", "scale", "limit", "trials") if name in values}
    columns = []
    for entry in values.get("columns") or [{"label": "value"}]:
        if not isinstance(entry, Mapping):
            entry = {"label": entry, "value": entry, **({"length": entry} if isinstance(entry, int) else {})}
        label = entry.get("label", entry.get("length", entry.get("value")))
        task = {**values.get("task", {}), **entry.get("task", {})}
        columns.append({**inherited, **entry, "label": label, "task": task})
    rows = [{**row, "strategy": _with_name(row.get("strategy", "none"))} for row in values.get("rows", ())]
    claims = [
        {**claim, "strategies": [_with_name(strategy) for strategy in claim.get("strategies", ())]}
        for claim in values.get("claims", ())
    ]
    table = schema.structured(PublishedTable, {**values, "columns": columns, "rows": rows, "claims": claims})
    _check(table)
    return table


def _with_name(strategy: str | Mapping[str, Any]) -> Mapping[str, Any]:
    return {"name": strategy} if isinstance(strategy, str) else strategy


def _check(table: PublishedTable) -> None:
    """Every name that a table uses is there, and every plan can be built.

    Raises:
        ValueError: one is not.
    """
    if table.sure not in SURE:
        raise ValueError(f"sure={table.sure}: give one of {', '.join(SURE)}")
    if table.compute is not None and table.compute not in derived.DERIVED:
        raise ValueError(f"compute={table.compute}: there are {', '.join(derived.DERIVED)}")
    for row in table.rows:
        _check_row(table, row)
    if not table.derived:
        for column in table.columns:
            _check_column(column)
    for strategy in (strategy for claim in table.claims for strategy in claim.strategies):
        _build_plan(strategy, 2)


def _check_row(table: PublishedTable, row: PublishedRow) -> None:
    for count, what in ((len(row.parsed), "values"), (len(row.factors or table.columns), "factors")):
        if count != len(table.columns):
            raise ValueError(f"row {row.name} has {count} {what} and there are {len(table.columns)} columns")
    if table.derived:
        return
    if row.model is not None and row.model not in checkpoints():
        raise ValueError(f"model {row.model} of row {row.name} is not in {CHECKPOINTS.name}")
    if row.model is None and not (row.missing or table.missing):
        raise ValueError(f"row {row.name} names no model and does not say why")
    for number, column in enumerate(table.columns):
        _build_plan(row.strategy_at(number), column.length or 2)


def _check_column(column: PublishedColumn) -> None:
    if bool(column.lengths) != (column.metric in registry.OVER):
        over = ", ".join(registry.OVER)
        raise ValueError(f"column {column.label}: lengths go with the metrics {over}, not {column.metric}")
    if options := dict(column.task):
        registry.options_of(Task(str(options.pop("name")), frozen(options)), column.limit)


def _build_plan(strategy: Mapping[str, Any], length: int) -> None:
    options = dict(strategy)
    strategies.plan(options.pop("name"), Geometry(head_dim=128, base=10_000.0, trained_length=4096), length, **options)


def selected(table: PublishedTable, rows: Sequence[str] | None, columns: Sequence[str] | None) -> PublishedTable:
    """The table with some rows and columns alone.

    Raises:
        Refusal: it has none of that name.
    """
    for kind, wanted, known in (
        ("rows", rows, [row.name for row in table.rows]),
        ("columns", columns, [column.label for column in table.columns]),
    ):
        for name in wanted or ():
            if name not in known:
                raise Refusal(f"{kind}={name}: {table.name} has {', '.join(known)}")
    places = [n for n, column in enumerate(table.columns) if columns is None or column.label in columns]
    chosen_rows = [
        replace(
            row,
            values=" ".join(row.values.split()[n] for n in places),
            factors=None if row.factors is None else [row.factors[n] for n in places],
        )
        for row in table.rows
        if rows is None or row.name in rows
    ]
    return replace(table, columns=[table.columns[n] for n in places], rows=chosen_rows)
