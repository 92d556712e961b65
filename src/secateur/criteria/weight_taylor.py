"""First-order removal estimates at the weights.  Source: Molchanov et al. 2019, arXiv:1906.10771, section 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from secateur.errors import InputError
from secateur.schema.members import Criterion


def weight_taylor(form: Literal["signed", "absolute", "squared"] = "signed") -> Criterion:
    """Predicted loss change when what produces unit u goes: score[u] = -sum over e of w[u, e] g[u, e].

    e runs over the weights and biases that produce it; g is the gradient of the mean loss. What stands between the
    unit and its readers (batch norm's shift, an activation that is not 0 at 0) stays behind, other than at the gate
    (`taylor`).

    Args:
        form: `signed`: as above, nats, an expansion of order 1 in the scale of these weights. `absolute`: its
            absolute value, nats of absolute change. `squared`: sum over e of (w g)^2, arbitrary units, as in the
            paper's comparisons.

    Needs only a mean loss. Differs from source: the gradient is that of all the data, the paper squares per mini-batch.
    """
    if form not in ("signed", "absolute", "squared"):
        raise InputError("no such form", expected="signed, absolute or squared", got=form)

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        each = -stats["write_weights"] * stats["write_gradients"]
        if form == "squared":
            return {"value": each.square().sum(1)}
        linear = each.sum(1)
        if form == "absolute":
            return {"value": linear.abs()}
        return {"value": linear, "linear": linear, "quadratic": linear * 0}

    return Criterion(
        name="weight_taylor" + ("" if form == "signed" else f"_{form}"),
        needs=("write_weights", "write_gradients"),
        unit="a.u." if form == "squared" else "nats",
        order=1 if form == "signed" else 0,
        source="Molchanov et al. 2019, arXiv:1906.10771, section 3",
        compute=compute,
    )
