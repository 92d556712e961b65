from __future__ import annotations

import torch
from torch import Tensor, nn

from helpers.compiled_ops import ensure_torchvision
from helpers.detection_ops import deform_conv2d, enable_detection, nms, roi_align
from helpers.laws import hold

ensure_torchvision()
enable_detection()


class Regions(nn.Module):
    """A region head: boxes from one layer, features of the boxes from another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h, self.box, self.b = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Linear(8, 6),
            nn.Linear(6, 12),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        corners = self.box(self.h(x.mean((2, 3))).relu()).view(-1, 3, 4).sigmoid() * 4
        boxes = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:] + 0.5], -1).flatten(0, 1)
        image = torch.arange(len(x), dtype=x.dtype).repeat_interleave(3)[:, None]
        kept = torch.ops.torchvision.nms(boxes, boxes.sum(1), 0.9)
        rois = torch.cat([image, boxes], 1)[kept]
        return self.b(torch.ops.torchvision.roi_align(x, rois, 1.0, 2, 2, 2, False).mean((2, 3)))


class Deformable(nn.Module):
    def __init__(self, offset_groups: int) -> None:
        super().__init__()
        self.a, self.offset, self.mask = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(3, 18 * offset_groups, 1),
            nn.Conv2d(3, 9 * offset_groups, 1),
        )
        self.w, self.bias, self.b = (
            nn.Parameter(torch.randn(6, 8, 3, 3) / 4),
            nn.Parameter(torch.randn(6)),
            nn.Conv2d(6, 2, 1),
        )
        self.offset_groups = offset_groups

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.torchvision.deform_conv2d(
            self.a(x),
            self.w,
            self.offset(x),
            self.mask(x).sigmoid(),
            self.bias,
            1,
            1,
            1,
            1,
            1,
            1,
            1,
            self.offset_groups,
            True,
        )
        return self.b(y.relu())


def test_channels_pass_roi_align_and_what_makes_boxes_is_frozen() -> None:
    hold(Regions(), torch.randn(2, 3, 8, 8), {("a.weight", 0): 8, ("h.weight", 0): 6, ("box.weight", 0): 0})


def test_a_deformable_convolution_is_a_convolution_in_its_channels() -> None:
    hold(
        Deformable(1),
        torch.randn(2, 3, 6, 6),
        {("a.weight", 0): 8, ("w", 0): 6, ("offset.weight", 0): 0, ("mask.weight", 0): 0},
    )


def test_channels_divided_among_offsets_stay() -> None:
    hold(Deformable(2), torch.randn(2, 3, 6, 6), {("a.weight", 0): 0, ("w", 0): 6})


def test_the_stand_in_for_nms_keeps_the_best_of_overlapping_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0.1, 0, 2, 2], [5, 5, 6, 6], [0, 0, 1, 1]])
    assert nms(boxes, torch.tensor([0.5, 0.9, 0.1, 0.4]), 0.5).tolist() == [1, 3, 2]


def test_the_stand_in_for_roi_align_averages_an_image_that_grows_evenly() -> None:
    x = torch.arange(8.0).expand(1, 1, 8, 8)
    out = roi_align(x, torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]]), 1.0, 2, 2, 2, True)
    torch.testing.assert_close(out[0, 0], torch.tensor([[1.5, 3.5], [1.5, 3.5]]))


def test_the_stand_in_for_a_deformable_convolution_without_offsets_is_a_convolution() -> None:
    x, w, b = torch.randn(2, 4, 6, 6), torch.randn(6, 2, 3, 3), torch.randn(6)
    got = deform_conv2d(x, w, torch.zeros(2, 18, 6, 6), torch.ones(2, 9, 6, 6), b, 1, 1, 1, 1, 1, 1, 2, 1, True)
    torch.testing.assert_close(got, nn.functional.conv2d(x, w, b, padding=1, groups=2), rtol=1e-4, atol=1e-5)
