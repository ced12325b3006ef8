"""Every option of every strategy with every hostile value: a plan of finite numbers, or a ValueError that says why."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from rope.geometry import Geometry
from rope.strategies import STRATEGIES, options_of, required_options
from rope.strategies import plan as plan_of

GEOMETRY = Geometry(32, 10_000.0, 512)
PAIRS = 16
NUMBERS = [0, -1, 1, 255, 2**31, 2**63, 10**400, 0.5, -0.0, 5e-324, 1e-308, 1e-9, 1e12, 1e308, math.inf, math.nan]
VALUES = [
    *NUMBERS,
    True,
    None,
    "abc",
    "",
    [1],
    [],
    {},
    {"a": 1},
    *([number] * PAIRS for number in (1.0, 1e308, math.nan)),
]


@pytest.mark.parametrize("name", STRATEGIES)
def test_options_of_strategies(name):
    for option in options_of(name):
        for value in VALUES:
            try:
                with warnings.catch_warnings(action="ignore"):  # numpy's, of numbers that a strategy then refuses
                    plan = plan_of(name, GEOMETRY, 2048, **{**required_options(name, PAIRS), option: value})
            except ValueError as reason:
                assert option in str(reason) or name in str(reason), (option, value, reason)
            else:
                given = [*getattr(plan, "inv_freq", ()), getattr(plan, "attention_factor", 1.0)]
                assert np.isfinite(given).all(), (option, value, plan)
