"""Weight times the size of its input.  Source: Sun et al. 2024 (Wanda), arXiv:2306.11695."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.schema.members import Criterion


def wanda() -> Criterion:
    """Sum over the weights that read the unit: score[u] = sum over e of |w[u, e]| ||x[u, e]||.

    ||x|| is the root mean square of what the weight multiplies, over examples and positions.

    Arbitrary units. Differs from source: summed over the weights that read a unit (the paper removes single weights
    and compares inside an output), and a mean in place of the sum of squares.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"value": (stats["read_weights"].abs() * stats["input_norm"]).sum(1)}

    return Criterion(
        name="wanda",
        needs=("read_weights", "input_norm"),
        unit="a.u.",
        order=0,
        source="Sun et al. 2024, arXiv:2306.11695, eq. 1",
        compute=compute,
    )
