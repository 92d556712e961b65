"""First-order removal estimates.  Sources: Molchanov et al. 2017, arXiv:1611.06440; 2019, arXiv:1906.10771.

g[n, u] is the gradient of the loss of example n with respect to the gate of unit u: per example, positions summed.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.criteria import _moments
from secateur.schema.members import Criterion


def taylor() -> Criterion:
    """Predicted loss change when unit u goes, to first order: score[u] = -mean over n of g[n, u].

    Nats; may be negative. Exact when the loss is linear on the way from the unit to zero. Needs only a mean loss,
    but has standard errors only with per-example losses.
    Differs from source: keeps the sign, which the papers discard (`absolute_taylor`, `squared_taylor`).
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        linear = -stats["gate_mean"]
        found = {"value": linear, "linear": linear, "quadratic": linear * 0}
        if "gate_moments" in stats:
            found["error"] = _moments.of_linear(stats["gate_moments"], stats["n"])
        return found

    return Criterion(
        name="taylor",
        needs=("gate_mean",),
        wants=("gate_moments",),
        unit="nats",
        order=1,
        source="Molchanov et al. 2019, arXiv:1906.10771, eq. 5 before the square",
        compute=compute,
    )


def absolute_taylor() -> Criterion:
    """First order without its sign: score[u] = |mean over n of g[n, u]|: what other tools call "Taylor".

    Nats of absolute change: a unit whose removal helps scores as high as one whose removal hurts. Not an expansion.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {"value": stats["gate_mean"].abs()}
        if "gate_moments" in stats:
            found["error"] = _moments.of_linear(stats["gate_moments"], stats["n"])
        return found

    return Criterion(
        name="absolute_taylor",
        needs=("gate_mean",),
        wants=("gate_moments",),
        unit="nats",
        order=0,
        source="Molchanov et al. 2019, arXiv:1906.10771, gate form, without the square",
        compute=compute,
    )


def squared_taylor() -> Criterion:
    """First order squared: score[u] = (mean over n of g[n, u])^2, the 2019 paper over the whole data at once.

    Differs from source: the paper squares per mini-batch and averages, which depends on the batch size.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"value": stats["gate_mean"].square()}

    return Criterion(
        name="squared_taylor",
        needs=("gate_mean",),
        unit="a.u.",
        order=0,
        source="Molchanov et al. 2019, arXiv:1906.10771, eq. 8 at the gate",
        compute=compute,
    )


def mean_absolute_taylor() -> Criterion:
    """First order per example, without signs: score[u] = mean over n of |g[n, u]|, the 2017 paper.

    Nats of absolute change per example. Differs from source: no division by the layer's norm.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        value = stats["gate_absolute"]
        variance = (stats["gate_moments"][:, 1] - value.square()).clamp(min=0)
        return {"value": value, "error": (variance / stats["n"]).sqrt()}

    return Criterion(
        name="mean_absolute_taylor",
        needs=("gate_absolute", "gate_moments"),
        unit="nats",
        order=0,
        source="Molchanov et al. 2017, arXiv:1611.06440, eq. 8",
        compute=compute,
    )
