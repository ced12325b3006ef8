"""A cell's id: equal exactly where the number is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support import CELL, PLAN

from pipelines.records.cells import Cell, Model, Result, Task, distinct
from rope.geometry import ALL_LAYERS, Plan


@pytest.mark.parametrize(
    "change",
    [
        {"model": replace(CELL.model, fingerprint="f2")},
        {"plans": ((ALL_LAYERS, Plan((1.0, 0.02))),)},
        {"plans": ((ALL_LAYERS, Plan((1.0, 0.01), attention_factor=1.1)),)},
        {"plans": (("full_attention", PLAN[0][1]),)},
        {"length": 1024},
        {"task": Task("passkey", CELL.task.options)},
        {"task": Task("perplexity", (("bos", True), ("text", "pydoc")))},
        {"data": "d2"},
        {"limit": None},
        {"seed": 1},
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"versions": (("scorer", 2),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_number_changes_the_id(change):
    assert replace(CELL, **change).id != CELL.id


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "yarn", "options": (("beta_fast", 16.0),)},
        {"model": Model("other name", "elsewhere", fingerprint="f1")},
        {"task": Task("perplexity", (("bos", None), ("text", "a/copy/of/the/same.txt")))},
        {"plans": ((ALL_LAYERS, Plan((1.0, 0.01 * (1 + 1e-15)))),)},
    ],
    ids=["strategy of the same plan", "path of the same model", "path of the same text", "last bit of a float"],
)
def test_names_and_paths_do_not_change_the_id(change):
    assert replace(CELL, **change).id == CELL.id


def test_the_id_is_the_same_in_every_process_and_release():
    assert CELL.id == "e60dfc31a74c"


def test_a_label_tells_model_strategy_and_length_apart():
    named = replace(CELL, strategy="yarn", options=(("factor", 4.0),))
    assert named.label == "tiny: yarn factor=4.0 @512 perplexity"


def test_distinct_keeps_the_first_of_equal_cells():
    twin, other = replace(CELL, strategy="yarn"), replace(CELL, length=64)
    assert distinct([CELL, twin, other]) == [CELL, other]


def test_error_line_is_the_exception_itself():
    traceback = "Traceback (most recent call last):\n  File ...\nValueError: no such thing\n"
    assert Result("x", "failed", error=traceback).error_line == "ValueError: no such thing"
    assert Result("x", "ok").error_line == ""


def test_a_cell_comes_back_from_its_json():
    shaped = replace(
        CELL,
        model=replace(CELL.model, shape=(("hidden_size", 64),)),
        strategy="yarn",
        options=(("factor", 2.0),),
        task=Task("passkey", (("depths", (0.1, 0.9)), ("text", None))),
    )
    for cell in (CELL, shaped):
        assert Cell.of(json.loads(json.dumps(cell.spec()))) == cell
