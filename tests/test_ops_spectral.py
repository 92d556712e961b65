from __future__ import annotations

import torch
from torch import Tensor, nn

from helpers.laws import hold


class Mixing(nn.Module):
    """Fourier mixing over time, as in FNet (Lee-Thorp et al. 2021, arXiv 2105.03824), without the axis of features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.fft.fft(self.a(x), dim=1).real)


class BothAxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(torch.fft.fft2(self.a(x)).real).relu())


class Gate(nn.Module):
    """A global filter: multiply in the frequency domain (Rao et al. 2021, arXiv 2107.00645)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w, self.b = nn.Conv2d(3, 6, 1), nn.Parameter(torch.randn(6, 8, 5, 2)), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.rfft2(self.a(x), norm="ortho") * torch.view_as_complex(self.w)
        return self.b(torch.fft.irfft2(f, s=(8, 8), norm="ortho"))


def test_features_pass_a_transform_over_time() -> None:
    hold(Mixing(), torch.randn(2, 6, 5), {("a.weight", 0): 8, ("b.weight", 1): 8})


def test_a_transformed_axis_cannot_shrink() -> None:
    hold(BothAxes(), torch.randn(2, 6, 5), {("a.weight", 0): 0, ("b.weight", 0): 7})


def test_channels_of_a_filter_in_the_frequency_domain_go_with_those_of_the_image() -> None:
    hold(Gate(), torch.randn(2, 3, 8, 8), {("a.weight", 0): 6, ("w", 0): 6, ("b.weight", 1): 6})
