"""A strategy over others, in one way for all: `over` of a strategy that is built on another, `of` of compose.

Both take a name, {name: ..., option: ...}, or a list of those. Each acts on what the one before it leaves: on a
geometry whose native plan is the plan so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from rope.geometry import Geometry, Plan
from rope.strategies.registry import (
    CHANGES_ATTENTION,
    CROPS_TEXT,
    SCALES_QUERIES,
    as_options,
    canonical_name,
    options_of,
    plan,
)

Over = str | Mapping[str, Any] | Sequence[Any]
"""A strategy, or several in the order in which they act."""

OUTERMOST = ("compose", "per_layer", "nope")
"""Those that have strategies or layers within, and so are in no list."""

FOLLOW_LENGTH = ("dynamic", "dynamic_ntk")
"""Those that stretch by the length whatever factor they are given."""


def planned(
    geometry: Geometry, length: int, over: Any, options: Any = None, factor: float | None = None, word: str = "over"
) -> Plan:
    """The plan of what `over` names.

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        over: an Over, as a user gives it or as a cell keeps it.
        options: of the only strategy, beside those that `over` has.
        factor: for the strategy that has one and was not given its own.
        word: the option that `over` is the value of, for refusals.

    Raises:
        ValueError: an unknown strategy, strategies that do not go together, with the reason, or what one refuses.
    """
    members = _members(over, word)
    if len(members) == 1:
        name, own = alone(over, options, factor, word)
        return plan(name, geometry, length, **own)
    beside = as_options(options)
    factor = beside.pop("factor", factor)
    if beside:
        raise ValueError(f"options={beside!r} beside several strategies: give each its own in {word}")
    _check_together(members, word)
    result = geometry.native(length)
    for name, own in members:
        if "over" in options_of(name) and name != "dynamic":
            own = {"over": "none", **own}
        result = plan(name, geometry, length, **with_factor(name, own, factor))
        geometry = _on(geometry, length, name, own, result)
    return result


def alone(
    over: Any, options: Any = None, factor: float | None = None, word: str = "over"
) -> tuple[str, dict[str, Any]]:
    """The strategy that `over` names, with its options; where those are several, compose of them."""
    members = _members(over, word)
    if len(members) > 1:
        return "compose", {"of": over, "factor": factor}
    name, own = members[0]
    return name, with_factor(name, {**own, **as_options(options)}, factor)


def with_factor(over: str, options: Mapping[str, Any], factor: float | None) -> dict[str, Any]:
    """The options of a strategy with the factor of the one built on it; a factor of its own takes precedence."""
    passed_on = factor is not None and "factor" in options_of(over)
    return {"factor": factor, **options} if passed_on else dict(options)


def _members(over: Any, word: str) -> list[tuple[str, dict[str, Any]]]:
    """[(name, options), ...]; a cell keeps mappings as ((key, value), ...)."""
    entries = [over] if isinstance(over, (str, Mapping)) or _is_pairs(over) else over
    if not isinstance(entries, (list, tuple)) or not entries:
        raise ValueError(f"{word}={over!r}: give a strategy, or a list of them such as [yarn, dual_chunk]")
    members = []
    for entry in entries:
        own = {"name": entry} if isinstance(entry, str) else {}
        if isinstance(entry, Mapping) or _is_pairs(entry):
            own = as_options(entry)
        if "name" not in own:
            raise ValueError(f"{word} holds {entry!r}: give a name, or {{name: yarn, factor: 2}} with its options")
        members.append((canonical_name(own.pop("name")), own))
    return members


def _is_pairs(value: Any) -> bool:
    return bool(
        isinstance(value, tuple)
        and value
        and all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in value)
    )


def _check_together(members: Sequence[tuple[str, Mapping[str, Any]]], word: str) -> None:
    names = [name for name, _ in members]
    for name, own in members:
        if name == "none":
            raise ValueError(f"{word} holds none, which adds nothing: leave it out")
        if name in CROPS_TEXT:
            raise ValueError(f"{word} holds {name}, which shows the plain model less text: measure it by itself")
        if name in OUTERMOST:
            raise ValueError(
                f"{word} holds {name}, which has layers or strategies of its own: give it alone, "
                + (f"with over=[{', '.join(n for n in names if n != name)}]" if name != "compose" else "with its list")
            )
        if "over" in own and name != "dynamic":
            raise ValueError(f"{word} holds {name} with an over of its own: in a list it acts on those before it")
    ranks = [_rank(name) for name in names]
    for before, after in pairwise(members):
        if _rank(after[0]) < _rank(before[0]):
            raise ValueError(
                f"{word} has {before[0]} before {after[0]}: give frequencies first, then one strategy that changes "
                "attention, then a scale on queries"
            )
    for rank, what in ((1, "changes the distances of attention"), (2, "scales queries")):
        if ranks.count(rank) > 1:
            several = " and ".join(name for name in names if _rank(name) == rank)
            raise ValueError(f"{word} holds {several}, each of which {what}: give one of them")
    stretching = [(name, own) for name, own in members if "factor" in options_of(name) and not _acts_on_any_plan(name)]
    if len(stretching) > 1 and not all(own.get("factor") and name not in FOLLOW_LENGTH for name, own in stretching):
        several = " and ".join(name for name, _ in stretching)
        raise ValueError(
            f"{word} holds {several}, each of which stretches by length / trained length: give each a factor of its "
            "own, such as {name: yarn, factor: 2}, whose product is the stretch that you mean"
        )


def _acts_on_any_plan(name: str) -> bool:
    """Whether a strategy only changes what another one planned, so that its factor is that one's."""
    return "over" in options_of(name) and name != "dynamic"


def _rank(name: str) -> int:
    return 2 if name in SCALES_QUERIES else int(name in CHANGES_ATTENTION)


def _on(geometry: Geometry, length: int, name: str, own: Mapping[str, Any], result: Plan) -> Geometry:
    """The geometry whose native plan is a strategy's result: what the next one acts on."""
    base = geometry.base
    if name == "base":  # whose frequencies are plain again
        base = float(own.get("theta", options_of("base")["theta"]))
    return replace(geometry, base=base, natives=((length, result),), running=None)
