"""Fine-tune: go on training on the task's own loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from secateur._evaluate import Progress
from secateur._fit import Optimizer, Training, fit
from secateur.schema.task import Batches, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune:
    """Made by `finetune()`."""

    training: Training
    name: str = "finetune"
    gradients: bool = True
    source: str = "Han, Pool, Tran & Dally 2015, Learning both weights and connections, arXiv 1506.02626, sec. 3.3"

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
        """Train `model` in place; the teacher is not needed."""
        return fit(model, batches, task, task.losses, self.training, label=self.name, progress=progress)


def finetune(
    *,
    epochs: int = 3,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    optimizer: Optimizer = "adamw",
    clip: float | None = 1.0,
    warmup: float = 0.1,
    cosine: bool = True,
) -> Finetune:
    """Train the surviving weights on the task's loss: minimise mean_n losses[n] over the training data.

    Args:
        epochs: passes over the data.
        lr: peak learning rate; the default suits AdamW on small networks, 1e-5 to 1e-4 large pretrained ones.
        weight_decay: on parameters with two axes or more.
        optimizer: `adamw`, or `sgd` with Nesterov momentum 0.9.
        clip: largest norm of the gradient, None = unlimited.
        warmup: fraction of the updates with a rising rate.  cosine: let the rate fall to 0 afterwards.

    Raises:
        InputError: a setting out of its range.
    Source: Han, Pool, Tran & Dally 2015, arXiv 1506.02626, section 3.3.
    """
    return Finetune(
        training=Training(
            epochs=epochs,
            lr=lr,
            weight_decay=weight_decay,
            optimizer=optimizer,
            clip=clip,
            warmup=warmup,
            cosine=cosine,
        )
    )
