"""A plan into a live model, and out again."""

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
from torch.utils.hooks import RemovableHandle

from rope.attention import attending, comparing, recording, text_config, undisturbed
from rope.geometry import ALL_LAYERS, Plan, Plans, layers_of
from rope.pairwise import PLAIN, Pairwise

ROUNDING = 4e-6
"""Relative distance within which two inverse frequencies are one number, computed in float32 or in float64."""

TRIED = 32
"""Tokens on which a model's attention is compared with ours before it is replaced."""

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""How far ours may be off there, as a share of its norm: models round what they rotate, and we do not."""

REFUSED = {
    "PhimoeRotaryEmbedding": "computes its frequencies from the config at every forward",
    "Ernie4_5_VLMoeTextRotaryEmbedding": "holds its frequencies in an order of its own",
}
"""Rotary modules of transformers whose inv_freq buffer does not mean what a plan says, and why."""


@dataclass(frozen=True)
class _Seat:
    """One place of a model that holds a plan: the inverse frequencies of one layer type in one rotary module."""

    module: nn.Module
    prefix: str  # "" or "<layer type>_", before the names of all that belongs to the seat

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


@contextmanager
def patched(model: nn.Module, plans: Plans) -> Iterator[nn.Module]:
    """The model with these plans in its rotary modules, as it was before once the block ends, however it ends.

    Inverse frequencies are cast once, from float64 to float32, whatever dtype the model was cast to. Where a plan is
    what a module was built with, up to the rounding of its float32 arithmetic, the module's own numbers are kept: the
    native plan changes no bit. Updates by running length are off inside, so one plan holds for the whole block and no
    block leaves a trace in the next. Keys cached outside the block were rotated by another plan; start a new cache.

    A Pairwise plan that has regions makes the rotary modules stand still and rotates in attention instead
    (rope/attention.py). That this is what the model does is tried on a few tokens before the block begins.

    Args:
        model: any model with transformers' rotary modules (an inv_freq buffer, or one for every layer type).
        plans: ((layers, plan), ...), as rope.strategies.plans gives them. Plans for single layers need a model whose
            attention takes its cosines and sines from one rotary module (position_embeddings), as Llama's.

    Raises:
        ValueError: no rotary module, a layer type without a plan, a plan of another number of pairs, a plan for layers
            that the model does not have, or has of another type, or a Pairwise plan for a model whose attention is more
            than rotated products of queries and keys. The model is then as before.
    """
    seats = _seats(model)
    by_type = {layers: plan for layers, plan in plans if layers_of(layers)[1] is None}
    for seat in seats:
        _check(seat, by_type)
    apart = _apart(model, seats, plans)
    pairwise = {plan for _, plan in plans if isinstance(plan, Pairwise)}
    if pairwise and len({plan for _, plan in plans}) > 1:
        raise ValueError("a Pairwise plan serves all layers of a model: give the same one for every layer")
    before = [_state(seat) for seat in seats]
    hooks: list[RemovableHandle] = []
    around = _HELD.get(model, [])  # of the block around this one, which it must not shine through
    try:
        _HELD[model] = apart
        for one in around:
            one.on = False
        for seat in seats:
            _write(seat, by_type[seat.layer_type])
        for one in apart:
            hooks += one.hooks()
        with undisturbed(model), ExitStack() as stack:
            for plan in pairwise:
                stack.enter_context(_attention(model, seats, plan))
            yield model
    finally:
        for hook in hooks:
            hook.remove()
        for one in around:
            one.on = True
        _HELD[model] = around
        for seat, state in zip(seats, before, strict=True):
            _restore(seat, state)


@dataclass(eq=False)
class _Apart:
    """Layers with a plan of their own: their attention gets cosines and sines of that plan in place of the module's."""

    seat: _Seat
    plan: Plan
    attentions: list[nn.Module]
    angles: Any = None  # what the rotary module says of this forward's positions under `plan`
    on: bool = True  # off while a block within this one holds other plans

    def hooks(self) -> list[RemovableHandle]:
        return [
            self.seat.module.register_forward_hook(self._turn, with_kwargs=True),
            *(module.register_forward_pre_hook(self._hand, with_kwargs=True) for module in self.attentions),
        ]

    def _turn(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], _: Any) -> None:
        asked = [value for value in (*arguments, *keywords.values()) if isinstance(value, str)]
        if not self.on or (self.seat.prefix and self.seat.layer_type not in asked):
            return
        state = _state(self.seat)
        try:
            _write(self.seat, self.plan)
            self.angles = module.forward(*arguments, **keywords)  # not a call, which would come back to this hook
        finally:
            _restore(self.seat, state)

    def _hand(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, Any]:
        if not self.on:
            return arguments, keywords
        place = list(inspect.signature(module.forward).parameters).index("position_embeddings")
        if place < len(arguments):
            return (*arguments[:place], self.angles, *arguments[place + 1 :]), keywords
        return arguments, {**keywords, "position_embeddings": self.angles}


