"""Rotations of queries and keys by the positions of a plan, and the scale on queries (torch)."""

from __future__ import annotations

import math

import torch

from rope.geometry import Plan
from rope.pairwise import Position, QueryScale

Table = tuple[torch.Tensor, torch.Tensor]
"""(K, P) float32 cosines and sines, with the attention factor."""


def rotate(states: torch.Tensor, table: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """(..., K, D) states with pair i = dimensions (i, i + P) rotated by its angle; dimensions from 2 P on stay."""
    cos, sin = table
    pairs = cos.shape[-1]
    x, y, rest = states[..., :pairs], states[..., pairs : 2 * pairs], states[..., 2 * pairs :]
    return torch.cat((x * cos - y * sin, y * cos + x * sin, rest), -1)


def table(plan: Plan, position: Position, length: int, device: torch.device) -> Table:
    """Cosines and sines of K = `length` tokens at their positions; angles in float64, exact at any length."""
    positions = position.at(torch.arange(length, dtype=torch.float64, device=device))
    angles = positions[:, None] * torch.tensor(plan.inv_freq, dtype=torch.float64, device=device)
    return (angles.cos() * plan.attention_factor).float(), (angles.sin() * plan.attention_factor).float()


def query_scale(scale: QueryScale, positions: torch.Tensor) -> torch.Tensor:
    """Float32 factors on the queries at these positions, counted from 0; of the same shape."""
    grown = (positions.double() + scale.offset) / scale.step
    logs = (1 + (grown.floor() if scale.whole else grown)).log()
    if scale.trained_length is not None:
        logs = logs / math.log(scale.trained_length)
    factors = scale.start + scale.slope * logs
    return (factors.clip(min=1) if scale.clipped else factors).float()
