"""Nasty networks: forwards that other tools trip over. `NASTY`: name -> (class, inputs).

From the lists of what is asked for and what breaks: learned tokens, dynamic weights, routing, recurrences by hand.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ClsPos(nn.Module):
    """A class token and positions joined to the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Linear(5, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.pos = nn.Parameter(torch.randn(1, 7, 8))
        self.l = nn.Linear(8, 10)
        self.o = nn.Linear(10, 8)
        self.h = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        x = x + self.o(F.gelu(self.l(x)))
        return self.h(x[:, 0])


class MaskToken(nn.Module):
    """A learned vector in the place of some tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Linear(5, 8)
        self.t = nn.Parameter(torch.randn(8))
        self.h = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.e(x)
        m = x[..., :1] > 0.5
        return self.h(torch.tanh(torch.where(m, self.t, y)))


class PosInterp(nn.Module):
    """Positions resampled to the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 8, 2, 2)
        self.pos = nn.Parameter(torch.randn(1, 8, 3, 3))
        self.h = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        y = y + F.interpolate(self.pos, size=y.shape[-2:], mode="bicubic")
        return self.h(torch.relu(y).flatten(2).mean(-1))


class Queries(nn.Module):
    """Learned queries attend to the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Linear(5, 8)
        self.q = nn.Embedding(4, 8)
        self.a = nn.MultiheadAttention(8, 2, batch_first=True)
        self.n = nn.LayerNorm(8)
        self.h = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        m = self.e(x)
        q = self.q.weight.unsqueeze(0).repeat(x.shape[0], 1, 1)
        return self.h(self.n(q + self.a(q, m, m)[0]))


class DynConv(nn.Module):
    """Kernels computed from the image, one per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 8, 1)
        self.g = nn.Linear(8, 8 * 9)
        self.h = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.c(x))
        n, c, h, w = y.shape
        k = self.g(y.mean((2, 3))).view(n * c, 1, 3, 3)
        return self.h(F.conv2d(y.reshape(1, n * c, h, w), k, padding=1, groups=n * c).view(n, c, h, w))


class WS(nn.Module):
    """Weight standardisation: a statistic over the inputs of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 8, 3, padding=1)
        self.d = nn.Conv2d(8, 6, 3, padding=1)
        self.h = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.c(x))
        w = self.d.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return self.h(torch.relu(F.conv2d(x, w, self.d.bias, padding=1)).mean((2, 3)))


class GNN(nn.Module):
    """Messages along edges, summed at their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Linear(5, 8)
        self.m = nn.Linear(16, 10)
        self.u = nn.Linear(18, 8)
        self.h = nn.Linear(8, 3)
        self.register_buffer("src", torch.tensor([0, 1, 2, 3, 4, 5, 0]))
        self.register_buffer("dst", torch.tensor([1, 2, 3, 4, 5, 0, 3]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.e(x))
        m = torch.relu(self.m(torch.cat([x[:, self.src], x[:, self.dst]], -1)))
        a = torch.zeros(x.shape[0], x.shape[1], m.shape[-1], dtype=m.dtype).index_add_(1, self.dst, m)
        return self.h(torch.relu(self.u(torch.cat([x, a], -1))))


class MoE(nn.Module):
    """Each token goes to two of three experts."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Linear(5, 8)
        self.g = nn.Linear(8, 3)
        self.x = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(3))
        self.h = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x).flatten(0, 1)
        w, i = self.g(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for k, ex in enumerate(self.x):
            t, j = torch.where(i == k)
            out.index_add_(0, t, ex(x[t]) * w[t, j, None])
        return self.h(x + out)


class FFTMix(nn.Module):
    """Tokens mixed by a Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Linear(5, 8)
        self.h = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.fft.fft(torch.tanh(self.e(x)), dim=1).real)


class SplitAttr(nn.Module):
    """Unequal parts whose sizes are integers of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.a = 3
        self.b = 5
        self.e = nn.Linear(5, 8)
        self.p = nn.Linear(3, 4)
        self.q = nn.Linear(5, 4)
        self.h = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.e(x).split([self.a, self.b], -1)
        return self.h(torch.relu(self.p(torch.tanh(u)) + self.q(torch.tanh(v))))


class SliceAttr(nn.Module):
    """The same by slices."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 3
        self.e = nn.Linear(5, 8)
        self.p = nn.Linear(3, 4)
        self.q = nn.Linear(5, 4)
        self.h = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.e(x))
        return self.h(torch.relu(self.p(y[..., : self.n]) + self.q(y[..., self.n :])))


