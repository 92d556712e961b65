"""A loss that exists as a mean over the batch only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur._evaluate import batch_size
from secateur.errors import TaskShapeError
from secateur.schema.task import Task
from secateur.tasks._batch import run


def from_mean(
    loss: Callable[[Any, Any], Tensor],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    size: Callable[[Any], int] | None = None,
    name: str = "from_mean",
) -> Task:
    """A task whose loss(out, batch) is one number: the mean over the batch, nats per example.

    Every batch then counts as one observation with the weight of its size. There are no standard errors over
    examples; criteria that need per-example gradients refuse it; and nothing can be certified.

    Args:
        loss: (out, batch) -> scalar mean over the batch. A *sum* over the batch is refused when scores are made.
        forward: (model, batch) -> out; default: the model on what stands before the labels in a tuple, or on all
            entries of a mapping, labels included (as transformers models that return their own loss want it).
        size: (batch) -> number of examples; default: length of the first axis of the first tensor.
    """

    def whole(model: nn.Module, batch: Any) -> Any:
        return model(**batch) if isinstance(batch, Mapping) else run(model, batch)

    def losses(out: Any, batch: Any) -> Tensor:
        value: object = loss(out, batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TaskShapeError(
                "the loss given to from_mean is not one number",
                expected="a scalar tensor, the mean over the batch",
                got=list(value.shape) if isinstance(value, Tensor) else type(value).__name__,
                todo="if it has one number per example, write sc.Task(forward=..., losses=...): much more is possible",
            )
        return value.reshape(1)

    def weights(batch: Any) -> Tensor:
        n = batch_size(batch) if size is None else size(batch)
        return torch.tensor([float(n)])

    return Task(forward=forward or whole, losses=losses, weights=weights, per_example=False, name=name)
