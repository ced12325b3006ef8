"""A strategy in the words of inference engines, and those words read back: one file an engine.

to_ENGINE(config, strategy, options, geometries, length) -> Deployment (to_transformers and to_transformers_v4 give
config.json itself); from_ENGINE(words, config) -> {layer type: Declared}, whose `plan(length)` is what the engine would
compute. What an engine cannot express is refused (Unsayable, a ValueError) with the nearest that it can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rope.config import Declared, geometry_of
from rope.dialects import exllama, llama_cpp, sglang, transformers_v4, transformers_v5, vllm
from rope.dialects.exllama import from_exllama, to_exllama
from rope.dialects.llama_cpp import from_llama_cpp, to_llama_cpp
from rope.dialects.sglang import from_sglang, to_sglang
from rope.dialects.transformers_v4 import to_transformers_v4
from rope.dialects.transformers_v5 import to_transformers
from rope.dialects.vllm import from_vllm, to_vllm
from rope.dialects.words import Deployment, Unsayable, Words
from rope.strategies import EVERY, STRATEGIES, options_of

__all__ = [
    "ENGINES",
    "Declared",
    "Deployment",
    "Unsayable",
    "Words",
    "deploy",
    "from_exllama",
    "from_llama_cpp",
    "from_sglang",
    "from_transformers",
    "from_transformers_v4",
    "from_vllm",
    "support",
    "support_table",
    "to_exllama",
    "to_llama_cpp",
    "to_sglang",
    "to_transformers",
    "to_transformers_v4",
    "to_vllm",
]

from_transformers = transformers_v5.declared
from_transformers_v4 = transformers_v4.declared

ENGINES: dict[str, Callable[..., Deployment]] = {
    "transformers": transformers_v5.deploy,
    transformers_v4.ENGINE: transformers_v4.deploy,
    vllm.ENGINE: to_vllm,
    sglang.ENGINE: to_sglang,
    llama_cpp.ENGINE: to_llama_cpp,
    exllama.ENGINE: to_exllama,
}
"""(config, strategy, options, geometries, length) -> Deployment, by the name that a user gives."""

EXAMPLE = {"model_type": "llama", "head_dim": 64, "rope_theta": 10_000.0, "max_position_embeddings": 4096}
"""The checkpoint on which `support` asks: a plain Llama."""

EXAMPLE_LENGTH = 16_384
LISTS = {"longrope": ("long_factor",), "factors": ("factors",)}
"""Strategies that cannot be without a list, and the options that take it."""


def deploy(
    engine: str,
    config: Any,
    strategy: str,
    options: Mapping[str, Any],
    geometries: Mapping[str, Any],
    length: int,
) -> Deployment:
    """A strategy in one engine's words.

    Raises:
        ValueError: an unknown engine, or what the engine's function refuses.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine: {engine!r}; engines: {', '.join(ENGINES)}")
    return ENGINES[engine](config, strategy, options, geometries, length)


def support(strategy: str, engine: str) -> Deployment | None:
    """How an engine says a strategy with its published defaults on a plain Llama; None where it cannot."""
    geometries = geometry_of(EXAMPLE)
    pairs = geometries["all"].pairs
    lists: Words = {name: [1.0 + 3.0 * pair / (pairs - 1) for pair in range(pairs)] for name in LISTS.get(strategy, ())}
    if "layers" in options_of(strategy):
        lists["layers"] = {"0": 2.0}
    try:
        return deploy(engine, EXAMPLE, strategy, lists, geometries, EXAMPLE_LENGTH)
    except Unsayable:
        return None


def support_table() -> str:
    """README's table of strategies x engines, in markdown: what each engine calls a strategy, `-` where it has no word.

    An asterisk marks a plan that is of one length, the strategy having others at others.
    """
    rows = [["strategy", *ENGINES], ["---"] * (1 + len(ENGINES))]
    for strategy in dict.fromkeys([*STRATEGIES, *EVERY]):
        found = [support(strategy, engine) for engine in ENGINES]
        rows.append([f"`{strategy}`", *("-" if one is None else _cell(one) for one in found)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(one: Deployment) -> str:
    return f"{one.name}{'*' if one.notes else ''}"
