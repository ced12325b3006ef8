"""Exports for transformers v4, read by transformers v4: its own arithmetic gives our plans.

    PYTHONPATH=tests uv run python tests/rope/transformers_v4_check.py

It installs transformers 4.57.3 into an environment of its own (a minute, once) and asks it for the inverse frequencies
and the attention factor of every strategy's exported config.json, at several lengths, on checkpoints with and without a
scaling of their own. Exit code 1 where one is off by more than its float32. Not part of the ordinary tests, as it takes
the package index.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from llama_cpp_check import environment
from strategy_examples import FREQUENCY_STRATEGIES, settings_for_engines
from test_engines import CHECKPOINTS, PAIRS

from rope.config import geometry_of
from rope.dialects import deploy
from rope.strategies import plans

VERSION = "4.57.3"
LIMIT = 2e-6

WORKER = """
import json, sys, logging
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
logging.disable(logging.WARNING)
answers = []
for folder, length in json.load(open(sys.argv[1])):
    rotary = LlamaRotaryEmbedding(AutoConfig.from_pretrained(folder))
    rotary(torch.zeros(1), torch.arange(length)[None])
    answers.append([rotary.inv_freq.double().tolist(), rotary.attention_scaling])
json.dump(answers, open(sys.argv[2], "w"))
"""
"""Runs under transformers v4: what the rotary module holds after a forward of so many tokens."""


def main() -> int:
    python = environment(
        f"transformers-{VERSION}", f"transformers=={VERSION}", f"torch=={torch.__version__.split('+')[0]}"
    )
    requests, ours = [], []
    with tempfile.TemporaryDirectory() as root:
        for checkpoint, config in CHECKPOINTS.items():
            for strategy in FREQUENCY_STRATEGIES:
                for options in settings_for_engines(strategy, PAIRS):
                    for length in (512, 1024, 2048):
                        geometries = geometry_of(config)
                        folder = Path(root, str(len(requests)))
                        folder.mkdir()
                        exported = deploy("transformers-v4", config, strategy, options, geometries, length).config
                        (folder / "config.json").write_text(json.dumps(exported))
                        requests.append([str(folder), length])
                        plan = plans(strategy, geometries, length, **options)[0][1]
                        ours.append((f"{checkpoint} {strategy} {options} @{length}", plan))
        Path(root, "requests").write_text(json.dumps(requests))
        subprocess.run([str(python), "-c", WORKER, str(Path(root, "requests")), str(Path(root, "answers"))], check=True)
        answers = json.loads(Path(root, "answers").read_text())
    worst, worst_label = 0.0, ""
    for (label, plan), (inv_freq, attention) in zip(ours, answers, strict=True):
        expected, theirs = np.array(plan.inv_freq), np.array(inv_freq)
        nonzero = expected > 1e-20
        off = np.abs(np.where(nonzero, theirs / np.where(nonzero, expected, 1.0) - 1, theirs)).max()
        off = max(off, abs(attention / plan.attention_factor - 1))
        if off > worst:
            worst, worst_label = float(off), label
    print(
        f"transformers {VERSION}: {len(ours)} exports; worst relative difference {worst:.3g} ({worst_label}); "
        f"allowed {LIMIT:g}"
    )
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
