"""Blocks in the manner of libraries for diffusion, segmentation and medical images: cut equals mask, and much goes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nets import randomise
from helpers.random_plans import random_plan
from secateur._couple import couple
from secateur._cut import cut
from secateur._trace import trace


class ResnetBlock(nn.Module):
    """Group norm, convolution, and a shift by the embedding of the time step."""

    def __init__(self, c: int, d: int, t: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, c), nn.Conv2d(c, d, 3, padding=1)
        self.time = nn.Linear(t, d)
        self.norm2, self.conv2 = nn.GroupNorm(4, d), nn.Conv2d(d, d, 3, padding=1)
        self.shortcut = nn.Conv2d(c, d, 1) if c != d else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.shortcut is None else self.shortcut(x)) + h


class SpatialTransformer(nn.Module):
    """Pixels attend to each other and to a text, then a gated feed-forward."""

    def __init__(self, c: int, heads: int, text: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(4, c)
        self.proj_in, self.proj_out = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(3))
        self.q = nn.ModuleList(nn.Linear(c, c, bias=False) for _ in range(2))
        self.k = nn.ModuleList(nn.Linear(w, c, bias=False) for w in (c, text))
        self.v = nn.ModuleList(nn.Linear(w, c, bias=False) for w in (c, text))
        self.out = nn.ModuleList(nn.Linear(c, c) for _ in range(2))
        self.geglu, self.down = nn.Linear(c, 4 * c), nn.Linear(2 * c, c)

    def attend(self, i: int, x: Tensor, context: Tensor) -> Tensor:
        b = x.shape[0]
        q, k, v = self.q[i](x), self.k[i](context), self.v[i](context)
        size = q.shape[-1] // self.heads
        q, k, v = (y.view(b, -1, self.heads, size).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out[i](y.transpose(1, 2).reshape(b, -1, self.heads * size))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        b, _, h, w = x.shape
        y = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(b, h * w, -1)
        n = self.norms[0](y)
        y = y + self.attend(0, n, n)
        y = y + self.attend(1, self.norms[1](y), text)
        a, gate = self.geglu(self.norms[2](y)).chunk(2, -1)
        y = y + self.down(a * F.gelu(gate))
        return x + self.proj_out(y.reshape(b, h, w, -1).permute(0, 3, 1, 2))


class DiffusionUNet(nn.Module):
    """Down, middle with attention, up with skips; conditioned on time and text."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.down1, self.shrink = ResnetBlock(16, 16, 16), nn.Conv2d(16, 16, 3, 2, 1)
        self.down2 = ResnetBlock(16, 24, 16)
        self.middle = SpatialTransformer(24, 3, 6)
        self.up2 = ResnetBlock(24 + 16, 16, 16)
        self.grow = nn.Conv2d(16, 16, 3, padding=1)
        self.up1 = ResnetBlock(16 + 16, 16, 16)
        self.norm, self.out = nn.GroupNorm(4, 16), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor, step: Tensor, text: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(1e4) * torch.arange(4, dtype=x.dtype) / 4)
        angles = step[:, None].to(x.dtype) * frequencies[None]
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        a = self.stem(x)
        b = self.down1(a, time)
        c = self.middle(self.down2(self.shrink(b), time), text)
        c = self.up2(torch.cat([c, self.shrink(b)], 1), time)
        c = self.grow(F.interpolate(c, scale_factor=2.0, mode="nearest"))
        return self.out(F.silu(self.norm(self.up1(torch.cat([c, a], 1), time))))


