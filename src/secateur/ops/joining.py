"""cat, stack and constant padding: axes put together from parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.ops._kernel import INT, Kernel, Label, compress, support
from secateur.ops._rule import Operation, Rule


def cat(k: Kernel, op: Operation) -> Label:
    """Parts beside each other along `dim`; on the other axes they go together."""
    parts: list[Label] = [p for p in op.args[0] if not (p.rank == 1 and p.shape[0] == 0)]
    axis = op.arg(1, "dim", 0) % len(op.shape)
    return _join(k, parts, axis, op.shape)


def stack(k: Kernel, op: Operation) -> Label:
    """Parts on a new axis; on the other axes they go together."""
    axis = op.arg(1, "dim", 0) % len(op.shape)
    return _join(k, [k.unsqueeze(p, axis) for p in op.args[0]], axis, op.shape)


def _join(k: Kernel, parts: Sequence[Label], axis: int, shape: Sequence[int]) -> Label:
    # a grid over (axis, other) in one part against a line over `other` alone in another: only `other` can be kept
    lines = {d for p in parts for s in p.slots if axis not in support(s) for d in support(s)}
    mixed = [
        Label(
            p.shape,
            tuple(
                k.collapse(s, [axis]) if axis in support(s) and (support(s) - {axis}) & lines else s for s in p.slots
            ),
        )
        for p in parts
    ]
    hidden = [1 if d == axis else n for d, n in enumerate(shape)]
    across = k.pointwise(
        hidden,
        [Label(tuple(1 if d == axis else n for d, n in enumerate(p.shape)), _without(p, axis)) for p in mixed]
        if lines
        else [],
    )
    along = [next((s for s in p.slots if axis in support(s)), None) for p in mixed]
    slots: list[Tensor | None] = list(across.slots)
    if any(s is not None for s in along):
        axes = set().union(*[support(s) for s in along if s is not None])
        pieces = []
        for part, slot in zip(mixed, along, strict=True):
            size = [(part.shape[axis] if d == axis else shape[d]) if d in axes else 1 for d in range(len(shape))]
            pieces.append(torch.zeros(size, dtype=INT) if slot is None else slot.expand(size))
        slots.append(compress(torch.cat(pieces, axis)))
    return k.label(shape, slots)


def _without(label: Label, axis: int) -> tuple[Tensor, ...]:
    return tuple(s for s in label.slots if axis not in support(s))


def constant_pad(k: Kernel, op: Operation) -> Label:
    """constant_pad_nd(x, pad, value): padded rows of zeros are virtual: they may shrink with what they meet."""
    x: Label = op.args[0]
    pad = list(op.args[1])
    value = op.arg(2, "value", 0)
    before = {x.rank - 1 - i // 2: (pad[i], pad[i + 1]) for i in range(0, len(pad), 2)}
    slots: list[Tensor | None] = []
    for slot in x.slots:
        if len(support(slot)) > 1 and any(before.get(d, (0, 0)) != (0, 0) for d in support(slot)):
            first = min(support(slot))
            slot = k.collapse(slot, [d for d in support(slot) if d != first])
        d = min(support(slot))
        low, high = before.get(d, (0, 0))
        if (low, high) == (0, 0):
            slots.append(slot)
            continue
        if value != 0 or low < 0 or high < 0:
            k.freeze(slot, "this axis is padded with a value other than zero, or cropped")
            continue
        slots.append(_padded(k, slot, d, low, high, op.shape))
    return k.label(op.shape, slots)


def _padded(k: Kernel, slot: Tensor, d: int, low: int, high: int, shape: Sequence[int]) -> Tensor:
    """The padded rows get virtual atoms, numbered by their position in the output."""
    fresh = k.axis(k.fresh(), shape, d, virtual=True)
    n = shape[d]
    return torch.cat([fresh.narrow(d, 0, low), slot, fresh.narrow(d, n - high, high)], d)


RULES: tuple[tuple[str, Rule], ...] = (
    ("cat", cat),
    ("concat", cat),
    ("concatenate", cat),
    ("stack", stack),
    ("constant_pad_nd", constant_pad),
)
