"""The strategies by name, what each promises, and the one door through which a plan is asked for."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any, TypeVar

from rope.geometry import Geometry, Plan
from rope.pairwise import PAIRWISE

Strategy = Callable[..., Plan]
"""(geometry, length, **options) -> plan: pure, options keyword-only, float64 throughout."""

Function = TypeVar("Function", bound=Strategy)


class Promise(Enum):
    """What a strategy holds to at every setting of its options, on a checkpoint without a scaling of its own."""

    NATIVE_WHEN_TRAINED = "up to the trained length, with no factor given, it is the native plan, bit for bit"
    FIRST_PAIR_KEPT = "the first, fastest pair keeps its speed"
    LAST_PAIR_DIVIDED = "the last, slowest pair is slowed by the whole factor"
    NONE_FASTER = "no pair turns faster than it did"
    WITHIN_FACTOR = "no pair is slowed by more than the factor"
    SLOWER_MORE = "the slower a pair, the more it is slowed, or as much"
    ORDER_KEPT = "no pair overtakes a faster one"
    ANY_LENGTH = "the plan is the same at every length"
    ATTENTION_KEPT = "the attention factor is the native one"
    WHOLE_WAVELENGTHS = "every pair that turns comes round in a whole number of tokens"


STRATEGIES: dict[str, Strategy] = {}
"""Those of frequencies alone."""

EVERY: dict[str, Strategy] = dict(PAIRWISE)
"""All that a grid may name: also those that change attention itself, whose plans are Pairwise."""

PROMISES: dict[str, frozenset[Promise]] = {}
ALIASES = {"pi": "linear"}


def strategy(*promised: Promise) -> Callable[[Function], Function]:
    """Enter a function under its own name, with what it promises."""

    def enter(function: Function) -> Function:
        STRATEGIES[function.__name__] = EVERY[function.__name__] = function
        PROMISES[function.__name__] = frozenset(promised)
        return function

    return enter


def named(strategy: str) -> str:
    """The name under which a strategy stands in EVERY; ValueError, with the known names, for any other word."""
    name = ALIASES.get(strategy, strategy) if isinstance(strategy, str) else ""
    if name not in EVERY:
        known = dict.fromkeys([*STRATEGIES, *EVERY, *ALIASES])
        raise ValueError(_unknown("strategy", strategy, known, "strategies"))
    return name


def options_of(strategy: str) -> dict[str, Any]:
    """The options of a strategy with their published defaults, in the order of its signature."""
    parameters = inspect.signature(EVERY[named(strategy)]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def kinds_of(strategy: str) -> dict[str, str]:
    """What each option of a strategy takes: number, whole (number), flag, word, list (of numbers) or mapping."""
    words = {"float": "number", "int": "whole", "bool": "flag", "str": "word", "Sequence[float]": "list"}
    parameters = inspect.signature(EVERY[named(strategy)]).parameters
    return {
        option: words.get(str(parameters[option].annotation).removesuffix(" | None"), "mapping")
        for option in options_of(strategy)
    }


def plan(strategy: str, geometry: Geometry, length: int, **options: Any) -> Plan:
    """The plan of a strategy by name or alias; ValueError for an unknown name, an unknown option or a bad value."""
    name = named(strategy)
    known = options_of(name)
    for option in options:
        if option not in known:
            raise ValueError(_unknown(f"option of {name}", option, known, "options"))
    return EVERY[name](geometry, length, **options)


def options_given(options: Any) -> dict[str, Any]:
    """The `options` that a strategy hands on to the one it goes over: a mapping, ((name, value), ...) or None.

    Raises:
        ValueError: anything else.
    """
    pairs = options.items() if isinstance(options, Mapping) else options or ()
    try:
        return {str(name): value for name, value in pairs}
    except (TypeError, ValueError) as error:
        raise ValueError(f"options={options!r}: give names and values, such as {{beta_fast: 16}}") from error


def _unknown(kind: str, given: Any, known: Collection[str], plural: str) -> str:
    close = difflib.get_close_matches(str(given), list(known), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind}: {given!r}; {hint}{plural}: {', '.join(known) or 'none at all'}"
