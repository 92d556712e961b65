"""How the tasks read a batch and an output: which part is the input, which the label, which the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur._units import call
from secateur.errors import TaskShapeError

LABELS = ("labels", "label", "targets", "target")


def split(batch: Any) -> tuple[Any, Tensor]:
    """(inputs, labels) of a batch: the last entry of a tuple or list, the entry `labels` (or `label`, ...) of a dict.

    Raises:
        TaskShapeError: there is no such entry.
    """
    if isinstance(batch, Mapping):
        for name in LABELS:
            if name in batch and isinstance(batch[name], Tensor):
                return {k: v for k, v in batch.items() if k != name}, batch[name]
        got: object = f"a mapping with {sorted(map(str, batch))}"
    elif isinstance(batch, tuple | list) and len(batch) >= 2 and isinstance(batch[-1], Tensor):
        return tuple(batch[:-1]), batch[-1]
    else:
        got = type(batch).__name__
    raise TaskShapeError(
        "no labels were found in a batch",
        expected=f"a tuple (inputs..., labels) of tensors, or a mapping with one of {', '.join(LABELS)}",
        got=got,
        todo="write sc.Task(forward=..., losses=...) for batches of your own form; "
        "without labels use tasks.match_output(model)",
    )


def inputs(batch: Any) -> Any:
    """The inputs of a batch with or without labels: a lone tensor is the input."""
    if isinstance(batch, Mapping):
        return {k: v for k, v in batch.items() if k not in LABELS}
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return tuple(batch[:-1])
    return tuple(batch) if isinstance(batch, tuple | list) else batch


def run(model: nn.Module, batch: Any) -> Any:
    """The model on the inputs of a batch: labels are kept from it."""
    return call(model, inputs(batch))


def first(out: Any) -> Tensor:
    """The tensor of interest in an output: the output, its entry `logits`, or its first entry; at least float32.

    Raises:
        TaskShapeError: there is no tensor.
    """
    found = out
    if isinstance(out, Mapping):
        found = out["logits"] if "logits" in out else next(iter(out.values()), None)
    while isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise TaskShapeError(
            "the model returned no tensor that the task can use",
            expected="a tensor, a tuple that begins with one, or a mapping with `logits`",
            got=type(out).__name__,
            todo="write sc.Task(forward=...) that picks the tensor out of the model's output",
        )
    # Losses in half precision lose the small differences that scores are made of.
    return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found


def refuse(task: str, expected: str, logits: Tensor, labels: Tensor, todo: str) -> TaskShapeError:
    """The error for shapes that do not fit together."""
    return TaskShapeError(
        f"output and labels do not fit the task {task!r}",
        expected=expected,
        got=f"output {list(logits.shape)}, labels {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}",
        todo=todo,
    )


def flat(values: Tensor) -> Tensor:
    """[N, ...] -> [N, everything else]."""
    return values.reshape(len(values), -1)


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """-1 or 1 at random, in the shape of `like`."""
    uniform = torch.rand(like.shape, generator=generator, device=generator.device)
    return (uniform < 0.5).to(like.device, like.dtype) * 2 - 1


def softmax_curvature(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Surrogates whose gradient has the Hessian of cross-entropy as second moment: [..., C] -> [...].

    The gradient is R z with R = diag(sqrt p) - p sqrt(p)^T, since R R^T = diag p - p p^T, and random signs z. Labels
    drawn from p have that second moment as well, but where the model is sure nearly all of it comes from the few
    draws of a rare label; random signs keep the variance of a square at twice the square of its mean.
    """
    p = logits.detach().softmax(-1)
    root = p.sqrt() * signs(p, generator)
    surrogate: Tensor = (logits * (root - p * root.sum(-1, keepdim=True))).sum(-1)
    return surrogate


def softened(logits: Tensor) -> Tensor:
    """softmax(logits / 2) over the last axis: the prediction at twice its temperature, taken as known."""
    return (logits.detach() / 2).softmax(-1)