_HELD: WeakKeyDictionary[nn.Module, list[_Apart]] = WeakKeyDictionary()
"""The single layers' plans that a model holds at the moment."""


def _apart(model: nn.Module, seats: list[_Seat], plans: Plans) -> list[_Apart]:
    """The plans for single layers, each with its seat and its attention modules; ValueError where a layer has none."""
    found: list[_Apart] = []
    attentions = _attentions(model)
    types = getattr(text_config(model), "layer_types", None) or ()
    for layers, plan in plans:
        layer_type, numbers = layers_of(layers)
        if numbers is None:
            continue
        of_type = [seat for seat in seats if seat.layer_type == layer_type]
        if len(of_type) != 1:
            raise ValueError(
                f"{layers} has a plan of its own, and {type(model).__name__} has {len(of_type)} rotary modules for "
                f"{layer_type}; give plans for layers of {', '.join(sorted({seat.layer_type for seat in seats}))} in a "
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
        found.append(_Apart(of_type[0], plan, [attentions[number] for number in chosen]))
    return found


def _attentions(model: nn.Module) -> dict[int, nn.Module]:
    """The attention module of every layer of the language model, by its number, where it is handed its angles."""
    decoder: Any = getattr(model, "get_decoder", lambda: model)()
    return {
        module.layer_idx: module
        for module in decoder.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
        and "position_embeddings" in inspect.signature(module.forward).parameters
        and not any("layer_idx" in vars(child) for child in module.children())
    }


@contextmanager
def _attention(model: nn.Module, seats: list[_Seat], plan: Pairwise) -> Iterator[None]:
    """The plan's attention in the model, whose rotary modules hold the plan's frequencies already."""
    name = type(model).__name__
    with recording(model) as own:
        _try(model)
    if not own.answers:
        raise ValueError(f"{name} does not attend through transformers' interface; give another model")
    if plan.regions:
        for seat in seats:
            _write(seat, Plan((0.0,) * len(plan.inv_freq)))  # angles of 0: queries and keys reach attention unrotated
        with comparing(model, Pairwise(plan.inv_freq, plan.attention_factor, PLAIN), own) as trial:
            _try(model)
        if not trial.off <= TOLERANCE[own.answers[0].dtype]:
            raise ValueError(
                f"attention in {name} is more than rotated products of queries and keys, or rotates other pairs, or "
                f"not in every layer (off by {trial.off:.1%} on {TRIED} tokens); no Pairwise plan can take its place: "
                "give another model"
            )
    with attending(model, plan):
        yield


@torch.no_grad()
def _try(model: Any) -> None:
    """A few tokens through the model."""
    ids = torch.arange(TRIED, device=model.device)[None] % text_config(model).vocab_size
    model(input_ids=ids, use_cache=False)


@dataclass(frozen=True)
class Holding:
    """What one rotary module holds for one layer type, whatever it may be: also what no Plan could be.

    inv_freq: as float64, one a rotated pair. dtype: that it is held in, such as float32. rows: of a table of cosines
    computed ahead, None where there is none. rope_type: by which the module changes while it runs.
    """

    module: str
    layer_type: str
    inv_freq: tuple[float, ...]
    dtype: str
    attention_factor: float
    rope_type: str
    rows: int | None = None


def holdings(model: nn.Module) -> list[Holding]:
    """What every rotary module of the language model holds, module by module.

    Raises:
        ValueError: no rotary module.
    """
    return [_holding(seat) for seat in _seats(model)]


def _holding(seat: _Seat) -> Holding:
    kind, cosines = getattr(seat.module, "rope_type", "default"), getattr(seat.module, "cos_cached", None)
    return Holding(
        module=type(seat.module).__name__,
        layer_type=seat.layer_type,
        inv_freq=tuple(seat.inv_freq.detach().to("cpu", torch.float64).tolist()),
        dtype=str(seat.inv_freq.dtype).removeprefix("torch."),
        attention_factor=float(getattr(seat.module, seat.attention, 1.0)),
        rope_type=str(kind.get(seat.layer_type, "default") if isinstance(kind, dict) else kind),
        rows=None if cosines is None else int(cosines.shape[-2]),
    )


def read(model: nn.Module) -> Plans:
    """The plans that the rotary modules of a model hold now, by layer type, as the float32 numbers they are.

    Plans that single layers have of their own are in no module, and are not read.

    Raises:
        ValueError: no rotary module, or modules of one layer type that hold different plans.
    """
    found: dict[str, Plan] = {}
    for seat in _seats(model):
        inv_freq = tuple(seat.inv_freq.detach().to("cpu", torch.float64).tolist())
        plan = Plan(inv_freq, float(getattr(seat.module, seat.attention, 1.0)))
        if found.setdefault(seat.layer_type, plan) != plan:
            raise ValueError(
                f"the rotary modules of {type(model).__name__} hold different plans for {seat.layer_type}; "
                "read them one by one, from each module's inv_freq"
            )
    return tuple(found.items())


def _seats(model: nn.Module) -> list[_Seat]:
    seats = [
        _Seat(module, name.removesuffix("inv_freq"))
        for module in model.modules()
        for name in module._buffers
        if name.endswith("inv_freq") and not name.endswith("original_inv_freq")
    ]
    # Towers for images and sound have rotary modules too: older ones without a scaling, newer ones with a config of
    # their own. Only those of the language model are meant.
    scaled = [seat for seat in seats if hasattr(seat.module, seat.attention)] or seats
    text = text_config(model)
    chosen = [seat for seat in scaled if getattr(seat.module, "config", None) is text] or scaled
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} has no rotary module (no inv_freq buffer in any of its modules); "
            "give a rotary model of transformers"
        )
    return chosen


