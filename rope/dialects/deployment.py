"""What all engines share: a request to run a strategy, the deployment that does, and the refusal where none can."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from rope import families
from rope.config import rope_parameters, with_defaults
from rope.cropping import cropped
from rope.dialects.relabel import RELABELLING, relabelled
from rope.geometry import ALL_LAYERS, Geometry, Plan, inverse_frequencies, layers_of
from rope.pairwise import Pairwise
from rope.strategies import CROPS_TEXT, canonical_name, options_of, plans, stretch
from rope.strategies.scaling import running_factor
from rope.strategies.stack import alone

Config = dict[str, Any]
"""config.json, or a part of it such as rope_parameters."""

ZERO_FREQUENCY = 1e28
"""Divisor that gives a frequency of 0: JSON has no infinity, and float32 ends at 3e38."""


class Unsupported(ValueError):
    """A plan that an engine cannot run; the sentence names the closest supported alternative."""


@dataclass(frozen=True)
class Deployment:
    """A strategy as one engine takes it.

    engine: its name, a key of ENGINES.
    name: what the engine calls the scaling: a rope_type, `rope_theta`, a flag, `rope_freqs`.
    arguments: of its command line, after the unchanged checkpoint.
    with_file: of its command line, after a file that config, or keys and rope_freqs, were written into.
    config: config.json for the engine; None where it takes arguments, or GGUF keys, alone.
    keys: GGUF metadata by name, without the architecture in front.
    rope_freqs: the tensor rope_freqs.weight of a GGUF file, (pairs,); empty where none is needed.
    needs_file: whether arguments are not enough, so that config, or keys and rope_freqs, must be written.
    notes: sentences on how the engine differs from the model that was measured.
    """

    engine: str
    name: str
    arguments: tuple[str, ...] = ()
    with_file: tuple[str, ...] = ()
    config: Config | None = None
    keys: Mapping[str, int | float | str] = field(default_factory=dict)
    rope_freqs: tuple[float, ...] = ()
    needs_file: bool = False
    notes: tuple[str, ...] = ()

    def command(self, *start: str, written: bool = False) -> str:
        """The command line for a shell: `start` is the program and the model, unchanged or as `written`."""
        return shlex.join([*start, *(self.with_file if written else self.arguments)])


@dataclass(frozen=True)
class LayerScaling:
    """The scaling of one layer type.

    options: all of the strategy's, defaults included. declared: the checkpoint's own rope parameters. by_layer_type:
    whether the config gives those by layer type. text: the config of the language model, with what its class fills in.
    family: its model_type.
    """

    strategy: str
    options: Mapping[str, Any]
    geometry: Geometry
    plan: Plan
    length: int
    declared: Mapping[str, Any]
    by_layer_type: bool
    text: Mapping[str, Any]
    family: str

    @property
    def native(self) -> bool:
        """Whether the plan is the checkpoint's own."""
        return self.plan == self.geometry.native(self.length)

    @property
    def factor(self) -> float:
        """By how much the context is stretched; the `factor` of dynamic strategies has another meaning."""
        factor = None if self.strategy in ("dynamic", "dynamic_ntk") else self.options.get("factor")
        return stretch(self.geometry, self.length, factor)

    @property
    def static(self) -> LayerScaling:
        """The same plan by a strategy that neither follows the length nor is built on another, where there is one."""
        name, options = self.strategy, self.options
        if self.native:
            return self._by("none", {})
        if name == "dynamic_ntk":
            return self._by("ntk", {"factor": self._running_factor})
        if name == "dynamic":
            over, own = alone(options["over"], options["options"])
            return self._by(over, {**own, "factor": self._running_factor}).static
        if name == "per_layer":  # without plans for single layers, which are refused before
            return self._by(*alone(options["over"], options["options"], options["factor"])).static
        return self

    @property
    def dynamic(self) -> bool:
        """Whether the strategy follows the length of a sequence, so that this plan is that of one length."""
        return self.strategy in ("dynamic", "dynamic_ntk") and not self.native

    @property
    def theta(self) -> float | None:
        """The base that the static strategy replaces the geometry's by; None where it does not."""
        static, rotated = self.static, self.geometry.rotated
        if static.strategy == "ntk":
            return float(self.geometry.base * static.factor ** (rotated / (rotated - 2)))
        return float(static.options["theta"]) if static.strategy == "base" else None

    @property
    def divisors(self) -> list[float]:
        """By what every plain inverse frequency is divided; ZERO_FREQUENCY for a frequency of 0."""
        plain = inverse_frequencies(self.geometry.rotated, self.geometry.base)
        scaled = np.array(self.plan.inv_freq)
        divisors = np.where(scaled > 0, plain / np.where(scaled > 0, scaled, 1.0), ZERO_FREQUENCY)
        return [float(divisor) for divisor in divisors]

    @property
    def _running_factor(self) -> float:
        return running_factor(self.geometry, self.length, self.options["rule"], self.options["factor"])

    def _by(self, strategy: str, options: Mapping[str, Any]) -> LayerScaling:
        return replace(self, strategy=canonical_name(strategy), options={**options_of(strategy), **options})


