from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.laws import hold


class GridSample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.grid, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(4, 50), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        grid = self.grid(z).view(-1, 5, 5, 2).tanh()
        return self.b(F.grid_sample(self.a(x), grid, padding_mode="border", align_corners=True))


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.h, self.t, self.b = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Linear(8, 7),
            nn.Linear(7, 6),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        theta = self.t(self.h(x.mean((2, 3))).relu()).view(-1, 2, 3)
        return self.b(
            F.grid_sample(x, F.affine_grid(theta, [x.shape[0], 1, 4, 4], align_corners=False), align_corners=False)
        )


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(2, 6, 1), nn.Conv3d(6, 2, 1)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return self.b(F.grid_sample(self.a(x), grid, align_corners=False))


class Unfolded(nn.Module):
    """A convolution written as windows times a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w = nn.Conv2d(3, 6, 1), nn.Linear(6 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.w(F.unfold(self.a(x), 3, padding=1).transpose(1, 2))


class Folded(nn.Module):
    """A transposed convolution written as a matrix whose rows are added up where windows overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w, self.b = nn.Conv2d(3, 6, 1), nn.Linear(6, 5 * 9), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.w(self.a(x).flatten(2).transpose(1, 2).tanh()).transpose(1, 2)
        return self.b(F.fold(rows, (6, 6), 3, padding=1))


class FoldedAgain(nn.Module):
    """fold(unfold(x)) of a single image without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.fold(F.unfold(self.a(x), 2), (5, 5), 2))


def test_channels_pass_a_grid_sample_and_positions_are_frozen() -> None:
    inputs = (torch.randn(2, 3, 6, 6), torch.randn(2, 4))
    hold(GridSample(), inputs, {("a.weight", 0): 8, ("b.weight", 1): 8, ("grid.weight", 0): 0})


def test_what_computes_an_affine_grid_keeps_its_outputs_and_may_lose_hidden_units() -> None:
    hold(Affine(), torch.randn(2, 3, 6, 6), {("a.weight", 0): 8, ("h.weight", 0): 7, ("t.weight", 0): 0})


def test_channels_of_a_volume_pass_a_grid_sample() -> None:
    hold(Volume(), (torch.randn(2, 2, 4, 4, 4), torch.rand(2, 3, 3, 3, 3) * 2 - 1), {("a.weight", 0): 6})


def test_a_channel_is_one_block_of_rows_after_unfold() -> None:
    hold(Unfolded(), torch.randn(2, 3, 6, 6), {("a.weight", 0): 6, ("w.weight", 1): 54})


def test_a_block_of_rows_is_one_channel_after_fold() -> None:
    hold(Folded(), torch.randn(2, 3, 6, 6), {("a.weight", 0): 6, ("w.weight", 0): 45, ("b.weight", 1): 5})


def test_fold_and_unfold_need_no_batch_axis() -> None:
    hold(FoldedAgain(), torch.randn(3, 5, 5), {("a.weight", 0): 6})
