"""A dictionary of losses per image, as detectors return: classification, boxes, objectness, masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TaskShapeError, UnknownName
from secateur.schema.task import Task


def from_losses(
    forward: Callable[[nn.Module, Any], Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]],
    *,
    factors: Mapping[str, float] | None = None,
    correct: Callable[[Any, Any], Tensor] | None = None,
    name: str = "from_losses",
) -> Task:
    """A task whose forward gives several named losses per image, whose weighted sum counts.

    losses[n] = sum over terms k of factor[k] * out[k][n]

    Args:
        forward: (model, batch) -> {name: [N]}, or one mapping {name: scalar} for each image, as a model gives that
            averages over its batch and is called with one image at a time. The model is in eval mode; a detector that
            gives losses in train mode only must be told so inside, and its statistics kept.
        factors: of the terms; one that is not named has 1. None = all 1.
        correct: (out, batch) -> [N] in [0, 1], for certificates; None = no such score.

    Raises:
        TaskShapeError: while running, naming the term that is not one loss per image.  UnknownName: a factor of none.
    """

    def losses(out: Any, batch: Any) -> Tensor:
        terms = _terms(out, name)
        unknown = sorted(set(factors or {}) - set(terms))
        if unknown:
            raise UnknownName(
                f"task {name!r} has a factor for a loss that is not there",
                expected=", ".join(sorted(terms)),
                got=", ".join(unknown),
            )
        sizes = {k: list(v.shape) for k, v in terms.items()}
        for k, v in terms.items():
            if v.ndim != 1 or len(v) != len(next(iter(terms.values()))):
                raise TaskShapeError(
                    f"the loss {k!r} of task {name!r} is not one number per image",
                    expected="tensors [N] of one length",
                    got=sizes,
                    todo="sum or average over boxes inside an image, never over images; if the model averages over its "
                    "batch, call it with one image at a time and return a list of its dictionaries",
                )
        weighted = [_wide(v) * (factors or {}).get(k, 1.0) for k, v in terms.items()]
        return torch.stack(weighted).sum(0)

    return Task(forward=forward, losses=losses, correct=correct, name=name)


def _wide(v: Tensor) -> Tensor:
    return v.float() if v.dtype in (torch.float16, torch.bfloat16) else v


def _terms(out: Any, name: str) -> dict[str, Tensor]:
    rows = list(out) if isinstance(out, list | tuple) else None
    if rows and all(isinstance(r, Mapping) and r.keys() == rows[0].keys() and r for r in rows):
        terms = {k: [r[k] for r in rows] for k in rows[0]}
        if all(isinstance(v, Tensor) and v.numel() == 1 for line in terms.values() for v in line):
            return {k: torch.stack([v.reshape(()) for v in line]) for k, line in terms.items()}
    if isinstance(out, Mapping) and out and all(isinstance(v, Tensor) for v in out.values()):
        return dict(out)
    raise TaskShapeError(
        f"the forward of task {name!r} gives no losses",
        expected="a mapping {name: [N]}, or for each image a mapping {name: scalar} with the same names",
        got=f"{type(out).__name__} of {type(rows[0]).__name__}" if rows else type(out).__name__,
    )
