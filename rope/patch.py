"""Plans in a live model, for a while or for good."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from rope.attention import Undo, comparing, install, install_original, recording, text_config
from rope.geometry import ALL_LAYERS, Plan, Plans, layers_of
from rope.pairwise import PLAIN, Pairwise

ROUNDING = 4e-6
"""Relative distance within which two inverse frequencies are equal, computed in float32 or in float64."""

TRIAL_TOKENS = 32
"""Tokens on which a model's attention is compared with ours before it is replaced."""

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""How far the two may differ, as a share of the norm: models round what they rotate, and we do not."""

REFUSED = {
    "PhimoeRotaryEmbedding": "computes its frequencies from the config at every forward",
    "Ernie4_5_VLMoeTextRotaryEmbedding": "keeps its frequencies in another order",
}
"""Rotary modules of transformers whose inv_freq buffer does not mean what a plan says, and why."""


@contextmanager
def patched(model: nn.Module, plans: Plans) -> Iterator[nn.Module]:
    """The model with these plans, as long as the block lasts; afterwards as before, whatever happened inside.

    Inverse frequencies are cast once, from float64 to float32, whatever dtype the model was cast to. Where a plan is
    what a module was built with, up to the rounding of its float32 arithmetic, the module's own numbers stay: the
    native plan changes no bit.

    Text can be generated inside, with a KV cache or without: both give the same logits, up to rounding. The plans stay
    the same while a text grows. So a dynamic strategy's plan is that for the `length` given to rope.strategies.plans,
    for every token; a model that changes its frequencies by the length of a sequence does not do so inside. Start with
    a new cache: keys cached outside were rotated by another plan.

    A Pairwise plan with regions sets the rotary modules to zero frequency and rotates in attention instead (see
    rope/attention.py). Before that, a forward of TRIAL_TOKENS tokens checks that the model attends in this way. Its
    cache must be one that grows, as by default (DynamicCache).

    Args:
        model: any model with transformers' rotary modules (an inv_freq buffer, or one for every layer type).
        plans: ((layers, plan), ...), as rope.strategies.plans returns them. Plans for single layers need a model whose
            attention takes its cosines and sines from one rotary module (position_embeddings), such as Llama.

    Yields:
        The same model.

    Raises:
        ValueError: no rotary module, a layer type without a plan, a plan of another number of pairs, a plan for layers
            that the model does not have, or has of another type, or a Pairwise plan for a model whose attention is more
            than rotated products of queries and keys. The model is then as before.
    """
    undo = apply(model, plans)
    try:
        yield model
    finally:
        undo()


def apply(model: nn.Module, plans: Plans) -> Undo:
    """Put plans into the model, for good or until the function that this returns is called.

    Everything else is as under `patched`. The model's config keeps its own parameters: to save a model that other
    programs load with the same frequencies, write the config of rope.dialects.to_transformers.

    Args:
        model: any model with transformers' rotary modules; changed in place.
        plans: ((layers, plan), ...), as rope.strategies.plans returns them.

    Returns:
        undo(), after which the model is as before. Of several calls, undo the last one first.

    Raises:
        ValueError: as `patched`. The model is then as before.
    """
    slots = _slots(model)
    by_type = {layers: plan for layers, plan in plans if layers_of(layers)[1] is None}
    for slot in slots:
        _check(slot, by_type)
    overrides = _layer_overrides(model, slots, plans)
    pairwise = {plan for _, plan in plans if isinstance(plan, Pairwise)}
    if pairwise and len({plan for _, plan in plans}) > 1:
        raise ValueError("a Pairwise plan is for all layers of a model: give the same one for every layer")
    with ExitStack() as stack:  # undoes everything where something below fails
        outer = _OVERRIDES.get(model, [])  # must have no effect meanwhile
        _OVERRIDES[model] = overrides
        stack.callback(_OVERRIDES.__setitem__, model, outer)
        for override in outer:
            override.active = False
            stack.callback(setattr, override, "active", True)
        for slot in slots:
            stack.callback(_restore, slot, _state(slot))
            _write(slot, by_type[slot.layer_type])
        for override in overrides:
            handles = [override.slot.module.register_forward_hook(override.compute, with_kwargs=True)]
            for attention in override.attentions:
                handles.append(attention.register_forward_pre_hook(override.pass_on, with_kwargs=True))
            for handle in handles:
                stack.callback(handle.remove)
        stack.callback(install_original(model))
        for plan in pairwise:
            stack.callback(_replace_attention(model, slots, plan))
        return stack.pop_all().close


@dataclass(frozen=True)
class _Slot:
    """Where a model holds one plan: the inverse frequencies of one layer type in one rotary module.

    prefix: "" or "<layer type>_", before the names of all attributes of the slot.
    """

    module: nn.Module
    prefix: str

    @property
    def layer_type(self) -> str:
        return self.prefix.removesuffix("_") or ALL_LAYERS

    @property
    def inv_freq(self) -> torch.Tensor:
        tensor: torch.Tensor = getattr(self.module, f"{self.prefix}inv_freq")
        return tensor

    @property
    def attention(self) -> str:
        return f"{self.prefix}attention_scaling"

    def plan(self) -> Plan:
        """The plan that it holds now."""
        inv_freq = tuple(self.inv_freq.detach().to("cpu", torch.float64).tolist())
        return Plan(inv_freq, float(getattr(self.module, self.attention, 1.0)))


@dataclass(eq=False)
class _LayerOverride:
    """A plan for single layers: their attention gets cosines and sines of that plan in place of the module's.

    angles: what the rotary module returns for this forward's positions under the plan. active: false while other plans
    are applied on top of this one.
    """

    slot: _Slot
    plan: Plan
    attentions: list[nn.Module]
    angles: Any = None
    active: bool = True

    def compute(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], _: Any) -> None:
        """After the rotary module's forward: the same under the plan."""
        layer_types = [value for value in (*arguments, *keywords.values()) if isinstance(value, str)]
        if not self.active or (self.slot.prefix and self.slot.layer_type not in layer_types):
            return
        state = _state(self.slot)
        try:
            _write(self.slot, self.plan)
            self.angles = module.forward(*arguments, **keywords)  # not a call, which would return to this hook
        finally:
            _restore(self.slot, state)

    def pass_on(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, Any]:
        """Before an attention's forward: its arguments with the plan's angles."""
        if not self.active:
            return arguments, keywords
        place = list(inspect.signature(module.forward).parameters).index("position_embeddings")
        if place < len(arguments):
            return (*arguments[:place], self.angles, *arguments[place + 1 :]), keywords
        return arguments, {**keywords, "position_embeddings": self.angles}