class DeepLab(nn.Module):
    """Atrous pyramid with image pooling, joined to early features, resampled to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(12, 20, 3, 2, 1), nn.BatchNorm2d(20), nn.ReLU())
        self.pyramid = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(20, 20, 3, padding=d, dilation=d, groups=20), nn.Conv2d(20, 10, 1), nn.BatchNorm2d(10)
            )
            for d in (1, 2, 3)
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(20, 10, 1), nn.ReLU())
        self.project = nn.Sequential(nn.Conv2d(40, 14, 1, bias=False), nn.BatchNorm2d(14), nn.ReLU(), nn.Dropout(0.5))
        self.skip = nn.Conv2d(12, 6, 1)
        self.squeeze, self.excite = nn.Conv2d(20, 5, 1), nn.Conv2d(5, 20, 1)
        self.head = nn.Conv2d(20, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        early = self.early(x)
        late = self.late(early)
        size = late.shape[-2:]
        parts = [F.relu(branch(late)) for branch in self.pyramid]
        parts.append(F.interpolate(self.pool(late), size=size, mode="bilinear", align_corners=False))
        y = F.interpolate(self.project(torch.cat(parts, 1)), size=early.shape[-2:], mode="bilinear")
        y = torch.cat([y, self.skip(early)], 1)
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return F.interpolate(self.head(y), size=x.shape[-2:], mode="bilinear")


class SegRes(nn.Module):
    """Volumes: residual blocks with group norm, trilinear upsampling, sums instead of joins."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 8, 3, padding=1)
        self.a = nn.ModuleList([nn.GroupNorm(4, 8), nn.Conv3d(8, 8, 3, padding=1)])
        self.down = nn.Conv3d(8, 16, 3, 2, 1)
        self.b = nn.ModuleList([nn.GroupNorm(4, 16), nn.Conv3d(16, 16, 3, padding=1)])
        self.up = nn.Conv3d(16, 8, 1)
        self.transposed = nn.ConvTranspose3d(8, 8, 2, 2)
        self.norm, self.head = nn.InstanceNorm3d(8, affine=True), nn.Conv3d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a[1](F.relu(self.a[0](x)))
        y = self.down(x)
        y = y + self.b[1](F.relu(self.b[0](y)))
        y = F.interpolate(self.up(y), scale_factor=2.0, mode="trilinear")
        y = self.transposed(F.max_pool3d(F.leaky_relu(self.norm(y + x)), 2))
        return self.head(y)


class Unetr(nn.Module):
    """A transformer over patches of a volume; its tokens become feature maps again for a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.grid, self.width = 2, 2, 12
        self.embed = nn.Linear(8, 12)
        self.position = nn.Parameter(torch.randn(1, 8, 12))
        self.block = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True)
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.grow = nn.ConvTranspose3d(12, 6, 2, 2)
        self.skip, self.head = nn.Conv3d(1, 6, 3, padding=1), nn.Conv3d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, g, p = x.shape[0], self.grid, self.patch
        tokens = x.view(b, 1, g, p, g, p, g, p).permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, g**3, p**3)
        tokens = self.block(self.embed(tokens) + self.position)
        q, k, v = self.qkv(tokens).view(b, g**3, 3, 3, -1).permute(2, 0, 3, 1, 4)
        scores = torch.einsum("bhxd,bhyd->bhxy", q, k).softmax(-1)
        mixed = torch.einsum("bhxy,bhyd->bhxd", scores, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.proj(mixed)
        volume = tokens.view(b, g, g, g, self.width).permute(0, 4, 1, 2, 3).contiguous()
        return self.head(torch.cat([self.grow(volume), torch.relu(self.skip(x))], 1))


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


BLOCKS = {
    "diffusion": (DiffusionUNet, lambda: (image(2, 3, 8, 8), torch.tensor([3, 40]), image(2, 5, 6)), 0.3),
    "deeplab": (DeepLab, lambda: image(2, 3, 16, 16), 0.5),
    "segres": (SegRes, lambda: image(2, 1, 4, 4, 4), 0.4),
    "unetr": (Unetr, lambda: image(2, 1, 4, 4, 4), 0.3),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_is_cut_exactly(name: str) -> None:
    torch.manual_seed(0)
    kind, inputs, least = BLOCKS[name]
    model = randomise(kind())
    groups = couple(trace(model, inputs()))
    dense = sum(p.numel() for p in model.parameters())
    removed = []
    for seed in range(2):
        small, receipt = cut(model, groups, random_plan(groups, seed, 0.3, 0.8))
        assert receipt.verification is not None
        assert receipt.verification.error <= 1e-9
        assert receipt.verification.distance > 1e-3
        removed.append(1 - sum(p.numel() for p in small.parameters()) / dense)
    assert max(removed) > least, [(f.param, f.axis, f.reason) for f in groups.frozen]
