"""Strategies built on another one: `over` names it, `options` are its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rope.geometry import Geometry, Plan
from rope.strategies.registry import (
    PROMISES,
    Promise,
    as_options,
    canonical_name,
    options_of,
    plan,
    strategy,
)
from rope.strategies.scaling import running_factor


@strategy(
    Promise.NATIVE_WHEN_TRAINED,
    examples=(
        {"over": "yarn"},
        {"over": "yarn", "options": {"beta_fast": 16.0}},
        {"over": "ntk_fixed"},
        {"rule": "transformers"},
        {"rule": "transformers", "factor": 3.0},
        {"over": "ntk", "rule": "transformers", "factor": 3.0},
    ),
)
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
        options: its options, without the factor, which follows from the length.
        rule: "natural", which ignores factor, or "transformers", as its dynamic NTK has it.
        factor: for rule="transformers": at least 1 (1 is the natural rule), or None for length / trained_length.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token, and the attention factor for that length.

    Raises:
        ValueError: an argument outside these domains, or what `over` refuses.

    Source:
        emozilla 2023; Peng et al. 2023, YaRN, section 3.3 and appendix B.3, https://arxiv.org/abs/2309.00071
    """
    name, own = canonical_name(over), as_options(options)
    growing = [s for s, held in PROMISES.items() if Promise.NATIVE_WHEN_TRAINED in held and "factor" in options_of(s)]
    if name not in growing:
        raise ValueError(f"over={over!r}: give a strategy that grows from the trained length: {', '.join(growing)}")
    if "factor" in own:
        raise ValueError("options of dynamic hold a factor, which follows the length: leave it out, or use no dynamic")
    running = running_factor(geometry, length, rule, factor)
    return plan(name, geometry, length, **own, **({"factor": running} if running > 1 else {}))


@strategy(Promise.WHOLE_WAVELENGTHS, examples=({"over": "none"}, {"options": {"beta_fast": 16.0}}))
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
        factor: passed on to `over` where that has one; above 1, or None for length / trained_length.

    Returns:
        The plan of `over` with (pairs,) other inverse frequencies, radians per token; never the native plan.

    Raises:
        ValueError: what `over` refuses.

    Source:
        Wang et al. 2024, https://arxiv.org/abs/2403.00071
    """
    before = plan(over, geometry, length, **with_factor(over, as_options(options), factor))
    inv_freq = np.array(before.inv_freq)
    nonzero = np.where(inv_freq > 0, inv_freq, 1.0)
    # a user's own list of divisors may give a wavelength below half a token
    wavelengths = np.maximum(np.round(2 * np.pi / nonzero), 1.0)
    return replace(before, inv_freq=tuple(np.where(inv_freq > 0, 2 * np.pi / wavelengths, 0.0).tolist()))


@strategy(
    examples=(
        {"over": "yarn"},
        {"over": "yarn", "options": {"beta_fast": 16.0}},
        {"over": "dynamic", "options": {"over": "by_parts"}},
        {"layers": {"0-3": 8}},
    ),
)
def per_layer(
    geometry: Geometry,
    length: int,
    *,
    over: str = "linear",
    options: Mapping[str, Any] | None = None,
    factor: float | None = None,
    layers: Mapping[str, Any] | None = None,
) -> Plan:
    """Layer-specific scaling: some layers with options, or a factor, of their own. This is the plan of all the others.

    the plan of `over`; rope.strategies.plans adds one for every group of `layers`

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        over: the strategy of every layer.
        options: its options.
        factor: passed on to `over` where that has one; above 1, or None for length / trained_length.
        layers: {numbers: factor or options}; numbers as in "0-7,12", from 0. A factor of 1 leaves those layers native;
            options take precedence over the ones above. A layer is in one group at most.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token, for the layers that no group names.

    Raises:
        ValueError: what `over` refuses, or `layers` that are no such mapping.

    Source:
        layer-specific scaling of position encodings, https://arxiv.org/abs/2503.04355 (whose factors are searched)
    """
    return plan(over, geometry, length, **with_factor(over, as_options(options), factor))


def with_factor(over: str, options: Mapping[str, Any], factor: float | None) -> dict[str, Any]:
    """The options of a strategy with the factor of the one built on it; a factor of its own takes precedence."""
    passed_on = factor is not None and "factor" in options_of(over)
    return {"factor": factor, **options} if passed_on else dict(options)
