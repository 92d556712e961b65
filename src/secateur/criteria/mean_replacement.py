"""What it costs to put a unit's mean in its place.  Source: Evci et al. 2018 (mean replacement pruning)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.schema.members import Criterion


def mean_replacement() -> Criterion:
    """Predicted loss change if the readers see the unit's mean: score[u] = mean over n of (m[n, u] - g[n, u]).

    m[n, u] = sum over positions of mean(x[u]) dL[n]/dx[u], g[n, u] the same with x[u] itself: to first order, what
    changes when x goes to its mean over examples and positions, which a recovery can then fold into biases.

    Nats; may be negative. First order on the way to the mean, which is not the way to zero: for `linear` and
    `quadratic`, order 0. Differs from source: keeps the sign, and is per unit, not per layer and mini-batch.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"value": stats["gate_shift"] - stats["gate_mean"]}

    return Criterion(
        name="mean_replacement",
        needs=("gate_mean", "gate_shift"),
        unit="nats",
        order=0,
        source="Evci et al. 2018, Mean Replacement Pruning",
        compute=compute,
    )
