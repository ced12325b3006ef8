"""A model's rotary modules: found, read, run for a length, and compared with what was read from the model's config.

Shapes: P rotated pairs, S positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rope.attention import text_config
from rope.geometry import ALL_LAYERS, Array, Geometry, Plan, Plans
from rope.strategies import plans

ROUNDING = 1e-5
"""Relative distance within which two inverse frequencies are equal, computed in float32 or in float64: transformers'
float32 ramp is off by up to 6e-8 times the factor, 8e-6 for a yarn by 128."""

HALF = (torch.bfloat16, torch.float16)

TURNED_APART = 0.05
"""How far apart, of its length, two turned vectors are of different rotations. Angles that a model computes in bfloat16
are off by up to 0.01 where they are about a radian, which is where they are compared."""

RUN_TIME = ("dynamic", "longrope")
"""Kinds of modules that set their frequencies anew at every forward, by its largest position."""

UnderPlan = tuple[Mapping[str, Any], torch.Tensor]
"""Of a slot under a plan of ours: what it held before any (as RotarySlot.state), and the frequencies put there."""

BUILT = "_ropewalk_built"
"""Attribute of a rotary module under a plan of ours: {prefix: UnderPlan}. Copies of the model keep it."""

Turned = np.ndarray[Any, np.dtype[np.complex128]]


@dataclass(frozen=True)
class RotarySlot:
    """Where a model holds one plan: the inverse frequencies of one layer type in one rotary module.

    prefix: "" or "<layer type>_", before the names of all attributes of the slot.
    """

    module: nn.Module
    prefix: str

    @property
    def name(self) -> str:
        return type(self.module).__name__

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

    @property
    def attention_factor(self) -> float:
        return float(getattr(self.module, self.attention, 1.0))

    @property
    def kind(self) -> str:
        """Its rope_type."""
        kind = getattr(self.module, "rope_type", "default")
        return str(kind.get(self.layer_type, "default") if isinstance(kind, dict) else kind)

    @property
    def changes_at_run_time(self) -> bool:
        return any(kind in self.kind for kind in RUN_TIME)

    def state(self) -> dict[str, Any]:
        """What a plan replaces."""
        names = ("rope_type", self.attention)
        state = {name: getattr(self.module, name) for name in names if hasattr(self.module, name)}
        return state | {f"{self.prefix}inv_freq": self.inv_freq}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self.module, name, value)

    @property
    def under(self) -> UnderPlan | None:
        """What it was built with, and holds now; None where it is under no plan of ours."""
        plan: UnderPlan | None = getattr(self.module, BUILT, {}).get(self.prefix)
        return plan

    def rotary_state(self) -> RotaryState:
        cosines = getattr(self.module, "cos_cached", None)
        return RotaryState(
            module=self.name,
            layer_type=self.layer_type,
            inv_freq=_numbers(self.inv_freq),
            dtype=str(self.inv_freq.dtype).removeprefix("torch."),
            attention_factor=self.attention_factor,
            rope_type=self.kind,
            rows=None if cosines is None else int(cosines.shape[-2]),
        )


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


@dataclass(frozen=True)
class Reading:
    """What a model's config was read as, and for how many tokens the model is to run.

    geometries: by layer type, as rope.config.geometry_of gives them.
    """

    geometries: Mapping[str, Geometry]
    length: int

    def natives(self, length: int) -> dict[str, Plan]:
        """What the model left alone must run for this many tokens, by layer type."""
        return dict(plans("none", self.geometries, length))

    def check_natives(self, planned: Plans) -> None:
        """Refuse plans of `none` that were made of another reading (BuiltOtherwise, with both numbers)."""
        natives = self.natives(self.length)
        for layers, plan in planned:
            native = natives.get(layers)
            wrong = "nothing was read for these layers" if native is None else _unlike(plan, native, "planned")
            if wrong:
                raise BuiltOtherwise(
                    f"layers {layers}: {wrong}; the plan was made of other files, or by another version: launch it anew"
                )


class BuiltOtherwise(ValueError):
    """A model's rotary modules are not what was read from its config."""


