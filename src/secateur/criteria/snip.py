"""Connection sensitivity, summed over a unit.  Source: Lee et al. 2019 (SNIP), arXiv:1810.02340."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.schema.members import Criterion


def snip() -> Criterion:
    """Sum of |w g| over the weights that produce the unit: score[u] = sum over e of |w[u, e] dL/dw[u, e]|.

    Arbitrary units: a bound on the first-order change, not an estimate of it. Differs from source: summed over units
    (the paper removes single weights), not divided by the total, and for a trained network.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"value": (stats["write_weights"] * stats["write_gradients"]).abs().sum(1)}

    return Criterion(
        name="snip",
        needs=("write_weights", "write_gradients"),
        unit="a.u.",
        order=0,
        source="Lee et al. 2019, arXiv:1810.02340, eq. 5",
        compute=compute,
    )