def _check(seat: _Seat, by_type: dict[str, Plan]) -> None:
    name = type(seat.module).__name__
    if seat.layer_type not in by_type:
        raise ValueError(
            f"{name} holds inverse frequencies for {seat.layer_type}, and plans were given for "
            f"{', '.join(by_type) or 'no layer type'}; give one for {seat.layer_type}"
        )
    plan, pairs = by_type[seat.layer_type], seat.inv_freq.numel()
    if len(plan.inv_freq) != pairs:
        raise ValueError(
            f"the plan for {seat.layer_type} has {len(plan.inv_freq)} inverse frequencies and {name} rotates {pairs} "
            "pairs; make the plan from the geometry of this model's own config"
        )
    reason = "caches its cosines" if hasattr(seat.module, "cos_cached") else REFUSED.get(name)
    if reason:
        raise ValueError(f"{name} {reason}, so a plan written into it would be lost; give another model")
    if plan.attention_factor != 1 and not hasattr(seat.module, seat.attention):
        raise ValueError(
            f"{name} has no {seat.attention}, and the plan wants an attention factor of {plan.attention_factor}; "
            "give a plan without one"
        )


def _state(seat: _Seat) -> dict[str, Any]:
    names = ("rope_type", seat.attention)
    state = {name: getattr(seat.module, name) for name in names if hasattr(seat.module, name)}
    return state | {f"{seat.prefix}inv_freq": seat.inv_freq}


def _restore(seat: _Seat, state: dict[str, Any]) -> None:
    for name, value in state.items():
        setattr(seat.module, name, value)


def _write(seat: _Seat, plan: Plan) -> None:
    built = getattr(seat.module, f"{seat.prefix}original_inv_freq", seat.inv_freq)
    inv_freq = torch.tensor(plan.inv_freq, dtype=torch.float64)
    same = built.dtype == torch.float32 and torch.allclose(built.detach().cpu().double(), inv_freq, ROUNDING, 0.0)
    own = built if same else inv_freq.to(torch.float32)
    setattr(seat.module, f"{seat.prefix}inv_freq", own.to(seat.inv_freq.device))
    attention = getattr(seat.module, seat.attention, None)
    if attention is not None and not math.isclose(attention, plan.attention_factor, rel_tol=ROUNDING):
        setattr(seat.module, seat.attention, plan.attention_factor)
    module: Any = seat.module
    if isinstance(getattr(module, "rope_type", None), dict):
        module.rope_type = module.rope_type | {seat.layer_type: "default"}
    elif hasattr(module, "rope_type"):
        module.rope_type = "default"
