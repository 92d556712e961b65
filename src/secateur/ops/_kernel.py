"""Labels and the few primitives that every op rule is made of.

An *atom* is one index of one axis of one parameter or buffer (or of a value made of zeros: a virtual atom, since zeros
may shrink too). A recorded value carries a `Label`: int32 arrays ("slots") that say, for each index of an axis, which
atom it stands for. The slots of one value have disjoint axis supports, each is broadcastable to the value's shape and
has size 1 on the axes where it is constant. 0 means that nothing is attached.

A rule combines labels. `unify` says that two atoms must go together, `freeze` that an atom cannot go, `statistic` that
the result depends on how many go. What survives as one slot over two axes (a grid [heads, head_dim]) is resolved at the
end: whole rows or whole columns.

Index conventions: d axis of a value, i index along it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

INT = torch.int32


@dataclass(frozen=True, slots=True)
class Label:
    """What the indices of a value stand for.

    Attributes:
        shape: of the value.  slots: int32 arrays of the same rank, disjoint supports.
        names: names of the parameters it was computed from, if from parameters and constants alone; else None.
        zero: entries of silenced units are zero here (not so after exp, or after adding one).
    """

    shape: tuple[int, ...]
    slots: tuple[Tensor, ...] = ()
    names: frozenset[str] | None = None
    zero: bool = True

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclass(frozen=True, slots=True)
class Reading:
    """A contraction: the entries of `slot` that vary along `axes` were summed over."""

    slot: Tensor
    axes: tuple[int, ...]
    names: frozenset[str]
    gated: bool


@dataclass(frozen=True, slots=True)
class Statistic:
    """An operation whose result depends on how many entries survive along `axes`."""

    site: tuple[int, int]
    slot: Tensor
    axes: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Product:
    """Multiply-accumulates of one contraction: multiplier * product of the extents of `label`."""

    site: tuple[int, int]
    label: Label
    multiplier: int


@dataclass(slots=True)
class Facts:
    """What the rules found out; the input of `couple`'s solver. Grows only."""

    n_atoms: int = 1
    axes: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    virtual: set[tuple[str, int]] = field(default_factory=set)
    edges: list[np.ndarray] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str, tuple[int, int]]] = field(default_factory=list)
    grids: list[Tensor] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    writings: list[Tensor] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    even: list[tuple[tuple[Label, ...], int, str, tuple[int, int]]] = field(default_factory=list)
    least: list[tuple[Tensor, int]] = field(default_factory=list)
    aligned: list[tuple[Label, int, int, str, tuple[int, int]]] = field(default_factory=list)


def support(slot: Tensor) -> frozenset[int]:
    """The axes along which a slot varies."""
    return _wide(slot.shape)


@functools.lru_cache(maxsize=4096)
def _wide(shape: tuple[int, ...]) -> frozenset[int]:
    return frozenset(d for d, n in enumerate(shape) if n > 1)


def compress(slot: Tensor) -> Tensor | None:
    """Size 1 on every axis where the slot is constant; None where nothing is attached."""
    atoms = slot.numpy()
    strides = slot.stride()
    for d in sorted(range(atoms.ndim), key=lambda d: strides[d] != 0):  # expanded ones first: they need no look
        if atoms.shape[d] > 1:
            first = atoms[(*(slice(None),) * d, slice(0, 1))]
            if strides[d] == 0 or (atoms == first).all():
                atoms = first
    return torch.from_numpy(atoms) if atoms.size and atoms.any() else None


