"""Every strategy, by family: pure functions (geometry, length, **options) -> Plan, all in float64.

Options are keyword-only and carry the published names and defaults. `factor` is by how much the context is stretched;
None means length / trained_length, and 1 below the trained length. A factor of exactly 1 gives the native plan itself.
Where a checkpoint declares a scaling of its own, a strategy acts on top of those native frequencies and that native
attention factor, so that it leaves the trained model unchanged at its trained length. What each strategy guarantees
beyond its formula stands above it, as `Promise`s.
"""

# The order of families is the order in which strategies are listed: from the simplest to those built on others.
# isort: off
from rope.strategies import uniform, bases, ramps, lists, masks, over, attention, temperatures, baselines
from rope.strategies.registry import (
    ALIASES,
    CHANGES_ATTENTION,
    CROPS_TEXT,
    PROMISES,
    SCALES_QUERIES,
    STRATEGIES,
    Promise,
    Strategy,
    canonical_name,
    frequency_strategies,
    kinds_of,
    options_of,
    plan,
    required_options,
)
from rope.strategies.layers import bounded, plans
from rope.strategies.scaling import stretch
# isort: on

__all__ = [
    "ALIASES",
    "CHANGES_ATTENTION",
    "CROPS_TEXT",
    "PROMISES",
    "SCALES_QUERIES",
    "STRATEGIES",
    "Promise",
    "Strategy",
    "attention",
    "baselines",
    "bases",
    "bounded",
    "canonical_name",
    "frequency_strategies",
    "kinds_of",
    "lists",
    "masks",
    "options_of",
    "over",
    "plan",
    "plans",
    "ramps",
    "required_options",
    "stretch",
    "temperatures",
    "uniform",
]
