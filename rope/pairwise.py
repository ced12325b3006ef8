"""Plans that change attention itself: the distance that a query sees depends on query and key as a pair.

Frequencies cannot express these, so each is a list of regions of (query, key) pairs, and in every region query and key
are rotated to positions of their own. Plain data, without torch; rope/attention.py computes it, and the strategies that
make such plans are in rope/strategies/attention.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from rope.cropping import Cropped
from rope.geometry import Plan, Plans

VERSION = 2
"""Up with whatever changes the numbers of a plan of regions. 2: by fused kernels where there is a GPU."""


@dataclass(frozen=True)
class Position:
    """Where a token is rotated to: min(limit, (token mod period) / divisor + offset), the quotient floored if `whole`.

    period: tokens; None for no period. limit: None for no limit. The defaults give the token's own position.
    """

    period: int | None = None
    divisor: float = 1.0
    whole: bool = False
    offset: float = 0.0
    limit: float | None = None

    def at(self, tokens: Any) -> Any:
        """The positions of tokens: an array of their numbers, from 0, of numpy or torch, to one of its shape."""
        within = tokens if self.period is None else tokens % self.period
        quotient = within // self.divisor if self.whole else within / self.divisor
        return (quotient + self.offset).clip(max=self.limit) if self.limit is not None else quotient + self.offset


OWN = Position()


@dataclass(frozen=True)
class Region:
    """The pairs of a query m and a key n <= m with since <= m // unit - n // unit < until, and their positions.

    until: None for no limit. unit: tokens. limit: only keys below it, so that those between belong to no region and are
    not seen; None for all.
    """

    since: int
    until: int | None
    query: Position
    key: Position
    unit: int = 1
    limit: int | None = None

    def first(self, query: Any) -> Any:
        """The first key of each query; below 0 where the region reaches back to the beginning."""
        return query * 0 if self.until is None else (query // self.unit - self.until + 1) * self.unit

    def last(self, query: Any) -> Any:
        """The last key of each query; may lie after the query, where causality cuts it off."""
        last = (query // self.unit - self.since + 1) * self.unit - 1
        return last if self.limit is None else last - (last >= self.limit) * (last - self.limit + 1)


PLAIN = (Region(0, None, OWN, OWN),)
"""Ordinary attention: every distance is that in tokens."""


@dataclass(frozen=True)
class QueryScale:
    """A factor on the query at position m (from 0): start + slope log(1 + t), t = (m + offset) / step.

    Its defaults are log-n scaling, ln(m + 1) / ln(trained_length).

    trained_length: base of the logarithm; None for e. clipped: at least 1. step, offset: tokens. whole: t is floored,
    so that the factor grows in steps.
    """

    trained_length: int | None
    clipped: bool = True
    start: float = 0.0
    slope: float = 1.0
    step: int = 1
    offset: int = 0
    whole: bool = False

    def spec(self) -> dict[str, Any]:
        """As plain data, without what is younger than the ids of the cells that have a scale, where it is not used."""
        own = asdict(self)
        return {
            field.name: own[field.name]
            for field in fields(self)
            if field.name in ("trained_length", "clipped") or own[field.name] != field.default
        }


@dataclass(frozen=True)
class Pairwise(Plan):
    """A plan that changes attention itself.

    regions: of causal pairs, none in two of them, and every query with itself in one; what is in none is not seen.
        Empty where the model's own attention stays.
    query_scale: on every query, before its product with the keys; None for 1.
    """

    regions: tuple[Region, ...] = ()
    query_scale: QueryScale | None = None

    def reach(self, length: int) -> int:
        """The largest distance, rounded up, to which a pair of so many tokens is rotated; or a bound of it."""
        tokens, farthest = np.arange(length), 0 if self.regions else length - 1
        for region in self.regions:
            if region.query == region.key == OWN:
                distance = min(length, length if region.until is None else region.until * region.unit) - 1
            else:
                distance = math.ceil(region.query.at(tokens).max() - region.key.at(tokens).min())
            farthest = max(farthest, distance)
        return farthest

    def changes(self) -> dict[str, Any]:
        scale = None if self.query_scale is None else self.query_scale.spec()
        regions = [asdict(region) for region in self.regions]
        for region in regions:
            if region["limit"] is None:  # younger than the ids of the cells that have none
                del region["limit"]
        return {"regions": regions, "query_scale": scale}


def replaces_attention(plans: Plans) -> bool:
    """Whether any of these plans replaces the model's attention."""
    return any(isinstance(plan, Pairwise) and bool(plan.regions) for _, plan in plans)


def plan_from_dict(spec: Mapping[str, Any]) -> Plan:
    """The plan that dataclasses.asdict, or JSON, turned into this mapping."""
    inv_freq, factor = tuple(spec["inv_freq"]), spec["attention_factor"]
    if "window" in spec:
        return Cropped(inv_freq, factor, spec["window"], spec["stride"])
    if "regions" not in spec:
        return Plan(inv_freq, factor)
    regions = tuple(
        Region(**{**region, "query": Position(**region["query"]), "key": Position(**region["key"])})
        for region in spec["regions"]
    )
    return Pairwise(inv_freq, factor, regions, QueryScale(**spec["query_scale"]) if spec["query_scale"] else None)
