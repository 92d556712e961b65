"""Task and Data: what the network is for, and on what it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Batch = Any
Batches = Iterable[Batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the network is for, one number per example.

    Attributes:
        forward: (model, batch) -> out.
        losses: (out, batch) -> [N], nats per example; differentiable.
        correct: (out, batch) -> [N] in [0, 1], or None where the task has no such score.
        weights: (batch) -> [N], the weight of each example in means; None = all one.
        groups: (batch) -> N hashable keys: examples with one key depend on each other (one patient, one video).
        labels: False where the target is the dense model's own output: its loss and the gradient of it are then zero.
        curvature: (out, batch, generator) -> [N]: random surrogate losses whose gradients with respect to `out` have
            mean zero and the Hessian of the losses as second moment; for a log-likelihood, that of the loss at labels
            drawn from the model itself. None = criteria that need it say so.
        tempered: (out, batch) -> [N]: the losses where the labels are spread as the model's own prediction at twice
            its temperature. Their gradient with respect to `out` points where that of the losses points on average if
            the model is surer, or less sure, than it is right. None = no such prediction; nothing is refused then, but
            scores are noisier.
        per_example: False where only a scalar mean loss exists; then there are no standard errors.
        name: for reports and file names.
    """

    forward: Callable[[nn.Module, Batch], Any]
    losses: Callable[[Any, Batch], Tensor]
    correct: Callable[[Any, Batch], Tensor] | None = None
    weights: Callable[[Batch], Tensor] | None = None
    groups: Callable[[Batch], Iterable[object]] | None = None
    curvature: Callable[[Any, Batch, torch.Generator], Tensor] | None = None
    tempered: Callable[[Any, Batch], Tensor] | None = None
    labels: bool = True
    per_example: bool = True
    name: str = "task"


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The three splits. Each can be iterated again and gives batches that the task understands.

    Attributes:
        train: for recovery.  search: for scores, scans and cross-validation.
        held_out: for the certificate, touched once; None = no certificate.
    """

    train: Batches
    search: Batches
    held_out: Batches | None = field(default=None)
