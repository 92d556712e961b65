"""Convolutions: y[n, o, s] = sum_{c, t} x[n, c, s + t] w[o, c, t] + b[o], plain, grouped, depthwise and transposed.

Channels are axis 1 of x. In a grouped convolution either whole groups go, or the same index in every group:
whole groups where there are at least as many groups as channels per group, else the same index.
"""

from __future__ import annotations

import math

from torch import Tensor

from secateur.ops._kernel import Kernel, Label, compress, support
from secateur.ops._rule import Operation, Rule

_SPATIAL = "a convolution slides along this axis"


def convolution(k: Kernel, op: Operation) -> Label:
    """aten.convolution(x, w, b, stride, padding, dilation, transposed, output_padding, groups)."""
    x, w, bias = op.args[:3]
    transposed, groups = op.args[6], op.args[8]
    space = w.shape[2:]
    batched = x.rank == len(space) + 2
    if not batched:
        x = k.unsqueeze(x, 0)
    area = math.prod(space)
    places = math.prod(x.shape[2:] if transposed else op.shape[2 if batched else 1 :])
    x2, w2 = k.lead(x, 2, _SPATIAL), k.lead(w, 2, _SPATIAL)
    if groups == 1:
        # w2 is [O, C], or [C, O] when transposed
        right = w2 if transposed else k.transpose(w2)
        out = _pairwise(k, x2, right, places * area)
    else:
        out = _grouped(k, x2, w2, groups, transposed, places * area)
    out = k.add_bias(out, bias, 1)
    slots = [s.reshape(tuple(s.shape) + (1,) * len(space)) for s in out.slots]
    shape = op.shape if batched else (1, *op.shape)
    label = k.label(shape, slots)
    return label if batched else k.squeeze(label, 0)


def _pairwise(k: Kernel, x: Label, w: Label, multiplier: int) -> Label:
    """x[n, c] w[c, o] -> [n, o]."""
    left = k.unsqueeze(x, 2)
    right = k.unsqueeze(w, 0)
    return k.contract(left, right, [1], multiplier=multiplier)


def _grouped(k: Kernel, x: Label, w: Label, groups: int, transposed: bool, multiplier: int) -> Label:
    """View channels as [groups, channels per group] and contract the second of the two."""
    batch, channels = x.shape
    inside = channels // groups
    if transposed:
        outside = w.shape[1]
        rows = k.view(k.reshape_ones(_axis(k, w, 0), (1, channels)), (1, groups, 1, inside))
        columns = k.reshape_ones(_axis(k, w, 1), (1, 1, outside, 1))
    else:
        outside = w.shape[0] // groups
        rows = k.view(k.reshape_ones(_axis(k, w, 0), (1, w.shape[0])), (1, groups, outside, 1))
        columns = k.reshape_ones(_axis(k, w, 1), (1, 1, 1, inside))
    inner = k.view(k.reshape_ones(x, (batch, channels)), (batch, groups, 1, inside))
    same_index = inside > groups
    inner = Label(inner.shape, tuple(_orient(k, s, same_index, 3) for s in inner.slots))
    rows = Label(rows.shape, tuple(_orient(k, s, same_index, 3 if transposed else 2) for s in rows.slots))
    weight = Label((1, groups, outside, inside), (*rows.slots, *columns.slots), w.names)
    if any(support(s) & support(t) for s in rows.slots for t in columns.slots):
        weight = k.label(weight.shape, weight.slots)
    product = k.contract(inner, weight, [3], multiplier=multiplier)
    slots = []
    for s in product.slots:
        full = s.expand(s.shape[0], groups, outside) if support(s) & {1, 2} else s.expand(s.shape[0], 1, 1)
        slots.append(compress(full.reshape(s.shape[0], -1)))
    return k.label((batch, groups * outside), slots)


def _axis(k: Kernel, w: Label, axis: int) -> Label:
    slots = tuple(s for s in w.slots if support(s) == {axis})
    for s in w.slots:
        if len(support(s)) > 1:
            k.freeze(s, "the weight of a grouped convolution is itself computed from a grid")
    shape = tuple(n if d == axis else 1 for d, n in enumerate(w.shape))
    return Label(shape, slots, w.names)


def _orient(k: Kernel, slot: Tensor, same_index: bool, axis: int) -> Tensor:
    """Resolve a grid over (group, index in the group): the same index in every group, or whole groups."""
    over = support(slot) & {1, 2, 3}
    if over == {1, axis}:
        return k.collapse(slot, [1] if same_index else [axis])
    return slot


RULES: tuple[tuple[str, Rule], ...] = (("convolution", convolution), ("_convolution", convolution))
