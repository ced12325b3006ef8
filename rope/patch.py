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
from rope.cropping import cropped
from rope.geometry import ALL_LAYERS, Plan, Plans, layers_of
from rope.pairwise import PLAIN, Pairwise
from rope.rotary import BUILT, ROUNDING, RotarySlot, check_built, own_numbers, rotary_slots
from rope.rotary import BuiltOtherwise as BuiltOtherwise
from rope.rotary import Reading as Reading
from rope.rotary import RotaryState as RotaryState
from rope.rotary import computed_otherwise as computed_otherwise
from rope.rotary import read as read
from rope.rotary import rotary_states as rotary_states

TRIAL_TOKENS = 32
"""Tokens on which a model's attention is compared with ours before it is replaced."""

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""How far the two may differ, as a share of the norm: models round what they rotate, and we do not."""

REFUSED = {
    "PhimoeRotaryEmbedding": "computes its frequencies from the config at every forward",
    "Ernie4_5_VLMoeTextRotaryEmbedding": "keeps its frequencies in another order",
}
"""Rotary modules of transformers whose inv_freq buffer does not mean what a plan says, and why."""


Own = tuple[torch.Tensor | None, float | None]
"""Inverse frequencies and attention factor that a module computed itself and a plan may leave; None for what it may
not."""


@contextmanager
def patched(model: nn.Module, plans: Plans, reading: Reading | None = None) -> Iterator[nn.Module]:
    """The model with these plans, as long as the block lasts; afterwards as before, whatever happened inside.

    Where a plan is what a module was built with, up to the rounding of its float32 arithmetic, nothing is written: the
    native plan changes no bit. Other inverse frequencies are cast once, from float64 to float32, whatever dtype the
    model was cast to.

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
        reading: what the model's config was read as. If given, the modules as built are compared with it first, and a
            native plan of a module that changes at run time is what that module itself computes for this length.

    Yields:
        The same model.

    Raises:
        ValueError: no rotary module, a layer type without a plan, a plan of another number of pairs, a plan for layers
            that the model does not have, or has of another type, a Pairwise plan for a model whose attention is more
            than rotated products of queries and keys, or a plan that crops the text. The model is then as before.
        BuiltOtherwise: the modules are not what was read (a ValueError too).
    """
    undo = apply(model, plans, reading)
    try:
        yield model
    finally:
        undo()


def apply(model: nn.Module, plans: Plans, reading: Reading | None = None) -> Undo:
    """Put plans into the model, for good or until the function that this returns is called.

    Everything else is as under `patched`. The model's config keeps its own parameters: to save a model that other
    programs load with the same frequencies, write the config of rope.dialects.to_transformers.

    Args:
        model: any model with transformers' rotary modules; changed in place.
        plans, reading: as `patched`.

    Returns:
        undo(), after which the model is as before. Of several calls, undo the last one first.

    Raises:
        ValueError: as `patched`. The model is then as before.
    """
    if (crop := cropped(plans)) is not None:
        raise ValueError(
            f"crop changes nothing in a model: leave it as it is, and give it the last {crop.window} tokens of a text"
        )
    slots, length = rotary_slots(model), None if reading is None else reading.length
    if reading is not None:
        check_built(model, slots, reading)
    by_type = {layers: plan for layers, plan in plans if layers_of(layers)[1] is None}
    for slot in slots:
        _check(slot, by_type)
    overrides = _layer_overrides(model, slots, plans, length)
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
            stack.callback(_put(slot, by_type[slot.layer_type], length))
        for override in overrides:
            handles = [override.slot.module.register_forward_hook(override.compute, with_kwargs=True)]
            for attention in override.attentions:
                handles.append(attention.register_forward_pre_hook(override.pass_on, with_kwargs=True))
            for handle in handles:
                stack.callback(handle.remove)
        stack.callback(install_original(model))
        for plan in pairwise:
            _replace_attention(model, slots, plan, stack)
        return stack.pop_all().close


@dataclass(eq=False)
class _LayerOverride:
    """A plan for single layers: their attention gets cosines and sines of that plan in place of the module's.

    angles: what the rotary module returns for this forward's positions under the plan. active: false while other plans
    are applied on top of this one.
    """

    slot: RotarySlot
    plan: Plan
    own: Own
    attentions: list[nn.Module]
    angles: Any = None
    active: bool = True

    def compute(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], _: Any) -> None:
        """After the rotary module's forward: the same under the plan."""
        layer_types = [value for value in (*arguments, *keywords.values()) if isinstance(value, str)]
        if not self.active or (self.slot.prefix and self.slot.layer_type not in layer_types):
            return
        state = self.slot.state()
        try:
            _write(self.slot, self.plan, self.own)
            self.angles = module.forward(*arguments, **keywords)  # not a call, which would return to this hook
        finally:
            self.slot.restore(state)

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


