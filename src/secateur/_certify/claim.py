"""What is claimed, and how it is to be tested."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from secateur._evaluate import Evaluation, Progress
from secateur.errors import CertificateError, InputError
from secateur.schema.members import Certifier
from secateur.schema.task import Batch, Task

Floats = NDArray[np.float64]
Duplicates = Literal["refuse", "merge", "keep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is claimed: scores in [0, 1], or losses clipped to [low, high] and turned into such scores."""

    kind: Literal["score", "loss"]
    margin: float
    clip: tuple[float, float] | None

    @property
    def scale(self) -> float:
        return 1.0 if self.clip is None else self.clip[1] - self.clip[0]

    def scores(self, evaluation: Evaluation) -> Floats:
        """[N] in [0, 1], 1 = best."""
        if self.clip is None:
            assert evaluation.correct is not None
            return evaluation.correct.numpy()
        low, high = self.clip
        return np.asarray(1 - (np.clip(evaluation.losses.numpy(), low, high) - low) / (high - low))

    def clipped(self, scores: Floats) -> int:
        """How many losses reached the upper clip, or the lower one where that is not the natural 0."""
        if self.clip is None:
            return 0
        return int(((scores <= 0) | ((scores >= 1) & (self.clip[0] != 0))).sum())

    def natural(self, score: float) -> float:
        """A mean score in the unit of the claim: as it is, or nats."""
        return score if self.clip is None else self.clip[0] + (1 - score) * self.scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that certify and its verification have to do alike."""

    claim: Claim
    test: Certifier | None
    level: float
    max_weight: float | None
    strata: Callable[[Batch], Iterable[object]] | None
    duplicates: Duplicates
    early: bool
    population: bool
    seed: int
    device: torch.device | str | None
    progress: Progress | None


def make_claim(
    task: Task, max_drop: float | None, max_loss_increase: float | None, clip: float | tuple[float, float] | None
) -> Claim:
    if (max_drop is None) == (max_loss_increase is None):
        raise InputError(
            "exactly one budget is needed",
            expected="max_drop (of the score) or max_loss_increase (with clip)",
            got="both" if max_drop is not None else "neither",
            todo="for both claims make two certificates, and add their error probabilities",
        )
    if max_drop is not None:
        if not (math.isfinite(max_drop) and 0 <= max_drop < 1):
            raise InputError("max_drop is out of range", expected="0 <= max_drop < 1, 0.01 = one point", got=max_drop)
        if task.correct is None:
            raise CertificateError(
                f"the task {task.name!r} has no score in [0, 1], so its drop cannot be certified",
                todo="give the task `correct`, or certify the loss: max_loss_increase= and clip=",
            )
        if clip is not None:
            raise InputError("clip belongs to max_loss_increase", got=clip)
        return Claim(kind="score", margin=float(max_drop), clip=None)
    assert max_loss_increase is not None
    if not task.per_example:
        raise CertificateError(
            f"the task {task.name!r} has only a mean loss per batch, no loss per example",
            todo="write the task with losses of shape [N]",
        )
    if clip is None:
        raise CertificateError(
            "a loss budget needs a clip: the mean of an unbounded loss cannot be certified from any number of examples",
            todo="pass clip=, in nats, the largest loss of one example that should count in full",
        )
    low, high = (0.0, float(clip)) if isinstance(clip, int | float) else (float(clip[0]), float(clip[1]))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError("clip is out of range", expected="a positive number, or (low, high)", got=clip)
    if not 0 <= max_loss_increase < high - low:
        raise InputError(
            "max_loss_increase is out of range",
            expected=f"0 <= max_loss_increase < {high - low:g}, nats",
            got=max_loss_increase,
        )
    return Claim(kind="loss", margin=float(max_loss_increase), clip=(low, high))
