"""What llama.cpp does about rotation, architecture by architecture.

llama_cpp_rules.json is read from llama.cpp's source, at the commit that it names, by tests/rope/llama_cpp_table.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
"""Tensors of a GGUF file that llama.cpp divides frequencies by, pair by pair: always, or beyond the original length
and up to it."""

LOCAL_LAYERS = frozenset({"sliding_attention", "chunked_attention"})
"""Layer types of transformers that llama.cpp calls SWA."""


@dataclass(frozen=True)
class Local:
    """How layers rotate that see a window alone, where that differs from the others.

    base: "all": that of the other layers. "file": rope.freq_base_swa, else rope.freq_base, whatever the flags say. A
        number: rope.freq_base_swa, else this.
    scale: "file": the file's factor, whatever the flags and the type say; 1.0: never scaled.
    """

    base: str | float
    scale: str | float


@dataclass(frozen=True)
class Rules:
    """One architecture.

    rope: "norm" (pairs of neighbours), "neox" (pairs half a head apart), "mrope" or "imrope" (sections of them, which
        are the same for text), or "none".
    lists: the tensors it reads: "rope_freqs" (always), "rope_factors" (long and short; under rope.scaling.type longrope
        alone, where it reads rope_freqs too). A file with others does not load.
    yarn_keys: those of rope.scaling.* that it reads, of beta_fast and the like; all others read them from flags alone.
    local: None: all layers rotate alike.
    own_rules: what keeps a scaling from being what it is elsewhere; "" for nothing.
    alpha: whether rope.scaling.alpha multiplies the base. temperature: whether queries are scaled by
        rope.scaling.original_context_length. window_pattern: which layers see a window where the file does not say:
        all but every nth, which is the first or the last of n.
    """

    rope: str
    lists: tuple[str, ...] = ()
    yarn_keys: tuple[str, ...] = ()
    local: Local | None = None
    own_rules: str = ""
    alpha: bool = False
    temperature: bool = False
    window_pattern: Mapping[str, Any] | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors that a list of divisors is written to; () where none is read."""
        if "rope_freqs" in self.lists:
            return (FREQS,)
        return (LONG, SHORT) if self.lists else ()

    def local_layers(self, layers: int, pattern: Any = None) -> list[bool]:
        """Of every layer, whether it sees a window alone; pattern: what the file says, a number or a list."""
        if isinstance(pattern, list):
            return [bool(entry) for entry in pattern[:layers]]
        own = self.window_pattern or {}
        every, first = int(pattern if pattern is not None else own.get("every", 1)), bool(own.get("first"))
        if every == 0:
            return [True] * layers
        return [(layer % every != 0) if first else (layer % every < every - 1) for layer in range(layers)]


@lru_cache(maxsize=1)
def table() -> tuple[dict[str, Rules], dict[str, str], str]:
    """Rules by general.architecture, the architecture by model_type of config.json, and the commit of llama.cpp."""
    read = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    rules = {}
    for name, row in read["architectures"].items():
        local = Local(**row["local"]) if "local" in row else None
        lists = {key: tuple(row.get(key, ())) for key in ("lists", "yarn_keys")}
        rules[name] = Rules(**{**row, **lists, "local": local})
    return rules, read["model_types"], read["commit"]


def architecture_of(model_type: str) -> str | None:
    """general.architecture of a GGUF file, of a model_type of config.json or an architecture itself; None: unknown."""
    rules, types, _ = table()
    candidates = (types.get(model_type), model_type, types.get(model_type.removesuffix("_text")))
    return next((name for name in candidates if name in rules), None)


def rules_of(model_type: str) -> Rules | None:
    """The rules of a model_type or an architecture; None where llama.cpp has none by that name."""
    name = architecture_of(model_type)
    return None if name is None else table()[0][name]
