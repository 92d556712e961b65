"""torchvision's detection ops in plain torch, for where its compiled library does not load. Never used by the library.

Slow and obvious: they stand in for the compiled kernels in tests and in the zoo.
"""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor

from helpers.compiled_ops import declare_torchvision_ops

_ROI_ALIGN = (
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor"
)
_DEFORM = (
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask) -> Tensor"
)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression: indices of the kept boxes, best first."""
    order = scores.argsort(descending=True, stable=True).tolist()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    for i in order:
        if gone[i]:
            continue
        kept.append(i)
        low, high = torch.maximum(boxes[i, :2], boxes[:, :2]), torch.minimum(boxes[i, 2:], boxes[:, 2:])
        inside = (high - low).clamp(min=0).prod(1)
        gone |= inside / (area[i] + area - inside) > iou_threshold
    return torch.tensor(kept, dtype=torch.long)


def roi_align(
    x: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Bilinear samples averaged per bin: [K, 5] boxes on [N, C, Y, X] -> [K, C, height, width]."""
    out = x.new_zeros(len(rois), x.shape[1], height, width)
    shift = 0.5 if aligned else 0.0
    for k, roi in enumerate(rois.double()):
        left, top, right, bottom = (roi[1:] * spatial_scale - shift).tolist()
        w, h = right - left, bottom - top
        if not aligned:
            w, h = max(w, 1.0), max(h, 1.0)
        ny = sampling_ratio if sampling_ratio > 0 else max(1, -int(-h // height))
        nx = sampling_ratio if sampling_ratio > 0 else max(1, -int(-w // width))
        ys = top + (torch.arange(height * ny, dtype=torch.float64) + 0.5) * h / (height * ny)
        xs = left + (torch.arange(width * nx, dtype=torch.float64) + 0.5) * w / (width * nx)
        rows, columns = _hats(ys, x.shape[2]).to(x.dtype), _hats(xs, x.shape[3]).to(x.dtype)
        samples = torch.einsum("pi,qj,cij->cpq", rows, columns, x[int(roi[0])])
        out[k] = samples.view(x.shape[1], height, ny, width, nx).mean((2, 4))
    return out


def _hats(at: Tensor, n: int) -> Tensor:
    """[samples, n] bilinear weights; nothing beyond one entry outside, the edge within."""
    outside = (at < -1) | (at > n)
    at = at.clamp(0, n - 1)
    weights = (1 - (at[:, None] - torch.arange(n)).abs()).clamp(min=0)
    return weights * (~outside)[:, None]


def deform_conv2d(
    x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor,
    stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int, dilation_w: int,
    groups: int, offset_groups: int, use_mask: bool,
) -> Tensor:  # fmt: skip
    """Convolution whose taps are moved by `offset` [N, 2 * offset groups * taps, Y, X] (Dai et al. 2017)."""
    n, c, _, _ = x.shape
    o, _, kh, kw = weight.shape
    _, _, oh, ow = offset.shape
    moves = offset.view(n, offset_groups, kh * kw, 2, oh, ow)
    gates = mask.view(n, offset_groups, kh * kw, oh, ow) if use_mask else None
    taps = []
    for tap in range(kh * kw):
        i, j = divmod(tap, kw)
        ys = torch.arange(oh)[:, None] * stride_h - pad_h + i * dilation_h + moves[:, :, tap, 0]
        xs = torch.arange(ow) * stride_w - pad_w + j * dilation_w + moves[:, :, tap, 1]
        part = x.view(n * offset_groups, c // offset_groups, *x.shape[2:])
        value = _bilinear(part, ys.flatten(0, 1), xs.flatten(0, 1)).view(n, offset_groups, -1, oh, ow)
        taps.append((value if gates is None else value * gates[:, :, tap, None]).reshape(n, c, oh, ow))
    columns = torch.stack(taps, 2).view(n, groups, c // groups, kh * kw, oh, ow)
    kernel = weight.view(groups, o // groups, c // groups, kh * kw)
    return torch.einsum("ngctyx,goct->ngoyx", columns, kernel).reshape(n, o, oh, ow) + bias.view(1, -1, 1, 1)


def _bilinear(x: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """[B, C, H, W] sampled at [B, Y, X]; zero outside."""
    b, _, h, w = x.shape
    out = torch.zeros(b, x.shape[1], *ys.shape[1:], dtype=x.dtype)
    for dy in (0, 1):
        for dx in (0, 1):
            y, z = ys.floor() + dy, xs.floor() + dx
            share = (1 - (ys - y).abs()) * (1 - (xs - z).abs()) * ((y >= 0) & (y < h) & (z >= 0) & (z < w))
            y, z = y.clamp(0, h - 1).long(), z.clamp(0, w - 1).long()
            flat = x.flatten(2).gather(2, (y * w + z).flatten(1)[:, None].expand(-1, x.shape[1], -1))
            out += flat.view_as(out) * share[:, None].to(x.dtype)
    return out


@functools.cache
def enable_detection() -> tuple[torch.library.Library, ...] | None:
    """Gives torchvision's detection ops a kernel if its own library cannot; the result must stay alive: cached."""
    if declare_torchvision_ops() is None:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(_ROI_ALIGN)
    library.define(_DEFORM)
    for name, kernel in (("nms", nms), ("roi_align", roi_align), ("deform_conv2d", deform_conv2d)):
        library.impl(name, kernel, "CompositeExplicitAutograd")
    # modules hold the question under their own name
    for module in ("torchvision.extension", "torchvision.ops.roi_align"):
        importlib.import_module(module)._has_ops = lambda: True
    return (library,)
