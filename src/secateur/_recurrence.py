"""torch.lstm, gru, rnn_tanh and rnn_relu taken apart, so that what reads a hidden unit can be watched.

The fused calls hide the products W_hh h. Here a layer in one direction is one call of autograd, whose way back is
written by hand: a step is a few operations on numbers that lie close together, and there is one product over time for
the gradient of a weight. With a[t] = W_ih x[t] + b_ih, b[t] = W_hh h[t-1] + b_hh, and d for the derivative of the
loss, of one step:

    LSTM    i, f, o = sigmoid(a + b);  g = tanh(a + b);  c' = f c + i g;  h' = o tanh c'
            dc' += dh' o (1 - tanh² c');  dc = dc' f;  d(a + b) = (dc' g i (1 - i), dc' c f (1 - f), dc' i (1 - g²),
            dh' tanh c' o (1 - o))
    GRU     r, z = sigmoid(a + b);  n = tanh(a_n + r b_n);  h' = n + z (h - n)
            da_n = dh' (1 - z) (1 - n²);  db_n = da_n r;  d(a + b) = (da_n b_n r (1 - r), dh' (h - n) z (1 - z))
    tanh    h' = tanh(a + b);  d(a + b) = dh' (1 - h'²)
    ReLU    h' = max(a + b, 0);  d(a + b) = dh' where h' > 0

and dh = W_hh' db, which is what W_hh reads, plus z dh' of a GRU, plus what the output at t - 1 is used for elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

RECURRENT: Mapping[Any, str] = {
    torch.lstm: "lstm",
    torch.gru: "gru",
    torch.rnn_tanh: "tanh",
    torch.rnn_relu: "relu",
}

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Sink = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True, slots=True)
class Watch:
    """How what a weight reads is watched, if at all.

    Attributes:
        of: from a weight, and what it reads in all steps [T, N, C], to what is shown (that, dloss/dthat) on every way
            back; None where nobody looks.
        root: a leaf that every watched call depends on.
    """

    of: Callable[[Tensor, Tensor], Sink | None]
    root: Tensor | None


def unrolled(
    kind: str,
    linear: Linear,
    watch: Watch,
    x: Tensor,
    state: Any,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """A recurrent network layer by layer: products with inputs through `linear`, those with hidden units watched.

    The other arguments are those of `torch.lstm` and its siblings; so are the results: output, h_n, c_n of an LSTM.
    Without dropout.
    """
    h0, c0 = state if kind == "lstm" else (state, None)
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    x = x.transpose(0, 1) if batch_first else x  # [T, N, I]
    last_h, last_c = [], []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            w_ih, w_hh, *rest = params[k * each : (k + 1) * each]
            b_ih, b_hh = rest[:2] if has_biases else (None, None)
            w_hr = rest[-1] if each % 2 else None  # a projection is the odd one
            way = _Way(kind=kind, backwards=bool(direction), watch=watch)
            start = None if c0 is None else c0[k]
            if has_biases and kind != "gru":  # only the GRU needs the two products apart
                b_ih, b_hh = rest[0] + rest[1], None
            out, c = _apply(way, linear(x, w_ih, b_ih), b_hh, h0[k], start, w_hh, w_hr, watch.root)
            outputs.append(out)
            last_h.append(out[0 if direction else -1])
            last_c.extend([] if c is None else [c])
        x = torch.cat(outputs, dim=-1) if bidirectional else outputs[0]
    out = x.transpose(0, 1) if batch_first else x
    return (out, torch.stack(last_h), torch.stack(last_c)) if last_c else (out, torch.stack(last_h))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """What one layer in one direction is, besides its numbers."""

    kind: str
    backwards: bool
    watch: Watch

    def order(self, length: int) -> range:
        """The steps as they are taken."""
        return range(length - 1, -1, -1) if self.backwards else range(length)


class _Layer(torch.autograd.Function):
    """One layer in one direction: (output [T, N, P], last c [N, H] of an LSTM). P = H without a projection w_hr."""

    @staticmethod
    def forward(
        ctx: Any,
        way: _Way,
        ahead: Tensor,
        b_hh: Tensor | None,
        h0: Tensor,
        c0: Tensor | None,
        w_hh: Tensor,
        w_hr: Tensor | None,
        root: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """All steps. `ahead` is written over, and b_hh is in it already unless the cell is a GRU."""
        given = (ahead, b_hh, h0, c0, w_hh, w_hr)
        wide = torch.promote_types(ahead.dtype, h0.dtype)  # under autocast they differ
        x, bias, h, c, w, p = (None if v is None else v.to(wide) for v in given)
        assert x is not None and h is not None and w is not None
        cell = _CELLS[way.kind](x, bias, None if c is None else c.clone())
        hidden = x.new_empty(*x.shape[:2], w.shape[0] // cell.gates)
        out = hidden if p is None else x.new_empty(*x.shape[:2], len(p))
        hiddens, outs, first, w_t = hidden.unbind(), out.unbind(), h, w.t()
        for t in way.order(len(x)):
            cell.products[t].addmm_(h, w_t)
            cell.step(t, h, hiddens[t])
            h = hiddens[t] if p is None else torch.mm(hiddens[t], p.t(), out=outs[t])
        ends = [out[1:], first.unsqueeze(0)] if way.backwards else [first.unsqueeze(0), out[:-1]]
        read = torch.cat(ends)  # the h before every step
        # Nothing that is handed out is kept: it may be changed in place, and would keep itself alive.
        last, cell.c = cell.c, None
        ctx.way, ctx.cell, ctx.read, ctx.hidden, ctx.weights = way, cell, read, None if p is None else hidden, (w, p)
        ctx.sinks = (way.watch.of(w_hh, read), None if w_hr is None else way.watch.of(w_hr, hidden))
        ctx.dtypes = [None if v is None else v.dtype for v in given]
        ctx.set_materialize_grads(False)
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_c: Tensor | None) -> tuple[Tensor | None, ...]:
        """All steps back."""
        cell, read, hidden, (w, p) = ctx.cell, ctx.read, ctx.hidden, ctx.weights
        _, ahead, bias, h0, c0, by_w, by_p, root = ctx.needs_input_grad
        d, d_read = read.new_empty(*read.shape[:2], len(w)), torch.empty_like(read)
        d_out, d_hidden = (read[:0], read[:0]) if p is None else (torch.empty_like(read), torch.empty_like(hidden))
        ds, d_reads, grads = d.unbind(), d_read.unbind(), None if grad is None else grad.to(d).unbind()
        handed = torch.zeros_like(read[0])
        cell.d_c = None if grad_c is None else grad_c.to(d)
        for t in reversed(ctx.way.order(len(read))):
            dh = handed if grads is None else handed + grads[t]
            if p is not None:
                d_out[t] = dh
                dh = torch.mm(dh, p, out=d_hidden[t])
            direct = cell.back(t, dh, ds[t])
            handed = torch.mm(ds[t], w, out=d_reads[t])
            if direct is not None:
                handed = handed + direct
        for sink, seen, d_seen in zip(ctx.sinks, (read, hidden), (d_read, d_hidden), strict=True):
            if sink is not None:
                sink(seen, d_seen)
        found = (
            cell.d_ahead(d) if ahead else None,
            d.sum((0, 1)) if bias else None,
            handed if h0 else None,
            cell.d_c if c0 else None,
            _over_time(d, read, w) if by_w else None,
            _over_time(d_out, hidden, p) if by_p else None,
        )
        cast = [v if v is None else v.to(dtype) for v, dtype in zip(found, ctx.dtypes, strict=True)]
        return None, *cast, torch.zeros((), device=d.device) if root else None


_apply: Callable[..., tuple[Tensor, Tensor | None]] = _Layer.apply
_sigmoid_back = torch.ops.aten.sigmoid_backward.grad_input
_tanh_back = torch.ops.aten.tanh_backward.grad_input


def _over_time(d: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """dloss/dw where y = w x in every step, from d = dloss/dy."""
    return torch.mm(d.flatten(0, 1).t(), x.flatten(0, 1), out=torch.empty_like(w))


class _Cell(ABC):
    """One layer's steps, with what the way back needs of each.

    Attributes:
        products: T of [N, K H]: W_hh h is added to them, and a step leaves there what it makes of them.
        c: of an LSTM, after the last step taken.  d_c: on the way back, dloss/dc before the step gone through.
    """

    gates = 1
    c: Tensor | None = None
    d_c: Tensor | None = None

    def __init__(self, ahead: Tensor, bias: Tensor | None, c0: Tensor | None) -> None:
        self.products = ahead.unbind()

    @abstractmethod
    def step(self, t: int, h: Tensor, out: Tensor) -> None:
        """Write the new h to `out`, from the h before."""

    @abstractmethod
    def back(self, t: int, dh: Tensor, d: Tensor) -> Tensor | None:
        """Write dloss/dproducts to `d`, from dh after the step; what the step hands directly to the h before it."""

    def d_ahead(self, d: Tensor) -> Tensor:
        """dloss/dahead, from dloss/dproducts of all steps."""
        return d


class _Tanh(_Cell):
    def step(self, t: int, h: Tensor, out: Tensor) -> None:
        out.copy_(self.products[t].tanh_())

    def back(self, t: int, dh: Tensor, d: Tensor) -> None:
        _tanh_back(dh, self.products[t], grad_input=d)


class _ReLU(_Cell):
    def step(self, t: int, h: Tensor, out: Tensor) -> None:
        out.copy_(self.products[t].relu_())

    def back(self, t: int, dh: Tensor, d: Tensor) -> None:
        torch.mul(dh, self.products[t] > 0, out=d)


class _LSTM(_Cell):
    gates = 4

    def __init__(self, ahead: Tensor, bias: Tensor | None, c0: Tensor | None) -> None:
        super().__init__(ahead, bias, c0)
        gates = ahead.unflatten(-1, (4, -1))
        self.two, self.each = gates[:, :, :2].unbind(), _by_step(gates)
        self.c, self.kept = c0, [(ahead, ahead)] * len(ahead)

    def step(self, t: int, h: Tensor, out: Tensor) -> None:
        (i, f, g, o), before = self.each[t], self.c
        assert before is not None
        self.two[t].sigmoid_()
        g.tanh_()
        o.sigmoid_()
        self.c = torch.mul(f, before).addcmul_(i, g)
        bent = self.c.tanh()
        self.kept[t] = before, bent
        torch.mul(o, bent, out=out)

    def back(self, t: int, dh: Tensor, d: Tensor) -> None:
        (i, f, g, o), (before, bent) = self.each[t], self.kept[t]
        d_i, d_f, d_g, d_o = d.chunk(4, 1)
        d_c = _tanh_back(dh * o, bent, grad_input=torch.empty_like(bent))
        if self.d_c is not None:
            d_c += self.d_c
        _sigmoid_back(d_c * g, i, grad_input=d_i)
        _sigmoid_back(d_c * before, f, grad_input=d_f)
        _tanh_back(d_c * i, g, grad_input=d_g)
        _sigmoid_back(dh * bent, o, grad_input=d_o)
        self.d_c = d_c.mul_(f)


class _GRU(_Cell):
    gates = 3

    def __init__(self, ahead: Tensor, bias: Tensor | None, c0: Tensor | None) -> None:
        products = torch.zeros_like(ahead) if bias is None else bias.expand_as(ahead).clone()
        super().__init__(products, bias, c0)
        gates, aheads = products.unflatten(-1, (3, -1)), ahead.unflatten(-1, (3, -1))
        self.two, self.each = gates[:, :, :2].unbind(), _by_step(gates)
        self.two_ahead, self.a_n = aheads[:, :, :2].unbind(), aheads[:, :, 2].unbind()
        self.kept = [(ahead, ahead)] * len(ahead)
        self.d_a_n = torch.empty_like(aheads[:, :, 2])

    def step(self, t: int, h: Tensor, out: Tensor) -> None:
        r, z, b_n = self.each[t]
        self.two[t].add_(self.two_ahead[t]).sigmoid_()
        n = torch.addcmul(self.a_n[t], r, b_n).tanh_()
        gap = h - n
        self.kept[t] = n, gap
        torch.addcmul(n, z, gap, out=out)

    def back(self, t: int, dh: Tensor, d: Tensor) -> Tensor:
        (r, z, b_n), (n, gap) = self.each[t], self.kept[t]
        d_r, d_z, d_b_n = d.chunk(3, 1)
        direct = dh * z
        d_a_n = _tanh_back(dh - direct, n, grad_input=self.d_a_n[t])
        _sigmoid_back(d_a_n * b_n, r, grad_input=d_r)
        _sigmoid_back(dh * gap, z, grad_input=d_z)
        torch.mul(d_a_n, r, out=d_b_n)
        return direct

    def d_ahead(self, d: Tensor) -> Tensor:
        ahead = d.clone()
        ahead.unflatten(-1, (3, -1))[:, :, 2] = self.d_a_n
        return ahead


def _by_step(gates: Tensor) -> list[tuple[Tensor, ...]]:
    """From [T, N, K, H]: T times the K gates."""
    return list(zip(*(gate.unbind() for gate in gates.unbind(2)), strict=True))


_CELLS: Mapping[str, type[_Cell]] = {"lstm": _LSTM, "gru": _GRU, "tanh": _Tanh, "relu": _ReLU}
