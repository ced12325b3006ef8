"""Exports to vLLM, SGLang and ExLlamaV2, computed by the engines' own code, and compared with our plans.

    PYTHONPATH=tests:tests/rope uv run python tests/rope/engine_sweep.py FOLDER

FOLDER is where .ci/engines unpacks the engines' packages. Prints a line an engine; exit code 1 where a setting differs.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from engine_configs import CONFIGS
from strategy_examples import FREQUENCY_STRATEGIES, settings_for_engines

from rope.config import geometry_of
from rope.dialects import Unsupported, deploy
from rope.geometry import Plan
from rope.strategies import plans

SOURCES = {"vllm": "vllm", "sglang": "sglang", "exllama": "exllamav2"}
LIMIT = 1e-5
LENGTHS = (512, 2048)


@dataclass
class Comparison:
    """Settings of one engine: how many were refused, compared, and which differ (label, by how much)."""

    engine: str
    refused: int = 0
    compared: int = 0
    worst: float = 0.0
    wrong: list[tuple[str, str]] = field(default_factory=list)

    def line(self) -> str:
        return (
            f"{self.engine}: {self.compared + self.refused} settings, {self.refused} refused, {self.compared} "
            f"compared, {len(self.wrong)} differ; worst of the others {self.worst:.2g}"
        )


def settings(
    engine: str, checkpoints: Sequence[str], every: bool
) -> Iterator[tuple[str, dict[str, Any], list[Any] | None, dict[str, Plan], int]]:
    """Label, config and request (None: refused) of every setting, and its plans by layer type."""
    for name in checkpoints:
        config = CONFIGS[name]
        geometries = geometry_of(config)
        pairs = next(iter(geometries.values())).pairs
        for strategy in FREQUENCY_STRATEGIES:
            for options in settings_for_engines(strategy, pairs)[: None if every else 1]:
                for length in LENGTHS:
                    label = f"{name} {strategy} {options} @{length}"
                    chosen = dict(plans(strategy, geometries, length, **options))
                    try:
                        deployment = deploy(engine, config, strategy, options, geometries, length)
                    except Unsupported:
                        yield label, config, None, chosen, length
                        continue
                    given = deployment.config if engine == "exllama" else config
                    yield label, config, [given, list(deployment.arguments)], chosen, length


def answers(engine: str, folder: Path, requests: list[Any]) -> list[dict[str, Any]]:
    """What the engine's own code computes for every request, in a process of its own."""
    with tempfile.TemporaryDirectory() as work:
        Path(work, "requests").write_text(json.dumps(requests))
        worker = Path(__file__).with_name("engine_worker.py")
        command = [
            sys.executable,
            str(worker),
            engine,
            str(folder / SOURCES[engine]),
            f"{work}/requests",
            f"{work}/answers",
        ]
        environment = {**os.environ, "PYTHONPATH": str(folder / "transformers")}
        subprocess.run(command, check=True, env=environment)
        return list(json.loads(Path(work, "answers").read_text()))


def difference(answer: dict[str, Any], before: dict[str, Any], chosen: dict[str, Plan], length: int) -> float | str:
    """The worst relative difference of one setting, or what is wrong with it."""
    if "error" in answer:
        return f"{answer['error']} ({answer.get('at')})"
    if not answer["rotary"]:
        return "no rotary embedding was made"
    if answer["softmax"] != before.get("softmax", answer["softmax"]):
        return f"softmax times {answer['softmax']} for {before['softmax']}"
    worst = 0.0
    for rotary in answer["rotary"]:
        tables = rotary["tables"]
        switched = len(tables) > 1 and (rotary.get("uses_long") or length > rotary["switches_at"])
        table = tables[1 if switched else 0]
        if table["rows"] < length and not rotary.get("extends"):
            return f"cosines of {table['rows']} tokens for {length}"
        worst = max(worst, min(_apart(table, plan) for plan in chosen.values()))
    return worst


def _apart(table: dict[str, Any], plan: Plan) -> float:
    ours, theirs = np.array(plan.inv_freq), np.array(table["inv_freq"])
    if len(ours) != len(theirs):
        return math.inf
    scaled = np.where(ours > 1e-20, ours, 1.0)
    off = np.abs(np.where(ours > 1e-20, theirs / scaled - 1, theirs)).max()
    return max(float(off), abs(table["attention"] / plan.attention_factor - 1))


def compare(engine: str, folder: Path, checkpoints: Sequence[str] = tuple(CONFIGS), every: bool = True) -> Comparison:
    result, requests, asked = Comparison(engine), [], []
    plain: dict[str, int] = {}
    for label, config, request, chosen, length in settings(engine, checkpoints, every):
        if request is None:
            result.refused += 1
            continue
        name = label.split()[0]
        if name not in plain:
            plain[name] = len(requests)
            requests.append([config, []])
        asked.append((label, len(requests), name, chosen, length))
        requests.append(request)
    given = answers(engine, folder, requests)
    for label, index, name, chosen, length in asked:
        found = difference(given[index], given[plain[name]], chosen, length)
        result.compared += 1
        if isinstance(found, str) or found > LIMIT:
            result.wrong.append((label, found if isinstance(found, str) else f"{found:.3g}"))
        else:
            result.worst = max(result.worst, found)
    return result


if __name__ == "__main__":
    engines = sys.argv[2:] or list(SOURCES)
    chosen = os.environ.get("CONFIGS", "").split() or tuple(CONFIGS)
    results = [compare(engine, Path(sys.argv[1]), chosen) for engine in engines]
    for result in results:
        for label, found in result.wrong:
            print(f"  {result.engine} {label}: {found}")
        print(result.line())
    sys.exit(int(any(result.wrong for result in results)))
