"""What all dialects share: what is to be said, what an engine is told, and the refusal of what it has no words for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rope.config import rope_parameters, text_config
from rope.geometry import Geometry, Plan, inverse_frequencies, layers_of
from rope.pairwise import Pairwise
from rope.strategies import named, options_of, plans, stretch
from rope.strategies.over import with_factor
from rope.strategies.registry import options_given
from rope.strategies.scaling import running_factor

Words = dict[str, Any]

STANDING_STILL = 1e28
"""Divisor that stands for a frequency of 0: JSON has no infinity, and float32 ends at 3e38."""


class Unsayable(ValueError):
    """A plan that an engine has no words for; its sentence names the nearest that it has."""


@dataclass(frozen=True)
class Deployment:
    """A strategy in one engine's words.

    engine: its name, a key of ENGINES.
    name: what the engine calls it: a rope_type, `rope_theta`, a flag, `rope_freqs`.
    arguments: what its command line takes after the checkpoint as it is.
    with_file: what it takes after a file that config, or keys and rope_freqs, were written into.
    config: config.json as the engine must read it; None where it is told by arguments, or by GGUF keys, alone.
    keys: GGUF metadata by name, without the architecture in front.
    rope_freqs: the tensor rope_freqs.weight of a GGUF file, (pairs,); empty where none is needed.
    needs_file: whether the arguments alone do not say it, so that config or keys and rope_freqs must be written.
    notes: sentences on what the engine does otherwise than the model that was measured.
    """

    engine: str
    name: str
    arguments: tuple[str, ...] = ()
    with_file: tuple[str, ...] = ()
    config: Words | None = None
    keys: Mapping[str, int | float | str] = field(default_factory=dict)
    rope_freqs: tuple[float, ...] = ()
    needs_file: bool = False
    notes: tuple[str, ...] = ()

    def command(self, *start: str, written: bool = False) -> str:
        """The command line as a shell takes it: `start` is the program and the model, as it is or as `written`."""
        return shlex.join([*start, *(self.with_file if written else self.arguments)])


@dataclass(frozen=True)
class Case:
    """One layer type's plan on its way into words, with all that the words depend on."""

    strategy: str
    options: Mapping[str, Any]  # all of them, defaults included
    geometry: Geometry
    plan: Plan
    length: int
    own: Mapping[str, Any]  # the rope parameters that the checkpoint came with
    nested: bool  # whether the config has them by layer type
    text: Mapping[str, Any]  # the config that holds them

    @property
    def native(self) -> bool:
        return self.plan == self.geometry.native(self.length)

    @property
    def factor(self) -> float:
        """By how much the context is stretched; the `factor` of dynamic ones is another thing."""
        given = None if self.strategy in ("dynamic", "dynamic_ntk") else self.options.get("factor")
        return stretch(self.geometry, self.length, given)

    @property
    def settled(self) -> Case:
        """The same plan by a strategy that knows no running length and goes over no other, where there is one."""
        name, options = self.strategy, self.options
        if self.native:
            return self._as("none", {})
        if name == "dynamic_ntk":
            return self._as("ntk", {"factor": self._running})
        if name == "dynamic":
            return self._as(
                str(options["over"]), {**options_given(options["options"]), "factor": self._running}
            ).settled
        if name == "per_layer":  # its single layers were refused before, so that this is the plan of them all
            over = str(options["over"])
            return self._as(over, with_factor(over, options_given(options["options"]), options["factor"])).settled
        return self

    @property
    def runs(self) -> bool:
        """Whether the strategy follows the length of a sequence, so that this plan is that of one length."""
        return self.strategy in ("dynamic", "dynamic_ntk") and not self.native

    @property
    def theta(self) -> float | None:
        """The base that the settled strategy puts in the place of the geometry's; None where it does no such thing."""
        case, rotated = self.settled, self.geometry.rotated
        if case.strategy == "ntk":
            return float(self.geometry.base * case.factor ** (rotated / (rotated - 2)))
        return float(case.options["theta"]) if case.strategy == "base" else None

    @property
    def divisors(self) -> list[float]:
        """By how much every pair of the plain geometry is slowed; STANDING_STILL for one that does not turn."""
        plain = inverse_frequencies(self.geometry.rotated, self.geometry.base)
        scaled = np.array(self.plan.inv_freq)
        divisors = np.where(scaled > 0, plain / np.where(scaled > 0, scaled, 1.0), STANDING_STILL)
        return [float(divisor) for divisor in divisors]

    @property
    def _running(self) -> float:
        return running_factor(self.geometry, self.length, self.options["rule"], self.options["factor"])

    def _as(self, strategy: str, options: Mapping[str, Any]) -> Case:
        return Case(
            named(strategy), {**options_of(strategy), **options}, self.geometry, self.plan, self.length, self.own,
            self.nested, self.text,
        )  # fmt: skip


