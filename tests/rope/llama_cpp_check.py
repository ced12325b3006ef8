"""Our scorer against llama.cpp: the same weights, the same tokens, the flags that `ropewalk export` gives.

    uv run python tests/rope/llama_cpp_check.py [--lengths 2048,10240] [--strategies none,linear,ntk,yarn]

It builds llama-cpp-python into an environment of its own (some minutes, once; it needs a C++ compiler and cmake), makes
a float32 GGUF file of SmolLM2's Q4_1 one, and scores the first tokens of the standard library's help topics with both.
Exit code 1 where a perplexity differs by more than 1 %. Not part of the ordinary tests: it takes ten minutes and the
package index.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pipelines.choices.compose import expand
from pipelines.choices.sweep import cell_of, geometry_for
from pipelines.models import copies, find, load
from pipelines.records.cells import Cell
from pipelines.tasks import perplexity
from pipelines.tasks.documents import Encoder
from pipelines.workers.evaluate import evaluate
from rope.dialects import deploy

VERSION = "0.3.36"
LIMIT = 0.01

WORKER = """
import json, sys
import numpy as np
import llama_cpp
request = json.load(open(sys.argv[1]))
llm = llama_cpp.Llama(request["file"], logits_all=True, verbose=False, type_k=0, type_v=0, n_batch=512,
                      **request["arguments"])
llm.eval(request["ids"])
nll = []
for first in range(0, len(request["ids"]) - 1, 512):
    rows = llm.scores[first : min(first + 512, len(request["ids"]) - 1)].astype(np.float64)
    wanted = np.array(request["ids"][first + 1 : first + 1 + len(rows)])
    top = rows.max(axis=1)
    nll += (np.log(np.exp(rows - top[:, None]).sum(axis=1)) + top - rows[np.arange(len(rows)), wanted]).tolist()
json.dump(nll, open(sys.argv[2], "w"))
"""
"""Runs in llama-cpp-python's environment: mean NLL of every token but the first, the KV cache in float32."""

TYPES = {"none": 0, "linear": 1, "yarn": 2}


def environment(name: str, *packages: str) -> Path:
    """The interpreter of an environment of its own that holds these packages; created where it is missing."""
    cache = Path(os.environ.get("ROPEWALK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ropewalk"))
    home = cache.expanduser() / name
    python = home / "bin" / "python"
    if not (home / "built").exists():
        print(f"installing {', '.join(packages)} into {home} ...", flush=True)
        subprocess.run(["uv", "venv", "--quiet", "--clear", str(home)], check=True)
        # --no-config: this project's own settings keep llama-cpp-python out of its environment
        install = ["uv", "pip", "install", "--quiet", "--no-config", "--python", str(python)]
        subprocess.run([*install, *packages], check=True, cwd=home)
        (home / "built").touch()
    return python


def keywords(arguments: tuple[str, ...]) -> dict:
    """llama.cpp's flags as the arguments of llama_cpp.Llama; everything else is left to the file."""
    arguments_of_llama = {"yarn_attn_factor": -1.0, "yarn_beta_fast": -1.0, "yarn_beta_slow": -1.0, "kv_overrides": {}}
    for flag, value in zip(arguments[::2], arguments[1::2], strict=True):
        if flag == "--override-kv":
            key, _, typed = value.partition("=")
            kind, _, number = typed.partition(":")
            arguments_of_llama["kv_overrides"][key] = int(number) if kind == "int" else float(number)
        elif flag == "--rope-scaling":
            arguments_of_llama["rope_scaling_type"] = TYPES[value]
        elif flag == "--rope-scale":
            arguments_of_llama["rope_freq_scale"] = 1.0 / float(value)
        elif flag == "-c":
            arguments_of_llama["n_ctx"] = int(value)
        elif flag == "--yarn-orig-ctx":
            arguments_of_llama["yarn_orig_ctx"] = int(value)
        else:
            arguments_of_llama[flag.removeprefix("--").replace("-", "_")] = float(value)
    return arguments_of_llama


def theirs(python: Path, file: Path, arguments: tuple[str, ...], ids: list[int]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.json")
        request.write_text(json.dumps({"file": str(file), "ids": ids, "arguments": keywords(arguments)}))
        subprocess.run([str(python), "-c", WORKER, str(request), str(answer)], check=True)
        return np.array(json.loads(answer.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="2048,10240")
    parser.add_argument("--strategies", default="none,linear,ntk,yarn")
    options = parser.parse_args()
    python, worst = environment(f"llama-cpp-python-{VERSION}", f"llama-cpp-python=={VERSION}"), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for length in map(int, options.lengths.split(",")):
            for strategy in options.strategies.split(","):
                # of a factor that does something at every length
                overrides = [f"strategy={strategy}", f"length={length}", f"factor={max(2.0, length / 8192)}"]
                (choice,) = expand([*overrides, "model=smollm2", "limit=1", "dtype=float32", "cluster=cpu"])
                worst = max(worst, compared(cell_of(choice), python, Path(folder)))
    print(f"worst: {worst:.6%} of a perplexity; allowed are {LIMIT:.0%}")
    return 0 if worst <= LIMIT else 1


def compared(cell: Cell, python: Path, folder: Path) -> float:
    """The relative difference of llama.cpp's perplexity of a cell from ours; also printed."""
    model, config, geometries = geometry_for(cell.model)
    source, file = find.locate(model).gguf, folder / "float32.gguf"
    if not file.exists():
        copies.copy_gguf([source], file, {}, (), plain=True)
    deployment = deploy("llama.cpp", config, cell.strategy, dict(cell.options), geometries, cell.length)
    if deployment.needs_file:
        copies.copy_gguf([file], folder / "list.gguf", deployment.keys, deployment.rope_freqs)
        file = folder / "list.gguf"
    options = {**perplexity.OPTIONS, **dict(cell.task.options)}
    encode = Encoder.of(load.tokenizer(model))
    (document,) = perplexity.KIND.build(options, encode, length=cell.length, limit=1, seed=0)
    (result,) = evaluate([cell])
    if not result.finished:
        sys.exit(f"{cell.label}: {result.error}")
    ours = result.metrics["nll"]
    their_nll = theirs(python, file, deployment.arguments, list(document.ids)).mean()
    numbers = f"ours {np.exp(ours):.6f}, llama.cpp {np.exp(their_nll):.6f}, off {np.expm1(their_nll - ours):+.6%}"
    print(f"{cell.strategy_label} @{cell.length}: {numbers}   {deployment.command()}", flush=True)
    return float(abs(np.expm1(their_nll - ours)))


if __name__ == "__main__":
    sys.exit(main())
