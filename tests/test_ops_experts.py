from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers.laws import hold


class Experts(nn.Module):
    """Rows sorted by expert, one grouped product up and one down, rows put back in their order."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.product = product
        self.i, self.router, self.o = nn.Linear(5, 16), nn.Linear(16, 3), nn.Linear(16, 4)
        self.up, self.down = nn.Parameter(torch.randn(3, 16, 32) / 4), nn.Parameter(torch.randn(3, 32, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        which = self.router(x).argmax(-1)
        order = which.argsort(stable=True)
        offsets = torch.bincount(which, minlength=3).cumsum(0).to(torch.int32)
        h = self.product(x[order], self.up, offsets).relu()
        y = self.product(h, self.down, offsets)
        return self.o(x + torch.zeros_like(x).index_add(0, order, y))


def test_experts_share_their_inner_and_outer_width() -> None:
    pytest.importorskip("transformers.integrations.moe", reason="pip install 'secateur[hf]'")
    model = Experts(lambda x, w, offsets: torch.ops.transformers.grouped_mm_fallback(x, w, offsets))
    hold(model, torch.randn(8, 5), {("up", 2): 32, ("up", 0): 0, ("i.weight", 0): 16})


def test_a_kernel_that_wants_whole_16_bytes_keeps_widths_of_whole_16_bytes() -> None:
    model = Experts(lambda x, w, offsets: torch._grouped_mm(x, w, offs=offsets))
    groups = hold(model, torch.randn(8, 5), {("up", 2): 32, ("up", 0): 0, ("i.weight", 0): 16}, double=False)
    assert {(e.modulus, "16 bytes" in e.reason) for e in groups.equations} == {(4, True)}
