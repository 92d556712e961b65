"""Small networks, one per thing that a forward can do with channels. `NETS`: name -> factory of (model, inputs).

Each is written as a user would write it: nothing here knows of pruning. Index conventions: n example, c channel,
t step, d feature, h head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Built = tuple[nn.Module, Any]
Factory = Callable[[], Built]


def image(channels: int = 3, size: int = 8, n: int = 2) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def sequence(d: int, t: int = 5, n: int = 2) -> Tensor:
    return torch.randn(n, t, d, generator=torch.Generator().manual_seed(2))


def tokens(vocabulary: int = 11, t: int = 6, n: int = 2) -> Tensor:
    return torch.randint(0, vocabulary, (n, t), generator=torch.Generator().manual_seed(3))


# -- convolutions ----------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.short = (
            nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
            if stride > 1 or c_in != c_out
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body = nn.Sequential(ResidualBlock(8, 8), ResidualBlock(8, 12, 2), ResidualBlock(12, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


class Grouped(nn.Module):
    """Grouped, depthwise, and depthwise with a multiplier, in one chain."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.groups = nn.Conv2d(12, 24, 3, padding=1, groups=4)
        self.depth = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.multiply = nn.Conv2d(24, 48, 1, groups=24)
        self.mix = nn.Conv2d(48, 16, 1)
        self.wide = nn.Conv2d(16, 20, 3, padding=1, groups=2)
        self.out = nn.Conv2d(20, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.silu(self.groups(x))
        x = F.relu(self.multiply(F.gelu(self.depth(x))))
        x = F.relu(self.mix(x))
        return self.out(torch.tanh(self.wide(x))).amax((2, 3))


class Dense(nn.Module):
    """Every layer reads everything before it, put together by cat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.head = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and skip connections by cat."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down2, self.bn2 = nn.Conv2d(6, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.middle = nn.Conv2d(10, 14, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(14, 8, 2, stride=2)
        self.mix2 = nn.Conv2d(18, 10, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(10, 6, 2, stride=2, groups=2)
        self.mix1 = nn.Conv2d(12, 7, 3, padding=1)
        self.out = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(self.down1(x)))
        b = F.relu(self.bn2(self.down2(F.max_pool2d(a, 2))))
        y = F.relu(self.middle(F.max_pool2d(b, 2)))
        y = F.relu(self.mix2(torch.cat([self.up2(y), b], 1)))
        y = F.relu(self.mix1(torch.cat([self.up1(y), a], 1)))
        return self.out(y)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.b, self.head = nn.Conv2d(12, 10, 3, padding=1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.a(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(F.relu(self.b(x * gate)).mean((2, 3)))


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 24, 3, padding=1)
        self.c, self.out = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.b(torch.tanh(self.a(x))), 2)
        return F.pixel_shuffle(self.out(F.relu(self.c(x))), 2)


class PadModule(nn.Module):
    """The parameter-free shortcut of He et al. 2015, with the widths as integers of the module."""

    def __init__(self, front: int, behind: int) -> None:
        super().__init__()
        self.front, self.behind = front, behind

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.front, self.behind))


class PadLambda(nn.Module):
    """The same with the widths closed over by a lambda, as in the widely copied CIFAR code."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.call = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


class PadShortcut(nn.Module):
    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.bna = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.b, self.bnb = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.shortcut, self.head = shortcut, nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = self.bnb(self.b(F.relu(self.bna(self.a(x)))))
        return self.head(F.relu(y + self.shortcut(x)).mean((2, 3)))


class WaveNet(nn.Module):
    """Dilated causal convolutions, tanh times sigmoid, residual and skip paths."""

    def __init__(self, width: int = 8, skip: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, width, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(width, skip, 1) for _ in range(3))
        self.out = nn.Conv1d(skip, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), 0
        for i, (gate, residual, skip) in enumerate(zip(self.gates, self.residual, self.skips, strict=True)):
            a, b = gate(F.pad(x, (2**i, 0))).chunk(2, dim=1)
            y = torch.tanh(a) * torch.sigmoid(b)
            total, x = total + skip(y), x + residual(y)
        return self.out(F.relu(total))


class ConvLSTM(nn.Module):
    """One convolution makes all gates; the state starts from zeros of the module's own width."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(2 + hidden, 4 * hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, steps, _, height, width = x.shape
        h = x.new_zeros(n, self.hidden, height, width)
        c = torch.zeros_like(h)
        for t in range(steps):
            i, f, o, g = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


class Shuffle(nn.Module):
    """Channels interleaved by view and transpose, as ShuffleNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.left = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.out = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        one, two = x.chunk(2, dim=1)
        x = torch.cat([one, F.relu(self.left(two))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.out(x)


class Inplace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.a(x))
        x.clamp_(min=-1.0).mul_(1.5)
        y = self.b(x)
        y += x
        y = F.relu_(y)
        return self.head(y.flatten(2).mean(-1))


class InplaceSlice(nn.Module):
    """Writes through a view: the two halves of one tensor are changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.free, self.out = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x)).clone()
        y[..., :4] = y[..., :4] * 2.0
        return self.out(torch.relu(self.free(y)))


# -- norms -----------------------------------------------------------------------------------------------------------


class Norms(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.a, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), norm(12)
        self.b, self.norm2 = nn.Conv2d(12, 8, 3, padding=1), norm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.a(x)))
        return self.head(F.relu(self.norm2(self.b(x))).mean((2, 3)))


class ChannelsLast(nn.Module):
    """A ConvNeXt block: depthwise, LayerNorm over the channels, two linear layers, layer scale."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.stem, self.dw = nn.Conv2d(3, d, 2, 2), nn.Conv2d(d, d, 3, padding=1, groups=d)
        self.norm, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(3 * d, d)
        self.scale, self.head = nn.Parameter(torch.rand(d) + 0.5), nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.head((x + y).mean((2, 3)))


class OwnRMSNorm(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(d) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class MLPNorm(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(6, 10), norm(10), nn.Linear(10, 12), nn.Linear(12, 10)
        self.last, self.head = norm(10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.c(torch.relu(self.b(self.norm(x))))
        return self.head(self.last(x))


# -- attention -------------------------------------------------------------------------------------------------------


class OwnAttention(nn.Module):
    """One linear layer makes q, k and v; heads by reshape; torch's attention."""

    def __init__(self, d: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, d // heads
        self.stem, self.norm = nn.Linear(6, d), nn.LayerNorm(d)
        self.qkv, self.proj, self.head = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.proj(y.transpose(1, 2).reshape(n, t, self.heads * self.head_dim)))


class ExplicitAttention(nn.Module):
    """The classic: C // heads in the forward, a scale computed from it, softmax by hand."""

    def __init__(self, d: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.num_heads = heads
        self.stem, self.q, self.k = nn.Linear(6, d), nn.Linear(d, d), nn.Linear(d, d)
        self.v, self.proj, self.head = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        n, t, _ = x.shape
        q, k, v = self.q(x), self.k(x), self.v(x)
        size = q.shape[-1] // self.num_heads
        q, k, v = (y.view(n, t, self.num_heads, size).transpose(1, 2) for y in (q, k, v))
        weights = ((q @ k.transpose(-2, -1)) / math.sqrt(size)).softmax(-1)
        return self.head(x + self.proj((weights @ v).transpose(1, 2).reshape(n, t, -1)))


class GroupedQuery(nn.Module):
    """Four query heads share two key-value heads, by expand."""

    def __init__(self, d: int = 12, heads: int = 4, shared: int = 2, size: int = 3) -> None:
        super().__init__()
        self.heads, self.shared, self.size, self.times = heads, shared, size, heads // shared
        self.stem, self.q = nn.Linear(6, d), nn.Linear(d, heads * size, bias=False)
        self.k, self.v = nn.Linear(d, shared * size, bias=False), nn.Linear(d, shared * size, bias=False)
        self.o, self.head = nn.Linear(heads * size, d, bias=False), nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, t, _ = x.shape
        q = self.q(x).view(n, t, -1, self.size).transpose(1, 2)
        k, v = (layer(x).view(n, t, -1, self.size).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (
            y[:, :, None].expand(n, y.shape[1], self.times, t, self.size).reshape(n, -1, t, self.size) for y in (k, v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + self.o(y.transpose(1, 2).reshape(n, t, -1)))


class EinsumAttention(nn.Module):
    def __init__(self, d: int = 12, heads: int = 3, size: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(6, d)
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(d, heads, size) / 4) for _ in range(3))
        self.wo, self.head = nn.Parameter(torch.randn(heads, size, d) / 4), nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        q, k, v = (torch.einsum("btd,dhk->bhtk", x, w) for w in (self.wq, self.wk, self.wv))
        weights = torch.einsum("bhqk,bhsk->bhqs", q, k).softmax(-1)
        return self.head(x + torch.einsum("bhqs,bhsk,hkd->bqd", weights, v, self.wo))


class TorchAttention(nn.Module):
    def __init__(self, d: int = 12, heads: int = 3, *, batch_first: bool = True, weights: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(6, d)
        self.attention = nn.MultiheadAttention(d, heads, batch_first=batch_first)
        self.weights, self.head = weights, nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        y, _ = self.attention(x, x, x, need_weights=self.weights)
        return self.head(x + y)


class CrossAttention(nn.Module):
    """nn.MultiheadAttention with keys and values of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.memory = nn.Linear(6, 12), nn.Linear(6, 10)
        self.attention = nn.MultiheadAttention(12, 3, kdim=10, vdim=10, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, memory = torch.tanh(self.stem(x)), torch.tanh(self.memory(x))
        return self.head(q + self.attention(q, memory, memory)[0])


class Encoder(nn.Module):
    def __init__(self, *, norm_first: bool = False, activation: str = "relu") -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            12, 3, 20, dropout=0.1, batch_first=True, norm_first=norm_first, activation=activation
        )
        self.stem, self.encoder = nn.Linear(6, 12), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x)))


class Seq2Seq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.transformer = nn.Transformer(12, 4, 1, 1, 20, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.transformer(x, x[:, :3]))


class ConvAttention(nn.Module):
    """One head over the pixels of normalised maps (SHViT): products of activations, no weight between them."""

    def __init__(self) -> None:
        super().__init__()
        self.d_key, self.d_value = 6, 10
        self.qkv, self.norm = nn.Conv2d(3, 22, 1, bias=False), nn.BatchNorm2d(22)
        self.head = nn.Linear(self.d_value, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.norm(self.qkv(x)).flatten(2).split((self.d_key, self.d_key, self.d_value), 1)
        weights = (0.4 * (q.transpose(1, 2) @ k)).softmax(-1)
        return self.head((v @ weights.transpose(1, 2)).mean(2))


class ChunkedGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(6, 20), nn.Linear(10, 16), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        u, g = self.a(x).chunk(2, -1)
        x = u * torch.sigmoid(g)
        return self.out(torch.tanh(self.c(F.glu(self.b(x), -1))))


# -- recurrent -------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """An nn.RNNBase read by a linear layer; `use` says which of its results is read."""

    def __init__(self, kind: type[nn.RNNBase], use: str = "output", **options: Any) -> None:
        super().__init__()
        self.rnn = kind(5, 6, **options)
        width = self.rnn.proj_size or self.rnn.hidden_size
        self.batch_first, self.use = self.rnn.batch_first, use
        sides = 2 if self.rnn.bidirectional else 1
        self.head = nn.Linear(width * (sides if use in ("output", "last") else 1), 4)

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.rnn(x if self.batch_first else x.transpose(0, 1))
        if self.use == "output":
            return self.head(out)
        if self.use == "last":
            return self.head(out[:, -1] if self.batch_first else out[-1])
        return self.head(state[0][-1] if isinstance(state, tuple) else state[-1])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(11, 7), nn.LSTM(7, 6, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 4)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        out, _ = self.rnn(packed)
        padded, _ = pad_packed_sequence(out, batch_first=True)
        return self.head(padded)


class GivenState(nn.Module):
    """Initial states: zeros of the module's width, or a learned one."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__()
        self.rnn, self.head, self.hidden = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 4), 6
        self.start = nn.Parameter(torch.randn(1, 1, 6)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        start = x.new_zeros(1, n, self.hidden) if self.start is None else self.start.expand(1, n, -1).contiguous()
        return self.head(self.rnn(x, start)[0])


class CellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.hidden = nn.LSTMCell(5, 6), nn.GRUCell(6, 7), 6
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.hidden)
        s = x.new_zeros(x.shape[0], self.second.hidden_size)
        for t in range(x.shape[1]):
            h, c = self.first(x[:, t], (h, c))
            s = self.second(h, s)
        return self.head(s)


class EncoderDecoder(nn.Module):
    """The final state of one LSTM starts another."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(5, 6, batch_first=True), nn.LSTM(5, 6, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        return self.head(self.decoder(x.flip(1), state)[0])


class TiedLM(nn.Module):
    def __init__(self, vocabulary: int = 11, d: int = 8) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(vocabulary, d), nn.LSTM(d, d, 2, batch_first=True)
        self.decoder = nn.Linear(d, vocabulary)
        self.decoder.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.embed(ids))[0])


# -- weights of a special kind ---------------------------------------------------------------------------------------


class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = weight_norm(nn.Conv1d(3, 8, 3, padding=1))
        self.b = weight_norm(nn.Conv1d(8, 10, 3, padding=1))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.elu(self.b(F.elu(self.a(x)))).mean(-1))


class LoRA(nn.Module):
    def __init__(self, d_in: int, d_out: int, rank: int = 3) -> None:
        super().__init__()
        self.base = nn.Linear(d_in, d_out)
        self.base.weight.requires_grad_(False)
        self.down, self.up = nn.Linear(d_in, rank, bias=False), nn.Linear(rank, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both = nn.Linear(6, 8), nn.Linear(6, 7), nn.Bilinear(8, 7, 9)
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.both(torch.tanh(self.a(x)), torch.tanh(self.b(x)))))


class Shared(nn.Module):
    """One module called twice, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.twice, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.a.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(x)))))


class Branching(nn.Module):
    """A data-dependent if: the recorded input takes one side only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.yes, self.no = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(8, 10)
        self.free, self.head = nn.Linear(10, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = self.yes(x) if float(x.detach().sum()) > -1.0 else self.no(x)
        return self.head(torch.relu(self.free(torch.relu(x))))


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 9), nn.Linear(9, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        h = torch.relu(self.b(torch.relu(self.a(x))))
        return {"logits": self.c(h), "features": (h, x.shape[-1])}


class Buffers(nn.Module):
    """Per-channel buffers that take part in the forward, and an integer one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.register_buffer("shift", torch.randn(8))
        self.register_buffer("scale", torch.rand(7) + 0.5, persistent=False)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)) - self.shift)) * self.scale)


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Convolution1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 3), nn.ConvTranspose1d(8, 6, 3, stride=2)
        self.flat = nn.Linear(6 * 13, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.flat(torch.relu(self.b(torch.relu(self.a(x)))).flatten(1))))


