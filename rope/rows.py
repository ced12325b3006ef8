"""A long text through a decoder layer by layer, in chunks of its rows, on one device or several.

Every layer runs its own forward on one chunk of rows after another; the keys and values of the chunks before lie in a
buffer that all layers use in turn. So at most one layer's keys and values, the hidden states of all rows, and one
chunk's work are held: nothing else grows with the length. What a layer computes of its rows is left to the layer.

Several devices take the chunks in turn, each with a copy of the layers, and send keys and values to the others before
they attend. A chunk needs those of the chunks before it alone, and so no device waits for another to finish.

Shapes: L tokens, R rows of a chunk, H hidden width; others as in rope/attention.py.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import causal_mask_function

from rope.attention import (
    UNSUPPORTED,
    RegionAttention,
    Replacement,
    ScaledQueryAttention,
    installed,
    padding,
    replace_attention,
    text_config,
)
from rope.chunks import causal
from rope.compared import CannotRun, is_near, off_by
from rope.compiled import Compiled
from rope.links import Link

CHECKED, CHECKED_ROWS = 320, 128
"""Tokens of the text on which both ways are compared, and the rows of its chunks."""

FLOAT32_OFF, HALF_OFF = 1e-4, 1e-1
"""How far the states of both ways may be apart, as a share of their norm, for this one to be taken."""


class NotByRows(CannotRun):
    """A model that cannot be run in chunks of rows, with the reason."""


class ByRows:
    """A model's decoder, run in chunks of rows.

    Args:
        model: a causal language model of transformers whose decoder has `layers`.
        devices: that take the chunks in turn; the first must be the model's own. () for that alone. A device may be
            given more than once, and then has more than one copy of the layers.
        compiled: compile the layers' forward, which fuses what is bound by memory; eager where that fails.

    Attributes:
        compiled: whether layers are compiled; may be set anew. uncompiled: why they are not, where that was asked for.

    Raises:
        NotByRows: the model has no such layers, or is spread over devices.
    """

    def __init__(self, model: Any, devices: Sequence[torch.device] = (), *, compiled: bool = False) -> None:
        self._model, self.decoder = weakref.ref(model), model.get_decoder()
        layers = getattr(self.decoder, "layers", None)
        if not isinstance(layers, nn.ModuleList) or not len(layers):
            raise NotByRows(f"{type(self.decoder).__name__} has no list of layers")
        self.layers: Any = layers
        if getattr(model, "hf_device_map", None) and len(set(model.hf_device_map.values())) > 1:
            raise NotByRows("the model is spread over devices")
        own = next(self.layers.parameters()).device
        self.devices = tuple(devices) or (own,)
        if self.devices[0] != own:
            raise NotByRows(f"the model is on {own}, and the first device is {self.devices[0]}")
        self.compiled, self.uncompiled = compiled, ""
        self.copies: list[Any] = [self.layers, *(self._copied(device) for device in self.devices[1:])]

    @property
    def model(self) -> Any:
        """Held by others: a model that holds this goes when they let it go, not when the collector finds the circle."""
        return self._model()

    def _copied(self, device: torch.device) -> list[nn.Module]:
        configs = {id(config): config for config in (self.model.config, text_config(self.model), self.decoder.config)}
        for module in self.layers.modules():
            if any(name.endswith("inv_freq") for name in module._buffers):
                raise NotByRows("every layer has a rotary module of its own, and a plan is written into one of them")
            if (config := getattr(module, "config", None)) is not None:
                configs[id(config)] = config
        return [copy.deepcopy(layer, dict(configs)).to(device) for layer in self.layers]  # with the same configs

    @torch.no_grad()
    def states(self, ids: torch.Tensor, rows: int) -> torch.Tensor:
        """(1, L) token ids -> (1, L, H) last hidden states, under the plan that the model holds.

        Raises:
            NotByRows: its attention or its layers do what chunks cannot.
        """
        if ids.shape[0] != 1:
            raise NotByRows("several texts at once")
        run = _Run(self, ids.shape[1], rows)
        with ExitStack() as stack:
            stack.callback(replace_attention(self.model, _ATTENTION, run.mask, "ropewalk_rows"))
            stack.enter_context(_ATTENTION.of(run))
            for number, layer in enumerate(self.layers):
                stack.enter_context(_forward(layer, run.layer(number)))
            for child in self.decoder.children():
                if not isinstance(child, (nn.ModuleList, nn.Embedding)) and not _rotary(child):
                    stack.enter_context(_forward(child, run.rowwise(child.forward)))
            states: torch.Tensor = self.decoder(input_ids=ids, use_cache=False).last_hidden_state
        return states

    @torch.no_grad()
    def check(self, vocabulary: int) -> None:
        """Compare both ways on a short text, under the plan that the model holds.

        Raises:
            NotByRows: they differ, or this one cannot be taken, with the reason.
        """
        self.compiled = False
        device = self.model.get_input_embeddings().weight.device
        try:
            off = off_by(
                lambda ids: self.states(ids, CHECKED_ROWS),
                lambda ids: self.decoder(input_ids=ids, use_cache=False).last_hidden_state,
                tokens=CHECKED,
                vocabulary=vocabulary,
                device=device,
            )
        except NotByRows:
            raise
        except CannotRun as error:
            raise NotByRows(f"its layers do not run in chunks of rows: {error}") from error
        if not is_near(off, self.model.dtype, FLOAT32_OFF, HALF_OFF):
            raise NotByRows(f"its layers compute something else in chunks of rows (off by {off:.1e})")

    def run(self, place: int, number: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One layer's forward on one chunk, by the copy of the layers at this place."""
        layer = self.copies[place][number]
        forward = own if place == 0 else layer.forward
        if self.compiled and getattr(forward, "__func__", None) is type(layer).forward:
            compiled = _compiled(type(layer))
            output = compiled(layer, *args, **kwargs)
            self.uncompiled = compiled.failure
            self.compiled = not self.uncompiled
            return output
        return forward(*args, **kwargs)