class LN3(nn.Module):
    """A layer norm over channels and space."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 6, 3, padding=1)
        self.n = nn.LayerNorm([6, 8, 8])
        self.d = nn.Conv2d(6, 5, 1)
        self.h = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.relu(self.d(torch.relu(self.n(self.c(x))))).mean((2, 3)))


class BN1Seq(nn.Module):
    """Batch norm over the features of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Linear(5, 8)
        self.b = nn.BatchNorm1d(8)
        self.h = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.relu(self.b(self.e(x).transpose(1, 2)).transpose(1, 2)))


class RotaryLike(nn.Module):
    """Rotary positions: the halves of a head turn together."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.size = 4
        self.q = nn.Linear(5, 8)
        self.k = nn.Linear(5, 8)
        self.v = nn.Linear(5, 8)
        self.o = nn.Linear(8, 3)
        f = torch.outer(torch.arange(6).float(), torch.tensor([1.0, 0.1]))
        self.register_buffer("cos", torch.cat([f.cos(), f.cos()], -1))
        self.register_buffer("sin", torch.cat([f.sin(), f.sin()], -1))

    def rot(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (l(x).view(n, t, self.heads, self.size).transpose(1, 2) for l in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rot(q), self.rot(k), v)
        return self.o(y.transpose(1, 2).reshape(n, t, -1))


class Involution(nn.Module):
    """Kernels per position, shared in groups of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.g = 2
        self.c = nn.Conv2d(3, 8, 1)
        self.r = nn.Conv2d(8, 4, 1)
        self.k = nn.Conv2d(4, 9 * 2, 1)
        self.h = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.c(x))
        n, c, h, w = x.shape
        k = self.k(torch.relu(self.r(x))).view(n, self.g, 1, 9, h, w)
        u = F.unfold(x, 3, padding=1).view(n, self.g, c // self.g, 9, h, w)
        return self.h((k * u).sum(3).view(n, c, h, w))


class CBAM(nn.Module):
    """Channel and spatial attention, by mean and by maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 8, 1)
        self.m = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        self.s = nn.Conv2d(2, 1, 3, padding=1)
        self.h = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        g = torch.sigmoid(self.m(x.mean((2, 3))) + self.m(x.amax((2, 3))))
        x = x * g[:, :, None, None]
        m = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return self.h(x * torch.sigmoid(self.s(m)))


class Hyper(nn.Module):
    """A weight computed from a learned code."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Linear(5, 8)
        self.w = nn.Linear(4, 8 * 6)
        self.z = nn.Parameter(torch.randn(4))
        self.h = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.e(x))
        weight = self.w(self.z).view(6, y.shape[-1])
        return self.h(torch.relu(F.linear(y, weight)))


class LSTMChain(nn.Module):
    """Two recurrent layers, attention pooling, and final states."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.LSTM(5, 6, batch_first=True)
        self.b = nn.GRU(6, 7, 2, batch_first=True, bidirectional=True)
        self.at = nn.Linear(14, 1)
        self.h = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.a(x)
        y, h = self.b(torch.relu(y))
        w = self.at(y).softmax(1)
        return self.h((w * y).sum(1)) + self.h(torch.cat([h[-2], h[-1]], -1))


class Minus(nn.Module):
    """Neighbouring features are subtracted: nothing can go."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Linear(5, 8)
        self.h = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.e(x)
        return self.h(torch.tanh(y[..., 1:] - y[..., :-1]))


