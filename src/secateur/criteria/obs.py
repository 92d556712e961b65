"""Optimal brain surgeon of a unit.

Sources: Hassibi & Stork 1992; Singh & Alistarh 2020 (WoodFisher), arXiv:2004.14340, for the inverse from gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.errors import InputError
from secateur.schema.members import Criterion


def obs(samples: int = 256, *, damping: float = 0.1) -> Criterion:
    """Predicted loss change if u goes and others make up for it: score[u] = 1 / (2 (F^-1)[u, u]) - l / 2.

    The others are the units of its group, each rescaled for the best.
    F = G'G + l I, where the rows of G are the gate gradients of `samples` examples over the root of their number, so
    that G'G is the empirical Fisher information of the gates of one group; l is `damping` times its mean diagonal.
    By Woodbury's identity (F^-1)[u, u] = (1 - g' (l I + GG')^-1 g) / l with g column u of G: nothing of size U x U.
    A unit that others can stand in for is cheap. With much damping the score is that of `fisher`, 1/2 (G'G)[u, u];
    the damping's own share l / 2 is taken off, so a unit without gradient scores 0.

    Nats; never negative. No expansion in the scale of the unit: the others move too. Assumes, as the source, that the
    first order vanishes. Differs from source: whole units instead of single weights, the others are only rescaled.
    """
    if samples < 1 or not damping > 0:
        raise InputError(
            "no such estimate", expected="samples >= 1, damping > 0", got=f"samples={samples}, damping={damping}"
        )

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        g = stats["gate_samples"]  # [N, U]
        damped = damping * g.square().sum(0).mean()
        if damped == 0:  # a dead group
            return {"value": g.new_zeros(g.shape[1])}
        inner = torch.linalg.cholesky(damped * torch.eye(len(g), dtype=g.dtype) + g @ g.T)
        explained = torch.linalg.solve_triangular(inner, g, upper=False).square().sum(0)
        return {"value": damped / 2 * explained / (1 - explained)}

    return Criterion(
        name="obs",
        needs=(f"gate_samples/{samples}",),
        unit="nats",
        order=0,
        source="Hassibi & Stork 1992, eq. 5; Singh & Alistarh 2020, arXiv:2004.14340, eq. 3",
        compute=compute,
    )
