"""Strategies that change attention itself: other distances between tokens."""

from __future__ import annotations

import math

from rope.geometry import Geometry, Plan, check_flag, check_integer, check_number
from rope.pairwise import OWN, Pairwise, Position, QueryScale, Region
from rope.strategies.registry import strategy

FILLED = 2 / 3
"""Share of the trained positions that self_extend fills by default; its authors advise one half to two thirds."""


@strategy(examples=({"group_size": 4}, {"window": 20}), changes_attention=True)
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
        ValueError: an argument outside these domains, or a window so large that no group_size is small enough.

    Source:
        Jin et al. 2024, LLM Maybe LongLM, https://arxiv.org/abs/2401.01325; datamllab/LongLM,
        self_extend_patch/Llama.py (group_size 8, window 1024 for 4096 trained tokens), whose offset is the fraction
        window / group_size, not its floor
    """
    native, window = geometry.native(length), _whole_or_share(geometry, "window", window, 1 / 4)
    check_flag("logn", logn)
    if group_size is None:
        group_size = _group_size(geometry, length, window)
    check_integer("group_size", group_size, least=1)
    grouped = Position(divisor=float(group_size), whole=True)
    shifted = Position(divisor=float(group_size), whole=True, offset=window - window / group_size)
    regions = (Region(0, window, OWN, OWN), Region(window, None, shifted, grouped))
    return _pairwise(geometry, native, length, regions if group_size > 1 and length > window else (), logn)


@strategy(examples=({"window": 20},), changes_attention=True)
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
    native, window = geometry.native(length), _whole_or_share(geometry, "window", window, 1 / 4)
    check_flag("logn", logn)
    far = Region(window, None, Position(period=1, offset=float(window)), Position(period=1))
    return _pairwise(geometry, native, length, (Region(0, window, OWN, OWN), far) if length > window + 1 else (), logn)


@strategy(examples=({"window": 20},), changes_attention=True)
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
    native, window = geometry.native(length), _whole_or_share(geometry, "window", window, 1 / 8)
    check_flag("logn", logn)
    check_number("step", step, least=1)
    slowed = Position(divisor=float(step))
    ahead = Position(divisor=float(step), offset=window - window / step)
    regions = (Region(0, window, OWN, OWN), Region(window, None, ahead, slowed))
    return _pairwise(geometry, native, length, regions if step > 1 and length > window + 1 else (), logn)


@strategy(examples=({"chunk_size": 32}, {"local_window": 5}), changes_attention=True)
def dual_chunk(
    geometry: Geometry,
    length: int,
    *,
    chunk_size: int | None = None,
    local_window: int | None = None,
    logn: bool = False,
) -> Plan:
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
    native, chunk_size = geometry.native(length), _whole_or_share(geometry, "chunk_size", chunk_size, 3 / 4)
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
    return _pairwise(geometry, native, length, regions if length > untouched else (), logn)


@strategy(examples=({"shifted_offset": 512}, {"local_value": 64}), changes_attention=True)
def string(
    geometry: Geometry, length: int, *, shifted_offset: int | None = None, local_value: int | None = None
) -> Plan:
    """STRING: far tokens at the distances that training saw more often, within the trained length too.

    distance(m, n) = m - n                                where m - n < shifted_offset
                   = m - n - shifted_offset + local_value  beyond

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2. From about 4/3 of the trained length on, distances are new to the model.
        shifted_offset: tokens that keep their distance, and by which the others move nearer (the paper's S); at least
            1. None: a third of the trained length.
        local_value: tokens by which they stay further away than neighbours (the paper's W); at least 0, at most
            shifted_offset. None: 128, and at most a quarter of shifted_offset.

    Returns:
        Pairwise over the native frequencies; the native plan itself while no distance reaches shifted_offset.

    Raises:
        ValueError: an argument outside these domains.

    Source:
        An et al. 2024, https://arxiv.org/abs/2410.18745 (S = L / 3, W = 128); HKUNLP/STRING, string_for_llama.py, whose
        decoding has these two parts (its prefill counts a distance of exactly S in both)
    """
    native, shifted_offset = geometry.native(length), _whole_or_share(geometry, "shifted_offset", shifted_offset, 1 / 3)
    if local_value is None:
        local_value = min(128, shifted_offset // 4)
    check_integer("local_value", local_value, least=0)
    if local_value > shifted_offset:
        raise ValueError(
            f"local_value={local_value} with shifted_offset={shifted_offset}: give at most that; more moves tokens away"
        )
    nearer = Position(offset=float(local_value - shifted_offset))
    regions = (Region(0, shifted_offset, OWN, OWN), Region(shifted_offset, None, nearer, OWN))
    changed = length > shifted_offset and local_value < shifted_offset
    return _pairwise(geometry, native, length, regions if changed else (), False)


def _pairwise(geometry: Geometry, native: Plan, length: int, regions: tuple[Region, ...], logn: bool) -> Plan:
    scale = QueryScale(geometry.trained_length) if logn and length > geometry.trained_length else None
    if not regions and scale is None:
        return native  # the same plan as that of `none`, so that both are one cell
    return Pairwise(native.inv_freq, native.attention_factor, regions, scale)


def _whole_or_share(geometry: Geometry, name: str, value: int | None, share: float) -> int:
    if value is None:
        return max(1, int(share * geometry.trained_length))
    check_integer(name, value, least=1)
    return int(value)


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
