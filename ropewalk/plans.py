"""Plans for a model: computed from its geometry, put into the live model, written as an engine's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

import rope.config
from rope import strategies
from rope.dialects import ENGINES as _ENGINES
from rope.dialects import Deployment, deploy
from rope.geometry import ALL_LAYERS, Array, Geometry, Plan, Plans

if TYPE_CHECKING:
    from torch import nn

Model = TypeVar("Model", bound="nn.Module")

STRATEGIES: Mapping[str, str] = {
    name: (function.__doc__ or "").partition("\n")[0] for name, function in strategies.STRATEGIES.items()
}
"""Every strategy, and what it does in one line. The functions in rope/strategies have formula, options and source."""

ENGINES: tuple[str, ...] = tuple(_ENGINES)
"""The engines that `export` knows."""


@dataclass(frozen=True)
class StrategyPlan:
    """A strategy's plan for one model and one length, as `plan` computes it.

    strategy: its name in STRATEGIES.
    options: those that differ from the published defaults.
    geometries: what the model was trained with, by layer type.
    length: tokens of context.
    plans: the plan of every layer type, and of single layers that have their own: ((layers, plan), ...).
    config: the model's config.json, where the plan was made from a config or a model.
    """

    strategy: str
    options: Mapping[str, Any] = field(hash=False)
    geometries: Mapping[str, Geometry] = field(hash=False)
    length: int
    plans: Plans
    config: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def inv_freq(self) -> Array:
        """(rotated dims / 2,) float64, radians per token, fastest first; of a model whose layers share one plan."""
        return np.array(self._single.inv_freq)

    @property
    def attention_factor(self) -> float:
        """Multiplies cos and sin; of a model whose layers share one plan."""
        return self._single.attention_factor

    @property
    def _single(self) -> Plan:
        if len(self.plans) > 1:
            layers = ", ".join(layers for layers, _ in self.plans)
            raise ValueError(f"this plan differs by layer ({layers}); read each in dict(plan.plans)")
        return self.plans[0][1]


def geometry_of(config_or_model: Any, trained_length: int | None = None) -> dict[str, Geometry]:
    """What a model was trained with, by layer type: {"all": geometry} where its layers share one rotary embedding.

    Args:
        config_or_model: config.json as a mapping, a transformers config, or a live model.
        trained_length: tokens, where the config's max_position_embeddings is not what the model was trained for.

    Raises:
        ValueError: the model has no rotary embedding, or declares a scaling that is not known.
    """
    return rope.config.geometry_of(getattr(config_or_model, "config", config_or_model), trained_length)


def plan(strategy: str, geometry: Any, length: int, **options: Any) -> StrategyPlan:
    """The plan of a strategy for a model and a length.

    Args:
        strategy: a name of STRATEGIES.
        geometry: what `geometry_of` returned, or what it takes: a live model or its config. Or a `Geometry`.
        length: tokens of context that the plan is for.
        options: of the strategy; a name that it does not have is refused with those that it has. `factor` is
            length / trained length unless given.

    Raises:
        ValueError: an unknown strategy or option, a value out of its range, or a model without rotary embedding.
    """
    config, geometries = _described(geometry)
    options = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in options.items()}
    plans = strategies.plans(strategy, geometries, length, **options)
    defaults = strategies.options_of(strategy)
    changed = {name: value for name, value in options.items() if value != defaults[name]}
    return StrategyPlan(strategies.canonical_name(strategy), changed, geometries, length, plans, config)


def _described(given: Any) -> tuple[Mapping[str, Any] | None, dict[str, Geometry]]:
    """The config, where there is one, and the geometry by layer type."""
    if isinstance(given, Geometry):
        return None, {ALL_LAYERS: given}
    if isinstance(given, Mapping) and given and all(isinstance(value, Geometry) for value in given.values()):
        return None, dict(given)
    geometries, config = geometry_of(given), getattr(given, "config", given)
    return config if isinstance(config, Mapping) else config.to_dict(), geometries


@contextmanager
def patched(model: Model, plan: StrategyPlan) -> Iterator[Model]:
    """The live model under a plan; as it was before once the block ends, however it ends.

        with ropewalk.patched(model, plan):
            model.generate(**inputs, max_new_tokens=100)

    One plan holds for the whole block, so cached keys stay consistent. Do not carry a cache into the block or out of
    it: its keys were rotated under another plan.

    Raises:
        ValueError: the model's rotary modules are not what the plan was made for (set by hand, or of another config:
            the sentence has both numbers), or the model's attention cannot take it. The model is then as before.
    """
    from rope import patch

    _check(plan)
    with patch.patched(model, plan.plans, patch.Reading(plan.geometries, plan.length)):
        _BLOCKS[model] = _BLOCKS.get(model, 0) + 1
        try:
            yield model
        finally:
            _BLOCKS[model] -= 1


def apply(model: Model, plan: StrategyPlan | None) -> Model:
    """Put a plan into a live model until another takes its place, or `apply(model, None)` takes it out.

    The model's weights and config stay as they are, so save_pretrained does not save the plan; `export` says it to an
    engine. Returns the model.

    Raises:
        ValueError: as `patched`; the model is then without any plan. Or within a block of `patched`.
    """
    if _BLOCKS.get(model, 0):
        raise ValueError("the model is inside a block of ropewalk.patched; apply a plan before or after the block")
    if (applied := model.__dict__.pop(_APPLIED, None)) is not None:
        applied.undo()
    if plan is not None:
        from rope import patch

        _check(plan)
        model.__dict__[_APPLIED] = _Applied(patch.apply(model, plan.plans, patch.Reading(plan.geometries, plan.length)))
    return model


_APPLIED = "_ropewalk_applied"
_BLOCKS: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""How many blocks of `patched` a model is in."""


class _Applied:
    """What takes an applied plan out of its model. In copies and pickles of the model stands None instead."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self.undo = undo

    def __reduce__(self) -> tuple[Any, ...]:
        return NoneType, ()


def _check(plan: Any) -> None:
    if not isinstance(plan, StrategyPlan):
        raise ValueError(f"{plan!r} is no plan; give what ropewalk.plan(strategy, model, length) returns")


def export(plan: StrategyPlan, engine: str, config: Any = None) -> Deployment:
    """A plan as the settings of an inference engine: its command-line arguments, config.json or GGUF keys, as data.

    Args:
        plan: what `plan` returned.
        engine: a name of ENGINES.
        config: the model's config (a mapping, a transformers config, or a live model); needed where the plan was made
            from a geometry alone.

    Returns:
        .arguments is what the engine's command line takes, .config the config.json as it must read it, .notes what it
        does otherwise than the measured model. Nothing is written; `ropewalk export` writes the files too.

    Raises:
        ValueError: an unknown engine; or the engine cannot express the strategy, with the closest that it can.
    """
    _check(plan)
    config = plan.config if config is None else getattr(config, "config", config)
    if config is None:
        raise ValueError("this plan was made from a geometry, without a config; give export(plan, engine, config)")
    return deploy(engine, config, plan.strategy, plan.options, plan.geometries, plan.length)
