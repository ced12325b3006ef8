"""Two sides of results, cell by cell over the same documents: another dtype, file, backend, text, or any other axis.

Where pipelines.report.statistics compares the strategies of one sweep and refuses whatever else differs, here what
differs is the question: two results are paired where their documents are the same (Result.digest), and all in which
their configs differ is told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipelines.records.cells import Cell, Refusal, Result
from pipelines.report import statistics, stored
from pipelines.report.curves import Results
from pipelines.report.statistics import Difference, Equivalence
from pipelines.report.tables import headlines
from pipelines.tasks.kinds import Measure

Row = tuple[Cell, Result]

OTHER_TEXTS = ("task.text", "data", "seed")
"""Axes along which the documents differ of necessity: there the means are compared, unpaired."""

POSITIONS = "nll_by_position"


@dataclass(frozen=True)
class Compared:
    """A result and the one that it is compared with.

    difference: the first minus the second, in the measure's unit (nats a token, shares); None where `refusal` says why
        they do not compare. paired: whether over the same documents. equivalence: None without a margin, or with too
        few documents. positions: (tokens up to the bucket's end, difference of the NLL there, p adjusted for them all).
    """

    ours: Cell
    theirs: Cell
    difference: Difference | None = None
    equivalence: Equivalence | None = None
    positions: tuple[tuple[float, Difference], ...] = ()
    paired: bool = True
    refusal: str = ""


@dataclass(frozen=True)
class Comparison:
    """ours, theirs: what the two sides are called. differing: (name, values of theirs, of ours) of all in which the
    configs of the compared cells differ. alone: cells without one to compare with: (side, label). margin: as a share.
    same: how many results are on both sides, as of strategies that come to one plan; these are not compared."""

    ours: str
    theirs: str
    compared: tuple[Compared, ...]
    differing: tuple[tuple[str, str, str], ...]
    alone: tuple[tuple[str, str], ...] = ()
    margin: float | None = None
    same: int = 0

    @property
    def equivalent(self) -> bool:
        """Whether all that was compared was shown to be equivalent. Each test at its own level suffices for that."""
        shown = [one.equivalence is not None and one.equivalence.shown for one in self.compared]
        return all(shown) and bool(shown or self.same)


def sides(theirs: Results, ours: Results, names: tuple[str, str], margin: float | None = None) -> Comparison:
    """Every cell of one side with that of the other which has the same choices, but for what the sides never share.

    names: of theirs and of ours.

    Raises:
        Refusal: no cell of one has a counterpart in the other.
    """
    first, second = ([_choices(*row) for row in rows] for rows in (theirs, ours))
    every = dict.fromkeys(name for row in (*first, *second) for name in row)
    apart = [n for n in every if not {row.get(n) for row in first} & {row.get(n) for row in second}]
    pairs, alone = _matched(theirs, ours, _without(apart), names)
    if not pairs:
        shown = "; ".join(f"{name}: {one} and {other}" for name, one, other in stored.differing(theirs, ours)[:8])
        raise Refusal(f"{names[0]} and {names[1]} have no cells with the same choices to compare ({shown})")
    return _comparison(pairs, alone, names, margin, unpaired=False)


def along(rows: Results, axis: str, baseline: str | None = None, margin: float | None = None) -> list[Comparison]:
    """Every value of an axis (dtype, model, model.revision, task.text, strategy.beta_fast, attention, ...) against the
    first one, or the one that `baseline` names, among cells that are alike in all else.

    Raises:
        Refusal: no result has such an axis, or all have one value of it.
    """
    known = [{**_choices(*row), **stored.attributes(*row)} for row in rows]
    values = list(dict.fromkeys(stored.value_text(row[axis]) for row in known if axis in row))
    if any(axis in row for row in known) and any(axis not in row for row in known):
        values = list(dict.fromkeys(stored.value_text(row.get(axis)) for row in known))
    if len(values) < 2:
        several = {name: {stored.value_text(row.get(name)) for row in known} for row in known for name in row}
        axes = ", ".join(name for name, found in several.items() if len(found) > 1) or "none"
        has = f"all results have {values[0]}" if values else "no result has such a choice"
        raise Refusal(f"axis={axis}: {has}; axes with several values here: {axes}")
    if baseline is not None and baseline not in values:
        raise Refusal(f"baseline={baseline}: no result has that {axis}; there are {', '.join(values)}")
    first = values[0] if baseline is None else baseline
    by_value: dict[str, list[Row]] = {value: [] for value in [first, *values]}
    for row, choices in zip(rows, known, strict=True):
        by_value[stored.value_text(choices.get(axis))].append(row)
    drop = _without([axis])
    comparisons = []
    for value, ours in by_value.items():
        names = f"{axis}={first}", f"{axis}={value}"
        pairs, alone = _matched(by_value[first], ours, drop, names)
        if value != first and pairs:
            unpaired = axis in OTHER_TEXTS
            comparisons.append(_comparison(pairs, alone, names, margin, unpaired=unpaired))
    if not comparisons:
        others = [row for value, side in by_value.items() if value != first for row in side]
        apart = [name for name, *_ in stored.differing(by_value[first], others) if name != axis and _chosen(name)]
        raise Refusal(
            f"axis={axis}: no two results differ in it and are alike in all else; they also differ in "
            f"{', '.join(apart) or 'how their choices go together'}: measure both alike, or name sweeps that are"
        )
    return comparisons


def _choices(cell: Cell, result: Result) -> dict[str, Any]:
    """What the command line decides. The plan of a strategy and the version of what measures it are no choices."""
    kept = stored.attributes(cell, result)
    kept["model"] = cell.model.name.partition("@")[0]  # its revision is a choice of its own
    return {name: value for name, value in kept.items() if _chosen(name)}


def _chosen(name: str) -> bool:
    return not name.startswith("versions.") and name not in (*statistics.DECIDING, "model.path")


def _without(apart: Iterable[str]) -> set[str]:
    """The choices that two cells need not share, where they are apart in some: those that follow from these too."""
    follow = {"task.text": {"data"}, "data": {"task.text"}}
    dropped = set(apart) | {name for axis in apart for name in follow.get(axis, ())}
    if any(name == "model" or name.startswith("model.") for name in apart):
        dropped |= {"model.*"}
    return dropped | {f"{name}.*" for name in apart if name in ("strategy", "task")}


def _key(row: Row, dropped: set[str]) -> tuple[tuple[str, str], ...]:
    def kept(name: str) -> bool:
        group, _, option = name.partition(".")
        return name not in dropped and not (option and f"{group}.*" in dropped)

    return tuple(sorted((name, str(value)) for name, value in _choices(*row).items() if kept(name)))


def _matched(
    theirs: Results, ours: Results, dropped: set[str], names: tuple[str, str]
) -> tuple[list[tuple[Row, Row]], list[tuple[str, str]]]:
    """(ours, theirs) of every choice that both have, and the cells of either that the other lacks."""
    first, second = ({_key(row, dropped): row for row in reversed(rows)} for rows in (theirs, ours))
    pairs = [(second[key], first[key]) for key in reversed(second) if key in first]
    alone = [
        (name, row[0].label)
        for name, side, other in ((names[0], first, second), (names[1], second, first))
        for key, row in reversed(side.items())
        if key not in other
    ]
    return pairs, alone


def _comparison(
    pairs: Sequence[tuple[Row, Row]],
    alone: Sequence[tuple[str, str]],
    names: tuple[str, str],
    margin: float | None,
    *,
    unpaired: bool,
) -> Comparison:
    distinct = {(ours[0].id, theirs[0].id): (ours, theirs) for ours, theirs in reversed(pairs)}
    tested = [pair for pair in reversed(distinct.values()) if pair[0][1] != pair[1][1]]
    compared = _adjusted([_compared(ours, theirs, margin, unpaired=unpaired) for ours, theirs in tested])
    told = [pair for pair in pairs if all(result.documents for _, result in pair)] or pairs
    differing = stored.differing([theirs for _, theirs in told], [ours for ours, _ in told])
    same = len(distinct) - len(tested)
    return Comparison(names[1], names[0], tuple(compared), tuple(differing), tuple(alone), margin, same)


def _compared(ours: Row, theirs: Row, margin: float | None, *, unpaired: bool) -> Compared:
    try:
        measure = statistics.measure_of(ours[0].task.name, next(iter(headlines(ours[0].task.name, [ours])), None))
        _check_versions(ours, theirs)
        same = ours[1].digest == theirs[1].digest != ""
        if not same and not unpaired:
            raise Refusal(_other_documents(ours, theirs))
        first, second = (statistics.by_unit(measure, *row) for row in (ours, theirs))
        if same and list(first) != list(second):
            raise Refusal("their documents are numbered differently; compute both anew with force=true")
    except Refusal as reason:
        return Compared(ours[0], theirs[0], refusal=str(reason))
    values, others = (np.array(list(units.values())) for units in (first, second))
    width = None if margin is None else margin_of(measure, margin)
    if not same:
        found, shown = statistics.unpaired(measure, values, others, width)
        return Compared(ours[0], theirs[0], found, shown, paired=False)
    difference = statistics.difference(measure, values - others)
    bounded = not measure.exp and bool(min(values.min(), others.min()) >= 0 and max(values.max(), others.max()) <= 1)
    equivalence = (
        None
        if width is None or difference.p is None
        else statistics.equivalence(values - others, width, bounded=bounded)
    )
    return Compared(ours[0], theirs[0], difference, equivalence, _by_position(ours, theirs))


def _check_versions(ours: Row, theirs: Row) -> None:
    """Refuse results without documents, and results that were measured in different ways.

    Raises:
        Refusal: why.
    """
    for cell, result in (ours, theirs):
        if not result.documents:
            raise Refusal(f"{cell.label} ({cell.id}) has no documents, its status is {result.status}")
    versions = [dict(cell.versions) for cell, _ in (ours, theirs)]
    for name in sorted(set(versions[0]) & set(versions[1])):
        if versions[0][name] != versions[1][name]:
            raise Refusal(
                f"they were scored by different versions ({name} {versions[0][name]} and {versions[1][name]}); "
                "measure both with one version of ropewalk"
            )


def _other_documents(ours: Row, theirs: Row) -> str:
    """Why the documents are not the same, and what to do."""
    cells = ours[0], theirs[0]
    for name, values in (
        ("text", [cell.data for cell in cells]),
        ("length", [cell.length for cell in cells]),
        ("limit", [cell.limit for cell in cells]),
        ("seed", [cell.seed for cell in cells]),
        ("task", [cell.task for cell in cells]),
    ):
        if values[0] != values[1]:
            texts = "; means over other texts: ropewalk compare axis=task.text" if name == "text" else ""
            return (
                f"their documents are not the same, as the {name} differs: give both the same text, length, limit, "
                f"seed and task{texts}"
            )
    digests = " and ".join(result.digest or "none" for _, result in (theirs, ours))
    return (
        f"their documents are not the same tokens (digests {digests}): "
        "models of different tokenizers cannot be compared token by token; compare a score such as passkey's"
    )


def _by_position(ours: Row, theirs: Row) -> tuple[tuple[float, Difference], ...]:
    """The difference of the NLL in every stretch of position; () where either keeps none."""
    rows = [result.documents for _, result in (ours, theirs)]
    if not all(POSITIONS in document for documents in rows for document in documents):
        return ()
    mine, others = (np.array([document[POSITIONS] for document in documents], np.float64) for documents in rows)
    if mine.shape != others.shape:
        return ()
    measure = Measure(POSITIONS, lower=True, exp="perplexity")
    ends = [x for x, _ in ours[1].series[POSITIONS]]
    found = [statistics.difference(measure, column) for column in (mine - others).T]
    return tuple(zip(ends, _holm(found), strict=True))


def _adjusted(compared: Sequence[Compared]) -> list[Compared]:
    """p adjusted over all that was compared."""
    found = _holm([one.difference for one in compared if one.difference is not None])
    adjusted = iter(found)
    return [one if one.difference is None else replace(one, difference=next(adjusted)) for one in compared]


def _holm(differences: Sequence[Difference]) -> list[Difference]:
    adjusted = iter(statistics.holm([one.p for one in differences if one.p is not None]))
    return [one if one.p is None else replace(one, adjusted=next(adjusted)) for one in differences]


def margin_of(measure: Measure, share: float) -> float:
    """A margin in the measure's unit: of a logarithm, that its exponential is at most `share` higher, or as many times
    lower; else the share itself, in points."""
    return math.log1p(share) if measure.exp else share


def margin_read(text: str) -> float:
    """A margin as it is written: `1%`, `0.5 %`, or `0.01`.

    >>> margin_read("1%"), margin_read("0.02")
    (0.01, 0.02)

    Raises:
        Refusal: it is no share above 0 and below 1.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", text.strip())
    share = float(found[1]) / (100 if found[2] else 1) if found else math.nan
    if not 0 < share < 1:
        raise Refusal(f"--margin {text[:40]}: give a share of perplexity, or points of a score, such as 1% or 0.5%")
    return share


def relative(measure: Measure, value: float) -> float:
    """A difference as people read it: the share by which an exponential is higher, or the difference itself."""
    return math.expm1(min(value, 700.0)) if measure.exp else value


def as_data(comparison: Comparison) -> dict[str, Any]:
    """A comparison for machines: differences in the measure's unit, and `relative` ones as shares or points."""

    def plain(found: Difference) -> dict[str, Any]:
        ends = {name: getattr(found, name) for name in ("mean", "low", "high")}
        return {
            "metric": found.measure.name,
            **ends,
            "relative": {n: None if v is None else relative(found.measure, v) for n, v in ends.items()},
            "unit": f"share of {found.measure.exp}" if found.measure.exp else "points, as a share",
            "p": found.p,
            "p_adjusted": found.adjusted,
            "count": found.count,
        }

    return {
        "ours": comparison.ours,
        "theirs": comparison.theirs,
        "margin": comparison.margin,
        "equivalent": None if comparison.margin is None else comparison.equivalent,
        "differing": [{"name": n, "theirs": theirs, "ours": ours} for n, theirs, ours in comparison.differing],
        "same": comparison.same,
        "alone": [{"side": side, "cell": label} for side, label in comparison.alone],
        "cells": [
            {
                "ours": {"id": one.ours.id, "label": one.ours.label},
                "theirs": {"id": one.theirs.id, "label": one.theirs.label},
                "length": one.ours.length,
                "task": one.ours.task.name,
                "paired": one.paired,
                "difference": None if one.difference is None else plain(one.difference),
                "equivalence": None
                if one.equivalence is None
                else {**asdict(one.equivalence), "shown": one.equivalence.shown},
                "positions": [{"to": end, **plain(found)} for end, found in one.positions],
                "reason": one.refusal,
            }
            for one in comparison.compared
        ],
    }
