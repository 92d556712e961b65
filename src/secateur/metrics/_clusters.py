"""Means of what depends on each other: sums per key, so that an error counts keys and not examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def means(drops: Tensor, weights: Tensor, groups: Sequence[object] | None) -> tuple[Tensor, Tensor, Tensor]:
    """(mean drop, weight, number of examples) of every key in order of appearance; without keys, of every example."""
    if groups is None:
        return drops, weights, torch.ones_like(weights)
    order = {key: i for i, key in enumerate(dict.fromkeys(groups))}
    owner = torch.tensor([order[key] for key in groups])
    zero = torch.zeros(len(order), dtype=torch.float64)
    total = zero.index_add(0, owner, weights)
    mean = zero.index_add(0, owner, weights * drops) / total.clamp(min=torch.finfo(torch.float64).tiny)
    return mean, total, zero.index_add(0, owner, torch.ones_like(weights))
