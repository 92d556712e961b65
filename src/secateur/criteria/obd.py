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


def obd(
    *,
    curvature: Literal["calibrated", "empirical", "sampled"] = "calibrated",
    draws: int = 1,
    shrink: bool = False,
) -> Criterion:
    """Predicted loss change when unit u goes: score[u] = a[u] + b[u], at scale 1 - t of the unit t a + t^2 b.

    a[u] = -mean over n of g[n, u]; b[u] = 1/2 mean over n of s[n, u], where s stands for the second derivative:

    `calibrated`: s = r g[n, u]^2, where r (the statistic `curvature_ratio`) is the trace of the losses' Hessian over
        their squared gradient, both with respect to the model's output. Where the model's probabilities are right,
        r = 1. A network that is surer than it is right has gradients larger than its curvature: on a trained
        ResNet-20 r = 0.57 on test images, and the losses measured when units were taken away rose 0.60 times as fast
        as the uncorrected prediction. No further pass over the model.
    `empirical`: s = g[n, u]^2, as in the source, without r; for losses that have no curvature at the output.
    `sampled`: s = the same square for labels drawn from the model: an unbiased estimate of the Gauss-Newton
        diagonal, at the price of one more backward pass per draw; the only one that works for `match_output`.

    Args:
        curvature: as above.  draws: drawn labels per example, for `sampled`.
        shrink: multiply a by the share of it, per group, that is signal and not noise of the examples (positive-part
            James-Stein, from the standard errors of the same pass). For few examples or a nearly saturated network,
            where the first order is mostly noise and would rank units by it; with thousands of examples it throws
            signal away (benchmarks/README.md, `scores.py`). No longer an expansion: order 0.

    Nats; may be negative. Order 1: all three stand for the Hessian and are not it (`hutchinson` is of order 2).
    A unit that nothing depends on scores 0. The standard error takes r as known.
    """
    if curvature not in ("calibrated", "empirical", "sampled") or draws < 1:
        raise InputError(
            "no such curvature",
            expected="calibrated, empirical or sampled, draws >= 1",
            got=f"{curvature}, draws={draws}",
        )

    def squares(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        m = stats["gate_moments"]
        ratio = stats["curvature_ratio"] if curvature == "calibrated" else m.new_ones(())
        share = _moments.signal(m, stats["n"]) if shrink else m.new_ones(())
        linear, quadratic = -share * m[:, 0], ratio * m[:, 1] / 2
        return {
            "value": linear + quadratic,
            "error": _moments.of_expansion(m, stats["n"], ratio, share),
            "linear": linear,
            "quadratic": quadratic,
        }

    def sampled(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        m, (s, s2, gs) = stats["gate_moments"], stats["gate_sampled"].unbind(1)
        share = _moments.signal(m, stats["n"]) if shrink else m.new_ones(())
        linear, quadratic = -share * m[:, 0], s / 2
        first, second = m[:, 1] - m[:, 0].square(), s2 - s.square()
        variance = share**2 * first + second / 4 - share * (gs - m[:, 0] * s)
        return {
            "value": linear + quadratic,
            "error": torch.sqrt(variance.clamp(min=0) / stats["n"]),
            "linear": linear,
            "quadratic": quadratic,
        }

    extra = {"calibrated": ("curvature_ratio",), "empirical": (), "sampled": (f"gate_sampled/{draws}",)}
    return Criterion(
        name="obd" + ("" if curvature == "calibrated" else f"_{curvature}") + ("_shrunk" if shrink else ""),
        needs=("gate_moments", *extra[curvature]),
        unit="nats",
        order=0 if shrink else 1,
        source="LeCun et al. 1990, eq. 2; Theis et al. 2018, arXiv:1801.05787, eq. 8",
        compute=sampled if curvature == "sampled" else squares,
    )