_OVERRIDES: WeakKeyDictionary[nn.Module, list[_LayerOverride]] = WeakKeyDictionary()
"""The single layers' plans that a model has at the moment."""


def _layer_overrides(model: nn.Module, slots: list[_Slot], plans: Plans) -> list[_LayerOverride]:
    """The plans for single layers, with their slots and attention modules; ValueError for a layer that is not there."""
    overrides: list[_LayerOverride] = []
    attentions = _attentions(model)
    types = getattr(text_config(model), "layer_types", None) or ()
    for layers, plan in plans:
        layer_type, numbers = layers_of(layers)
        if numbers is None:
            continue
        of_type = [slot for slot in slots if slot.layer_type == layer_type]
        if len(of_type) != 1:
            raise ValueError(
                f"{layers} has a plan of its own, and {type(model).__name__} has {len(of_type)} rotary modules for "
                f"{layer_type}; give plans for layers of {', '.join(sorted({slot.layer_type for slot in slots}))} in a "
                "model with one rotary module"
            )
        _check(of_type[0], {layer_type: plan})
        missing = [number for number in numbers if number not in attentions]
        if missing:
            raise ValueError(
                f"{layers} names layer {missing[0]}, and {type(model).__name__} has {len(attentions)} layers whose "
                "attention takes its rotary angles from outside; give numbers below that, from 0"
            )
        chosen = [n for n in numbers if layer_type == ALL_LAYERS or (n < len(types) and types[n] == layer_type)]
        if not chosen:
            raise ValueError(f"{layers}: none of these layers is of the type {layer_type}; give some that are")
        overrides.append(_LayerOverride(of_type[0], plan, [attentions[number] for number in chosen]))
    return overrides


