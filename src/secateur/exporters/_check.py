"""What every exporter does around its own format: inputs at another batch size, dynamic axes, comparison of outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur._evaluate import batch_size, device_of, leaves, map_leaves
from secateur._kernels import full_precision
from secateur._units import call
from secateur.errors import ExportMismatch, InputError


def first_item(example_inputs: Any) -> Any:
    """The first of several example inputs, or the only one.

    Raises:
        InputError: an empty list.
    """
    if not isinstance(example_inputs, list):
        return example_inputs
    if not example_inputs:
        raise InputError("no example inputs", expected="a tensor, a tuple of arguments, or a dict of keyword arguments")
    return example_inputs[0]


def resized(inputs: Any, n: int) -> Any:
    """The same inputs with `n` examples: the first axis of every batched tensor repeated, then shortened.

    Batched are the tensors whose first axis is as long as that of the first tensor.
    """
    size = batch_size(inputs)

    def change(item: Any) -> Any:
        if not _batched(item, size):
            return item
        times = -(-n // size)
        return item.repeat(times, *([1] * (item.ndim - 1)))[:n]

    return map_leaves(change, inputs)


def dynamic_axes(inputs: Any) -> Any:
    """For each input what `torch.export` calls dynamic shapes: the first axis of every batched tensor is free."""
    size = batch_size(inputs)
    # AUTO lets a forward that bakes the batch size in be exported all the same; `agree` then finds out.
    return map_leaves(lambda item: {0: torch.export.Dim.AUTO} if _batched(item, size) else None, inputs)


def _batched(item: Any, size: int) -> bool:
    return isinstance(item, Tensor) and item.ndim > 0 and len(item) == size


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of one example-input item."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings: torch's exporters talk to their own developers, about every model and in changing words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def agree(
    model: nn.Module,
    run: Callable[[Any], Sequence[Tensor]],
    inputs: Any,
    sizes: Sequence[int],
    *,
    tolerance: float,
    where: str,
) -> float:
    """Compare `run(inputs)` with the model at several batch sizes; the largest error, relative to the largest output.

    Raises:
        ExportMismatch: other values, another number of outputs, other shapes, or no run at that batch size.
    """
    worst, device = 0.0, device_of(model)
    for n in sizes:
        sample = resized(inputs, n)
        with full_precision(device), torch.no_grad():
            expected = [v for _, v in leaves(call(model, sample)) if isinstance(v, Tensor)]
        with full_precision(device):
            got = run(sample)
        if [tuple(t.shape) for t in got] != [tuple(t.shape) for t in expected]:
            raise ExportMismatch(
                f"the exported model gives other shapes at batch size {n}",
                where=where,
                expected=[tuple(t.shape) for t in expected],
                got=[tuple(t.shape) for t in got],
                todo="a forward that writes the batch size down as a number cannot have a dynamic batch; "
                "take it from the input's shape, or export with dynamic_batch=False",
            )
        for a, b in zip(got, expected, strict=True):
            worst = max(worst, _relative(a, b))
        if not worst <= tolerance:
            raise ExportMismatch(
                f"the exported model computes something else at batch size {n}",
                where=where,
                expected=f"relative error up to {tolerance:g}",
                got=f"{worst:.3g}",
            )
    return worst


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    if a.numel() == 0:
        return 0.0
    if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
        return float("inf")
    # masks in attention outputs may hold infinities: equal ones differ by nothing
    difference = torch.where(a == b, 0.0, (a - b).abs())
    scale = torch.where(torch.isfinite(b), b.abs(), 0.0).max()
    return float(difference.max() / scale.clamp(min=1e-30)) if difference.max() > 0 else 0.0
