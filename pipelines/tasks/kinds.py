"""Properties of a task that other code depends on, so that no other code depends on the name of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.records.cells import Refusal
from pipelines.tasks import text
from pipelines.tasks.documents import Document, Encoder

LOWER = frozenset({"nll", "ppl", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter"})
HIGHER = frozenset({"acc", "acc_norm", "exact_match", "em", "f1", "score", "bleu", "chrf", "mcc"})
"""lm-eval's metrics of which less, or more, is better."""

MOST_LIMIT = 512
"""Smaller limits that are looked for, of which a result may have documents already."""

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Measure:
    """What of a task's documents is compared.

    name: key of every document's record, and what a report calls it.
    lower: whether less of it is better.
    unit: key of a record, such as key_number. Documents of one value of it count as one observation and are averaged
        first, for they are not independent (the same passkey at several depths); None: every document is its own.
    exp: what its exponential is called, where it is the logarithm of something that people read; else "".
    """

    name: str
    lower: bool
    unit: str | None = None
    exp: str = ""

    @property
    def units(self) -> str:
        """What a report calls the observations: documents, or what `unit` numbers (keys)."""
        return "documents" if self.unit is None else f"{self.unit.removesuffix('_number')}s"


@dataclass(frozen=True)
class Selection:
    """Some documents of one half, as choices of a cell: options of its task, its limit and its seed."""

    options: Mapping[str, Any]
    limit: int
    seed: int


class Halves(Protocol):
    """Two halves of a task's documents that share nothing: options are chosen on one (tune), judged on the other
    (report)."""

    @property
    def options(self) -> tuple[str, ...]:
        """The task's options that select a half."""

    @property
    def nested(self) -> bool:
        """Whether every selection begins with the half's first document, so that a longer one holds a shorter one."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts to try in this order where none is given; none: the task makes as many documents as are wanted."""

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse options that the selection of a half sets itself."""

    def select(self, part: str, begin: int, end: int, *, count: int, seed: int) -> Selection:
        """Documents begin ... end - 1 of a half of `count` documents; where nested, all up to `end`."""

    def held(self, part: str, options: Mapping[str, Any], encode: Encoder, length: int) -> int | None:
        """How many documents of exactly this length a half holds; None: not known before it runs."""


@dataclass(frozen=True)
class HalvesBySeed:
    """Halves of documents that are drawn anew, as many as wanted: those of one seed, and of the next.

    counted: the option that says how many.
    """

    counted: str
    nested = True
    texts: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        return (self.counted,)

    def check(self, options: Mapping[str, Any]) -> None:
        pass

    def select(self, part: str, begin: int, end: int, *, count: int, seed: int) -> Selection:
        return Selection({self.counted: count}, limit=end, seed=seed + text.PARTS.index(part))

    def held(self, part: str, options: Mapping[str, Any], encode: Encoder, length: int) -> int | None:
        return None


class TaskKind:
    """One task; the defaults are those of a task that lm-eval brings.

    options: every option with its default, whose type its values have.
    optional: of options whose default is null: the type of their other values.
    hashed: the options that a cell's id has even at their default. Any other is left out there, so that a new option
        leaves the ids of older cells alone.
    headlines: the metrics that its table shows; (): the first that is no standard error.
    measure: what is compared between results; None: the table's metric.
    consistency: whether its table shows the share of units that score alike at every depth and length.
    halves: how a search divides its documents; None: it cannot.
    over: metrics that are of its `acc` at several lengths: (tokens, acc) of each -> one number.
    """

    options: Mapping[str, Any]
    optional: Mapping[str, type] = {}
    hashed: tuple[str, ...] = ()
    headlines: tuple[str, ...] = ()
    measure: Measure | None = None
    consistency: bool = False
    halves: Halves | None = None
    over: Mapping[str, Callable[[Curve], float]] = {}

    def check_types(self, task: str, options: Mapping[str, Any]) -> None:
        """Refuse options that have another type than their default.

        Raises:
            Refusal: the option, its value, and what it takes.
        """
        for name, value in options.items():
            default = self.options.get(name)
            kind = self.optional.get(name) if default is None else type(default)
            if kind is None or (default is None and value is None):
                continue
            if not _fits(kind, value):
                null = ", or null" if default is None else ""
                raise Refusal(f"{name}={value!r} of the task {task}: give {_WORDS[kind]}{null}")

    def larger(self, count: int) -> str:
        """The overrides that make it that many observations: what advice spells out."""
        options, limit = self.enlarged(count)
        return " ".join([*(f"task.{name}={value}" for name, value in options.items()), f"limit={limit}"])

    def enlarged(self, count: int) -> tuple[dict[str, Any], int]:
        """The options and the limit that make it that many observations."""
        return {}, count

    def units(self, options: Mapping[str, Any], limit: int | None) -> int | None:
        """Observations of a cell, at most; None: all that its text or data set has."""
        return limit

    def smaller(self, options: Mapping[str, Any], limit: int | None) -> Iterator[tuple[dict[str, Any], int | None]]:
        """Options and limits of the same task that take some of the documents of these, the most first."""
        most = MOST_LIMIT if limit is None else min(limit - 1, MOST_LIMIT)
        yield from (({}, fewer) for fewer in range(most, 0, -1))

    def scored(self, options: Mapping[str, Any], length: int) -> int:
        """How many of the last tokens of a forward are scored, at most; 1 where it is an answer of a few."""
        return 1

    def worst(self, vocabulary: int) -> float:
        """What stands for the measure of a document whose score is not finite. vocabulary: the model's tokens."""
        return 0.0

    def measure_of(self, task: str, metric: str | None) -> Measure:
        """What is compared between results of the task `task`, whose table shows `metric`.

        Raises:
            Refusal: nobody said whether more of the metric is better.
        """
        if self.measure is not None:
            return self.measure
        name = (metric or "").partition("/")[0]
        if metric is None or name not in LOWER | HIGHER:
            raise Refusal(f"task {task}: whether more {metric} is better is not known; add it to LOWER or HIGHER")
        return Measure(metric, lower=name in LOWER)

    def id_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that a cell's id has: those of `hashed`, and all that differ from their default."""
        return {
            name: value
            for name, value in options.items()
            if name in self.hashed or name not in self.options or value != self.options[name]
        }


