"""Second-order removal estimate with the Hessian itself.

Sources: Hutchinson 1990; Yao et al. 2021, arXiv:2006.00719.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.criteria import _moments
from secateur.errors import InputError
from secateur.schema.members import Criterion


def hutchinson(probes: int = 8) -> Criterion:
    """Predicted loss change when unit u goes, to second order: score[u] = a[u] + b[u], at scale 1 - t: t a + t^2 b.

    a[u] = -dL/dgate[u]; b[u] = 1/2 d2L/dgate[u]^2, estimated as the mean of z (H z) over random signs z, `probes` of
    them per batch. The estimate carries noise from the off-diagonal: more probes, less noise; the error counts it.

    Nats; may be negative. Order 2. Needs operations that can be differentiated twice, and only a mean loss.
    """
    if probes < 1:
        raise InputError("at least one probe is needed", got=probes)
    need = f"gate_hessian/{probes}"

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        linear, (diagonal, variance) = -stats["gate_mean"], stats["gate_hessian"].unbind(1)
        found = {"value": linear + diagonal / 2, "linear": linear, "quadratic": diagonal / 2}
        if "gate_moments" in stats:
            first = _moments.of_linear(stats["gate_moments"], stats["n"])
            found["error"] = (first.square() + variance / 4).sqrt()
        return found

    return Criterion(
        name="hutchinson",
        needs=("gate_mean", need),
        wants=("gate_moments",),
        unit="nats",
        order=2,
        source="LeCun et al. 1990, eq. 2; Yao et al. 2021, arXiv:2006.00719, eq. 6",
        compute=compute,
    )
