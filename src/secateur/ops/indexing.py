"""Reading and writing by index. An axis that is indexed by data cannot shrink; all others pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from secateur.ops._kernel import Kernel, Label, compress, support
from secateur.ops._rule import Operation, Rule, bare

_BY_DATA = "it is indexed by data"


def embedding(k: Kernel, op: Operation) -> Label:
    """embedding(weight [V, E], index): the vocabulary is frozen, the width is free."""
    w, index = op.args[:2]
    w = k.only(w, [0], "the rows of an embedding are its vocabulary")
    for slot in w.slots:
        k.facts.writings.append(slot)
    return k.label(op.shape, [s.reshape((1,) * index.rank + (-1,)) for s in w.slots])


def embedding_bag(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """_embedding_bag: as embedding, reduced over the bag."""
    w = k.only(op.args[0], [0], "the rows of an embedding are its vocabulary")
    return [k.label(op.shape, [s.reshape(1, -1) for s in w.slots]), *[bare(s) for s in op.shapes[1:]]]


def index(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """x[i, :, j]: the indexed axes are frozen; the others move as the very same indexing moves them."""
    x: Label = op.args[0]
    indices: Sequence[Any] = op.args[1]
    axes = _indexed_axes(op, indices)
    left = k.only(x, axes, _BY_DATA) if axes else x
    for i in indices:
        if isinstance(i, Label):
            k.freeze_label(i, "it is used as an index")
    if not left.slots or any(isinstance(i, Label) and i.rank == 0 for i in indices):
        k.freeze_label(left, _BY_DATA)
        return [bare(s) for s in op.shapes]
    where = [None if i is None else torch.zeros(i.shape, dtype=torch.long) for i in indices]
    if tuple(torch.ones(1).expand(x.shape)[_at(where)].shape) != op.shape:
        k.freeze_label(left, "it is selected by a mask")
        return [bare(s) for s in op.shapes]
    return k.move(left, lambda slot: slot[_at(where)])


def _at(where: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    return tuple(slice(None) if i is None else i for i in where)


def _indexed_axes(op: Operation, indices: Sequence[Any]) -> list[int]:
    return [d for d, i in enumerate(indices) if i is not None]


def index_select(k: Kernel, op: Operation) -> Label:
    """index_select(x, dim, index)."""
    x, axis = op.args[:2]
    return Label(op.shape, k.only(x, [axis], _BY_DATA).slots)


def gather(k: Kernel, op: Operation) -> Label:
    """out[i][j] = x[index[i][j]][j]: the axis is frozen, on the others x and index go together."""
    x, axis, where = op.args[:3]
    axis %= x.rank
    x, where = k.only(x, [axis], _BY_DATA), k.only(where, [axis], "it is used as an index")
    shape = tuple(1 if d == axis else n for d, n in enumerate(op.shape))
    narrow = [Label(shape, _resize(k, item, shape)) for item in (x, where)]
    both = k.pointwise(shape, narrow) if all(n.slots for n in narrow) or not where.slots else narrow[0]
    if x.slots and not where.slots and where.shape[axis] and _broadcasts(where.shape, axis):
        both = narrow[0]
    return k.label(op.shape, both.slots)


def _broadcasts(shape: Sequence[int], axis: int) -> bool:
    return all(n == 1 for d, n in enumerate(shape) if d != axis)


def _resize(k: Kernel, label: Label, shape: Sequence[int]) -> tuple[torch.Tensor, ...]:
    kept = []
    for slot in label.slots:
        if all(slot.shape[d] in (1, shape[d]) for d in range(len(shape))):
            kept.append(slot)
        else:
            k.freeze(slot, "only a part of it is gathered")
    return tuple(kept)


def written(k: Kernel, base: Label, source: Label, axes: Sequence[int]) -> Label:
    """`base` with `source` written somewhere along `axes`: frozen there, together elsewhere."""
    base = k.only(base, axes, "something is written into a part of it")
    source = k.only(source, axes, "it is written into a part of something")
    wanted = {d % base.rank for d in axes}
    shape = tuple(1 if d in wanted else n for d, n in enumerate(base.shape))
    small = [Label(shape, item.slots) for item in (base, source)]
    return k.label(base.shape, k.pointwise(shape, small).slots)


def scatter(k: Kernel, op: Operation) -> Label:
    """scatter, scatter_add, scatter_reduce(x, dim, index, src)."""
    x, axis, where = op.args[:3]
    source = op.arg(3, "src")
    axis %= x.rank
    if not isinstance(source, Label):
        source = Label(where.shape)
    if any(source.shape[d] != x.shape[d] for d in range(x.rank) if d != axis):
        for item in (x, source, where):
            k.freeze_label(item, "only a part of it is scattered")
        return Label(op.shape)
    where = k.only(where, [axis], "it is used as an index")
    if where.slots:
        shape = tuple(1 if d == axis else n for d, n in enumerate(source.shape))
        k.pointwise(shape, [Label(shape, where.slots), Label(shape, k.only(source, [axis], _BY_DATA).slots)])
    return written(k, x, source, [axis])


def index_write(k: Kernel, op: Operation) -> Label:
    """index_add, index_copy, index_reduce(x, dim, index, source)."""
    return written(k, op.args[0], op.args[3], [op.args[1]])


def index_fill(k: Kernel, op: Operation) -> Label:
    """index_fill(x, dim, index, value): the axis is frozen, all others pass."""
    return Label(op.shape, k.only(op.args[0], [op.args[1]], _BY_DATA).slots)


def index_put(k: Kernel, op: Operation) -> Label:
    """x[i, :, j] = source."""
    x, indices, source = op.args[:3]
    axes = _indexed_axes(op, indices)
    if source.rank == 0:
        return k.only(x, axes, _BY_DATA)
    if source.rank != x.rank or any(isinstance(i, Label) and i.rank != 1 for i in indices):
        k.freeze_label(source, _BY_DATA)
        left = k.only(x, axes, _BY_DATA)
        k.freeze_label(left, _BY_DATA)
        return Label(op.shape)
    return written(k, x, source, axes)


def slice_scatter(k: Kernel, op: Operation) -> Label:
    """X with `source` in the place of x[start:end:step] along `dim`: atoms of both, each at its place."""
    x, source = op.args[:2]
    axis = op.arg(2, "dim", 0) % x.rank
    span = slice(op.arg(3, "start"), op.arg(4, "end"), op.arg(5, "step", 1))
    if not any(axis in support(s) for s in (*x.slots, *source.slots)):
        return written(k, x, source, [axis])
    hidden = tuple(1 if d == axis else n for d, n in enumerate(x.shape))
    across = k.pointwise(
        hidden, [Label(hidden, tuple(s for s in item.slots if axis not in support(s))) for item in (x, source)]
    )
    line = torch.zeros([n if d == axis else 1 for d, n in enumerate(x.shape)], dtype=torch.int32)
    for item, place in ((x, slice(None)), (source, span)):
        target = line[tuple(place if d == axis else slice(None) for d in range(x.rank))]
        arriving = torch.zeros_like(target)
        for s in item.slots:
            if axis in support(s):
                arriving = k.collapse(s, [d for d in support(s) if d != axis])
        if item is source:  # what is overwritten must stay as long as what is written
            k.unify(target, arriving)
        target.copy_(arriving)
    return k.label(x.shape, [*across.slots, compress(line)])


def select_scatter(k: Kernel, op: Operation) -> Label:
    """X with `source` in the place of x.select(dim, i)."""
    x, source = op.args[:2]
    axis = op.args[2] % x.rank
    return written(k, x, k.unsqueeze(source, axis), [axis])


RULES: tuple[tuple[str, Rule], ...] = (
    ("embedding", embedding),
    ("_embedding_bag", embedding_bag),
    ("_embedding_bag_forward_only", embedding_bag),
    ("index", index),
    ("_unsafe_index", index),
    ("index_select", index_select),
    ("gather", gather),
    ("scatter", scatter),
    ("scatter_add", scatter),
    ("scatter_reduce", scatter),
    ("index_add", index_write),
    ("index_copy", index_write),
    ("index_reduce", index_write),
    ("index_fill", index_fill),
    ("index_put", index_put),
    ("_index_put_impl", index_put),
    ("slice_scatter", slice_scatter),
    ("select_scatter", select_scatter),
)
