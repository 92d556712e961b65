"""Exporters: how a model leaves PyTorch.

Signature: (model, example_inputs, path) -> {"path", "format", "batches" (sizes checked), "error" (largest, relative),
"bytes"}; writes one file and checks it by running it, also at other batch sizes where the batch is dynamic.
"""

from secateur.exporters.onnx import Onnx as Onnx
from secateur.exporters.onnx import onnx as onnx
from secateur.exporters.torch_export import TorchExport as TorchExport
from secateur.exporters.torch_export import torch_export as torch_export
from secateur.schema.table import table

__all__ = ["EXPORTERS", "Onnx", "TorchExport", "onnx", "torch_export"]

EXPORTERS = table(
    ("onnx", onnx),
    ("torch_export", torch_export),
)
