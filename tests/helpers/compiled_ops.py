"""torchvision and timm without torchvision's compiled library.

The torchvision wheel is built against one build of torch; beside another (a CPU build, say) its C++ library does
not load, and `import torchvision` then fails on the ops that the library would have registered. The models need
none of these ops, so declaring their schemas is enough. Never used by the library itself.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import pytest
import torch

# Those that `import torchvision` looks up even where its library is known not to have been loaded.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def declare_torchvision_ops() -> torch.library.Library | None:
    """Declares the ops if torchvision's own library cannot; the result must stay alive, so it is cached."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    for compiled in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            continue
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


def ensure_torchvision() -> None:
    """Makes `import torchvision` and `import timm` work from here on; skips the test where torchvision is missing."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed: pip install 'secateur[timm]'")
    declare_torchvision_ops()
