"""Two ways to the same hidden states, compared on a short text before the cheaper one is taken.

Shapes: L tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

States = Callable[[torch.Tensor], torch.Tensor]
"""(1, L) token ids -> (1, n, H) hidden states of the last n tokens."""

RAISED = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""By a model's code, where it is run in a way that it was not made for."""


class CannotRun(ValueError):
    """A model does not run in this way, with the reason."""


def off_by(ours: States, whole: States, *, tokens: int, vocabulary: int, device: torch.device) -> float:
    """How far apart the states of both ways are, as a share of the norm of the whole text's.

    tokens: of the text, whose ids are below `vocabulary`.

    Raises:
        CannotRun: ours raises something else than that there is no memory; an error of this class as it is.
    """
    ids = (torch.arange(tokens, device=device)[None] * 7919 + 11) % vocabulary
    expected = whole(ids).float()
    try:
        found = ours(ids).float()
    except (torch.OutOfMemoryError, CannotRun):
        raise
    except RAISED as error:
        raise CannotRun(str(error).strip().partition("\n")[0]) from error
    return float((found - expected).norm() / expected.norm().clip(min=1e-12))


def is_near(off: float, dtype: torch.dtype, full: float, half: float) -> bool:
    """Whether that is rounding. full, half: the limit in float32 and wider, and in narrower types; nan is not near."""
    return off <= (full if dtype in (torch.float32, torch.float64) else half)
