"""A grid's keywords are the command line's overrides."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from pipelines.choices import compose
from ropewalk import experiment


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(experiment).failed == 0


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -2.5,
        1e-5,
        float("inf"),
        "pydoc",
        "~/a b/c.txt",
        "it's",
        "null",
        "12",
        "",
        "hub:a/b",
        [1, 2],
        ["a b"],
    ],
)
def test_a_value_comes_through_hydra_as_it_was(value):
    key = "text" if isinstance(value, str) else "part"  # what is given as a path stays text
    [choice] = compose.expand(experiment._overrides({"strategy": "none", "length": 512, "task": {key: value}}))
    assert choice.task[key] == value


def test_lists_make_the_grid_and_mappings_give_options():
    choices = {"model": Path("models/tiny"), "strategy": {"name": "yarn", "beta_fast": 16}, "length": range(512, 514)}
    made = compose.expand(experiment._overrides({**choices, "limit": None, "factor": [2, 4.5], "task": "passkey"}))
    assert [(c.length, c.factor) for c in made] == [(512, 2), (512, 4.5), (513, 2), (513, 4.5)]
    assert all(c.strategy["beta_fast"] == 16 and c.limit is None and c.task["name"] == "passkey" for c in made)
