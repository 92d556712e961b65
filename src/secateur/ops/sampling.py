"""Sampling of an image at positions or windows: every channel is sampled alike, positions cannot shrink."""

from __future__ import annotations

from secateur.ops._kernel import Kernel, Label, support
from secateur.ops._rule import Operation

_POSITION = "it says where an image is sampled"
_WINDOW = "a window slides along this axis"


def grid_sampler(k: Kernel, op: Operation) -> Label:
    """grid_sample(x [N, C, *space], grid [N, *out, 2 or 3]) -> [N, C, *out]."""
    x, grid = op.args[:2]
    k.freeze_label(grid, _POSITION)
    return channels(k, x, op.shape)


def channels(k: Kernel, x: Label, shape: tuple[int, ...]) -> Label:
    """Batch and channels pass; what varies over space is frozen."""
    lead = k.lead(x, 2, _WINDOW)
    return k.label(shape, [s.reshape(tuple(s.shape) + (1,) * (len(shape) - 2)) for s in lead.slots])


def affine_grid(k: Kernel, op: Operation) -> Label:
    """affine_grid(theta [N, 2, 3], size) -> positions."""
    k.freeze_label(op.args[0], _POSITION)
    return Label(op.shape)


def im2col(k: Kernel, op: Operation) -> Label:
    """F.unfold: x [N, C, H, W] -> [N, C * window, places]: a channel becomes one row per entry of the window."""
    x: Label = op.args[0]
    batched = x.rank == 4
    lead = k.lead(x if batched else k.unsqueeze(x, 0), 2, _WINDOW)
    shape = op.shape if batched else (1, *op.shape)
    window = shape[1] // lead.shape[1]
    slots = []
    for s in lead.slots:
        rows = s.repeat_interleave(window, 1) if 1 in support(s) else s
        slots.append(rows.reshape(*rows.shape, 1))
    out = k.label(shape, slots)
    return out if batched else k.squeeze(out, 0)


def col2im(k: Kernel, op: Operation) -> Label:
    """F.fold: x [N, C * window, places] -> [N, C, H, W]: the rows of a channel are added up where windows overlap."""
    x: Label = op.args[0]
    batched = x.rank == 3
    lead = k.lead(x if batched else k.unsqueeze(x, 0), 2, _WINDOW)
    shape = op.shape if batched else (1, *op.shape)
    view = (lead.shape[0], shape[1], lead.shape[1] // shape[1])
    slots = []
    for s in k.view(lead, view).slots:
        if 2 in support(s) and 1 not in support(s):
            k.freeze(s, "the entries of a window are all needed")
            continue
        s = k.collapse(s, [2])
        slots.append(s.reshape(*s.shape[:2], 1, 1))
    out = k.label(shape, slots)
    return out if batched else k.squeeze(out, 0)


RULES = (
    ("grid_sampler", grid_sampler),
    ("grid_sampler_2d", grid_sampler),
    ("grid_sampler_3d", grid_sampler),
    ("cudnn_grid_sampler", grid_sampler),
    ("affine_grid_generator", affine_grid),
    ("im2col", im2col),
    ("col2im", col2im),
)
