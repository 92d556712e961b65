"""A quantile of the drops: what most are spared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import InputError
from secateur.metrics._clusters import means


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile:
    """See `quantile`."""

    q: float
    name: str

    def __call__(self, drops: Tensor, weights: Tensor, groups: Sequence[object] | None) -> tuple[float, float]:
        """(quantile, standard error from the order statistics one standard deviation of the rank away)."""
        each, weight, _ = means(drops, weights, groups)
        order = torch.argsort(each, stable=True)
        values, below = each[order], torch.cumsum(weight[order], 0) / weight.sum()
        k = float(weight.sum().square() / weight.square().sum())
        step = math.sqrt(self.q * (1 - self.q) / k)

        def at(level: float) -> float:
            return float(
                values[int(torch.searchsorted(below, min(max(level, 0.0), 1.0) - 1e-12).clamp(max=len(values) - 1))]
            )

        return at(self.q), (at(self.q + step) - at(self.q - step)) / 2


def quantile(q: float = 0.9) -> Quantile:
    """The smallest drop that at least a share `q` (by weight) of the groups does not exceed.

    With keys of dependence it is taken over the keys' mean drops (patients, sites), else over examples, which says
    little for scores of 0 and 1.
    """
    if not 0.0 < q < 1.0:
        raise InputError("a quantile needs 0 < q < 1", got=q)
    return Quantile(q=q, name=f"quantile_{q:g}")
