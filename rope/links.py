"""Tensors from one device of a process to another, while both compute."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch


class Link:
    """Keys and values from device to device, on streams of their own, so that no device waits for what it computes."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.devices = devices
        self.cuda = len(devices) > 1 and all(device.type == "cuda" for device in devices)
        self.away, self.here = self._streams(), self._streams()
        self.done: list[list[torch.cuda.Event]] = []

    def _streams(self) -> list[torch.cuda.Stream]:
        return [torch.cuda.Stream(each) for each in self.devices] if self.cuda else []  # type: ignore[no-untyped-call]

    def begin(self, place: int) -> None:
        """What a new buffer's memory was used for before is done before anything is sent into it."""
        if self.cuda:
            self.here[place].wait_stream(torch.cuda.current_stream(self.devices[place]))

    def send(self, source: int, target: int, states: torch.Tensor, goal: torch.Tensor) -> None:
        if not self.cuda or source == target:
            goal.copy_(states)
            return
        away, here = self.away[source], self.here[target]
        away.wait_stream(torch.cuda.current_stream(self.devices[source]))
        if len(self.done) > 1:  # what reads this buffer's last content: the layer before the one before
            here.wait_event(self.done[-2][target])
        with torch.cuda.stream(away), torch.cuda.stream(here):
            goal.copy_(states, non_blocking=True)
        states.record_stream(away)

    def receive(self, place: int) -> None:
        """What was sent to a device is there before it goes on."""
        if self.cuda:
            torch.cuda.current_stream(self.devices[place]).wait_stream(self.here[place])

    def layer_done(self) -> None:
        if self.cuda:
            self.done.append([torch.cuda.current_stream(device).record_event() for device in self.devices])

    def on(self, place: int) -> Any:
        return torch.cuda.device(self.devices[place]) if self.cuda else nullcontext()
