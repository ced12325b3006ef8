"""Queries scaled by their position, over any other strategy: sharper attention, the further a text has come."""

from __future__ import annotations

from dataclasses import replace

from rope.cropping import Cropped
from rope.geometry import Geometry, Plan, check_flag, check_integer, check_number
from rope.pairwise import Pairwise, QueryScale
from rope.strategies.registry import strategy
from rope.strategies.stack import Over, planned


@strategy(examples=({"over": "yarn"}, {"over": "yarn", "factor": 8.0}), scales_queries=True)
def logn(
    geometry: Geometry, length: int, *, over: Over = "none", factor: float | None = None, clip: bool = True
) -> Plan:
    """Log-n scaling: later queries attend more sharply, which makes up for their larger number of keys.

    the query at position m (from 0) times max(1, ln(m + 1) / ln(trained_length)), over any other strategy

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        over: the strategy whose plan it acts on, with its published defaults, or several (see compose).
        factor: of that strategy, where it has one; None for length / trained_length.
        clip: at least 1, for checkpoints trained without; false: the same formula below the trained length too, the
            entropy-invariant attention of checkpoints trained with it.

    Returns:
        Pairwise over the plan of `over`; that plan itself up to the trained length, if clipped.

    Raises:
        ValueError: an argument outside these domains, what `over` refuses, or one that scales queries already.

    Source:
        Su 2021, https://kexue.fm/archives/8823; clipped: Su 2023, https://kexue.fm/archives/9708, and bojone/rerope
    """
    check_flag("clip", clip)
    before = planned(geometry, length, over, None, factor)
    unchanged = clip and length <= geometry.trained_length
    return _scaled(before, None if unchanged else QueryScale(geometry.trained_length, clip))


@strategy(
    examples=({"over": "yarn"}, {"over": "yarn", "factor": 8.0}, {"floor_scale": 1024}, {"offset": 1}),
    scales_queries=True,
)
def temperature(
    geometry: Geometry,
    length: int,
    *,
    over: Over = "none",
    factor: float | None = None,
    attn_scale: float = 0.1,
    floor_scale: int | None = None,
    start: float = 1.0,
    offset: int = 0,
    smooth: bool = False,
) -> Plan:
    """Query temperature: the query at position m (from 0) times a factor that grows with the logarithm of m.

    start + attn_scale ln(1 + t), t = floor((m + offset) / floor_scale), not floored if smooth

    With the defaults it is Ministral 3's; offset=1 with floor_scale=8192 is Llama 4's (there of the layers that do not
    rotate); start=0, floor_scale=1 is Scalable-Softmax with s = attn_scale; with attn_scale = 1 / ln(trained_length) as
    well, log-n scaling.

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        over: the strategy whose plan it acts on, with its published defaults, or several (see compose).
        factor: of that strategy, where it has one; None for length / trained_length.
        attn_scale: slope in the logarithm; at least 0 (Ministral 3 calls it beta).
        floor_scale: tokens a step; at least 1. None: the trained length, up to which the factor is then `start`.
        start: factor at the beginning; at least 0, above 0 where attn_scale is 0.
        offset: tokens added to a position; at least 0.
        smooth: let the factor grow token by token, not in steps.

    Returns:
        Pairwise over the plan of `over`; that plan itself where every factor is 1.

    Raises:
        ValueError: an argument outside these domains, what `over` refuses, or one that scales queries already.

    Source:
        transformers, modeling_ministral3.py, get_llama_4_attn_scale; modeling_llama4.py (attn_scale 0.1, floor_scale
        8192); SSMax: Nakanishi 2025, https://arxiv.org/abs/2501.19399, whose s is learned (0.43 in its figure 1)
    """
    check_number("attn_scale", attn_scale, least=0)
    check_number("start", start, least=0 if attn_scale else None, above=None if attn_scale else 0)
    check_integer("offset", offset, least=0)
    check_flag("smooth", smooth)
    step = geometry.trained_length if floor_scale is None else floor_scale
    check_integer("floor_scale", step, least=1)
    before = planned(geometry, length, over, None, factor)
    first_step = not smooth and (length - 1 + offset) // step == 0
    if start == 1 and (first_step or attn_scale == 0):
        return before
    scale = QueryScale(None, False, float(start), float(attn_scale), int(step), int(offset), not smooth)
    return _scaled(before, scale)


def _scaled(before: Plan, scale: QueryScale | None) -> Plan:
    """A plan with a scale on queries; itself without one."""
    if isinstance(before, Cropped):
        raise ValueError("crop shows the plain model less text, and scales no query: measure it by itself")
    if isinstance(before, Pairwise) and before.query_scale is not None:
        raise ValueError("the strategy below scales queries already: give it logn=false, or leave the second scale out")
    if scale is None:
        return before
    if isinstance(before, Pairwise):
        return replace(before, query_scale=scale)
    return Pairwise(before.inv_freq, before.attention_factor, (), scale)
