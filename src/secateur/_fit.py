"""The training loop: epochs over batches, with warm-up, cosine decay and gradient clipping. The only one there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur._evaluate import Progress, check_batches, check_losses, device_of, length, to_device, weights_of
from secateur.errors import EmptyData, InputError, NonFinite
from secateur.schema.task import Batch, Batches, Task

Losses = Callable[[Any, Batch], Tensor]
Optimizer = Literal["adamw", "sgd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How to train.

    Attributes:
        epochs: passes over the data.  lr: peak learning rate.
        weight_decay: decoupled (AdamW) or L2 (SGD); only on parameters with two axes or more.
        optimizer: `adamw`, or `sgd` with Nesterov momentum 0.9.
        clip: largest norm of the whole gradient; None = unlimited.
        warmup: fraction of all updates over which the rate rises to `lr`, in [0, 1).
        cosine: whether the rate then falls to 0 on half a cosine, or stays.
    """

    epochs: int
    lr: float
    weight_decay: float
    optimizer: Optimizer
    clip: float | None
    warmup: float
    cosine: bool

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, bool, str, object], ...] = (
            ("epochs", self.epochs >= 1, "a whole number, at least 1", self.epochs),
            ("lr", 0.0 < self.lr < math.inf, "a finite number above 0", self.lr),
            ("weight_decay", 0.0 <= self.weight_decay < math.inf, "a finite number, at least 0", self.weight_decay),
            ("optimizer", self.optimizer in ("adamw", "sgd"), "'adamw' or 'sgd'", self.optimizer),
            ("clip", self.clip is None or self.clip > 0.0, "a number above 0, or None", self.clip),
            ("warmup", 0.0 <= self.warmup < 1.0, "a fraction in [0, 1)", self.warmup),
        )
        for name, ok, expected, got in checks:
            if not ok:
                raise InputError("a training setting cannot be used", where=name, expected=expected, got=repr(got))


def rate(update: int, updates: int, training: Training) -> float:
    """Learning rate of update `update` (0-based) of `updates`: linear warm-up, then half a cosine down to 0.

    With w = ceil(warmup * updates): lr (t + 1) / w for t < w, then lr (1 + cos(pi (t - w) / (updates - w))) / 2.

    Source: Loshchilov & Hutter 2017, SGDR, arXiv 1608.03983, eq. 5 (one cycle).
    """
    rising = math.ceil(training.warmup * updates)
    if update < rising:
        return training.lr * (update + 1) / rising
    if not training.cosine:
        return training.lr
    return training.lr * 0.5 * (1.0 + math.cos(math.pi * (update - rising) / max(1, updates - rising)))


def fit(
    model: nn.Module,
    batches: Batches,
    task: Task,
    losses: Losses,
    training: Training,
    *,
    label: str,
    progress: Progress | None = None,
) -> nn.Module:
    """Train `model` in place to reduce the weighted mean of `losses`, and return it.

    A model that comes in eval mode is trained in train mode. One that comes in train mode keeps the flag of every
    module, so that batch norms which the user has frozen in eval mode stay frozen.

    Args:
        losses: (out, batch) -> [N], differentiable, nats per example.
        label: for progress and errors.

    Raises:
        InputError: no parameter requires a gradient.  EmptyData, OneShotIterable: of the data.
        NonFinite: a loss or the norm of the gradient is NaN or infinite.
    """
    check_batches(batches)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(
            "no parameter of the model requires a gradient",
            where=label,
            todo="set requires_grad, or use a recovery without gradients: recoveries.recalibrate()",
        )
    per_epoch = length(batches) or sum(1 for _ in batches)
    updates = training.epochs * per_epoch
    optimizer = make_optimizer(parameters, training)
    if not model.training:
        model.train()
    device = device_of(model)
    done = 0
    for epoch in range(training.epochs):
        for index, given in enumerate(batches):
            where = f"{label}, epoch {epoch + 1}, batch {index}"
            batch = to_device(given, device)
            for group in optimizer.param_groups:
                # A loader that gives more batches than it announced goes on at the last rate.
                group["lr"] = rate(min(done, updates - 1), updates, training)
            out = _forward(model, batch, task, where)
            each = check_losses(losses(out, batch), task, where=where)
            weights = weights_of(task, batch, len(each), where=where).to(each.device, each.dtype)
            optimizer.zero_grad(set_to_none=True)
            ((each * weights).sum() / weights.sum()).backward()
            norm = nn.utils.clip_grad_norm_(parameters, training.clip if training.clip is not None else math.inf)
            if not bool(torch.isfinite(norm)):
                raise NonFinite(
                    "the gradient is not finite",
                    where=where,
                    got=float(norm),
                    todo="lower the learning rate, or look at that batch",
                )
            optimizer.step()
            done += 1
            if progress is not None:
                progress(label, done, max(done, updates))
        if done == 0:
            raise EmptyData("the data holds no batch", where=label)
    optimizer.zero_grad(set_to_none=True)
    return model


def _forward(model: nn.Module, batch: Batch, task: Task, where: str) -> Any:
    try:
        return task.forward(model, batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "a batch of one example cannot be trained through a batch norm",
            where=where,
            got=error,
            todo="pass drop_last=True to the DataLoader, or another batch size",
        ) from None


def make_optimizer(parameters: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """The optimizer that `training` names; weight decay only where a parameter has two axes or more."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=training.lr)
