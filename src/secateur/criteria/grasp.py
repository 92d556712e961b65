"""What a unit does for the flow of gradients.  Source: Wang et al. 2020 (GraSP), arXiv:2002.07376."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.schema.members import Criterion


def grasp() -> Criterion:
    """What a unit does for the gradient's norm: score[u] = sum over e of w[u, e] (H g)[u, e].

    Half of what |g|^2 loses, to first order, if the unit goes.
    H and g are the Hessian and the gradient of the mean loss with respect to the weights of all groups; e runs over
    the weights that produce the unit. The paper's S = -w (H g), of which it keeps the lowest, has the other sign.

    Arbitrary units (nats^2); may be negative. Meant for networks before training: near a minimum g is noise. Two
    passes over the data, the second differentiated twice. Differs from source: summed over units (the paper removes
    single weights); the loss is not divided by the paper's temperature of 200.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"value": (stats["write_weights"] * stats["write_hessian_products"]).sum(1)}

    return Criterion(
        name="grasp",
        needs=("write_weights", "write_hessian_products"),
        unit="a.u.",
        order=0,
        source="Wang et al. 2020, arXiv:2002.07376, eq. 8",
        compute=compute,
    )
