"""Scale of the normalisation after a unit.  Source: Liu et al. 2017 (network slimming), arXiv:1708.06519."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.schema.members import Criterion


def bn_scale() -> Criterion:
    """Mean |gamma| of the factors that multiply the unit: score[u] = mean over elements of |scale[u, e]|.

    Arbitrary units. Groups without such a factor are refused. Meaningful only where training penalised gamma, as in
    the source; there a residual group, which several layers share, is not scored, here its factors are averaged.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"value": stats["scale_weights"].abs().mean(1)}

    return Criterion(
        name="bn_scale",
        needs=("scale_weights",),
        unit="a.u.",
        order=0,
        source="Liu et al. 2017, arXiv:1708.06519, section 3",
        compute=compute,
    )
