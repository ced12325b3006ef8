"""The strategies by name, with what each promises and examples of its options."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from functools import cache
from typing import Any, TypeVar

import numpy as np

from rope.geometry import Geometry, Plan

Strategy = Callable[..., Plan]
"""(geometry, length, **options) -> plan: pure, options keyword-only, float64 throughout."""

Function = TypeVar("Function", bound=Strategy)

Options = Mapping[str, Any]


class Promise(Enum):
    """What a strategy guarantees at every setting of its options, on a checkpoint without a scaling of its own."""

    NATIVE_WHEN_TRAINED = "up to the trained length, with no factor given, it is the native plan, bit for bit"
    FIRST_PAIR_KEPT = "the first, fastest pair keeps its frequency"
    LAST_PAIR_DIVIDED = "the frequency of the last, slowest pair is divided by the whole factor"
    NONE_FASTER = "no frequency grows"
    WITHIN_FACTOR = "no frequency is divided by more than the factor"
    SLOWER_MORE = "the lower a frequency, the larger its divisor, or the same"
    ORDER_KEPT = "frequencies stay in descending order"
    ANY_LENGTH = "the plan is the same at every length"
    ATTENTION_KEPT = "the attention factor is the native one"
    WHOLE_WAVELENGTHS = "every wavelength is a whole number of tokens"


STRATEGIES: dict[str, Strategy] = {}
"""Every strategy."""

CHANGES_ATTENTION: set[str] = set()
"""Those that change attention itself, whose plans are Pairwise."""

SCALES_QUERIES: set[str] = set()
"""Those of them that keep the distances, and scale queries by their position."""

CROPS_TEXT: set[str] = set()
"""Those that change how much of a text the model sees, whose plans are Cropped."""

ALIASES = {"pi": "linear"}

PROMISES: dict[str, frozenset[Promise]] = {}
EXAMPLES: dict[str, tuple[Options, ...]] = {}
REQUIRED: dict[str, Options] = {}


def strategy(
    *promises: Promise,
    required: Options | None = None,
    examples: Sequence[Options] = (),
    changes_attention: bool = False,
    scales_queries: bool = False,
    crops_text: bool = False,
) -> Callable[[Function], Function]:
    """Register a function as a strategy, under its own name.

    Args:
        promises: what it guarantees; tests try each of them at many geometries, lengths and settings.
        required: options without which there is no plan, each with an example. A list of one number per pair is given
            by its ends: (1.0, 4.0).
        examples: settings that show what options do. Each option in them must change the plan, for a model trained on
            4,096 tokens at 16,384. Only needed for options that tests cannot try by themselves: they try a factor of
            8, half of a default that is a number, and the opposite of a flag.
        changes_attention: its plans are Pairwise.
        scales_queries: they are, and it scales queries by their position over any other strategy.
        crops_text: its plans are Cropped.
    """

    def register(function: Function) -> Function:
        name = function.__name__
        STRATEGIES[name] = function
        PROMISES[name] = frozenset(promises)
        EXAMPLES[name] = tuple(examples)
        REQUIRED[name] = required or {}
        if changes_attention or scales_queries:
            CHANGES_ATTENTION.add(name)
        if scales_queries:
            SCALES_QUERIES.add(name)
        if crops_text:
            CROPS_TEXT.add(name)
        return function

    return register


def frequency_strategies() -> list[str]:
    """The strategies that change frequencies alone."""
    return [name for name in STRATEGIES if name not in CHANGES_ATTENTION | CROPS_TEXT]


def canonical_name(strategy: str) -> str:
    """The name of a strategy in STRATEGIES; ValueError, with the known names, for any other word."""
    name = ALIASES.get(strategy, strategy) if isinstance(strategy, str) else ""
    if name not in STRATEGIES:
        raise ValueError(_unknown("strategy", strategy, [*STRATEGIES, *ALIASES], "strategies"))
    return name


def options_of(strategy: str) -> dict[str, Any]:
    """The options of a strategy with their published defaults, in the order of its signature."""
    return dict(_defaults(STRATEGIES[canonical_name(strategy)]))


@cache  # a signature takes 60 us, and a grid asks for it with every cell
def _defaults(function: Callable[..., Plan]) -> tuple[tuple[str, Any], ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple((p.name, p.default) for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def kinds_of(strategy: str) -> dict[str, str]:
    """What each option of a strategy takes: number, whole (number), flag, word, list (of numbers) or mapping."""
    kinds = {"float": "number", "int": "whole", "bool": "flag", "str": "word", "Sequence[float]": "list"}
    kinds["Over"] = "word"
    parameters = inspect.signature(STRATEGIES[canonical_name(strategy)]).parameters
    return {
        option: kinds.get(str(parameters[option].annotation).removesuffix(" | None"), "mapping")
        for option in options_of(strategy)
    }


def required_options(strategy: str, pairs: int) -> dict[str, Any]:
    """Example values of the options without which a strategy has no plan, for a model with this many rotated pairs."""
    return filled(strategy, REQUIRED[canonical_name(strategy)], pairs)


def filled(strategy: str, options: Options, pairs: int) -> dict[str, Any]:
    """Options as `required` and `examples` give them, with every list filled between its ends: (pairs,) numbers."""
    kinds = kinds_of(strategy)
    return {
        name: np.linspace(value[0], value[1], pairs).tolist() if kinds[name] == "list" else value
        for name, value in options.items()
    }


def plan(strategy: str, geometry: Geometry, length: int, **options: Any) -> Plan:
    """The plan of a strategy, by its name or alias.

    Args:
        strategy: a name in STRATEGIES or ALIASES.
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        options: of that strategy; the others have their published defaults.

    Returns:
        Plan with (pairs,) inverse frequencies, float64, radians per token; a Pairwise where attention itself changes, a
        Cropped where the model sees only the end of a text.

    Raises:
        ValueError: an unknown strategy, an unknown option, or a value that the strategy refuses.
    """
    name = canonical_name(strategy)
    known = options_of(name)
    for option in options:
        if option not in known:
            raise ValueError(_unknown(f"option of {name}", option, known, "options"))
    if name != "none" and name not in CROPS_TEXT and geometry.running is not None:
        geometry = replace(geometry, running=None)  # the strategy takes its place
    try:
        return STRATEGIES[name](geometry, length, **options)
    except ArithmeticError as error:
        shown = ", ".join(f"{option}={str(value)[:40]}" for option, value in options.items())
        raise ValueError(f"{name} with {shown}: a number is larger or smaller than its formula takes") from error


def as_options(options: Any) -> dict[str, Any]:
    """The `options` that a strategy passes on to another: a mapping, ((name, value), ...) or None.

    Raises:
        ValueError: anything else.
    """
    pairs = options.items() if isinstance(options, Mapping) else options or ()
    try:
        return {str(name): value for name, value in pairs}
    except (TypeError, ValueError) as error:
        raise ValueError(f"options={options!r}: give names and values, such as {{beta_fast: 16}}") from error


def _unknown(kind: str, value: Any, known: Collection[str], plural: str) -> str:
    close = difflib.get_close_matches(str(value), list(known), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind}: {value!r}; {hint}{plural}: {', '.join(known) or 'none at all'}"