@dataclass(frozen=True)
class ScalingRequest:
    """A strategy to be expressed for an engine.

    engine: its name. config: the checkpoint's config.json as a mapping, or its config object. geometries: by layer
    type, as rope.config.geometry_of gives them. length: tokens of context.
    """

    engine: str
    config: Any
    strategy: str
    options: Mapping[str, Any]
    geometries: Mapping[str, Geometry]
    length: int

    @property
    def served(self) -> ScalingRequest:
        """What is left for an engine to do: of a plan that crops a text, to run the plain model at that window; of one
        that another class computes over the same weights, what is left of it under that class."""
        if canonical_name(self.strategy) not in CROPS_TEXT:
            if self.engine not in RELABELLING:
                return self
            other = relabelled(self.engine, self.config, self.strategy, self.options, self.geometries, self.length)
            return self if other is None else replace(self, config=other[0], strategy=other[1], options=other[2])
        crop = cropped(plans(self.strategy, self.geometries, self.length, **self.options))
        return replace(self, strategy="none", options={}, length=self.length if crop is None else crop.window)

    @cached_property
    def declared(self) -> dict[str, Config | None]:
        """The checkpoint's own rope parameters, by layer type; None for layers without rotation."""
        return rope_parameters(self.config)

    @cached_property
    def scalings(self) -> dict[str, LayerScaling]:
        """The scaling of every layer type that rotates.

        Raises:
            Unsupported: a plan that changes attention itself, or whose single layers differ.
            ValueError: what rope.strategies.plan refuses, or geometries of other layer types than the config's.
        """
        name, options = canonical_name(self.strategy), {**options_of(self.strategy), **self.options}
        chosen = dict(plans(self.strategy, self.geometries, self.length, **self.options))
        if any(isinstance(plan, Pairwise) for plan in chosen.values()):
            raise Unsupported(
                f"{self.engine} does not support {name}, which changes attention itself, not frequencies alone; the "
                "closest supported alternative is a frequency strategy, such as yarn"
            )
        if any(layers_of(layers)[1] for layers in chosen):
            raise Unsupported(
                f"{self.engine} does not support {self.strategy} with different plans for single layers; the closest "
                f"supported alternative is {options.get('over', 'linear')} for all layers; or use a live model"
            )
        rotating = {key for key, parameters in self.declared.items() if parameters is not None}
        if set(chosen) != rotating:
            raise ValueError(
                f"the geometries are for {', '.join(chosen)} and the config for {', '.join(self.declared)}; give those "
                "of this config"
            )
        by_layer_type = len(self.declared) > 1 or ALL_LAYERS not in self.declared
        text = with_defaults(self.config)
        _, known = families.language_model(as_mapping(self.config))
        family = known.name if known else str(text.get("model_type", "model"))
        scalings = {}
        for key, plan in chosen.items():
            geometry = self.geometries[key]
            acting, given = name, dict(options)
            if name == "none" and geometry.running is not None:
                # what the checkpoint's own code does at run time, said as the strategy that it is
                acting, own = geometry.running.strategy, geometry.running.options
                given, geometry = {**options_of(acting), **own}, geometry.running.geometry
            geometry = replace(geometry, running=None)
            scalings[key] = LayerScaling(
                acting, given, geometry, plan, self.length, self.declared[key] or {}, by_layer_type, text, family
            )
        return scalings

    @property
    def only_scaling(self) -> LayerScaling:
        """The scaling of a model whose layers share one rotary embedding.

        Raises:
            Unsupported: there are several layer types; or what `scalings` refuses.
        """
        scaling, *others = self.scalings.values()
        if others or scaling.by_layer_type:
            raise Unsupported(
                f"{self.engine} supports one rotary embedding for all layers, and this model has {len(self.scalings)} "
                f"({', '.join(self.scalings)}); the closest supported alternatives are transformers and vllm"
            )
        return scaling

    def dynamic_notes(self, title: str) -> tuple[str, ...]:
        """What must be said where an engine does not follow the length of a sequence and the strategy does."""
        if not any(scaling.dynamic for scaling in self.scalings.values()):
            return ()
        return (
            f"in {title} this does not follow the length of a sequence: these are the frequencies of "
            f"{self.length:,} tokens, for shorter ones too",
        )


class FlagParser(argparse.ArgumentParser):
    """Reads an engine's command line; raises a ValueError for what the engine refuses."""

    def __init__(self, engine: str) -> None:
        super().__init__(prog=engine, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}'s flags: {message}")


def as_mapping(config: Any) -> Config:
    """A config.json, or a config object, as a mapping."""
    return dict(config if isinstance(config, Mapping) else config.to_dict())


def to_json(value: Config) -> str:
    """On one line, as a command line takes it."""
    return json.dumps(value, separators=(", ", ": "))


def format_number(number: float) -> str:
    """A number as a flag: all its digits, and no superfluous ones.

    >>> format_number(4.0), format_number(40889.926)
    ('4', '40889.926')
    """
    return str(int(number)) if float(number).is_integer() and abs(number) < 1e15 else repr(float(number))