class Kernel:
    """The primitives. `site` names the operation at work: (run, node)."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.site = (-1, -1)
        self.sources: dict[tuple[str, tuple[int, ...], str | None], Label] = {}

    # -- atoms ---------------------------------------------------------------------------------------------------

    def source(self, key: str, shape: Sequence[int], *, virtual: bool = False, name: str | None = None) -> Label:
        """Fresh (or known) atoms for every axis of a parameter, or of a value whose size is free (`virtual`)."""
        known = self.sources.get((key, tuple(shape), name))
        if known is not None:
            return known
        slots = [self.axis(key, shape, d, virtual=virtual) for d, n in enumerate(shape) if n > 1]
        names = frozenset([name]) if name is not None else (frozenset() if virtual else None)
        made = self.sources[key, tuple(shape), name] = Label(tuple(shape), tuple(slots), names)
        return made

    def axis(self, key: str, shape: Sequence[int], d: int, *, virtual: bool = False) -> Tensor:
        """The slot of one axis: atoms base .. base + n - 1, varying along axis d."""
        n = shape[d]
        base, _ = self.facts.axes.setdefault((key, d), (self.facts.n_atoms, n))
        if base == self.facts.n_atoms:
            self.facts.n_atoms += n
            if virtual:
                self.facts.virtual.add((key, d))
        return torch.arange(base, base + n, dtype=INT).view([n if i == d else 1 for i in range(len(shape))])

    def fresh(self) -> str:
        """A key for virtual atoms of the operation at work."""
        return f"~{self.site[0]}.{self.site[1]}"

    # -- constraints ---------------------------------------------------------------------------------------------

    def unify(self, a: Tensor, b: Tensor) -> None:
        """Entry by entry, the atoms of a and b go together; what faces nothing (0) cannot go."""
        if a is b:
            return
        # numpy: these arrays are small, and torch takes several times as long to start an operation
        left, right = a.numpy(), b.numpy()
        if left.shape != right.shape:
            left, right = np.broadcast_arrays(left, right)
        differ = left != right
        left, right = left[differ], right[differ]
        if not len(left):
            return
        if not (left.all() and right.all()):
            both = (left != 0) & (right != 0)
            self.freeze(torch.from_numpy(right[left == 0]), "it is combined with something that cannot shrink")
            self.freeze(torch.from_numpy(left[right == 0]), "it is combined with something that cannot shrink")
            left, right = left[both], right[both]
        if len(left) > 1 << 16:  # a materialised grid says the same thing many times
            keys = np.unique(left.astype(np.int64) << 32 | right)
            left, right = (keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32)
        if len(left):
            edges = np.empty((len(left), 2), np.int32)
            edges[:, 0], edges[:, 1] = left, right
            self.facts.edges.append(edges)

    def freeze(self, atoms: Tensor, reason: str) -> None:
        """These atoms cannot go."""
        atoms = atoms.reshape(-1)
        atoms = atoms[atoms != 0]
        if atoms.numel():
            self.facts.frozen.append((torch.unique(atoms).numpy(), reason, self.site))

    def freeze_label(self, label: Label, reason: str) -> None:
        """Nothing of this value can go."""
        for slot in label.slots:
            self.freeze(slot, reason)

    def collapse(self, slot: Tensor, axes: Iterable[int]) -> Tensor:
        """Unify along `axes` and keep one representative there."""
        axes = [d for d in axes if slot.shape[d] > 1]
        if not axes:
            return slot
        one = slot.amax(axes, keepdim=True)
        self.unify(slot, one.expand_as(slot))
        return one

    def statistic(self, label: Label, axes: Iterable[int], reason: str) -> None:
        """The result depends on how many entries survive along `axes`."""
        wanted = {d % label.rank for d in axes}
        for slot in label.slots:
            if support(slot) & wanted:
                along = tuple(sorted(wanted & support(slot)))
                self.facts.statistics.append(Statistic(self.site, slot, along, reason))

    def even(self, parts: Sequence[Label], axis: int, reason: str) -> None:
        """The forward divides `axis` into parts of one size: their counts must stay equal."""
        self.facts.even.append((tuple(parts), axis % parts[0].rank, reason, self.site))

    def align(self, label: Label, axis: int, multiple: int, reason: str) -> None:
        """The length of `axis` must stay a multiple of this."""
        self.facts.aligned.append((label, axis % label.rank, multiple, reason, self.site))

    def label(self, shape: Sequence[int], slots: Iterable[Tensor | None]) -> Label:
        """A label with the invariant restored: supports disjoint, no constant slots."""
        kept: list[Tensor] = []
        taken: set[int] = set()
        items = [(support(s), s) for s in slots if s is not None]
        for axes, slot in sorted(items, key=lambda item: min(item[0], default=-1)):
            if not axes:
                self.freeze(slot, "a single index of it is taken")
            elif axes & taken:
                self.freeze(slot, "two independent structures meet on one axis")
            else:
                kept.append(slot)
                taken |= axes
                if len(axes) > 1:
                    self.facts.grids.append(slot)
        return Label(tuple(int(n) for n in shape), tuple(kept))

    # -- the generic operations ----------------------------------------------------------------------------------

    def pointwise(self, shape: Sequence[int], labels: Sequence[Label]) -> Label:
        """Element by element with broadcasting: what meets on an axis goes together."""
        rank = len(shape)
        if len(labels) == 1 and labels[0].shape == tuple(shape):
            return Label(labels[0].shape, labels[0].slots)
        shapes = [(1,) * (rank - label.rank) + label.shape for label in labels]
        items = [
            (j, slot if label.rank == rank else slot.reshape((1,) * (rank - label.rank) + tuple(slot.shape)))
            for j, label in enumerate(labels)
            for slot in label.slots
        ]
        groups: list[tuple[set[int], list[Tensor]]] = []
        for slot in self._drop_bare(items, shapes):
            axes, members = set(support(slot)), [slot]
            for other in [g for g in groups if g[0] & axes]:
                axes |= other[0]
                members = other[1] + members
                groups.remove(other)
            groups.append((axes, members))
        return self.label(shape, [self._merge(sorted(axes), members) for axes, members in groups])

    def _drop_bare(self, items: list[tuple[int, Tensor]], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """An operand that has a real extent on an axis, but no atoms there, cannot shrink: nor can what meets it."""
        without = [set(_wide(shape)) for shape in shapes]
        for i, slot in items:
            without[i] -= support(slot)
        kept = []
        for i, slot in items:
            axes = support(slot)
            bare = {d for j, there in enumerate(without) if j != i for d in there & axes}
            if bare >= axes:
                self.freeze(slot, "it is combined with a tensor of fixed size")
            else:
                kept.append(self.collapse(slot, sorted(bare)) if bare else slot)
        return kept

    def _merge(self, axes: Sequence[int], members: list[Tensor]) -> Tensor:
        if len(members) == 1:
            return members[0]
        if len({support(s) for s in members}) > 1:
            # a grid meets a line: only whole rows along the first shared axis can go
            first = axes[0]
            lines = []
            for slot in members:
                if first in support(slot):
                    lines.append(self.collapse(slot, [d for d in support(slot) if d != first]))
                else:
                    self.freeze(slot, "two independent structures meet on one axis")
            members = lines
        merged = members[0]
        for slot in members[1:]:
            self.unify(merged, slot)
            if merged.shape != slot.shape or not merged.numpy().all():
                merged = torch.where(merged != 0, merged, slot)
        return merged

    def reduce(
        self, label: Label, axes: Sequence[int] | None, *, keepdim: bool, sums: bool = False, reason: str = "mean"
    ) -> Label:
        """Reduce `axes` (None = all).

        Args:
            sums: zeros do not change the result (sum, norm); else the number of entries does (mean, variance).
        """
        wanted = sorted({d % label.rank for d in axes}) if axes is not None and label.rank else list(range(label.rank))
        if not sums:
            self.statistic(label, wanted, reason)
        elif not label.zero:
            self.statistic(label, wanted, "entries of removed units would not be zero where they are summed")
        slots = []
        for slot in label.slots:
            over = support(slot) & set(wanted)
            if over == support(slot):
                continue
            slots.append(self.collapse(slot, sorted(over)) if over else slot)
        if keepdim:
            return self.label([1 if d in wanted else n for d, n in enumerate(label.shape)], slots)
        left = [d for d in range(label.rank) if d not in wanted]
        return self.label([label.shape[d] for d in left], [s.reshape([s.shape[d] for d in left]) for s in slots])

    def contract(self, a: Label, b: Label, axes: Sequence[int], *, multiplier: int = 1, count: bool = True) -> Label:
        """Multiply two labels of the same rank element by element and sum over `axes`: linear, matmul, conv, einsum.

        Args:
            multiplier: multiply-accumulates per entry of the virtual product (the kernel area of a convolution).
            count: whether the product belongs into the cost.
        """
        shape = tuple(q if p == 1 else p for p, q in zip(a.shape, b.shape, strict=True))
        self._note_reading(a, b, axes)
        if not (a.zero or b.zero):
            for operand in (a, b):
                self.statistic(operand, axes, "entries of removed units would not be zero where they are summed")
        product = self.pointwise(shape, [a, b])
        if count:
            self.facts.products.append(Product(self.site, product, multiplier))
        return self.reduce(product, axes, keepdim=False, sums=True)

    def _note_reading(self, a: Label, b: Label, axes: Sequence[int]) -> None:
        weights = [x for x in (a, b) if x.names is not None]
        if len(weights) == 2:
            weights = [a]
        reader = weights[0] if weights else a
        for slot in reader.slots:
            over = tuple(sorted(support(slot) & set(axes)))
            if over:
                self.facts.readings.append(Reading(slot, over, reader.names or frozenset(), bool(weights)))
            elif weights:
                self.facts.writings.append(slot)

    def matmul(self, a: Label, b: Label) -> Label:
        """A @ b with all the broadcasting of torch.matmul."""
        vector_a, vector_b = a.rank == 1, b.rank == 1
        if vector_a:
            a = self.unsqueeze(a, 0)
        if vector_b:
            b = self.unsqueeze(b, 1)
        rank = max(a.rank, b.rank)
        a = self.reshape_ones(a, (1,) * (rank - a.rank) + a.shape + (1,))
        b = self.reshape_ones(b, (1,) * (rank - b.rank) + b.shape[:-2] + (1,) + b.shape[-2:])
        out = self.contract(a, b, [rank - 1])
        if vector_a:
            out = self.squeeze(out, out.rank - 2)
        if vector_b:
            out = self.squeeze(out, out.rank - 1)
        return out

    def linear(self, x: Label, w: Label, bias: Label | None) -> Label:
        """y[..., o] = sum_i x[..., i] w[o, i] + b[o]."""
        out = self.matmul(x, self.transpose(w))
        return self.add_bias(out, bias, -1)

    def add_bias(self, out: Label, bias: Label | None, axis: int) -> Label:
        """Add a [C] bias along `axis`."""
        if bias is None:
            return out
        for slot in bias.slots:
            self.facts.writings.append(slot)
        return self.along(out, [bias], axis)

    def along(self, x: Label, vectors: Sequence[Label | None], axis: int) -> Label:
        """Combine x element by element with [C] vectors that lie along `axis`."""
        axis %= x.rank
        there = [vector for vector in vectors if vector is not None]
        shapes = [[vector.shape[0] if d == axis else 1 for d in range(x.rank)] for vector in there]
        if not there:
            return x
        return self.pointwise(x.shape, [x, *map(self.reshape_ones, there, shapes)])

    # -- shape changes that keep every entry ---------------------------------------------------------------------

    def reshape_ones(self, label: Label, shape: Sequence[int]) -> Label:
        """Insert or drop axes of size 1."""
        where = [d for d, n in enumerate(shape) if n != 1]
        source = [d for d, n in enumerate(label.shape) if n != 1]
        assert [shape[d] for d in where] == [label.shape[d] for d in source], "only axes of size 1 may change"
        slots = []
        for slot in label.slots:
            view = [1] * len(shape)
            for d, s in zip(where, source, strict=True):
                view[d] = slot.shape[s]
            slots.append(slot.reshape(view))
        return Label(tuple(shape), tuple(slots), label.names, label.zero)

    def unsqueeze(self, label: Label, axis: int) -> Label:
        """A new axis of size 1."""
        slots = tuple(s.unsqueeze(axis) for s in label.slots)
        return Label((*label.shape[:axis], 1, *label.shape[axis:]), slots, label.names, label.zero)

    def squeeze(self, label: Label, axis: int) -> Label:
        """Drop an axis of size 1."""
        return Label(
            label.shape[:axis] + label.shape[axis + 1 :],
            tuple(s.squeeze(axis) for s in label.slots),
            label.names,
            label.zero,
        )

    def permute(self, label: Label, order: Sequence[int]) -> Label:
        """Reorder the axes."""
        slots = tuple(s.permute(*order) for s in label.slots)
        return Label(tuple(label.shape[d] for d in order), slots, label.names, label.zero)

    def transpose(self, label: Label) -> Label:
        """Swap the last two axes."""
        order = list(range(label.rank))
        order[-2:] = order[-1], order[-2]
        return self.permute(label, order) if label.rank > 1 else label

    def move(self, label: Label, operation: Callable[[Tensor], Tensor | Sequence[Tensor]]) -> list[Label]:
        """Data movement: run the very same operation on the label arrays. One label per output."""
        moved: list[list[Tensor | None]] = []
        shapes: list[tuple[int, ...]] = []
        for slot in label.slots:
            result = operation(slot.expand(label.shape))
            outputs = [result] if isinstance(result, Tensor) else list(result)
            moved = moved or [[] for _ in outputs]
            shapes = [tuple(o.shape) for o in outputs]
            for slots, output in zip(moved, outputs, strict=True):
                slots.append(compress(output))
        return [self.label(shape, slots) for shape, slots in zip(shapes, moved, strict=True)]

    def view(self, label: Label, shape: Sequence[int]) -> Label:
        """Reshape."""
        if not label.slots:
            return Label(tuple(shape), (), label.names)
        (out,) = self.move(label, lambda t: t.reshape(tuple(shape)))
        return Label(out.shape, out.slots, label.names)

    def lead(self, label: Label, k: int, reason: str) -> Label:
        """Only the first k axes keep their atoms; what varies on later ones cannot go. Rank k."""
        slots = []
        for slot in label.slots:
            late = {d for d in support(slot) if d >= k}
            if late == support(slot):
                self.freeze(slot, reason)
                continue
            slot = self.collapse(slot, sorted(late))
            slots.append(slot.reshape(slot.shape[:k]))
        return Label(label.shape[:k], tuple(slots), label.names)

    def only(self, label: Label, axes: Sequence[int], reason: str) -> Label:
        """Freeze whatever varies along `axes`."""
        wanted = {d % label.rank for d in axes}
        slots = []
        for slot in label.slots:
            over = support(slot) & wanted
            if over == support(slot):
                self.freeze(slot, reason)
                continue
            slots.append(self.collapse(slot, sorted(over)))
        return Label(label.shape, tuple(slots), label.names)


def numel(shape: Sequence[int]) -> int:
    """Product of a shape."""
    return math.prod(shape)
