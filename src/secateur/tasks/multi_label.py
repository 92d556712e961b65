"""Several yes-or-no labels per example."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.schema.task import Task
from secateur.tasks._batch import first, flat, refuse, run, signs, split


def multi_label() -> Task:
    """Binary cross-entropy summed over the labels of an example, nats; `correct` is the share of right labels.

    losses[n] = -sum over l of y[n, l] log sigmoid(z[n, l]) + (1 - y[n, l]) log sigmoid(-z[n, l])

    Batches: (inputs..., labels [N, L]) or a dict with `labels`; labels 0 or 1, or probabilities. One binary label:
    labels [N] and output [N] or [N, 1].
    """

    def read(out: Any, batch: Any) -> tuple[Tensor, Tensor]:
        logits, labels = first(out), split(batch)[1]
        if logits.shape == (*labels.shape, 1):
            logits = logits.squeeze(-1)
        if logits.shape != labels.shape or logits.ndim == 0:
            raise refuse(
                "multi_label",
                "logits and labels of one shape [N, L]",
                logits,
                labels,
                "use classification() for one class per example",
            )
        return flat(logits), flat(labels).to(logits.dtype)

    def losses(out: Any, batch: Any) -> Tensor:
        logits, labels = read(out, batch)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1)

    def correct(out: Any, batch: Any) -> Tensor:
        logits, labels = read(out, batch)
        return ((logits > 0) == (labels > 0.5)).to(logits.dtype).mean(-1)

    def curvature(out: Any, batch: Any, generator: torch.Generator) -> Tensor:
        logits, _ = read(out, batch)
        p = logits.detach().sigmoid()
        surrogate: Tensor = (logits * (p * (1 - p)).sqrt() * signs(p, generator)).sum(-1)
        return surrogate

    def tempered(out: Any, batch: Any) -> Tensor:
        logits, _ = read(out, batch)
        spread = (logits.detach() / 2).sigmoid()
        return F.binary_cross_entropy_with_logits(logits, spread, reduction="none").sum(-1)

    return Task(forward=run, losses=losses, correct=correct, curvature=curvature, tempered=tempered, name="multi_label")