def _attentions(model: nn.Module) -> dict[int, nn.Module]:
    """The attention module of every layer of the language model, by its number, where it is given its angles."""
    decoder: Any = getattr(model, "get_decoder", lambda: model)()
    return {
        module.layer_idx: module
        for module in decoder.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
        and "position_embeddings" in inspect.signature(module.forward).parameters
        and not any("layer_idx" in vars(child) for child in module.children())
    }


def _replace_attention(model: nn.Module, slots: list[_Slot], plan: Pairwise) -> Undo:
    """Install the plan's attention in a model whose slots hold its frequencies already; ValueError where it cannot be.

    Where the plan has regions, the slots hold zero frequencies afterwards.
    """
    name = type(model).__name__
    with recording(model) as own:
        _try(model)
    if not own.outputs:
        raise ValueError(f"{name} does not attend through transformers' interface; give another model")
    if plan.regions:
        for slot in slots:
            _write(slot, Plan((0.0,) * len(plan.inv_freq)))  # queries and keys reach attention unrotated
        with comparing(model, Pairwise(plan.inv_freq, plan.attention_factor, PLAIN), own) as trial:
            _try(model)
        if not trial.difference <= TOLERANCE[own.outputs[0].dtype]:
            raise ValueError(
                f"attention in {name} is more than rotated products of queries and keys, or rotates other pairs, or "
                f"not in every layer (off by {trial.difference:.1%} on {TRIAL_TOKENS} tokens); a Pairwise plan cannot "
                "replace it: give another model"
            )
    return install(model, plan)


@torch.no_grad()
def _try(model: Any) -> None:
    """A few tokens through the model."""
    ids = torch.arange(TRIAL_TOKENS, device=model.device)[None] % text_config(model).vocab_size
    model(input_ids=ids, use_cache=False)


@dataclass(frozen=True)
class RotaryState:
    """What one rotary module holds for one layer type, even where that is no valid Plan.

    inv_freq: as float64, one per rotated pair. dtype: that of the buffer, such as float32. rows: of a precomputed
    table of cosines, None where there is none. rope_type: by which the module changes while it runs.
    """

    module: str
    layer_type: str
    inv_freq: tuple[float, ...]
    dtype: str
    attention_factor: float
    rope_type: str
    rows: int | None = None


def rotary_states(model: nn.Module) -> list[RotaryState]:
    """What every rotary module of the language model holds, module by module.

    Raises:
        ValueError: no rotary module.
    """
    states = []
    for slot in _slots(model):
        kind, cosines = getattr(slot.module, "rope_type", "default"), getattr(slot.module, "cos_cached", None)
        states.append(
            RotaryState(
                module=type(slot.module).__name__,
                layer_type=slot.layer_type,
                inv_freq=tuple(slot.inv_freq.detach().to("cpu", torch.float64).tolist()),
                dtype=str(slot.inv_freq.dtype).removeprefix("torch."),
                attention_factor=float(getattr(slot.module, slot.attention, 1.0)),
                rope_type=str(kind.get(slot.layer_type, "default") if isinstance(kind, dict) else kind),
                rows=None if cosines is None else int(cosines.shape[-2]),
            )
        )
    return states


