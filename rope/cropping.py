"""A plan under which the model sees only the last tokens of a text: what any longer context must beat.

Plain data, without torch. rope/strategies/baselines.py makes such plans, and pipelines/tasks/scorer.py feeds the model
so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rope.geometry import Plan, Plans

VERSION = 1
"""Up with whatever changes the numbers of cropped texts."""


@dataclass(frozen=True)
class Cropped(Plan):
    """The native plan, and a text cut to its last tokens.

    window: tokens that the model sees at once, a BOS at the beginning of the text among them.
    stride: tokens from one window to the next where more than the end of a text is scored; at most the window.
    """

    window: int = 0
    stride: int = 0

    def changes(self) -> dict[str, Any]:
        return {"window": self.window, "stride": self.stride}

    def windows(self, tokens: int, scored: int) -> Iterator[tuple[int, int, int]]:
        """(start, stop, scored) of each window over so many tokens of context, of which the last `scored` predict.

        Every prediction is made once, in a window that ends at most `stride` - 1 tokens after it: it sees more than
        window - stride tokens, or all there are.

        >>> list(Cropped((1.0,), window=8, stride=4).windows(tokens=14, scored=14))
        [(0, 8, 8), (4, 12, 4), (6, 14, 2)]
        >>> list(Cropped((1.0,), window=8, stride=4).windows(tokens=14, scored=1))
        [(6, 14, 1)]
        """
        done = tokens - scored
        while done < tokens:
            stop = min(tokens, max(self.window, done + self.stride))
            yield max(0, stop - self.window), stop, stop - done
            done = stop


def cropped(plans: Plans) -> Cropped | None:
    """How these plans crop a text: the shortest window among them; None where the model sees all of it."""
    return min((p for _, p in plans if isinstance(p, Cropped)), key=lambda plan: plan.window, default=None)


def uncropped(plans: Plans) -> Plans:
    """The plans that the model itself must hold; who feeds it crops the text."""
    return tuple(
        (layers, Plan(plan.inv_freq, plan.attention_factor) if isinstance(plan, Cropped) else plan)
        for layers, plan in plans
    )
