"""Diagonal Fisher information of the gates.

Sources: Theis et al. 2018, arXiv:1801.05787; Liu et al. 2021, arXiv:2108.00708.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.criteria import _moments
from secateur.schema.members import Criterion


def fisher() -> Criterion:
    """Predicted loss change if the first order vanishes: score[u] = 1/2 mean over n of g[n, u]^2.

    Nats, where the loss is a negative log-likelihood in nats; the square is taken per example, after the sum over
    positions and weights. Exact when the model is at a minimum, its likelihood is right, and the loss quadratic.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        m = stats["gate_moments"]
        value = m[:, 1] / 2
        return {
            "value": value,
            "error": _moments.of_half_square(m, stats["n"]),
            "linear": value * 0,
            "quadratic": value,
        }

    return Criterion(
        name="fisher",
        needs=("gate_moments",),
        unit="nats",
        order=0,
        source="Theis et al. 2018, arXiv:1801.05787, eq. 8",
        compute=compute,
    )
