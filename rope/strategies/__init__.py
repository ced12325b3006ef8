"""Every frequency strategy, by family: pure functions (geometry, length, **options) -> Plan, all in float64.

Options are keyword-only and carry the published names and defaults. `factor` is by how much the context is stretched;
None means length / trained_length, and 1 below the trained length. A factor of exactly 1 gives the native plan itself.
Where a checkpoint declares a scaling of its own, a strategy acts on top of those native frequencies and that native
attention factor, so that it leaves the trained model unchanged at its trained length. What each strategy holds to
beyond its formula stands above it, as `Promise`s.
"""

# In the order in which a user is told of them: from the simplest to those that go over others.
# isort: off
from rope.strategies import uniform, bases, ramps, lists, masks, over
from rope.strategies.registry import (
    ALIASES,
    EVERY,
    PROMISES,
    STRATEGIES,
    Promise,
    Strategy,
    kinds_of,
    named,
    options_of,
    plan,
)
from rope.strategies.layers import bounded, plans
from rope.strategies.scaling import stretch
# isort: on

__all__ = [
    "ALIASES",
    "EVERY",
    "PROMISES",
    "STRATEGIES",
    "Promise",
    "Strategy",
    "bases",
    "bounded",
    "kinds_of",
    "lists",
    "masks",
    "named",
    "options_of",
    "over",
    "plan",
    "plans",
    "ramps",
    "stretch",
    "uniform",
]
