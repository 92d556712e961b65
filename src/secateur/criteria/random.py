"""Random order: the baseline that every criterion has to beat."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.schema.members import Criterion


def random(seed: int = 0) -> Criterion:
    """Uniform numbers: score[u] in [0, 1), the same for the same seed and number of units before it.

    Arbitrary units. Source: none; Blalock et al. 2020 (arXiv:2003.03033) ask for it beside every result.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        units = stats["units"]
        drawn = torch.rand(int(units.max()) + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return {"value": drawn[units]}

    return Criterion(
        name="random", needs=("units",), unit="a.u.", order=0, source="baseline, arXiv:2003.03033", compute=compute
    )