class Convolution3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Conv3d(6, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.max_pool3d(F.relu(self.bn(self.a(x))), 2))).mean((2, 3, 4)))


def _wave() -> Tensor:
    return torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(4))


def _video(channels: int) -> Tensor:
    return torch.randn(2, channels, 4, 4, 4, generator=torch.Generator().manual_seed(5))


def _group_norm(groups: int) -> Callable[[int], nn.Module]:
    return lambda c: nn.GroupNorm(groups, c)


def _instance(c: int) -> nn.Module:
    return nn.InstanceNorm2d(c, affine=True, track_running_stats=True)


def _recurrent(kind: type[nn.RNNBase], use: str = "output", **options: Any) -> Factory:
    def make() -> Built:
        x = sequence(5)
        return Recurrent(kind, use, **options), (x,)

    return make


NETS: dict[str, Factory] = {
    "perceptron": lambda: (Perceptron(), sequence(6)[:, 0]),
    "residual": lambda: (Residual(), image()),
    "grouped": lambda: (Grouped(), image()),
    "dense": lambda: (Dense(), image()),
    "unet": lambda: (UNet(), image()),
    "squeeze_excite": lambda: (SqueezeExcite(), image()),
    "pixel_shuffle": lambda: (PixelShuffle(), image()),
    "pad_module": lambda: (PadShortcut(PadModule(4, 4)), image()),
    "pad_lambda": lambda: (PadShortcut(PadLambda(16)), image()),
    "wavenet": lambda: (WaveNet(), torch.randn(2, 2, 9, generator=torch.Generator().manual_seed(6))),
    "conv_lstm": lambda: (ConvLSTM(), torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(7))),
    "shuffle": lambda: (Shuffle(), image()),
    "inplace": lambda: (Inplace(), image()),
    "inplace_slice": lambda: (InplaceSlice(), sequence(6)),
    "conv1d": lambda: (Convolution1d(), _wave()),
    "conv3d": lambda: (Convolution3d(), _video(2)),
    "batch_norm_affine_off": lambda: (Norms(lambda c: nn.BatchNorm2d(c, affine=False)), image()),
    "group_norm_whole": lambda: (Norms(_group_norm(4)), image()),
    "group_norm_inside": lambda: (Norms(_group_norm(2)), image()),
    "group_norm_one": lambda: (Norms(_group_norm(1)), image()),
    "instance_norm": lambda: (Norms(_instance), image()),
    "instance_norm_plain": lambda: (Norms(nn.InstanceNorm2d), image()),
    "channels_last": lambda: (ChannelsLast(), image()),
    "layer_norm": lambda: (MLPNorm(nn.LayerNorm), sequence(6)),
    "rms_norm": lambda: (MLPNorm(nn.RMSNorm), sequence(6)),
    "own_rms_norm": lambda: (MLPNorm(OwnRMSNorm), sequence(6)),
    "own_attention": lambda: (OwnAttention(), sequence(6)),
    "explicit_attention": lambda: (ExplicitAttention(), sequence(6)),
    "grouped_query": lambda: (GroupedQuery(), sequence(6)),
    "einsum_attention": lambda: (EinsumAttention(), sequence(6)),
    "multihead": lambda: (TorchAttention(), sequence(6)),
    "multihead_weights": lambda: (TorchAttention(batch_first=False, weights=True), sequence(6)),
    "cross_attention": lambda: (CrossAttention(), sequence(6)),
    "encoder": lambda: (Encoder(), sequence(6)),
    "encoder_norm_first": lambda: (Encoder(norm_first=True, activation="gelu"), sequence(6)),
    "seq2seq": lambda: (Seq2Seq(), sequence(6)),
    "conv_attention": lambda: (ConvAttention(), image()),
    "chunked_glu": lambda: (ChunkedGLU(), sequence(6)),
    "lstm": _recurrent(nn.LSTM, batch_first=True),
    "lstm_time_first": _recurrent(nn.LSTM, "last"),
    "lstm_two_both_ways": _recurrent(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True),
    "lstm_three_dropout": _recurrent(nn.LSTM, "last", num_layers=3, dropout=0.2, batch_first=True),
    "lstm_projection": _recurrent(nn.LSTM, num_layers=2, proj_size=4, batch_first=True),
    "lstm_projection_both_ways": _recurrent(nn.LSTM, proj_size=4, bidirectional=True, batch_first=True),
    "lstm_state": _recurrent(nn.LSTM, "state", num_layers=2, batch_first=True),
    "lstm_no_bias": _recurrent(nn.LSTM, bias=False, num_layers=2, batch_first=True),
    "gru": _recurrent(nn.GRU, batch_first=True),
    "gru_two_both_ways": _recurrent(nn.GRU, num_layers=2, bidirectional=True, batch_first=True),
    "gru_state": _recurrent(nn.GRU, "state", num_layers=2, bidirectional=True),
    "rnn_tanh": _recurrent(nn.RNN, batch_first=True),
    "rnn_relu_three": _recurrent(nn.RNN, nonlinearity="relu", num_layers=3, batch_first=True),
    "packed": lambda: (Packed(), (tokens(), torch.tensor([6, 4]))),
    "zero_state": lambda: (GivenState(learned=False), sequence(5)),
    "learned_state": lambda: (GivenState(learned=True), sequence(5)),
    "cell_loop": lambda: (CellLoop(), sequence(5)),
    "encoder_decoder": lambda: (EncoderDecoder(), sequence(5)),
    "tied_lm": lambda: (TiedLM(), tokens()),
    "weight_norm": lambda: (WeightNorm(), _wave()),
    "lora": lambda: (nn.Sequential(LoRA(6, 10), nn.Tanh(), LoRA(10, 8), nn.ReLU(), nn.Linear(8, 3)), sequence(6)),
    "bilinear": lambda: (Bilinear(), sequence(6)),
    "shared": lambda: (Shared(), sequence(6)),
    "branching": lambda: (Branching(), sequence(6)),
    "dict_output": lambda: (DictOutput(), {"x": sequence(6)}),
    "buffers": lambda: (Buffers(), sequence(6)),
    "prelu": lambda: (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 6, 3), nn.PReLU(), nn.Flatten(), nn.Linear(96, 4)),
        image(),
    ),
}


def build(name: str, seed: int = 0) -> Built:
    """The network of that name, with statistics and scales that hide nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, inputs = NETS[name]()
    return randomise(model, seed), inputs


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms uneven statistics and scales, in place: with the initial zeros and ones a wrong index goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        for module in model.modules():
            if "Norm" in type(module).__name__:
                for name, parameter in module.named_parameters(recurse=False):
                    noise = torch.rand(parameter.shape, generator=generator)
                    parameter.copy_(noise + 0.5 if name == "weight" else noise - 0.5)
            if isinstance(module, nn.MultiheadAttention) and module.in_proj_bias is not None:
                module.in_proj_bias.copy_(0.1 * torch.randn(module.in_proj_bias.shape, generator=generator))
                module.out_proj.bias.copy_(0.1 * torch.randn(module.out_proj.bias.shape, generator=generator))
    return model.eval()
