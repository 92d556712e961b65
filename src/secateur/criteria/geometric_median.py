"""Distance to the other units.  Source: He et al. 2019 (FPGM), arXiv:1811.00250."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.schema.members import Criterion


def geometric_median() -> Criterion:
    """Sum of distances to all units of the group: score[u] = sum over v of ||w[u] - w[v]||.

    A unit near the geometric median of its group can be replaced by the others. Arbitrary units; a dead unit does
    not score 0.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        w = stats["write_weights"]
        # The direct form: differences of squared norms would leave noise at small distances.
        distances = torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist")
        return {"value": distances.sum(1)}

    return Criterion(
        name="geometric_median",
        needs=("write_weights",),
        unit="a.u.",
        order=0,
        source="He et al. 2019, arXiv:1811.00250, eq. 8",
        compute=compute,
    )
