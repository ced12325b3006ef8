"""What llama.cpp computes with flags, keys of a GGUF file and its lists of divisors: llama_cpp.py says, this hears.

As in src/llama-context.cpp, src/llama-model.cpp, common/arg.cpp and ggml_rope_cache_init of the llama.cpp of
llama-cpp-python 0.3.36, with what differs by architecture in rope/llama_cpp_rules.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rope.config import DeclaredScaling, geometry_of, text_config
from rope.dialects.deployment import Config, FlagParser
from rope.geometry import ALL_LAYERS, Array, Geometry, inverse_frequencies
from rope.llama_cpp_rules import LOCAL_LAYERS, Local, Rules, architecture_of, rules_of
from rope.strategies import plan
from rope.strategies.ramps import mscale_of

ENGINE = "llama.cpp"

BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""The defaults of llama.cpp."""

TYPES = ("none", "linear", "yarn", "longrope")
"""Values of rope.scaling.type; llama.cpp aborts on others."""


def from_llama_cpp(
    arguments: Sequence[str], config: Any, keys: Mapping[str, Any] | None = None, rope_freqs: Sequence[float] = ()
) -> dict[str, DeclaredScaling]:
    """The strategy that llama.cpp runs with these flags, by layer type.

    Args:
        arguments: the command line; flags that do not concern positions are ignored.
        config: the checkpoint's, as for transformers, without a scaling; its model_type may be an architecture.
        keys: of the GGUF file, without the architecture in front.
        rope_freqs: its tensor of divisors.

    Raises:
        ValueError: values that llama.cpp refuses, a mixture (--yarn-ext-factor between 0 and 1), a scale below 1, a
            list for an architecture that reads none, flags that reach only some of the layers that rotate alike.
    """
    text, flags = text_config(config), _parser().parse_known_args(list(arguments))[0]
    model_type = str(text.get("model_type", "llama"))
    rules = rules_of(model_type) or Rules("neox", lists=("rope_freqs",))
    if len(rope_freqs) and not rules.tensors:
        raise ValueError(f"{ENGINE} reads no list of divisors (rope_freqs) for a {architecture_of(model_type)}")
    metadata = {**(keys or {}), **dict(map(_parse_override, flags.override_kv or ()))}
    reading = _Reading(flags, metadata, rules, np.array(rope_freqs))
    heard = {}
    for layer_type, geometry in geometry_of(config).items():
        heard[layer_type] = reading.scaling(geometry, rules.local if layer_type in LOCAL_LAYERS else None)
        windows = rules.local if layer_type == ALL_LAYERS and _has_windows(text, rules) else None
        if windows is not None and reading.scaling(geometry, windows) != heard[layer_type]:
            raise ValueError(
                f"{ENGINE}'s flags reach only the layers of a {architecture_of(model_type)} that see everything, "
                "and the others rotate with the same frequencies: give keys of the file, or --override-kv"
            )
    return heard


def _has_windows(text: Mapping[str, Any], rules: Rules) -> bool:
    """Whether a model whose layers share one rotary embedding has some that llama.cpp rotates otherwise."""
    if rules.local is None:
        return False
    if text.get("layer_types"):
        return not LOCAL_LAYERS.isdisjoint(text["layer_types"])
    return bool(text.get("sliding_window", rules.local.base == "file"))


