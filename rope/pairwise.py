"""Strategies that change attention itself: the distance a query sees depends on query and key as a pair.

No frequency says what these do, so each is a list of regions of (query, key) pairs, in every one of which query and key
are rotated to positions of their own. Plain data, without torch; rope/attention.py computes what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rope.geometry import Geometry, Plan, Plans, check_flag, check_integer, check_number

FILLED = 2 / 3
"""Share of the trained positions that self_extend fills by itself; its authors advise one half to two thirds."""


VERSION = 2
"""Up with whatever changes the numbers of a plan of regions. 2: by fused kernels where there is a GPU."""


@dataclass(frozen=True)
class Position:
    """Where a token is rotated to: min(limit, (token mod period) / divisor + offset), the quotient floored if `whole`.

    period: tokens; None: no end. limit: None: none. The defaults are the token's own place.
    """

    period: int | None = None
    divisor: float = 1.0
    whole: bool = False
    offset: float = 0.0
    limit: float | None = None

    def of(self, tokens: Any) -> Any:
        """Positions of an array of token numbers, of numpy or of torch."""
        within = tokens if self.period is None else tokens % self.period
        quotient = within // self.divisor if self.whole else within / self.divisor
        return (quotient + self.offset).clip(max=self.limit) if self.limit is not None else quotient + self.offset


OWN = Position()


@dataclass(frozen=True)
class Region:
    """The pairs of a query m and a key n <= m with since <= m // unit - n // unit < until, and their positions.

    until: None: all that lie further back.
    """

    since: int
    until: int | None
    query: Position
    key: Position
    unit: int = 1

    def first(self, query: Any) -> Any:
        """The first key of a query's row; below 0 where the row reaches back to the beginning."""
        return query * 0 if self.until is None else (query // self.unit - self.until + 1) * self.unit

    def last(self, query: Any) -> Any:
        """The last key of a query's row; may lie after the query, where causality cuts it off."""
        return (query // self.unit - self.since + 1) * self.unit - 1


PLAIN = (Region(0, None, OWN, OWN),)
"""Attention as it is without any strategy."""


@dataclass(frozen=True)
class LogN:
    """The query at position m (from 0) times ln(m + 1) / ln(trained_length); at least 1 if `clipped`."""

    trained_length: int
    clipped: bool = True


@dataclass(frozen=True)
class Pairwise(Plan):
    """A plan under which attention itself is another one.

    regions: which partition the causal pairs; empty where attention is the model's own.
    query_scale: on every query, before its product with the keys; None: 1.
    """

    regions: tuple[Region, ...] = ()
    query_scale: LogN | None = None

    def changes(self) -> dict[str, Any]:
        """What it does beside rotating, as plain data."""
        scale = None if self.query_scale is None else asdict(self.query_scale)
        return {"regions": [asdict(region) for region in self.regions], "query_scale": scale}


def by_regions(plans: Plans) -> bool:
    """Whether attention is another one under any of these plans."""
    return any(isinstance(plan, Pairwise) and bool(plan.regions) for _, plan in plans)


def revived(spec: Mapping[str, Any]) -> Plan:
    """A plan from the plain data that dataclasses.asdict, or JSON, made of it."""
    inv_freq, factor = tuple(spec["inv_freq"]), spec["attention_factor"]
    if "regions" not in spec:
        return Plan(inv_freq, factor)
    regions = tuple(
        Region(**{**region, "query": Position(**region["query"]), "key": Position(**region["key"])})
        for region in spec["regions"]
    )
    return Pairwise(inv_freq, factor, regions, LogN(**spec["query_scale"]) if spec["query_scale"] else None)


def self_extend(
    geometry: Geometry, length: int, *, group_size: int | None = None, window: int | None = None, logn: bool = False
) -> Plan:
    """Self-Extend: neighbours keep their distance, tokens further back share positions by groups.

    distance(m, n) = m - n                                                           where m - n < window
                   = floor(m / group_size) + window - window / group_size - floor(n / group_size)       beyond

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        group_size: tokens a position; at least 1. None: 1 up to the trained length, beyond it the smallest with
            window + (length - window) / group_size <= 2/3 trained_length, as the authors advise.
        window: tokens that keep their distance; at least 1. None: a quarter of the trained length.
        logn: also scale queries as `logn` does (scale_base of the authors' code).

    Returns:
        Pairwise over the native frequencies; the native plan itself where window or group_size leave nothing to do.

    Raises:
        ValueError: an argument outside these domains, or a window that leaves no group_size to be found.

    Source:
        Jin et al. 2024, LLM Maybe LongLM, https://arxiv.org/abs/2401.01325; datamllab/LongLM,
        self_extend_patch/Llama.py (group_size 8, window 1024 for 4096 trained tokens), whose offset is the fraction
        window / group_size, not its floor
    """
    native, window = geometry.native(length), _share(geometry, "window", window, 1 / 4)
    check_flag("logn", logn)
    if group_size is None:
        group_size = _group_size(geometry, length, window)
    check_integer("group_size", group_size, least=1)
    grouped = Position(divisor=float(group_size), whole=True)
    shifted = Position(divisor=float(group_size), whole=True, offset=window - window / group_size)
    regions = (Region(0, window, OWN, OWN), Region(window, None, shifted, grouped))
    return _plan(geometry, native, length, regions if group_size > 1 and length > window else (), logn)


def rerope(geometry: Geometry, length: int, *, window: int | None = None, logn: bool = True) -> Plan:
    """ReRoPE: no distance exceeds the window.

    distance(m, n) = min(m - n, window)

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        window: tokens that keep their distance; at least 1. None: a quarter of the trained length.
        logn: also scale queries as `logn` does, as the author's code has it.

    Returns:
        Pairwise over the native frequencies; the native plan itself while no distance exceeds the window.

    Raises:
        ValueError: an argument outside these domains.

    Source:
        Su 2023, https://kexue.fm/archives/9708; bojone/rerope, rerope_patch.py (window 512 for 4096 trained tokens)
        and README.md, whose table is of window 1024
    """
    native, window = geometry.native(length), _share(geometry, "window", window, 1 / 4)
    check_flag("logn", logn)
    far = Region(window, None, Position(period=1, offset=float(window)), Position(period=1))
    return _plan(geometry, native, length, (Region(0, window, OWN, OWN), far) if length > window + 1 else (), logn)


def leaky_rerope(
    geometry: Geometry, length: int, *, window: int | None = None, step: float = 16.0, logn: bool = True
) -> Plan:
    """Leaky ReRoPE: beyond the window, distances grow more slowly.

    distance(m, n) = m - n                              where m - n < window
                   = window + (m - n - window) / step   beyond

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        window: tokens that keep their distance; at least 1. None: an eighth of the trained length.
        step: tokens a position beyond the window; at least 1, which changes nothing.
        logn: also scale queries as `logn` does, as the author's code has it.

    Returns:
        Pairwise over the native frequencies; the native plan itself while no distance exceeds the window.

    Raises:
        ValueError: an argument outside these domains.

    Source:
        Su 2023, https://kexue.fm/archives/9708; bojone/rerope, leaky_rerope_patch.py (window 512 for 4096 trained
        tokens, and 16, there called scaling_factor)
    """
    native, window = geometry.native(length), _share(geometry, "window", window, 1 / 8)
    check_flag("logn", logn)
    check_number("step", step, least=1)
    slowed = Position(divisor=float(step))
    ahead = Position(divisor=float(step), offset=window - window / step)
    regions = (Region(0, window, OWN, OWN), Region(window, None, ahead, slowed))
    return _plan(geometry, native, length, regions if step > 1 and length > window + 1 else (), logn)


def dual_chunk(
    geometry: Geometry, length: int, *, chunk_size: int | None = None, local_window: int | None = None,
    logn: bool = False,
) -> Plan:  # fmt: skip
    """Dual chunk attention (DCA): positions begin anew in every chunk of c = chunk_size - local_window tokens.

    distance(m, n) = m % c - n % c                       in the same chunk
                   = min(m % c + c, chunk_size) - n % c  where n is in the chunk before
                   = min(2 c - 1, chunk_size) - n % c    further back

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        chunk_size: the largest position; at least 1. None: three quarters of the trained length.
        local_window: tokens of the chunk before that keep their distance; at least 0, below chunk_size. None: a sixth
            of chunk_size, which is an eighth of the trained length.
        logn: also scale queries as `logn` does.

    Returns:
        Pairwise over the native frequencies; the native plan itself while no distance exceeds chunk_size or 2 c - 1.

    Raises:
        ValueError: an argument outside these domains.

    Source:
        An et al. 2024, https://arxiv.org/abs/2402.17463; HKUNLP/ChunkLlama, chunkllama_attn_replace.py (whose later
        versions also sharpen attention; the paper and this do not)
    """
    native, chunk_size = geometry.native(length), _share(geometry, "chunk_size", chunk_size, 3 / 4)
    check_flag("logn", logn)
    local_window = chunk_size // 6 if local_window is None else local_window
    check_integer("local_window", local_window, least=0)
    chunk = chunk_size - local_window
    if chunk < 1:
        raise ValueError(f"local_window={local_window} with chunk_size={chunk_size}: give a local_window below it")
    within = Position(period=chunk)
    after = Position(period=chunk, offset=float(chunk), limit=float(chunk_size))
    back = Position(period=1, offset=float(min(2 * chunk - 1, chunk_size)))
    rows = ((0, 1, within), (1, 2, after), (2, None, back))
    regions = tuple(Region(since, until, query, within, unit=chunk) for since, until, query in rows)
    untouched = min(2 * chunk, chunk_size + 1)  # tokens: up to there every distance is m - n
    return _plan(geometry, native, length, regions if length > untouched else (), logn)


PAIRWISE: dict[str, Callable[..., Plan]] = {
    strategy.__name__: strategy for strategy in (self_extend, rerope, leaky_rerope, dual_chunk)
}


def with_log_n(geometry: Geometry, plan: Plan, length: int, clip: bool) -> Plan:
    """A plan of the frequencies of another, its queries scaled by log n; itself where no query would be."""
    check_flag("clip", clip)
    if clip and length <= geometry.trained_length:
        return plan
    return Pairwise(plan.inv_freq, plan.attention_factor, (), LogN(geometry.trained_length, clip))


def _plan(geometry: Geometry, native: Plan, length: int, regions: tuple[Region, ...], logn: bool) -> Plan:
    scale = LogN(geometry.trained_length) if logn and length > geometry.trained_length else None
    if not regions and scale is None:
        return native  # itself, so that its cell is that of none
    return Pairwise(native.inv_freq, native.attention_factor, regions, scale)


def _share(geometry: Geometry, name: str, given: int | None, share: float) -> int:
    if given is None:
        return max(1, int(share * geometry.trained_length))
    check_integer(name, given, least=1)
    return int(given)


def _group_size(geometry: Geometry, length: int, window: int) -> int:
    if length <= geometry.trained_length:
        return 1
    room = FILLED * geometry.trained_length - window
    if room <= 0:
        raise ValueError(
            f"window={window} fills two thirds of the {geometry.trained_length} trained positions, so that no "
            "group_size is small enough: give a smaller window, or group_size"
        )
    return math.ceil((length - window) / room)