class SSM(nn.Module):
    """A selective state space, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.d = 6
        self.n = 3
        self.i = nn.Linear(5, 12)
        self.A = nn.Parameter(torch.rand(6, 3))
        self.x = nn.Linear(6, 2 + 6)
        self.dt = nn.Linear(2, 6)
        self.D = nn.Parameter(torch.ones(6))
        self.o = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.i(x).chunk(2, -1)
        dt, into, out = self.x(u).split([2, self.n, self.n], -1)
        dt = F.softplus(self.dt(dt))
        decay = -self.A.exp()
        h = x.new_zeros(x.shape[0], self.d, self.n)
        ys = []
        for t in range(x.shape[1]):
            h = torch.exp(dt[:, t, :, None] * decay) * h + dt[:, t, :, None] * into[:, t, None] * u[:, t, :, None]
            ys.append((h * out[:, t, None]).sum(-1))
        return self.o((torch.stack(ys, 1) + u * self.D) * F.silu(z))


class WinAttn(nn.Module):
    """Attention inside windows with a learned bias."""

    def __init__(self) -> None:
        super().__init__()
        self.h = 2
        self.e = nn.Linear(5, 8)
        self.qkv = nn.Linear(8, 24)
        self.b = nn.Parameter(torch.randn(2, 3, 3))
        self.o = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x).view(4, 3, -1)
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.h, -1).permute(2, 0, 3, 1, 4)
        a = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + self.b).softmax(-1)
        return self.o((a @ v).transpose(1, 2).reshape(n, t, -1))


class Capsule(nn.Module):
    """Routing by agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Linear(5, 12)
        self.W = nn.Parameter(torch.randn(3, 4, 2, 4))
        self.o = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        u = self.e(x[:, 0]).view(-1, 3, 4)
        v = torch.einsum("nic,icod->niod", u, self.W)
        b = torch.zeros(u.shape[0], 3, 2, dtype=u.dtype)
        for _ in range(2):
            c = b.softmax(-1)
            t = (c[..., None] * v).sum(1)
            b = b + (v * t[:, None]).sum(-1)
        return self.o(t.flatten(1))


class Film(nn.Module):
    """Scale and shift computed from the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Linear(5, 8)
        self.c = nn.Linear(5, 16)
        self.h = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        g, b = self.c(x.mean(1, keepdim=True)).chunk(2, -1)
        return self.h(F.relu((1 + g) * self.e(x) + b))


class Spectral(nn.Module):
    """Spectral norm of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 8))
        self.b = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class SK(nn.Module):
    """A softmax over two branches decides."""

    def __init__(self) -> None:
        super().__init__()
        self.i = nn.Conv2d(3, 6, 1)
        self.a = nn.Conv2d(6, 8, 3, padding=1)
        self.b = nn.Conv2d(6, 8, 5, padding=2)
        self.f = nn.Linear(8, 4)
        self.g = nn.Linear(4, 16)
        self.o = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.i(x))
        y = torch.stack([self.a(x), self.b(x)], 1)
        w = self.g(torch.relu(self.f(y.sum(1).mean((2, 3))))).view(x.shape[0], 2, -1).softmax(1)
        return self.o((y * w[:, :, :, None, None]).sum(1).mean((2, 3)))


class Res2(nn.Module):
    """Parts that feed each other."""

    def __init__(self) -> None:
        super().__init__()
        self.w = 4
        self.i = nn.Conv2d(3, 16, 1)
        self.c = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.o = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        xs = torch.split(torch.relu(self.i(x)), self.w, 1)
        ys = []
        for k, c in enumerate(self.c):
            y = torch.relu(c(xs[k] if not ys else ys[-1] + xs[k]))
            ys.append(y)
        return self.o(torch.cat([*ys, xs[3]], 1))


class SharedHeads(nn.Module):
    """One integer serves two layers: they keep one head count, or another size."""

    def __init__(self) -> None:
        super().__init__()
        self.h = 2
        self.a = nn.Linear(5, 8)
        self.b = nn.Linear(5, 8)
        self.o = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        u = self.a(x).view(n, t, self.h, -1).softmax(2).flatten(2)
        v = self.b(x).view(n, t, self.h, -1).cos().flatten(2)
        return self.o(torch.cat([u, v], -1))


