"""Distillation: learn from the dense model's outputs beside the task's loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur._evaluate import Progress, mode
from secateur._fit import Optimizer, Training, fit
from secateur.errors import InputError, TaskShapeError
from secateur.schema.task import Batch, Batches, Task

Distance = Literal["kl", "squared"]


def soft_losses(student: Tensor, teacher: Tensor, *, temperature: float, distance: Distance, class_dim: int) -> Tensor:
    """Distance of two outputs per example: [N, ...] and [N, ...] -> [N].

    `kl`: T^2 KL(softmax(teacher / T) || softmax(student / T)) in nats over `class_dim`, averaged over all
    other axes but the first. `squared`: mean squared difference over all axes but the first.
    """
    if distance == "squared":
        each = (student - teacher).square()
    else:
        student, teacher = student.movedim(class_dim, -1), teacher.movedim(class_dim, -1)
        log_p = F.log_softmax(teacher / temperature, dim=-1)
        log_q = F.log_softmax(student / temperature, dim=-1)
        each = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    return each.flatten(1).mean(dim=1) if each.ndim > 1 else each


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill:
    """Made by `distill()`."""

    training: Training
    temperature: float
    weight: float
    distance: Distance
    class_dim: int
    logits: Callable[[Any], Tensor] | None
    name: str = "distill"
    gradients: bool = True
    source: str = "Hinton, Vinyals & Dean 2015, Distilling the knowledge in a neural network, arXiv 1503.02531, sec. 2"

    def __call__(
        self,
        model: nn.Module,
        batches: Batches,
        task: Task,
        *,
        teacher: nn.Module | None,
        seed: int,
        progress: Progress | None,
    ) -> nn.Module:
        """Train `model` in place towards `teacher`, which runs in eval mode and is left as it was."""
        if teacher is None:
            raise InputError(
                "distillation needs the dense model to learn from",
                where="teacher",
                todo="pass teacher=the dense model to recover(), or use recoveries.finetune()",
            )
        guide = teacher

        def losses(out: Any, batch: Batch) -> Tensor:
            with torch.no_grad():
                told = self._logits(task.forward(guide, batch))
            own = self._logits(out)
            if own.shape != told.shape:
                raise TaskShapeError(
                    "student and teacher give outputs of different shapes",
                    where="distill",
                    expected=list(told.shape),
                    got=list(own.shape),
                )
            soft = soft_losses(
                own, told, temperature=self.temperature, distance=self.distance, class_dim=self.class_dim
            )
            # Without the task's share its labels are not needed, so the loss is not even computed.
            return soft if self.weight == 1.0 else self.weight * soft + (1.0 - self.weight) * task.losses(out, batch)

        with mode(guide):
            return fit(model, batches, task, losses, self.training, label=self.name, progress=progress)

    def _logits(self, out: Any) -> Tensor:
        found = out if self.logits is None else self.logits(out)
        if not isinstance(found, Tensor) or found.ndim < 1:
            raise TaskShapeError(
                "distillation compares one tensor of outputs, and the task's forward gives something else",
                where="distill",
                expected="a tensor [N, ..., classes]",
                got=type(found).__name__,
                todo="name the tensor: recoveries.distill(logits=lambda out: out.logits)",
            )
        return found


def distill(
    *,
    epochs: int = 3,
    temperature: float = 2.0,
    weight: float = 0.5,
    distance: Distance = "kl",
    class_dim: int = -1,
    logits: Callable[[Any], Tensor] | None = None,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    optimizer: Optimizer = "adamw",
    clip: float | None = 1.0,
    warmup: float = 0.1,
    cosine: bool = True,
) -> Distill:
    """Train towards the dense model: weight * T^2 KL(teacher || student at temperature T) + (1 - weight) * task loss.

    Args:
        temperature: T > 0; higher shows more of the small probabilities.
        weight: share of the teacher, in (0, 1]; at 1 the task's loss is not used and no labels are needed.
        distance: `kl` for logits, `squared` for outputs that are no logits (regression, features).
        class_dim: axis of the classes, for `kl` (1 for segmentation maps [N, C, H, W]).
        logits: takes the tensor out of what the task's forward returns; None = it is the tensor.
        others: as in `finetune`.

    Raises:
        InputError: a setting out of its range.
    Source: Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 2.
    """
    for name, ok, expected, got in (
        ("temperature", temperature > 0.0, "a number above 0", temperature),
        ("weight", 0.0 < weight <= 1.0, "a number in (0, 1]", weight),
        ("distance", distance in ("kl", "squared"), "'kl' or 'squared'", distance),
    ):
        if not ok:
            raise InputError("a setting of distill cannot be used", where=name, expected=expected, got=repr(got))
    return Distill(
        training=Training(
            epochs=epochs,
            lr=lr,
            weight_decay=weight_decay,
            optimizer=optimizer,
            clip=clip,
            warmup=warmup,
            cosine=cosine,
        ),
        temperature=temperature,
        weight=weight,
        distance=distance,
        class_dim=class_dim,
        logits=logits,
    )
