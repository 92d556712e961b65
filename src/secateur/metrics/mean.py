"""The weighted mean drop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from secateur.metrics._clusters import means


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """See `mean`."""

    name: str = "mean"

    def __call__(self, drops: Tensor, weights: Tensor, groups: Sequence[object] | None) -> tuple[float, float]:
        """(mean, standard error)."""
        each, weight, _ = means(drops, weights, groups)
        share = weight / weight.sum()
        centre = (share * each).sum()
        k = len(each)
        # With dependent examples the keys are the independent observations.
        correction = k / (k - 1) if k > 1 else 1.0
        error = ((share * (each - centre)).square().sum() * correction).sqrt()
        return float(centre), float(error)


def mean() -> Mean:
    """Sum w d / sum w over examples; its standard error is robust to dependence inside keys (cluster-robust)."""
    return Mean()