def rotary_states(model: nn.Module, length: int | None = None) -> list[RotaryState]:
    """What every rotary module of the language model holds, module by module.

    length: tokens. If given: what a module that changes at run time holds for a text of this many; else what each
    holds now.

    Raises:
        ValueError: no rotary module.
    """
    states = []
    for slot in rotary_slots(model):
        with _running(slot, length) if length is not None else _unchanged(slot.module):
            states.append(slot.rotary_state())
    return states


def read(model: nn.Module) -> Plans:
    """The plans that the rotary modules of a model hold now, by layer type, as the float32 numbers they are.

    Plans that single layers have of their own are in no module, and are not read.

    Raises:
        ValueError: no rotary module, or modules of one layer type that hold different plans.
    """
    held: dict[str, Plan] = {}
    for slot in rotary_slots(model):
        plan = Plan(_numbers(slot.inv_freq), slot.attention_factor)
        if held.setdefault(slot.layer_type, plan) != plan:
            raise ValueError(
                f"the rotary modules of {type(model).__name__} hold different plans for {slot.layer_type}; "
                "read them one by one, from each module's inv_freq"
            )
    return tuple(held.items())


def rotary_slots(model: nn.Module) -> list[RotarySlot]:
    """Every slot of the language model; ValueError for a model without any."""
    slots = [
        RotarySlot(module, name.removesuffix("inv_freq"))
        for module in model.modules()
        for name in module._buffers
        if name.endswith("inv_freq") and not name.endswith("original_inv_freq")
    ]
    # Towers for images and sound have rotary modules too: older ones without a scaling, newer ones with a config of
    # their own. Only those of the language model are chosen.
    scaled = [slot for slot in slots if hasattr(slot.module, slot.attention)] or slots
    text = text_config(model)
    # by their class, as Granite SWA has one of another config for every base
    own = {type(slot.module) for slot in scaled if getattr(slot.module, "config", None) is text}
    chosen = [slot for slot in scaled if not own or type(slot.module) in own]
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} has no rotary module (no inv_freq buffer in any of its modules); "
            "give a rotary model of transformers"
        )
    return chosen


def own_numbers(slot: RotarySlot, length: int | None) -> tuple[torch.Tensor, float]:
    """(P,) inverse frequencies and the attention factor with which the module, as built, runs texts of this length;
    where that is not given, short ones."""
    with _as_built(slot) if length is None else _running(slot, length):
        if length is None and slot.changes_at_run_time:
            return getattr(slot.module, f"{slot.prefix}original_inv_freq", slot.inv_freq), slot.attention_factor
        return slot.inv_freq, slot.attention_factor


def check_built(model: nn.Module, slots: list[RotarySlot], reading: Reading) -> None:
    """Refuse a model whose rotary modules, as built, do not hold and run what was read from its config.

    Raises:
        BuiltOtherwise: with every difference, and both numbers of each.
    """
    found = {slot.layer_type for slot in slots}
    used = getattr(text_config(model), "layer_types", None) or reading.geometries
    wrong = [
        f"no rotary module for the layers {layers}, which the config was read to have"
        for layers in reading.geometries
        if layers not in found and layers in used
    ]
    for slot in slots:
        wrong += differences(slot, reading)
    if wrong:
        # of a model with a module in every layer, the first says it
        raise BuiltOtherwise(
            f"{type(model).__name__} is not built as it was read: {'; '.join(dict.fromkeys(wrong))}. Rotary "
            "modules read the config once, when they are built: change the config first and load the model anew, and "
            "leave the modules as they are. Where nothing was changed, the config declares what ropewalk reads "
            "otherwise than transformers does, and no number can be had"
        )


def differences(slot: RotarySlot, reading: Reading) -> list[str]:
    """Where a slot, as built, is not what was read, in words with both numbers; [] where it is."""
    where, geometry = f"{slot.name}, layers {slot.layer_type}", reading.geometries.get(slot.layer_type)
    if geometry is None:
        return [f"{where}: nothing was read for these layers (but for {', '.join(reading.geometries)})"]
    if slot.inv_freq.device.type == "meta":
        return [f"{where}: its frequencies are not in memory (device meta)"]
    under = slot.under
    if under is not None and _numbers(slot.inv_freq) != _numbers(under[1]):
        return [f"{where}: its frequencies were changed while a plan of ropewalk's held"]
    lengths = dict.fromkeys([reading.length, *(limit for limit, _ in geometry.natives)])
    with _as_built(slot):
        grown = _grown(slot)
        if grown is not None:  # left so by an earlier, longer text
            now = reading.natives(grown)[slot.layer_type]
            if wrong := _held_unlike(slot, now):
                return [f"{where}: {wrong}"]
        for length in lengths:
            plan = reading.natives(max(2, length))[slot.layer_type]
            with _running(slot, length):
                if wrong := _held_unlike(slot, plan) or _turned_apart(slot, plan, length):
                    several = f", for {length:,} tokens" if len(set(geometry.natives)) > 1 or geometry.running else ""
                    return [f"{where}{several}: {wrong}"]
    return []