class ConvTG(nn.Module):
    """Transposed convolutions in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.t = nn.ConvTranspose2d(8, 12, 3, groups=4)
        self.t2 = nn.ConvTranspose2d(12, 12, 2, groups=12)
        self.o = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.t2(torch.relu(self.t(torch.tanh(self.a(x)))))))


class GroupShuffle(nn.Module):
    """Grouped convolutions with a shuffle between."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.g = nn.Conv2d(12, 12, 1, groups=3)
        self.g2 = nn.Conv2d(12, 12, 3, groups=3, padding=1)
        self.o = nn.Conv2d(12, 3, 1)
        self.k = 3

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.g(torch.tanh(self.a(x))))
        n, c, h, w = y.shape
        y = y.view(n, self.k, c // self.k, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.o(torch.relu(self.g2(y)))


class MQA(nn.Module):
    """One key-value head for all queries, by broadcasting."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 4
        self.d = 2
        self.q = nn.Linear(5, 8)
        self.kv = nn.Linear(5, 4)
        self.o = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.n, self.d).transpose(1, 2)
        k, v = self.kv(x).split(self.d, -1)
        w = (q @ k.unsqueeze(1).transpose(-1, -2)).softmax(-1)
        return self.o((w @ v.unsqueeze(1)).transpose(1, 2).reshape(b, t, -1))


class GQAsdpa(nn.Module):
    """Grouped queries inside torch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.d = 2
        self.q = nn.Linear(5, 16)
        self.k = nn.Linear(5, 4)
        self.v = nn.Linear(5, 4)
        self.o = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (l(x).view(b, t, -1, self.d).transpose(1, 2) for l in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).reshape(b, t, -1))


class QKNorm(nn.Module):
    """Norms of query and key."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 2
        self.q = nn.Linear(5, 8)
        self.k = nn.Linear(5, 8)
        self.v = nn.Linear(5, 8)
        self.qn = nn.LayerNorm(4)
        self.kn = nn.LayerNorm(4)
        self.o = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (l(x).view(b, t, self.n, 4).transpose(1, 2) for l in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(self.qn(q), self.kn(k), v).transpose(1, 2).reshape(b, t, -1))


class XCA(nn.Module):
    """Attention over channels; the width is heads times their size."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 2
        self.e = nn.Linear(5, 8)
        self.qkv = nn.Linear(8, 24)
        self.t = nn.Parameter(torch.ones(2, 1, 1))
        self.o = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.n, c // self.n).permute(2, 0, 3, 4, 1)
        a = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.t).softmax(-1)
        return self.o((a @ v).permute(0, 3, 1, 2).reshape(n, t, c))


class TiedIO(nn.Module):
    """One weight and its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 8)
        self.b = nn.Linear(8, 12)
        self.o = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x))
        z = torch.relu(self.b(y))
        return self.o(F.linear(z, self.b.weight.t()))


class HnCat(nn.Module):
    """Final states of all layers beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.r = nn.LSTM(5, 6, 2, bidirectional=True, batch_first=True)
        self.o = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.r(x)
        return self.o(h.transpose(0, 1).reshape(x.shape[0], -1))


class HnView(nn.Module):
    """Final states by layer and direction."""

    def __init__(self) -> None:
        super().__init__()
        self.r = nn.GRU(5, 6, 2, bidirectional=True, batch_first=True)
        self.o = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.r(x)
        return self.o(h.view(2, 2, x.shape[0], -1)[-1].sum(0))


class LearnedH0(nn.Module):
    """Learned initial states."""

    def __init__(self) -> None:
        super().__init__()
        self.r = nn.LSTM(5, 6, 2, batch_first=True)
        self.h0 = nn.Parameter(torch.randn(2, 1, 6))
        self.c0 = nn.Parameter(torch.randn(2, 1, 6))
        self.o = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        y, _ = self.r(x, (self.h0.expand(-1, n, -1).contiguous(), self.c0.repeat(1, n, 1)))
        return self.o(y)


