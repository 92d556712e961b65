"""ONNX: one file, dynamic batch, checked with onnxruntime against PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur._evaluate import batch_size, leaves, to_device
from secateur.errors import ExportMismatch, NotInstalled, SecateurError
from secateur.exporters._check import agree, arguments, dynamic_axes, first_item, quiet, resized


@dataclass(frozen=True, slots=True, kw_only=True)
class Onnx:
    """See `onnx`."""

    dynamic_batch: bool = True
    opset: int | None = None
    tolerance: float = 1e-4
    name: str = "onnx"

    def __call__(self, model: nn.Module, example_inputs: Any, path: str) -> Mapping[str, Any]:
        """Write and check; see `secateur.exporters`."""
        try:
            import onnx  # noqa: F401  the exporter of torch needs it, and says so less clearly
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise NotInstalled(
                "ONNX export needs onnx, onnxruntime and onnxscript", got=error, todo="pip install 'secateur[onnx]'"
            ) from None
        inputs = first_item(example_inputs)
        # torch.export takes a length of one for a constant, so a single example is doubled before it is recorded
        sample = resized(inputs, max(2, batch_size(inputs))) if self.dynamic_batch else inputs
        plain = copy.deepcopy(model).cpu().eval()
        sample = to_device(sample, "cpu")
        program = _program(plain, sample, self)
        # names symbols that this process happened to use before: the same model must give the same file
        program.model.graph.metadata_props.pop("pkg.torch.export.ExportedProgram.range_constraints", None)
        program.save(path)
        n = batch_size(sample)
        sizes = (n, 1, n + 3) if self.dynamic_batch else (n,)
        worst = agree(plain, _session(path), sample, sizes, tolerance=self.tolerance, where=Path(path).name)
        return {"path": path, "format": "onnx", "batches": sizes, "error": worst, "bytes": Path(path).stat().st_size}


def onnx(*, dynamic_batch: bool = True, opset: int | None = None, tolerance: float = 1e-4) -> Onnx:
    """One `.onnx` file, weights included, run with onnxruntime on the CPU and compared with PyTorch.

    Args:
        dynamic_batch: the first axis of every batched input is free; checked at other batch sizes too.
        opset: of the standard operators; None = the exporter's own choice.
        tolerance: largest accepted difference, relative to the largest output.

    Raises (when called):
        ExportMismatch: the file computes something else, or the batch size turned out to be fixed.
        NotInstalled: onnx, onnxruntime or onnxscript is missing.
    """
    return Onnx(dynamic_batch=dynamic_batch, opset=opset, tolerance=tolerance)


def _program(model: nn.Module, sample: Any, settings: Onnx) -> Any:
    args, kwargs = arguments(sample)
    shapes: Any = None
    if settings.dynamic_batch:
        shapes = dynamic_axes(kwargs) if kwargs else dynamic_axes(args)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    try:
        # The fused attention of the CPU lays its result out otherwise than the operations that it is decomposed into;
        # a reshape recorded after the one cannot be done after the other.
        with quiet(), sdpa_kernel(SDPBackend.MATH):
            return torch.onnx.export(
                model,
                args,
                kwargs=kwargs or None,
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=settings.opset,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise SecateurError(
            "torch.onnx could not export this model",
            where=type(model).__name__,
            got=str(error).strip().splitlines()[0],
            todo="try whether the dense model can be exported; if it can, this is a bug of Secateur",
        ) from error


def _session(path: str) -> Any:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; shape warnings of onnxruntime are no business of the user's
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(inputs: Any) -> Sequence[Tensor]:
        args, kwargs = arguments(inputs)
        values = {k: v for k, v in kwargs.items() if isinstance(v, Tensor)}
        flat = [v for _, v in leaves(args) if isinstance(v, Tensor)]
        # keyword arguments keep their names in the file; an input that the forward never reads is dropped from it
        feed = {k: v for k, v in values.items() if k in names} or dict(zip(names, flat, strict=True))
        try:
            outputs = session.run(None, {k: v.detach().numpy() for k, v in feed.items()})
        except (states.InvalidArgument, states.RuntimeException, states.Fail) as error:
            raise ExportMismatch(
                "onnxruntime cannot run the exported model at a batch size that PyTorch accepts",
                where=Path(path).name,
                got=str(error).strip().splitlines()[0][:200],
                todo="a forward that writes the batch size down as a number cannot have a dynamic batch; "
                "take it from the input's shape, or export with dynamic_batch=False",
            ) from None
        return [torch.from_numpy(o) for o in outputs]

    return run
