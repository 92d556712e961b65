"""How active a unit is, as its readers see it.

Sources: Hu et al. 2016 (APoZ), arXiv:1607.03250; An et al. 2024 (FLAP), arXiv:2312.11983.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.schema.members import Criterion


def mean_activation() -> Criterion:
    """Mean absolute activation: score[u] = mean over examples and positions of |x[u]|. Arbitrary units."""

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"value": stats["activation"][:, 2]}

    return Criterion(
        name="mean_activation",
        needs=("activation",),
        unit="a.u.",
        order=0,
        source="Molchanov et al. 2017, arXiv:1611.06440, section 2.2",
        compute=compute,
    )


def apoz() -> Criterion:
    """One minus the average percentage of zeros: score[u] = share of activations that are not 0. Arbitrary units.

    Meaningful after ReLU only: other activations are never exactly 0, and all units then score 1.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"value": 1 - stats["activation"][:, 3]}

    return Criterion(
        name="apoz",
        needs=("activation",),
        unit="a.u.",
        order=0,
        source="Hu et al. 2016, arXiv:1607.03250, eq. 1",
        compute=compute,
    )


def fluctuation() -> Criterion:
    """What is lost if the unit is replaced by its mean: score[u] = var(x[u]) sum over e of w_read[u, e]^2.

    The mean squared change of the readers' outputs, once the mean has gone into their biases. Arbitrary units.
    Differs from source: no standardisation per layer.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mean, square = stats["activation"][:, 0], stats["activation"][:, 1]
        return {"value": (square - mean.square()).clamp(min=0) * stats["read_weights"].square().sum(1)}

    return Criterion(
        name="fluctuation",
        needs=("activation", "read_weights"),
        unit="a.u.",
        order=0,
        source="An et al. 2024, arXiv:2312.11983, eq. 5",
        compute=compute,
    )
