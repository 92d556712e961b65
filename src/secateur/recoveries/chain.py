"""Chain: one recovery after the other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from secateur._evaluate import Progress
from secateur.errors import InputError
from secateur.schema.members import Recovery
from secateur.schema.task import Batches, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Made by `chain()`."""

    recoveries: tuple[Recovery, ...]
    name: str
    gradients: bool
    source: str

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
        """Run the recoveries on `model`, in order."""
        for recovery in self.recoveries:
            model = recovery(model, batches, task, teacher=teacher, seed=seed, progress=progress)
        return model


def chain(*recoveries: Recovery) -> Chain:
    """The given recoveries, one after the other: `chain(recalibrate(), finetune(epochs=3))`.

    Raises:
        InputError: nothing given.
    """
    if not recoveries:
        raise InputError("an empty chain", todo="name at least one recovery: chain(recalibrate(), finetune())")
    return Chain(
        recoveries=recoveries,
        name=" + ".join(r.name for r in recoveries),
        gradients=any(r.gradients for r in recoveries),
        source="; ".join(r.source for r in recoveries if r.source),
    )