_WORDS = {int: "a whole number", bool: "true or false", str: "a text", tuple: "a list of numbers"}


def _fits(kind: type, value: Any) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 10**12
    if kind is tuple:
        return isinstance(value, (tuple, list)) and all(isinstance(entry, (int, float)) for entry in value)
    return isinstance(value, kind)


class OwnTask(TaskKind, ABC):
    """A task of this folder: a file that makes documents, and a YAML of lm-eval's that scores each.

    version: goes up whenever a change can change its documents or its metrics.
    """

    name: str
    version: int
    chance: float | None = None
    """Score of guessing; None: its score is no share."""
    choices: int = 1
    """Answers of which the likeliest is that of a document; 1: there is nothing to choose."""

    @abstractmethod
    def build(
        self, options: Mapping[str, Any], encode: Encoder, *, length: int, limit: int | None, seed: int
    ) -> list[Document]:
        """The documents, of at most `length` tokens each; `limit` of them, None: all there are.

        Raises:
            Refusal: not one can be made, or an option is out of its range.
        """

    def check(self, options: Mapping[str, Any], encode: Encoder, length: int) -> None:
        """Refuse, cheaply, what `build` would refuse."""
        self.build(options, encode, length=length, limit=1, seed=0)

    def detail(self, document: Document, answer: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """What a document's record keeps beside its metrics: lists of numbers by name, to be paired entry by entry, and
        numbers that `finish` needs."""
        return {}

    def forwards(
        self, options: Mapping[str, Any], encode: Encoder | None, *, length: int, limit: int | None
    ) -> int | None:
        """How many forwards the documents take; None where that takes an encoder, or a data set, not at hand."""
        return limit

    def evaluator(self, options: Mapping[str, Any]) -> str | None:
        """The strategy or model that decides which tokens are key; None where none are asked for."""
        return None

    def yaml(self, options: Mapping[str, Any]) -> str:
        """Name of the lm-eval task that scores the documents."""
        return self.name

    def finish(
        self,
        metrics: dict[str, float],
        documents: Sequence[Document],
        records: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
    ) -> tuple[dict[str, float], dict[str, list[tuple[float, float]]]]:
        """Metrics and series that take all documents together; `records` is what is kept of each, `detail` included, so
        that documents which were scored before count like any other."""
        return metrics, {}
