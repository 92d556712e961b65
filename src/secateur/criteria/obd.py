"""Optimal brain damage of a unit: first order with its sign, plus half the curvature.

Sources: LeCun, Denker & Solla 1990 (Optimal Brain Damage, eq. 2); Theis et al. 2018, arXiv:1801.05787, for the
Fisher information in the Hessian's place; the sampled Gauss-Newton: Martens 2020, arXiv:1412.1193, section 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from secateur.criteria import _moments
from secateur.errors import InputError
from secateur.schema.members import Criterion


def obd(*, curvature: Literal["empirical", "sampled"] = "empirical", draws: int = 1) -> Criterion:
    """Predicted loss change when unit u goes: score[u] = a[u] + b[u], at scale 1 - t of the unit t a + t^2 b.

    a[u] = -mean over n of g[n, u]; b[u] = 1/2 mean over n of s[n, u], where s stands for the second derivative:

    `empirical`: s = g[n, u]^2 with the labels of the data: free, since g is there already; too large where the model
        is wrong about an example.
    `sampled`: s = the same square for labels drawn from the model: an unbiased estimate of the Gauss-Newton
        diagonal, at the price of one more backward pass per draw; the only one that works for `match_output`.

    Nats; may be negative. Order 1: both stand for the Hessian and are not it (`hutchinson` is of order 2).
    A unit that nothing depends on scores 0.
    """
    if curvature not in ("empirical", "sampled") or draws < 1:
        raise InputError(
            "no such curvature", expected="empirical or sampled, draws >= 1", got=f"{curvature}, draws={draws}"
        )
    need = f"gate_sampled/{draws}"

    def empirical(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        m = stats["gate_moments"]
        linear, quadratic = -m[:, 0], m[:, 1] / 2
        return {
            "value": linear + quadratic,
            "error": _moments.of_expansion(m, stats["n"]),
            "linear": linear,
            "quadratic": quadratic,
        }

    def sampled(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        m, (s, s2, gs) = stats["gate_moments"], stats["gate_sampled"].unbind(1)
        linear, quadratic = -m[:, 0], s / 2
        variance = m[:, 1] - m[:, 0].square() + (s2 - s.square()) / 4 - (gs - m[:, 0] * s)
        return {
            "value": linear + quadratic,
            "error": torch.sqrt(variance.clamp(min=0) / stats["n"]),
            "linear": linear,
            "quadratic": quadratic,
        }

    return Criterion(
        name="obd" if curvature == "empirical" else "obd_sampled",
        needs=("gate_moments",) if curvature == "empirical" else ("gate_moments", need),
        unit="nats",
        order=1,
        source="LeCun et al. 1990, eq. 2; Theis et al. 2018, arXiv:1801.05787, eq. 8",
        compute=empirical if curvature == "empirical" else sampled,
    )