@dataclass(frozen=True)
class _Reading:
    """Flags and keys (metadata, without the architecture) as an architecture of these rules hears them."""

    flags: argparse.Namespace
    metadata: Mapping[str, Any]
    rules: Rules
    divisors: Array

    def scaling(self, geometry: Geometry, local: Local | None) -> DeclaredScaling:
        """Of layers with this geometry; local: how they differ from those that see everything."""
        base, factor = self._base(geometry, local), self._factor(local)
        mixture = self.flags.yarn_ext_factor
        if mixture < 0:
            mixture = float(self._type == "yarn")
        if mixture not in (0.0, 1.0):
            raise ValueError(
                f"--yarn-ext-factor {mixture}: no strategy mixes in this way; give 0 or 1, or leave it out"
            )
        attention = float(self.metadata.get("rope.scaling.attn_factor", 1.0))
        plain_layers = local is not None and local.base == "all"  # neither scaled nor mixed
        if plain_layers:
            attention = 1.0
        elif mixture == 1:
            attention *= self._yarn_attention(self._factor(None)) * mscale_of(factor, 1.0)
        elif self.flags.yarn_attn_factor >= 0:
            attention *= self.flags.yarn_attn_factor
        yarn = mixture == 1 and not plain_layers
        key = "rope.scaling.original_context_length"
        original = self.flags.yarn_orig_ctx or self.metadata.get(key) or geometry.trained_length
        plain = Geometry(geometry.head_dim, base, int(original) if yarn else geometry.trained_length, geometry.partial)
        return _scaling(geometry, plain, factor, attention, self._ramp if yarn else {}, self.divisors)

    @property
    def _type(self) -> str:
        kind = str(self.flags.rope_scaling or self.metadata.get("rope.scaling.type", "linear"))
        if kind not in TYPES:
            raise ValueError(f"rope.scaling.type is {kind!r}, on which {ENGINE} aborts; it takes {', '.join(TYPES)}")
        return kind

    @property
    def _ramp(self) -> Config:
        """Options of yarn."""
        ramp: Config = {"ramp": "index"}
        for name, default in BETAS.items():
            said = self.metadata.get(f"rope.scaling.yarn_{name}") if f"yarn_{name}" in self.rules.yarn_keys else None
            ramp[name] = getattr(self.flags, f"yarn_{name}") or said or default
        return ramp

    def _yarn_attention(self, factor: float) -> float:
        """What the key of DeepSeek's second mscale divides by; elsewhere 1."""
        key = "rope.scaling.yarn_log_multiplier"
        multiplier = self.metadata.get(key, 0.0) if "yarn_log_mul" in self.rules.yarn_keys else 0.0
        return 1 / mscale_of(factor, float(multiplier)) if multiplier else 1.0

    def _base(self, geometry: Geometry, local: Local | None) -> float:
        said = self.metadata.get("rope.freq_base")
        if local is None or local.base == "all":
            said = self.flags.rope_freq_base or said
        else:
            said = self.metadata.get("rope.freq_base_swa") or (said if local.base == "file" else None)
        return float(said or geometry.base)

    def _factor(self, local: Local | None) -> float:
        # the old key counts only where the new one is missing, and 0 is no scaling
        old = self.metadata.get("rope.scale_linear", 1.0)
        factor = float(self.metadata.get("rope.scaling.factor", old)) or 1.0
        if local is not None:
            factor = factor if local.scale == "file" else 1.0  # whatever type and flags say
        elif self._type == "none":
            factor = 1.0
        elif self.flags.rope_freq_scale or self.flags.rope_scale:
            factor = 1 / self.flags.rope_freq_scale if self.flags.rope_freq_scale else self.flags.rope_scale
        if factor < 1:
            raise ValueError(
                f"the scale divides frequencies by {factor:g}, which makes every pair faster; to stretch the context "
                f"by {1 / factor:g}, give --rope-scale {1 / factor:g} or --rope-freq-scale {factor:g}"
            )
        return factor


def _scaling(
    geometry: Geometry, plain: Geometry, factor: float, attention: float, ramp: Config, divisors: Array
) -> DeclaredScaling:
    """plain: with the base and length in force. ramp: options of yarn; {} without yarn. divisors: (pairs,) or (0,)."""
    if divisors.size == 0:
        if ramp and factor > 1:
            return DeclaredScaling("yarn", {"factor": factor, **ramp, "attention_factor": attention}, plain)
        if attention == 1 and factor > 1:
            return DeclaredScaling("linear", {"factor": factor}, plain)
        if attention == 1:
            name, options = ("none", {}) if plain.base == geometry.base else ("base", {"theta": plain.base})
            return DeclaredScaling(name, options, geometry)
        divisors = np.ones(plain.pairs)
    if factor > 1:
        stretched = plan("by_parts" if ramp else "linear", plain, plain.trained_length, factor=factor, **ramp)
        divisors = divisors * inverse_frequencies(plain.rotated, plain.base) / np.array(stretched.inv_freq)
    return DeclaredScaling("factors", {"factors": divisors.tolist(), "attention_factor": attention}, plain)


def _parse_override(text: str) -> tuple[str, Any]:
    """`llama.rope.scaling.attn_factor=float:1.1` as (key without architecture, value)."""
    key, _, typed = text.partition("=")
    kind, _, value = typed.partition(":")
    if kind not in ("int", "float", "str", "bool"):
        raise ValueError(f"--override-kv {text}: give KEY=TYPE:VALUE, with int, float, bool or str for TYPE")
    return key.partition(".")[2], {"int": int, "float": float}.get(kind, str)(value)


def _parser() -> FlagParser:
    parser = FlagParser("llama.cpp")
    parser.add_argument("--rope-scaling", choices=("none", "linear", "yarn"))
    for name in ("--rope-scale", "--rope-freq-base", "--rope-freq-scale", "--yarn-beta-fast", "--yarn-beta-slow"):
        parser.add_argument(name, type=float)
    for name in ("--yarn-ext-factor", "--yarn-attn-factor"):
        parser.add_argument(name, type=float, default=-1.0)
    parser.add_argument("--yarn-orig-ctx", type=int)
    parser.add_argument("--override-kv", action="append")
    return parser
