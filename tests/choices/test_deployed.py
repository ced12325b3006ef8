"""The cells that a grid gets by itself, for what a deployed factor costs; and as many documents as it needs."""

from __future__ import annotations

import pytest

from pipelines.choices.compose import expand
from pipelines.choices.config import ENOUGH
from pipelines.choices.deployed import additions, is_free, pinned
from pipelines.choices.sweep import cells_of
from pipelines.grid import launcher
from pipelines.grid.request import requested
from pipelines.records.cells import Refusal
from pipelines.report import statistics

TINY = ["model=tiny", "task=perplexity", "cluster=cpu"]


def added(*overrides):
    choices = expand([*TINY, *overrides])
    return [(one.choice.strategy["name"], one.choice.length, one.choice.factor) for one in additions(choices)]


def test_every_factor_is_measured_at_the_trained_length_as_it_is_deployed_for_the_longest_one():
    grid = ["strategy=none,crop,linear,dynamic_ntk,yarn,streaming", "length=512,1024,2048"]
    assert added(*grid) == [("linear", 512, 4.0), ("yarn", 512, 4.0)]  # the others are the plain model there
    assert added(*grid, "short=none") == []
    assert added(*grid[:1], "length=256,512") == []
    listed = added("strategy=none,yarn", "length=512,1024,2048", "short=256,512")
    assert listed == [("yarn", n, f) for f in (2.0, 4.0) for n in (256, 512)] + [("none", 256, None)]


def test_a_factor_that_is_given_is_measured_where_the_grid_does_not_and_the_plain_model_beside_it():
    assert added("strategy=yarn", "factor=4", "length=512,2048") == []
    assert added("strategy=yarn", "factor=3", "length=1024") == [("yarn", 512, 3.0), ("none", 512, None)]
    with pytest.raises(Refusal, match="short=1024: give lengths up to the 512 tokens"):
        added("strategy=yarn", "length=2048", "short=1024")


def test_a_strategy_that_is_the_plain_model_at_short_lengths_is_known_to_be():
    cells = {cell.strategy: cell for cell in cells_of(expand([*TINY, "strategy=crop,yarn,dynamic_ntk", "length=2048"]))}
    assert {name: is_free(cell, 512) for name, cell in cells.items()} == {
        "crop": True,
        "yarn": False,
        "dynamic_ntk": True,
    }
    assert pinned(cells["yarn"], 512) == ("yarn", (("factor", 4.0),))


def test_the_command_of_an_added_cell_gives_that_cell(tmp_path):
    grid = requested([*TINY, "strategy=yarn", "strategy.beta_fast=16", "length=2048", "limit=2", f"store={tmp_path}"])
    assert grid.added == 2 and len(grid.jobs) == 3
    wanted = cells_of(grid.choices)
    assert [cells_of(expand(job)) for job in grid.jobs] == [[cell] for cell in wanted]
    assert [(cell.strategy_label, cell.length) for cell in wanted] == [
        ("yarn beta_fast=16", 2048),
        ("yarn beta_fast=16 factor=4.0", 512),
        ("none", 512),
    ]


def test_enough_is_a_number_of_documents_with_which_the_comparisons_can_be_significant(tmp_path):
    words = [*TINY[:1], *TINY[2:], "task=perplexity,passkey", "strategy=none,crop,yarn", "length=1024", "short=none"]
    grid = requested([*words, f"limit={ENOUGH}", f"store={tmp_path}"])
    cells = cells_of(grid.choices)
    [need, keys] = launcher.preview([*words, "limit=2", f"store={tmp_path}"]).needs
    assert {cell.limit for cell in cells if cell.task.name == "perplexity"} == {need.enough}
    assert {(cell.limit, cell.task.option("keys")) for cell in cells if cell.task.name == "passkey"} == {
        (keys.enough, keys.enough)
    }
    assert need.given == keys.given == 2 and min(need.enough, keys.enough) >= need.least == statistics.needed(2)
    assert [cells_of(expand(job)) for job in grid.jobs] == [[cell] for cell in cells]
    with pytest.raises(Refusal, match="give a whole number here"):
        cells_of(expand([*TINY, "length=512", "limit=enough"]))
    with pytest.raises(Refusal, match="limit=lots: give a whole number of documents, enough, or null"):
        expand([*TINY, "length=512", "limit=lots"])
