"""Strategies that go over another one: `over` names it, `options` are its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rope.geometry import Geometry, Plan
from rope.pairwise import with_log_n
from rope.strategies.registry import (
    ALIASES,
    EVERY,
    PROMISES,
    STRATEGIES,
    Promise,
    named,
    options_given,
    options_of,
    plan,
    strategy,
)
from rope.strategies.scaling import running_factor


@strategy(Promise.NATIVE_WHEN_TRAINED)
def dynamic(
    geometry: Geometry,
    length: int,
    *,
    over: str = "linear",
    options: Mapping[str, Any] | None = None,
    rule: str = "natural",
    factor: float | None = None,
) -> Plan:
    """Any strategy by the running length: the plan for one forward of exactly `length` tokens.

    the plan of `over` with a factor of
    natural:      max(1, length / trained_length)
    transformers: factor * max(1, length / trained_length) - (factor - 1)

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        over: a strategy with a factor that leaves the trained length alone: "linear", "yarn", ...
        options: its options, without the factor, which is found here.
        rule: "natural", which leaves factor aside, or "transformers", as its dynamic NTK has it.
        factor: for rule="transformers": at least 1 (1 is the natural rule), or None for length / trained_length.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token, and the attention factor for that length.

    Raises:
        ValueError: an argument outside these domains, or what `over` refuses.

    Source:
        emozilla 2023; Peng et al. 2023, YaRN, section 3.3 and appendix B.3, https://arxiv.org/abs/2309.00071
    """
    given = options_given(options)
    name = named(over)
    if "factor" not in options_of(name) or Promise.NATIVE_WHEN_TRAINED not in PROMISES[name]:
        able = [s for s, held in PROMISES.items() if "factor" in options_of(s) and Promise.NATIVE_WHEN_TRAINED in held]
        raise ValueError(f"over={over!r}: give a strategy that grows from the trained length: {', '.join(able)}")
    if "factor" in given:
        raise ValueError("options of dynamic hold a factor, which follows the length: leave it out, or use no dynamic")
    running = running_factor(geometry, length, rule, factor)
    return plan(name, geometry, length, **given, **({"factor": running} if running > 1 else {}))


@strategy(Promise.WHOLE_WAVELENGTHS)
def resonance(
    geometry: Geometry,
    length: int,
    *,
    over: str = "yarn",
    options: Mapping[str, Any] | None = None,
    factor: float | None = None,
) -> Plan:
    """Resonance RoPE: wavelengths rounded to whole tokens, after any other strategy.

    2 pi / round(2 pi / inv_freq[i]), inv_freq as `over` gives it, with its attention factor

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        over: the strategy whose plan is rounded; "none" rounds the native one.
        options: its options.
        factor: handed on to `over` where that has one; above 1, or None for length / trained_length.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token. It differs from the native plan at every length.

    Raises:
        ValueError: what `over` refuses.

    Source:
        Wang et al. 2024, https://arxiv.org/abs/2403.00071
    """
    found = plan(over, geometry, length, **with_factor(over, options_given(options), factor))
    speeds = np.array(found.inv_freq)
    turning = np.where(speeds > 0, speeds, 1.0)
    # a list of the user's may make a pair so fast that it comes round within half a token
    wavelengths = np.maximum(np.round(2 * np.pi / turning), 1.0)
    return Plan(tuple(np.where(speeds > 0, 2 * np.pi / wavelengths, 0.0).tolist()), found.attention_factor)


@strategy()
def per_layer(
    geometry: Geometry,
    length: int,
    *,
    over: str = "linear",
    options: Mapping[str, Any] | None = None,
    factor: float | None = None,
    layers: Mapping[str, Any] | None = None,
) -> Plan:
    """Layer-specific scaling: some layers with options, or a factor, of their own. Here, the plan of all the others.

    the plan of `over`; rope.strategies.plans adds one for every group of `layers`

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        over: the strategy of every layer.
        options: its options.
        factor: handed on to `over` where that has one; above 1, or None for length / trained_length.
        layers: {numbers: factor or options}, numbers as in "0-7,12" (from 0), a factor of 1 leaving those layers
            native, options going before the ones above. A layer stands in one group at most.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token, for the layers that no group names.

    Raises:
        ValueError: what `over` refuses, or `layers` that are no such mapping.

    Source:
        layer-specific scaling of position encodings, https://arxiv.org/abs/2503.04355 (whose factors are searched)
    """
    return plan(over, geometry, length, **with_factor(over, options_given(options), factor))


def with_factor(over: str, options: Mapping[str, Any], factor: float | None) -> dict[str, Any]:
    """The options of a strategy with the factor that was given around it; its own, where it has one, wins."""
    takes = factor is not None and "factor" in options_of(over)
    return {"factor": factor, **options} if takes else dict(options)


def logn(
    geometry: Geometry, length: int, *, over: str = "none", factor: float | None = None, clip: bool = True
) -> Plan:
    """Log-n scaling: later queries attend more sharply, so that more keys do not blur what they attend to.

    the query at position m (from 0) times max(1, ln(m + 1) / ln(trained_length)), over any frequency strategy

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        over: the frequency strategy whose plan it acts on, with its published defaults.
        factor: of that strategy, where it has one; None for length / trained_length.
        clip: at least 1, for checkpoints trained without; false: the same formula below the trained length too, the
            entropy-invariant attention of checkpoints trained with it.

    Returns:
        Pairwise over the plan of `over`; that plan itself up to the trained length, if clipped.

    Raises:
        ValueError: an argument outside these domains, or what `over` refuses.

    Source:
        Su 2021, https://kexue.fm/archives/8823; clipped: Su 2023, https://kexue.fm/archives/9708, and bojone/rerope
    """
    if over not in STRATEGIES and over not in ALIASES:
        raise ValueError(f"unknown frequency strategy in over: {over!r}; give one of: {', '.join(STRATEGIES)}")
    options = {"factor": factor} if factor is not None and "factor" in options_of(over) else {}
    return with_log_n(geometry, plan(over, geometry, length, **options), length, clip)


EVERY["logn"] = logn  # no frequency strategy: it scales queries
