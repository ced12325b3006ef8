"""Ids of cells as they were when results were first kept: what is stored under them must be found for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import TINY

from pipelines.choices.config import Cluster, Device, Dtype, ModelChoice, Workbench
from pipelines.choices.sweep import cell_of

PERPLEXITY = {"name": "perplexity", "text": "pydoc", "bos": None, "last": 256, "buckets": 16}
LATER = {
    "part": None,
    "skip": 0,
    "windows": "prefix",
    "stride": 256,
    "document": None,
    "at_least": None,
    "choose": "first",
    "bos_at": "window",
}
PASSKEY = {"name": "passkey", "depths": [0.1, 0.35, 0.65, 0.9], "keys": 2, "answer": "loglikelihood"}
WEIGHTS = "641b5f80d23c9ebf"
"""Fingerprint of the weights that models/tiny had then; trained further, it is another model."""
FACTORS = [1.0 + 0.25 * pair for pair in range(32)]

GOLDEN = [
    ("83e6fe3ff5b3", {"name": "none"}, PERPLEXITY),
    ("83e6fe3ff5b3", {"name": "none"}, {**PERPLEXITY, **LATER}),
    ("d736cb5d51da", {"name": "linear"}, PERPLEXITY),
    ("7fc54bc9b234", {"name": "linear", "factor": 8.0}, {**PERPLEXITY, **LATER, "last": 64, "bos": True}),
    ("758ce93f0942", {"name": "ntk", "factor": 4.0}, {**PERPLEXITY, "windows": "sliding", "stride": 128}),
    ("5acc4907fd3f", {"name": "yarn"}, {**PERPLEXITY, **LATER, "part": "tune", "skip": 3}),
    (
        "cead7845328c",
        {"name": "yarn", "beta_fast": 16.0, "mscale": 0.7},
        {**PERPLEXITY, "windows": "means", "document": 4096},
    ),
    ("f822148c10d9", {"name": "self_extend", "group_size": 8, "window": 256}, PERPLEXITY),
    (
        "aba2fd4ea06a",
        {"name": "longrope", "short_factor": FACTORS, "long_factor": FACTORS},
        {**PERPLEXITY, "choose": "random"},
    ),
    ("5825e15ac538", {"name": "none"}, PASSKEY),
    ("5f28d40aa1ed", {"name": "yarn"}, {**PASSKEY, "protocol": "grid", "keys": 5}),
    (
        "713ea0ce9901",
        {"name": "self_extend"},
        {**PASSKEY, "protocol": "codellama", "answer": "generate", "depths": [0.5]},
    ),
]


@pytest.mark.parametrize(("golden", "strategy", "task"), GOLDEN)
def test_a_cell_has_the_id_that_it_always_had(golden, strategy, task):
    cell = cell_of(
        Workbench(
            model=ModelChoice("tiny", str(TINY)),
            strategy=strategy,
            task=task,
            cluster=Cluster(device=Device.cpu),
            length=2048,
            limit=3,
            dtype=Dtype.float32,
        )
    )
    # Python's help topics differ from one Python to the next.
    assert replace(cell, data="text", model=replace(cell.model, fingerprint=WEIGHTS)).id == golden
