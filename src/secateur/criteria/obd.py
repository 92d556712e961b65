"""Optimal brain damage of a unit: first order with its sign, plus half the curvature.

Sources: LeCun, Denker & Solla 1990 (Optimal Brain Damage, eq. 2); Theis et al. 2018, arXiv:1801.05787, for the
Fisher information in the Hessian's place; the sampled Gauss-Newton: Martens 2020, arXiv:1412.1193, section 9; the
first order without the noise of labels: Fay & Herriot 1979 (a direct estimate, shrunk towards what a model expects),
with Guo et al. 2017, arXiv:1706.04599 (one temperature) as the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from secateur.criteria import _moments
from secateur.errors import InputError
from secateur.schema.members import Criterion

First = Literal["expected", "plain"]
Curvature = Literal["projected", "calibrated", "empirical", "sampled", "combined"]


def obd(*, first: First = "expected", curvature: Curvature = "projected", draws: int = 1) -> Criterion:
    """Predicted loss change when unit u goes: score[u] = a[u] + b[u], at scale 1 - t of the unit t a + t^2 b.

    First order, from g[n, u], the gradient of the loss of example n with respect to the gate of u:

    `expected`: a[u] = -mean over n of (e + share (g - e)), where e[n, u] (the statistic `gate_expected`) is what g is
        on average where the model's prediction, at another temperature, is right. In a trained network most of the
        mean of g is noise of the labels; e has none of it. What g has beyond e counts by the share of it, over all
        units, that is signal and not noise of the examples (`gate_unexpected`): with few examples little, with very
        many all. A task that has no such prediction (regression, most losses of your own) gets `plain`.
    `plain`: a[u] = -mean over n of g[n, u]: unbiased.

    Curvature: b[u] = 1/2 mean over n of s[n, u], where s stands for the second derivative:

    `projected`: s = (t'Ht / |t|^4) (t'J[u])^2 + (1 - q) r g[n, u]^2. H is the Hessian of the loss of example n by the
        model's output, J[u] the derivative of the output by the gate, and t the direction in which the output moves
        when the model becomes surer: its gate gradient t'J[u] is at hand, from the first order. The curvature along
        t is so taken as it is, without the noise of labels; that across it comes from `calibrated`, by the share 1 - q
        of the trace of H that is left (the statistics `gate_projected` and `projected_share`). With two classes
        nothing lies across; on a ResNet-20 with ten, 0.4. No further pass over the model. A task without a prediction
        to temper gets `calibrated`.
    `calibrated`: s = r g[n, u]^2, where r (the statistic `curvature_ratio`) is the trace of the losses' Hessian over
        their squared gradient, both with respect to the model's output. Where the model's probabilities are right,
        r = 1. A network that is surer than it is right has gradients larger than its curvature: on a trained
        ResNet-20 r = 0.57 on test images, and the losses measured when units were taken away rose 0.60 times as fast
        as the uncorrected prediction. No further pass over the model.
    `empirical`: s = g[n, u]^2, as in the source, without r; for losses that have no curvature at the output.
    `sampled`: s = the square of the gate gradient of random surrogate losses with that curvature: an unbiased
        estimate of the Gauss-Newton diagonal, at the price of one more backward pass per draw; the only one that
        works for `match_output`.
    `combined`: the mean of `calibrated` and `sampled`, whose noise is independent, at the price of `sampled`, and like
        it not the same bits for other batches. Where the task cannot draw, `calibrated`.

    Args:
        first, curvature: as above.  draws: of `sampled` and `combined`, per example.

    Nats; may be negative. Order 1 with the plain first order, of which `expected` is an estimate: all curvatures
    stand for the Hessian and are not it (`hutchinson` is of order 2). A unit that nothing depends on scores 0. The
    standard error takes r, the temperature and the share as known.
    """
    if first not in ("expected", "plain"):
        raise InputError("no such first order", expected="expected or plain", got=first)
    if curvature not in get_args(Curvature) or draws < 1:
        raise InputError(
            "no such curvature",
            expected=f"{', '.join(get_args(Curvature))}; draws >= 1",
            got=f"{curvature}, draws={draws}",
        )
    draw = f"gate_sampled/{draws}"
    weighs = curvature in ("projected", "calibrated", "combined")

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # A name of letters stands for the mean of their product; d is the square of the drawn gate gradient.
        g, gg, ggg, gggg = stats["gate_moments"].unbind(1)
        nothing = (torch.zeros_like(g),) * 5
        expects = first == "expected" and "gate_expected" in stats
        e, ee, ge, gge = stats["gate_expected"].unbind(1) if expects else nothing[:4]
        share = stats["gate_unexpected"] if expects else g.new_ones(())

        draws_well = curvature in ("sampled", "combined") and "gate_sampled" in stats
        projects = curvature == "projected" and "gate_projected" in stats
        second = stats["gate_sampled"] if draws_well else stats["gate_projected"] if projects else None
        d, dd, gd, ggd, ed = nothing if second is None else second.unbind(1)
        y = (0.5 if curvature == "combined" else 1.0) if second is not None else 0.0
        x = (1 - stats["projected_share"] if projects else 1 - y) * (
            stats["curvature_ratio"] if weighs else g.new_ones(())
        )
        s, gs, es = x * gg + y * d, x * ggg + y * gd, x * gge + y * ed * expects
        ss = x**2 * gggg + 2 * x * y * ggd + y**2 * dd

        means = torch.stack([g, e, s], 1)
        products = torch.stack([gg, ge, gs, ge, ee, es, gs, es, ss], 1).unflatten(1, (3, 3))
        factors = torch.stack([-share, share - 1, torch.full_like(share, 0.5)])
        linear, quadratic = means[:, :2] @ factors[:2], s / 2
        return {
            "value": linear + quadratic,
            "error": _moments.of_sum(factors, means, products, stats["n"]),
            "linear": linear,
            "quadratic": quadratic,
        }

    options = ("" if curvature == "projected" else f"_{curvature}") + ("" if first == "expected" else f"_{first}")
    return Criterion(
        name=f"obd{options}",
        needs=("gate_moments", *(("curvature_ratio",) if weighs else ()), *((draw,) if curvature == "sampled" else ())),
        wants=(
            *(("gate_expected", "gate_unexpected") if first == "expected" else ()),
            *((draw,) if curvature == "combined" else ()),
            *(("gate_projected", "projected_share") if curvature == "projected" else ()),
        ),
        unit="nats",
        order=1 if first == "plain" else 0,
        source="LeCun et al. 1990, eq. 2; Theis et al. 2018, arXiv:1801.05787, eq. 8",
        compute=compute,
    )
