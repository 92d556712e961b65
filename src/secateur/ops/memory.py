"""Writes in place through views: another tensor on the same memory has changed too.

The recorder notes where both lie in memory; labels are then carried over element by element, so that
`y = zeros(n, 16); y[:, :8] = a; y[:, 8:] = b` is understood as what it is, a concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.ops._kernel import Kernel, Label, compress, numel, support
from secateur.ops._rule import Operation, Rule

# above this many elements the label arrays would take too much memory: what is written in place is then frozen
_LARGEST = 1 << 24

Place = tuple[Sequence[int], Sequence[int], int]


def alias_write(k: Kernel, op: Operation) -> Label:
    """(stale, new, place of stale, place of new) -> the label of the stale tensor after `new` was written."""
    stale, new, place, written_place = op.args
    if not numel(new.shape) or not numel(stale.shape):
        return Label(stale.shape, stale.slots)
    if numel(stale.shape) + numel(new.shape) > _LARGEST:
        for label in (stale, new):
            k.freeze_label(label, "it is written in place through a view, and too large to follow")
        return Label(op.shape)
    source = _source(place, written_place)
    written = source >= 0
    if not bool(written.any()):
        return Label(stale.shape, stale.slots)
    if bool(written.all()):
        return k.label(op.shape, [compress(_gather(slot, new.shape, source)) for slot in new.slots])
    arrivals = [_gather(slot, new.shape, source) for slot in new.slots]
    axes = [_varying(a, written) for a in arrivals]
    slots: list[Tensor | None] = []
    met: set[int] = set()
    for slot in stale.slots:
        partner = next((n for n, along in enumerate(axes) if along & support(slot)), None)
        if partner is None or partner in met:
            k.freeze(slot, "something of fixed size is written into a part of it")
            continue
        met.add(partner)
        slots.append(compress(torch.where(written, arrivals[partner], slot.expand(stale.shape))))
    for n, slot in enumerate(new.slots):
        if n not in met:
            k.freeze(slot, "it is written into a part of something of fixed size")
    return k.label(op.shape, slots)


def _positions(place: Place) -> Tensor:
    shape, strides, offset = place
    positions = torch.full(tuple(shape), offset, dtype=torch.long)
    for axis, (n, stride) in enumerate(zip(shape, strides, strict=True)):
        view = [n if d == axis else 1 for d in range(len(shape))]
        positions += (torch.arange(n) * stride).view(view)
    return positions


def _source(place: Place, written: Place) -> Tensor:
    """For each entry of one tensor the flat entry of the other that lies at the same address, -1 where none does."""
    mine, theirs = _positions(place), _positions(written).reshape(-1)
    table = torch.full((int(max(mine.max(), theirs.max())) + 1,), -1, dtype=torch.long)
    table[theirs] = torch.arange(theirs.numel())
    return table[mine]


def _gather(slot: Tensor, shape: Sequence[int], source: Tensor) -> Tensor:
    flat = slot.expand(tuple(shape)).reshape(-1)
    return flat[source.clamp(min=0)] * (source >= 0)


def _varying(arrival: Tensor, written: Tensor) -> frozenset[int]:
    """The axes along which what arrived varies, where it arrived."""
    found = set()
    for axis in range(arrival.dim()):
        n = arrival.shape[axis]
        if n < 2:
            continue
        a, b = arrival.narrow(axis, 0, n - 1), arrival.narrow(axis, 1, n - 1)
        both = written.narrow(axis, 0, n - 1) & written.narrow(axis, 1, n - 1)
        if bool(((a != b) & both).any()):
            found.add(axis)
    return frozenset(found)


RULES: tuple[tuple[str, Rule], ...] = (("alias_write", alias_write),)
