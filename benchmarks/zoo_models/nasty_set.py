# ruff: noqa: E501  a model per trick: its name says what it is
"""Hand-written models, each with one trick that has broken some pruning tool. They are small, so that a fault shows fast."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, rnn

from zoo_models import Entry


def image(c: int = 3, s: int = 16, n: int = 2) -> Callable[[], Tensor]:
    return lambda: torch.randn(n, c, s, s)


def sequence(d: int = 16, t: int = 6, n: int = 2) -> Callable[[], Tensor]:
    return lambda: torch.randn(n, t, d)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        self.b = parametrizations.weight_norm(nn.Conv2d(8, 12, 3))
        self.c = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(pooled(self.b(self.a(x).relu()).relu()))


class SpectralNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = parametrizations.spectral_norm(nn.Conv2d(8, 12, 3))
        self.c = nn.Conv2d(12, 10, 3)
        self.d = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(pooled(self.c(self.b(self.a(x).relu()).relu()).relu()))


class Orthogonal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 12)
        self.b = parametrizations.orthogonal(nn.Linear(12, 12))
        self.c = nn.Linear(12, 10)
        self.d = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x).relu())).relu())


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(3, 10)
        self.A, self.B = nn.Parameter(torch.randn(4, 10)), nn.Parameter(torch.randn(8, 4))
        self.v, self.c = nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.w(pooled(x)).relu()
        return self.c((F.linear(h, self.v.weight + self.B @ self.A) + self.v.bias).relu())


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.u, self.o = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 8, 3, padding=1)
        self.d, self.g = nn.Conv2d(8, 1, 1), nn.ConvTranspose2d(8, 8, 2, 2, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        u = self.u(self.b(a).relu())
        return self.d(self.g(self.o(torch.cat([a, u], 1)).relu()))


class SubPixel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.c, self.down = nn.PixelShuffle(2), nn.Conv2d(4, 8, 3), nn.PixelUnshuffle(2)
        self.d, self.slope = nn.Conv2d(32, 3, 1), nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.down(self.c(F.pad(self.up(self.b(self.slope(self.a(x)))), (1, 1, 1, 1)))))


class GroupAndInstanceNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.GroupNorm(1, 12), nn.GELU(),
            nn.Conv2d(12, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 32, 3), nn.GroupNorm(16, 32),
        )  # fmt: skip
        self.c = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(pooled(self.f(x).tanh()))


class SharedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        for _ in range(3):
            x = self.b(x).relu()
        return self.c(pooled(x))


class TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.c = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.alias = self.a
        self.more = nn.ModuleList([self.a, nn.Linear(12, 12)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.alias(self.a(x).relu()).relu()
        for m in self.more:
            x = x + m(x).tanh()
        return self.c(x)


class WholeTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.j = nn.Linear(16, 16), nn.Linear(16, 16)
        self.t, self.o = nn.Transformer(16, 4, 2, 2, 32, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1])
        return self.o(self.t(self.i(x), self.j(y), tgt_mask=mask))


class Interleave(nn.Module):
    perm: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(16, 4)
        self.register_buffer("perm", torch.randperm(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = torch.cat([self.b(x[:, ::2]), self.c(x[:, 1::2])], 1)
        return self.d(pooled(x[:, self.perm]))


class HeadLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.qkv, self.heads = nn.Linear(16, 16), nn.Linear(16, 48), 4
        self.o, self.c = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        q, k, v = self.qkv(x).chunk(3, -1)
        d, out = 16 // self.heads, []
        for i in range(self.heads):
            s = slice(i * d, (i + 1) * d)
            out.append((q[..., s] @ k[..., s].transpose(-1, -2) / d**0.5).softmax(-1) @ v[..., s])
        return self.c((x + self.o(torch.cat(out, -1))).mean(1))


class UnitSphere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.f, self.w = nn.Conv2d(3, 16, 3), nn.Linear(16, 8), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.f(self.a(x).relu().amax((2, 3))), dim=1) @ F.normalize(self.w, dim=1).t() * 10


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 2), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        h = self.a(x).relu()
        return {
            "cls": [self.c(self.b(h).flatten(2).mean(-1))],
            "seg": {"low": F.interpolate(self.d(h), scale_factor=2.0)},
        }


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if x.sum() > -1e9:
            h = h * 2
        return self.c(pooled(self.b(h)))


class ConvLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h, self.cv, self.o = 6, nn.Conv2d(3 + 6, 24, 3, padding=1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], self.h, 8, 8, dtype=x.dtype)
        c = torch.zeros_like(h)
        for t in range(4):
            i, f, o, g = self.cv(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.o(pooled(h))


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.r, self.o = nn.LSTMCell(4, 8), nn.GRUCell(8, 6), nn.RNNCell(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        hc: tuple[Tensor, Tensor] | None = None
        g: Tensor | None = None
        r: Tensor | None = None
        for t in range(5):
            hc = self.a(x[:, t], hc)
            g = self.b(hc[0], g)
            r = self.r(g, r)
        return self.o(r)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.r, self.o = (
            nn.Linear(4, 6),
            nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True),
            nn.Linear(16, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        p = rnn.pack_padded_sequence(self.i(x), torch.tensor([6, 5, 3]), batch_first=True)
        out, _ = rnn.pad_packed_sequence(self.r(p)[0], batch_first=True)
        return self.o(out)


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i = nn.Conv1d(4, 8, 1)
        self.d = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=2**i) for i in range(3))
        self.r, self.k = (
            nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3)),
            nn.ModuleList(nn.Conv1d(8, 12, 1) for _ in range(3)),
        )
        self.o = nn.Conv1d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        skip: Tensor | int = 0
        for i, (d, r, k) in enumerate(zip(self.d, self.r, self.k, strict=True)):
            a, b = d(F.pad(x, (2**i, 0))).chunk(2, 1)
            z = a.tanh() * b.sigmoid()
            skip, x = skip + k(z), x + r(z)
        return self.o(torch.relu(torch.as_tensor(skip)))


class BilinearForm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.m, self.o = nn.Linear(6, 8), nn.Linear(4, 8), nn.Bilinear(8, 8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.o(self.m(self.a(x), self.b(y)).relu())


class MessagePassing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.a(x)
        o = torch.zeros_like(h).index_add(0, e[1], h[e[0]])
        h = (h + self.b(o)).relu()
        p = torch.zeros(7, h.shape[1], dtype=h.dtype).scatter_add(0, e[1][:, None].expand(-1, h.shape[1]), h[e[0]])
        return self.c(h + p)


class GraphAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.heads, self.width = nn.Linear(6, 16), 4, 4
        self.src, self.dst = nn.Parameter(torch.randn(1, 4, 4)), nn.Parameter(torch.randn(1, 4, 4))
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.lin(x).view(-1, self.heads, self.width)
        a = F.leaky_relu((h * self.src).sum(-1)[e[0]] + (h * self.dst).sum(-1)[e[1]], 0.2).exp()
        total = torch.zeros(x.shape[0], self.heads, dtype=x.dtype).index_add(0, e[1], a)
        m = h[e[0]] * (a / total[e[1]]).unsqueeze(-1)
        out = torch.zeros_like(h).index_add(0, e[1], m)
        return self.out(out.flatten(1))


class EinsumAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.c = nn.Linear(16, 16), nn.Linear(16, 3)
        self.q, self.k = nn.Parameter(torch.randn(16, 4, 5) / 4), nn.Parameter(torch.randn(16, 4, 5) / 4)
        self.v, self.o = nn.Parameter(torch.randn(16, 4, 6) / 4), nn.Parameter(torch.randn(4, 6, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        q, k, v = (torch.einsum("bnd,dhe->bhne", x, w) for w in (self.q, self.k, self.v))
        a = torch.einsum("bhqe,bhke->bhqk", q, k).softmax(-1)
        return self.c((x + torch.einsum("bhqk,bhke,hed->bqd", a, v, self.o)).mean(1))


class SliceWrites(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape[0], 16, *x.shape[2:], dtype=x.dtype)
        y[:, :8] = self.a(x)
        y[:, 8:] = self.b(y[:, :8].clone())
        y[:, :8] *= 2
        return self.c(pooled(y))


class PartialConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.p, self.b, self.c = (
            nn.Conv2d(3, 16, 3),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(16, 8, 1),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(self.a(x), [4, 12], 1)
        return self.c(pooled(self.b(torch.cat([self.p(x1), x2], 1)).relu()))


class Capsules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.W, self.o = nn.Conv2d(3, 32, 3, 2), nn.Parameter(torch.randn(5, 100, 6, 8) * 0.1), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        u = self.a(x).view(x.shape[0], 4, 8, 25).permute(0, 1, 3, 2).reshape(x.shape[0], 100, 8)
        return self.o(torch.einsum("knij,bnj->bkni", self.W, u).mean(2)).squeeze(-1)


class PaddedShortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Linear(16, 4),
        )
        self.shortcut: Callable[[Tensor], Tensor] = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 16 // 4, 16 // 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = (self.b(x) + self.shortcut(x)).relu()
        return self.d(pooled((x + self.c(x)).relu()))


class DenseInplace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(6 + 4 * i), nn.ReLU(inplace=True), nn.Conv2d(6 + 4 * i, 4, 3, padding=1))
            for i in range(4)
        )
        self.head = nn.Linear(22, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for layer in self.layers:
            parts.append(layer(torch.cat(parts, 1)))
        return self.head(pooled(torch.cat(parts, 1).relu_()))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up, self.b, self.c = (
            nn.Conv2d(3, 16, 3),
            nn.Linear(16, 4),
            nn.Linear(4, 16),
            nn.Conv2d(16, 8, 3, groups=8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        b, c, _, _ = x.size()
        g = self.up(self.down(F.adaptive_avg_pool2d(x, 1).view(b, c)).relu()).sigmoid()
        return self.c(pooled(self.b(x * g.view(b, c, 1, 1).expand_as(x)).relu()))


class ChannelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.g1, self.g2, self.c = (
            nn.Conv2d(3, 24, 3, padding=1),
            nn.Conv2d(24, 24, 1, groups=3),
            nn.Conv2d(24, 24, 1, groups=3),
            nn.Linear(24, 4),
        )
        self.groups = 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.g1(self.a(x).relu()).relu()
        b, c, h, w = x.shape
        x = x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.c(pooled(self.g2(x).relu()))


class OctaveConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hi, self.lo = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.hh, self.hl, self.lh, self.ll = (
            nn.Conv2d(12, 12, 3, padding=1),
            nn.Conv2d(12, 4, 3, padding=1),
            nn.Conv2d(4, 12, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
        )
        self.c = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, low = self.hi(x).relu(), self.lo(F.avg_pool2d(x, 2)).relu()
        h, low = self.hh(h) + F.interpolate(self.lh(low), scale_factor=2), self.ll(low) + self.hl(F.avg_pool2d(h, 2))
        return self.c(torch.cat([pooled(h.relu()), pooled(low.relu())], 1))


def rotate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


class RotaryGrouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.kv, self.size = 4, 2, 8
        self.i, self.q, self.k, self.v = nn.Linear(16, 24), nn.Linear(24, 32), nn.Linear(24, 16), nn.Linear(24, 16)
        self.o, self.c = nn.Linear(32, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.size).transpose(1, 2)
        k = self.k(x).view(b, t, self.kv, self.size).transpose(1, 2)
        v = self.v(x).view(b, t, self.kv, self.size).transpose(1, 2)
        angle = torch.arange(t)[:, None] * 10000.0 ** (-torch.arange(0, self.size, 2) / self.size)
        angle = torch.cat([angle, angle], -1).to(x.dtype)
        q, k = q * angle.cos() + rotate(q) * angle.sin(), k * angle.cos() + rotate(k) * angle.sin()
        k, v = k.repeat_interleave(self.heads // self.kv, 1), v.repeat_interleave(self.heads // self.kv, 1)
        a = (q @ k.transpose(-1, -2) / math.sqrt(self.size)).softmax(-1)
        return self.c((x + self.o((a @ v).transpose(1, 2).reshape(b, t, -1))).mean(1))


class AxialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.o, self.c, self.heads = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(16, 48, 1),
            nn.Conv2d(16, 16, 1),
            nn.Linear(16, 3),
            4,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, self.heads, c // self.heads, h, w).unbind(1)
        a = torch.einsum("bndhw,bndiw->bnwhi", q, k).softmax(-1)
        y = torch.einsum("bnwhi,bndiw->bndhw", a, v).reshape(b, c, h, w)
        return self.c(pooled(x + self.o(y)))


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 10), nn.Linear(10, 6)
        self.x, self.y = nn.Parameter(torch.randn(10)), nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        z = self.b(self.a(x).relu()).tanh()
        return F.linear(F.linear(z, self.b.weight.t(), self.x).relu(), self.a.weight.t(), self.y)


class HyperNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.w, self.b, self.c = nn.Linear(6, 10), nn.Linear(6, 80), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, w = self.a(x).relu(), self.w(x).view(x.shape[0], 8, 10)
        return self.c(self.b(torch.bmm(w, h.unsqueeze(-1)).squeeze(-1).relu()).relu())


class FiLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.f, self.g, self.c = nn.Conv2d(3, 12, 3), nn.Linear(5, 24), nn.Conv2d(12, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale, shift = self.f(z).chunk(2, 1)
        h = self.a(x) * (1 + scale[..., None, None]) + shift[..., None, None]
        return self.c(pooled(self.g(h.relu()).relu()))


class GatedUnits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 20, 3), nn.Linear(10, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.glu(self.c(pooled(F.glu(self.b(F.glu(self.a(x), 1)), 1))), -1))


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.k = nn.Linear(8, 36), nn.Linear(12, 20), nn.Linear(10, 3), 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(x.shape[0], -1, self.k).amax(-1)
        return self.c(self.b(x).view(-1, 10, 2).max(-1).values)


class HardExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.router, self.c = nn.Linear(8, 12), nn.Linear(12, 3), nn.Linear(12, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        p, which = self.router(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for n, expert in enumerate(self.experts):
            row, slot = torch.where(which == n)
            out.index_add_(0, row, expert(x[row]) * p[row, slot, None])
        return self.c(x + out)


class StackedExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.router, self.c = nn.Linear(8, 12), nn.Linear(12, 3), nn.Linear(12, 4)
        self.up, self.down = nn.Parameter(torch.randn(3, 12, 20) / 4), nn.Parameter(torch.randn(3, 20, 12) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        h = torch.einsum("bd,edf->ebf", x, self.up).relu()
        return self.c(x + torch.einsum("ebf,efd,be->bd", h, self.down, self.router(x).softmax(-1)))


class FourierMixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.n, self.u, self.d, self.c = (
            nn.Linear(8, 16),
            nn.LayerNorm(16),
            nn.Linear(16, 24),
            nn.Linear(24, 16),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        x = self.n(x + torch.fft.fft(x, dim=1).real)
        return self.c((x + self.d(self.u(x).relu())).mean(1))


class FrequencyGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.w, self.c = (
            nn.Conv2d(3, 10, 3, padding=1),
            nn.Parameter(torch.randn(10, 16, 9, 2)),
            nn.Linear(10, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.rfft2(self.i(x), norm="ortho") * torch.view_as_complex(self.w)
        return self.c(pooled(torch.fft.irfft2(f, s=(16, 16), norm="ortho").relu()))


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.loc, self.theta, self.b, self.c = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 6, 3, 2),
            nn.Linear(6, 6),
            nn.Conv2d(8, 10, 3),
            nn.Linear(10, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        theta = self.theta(pooled(self.loc(h).relu())).view(-1, 2, 3)
        grid = F.affine_grid(theta, [h.shape[0], 1, 16, 16], align_corners=False)
        return self.c(pooled(self.b(F.grid_sample(h, grid, align_corners=False)).relu()))


class LocalAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.v, self.a, self.o, self.c = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Linear(8, 8),
            nn.Linear(8, 81),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        v = F.unfold(self.v(x).permute(0, 3, 1, 2), 3, padding=1).reshape(b, c, 9, h * w).permute(0, 3, 2, 1)
        a = self.a(x).reshape(b, h * w, 9, 9).softmax(-1)
        y = F.fold((a @ v).permute(0, 3, 2, 1).reshape(b, c * 9, h * w), (h, w), 3, padding=1)
        return self.c((x + self.o(y.permute(0, 2, 3, 1))).mean((1, 2)))


class CausalLinearAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.q, self.k, self.v, self.c = (
            nn.Linear(16, 16),
            nn.Linear(16, 8),
            nn.Linear(16, 8),
            nn.Linear(16, 12),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        q, k, v = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1, self.v(x)
        s = torch.einsum("btd,bte->btde", k, v).cumsum(1)
        z = torch.einsum("btd,btd->bt", q, k.cumsum(1)).unsqueeze(-1)
        return self.c(torch.einsum("btd,btde->bte", q, s) / z)


class SelectiveScan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.d, self.n, self.r = 12, 4, 3
        self.i, self.cv, self.x = (
            nn.Linear(8, 24),
            nn.Conv1d(12, 12, 3, groups=12, padding=2),
            nn.Linear(12, 11, bias=False),
        )
        self.dt, self.A, self.D, self.o = (
            nn.Linear(3, 12),
            nn.Parameter(torch.rand(12, 4)),
            nn.Parameter(torch.ones(12)),
            nn.Linear(12, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        h, gate = self.i(x).chunk(2, -1)
        h = F.silu(self.cv(h.transpose(1, 2))[..., :t].transpose(1, 2))
        dt, B, C = self.x(h).split([self.r, self.n, self.n], -1)
        dt = F.softplus(self.dt(dt))
        decay, drive = torch.exp(-dt.unsqueeze(-1) * self.A.exp()), (dt * h).unsqueeze(-1) * B.unsqueeze(2)
        state, out = torch.zeros(b, self.d, self.n, dtype=x.dtype), []
        for i in range(t):
            state = decay[:, i] * state + drive[:, i]
            out.append((state @ C[:, i].unsqueeze(-1)).squeeze(-1))
        return self.o((torch.stack(out, 1) + h * self.D) * F.silu(gate))


class RelativeBias(nn.Module):
    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.bias = 4, nn.Parameter(torch.randn(11, 4))
        self.register_buffer("index", torch.arange(6)[:, None] - torch.arange(6) + 5)
        self.i, self.qkv, self.o, self.c = nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        a = q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5
        a = (a + self.bias[self.index.view(-1)].view(t, t, -1).permute(2, 0, 1)).softmax(-1)
        return self.c((x + self.o((a @ v).transpose(1, 2).reshape(b, t, d))).mean(1))


class StochasticDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(8, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Dropout(0.5), nn.Linear(24, 16))
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        for block in self.blocks:
            y = block(x)
            if self.training:
                y = y * torch.bernoulli(torch.full((x.shape[0], 1), 0.7, dtype=x.dtype)) / 0.7
            x = x + y
        return self.o(x)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 14, 3), nn.Linear(14, 9)

    def embed(self, x: Tensor) -> Tensor:
        return self.c(pooled(self.b(self.a(x).relu()).relu()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.embed(x), self.embed(y)
        return F.cosine_similarity(a, b) + F.pairwise_distance(a, b)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.mu, self.var, self.d, self.o = (
            nn.Linear(8, 20),
            nn.Linear(20, 5),
            nn.Linear(20, 5),
            nn.Linear(5, 18),
            nn.Linear(18, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.e(x).relu()
        z, logvar = self.mu(h), self.var(h)
        if self.training:
            z = z + torch.randn_like(z) * (0.5 * logvar).exp()
        return self.o(self.d(z).relu())


class CouplingFlow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(5, 12), nn.Linear(12, 3)
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        for net in self.nets:
            a, b = x.chunk(2, -1)
            s, t = net(a).chunk(2, -1)
            x = torch.cat([b * s.tanh().exp() + t, a], -1).flip(-1)
        return self.o(x)


class OwnStatistics(nn.Module):
    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3), nn.Linear(8, 3)
        self.register_buffer("mean", torch.randn(12))
        self.register_buffer("scale", torch.rand(1, 12, 1, 1))
        self.gains = nn.ParameterDict(
            {"first": nn.Parameter(torch.rand(12, 1, 1)), "second": nn.Parameter(torch.rand(8))}
        )
        self.more = nn.ParameterList([nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))])

    def forward(self, x: Tensor) -> Tensor:
        h = ((self.a(x) - self.mean[None, :, None, None]) * self.scale * self.gains["first"]).relu()
        return self.c(pooled(self.b(h)) * self.gains["second"] + self.more[0] * self.more[1])


class MaskedConv(nn.Module):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 10, 3, padding=1), nn.Linear(10, 3)
        mask = torch.ones(10, 12, 3, 3)
        mask[:, :, 2] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(pooled(F.conv2d(self.a(x).relu(), self.b.weight * self.mask, self.b.bias, padding=1).relu()))


class CondConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.route, self.w, self.c = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Linear(8, 4),
            nn.Parameter(torch.randn(4, 12, 8, 3, 3) / 8),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x).relu()
        b, c, h, w = x.shape
        kernels = (self.route(pooled(x)).sigmoid() @ self.w.view(4, -1)).view(b * 12, c, 3, 3)
        y = F.conv2d(x.view(1, b * c, h, w), kernels, padding=1, groups=b).view(b, 12, h, w)
        return self.c(pooled(y.relu()))


class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls, self.pos = (
            nn.Conv2d(3, 16, 4, 4),
            nn.Parameter(torch.randn(1, 1, 16)),
            nn.Parameter(torch.randn(1, 17, 16)),
        )
        self.att, self.n, self.c = nn.MultiheadAttention(16, 4, batch_first=True), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        y = self.n(x)
        return self.c((x + self.att(y, y, y, need_weights=False)[0])[:, 0])


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.r, self.p, self.d = nn.Embedding(30, 12), nn.LSTM(12, 16, 2), nn.Linear(16, 12), nn.Linear(12, 30)
        self.d.weight = self.e.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.p(self.r(self.e(x))[0]))


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.latent = nn.Linear(12, 16), nn.Linear(8, 32), nn.Parameter(torch.randn(5, 12))
        self.heads, self.o, self.c = 4, nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(self.latent).view(1, 5, self.heads, -1).transpose(1, 2).expand(b, -1, -1, -1)
        k, v = self.kv(x).view(b, t, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.c((self.latent + self.o(y)).mean(1))


class ReversibleSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.f, self.g, self.o = nn.Linear(8, 20), nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.i(x).split(10, -1)
        a = a + self.f(b).relu()
        b = b + self.g(a).relu()
        return self.o(torch.cat((a, b), dim=-1))


class MultiScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 26, 3, padding=1)
        self.convs, self.scales, self.c = (
            nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3)),
            4,
            nn.Linear(26, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.stem(x).relu(), [6, 6, 6, 8], 1)
        out, y = [], torch.zeros_like(parts[0])
        for conv, part in zip(self.convs, parts[:3], strict=True):
            y = conv(y + part).relu()
            out.append(y)
        return self.c(pooled(torch.cat([*out, parts[3]], 1)))


class KeywordOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.v, self.h, self.o = nn.Embedding(20, 10), nn.Linear(6, 10), nn.Linear(10, 14), nn.Linear(14, 3)

    def forward(self, *, batch: dict[str, Tensor], scale: float = 1.0) -> dict[str, dict[str, Tensor]]:
        h = self.e(batch["ids"]) + self.v(batch["dense"]).unsqueeze(1) * scale
        return {"out": {"logits": self.o(self.h(h).relu())}}


class Quadratic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 9, 3), nn.Linear(81, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).flatten(2)
        gram = (h @ h.transpose(1, 2) / h.shape[-1]).flatten(1)
        return self.c(self.b(gram).relu())


class ResidualScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.a, self.b, self.o = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.gamma, self.alpha = nn.Parameter(1e-6 * torch.ones(12)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        x = x + self.gamma * self.a(x).relu()
        return self.o(x + self.alpha * self.b(x).relu())


class SkipIndexing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1)]
        )
        self.sides, self.o = nn.ModuleList(nn.Conv2d(c, 10, 1) for c in (8, 12, 16)), nn.Conv2d(10, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for stage in self.stages:
            x = stage(x).relu()
            features.append(x)
        y = self.sides[-1](features[-1])
        for i in (-2, -3):
            y = F.interpolate(y, size=features[i].shape[-2:], mode="bilinear") + self.sides[i](features[i])
        return self.o(y)


def _edges() -> Any:
    return torch.randn(7, 6), torch.randint(0, 7, (2, 20))


def entries() -> list[Entry]:
    """All of them."""
    images = (
        WeightNorm, SpectralNorm, UNet, SubPixel, GroupAndInstanceNorm, SharedLayer, Interleave, UnitSphere, TwoOutputs,
        DataDependent, SliceWrites, PartialConv, PaddedShortcut, DenseInplace, SqueezeExcite, ChannelShuffle, OctaveConv,
        AxialAttention, GatedUnits, FrequencyGate, SpatialTransformer, LocalAttention, OwnStatistics, MaskedConv, CondConv,
        ClassToken, MultiScale, Quadratic, SkipIndexing, LowRank,
    )  # fmt: skip
    sequences = {
        HeadLoop: sequence(), EinsumAttention: sequence(), RotaryGrouped: sequence(), CausalLinearAttention: sequence(),
        FourierMixing: sequence(8), SelectiveScan: sequence(8), RelativeBias: sequence(8), CrossAttention: sequence(8),
        Cells: sequence(4, 5), Packed: sequence(4, 6, 3), ReversibleSum: sequence(8), WaveNet: sequence(64, 4),
    }  # fmt: skip
    rows = {
        Orthogonal: 6, TwoNames: 8, TiedAutoencoder: 12, HyperNetwork: 6, Maxout: 8, HardExperts: 8, StackedExperts: 8,
        StochasticDepth: 8, VAE: 8, CouplingFlow: 5, ResidualScale: 8,
    }  # fmt: skip
    others: dict[type[nn.Module], Callable[[], Any]] = {
        WholeTransformer: lambda: (torch.randn(2, 6, 16), torch.randn(2, 5, 16)),
        ConvLSTM: lambda: torch.randn(2, 4, 3, 8, 8),
        BilinearForm: lambda: (torch.randn(3, 6), torch.randn(3, 4)),
        MessagePassing: _edges,
        GraphAttention: _edges,
        Capsules: lambda: torch.randn(2, 3, 12, 12),
        FiLM: lambda: (torch.randn(2, 3, 16, 16), torch.randn(2, 5)),
        Siamese: lambda: (torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)),
        TiedLanguageModel: lambda: torch.randint(0, 30, (7, 2)),
        KeywordOnly: lambda: {"batch": {"ids": torch.randint(0, 20, (2, 5)), "dense": torch.randn(2, 6)}, "scale": 0.5},
    }
    inputs: dict[type[nn.Module], Callable[[], Any]] = {
        **dict.fromkeys(images, image()),
        **sequences,
        **{kind: (lambda n=n: torch.randn(16, n)) for kind, n in rows.items()},  # type: ignore[misc]
        **others,
    }
    return [Entry(name=kind.__name__, build=kind, inputs=make) for kind, make in inputs.items()]
