"""What tests share: where the project lies, its command line in a process of its own, and cells to work with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipelines.choices.config import Cluster, Device, ModelChoice, Workbench
from pipelines.choices.sweep import cell_of
from pipelines.records.cells import Cell, Model, Task, frozen
from rope.geometry import ALL_LAYERS, Plan

PROJECT = Path(__file__).resolve().parent.parent
CONF = PROJECT / "conf"
TINY = PROJECT / "models" / "tiny"


def ropewalk(*arguments, cwd=PROJECT, **environment):
    environment.setdefault("CUDA_VISIBLE_DEVICES", "")
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "COLUMNS": "160", **environment},
        timeout=300,
    )


PLAN = ((ALL_LAYERS, Plan((1.0, 0.01))),)
CELL = Cell(
    model=Model("tiny", "models/tiny", fingerprint="f1"),
    strategy="none",
    options=(),
    length=512,
    plans=PLAN,
    task=Task("perplexity", (("bos", None), ("text", "pydoc"))),
    data="d1",
    limit=2,
    seed=0,
    dtype="float32",
    device="cpu",
    versions=(("scorer", 1),),
)


def stub_cell(model="m", length=64, **task_options) -> Cell:
    return Cell(
        model=Model(model, f"/{model}", fingerprint=model),
        strategy="none",
        options=(),
        length=length,
        plans=((ALL_LAYERS, Plan((1.0, 0.1))),),
        task=Task("stub", frozen(task_options)),
        data="",
        limit=None,
        seed=0,
        dtype="float32",
        device="cpu",
    )


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 257,
}


def random_cell(strategy="none", length=128, task=None, limit=2, **options):
    return cell_of(
        Workbench(
            model=ModelChoice("random", "random", shape=SHAPE),
            strategy={"name": strategy, **options},
            task=task or {"name": "perplexity", "text": "pydoc", "bos": None, "last": 32, "buckets": 4},
            cluster=Cluster(device=Device.cpu),
            length=length,
            limit=limit,
        )
    )
