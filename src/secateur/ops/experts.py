"""Products of groups of rows with a matrix each (mixtures of experts): the inner and outer widths are shared by all.

y[t, n] = sum_k x[t, k] w[e(t), k, n], where the rows t are sorted by expert e.
"""

from __future__ import annotations

from secateur.ops._kernel import Kernel, Label
from secateur.ops._rule import Operation

_WHICH = "which expert sees which row is decided by data"


def grouped_product(k: Kernel, op: Operation) -> Label:
    """grouped_mm_fallback(x [T, K], w [E, K, N], offsets [E]): rows and experts are frozen."""
    x, w, offsets = op.args[0], op.args[1], op.arg(2, "offs")
    k.freeze_label(offsets, _WHICH)
    return k.matmul(k.only(x, [0], _WHICH), k.squeeze(k.only(w, [0], _WHICH), 0))


def aligned_product(k: Kernel, op: Operation) -> Label:
    """_grouped_mm: the kernel wants rows of whole 16 bytes, so widths that are not cannot be computed at all."""
    for label in op.labels:
        k.freeze_label(label, "grouped_mm computes only rows of whole 16 bytes")
    return Label(op.shape)


RULES = (
    ("_grouped_mm", aligned_product),
    ("transformers::grouped_mm_fallback", grouped_product),
)