def _layer_overrides(
    model: nn.Module, slots: list[RotarySlot], plans: Plans, length: int | None
) -> list[_LayerOverride]:
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
        overrides.append(
            _LayerOverride(of_type[0], plan, _own(of_type[0], plan, length), [attentions[number] for number in chosen])
        )
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


def _replace_attention(model: nn.Module, slots: list[RotarySlot], plan: Pairwise, stack: ExitStack) -> None:
    """Install the plan's attention in a model whose slots hold its frequencies already; ValueError where it cannot be.

    Where the plan has regions, the slots hold zero frequencies afterwards. stack: gets what undoes it.
    """
    name = type(model).__name__
    with recording(model) as own:
        _try(model)
    if not own.outputs:
        raise ValueError(f"{name} does not attend through transformers' interface; give another model")
    if plan.regions:
        for slot in slots:
            # queries and keys reach attention unrotated
            stack.callback(_put(slot, Plan((0.0,) * len(plan.inv_freq)), None))
        with comparing(model, Pairwise(plan.inv_freq, plan.attention_factor, PLAIN), own) as trial:
            _try(model)
        if not trial.difference <= TOLERANCE[own.outputs[0].dtype]:
            raise ValueError(
                f"attention in {name} is more than rotated products of queries and keys, or rotates other pairs, or "
                f"not in every layer (off by {trial.difference:.1%} on {TRIAL_TOKENS} tokens); a Pairwise plan cannot "
                "replace it: give another model"
            )
    stack.callback(install(model, plan))


@torch.no_grad()
def _try(model: Any) -> None:
    """A few tokens through the model."""
    ids = torch.arange(TRIAL_TOKENS, device=model.device)[None] % text_config(model).vocab_size
    model(input_ids=ids, use_cache=False)


def _check(slot: RotarySlot, by_type: dict[str, Plan]) -> None:
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
    if plan.attention_factor != 1 and not hasattr(slot.module, slot.attention):
        raise ValueError(
            f"{name} has no {slot.attention}, and the plan wants an attention factor of {plan.attention_factor}; "
            "give a plan without one"
        )


def _own(slot: RotarySlot, plan: Plan, length: int | None) -> Own:
    """The module's own numbers that are the plan's, up to rounding; None for those that are not."""
    own, factor = own_numbers(slot, length)
    meant = torch.tensor(plan.inv_freq, dtype=torch.float64)
    same = own.dtype == torch.float32 and torch.allclose(own.detach().cpu().double(), meant, ROUNDING, 0.0)
    return (own if same else None), (factor if math.isclose(factor, plan.attention_factor, rel_tol=ROUNDING) else None)


def _put(slot: RotarySlot, plan: Plan, length: int | None) -> Undo:
    """Put a plan into a slot, and remember what was built; where that is the plan, nothing of it is replaced."""
    under, own = slot.under, _own(slot, plan, length)
    if under is None and None not in own and not slot.changes_at_run_time:
        return lambda: None
    reason = "caches its cosines" if hasattr(slot.module, "cos_cached") else REFUSED.get(slot.name)
    if reason:
        raise ValueError(f"{slot.name} {reason}, so a plan written into it would be lost; give another model")
    state = slot.state()
    _write(slot, plan, own)
    plans_before = vars(slot.module).get(BUILT, {})
    setattr(slot.module, BUILT, plans_before | {slot.prefix: (under[0] if under else state, slot.inv_freq)})

    def undo() -> None:
        slot.restore(state)
        if plans_before:
            setattr(slot.module, BUILT, plans_before)
        else:
            delattr(slot.module, BUILT)

    return undo


def _write(slot: RotarySlot, plan: Plan, own: Own) -> None:
    """The plan into the slot, or in its place those of the module's own numbers whose rounding it is."""
    values, factor = own
    if values is None:
        values = torch.tensor(plan.inv_freq, dtype=torch.float64).to(torch.float32)
    setattr(slot.module, f"{slot.prefix}inv_freq", values.to(slot.inv_freq.device))
    if hasattr(slot.module, slot.attention):
        setattr(slot.module, slot.attention, plan.attention_factor if factor is None else factor)
    module: Any = slot.module
    if slot.changes_at_run_time:
        is_dict = isinstance(module.rope_type, dict)
        module.rope_type = module.rope_type | {slot.layer_type: "default"} if is_dict else "default"
