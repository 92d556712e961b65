"""torch.export: a `.pt2` archive that loads without the class of the model, checked against PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur._evaluate import batch_size, leaves
from secateur._units import call
from secateur.errors import ExportMismatch, SecateurError
from secateur.exporters._check import agree, arguments, dynamic_axes, first_item, quiet, resized


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchExport:
    """See `torch_export`."""

    dynamic_batch: bool = True
    tolerance: float = 1e-5
    name: str = "torch_export"

    def __call__(self, model: nn.Module, example_inputs: Any, path: str) -> Mapping[str, Any]:
        """Write and check; see `secateur.exporters`."""
        inputs = first_item(example_inputs)
        sample = resized(inputs, max(2, batch_size(inputs))) if self.dynamic_batch else inputs
        plain = copy.deepcopy(model).eval()
        args, kwargs = arguments(sample)
        shapes: Any = None
        if self.dynamic_batch:
            # one entry per parameter of forward: torch.export wants keyword arguments named
            shapes = dynamic_axes(kwargs) if kwargs else dynamic_axes(args)
        try:
            with quiet():
                torch.export.save(torch.export.export(plain, args, kwargs or None, dynamic_shapes=shapes), path)
                restored = torch.export.load(path).module()
        except RuntimeError as error:
            raise SecateurError(
                "torch.export could not export this model",
                where=type(model).__name__,
                got=str(error).strip().splitlines()[0],
                todo="try whether the dense model can be exported; if it can, this is a bug of Secateur",
            ) from error
        n, file = batch_size(sample), Path(path).name
        sizes = (n, 1, n + 3) if self.dynamic_batch else (n,)
        worst = agree(plain, _runner(restored, file), sample, sizes, tolerance=self.tolerance, where=file)
        size = Path(path).stat().st_size
        return {"path": path, "format": "torch_export", "batches": sizes, "error": worst, "bytes": size}


def torch_export(*, dynamic_batch: bool = True, tolerance: float = 1e-5) -> TorchExport:
    """One `.pt2` archive of `torch.export`, loaded again and compared with PyTorch.

    Args:
        dynamic_batch: the first axis of every batched input is free; checked at other batch sizes too.
        tolerance: largest accepted difference, relative to the largest output.

    Raises (when called):
        ExportMismatch: the archive computes something else, or the batch size turned out to be fixed.
    """
    return TorchExport(dynamic_batch=dynamic_batch, tolerance=tolerance)


def _runner(program: nn.Module, name: str) -> Callable[[Any], Sequence[Tensor]]:
    def run(inputs: Any) -> Sequence[Tensor]:
        try:
            with torch.no_grad():
                outputs = call(program, inputs)
        except RuntimeError as error:
            raise ExportMismatch(
                "the exported program does not run at a batch size that the model accepts",
                where=name,
                got=str(error).strip().splitlines()[0][:200],
                todo="a forward that writes the batch size down as a number cannot have a dynamic batch; "
                "take it from the input's shape, or export with dynamic_batch=False",
            ) from None
        return [v for _, v in leaves(outputs) if isinstance(v, Tensor)]

    return run
