"""Strategies built on others: `over` names them (see rope/strategies/stack.py), `options` are the options of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rope.geometry import Geometry, Plan, check_number, layer_numbers
from rope.strategies.registry import PROMISES, Promise, options_of, plan, strategy
from rope.strategies.scaling import running_factor, stretch
from rope.strategies.stack import Over, alone, planned


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
    over: Over = "linear",
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
    name, own = alone(over, options)
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
    over: Over = "yarn",
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
    before = planned(geometry, length, over, options, factor)
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
        {"knots": {"0": 8, "3": 2}},
    ),
)
def per_layer(
    geometry: Geometry,
    length: int,
    *,
    over: Over = "linear",
    options: Mapping[str, Any] | None = None,
    factor: float | None = None,
    layers: Mapping[str, Any] | None = None,
    knots: Mapping[str, float] | None = None,
) -> Plan:
    """Layer-specific scaling: some layers with options, or a factor, of their own. This is the plan of all the others.

    the plan of `over`; rope.strategies.plans adds one for every group of `layers`, and for every layer l between two
    knots (a, f) and (b, g): that of factor f (g / f)^((l - a) / (b - a))

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        over: the strategy of every layer.
        options: its options.
        factor: passed on to `over` where that has one; above 1, or None for length / trained_length.
        layers: {numbers: factor or options}; numbers as in "0-7,12", from 0. A factor of 1 leaves those layers native;
            options take precedence over the ones above. A layer is in one group at most.
        knots: {number: factor} of two layers or more, factors of at least 1, in a model of one layer type. A few
            numbers for a search, instead of one a layer: the logarithm of the factor runs straight between them.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token, for the layers that neither names.

    Raises:
        ValueError: what `over` refuses, or `layers` or `knots` that are no such mapping.

    Source:
        layer-specific scaling of position encodings, https://arxiv.org/abs/2503.04355 (whose factors are searched)
    """
    return planned(geometry, length, over, options, factor)


@strategy(
    examples=(
        {"layers": (0, 1)},
        {"layers": ("0-1", 3), "over": "yarn"},
        {"softmax_scale": 0.412, "factor": 8.0},
    ),
)
def nope(
    geometry: Geometry,
    length: int,
    *,
    layers: Any = None,
    over: Over = "none",
    factor: float | None = None,
    softmax_scale: float = 0.0,
) -> Plan:
    """NoPE layers: layers that do not rotate at all, among others that do. Needs training, or a recalibration.

    inv_freq[i] = 0 in `layers`; their attention logits times 1 + softmax_scale ln(factor)

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        layers: numbers from 0, as [3, 7] or "0-7,12"; None for all of them. This is then the plan of the others;
            rope.strategies.plans adds one for these.
        over: the strategy of the other layers, or several (see compose).
        factor: of that strategy, and in the softmax scale; above 1, or None for length / trained_length.
        softmax_scale: c in the scale of the softmax of layers without rotation; at least 0.

    Returns:
        Plan with (pairs,) inverse frequencies, radians per token, and an attention factor of the root of that scale.

    Raises:
        ValueError: an argument outside these domains, what `over` refuses, or a softmax_scale of partly rotated heads.

    Source:
        in some layers: SmolLM3 and Llama 4 (transformers, no_rope_layers); in all: DroPE, https://arxiv.org/abs/2512.12167
    """
    still_layers(layers)
    check_number("softmax_scale", softmax_scale, least=0)
    stretched, others = stretch(geometry, length, factor), planned(geometry, length, over, None, factor)
    if softmax_scale and geometry.partial != 1:
        raise ValueError(
            f"softmax_scale={softmax_scale} where {geometry.partial:g} of a head rotates: a plan scales no more than "
            "that; give 0, or a model that rotates whole heads"
        )
    if layers is not None:
        if others.changes():
            raise ValueError(
                "over changes attention itself, which all layers must do alike: give another, or no layers"
            )
        return others
    return Plan((0.0,) * geometry.pairs, math.sqrt(1 + softmax_scale * math.log(stretched)))


def still_layers(layers: Any) -> str:
    """The layers of nope as a key of Plans has them: "0-7,12"; "" for all.

    Raises:
        ValueError: anything but layer numbers and ranges.
    """
    if layers is None:
        return ""
    if not isinstance(layers, (str, list, tuple)) or not layers:
        raise ValueError(f"layers={layers!r}: give a list of layer numbers and ranges from 0 on, such as [0-7, 12]")
    text = layers if isinstance(layers, str) else ",".join(map(str, layers))
    layer_numbers(text)  # refuses what is none
    return text


@strategy(
    examples=(
        {"of": ({"name": "base", "theta": 57_200.0}, "yarn")},
        {"of": ("ntk", "self_extend"), "factor": 2.0},
    ),
    changes_attention=True,
)
def compose(geometry: Geometry, length: int, *, of: Over | None = None, factor: float | None = None) -> Plan:
    """Several strategies, each on top of the one before: frequencies first, then attention, then a scale on queries.

    the plan of of[0], taken for the native one by of[1], and so on

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        of: strategies, by name or as {name: ..., option: ...}: any number that change frequencies, of which one may
            stretch by the length unless each has a factor of its own; then one that changes distances, then one that
            scales queries, at most. None: yarn, dual_chunk.
        factor: for the strategy that stretches and has no factor of its own; above 1, or None for length /
            trained_length.

    Returns:
        Plan, Pairwise where one of them changes attention.

    Raises:
        ValueError: fewer than two strategies, those that do not go together, with the reason, or what one refuses.

    Source:
        yarn, dual_chunk: Qwen2, https://arxiv.org/abs/2407.10671; another base under a weaker yarn: llama.cpp, issue
        2268 (theta 57,200 for 16,384 tokens of Llama 2)
    """
    of = ("yarn", "dual_chunk") if of is None else of
    if isinstance(of, (str, Mapping)) or (isinstance(of, (list, tuple)) and len(of) < 2):
        raise ValueError(f"of={of!r}: give at least two strategies, such as [yarn, dual_chunk]")
    return planned(geometry, length, of, None, factor, word="of")