def read(model: nn.Module) -> Plans:
    """The plans that the rotary modules of a model hold now, by layer type, as the float32 numbers they are.

    Plans that single layers have of their own are in no module, and are not read.

    Raises:
        ValueError: no rotary module, or modules of one layer type that hold different plans.
    """
    plans: dict[str, Plan] = {}
    for slot in _slots(model):
        plan = slot.plan()
        if plans.setdefault(slot.layer_type, plan) != plan:
            raise ValueError(
                f"the rotary modules of {type(model).__name__} hold different plans for {slot.layer_type}; "
                "read them one by one, from each module's inv_freq"
            )
    return tuple(plans.items())


def _slots(model: nn.Module) -> list[_Slot]:
    slots = [
        _Slot(module, name.removesuffix("inv_freq"))
        for module in model.modules()
        for name in module._buffers
        if name.endswith("inv_freq") and not name.endswith("original_inv_freq")
    ]
    # Towers for images and sound have rotary modules too: older ones without a scaling, newer ones with a config of
    # their own. Only those of the language model are chosen.
    scaled = [slot for slot in slots if hasattr(slot.module, slot.attention)] or slots
    text = text_config(model)
    chosen = [slot for slot in scaled if getattr(slot.module, "config", None) is text] or scaled
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} has no rotary module (no inv_freq buffer in any of its modules); "
            "give a rotary model of transformers"
        )
    return chosen


def _check(slot: _Slot, by_type: dict[str, Plan]) -> None:
    name = type(slot.module).__name__
    if slot.layer_type not in by_type:
        raise ValueError(
            f"{name} holds inverse frequencies for {slot.layer_type}, and plans were given for "
            f"{', '.join(by_type) or 'no layer type'}; give one for {slot.layer_type}"
        )
    plan, pairs = by_type[slot.layer_type], slot.inv_freq.numel()
    if len(plan.inv_freq) != pairs:
        raise ValueError(
            f"the plan for {slot.layer_type} has {len(plan.inv_freq)} inverse frequencies and {name} rotates {pairs} "
            "pairs; make the plan from the geometry of this model's own config"
        )
    reason = "caches its cosines" if hasattr(slot.module, "cos_cached") else REFUSED.get(name)
    if reason:
        raise ValueError(f"{name} {reason}, so a plan written into it would be lost; give another model")
    if plan.attention_factor != 1 and not hasattr(slot.module, slot.attention):
        raise ValueError(
            f"{name} has no {slot.attention}, and the plan wants an attention factor of {plan.attention_factor}; "
            "give a plan without one"
        )


def _state(slot: _Slot) -> dict[str, Any]:
    names = ("rope_type", slot.attention)
    state = {name: getattr(slot.module, name) for name in names if hasattr(slot.module, name)}
    return state | {f"{slot.prefix}inv_freq": slot.inv_freq}


def _restore(slot: _Slot, state: dict[str, Any]) -> None:
    for name, value in state.items():
        setattr(slot.module, name, value)


def _write(slot: _Slot, plan: Plan) -> None:
    built = getattr(slot.module, f"{slot.prefix}original_inv_freq", slot.inv_freq)
    inv_freq = torch.tensor(plan.inv_freq, dtype=torch.float64)
    unchanged = built.dtype == torch.float32 and torch.allclose(built.detach().cpu().double(), inv_freq, ROUNDING, 0.0)
    values = built if unchanged else inv_freq.to(torch.float32)
    setattr(slot.module, f"{slot.prefix}inv_freq", values.to(slot.inv_freq.device))
    attention = getattr(slot.module, slot.attention, None)
    if attention is not None and not math.isclose(attention, plan.attention_factor, rel_tol=ROUNDING):
        setattr(slot.module, slot.attention, plan.attention_factor)
    module: Any = slot.module
    if isinstance(getattr(module, "rope_type", None), dict):
        module.rope_type = module.rope_type | {slot.layer_type: "default"}
    elif hasattr(module, "rope_type"):
        module.rope_type = "default"
