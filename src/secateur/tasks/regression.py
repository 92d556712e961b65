"""Real-valued targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.errors import InputError
from secateur.schema.task import Task
from secateur.tasks._batch import first, flat, refuse, run, signs, split


def regression(*, scale: float = 1.0, tolerance: float | None = None) -> Task:
    """Squared error, as the negative log-likelihood of a normal distribution with standard deviation `scale`.

    losses[n] = 1/2 sum over outputs of ((out[n] - target[n]) / scale)^2, nats up to a constant.

    Args:
        scale: the size of an error that matters, in the unit of the targets.
        tolerance: an output within `tolerance` of its target is right; `correct` is the share of right outputs of an
            example. None = no such score, and then no certificate.

    Batches: (inputs..., targets) or a dict with `labels`; targets have the shape of the output, or lack its last
    axis of length 1.
    """
    if not scale > 0 or (tolerance is not None and not tolerance > 0):
        raise InputError("scale and tolerance of a regression must be positive", got=(scale, tolerance))

    def error(out: Any, batch: Any) -> Tensor:
        values, targets = first(out), split(batch)[1]
        if values.shape == (*targets.shape, 1):
            values = values.squeeze(-1)
        if values.shape != targets.shape or values.ndim == 0:
            # Broadcasting [N, 1] against [N] would give [N, N] and pass silently.
            raise refuse("regression", "output and targets of one shape [N, ...]", values, targets, "reshape one")
        return flat(values - targets.to(values.dtype)) / scale

    def losses(out: Any, batch: Any) -> Tensor:
        return 0.5 * error(out, batch).square().sum(-1)

    def correct(out: Any, batch: Any) -> Tensor:
        off = error(out, batch)
        return (off.abs() * scale <= (tolerance or 0.0)).to(off.dtype).mean(-1)

    def curvature(out: Any, batch: Any, generator: torch.Generator) -> Tensor:
        off = error(out, batch)
        return (off * signs(off, generator)).sum(-1)

    return Task(
        forward=run,
        losses=losses,
        correct=None if tolerance is None else correct,
        curvature=curvature,
        name="regression",
    )
