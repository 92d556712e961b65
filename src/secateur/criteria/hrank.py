"""Rank of feature maps.  Source: Lin et al. 2020 (HRank), arXiv:2002.10179."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.schema.members import Criterion


def hrank() -> Criterion:
    """Mean rank of the unit's feature map: score[u] = mean over examples of rank(x[n, u]), x[n, u] a matrix [H, W].

    Arbitrary units. The map is what the convolutions that read the unit see, as in the source (after batch norm and
    activation); a group that no ungrouped 2-D convolution reads is refused. A decomposition per example and channel:
    use few examples (the paper takes 500 images).
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"value": stats["feature_rank"]}

    return Criterion(
        name="hrank",
        needs=("feature_rank",),
        unit="a.u.",
        order=0,
        source="Lin et al. 2020, arXiv:2002.10179, eq. 4",
        compute=compute,
    )
