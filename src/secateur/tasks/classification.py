"""One label per example."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.schema.task import Task
from secateur.tasks._batch import first, refuse, run, softened, softmax_curvature, split


def classification(*, label_smoothing: float = 0.0) -> Task:
    """Cross-entropy in nats per example; an example is right where the largest logit is the label's.

    losses[n] = -log softmax(logits[n])[label[n]]

    Batches: (inputs..., labels), or a dict with `labels`; labels are class numbers [N] or probabilities [N, C].
    Output of the model: logits [N, C], a tuple that begins with them, or a mapping with `logits`.

    Raises:
        TaskShapeError: while running, where output and labels do not fit.
    """

    def read(out: Any, batch: Any) -> tuple[Tensor, Tensor]:
        logits, labels = first(out), split(batch)[1]
        soft = labels.is_floating_point() and labels.shape == logits.shape
        hard = not labels.is_floating_point() and labels.shape == logits.shape[:1]
        if logits.ndim != 2 or not (soft or hard):
            raise refuse(
                "classification",
                "logits [N, C] and labels, integers [N] or probabilities [N, C]",
                logits,
                labels,
                "use token_classification(), segmentation(), multi_label() or regression() for other shapes",
            )
        return logits, labels if soft else labels.long()

    def losses(out: Any, batch: Any) -> Tensor:
        logits, labels = read(out, batch)
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)

    def correct(out: Any, batch: Any) -> Tensor:
        logits, labels = read(out, batch)
        return (logits.argmax(-1) == (labels.argmax(-1) if labels.ndim == 2 else labels)).to(logits.dtype)

    def curvature(out: Any, batch: Any, generator: torch.Generator) -> Tensor:
        return softmax_curvature(first(out), generator)

    def tempered(out: Any, batch: Any) -> Tensor:
        logits, _ = read(out, batch)
        return F.cross_entropy(logits, softened(logits), reduction="none")

    return Task(
        forward=run, losses=losses, correct=correct, curvature=curvature, tempered=tempered, name="classification"
    )
