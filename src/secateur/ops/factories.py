"""Values made from nothing. Constant fills may have any size: they get virtual atoms. Positions may not."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.ops._kernel import Kernel, Label
from secateur.ops._rule import Operation, Rule, bare


def fill(k: Kernel, op: Operation) -> Label:
    """zeros, ones, full, empty: every axis is free to shrink with what it meets."""
    return k.source(k.fresh(), op.shape, virtual=True)


def fixed(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """arange, random numbers, masks from indices: an entry means its position, so the size is fixed."""
    for label in op.labels:
        k.freeze_label(label, "its values become positions")
    return [bare(shape) for shape in op.shapes]


def sizes_only(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """Checks that return nothing of the tensor."""
    return [bare(shape) for shape in op.shapes]


def triangle(k: Kernel, op: Operation) -> Label:
    """tril, triu: the position on the last two axes decides."""
    return k.only(op.args[0], [-2, -1], "a triangle of it is taken")


FILL = (
    "zeros ones full empty new_zeros new_ones new_full new_empty empty_permuted empty_strided new_empty_strided".split()
)
FIXED = (
    "arange linspace logspace eye tril_indices triu_indices rand randn randint randperm one_hot scalar_tensor "
    "bucketize searchsorted bincount nonzero unique_consecutive _unique2 multinomial histc hann_window"
).split()
RULES: tuple[tuple[str, Rule], ...] = (
    *((name, fill) for name in FILL),
    *((name, fixed) for name in FIXED),
    ("tril", triangle),
    ("triu", triangle),
    *((name, sizes_only) for name in ("sym_size", "_assert_async", "_assert_tensor_metadata", "is_nonzero", "equal")),
)
