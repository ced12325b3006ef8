"""Verbs that start something, with what they would start taken away: whatever is asked of them ends in a sentence."""

from __future__ import annotations

import tempfile
from types import SimpleNamespace

import border
import pytest
from border import NUMBERS, TEXTS, entered, examples
from hypothesis import example, given
from hypothesis import strategies as st
from test_fuzz import SLOW_TIMES, VALUES, WORDS

from pipelines.bench import bench
from pipelines.grid import standby
from pipelines.records.refusal import Refusal
from pipelines.tune import tune

OWN = {
    "up": st.sampled_from(["hours", "model", "cluster", "dtype", "cluster.workers", "strategy", "length"]),
    "down": st.sampled_from(["hours", "x", "store"]),
    "bench": st.sampled_from(["parts", "cells", "stock_seconds", "strategy", "length", "store"]),
    "tune": st.sampled_from(["trials", "sampler", "objective", "seed", "batch", "short", "x"]).map("tune.{}".format)
    | st.sampled_from(["strategy.beta_fast", "strategy.ramp", "factor", "task", "limit", "strategy", "task.text"]),
}
RANGES = st.sampled_from(
    ["8..64", "64..8", "1..", "..", "nan..inf", "1..1e308", "a..b", "-1..1", "index,rotations", ","]
)
OBJECTIVES = st.sampled_from(["ppl", "context_gain", "key_ppl", "passkey", "nsga2", "cmaes", "tpe", "nope"])
PARTS = st.sampled_from(["grid", "grid,plan", "scorer,", ",", "1,2", "0", "10,x", "99999999999999999999"])


@pytest.fixture
def standing(enclosed, monkeypatch):
    """Nothing is started, measured or searched."""

    def would(*arguments, **options):
        raise Refusal("it would begin now")

    monkeypatch.setattr(tempfile, "tempdir", str(enclosed))  # where `up` hands on what to start
    monkeypatch.setattr(standby, "subprocess", SimpleNamespace(Popen=would, DEVNULL=None))
    monkeypatch.setattr(bench, "main", would)
    monkeypatch.setattr(tune, "_search", would)
    (enclosed / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 3000)
    return enclosed


@SLOW_TIMES
@pytest.mark.parametrize("verb", OWN)
def test_command_lines_of_verbs_that_start_something(standing, verb, times):
    usual = ["strategy=yarn", "length=1024", f"task.text={standing / 'text.txt'}"] if verb == "tune" else []
    values = VALUES | NUMBERS.map(str) | RANGES | OBJECTIVES | PARTS
    begun = []
    border.run([verb, *usual])  # what is imported and read once is nobody's three seconds

    @examples(10 if verb == "tune" else 50, times)
    @given(st.lists(st.tuples(OWN[verb], values).map("=".join) | TEXTS, max_size=3) | WORDS)
    @example([])
    def holds(words):
        words = [word for word in words if not word.startswith("-") and "\0" not in word]
        code, said = entered(standing, verb, *usual, *words)
        begun.append(code == 0 or "it would begin now" in said)

    holds()
    assert any(begun), "what is asked by itself is taken"