class InstIn(nn.Module):
    """Scale and shift from a learned style."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.s = nn.Linear(4, 16)
        self.z = nn.Parameter(torch.randn(4))
        self.o = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.instance_norm(self.a(x))
        g, b = self.s(self.z).chunk(2)
        return self.o(torch.relu(y * g[:, None, None] + b[:, None, None]))


class Demod(nn.Module):
    """Modulated and demodulated kernels, one per example."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.w = nn.Parameter(torch.randn(6, 8, 3, 3))
        self.m = nn.Linear(4, 8)
        self.z = nn.Parameter(torch.randn(2, 4))
        self.o = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        n, c, h, w = x.shape
        st = self.m(self.z)
        k = self.w[None] * st[:, None, :, None, None]
        k = k * torch.rsqrt(k.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        y = F.conv2d(x.reshape(1, n * c, h, w), k.view(-1, c, 3, 3), padding=1, groups=n).view(n, -1, h, w)
        return self.o(torch.relu(y))


class ConvBN1(nn.Module):
    """Batch norm over flattened tokens, then all tokens in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 8)
        self.bn = nn.BatchNorm1d(8)
        self.b = nn.Linear(8 * 6, 7)
        self.o = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.a(x).flatten(0, 1))).view(x.shape[0], -1)
        return self.o(torch.relu(self.b(y)))


class Maxout(nn.Module):
    """The larger of two neighbours, by amax."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 12)
        self.o = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.o(y.view(*y.shape[:-1], y.shape[-1] // 2, 2).amax(-1))


class MaxoutMax(nn.Module):
    """The larger of two neighbours, by max."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 12)
        self.o = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.o(y.unflatten(-1, (-1, 2)).max(-1).values)


class ParamList(nn.Module):
    """Parameters in a list, used by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.ParameterList([torch.randn(8, 5), torch.randn(8), torch.randn(3, 8)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.p[0].T + self.p[1]) @ self.p[2].T


class Cumulative(nn.Module):
    """A decaying sum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 8)
        self.d = nn.Parameter(torch.rand(8))
        self.o = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        h = torch.zeros_like(y[:, 0])
        o = []
        for t in range(x.shape[1]):
            h = torch.sigmoid(self.d) * h + y[:, t]
            o.append(h)
        return self.o(torch.stack(o, 1).cumsum(1))


SEQUENCE = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

NASTY: dict[str, tuple[type[nn.Module], Tensor]] = {
    "ClsPos": (ClsPos, SEQUENCE),
    "MaskToken": (MaskToken, SEQUENCE),
    "PosInterp": (PosInterp, IMAGE),
    "Queries": (Queries, SEQUENCE),
    "DynConv": (DynConv, IMAGE),
    "WS": (WS, IMAGE),
    "GNN": (GNN, SEQUENCE),
    "MoE": (MoE, SEQUENCE),
    "FFTMix": (FFTMix, SEQUENCE),
    "SplitAttr": (SplitAttr, SEQUENCE),
    "SliceAttr": (SliceAttr, SEQUENCE),
    "LN3": (LN3, IMAGE),
    "BN1Seq": (BN1Seq, SEQUENCE),
    "RotaryLike": (RotaryLike, SEQUENCE),
    "Involution": (Involution, IMAGE),
    "CBAM": (CBAM, IMAGE),
    "Hyper": (Hyper, SEQUENCE),
    "LSTMChain": (LSTMChain, SEQUENCE),
    "Minus": (Minus, SEQUENCE),
    "SSM": (SSM, SEQUENCE),
    "WinAttn": (WinAttn, SEQUENCE),
    "Capsule": (Capsule, SEQUENCE),
    "Film": (Film, SEQUENCE),
    "Spectral": (Spectral, SEQUENCE),
    "SK": (SK, IMAGE),
    "Res2": (Res2, IMAGE),
    "SharedHeads": (SharedHeads, SEQUENCE),
    "ConvTG": (ConvTG, IMAGE),
    "GroupShuffle": (GroupShuffle, IMAGE),
    "MQA": (MQA, SEQUENCE),
    "GQAsdpa": (GQAsdpa, SEQUENCE),
    "QKNorm": (QKNorm, SEQUENCE),
    "XCA": (XCA, SEQUENCE),
    "TiedIO": (TiedIO, SEQUENCE),
    "HnCat": (HnCat, SEQUENCE),
    "HnView": (HnView, SEQUENCE),
    "LearnedH0": (LearnedH0, SEQUENCE),
    "InstIn": (InstIn, IMAGE),
    "Demod": (Demod, IMAGE),
    "ConvBN1": (ConvBN1, SEQUENCE),
    "Maxout": (Maxout, SEQUENCE),
    "MaxoutMax": (MaxoutMax, SEQUENCE),
    "ParamList": (ParamList, SEQUENCE),
    "Cumulative": (Cumulative, SEQUENCE),
}
