"""Ops of torchvision's detection models: boxes are positions, features are sampled channel by channel."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.ops import convolution
from secateur.ops._kernel import Kernel, Label
from secateur.ops._rule import Operation, bare
from secateur.ops.sampling import channels

_BOXES = "its values become boxes"


def nms(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """nms(boxes [N, 4], scores [N], threshold) -> indices."""
    for label in op.labels:
        k.freeze_label(label, _BOXES)
    return [bare(shape) for shape in op.shapes]


def roi(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """roi_align, roi_pool(x [N, C, H, W], rois [K, 5], ...) -> [K, C, h, w]: which image a region lies in is data."""
    x, rois = op.args[:2]
    k.freeze_label(rois, _BOXES)
    x = k.only(x, [0], "it is indexed by data")
    first = channels(k, x, op.shape)
    return [None if s is None else first if s == first.shape else Label(s) for s in op.shapes]


def position_sensitive(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """ps_roi_align, ps_roi_pool: each channel belongs to a place in the region."""
    for label in op.labels:
        k.freeze_label(label, "every channel stands for a place")
    return [bare(shape) for shape in op.shapes]


def deform_convolution(k: Kernel, op: Operation) -> Label:
    """deform_conv2d(x, weight, offset, mask, bias, strides, paddings, dilations, groups, offset groups, use mask).

    A convolution whose taps are moved by `offset`. With groups of either kind the division of the channels is fixed.
    """
    x, weight, offset, mask, bias = op.args[:5]
    groups, offset_groups = op.args[11:13]
    for label in (offset, mask):
        k.freeze_label(label, "it moves the taps of a convolution")
    if groups > 1 or offset_groups > 1:
        why = "a deformable convolution divides these channels into groups"
        x, weight = k.only(x, [1], why), k.only(weight, [1], why)
        if groups > 1:
            weight, bias = k.only(weight, [0], why), k.only(bias, [0], why)
    if groups > 1:
        return Label(op.shape)
    return convolution.convolution(
        k,
        Operation(
            op="aten.convolution.default",
            args=(x, weight, bias, op.args[5:7], op.args[7:9], op.args[9:11], False, (0, 0), 1),
            kwargs={},
            shapes=op.shapes,
        ),
    )


RULES = (
    ("torchvision::nms", nms),
    ("torchvision::roi_align", roi),
    ("torchvision::roi_pool", roi),
    ("torchvision::ps_roi_align", position_sensitive),
    ("torchvision::ps_roi_pool", position_sensitive),
    ("torchvision::deform_conv2d", deform_convolution),
)