class _Attention(Replacement):
    """The attention of the text that is on its way. One object with one name: compiled code is bound to both."""

    def __init__(self) -> None:
        self.run: _Run | None = None

    @contextmanager
    def of(self, run: _Run) -> Iterator[None]:
        before, self.run = self.run, run
        try:
            yield
        finally:
            self.run = before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.run is not None
        return self.run.attend(*args, **kwargs)


_ATTENTION = _Attention()


class _Run:
    """One text on its way: attention with the keys of the chunks before, and every layer's chunks one by one."""

    def __init__(self, by: ByRows, length: int, rows: int) -> None:
        self.by, self.length = by, length
        self.chunks = [slice(start, min(start + rows, length)) for start in range(0, length, rows)]
        self.now = self.chunks[0]
        self.number, self.place = 0, 0
        self.parts: list[torch.Tensor] = []
        self.cuts: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.buffers: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        self.link = Link(by.devices)
        name: str | None
        name, current = installed(by.model)
        plain = partial(_causal, compiled=by.compiled)
        if isinstance(current, ScaledQueryAttention):
            name, current = current.replaced, ScaledQueryAttention(current.scale, plain)
        elif not isinstance(current, RegionAttention):
            current = plain
        if name != "sdpa" and not isinstance(current, RegionAttention):
            raise NotByRows(f"its attention is {name}, not sdpa")
        self.inner: Any = current
        self.mask = padding if isinstance(current, RegionAttention) else _windowed

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """(1, H, R, D) queries, (1, G, R, D) keys and values -> (1, R, H, D)."""
        if query.shape[2] != self.now.stop - self.now.start or key.shape[2] != query.shape[2]:
            raise NotByRows("its attention is not over the rows of the text")
        for place in range(len(self.by.devices)):
            for target, states in zip(self._buffer(place, key, value), (key, value), strict=True):
                self.link.send(self.place, place, states.transpose(1, 2), target[:, self.now])
        self.link.receive(self.place)
        keys, values = (buffer[:, : self.now.stop].transpose(1, 2) for buffer in self._buffer(self.place, key, value))
        return self.inner(module, query, keys, values, *args, **kwargs)

    def _buffer(self, place: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, L, G, D) keys and values of this layer on a device. With several, a device may be a layer ahead."""
        turn = self.number % 2 if len(self.by.devices) > 1 else 0
        wanted = (place, turn, key.shape[1], key.shape[3], value.shape[3])
        if wanted not in self.buffers:
            self.buffers[wanted] = tuple(  # type: ignore[assignment]
                states.new_empty(1, self.length, states.shape[1], states.shape[3], device=self.by.devices[place])
                for states in (key, value)
            )
            self.link.begin(place)
        return self.buffers[wanted]

    def layer(self, number: int) -> Callable[..., Any]:
        """The forward of a layer: its own, chunk by chunk, into the tensor that it was given."""
        own = self.by.layers[number].forward

        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if hidden_states.shape[:2] != (1, self.length):
                raise NotByRows("its layers are not given the rows of the text")
            if not self.parts:
                self.parts = [
                    hidden_states[:, chunk].to(self.by.devices[self._place(n)]) for n, chunk in enumerate(self.chunks)
                ]
            self.number, output = number, None
            for n, chunk in enumerate(self.chunks):
                self.now, self.place = chunk, self._place(n)
                with self.link.on(self.place):
                    output = self.by.run(
                        self.place,
                        number,
                        own,
                        _anew(self.parts[n]) if self.by.compiled else self.parts[n],
                        *(self._cut(each, n) for each in args),
                        **{name: self._cut(each, n) for name, each in kwargs.items()},
                    )
                    several = isinstance(output, tuple)
                    if several and any(each is not None for each in output[1:]):
                        raise NotByRows("its layers give more than hidden states")
                    self.parts[n].copy_(output[0] if several else output)
            self.link.layer_done()
            if number == len(self.by.layers) - 1:
                for place in range(len(self.by.devices)):  # what nobody waited for: its buffer is given back
                    self.link.receive(place)
                for part, chunk in zip(self.parts, self.chunks, strict=True):
                    if part.data_ptr() != hidden_states[:, chunk].data_ptr():
                        hidden_states[:, chunk].copy_(part)
            return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states

        return forward

    def _place(self, chunk: int) -> int:
        return chunk % len(self.by.devices)

    def _cut(self, value: Any, n: int) -> Any:
        """The rows of a chunk, of any tensor that has one for every token, on the chunk's device.

        Compiled code is bound to strides and offsets, and copies have the same ones in every chunk of every text.
        """
        if isinstance(value, tuple):
            return tuple(self._cut(each, n) for each in value)
        if not isinstance(value, torch.Tensor):
            return value
        known = (id(value), n, self.place)
        if self.place == 0 or known not in self.cuts:
            chunk, part = self.chunks[n], value
            if value.ndim > 1 and value.shape[1] == self.length:
                part = value[:, chunk]
            elif value.ndim and value.shape[-1] == self.length:
                part = value[..., chunk]
            if self.place == 0:
                return _anew(part) if self.by.compiled and part is not value else part
            self.cuts[known] = (value, part.to(self.by.devices[self.place]))  # held, so that its id stays its own
        return self.cuts[known][1]

    def rowwise(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """A module that works row by row, such as the last norm, chunk by chunk."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            states = args[0] if args else None
            if not isinstance(states, torch.Tensor) or not self.parts or states.shape[:2] != (1, self.length):
                return own(*args, **kwargs)
            for chunk in self.chunks:
                states[:, chunk] = own(states[:, chunk], *args[1:], **kwargs)
            return states

        return forward