def cases_of(
    engine: str,
    config: Any,
    strategy: str,
    options: Mapping[str, Any],
    geometries: Mapping[str, Geometry],
    length: int,
) -> tuple[dict[str, Case], dict[str, Words | None]]:
    """What is to be said, by layer type, and the rope parameters that the checkpoint came with.

    Raises:
        Unsayable: a plan that changes attention itself, or whose single layers differ.
        ValueError: what rope.strategies.plan refuses, or geometries of other layer types than the config's.
    """
    name, full = named(strategy), {**options_of(strategy), **options}
    chosen, own = dict(plans(strategy, geometries, length, **options)), rope_parameters(config)
    if any(isinstance(plan, Pairwise) for plan in chosen.values()):
        raise Unsayable(
            f"{engine} has no words for {name}: it changes attention itself, not frequencies alone; the nearest that "
            "it can say is a frequency strategy, such as yarn"
        )
    if any(layers_of(layers)[1] for layers in chosen):
        over = full.get("over", "linear")
        raise Unsayable(
            f"{engine} has no words for {strategy}, whose layers differ; the nearest that it can say is {over} for all "
            "layers alike; or run its plans in a live model"
        )
    if set(chosen) != {layer_type for layer_type, parameters in own.items() if parameters is not None}:
        raise ValueError(f"the geometries are of {', '.join(chosen)} and the config of {', '.join(own)}; give its own")
    nested, text = len(own) > 1 or "all" not in own, text_config(config)
    cases = {
        layer_type: Case(name, full, geometries[layer_type], plan, length, own[layer_type] or {}, nested, text)
        for layer_type, plan in chosen.items()
    }
    return cases, own


def only(engine: str, cases: Mapping[str, Case]) -> Case:
    """The one case of a model whose layers share one rotary embedding.

    Raises:
        Unsayable: there are several layer types.
    """
    if len(cases) > 1 or next(iter(cases.values())).nested:
        raise Unsayable(
            f"{engine} is told one rotary embedding for all layers, and this model has {len(cases)} "
            f"({', '.join(cases)}); the nearest are transformers and vllm, which take them by layer type"
        )
    return next(iter(cases.values()))


def as_json(words: Words) -> str:
    """On one line, as a command line takes it."""
    return json.dumps(words, separators=(", ", ": "))


def shortest(number: float) -> str:
    """A number as a flag: with all its digits, and none that say nothing.

    >>> shortest(4.0), shortest(40889.926)
    ('4', '40889.926')
    """
    return str(int(number)) if float(number).is_integer() and abs(number) < 1e15 else repr(float(number))


def running_note(engine: str, cases: Mapping[str, Case]) -> tuple[str, ...]:
    """What must be said where a dynamic strategy's plan is told in words that know no running length."""
    running = [case for case in cases.values() if case.runs]
    if not running:
        return ()
    return (
        f"in {engine} this does not follow the length of a sequence: these are the frequencies of "
        f"{running[0].length:,} tokens, for shorter ones too",
    )
