"""Magnitude relative to what would be left.  Source: Lee et al. 2021 (LAMP), arXiv:2010.07611."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.schema.members import Criterion


def lamp() -> Criterion:
    """Layer-adaptive magnitude: score[u] = ||w[u]||^2 / sum over v with ||w[v]|| >= ||w[u]|| of ||w[v]||^2.

    The largest unit of every group scores 1, so that one threshold for all groups never empties one. Arbitrary
    units. Differs from source: whole units instead of single weights; equal norms are ordered by index.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        squares = stats["write_weights"].square().sum(1)
        order = torch.argsort(squares, stable=True)
        left = squares[order].flip(0).cumsum(0).flip(0)
        # All-zero units: 0 of 0 is 0.
        ratio = squares[order] / left.clamp(min=torch.finfo(squares.dtype).tiny)
        return {"value": torch.empty_like(squares).index_copy(0, order, ratio)}

    return Criterion(
        name="lamp",
        needs=("write_weights",),
        unit="a.u.",
        order=0,
        source="Lee et al. 2021, arXiv:2010.07611, eq. 4",
        compute=compute,
    )