class _Windowed:
    """A mask that shows fewer keys than all before: (batch, head, query, key) -> whether it is seen."""

    def __init__(self, seen: Any, length: int) -> None:
        self.seen, self.length = seen, length
        self.window: int | None = None

    def check(self, window: int | None, device: torch.device) -> int:
        """The window that a layer says it has, where it is what the mask shows to the first and the last token."""
        if window is None:
            raise NotByRows("its mask hides more than the future, and its layers do not say what")
        if self.window != window:
            none = torch.zeros((), dtype=torch.long, device=device)
            keys = torch.arange(self.length, device=device)
            for query in {0, min(window, self.length - 1), self.length // 2, self.length - 1}:
                shown = torch.broadcast_to(self.seen(none, none, none + query, keys), keys.shape)
                if not torch.equal(shown, (keys <= query) & (keys > query - window)):
                    raise NotByRows(f"its mask is no window of {window} tokens")
            self.window = window
        return window


def _windowed(
    batch_size: int,
    kv_length: int,
    q_length: int | None = None,
    q_offset: Any = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> _Windowed | None:
    """None where all tokens before are seen. Called by transformers before the layers."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise NotByRows("its text is padded")
    return None if mask_function in (None, causal_mask_function) else _Windowed(mask_function, kv_length)


def _causal(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: _Windowed | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    compiled: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention that transformers calls sdpa, of queries that are the last tokens of the keys."""
    unsupported = [name for name in UNSUPPORTED[1:] if kwargs.get(name) is not None]
    if unsupported or not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise NotByRows(f"{type(module).__name__} attends with {', '.join(unsupported) or 'the future'}")
    window = None if attention_mask is None else attention_mask.check(kwargs.get("sliding_window"), query.device)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return causal(query, key, value, scaling, window, compiled=compiled).transpose(1, 2).contiguous(), None


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """A module's forward replaced, in the module alone."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def _anew(states: torch.Tensor) -> torch.Tensor:
    """A copy with the strides of its shape alone; of a part, plain clones keep some of the whole."""
    return states.clone(memory_format=torch.contiguous_format)


def _rotary(module: nn.Module) -> bool:
    return any(name.endswith("inv_freq") for each in module.modules() for name in each._buffers)


_COMPILED: dict[type, Compiled] = {}


def _compiled(kind: type) -> Compiled:
    """A layer class's forward, compiled once for all layers; what attends stays outside."""
    if not _COMPILED:  # and not where it is written: that would load the compiler wherever this file is imported
        _Attention.__call__ = torch.compiler.disable(_Attention.__call__)  # type: ignore[method-assign,no-untyped-call]
    if kind not in _COMPILED:
        _COMPILED[kind] = Compiled(inspect.unwrap(kind.forward))  # type: ignore[attr-defined]
    return _COMPILED[kind]
