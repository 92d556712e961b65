"""Settings of torch that hold inside a context: they mean what they say, and come back however they were written."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
import torch

from secateur._kernels import full_precision, without_cudnn

CUDA = torch.device("cuda")


def test_full_precision_forbids_tf32_inside_and_restores_what_was_allowed() -> None:
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, cudnn.allow_tf32
    with contextlib.suppress(KeyError), full_precision(CUDA):
        assert (products.allow_tf32, cudnn.allow_tf32) == (False, False)
        raise KeyError
    assert (products.allow_tf32, cudnn.allow_tf32) == before
    with full_precision(torch.device("cpu")), full_precision(None):
        assert (products.allow_tf32, cudnn.allow_tf32) == before, "there is no TF32 to forbid"


NEW_NAMES = """
import torch
from secateur._kernels import full_precision

products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
products.fp32_precision, cudnn.conv.fp32_precision = "tf32", "ieee"
with full_precision(torch.device("cuda")):
    assert (products.fp32_precision, cudnn.conv.fp32_precision) == ("ieee", "ieee")
assert (products.fp32_precision, cudnn.conv.fp32_precision) == ("tf32", "ieee")
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch knows the older names only")
def test_full_precision_reads_the_newer_names_where_the_user_wrote_them() -> None:
    # in a process of its own: once they were used the older ones raise
    subprocess.run([sys.executable, "-W", "error", "-c", NEW_NAMES], check=True, timeout=120)


def test_cudnn_is_left_out_inside() -> None:
    assert torch.backends.cudnn.enabled
    with contextlib.suppress(KeyError), without_cudnn():
        assert not torch.backends.cudnn.enabled
        raise KeyError
    assert torch.backends.cudnn.enabled
