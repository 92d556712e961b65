"""Products of groups of rows with a matrix each (mixtures of experts): the inner and outer widths are shared by all.

y[t, n] = sum_k x[t, k] w[e(t), k, n], where the rows t are sorted by expert e.
"""

from __future__ import annotations

import torch

from secateur.ops._kernel import Kernel, Label
from secateur.ops._rule import Operation

_WHICH = "which expert sees which row is decided by data"


def grouped_product(k: Kernel, op: Operation) -> Label:
    """grouped_mm_fallback(x [T, K], w [E, K, N], offsets [E]): rows and experts are frozen."""
    x, w, offsets = op.args[0], op.args[1], op.arg(2, "offs")
    k.freeze_label(offsets, _WHICH)
    return k.matmul(k.only(x, [0], _WHICH), k.squeeze(k.only(w, [0], _WHICH), 0))


def aligned_product(k: Kernel, op: Operation) -> Label:
    """_grouped_mm(x [T, K], w [E, K, N], offsets [E]): K and N are rows of whole 16 bytes, or nothing is computed."""
    x, w = op.args[:2]
    if x.rank != 2 or w.rank != 3 or not isinstance(op.arg(2, "offs"), Label):
        for label in op.labels:
            k.freeze_label(label, "grouped_mm divides the inner axis by data")
        return Label(op.shape)
    assert op.dtypes[0] is not None
    multiple = 16 // getattr(torch, op.dtypes[0]).itemsize
    for label, axis in ((x, 1), (w, 1), (w, 2)):
        k.align(label, axis, multiple, f"grouped_mm computes rows of whole 16 bytes ({multiple} numbers)")
    return grouped_product(k, op)


RULES = (
    ("_grouped_mm", aligned_product),
    ("transformers::grouped_mm_fallback", grouped_product),
)
