"""No labels: the network is to keep saying what it says."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur._evaluate import mode
from secateur.errors import TaskShapeError, UnknownName
from secateur.schema.task import Task
from secateur.tasks._batch import first, flat, run, signs, softmax_curvature


def match_output(
    teacher: nn.Module, *, distance: Literal["kl", "squared"] = "kl", labelled: bool | None = None
) -> Task:
    """Distance to the output of `teacher` (the dense model), per example; labels in the batches are ignored.

    `kl`: losses[n] = KL(softmax(teacher[n]) || softmax(out[n])), nats, averaged over positions where there are any
    (logits [N, ..., C], classes last). `correct`: share of positions where both have the same largest logit.
    `squared`: losses[n] = 1/2 sum (out[n] - teacher[n])^2, nats of a unit normal; no `correct`.

    The loss of the dense model is 0 and so is its gradient: criteria that take the curvature from the gradients of
    the losses see nothing. Use one that takes it from the model's output, such as `obd(curvature="sampled")`.

    Args:
        teacher: runs in eval mode without gradients, on every batch again. Do not train it meanwhile: give a copy.
        labelled: whether batches end with labels that the model must not see. None = tuples and lists of two and more
            entries do; a lone tensor and a mapping need no such rule.
    """
    if distance not in ("kl", "squared"):
        raise UnknownName("no such distance", expected="kl or squared", got=distance)

    def forward(model: nn.Module, batch: Any) -> Any:
        if labelled is False and isinstance(batch, tuple | list):
            return model(*batch)
        return run(model, batch)

    def both(out: Any, batch: Any) -> tuple[Tensor, Tensor]:
        with mode(teacher), torch.no_grad():
            target = first(forward(teacher, batch))
        values = first(out)
        if values.shape != target.shape or values.ndim == 0:
            raise TaskShapeError(
                "the outputs of model and teacher differ in shape",
                expected=list(target.shape),
                got=list(values.shape),
                todo="give the dense version of the same model as teacher",
            )
        return values, target.to(values.dtype)

    def kl(out: Any, batch: Any) -> Tensor:
        values, target = both(out, batch)
        log_p, log_q = target.log_softmax(-1), values.log_softmax(-1)
        each: Tensor = (log_p.exp() * (log_p - log_q)).sum(-1)
        return flat(each).mean(-1)

    def agree(out: Any, batch: Any) -> Tensor:
        values, target = both(out, batch)
        same: Tensor = values.argmax(-1) == target.argmax(-1)
        return flat(same.to(values.dtype)).mean(-1)

    def kl_curvature(out: Any, batch: Any, generator: torch.Generator) -> Tensor:
        each = flat(softmax_curvature(first(out), generator))
        return each.sum(-1) / math.sqrt(each.shape[-1])

    def squared(out: Any, batch: Any) -> Tensor:
        values, target = both(out, batch)
        return 0.5 * flat(values - target).square().sum(-1)

    def squared_curvature(out: Any, batch: Any, generator: torch.Generator) -> Tensor:
        values = flat(first(out))
        surrogate: Tensor = (values * signs(values, generator)).sum(-1)
        return surrogate

    if distance == "squared":
        return Task(forward=forward, losses=squared, curvature=squared_curvature, labels=False, name="match_output")
    return Task(forward=forward, losses=kl, correct=agree, curvature=kl_curvature, labels=False, name="match_output")