def computed_otherwise(model: nn.Module, length: int) -> list[tuple[str, str, str]]:
    """(module, layer type, how in words) of modules whose forward turns by other angles than they hold.

    Only what bfloat16 cannot explain is told. length: tokens of the text.
    """
    found: list[tuple[str, str, str]] = []
    for slot in rotary_slots(model):
        with suppress(ValueError), _running(slot, length):  # it cannot be run, or holds what can be no plan
            held = Plan(_numbers(slot.inv_freq), slot.attention_factor)
            if wrong := _turned_apart(slot, held, length):
                found.append((slot.name, slot.layer_type, wrong))
    return found


def _held_unlike(slot: RotarySlot, plan: Plan) -> str:
    """How what a slot holds differs from a plan, in words; "" where rounding explains it."""
    wrong = _unlike(slot.rotary_state(), plan, "built")
    if wrong and slot.inv_freq.dtype in HALF:
        wrong += (
            f": it holds them in {slot.rotary_state().dtype}, cast with the weights by .half() or .to(); "
            "from_pretrained(..., dtype=...) leaves them in float32"
        )
    return wrong


def _unlike(given: RotaryState | Plan, plan: Plan, how: str) -> str:
    """How what is given differs from the plan that was read, in words; "" where rounding explains it."""
    built, expected = np.array(given.inv_freq), np.array(plan.inv_freq)
    if len(built) != len(expected):
        return f"{len(built)} pairs rotate as {how}, and {len(expected)} as read"
    with np.errstate(invalid="ignore"):
        apart = ~(np.abs(built - expected) <= ROUNDING * expected)  # also of what is no number
    if apart.any():
        shares = np.abs(np.where(expected > 0, built / np.where(expected > 0, expected, 1.0), np.inf) - 1)
        pair = _first_largest(np.where(apart, shares, 0.0))
        return (
            f"pair {pair} turns by {built[pair]:.9g} radians a token as {how}, and by {expected[pair]:.9g} as read "
            f"({int(apart.sum())} of {len(built)} pairs differ)"
        )
    if not abs(given.attention_factor - plan.attention_factor) <= ROUNDING * plan.attention_factor:
        return f"the attention factor is {given.attention_factor:.9g} as {how}, and {plan.attention_factor:.9g} as read"
    return ""


def _turned_apart(slot: RotarySlot, plan: Plan, length: int) -> str:
    """How what a module computes differs from what it holds, in words; "" where it does not, or cannot be told."""
    positions = _telling_positions(plan, length)
    turned = _turned(slot, positions)
    if turned is None:
        return ""
    expected = plan.attention_factor * np.exp(1j * positions[:, None] * np.array(plan.inv_freq))
    each = np.arange(len(plan.inv_freq))
    apart = np.abs(turned[each, each] - expected[each, each]) / plan.attention_factor
    pair = _first_largest(apart)
    if apart.max() <= TURNED_APART:
        return ""
    built, meant = turned[pair, pair], expected[pair, pair]
    return (
        f"it computes something else than it holds: at position {positions[pair]} pair {pair} is turned by "
        f"{np.angle(built):.4g} radians times {abs(built):.4g}, and its frequency makes {np.angle(meant):.4g} times "
        f"{abs(meant):.4g}"
    )


def _first_largest(differences: Array) -> int:
    """The first pair that differs by as much as any, up to rounding; what is no number differs most."""
    sizes = np.nan_to_num(differences, nan=np.inf)
    return int(np.argmax(sizes >= 0.999 * sizes.max()))


