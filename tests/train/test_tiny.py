"""The embedded model: it reads and retrieves within its trained length, and breaks beyond it as larger models do."""

from __future__ import annotations

from functools import cache

import pytest
from scipy.stats import binomtest
from support import PROJECT

from pipelines.choices.config import Cluster, Device, ModelChoice, Workbench
from pipelines.choices.sweep import cell_of
from pipelines.workers.evaluate import evaluate

PERPLEXITY = {"name": "perplexity", "text": "pydoc", "bos": None, "last": 256, "buckets": 4}
PASSKEY = {"name": "passkey", "depths": [0.1, 0.35, 0.65, 0.9], "keys": 3, "answer": "loglikelihood"}


@cache
def metrics(strategy, length, task, factor=None, limit=4):
    chosen = Workbench(
        model=ModelChoice("tiny", "models/tiny"),
        strategy={"name": strategy},
        cluster=Cluster(device=Device.cpu),
        task={"perplexity": PERPLEXITY, "passkey": PASSKEY}[task],
        length=length,
        factor=factor,
        limit=limit,
    )
    [result] = evaluate([cell_of(chosen)])
    assert result.status == "ok", result.error
    return result.metrics


def test_it_is_small_enough_to_embed():
    assert (PROJECT / "models/tiny/model.safetensors").stat().st_size < 20 * 2**20


def test_twice_the_trained_length_breaks_it_and_yarn_repairs_it():
    whole, broken = metrics("none", 512, "perplexity")["ppl"], metrics("none", 1024, "perplexity")["ppl"]
    assert broken > 1.8 * whole  # four windows; the model card has the figure over all
    assert metrics("yarn", 1024, "perplexity")["ppl"] < 1.15 * whole


@pytest.mark.slow
def test_strategies_stand_in_the_order_that_is_published():
    none, linear, ntk, yarn = (
        metrics(s, 2048, "perplexity", limit=2)["ppl"] for s in ("none", "linear", "ntk", "yarn")
    )
    assert none > linear > ntk > yarn


@pytest.mark.slow
def test_it_finds_a_passkey_within_its_trained_length_and_not_beyond():
    assert metrics("none", 512, "passkey")["acc"] > 0.95
    assert metrics("none", 2048, "passkey", limit=1)["acc"] < 0.2
    assert metrics("yarn", 1024, "passkey", factor=4.0)["acc"] > 0.8


USES = [
    ({"name": "many_shot"}, 20, 1 / 4),
    ({"name": "recall", "ask": "json"}, 8, 0.01),
    ({"name": "ruler", "ask": ["niah_single_2", "niah_multikey_2"], "answer": "loglikelihood"}, 6, 0.01),
    ({"name": "sections"}, 16, 1 / 4),
]
"""Task, questions of a kind, and the share that a guess gets right: of a value that is written out, less than that."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "limit", "guess"), USES, ids=lambda value: value["name"] if isinstance(value, dict) else ""
)
def test_it_uses_what_it_reads_far_above_chance(task, limit, guess):
    chosen = Workbench(
        model=ModelChoice("tiny", "models/tiny"),
        strategy={"name": "none"},
        cluster=Cluster(device=Device.cpu),
        task=task,
        length=512,
        limit=limit,
    )
    [result] = evaluate([cell_of(chosen)])
    count = len(result.documents)
    right = round(result.metrics["acc"] * count)
    assert binomtest(right, count, guess, alternative="greater").pvalue < 1e-3, f"{right} of {count}"
