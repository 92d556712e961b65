"""Data movement: every output entry is one input entry. One rule: run the very same operation on the labels."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.ops._kernel import Kernel, Label
from secateur.ops._rule import Operation, Rule, bare


def move(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """Run the recorded operation, with its recorded sizes, on each slot."""
    x: Label = op.args[0]
    if not x.slots:
        return [bare(shape) for shape in op.shapes]
    return k.move(x, lambda slot: op.function(slot, *op.args[1:], **op.kwargs))


def view(k: Kernel, op: Operation) -> Label:
    """view, reshape and their kin: by the recorded output shape, since labels are not contiguous."""
    return k.view(op.args[0], op.shape)


def expand(k: Kernel, op: Operation) -> Label:
    """An axis of size 1 repeated n times: n is free, so the repeated axis gets virtual atoms."""
    x: Label = op.args[0]
    shape = op.shape
    lead = len(shape) - x.rank
    slots = [s.reshape((1,) * lead + tuple(s.shape)) for s in x.slots]
    old = (1,) * lead + x.shape
    slots += [k.axis(k.fresh(), shape, d, virtual=True) for d, n in enumerate(shape) if n > 1 and old[d] == 1]
    return k.label(shape, slots)


def repeat(k: Kernel, op: Operation) -> Label:
    """tensor.repeat: whole copies beside each other."""
    x: Label = op.args[0]
    if not x.slots:
        return Label(op.shape)
    (out,) = k.move(x, lambda slot: slot.repeat(op.args[1]))
    return out


def split(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """split, chunk: parts beside each other. Parts of one size must keep one size, whatever their indices."""
    parts = move(k, op)
    axis = op.arg(2, "dim", 0)
    labels = [p for p in parts if p is not None]
    rank = labels[0].rank
    if isinstance(op.args[1], int) and len(labels) > 1:
        if len({p.shape[axis % rank] for p in labels}) > 1:
            for part in labels:
                k.only(part, [axis], "it is split into parts of different sizes")
        else:
            k.even(labels, axis, f"split into {len(labels)} equal parts")
    return parts


def channel_shuffle(k: Kernel, op: Operation) -> Label:
    """channel_shuffle(x, groups): channels [groups, rest] transposed. The same index goes in every group."""
    x, groups = op.args[:2]
    batch, channels, *space = x.shape
    grid = k.view(x, (batch, groups, channels // groups, *space))
    tied = Label(grid.shape, tuple(k.collapse(s, [1]) for s in grid.slots if s.shape[2] > 1 or s.shape[1] == 1))
    for s in grid.slots:
        if s.shape[2] == 1 and s.shape[1] > 1:
            k.freeze(s, "channel_shuffle keeps its number of groups")
    swapped = k.permute(tied, [0, 2, 1, *range(3, tied.rank)])
    spread = Label(swapped.shape, tuple(s.expand(s.shape[0], s.shape[1], groups, *s.shape[3:]) for s in swapped.slots))
    return k.view(spread, op.shape)


def glu(k: Kernel, op: Operation) -> Label:
    """glu(x, dim) = a * sigmoid(b), a and b the halves of x."""
    x: Label = op.args[0]
    axis = op.arg(1, "dim", -1) % x.rank
    if not x.slots:
        return Label(op.shape)
    half = x.shape[axis] // 2
    (first,) = k.move(x, lambda slot: slot.narrow(axis, 0, half))
    (second,) = k.move(x, lambda slot: slot.narrow(axis, half, half))
    k.even([first, second], axis, "glu halves it")
    return k.pointwise(op.shape, [first, second])


def as_strided(k: Kernel, op: Operation) -> Label:
    """Only where nothing moves; anything else reads memory in a way that no label can follow."""
    x: Label = op.args[0]
    if tuple(op.args[1]) == x.shape:
        return x
    k.freeze_label(x, "as_strided reads raw memory")
    return Label(op.shape)


def roll(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """Roll moves entries only along its axes."""
    x: Label = op.args[0]
    axes = op.arg(2, "dims", ())
    moved = {d % x.rank for d in ([axes] if isinstance(axes, int) else axes)} or set(range(x.rank))
    if not any(d in moved for s in x.slots for d, n in enumerate(s.shape) if n > 1):
        return [x]
    k.freeze_label(k.only(x, [], ""), "roll moves entries along this axis")
    return [Label(op.shape)]


def repeat_interleave(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """Each entry n times, side by side; with a tensor of repeats nothing can be said."""
    x: Label = op.args[0]
    if isinstance(op.args[1] if len(op.args) > 1 else None, int):
        return move(k, op)
    k.freeze_label(x, "repeat_interleave with data-dependent counts")
    return [bare(shape) for shape in op.shapes]


def unfold(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """tensor.unfold(dim, size, step): windows along an axis that must not be prunable itself."""
    x: Label = op.args[0]
    axis = op.args[1] % x.rank
    x = k.only(x, [axis], "windows slide along this axis")
    slots = [s.unsqueeze(-1) for s in x.slots]
    return [k.label(op.shape, slots)]


def flip(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """Flip reverses an axis; the cut axis is reversed in the same order."""
    return move(k, op)


def diagonal(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """The diagonal of two axes: both keep the same indices, which no label can promise."""
    x: Label = op.args[0]
    first, second = op.arg(2, "dim1", 0) % x.rank, op.arg(3, "dim2", 1) % x.rank
    x = k.only(x, [first, second], "a diagonal is taken")
    return move(k, Operation(op=op.op, args=(x, *op.args[1:]), kwargs=op.kwargs, shapes=op.shapes))


def pair_as_complex(k: Kernel, op: Operation) -> Label:
    """view_as_complex: the last axis of two becomes one number."""
    x = k.only(op.args[0], [-1], "real and imaginary part")
    return k.label(op.shape, [s.squeeze(-1) for s in x.slots])


def complex_as_pair(k: Kernel, op: Operation) -> Label:
    """view_as_real: one number becomes an axis of two."""
    x: Label = op.args[0]
    return k.label(op.shape, [s.unsqueeze(-1) for s in x.slots])


MOVE = (
    "permute transpose t squeeze unsqueeze select slice unbind pixel_shuffle pixel_unshuffle narrow movedim moveaxis "
    "swapaxes swapdims numpy_T mT rot90"
).split()
VIEW = "view _unsafe_view reshape _reshape_alias flatten unflatten view_as reshape_as".split()
SPLIT = "split chunk unsafe_split unsafe_chunk split_with_sizes unsafe_split_with_sizes tensor_split".split()
RULES: tuple[tuple[str, Rule], ...] = (
    *((name, move) for name in MOVE),
    *((name, view) for name in VIEW),
    *((name, split) for name in SPLIT),
    ("expand", expand),
    ("expand_as", expand),
    ("repeat", repeat),
    ("repeat_interleave", repeat_interleave),
    ("as_strided", as_strided),
    ("glu", glu),
    ("channel_shuffle", channel_shuffle),
    ("native_channel_shuffle", channel_shuffle),
    ("roll", roll),
    ("unfold", unfold),
    ("flip", flip),
    ("diagonal", diagonal),
    ("view_as_complex", pair_as_complex),
    ("view_as_real", complex_as_pair),
)