def _telling_positions(plan: Plan, length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(P + 1,) for each pair the position within the length at which it has turned by about a radian; then the last."""
    frequencies = np.array(plan.inv_freq)
    turns = np.where(frequencies > 0, 1 / np.where(frequencies > 0, frequencies, 1.0), length)
    return np.append(np.clip(np.round(turns), 1, length - 1), length - 1).astype(np.int64)


def _turned(slot: RotarySlot, positions: np.ndarray[Any, np.dtype[np.int64]]) -> Turned | None:
    """(S, P) cosine + i sine of every pair at these positions, times the attention factor, from the module's own
    forward; None where it takes or returns something else than transformers' modules do."""
    output = _forward(slot, positions)
    pairs = slot.inv_freq.numel()
    if torch.is_tensor(output) and output.is_complex():
        values = output
    elif isinstance(output, (tuple, list)) and len(output) == 2 and all(map(torch.is_tensor, output)):
        if output[0].shape != output[1].shape:
            return None
        values = torch.complex(*(part.detach().double() for part in output))
    else:
        return None
    table: Turned = values.detach().cpu().to(torch.complex128).numpy()
    if table.size % len(positions) or table.ndim < 2 or table.shape[-2] != len(positions):
        return None
    table = table.reshape(-1, *table.shape[-2:])[0]
    if table.shape[-1] == 2 * pairs:
        halves = np.array_equal(table[:, :pairs], table[:, pairs:], equal_nan=True)
        table = table[:, :pairs] if halves else table[:, ::2]
    return table if table.shape[-1] == pairs else None


def _forward(slot: RotarySlot, positions: Any) -> Any:
    """The module's own forward at these positions; None where it cannot be called as transformers' modules are."""
    device = slot.inv_freq.device
    ids = torch.as_tensor(positions, device=device)[None]
    states = torch.zeros(1, ids.shape[1], 1, device=device)
    layers = {"layer_type": slot.layer_type} if slot.prefix else {}
    axes = ids[None].expand(3, -1, -1)  # of positions, in models of images
    for arguments, named in (((), {"position_ids": ids}), ((ids,), {}), ((), {"position_ids": axes}), ((axes,), {})):
        try:
            with torch.no_grad():
                return slot.module(states, *arguments, **named, **layers)
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError):
            continue
    return None


def _numbers(tensor: torch.Tensor) -> tuple[float, ...]:
    return tuple(tensor.detach().to("cpu", torch.float64).tolist())


def _grown(slot: RotarySlot) -> int | None:
    """Of a dynamic module: the most tokens that it has run so far, whose frequencies it holds; else None."""
    longest = getattr(slot.module, f"{slot.prefix}max_seq_len_cached", getattr(slot.module, "max_seq_len_cached", None))
    return int(longest) if "dynamic" in slot.kind and longest is not None else None


@contextmanager
def _running(slot: RotarySlot, length: int) -> Iterator[None]:
    """The slot with what its module sets for a text of this many tokens and no longer one before; then as it was."""
    with _as_built(slot):
        if slot.changes_at_run_time:
            original = getattr(slot.module, f"{slot.prefix}original_inv_freq", None)
            if _grown(slot) is not None and original is not None:
                setattr(slot.module, f"{slot.prefix}inv_freq", original.clone())
                setattr(slot.module, f"{slot.prefix}max_seq_len_cached", slot.module.original_max_seq_len)
            if _forward(slot, np.array([length - 1])) is None:
                raise ValueError(
                    f"{slot.name} sets its frequencies at run time ({slot.kind}) and cannot be run by itself, so what "
                    "it comes to is not known; give another model"
                )
        yield


@contextmanager
def _as_built(slot: RotarySlot) -> Iterator[None]:
    """The slot without any plan of ours; then as it was."""
    with _unchanged(slot.module):
        if slot.under is not None:
            slot.restore(slot.under[0])
        setattr(slot.module, f"{slot.prefix}inv_freq", slot.inv_freq.clone())  # which modules may change in place
        yield


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """The module, whatever its forward sets meanwhile; then with the attributes and buffers that it had."""
    attributes, buffers = dict(vars(module)), dict(module._buffers)
    try:
        yield
    finally:
        for name in vars(module).keys() - attributes.keys():
            del vars(module)[name]
        vars(module).update(attributes)
        module._buffers.clear()
        module._buffers.update(buffers)
