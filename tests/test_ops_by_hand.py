"""Inexact groups, recurrent cells, attention and costs: answers written out as formulas, on the survivors alone.

Zeroing says nothing about a statistic that runs over the cut axis. What a cut must compute there is plain: the same
formula, with fewer entries. Index conventions: n example, t step, d feature, k kept indices, h head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.nets import build
from helpers.random_plans import keep_all, plan_of, random_plan
from secateur._cost import cost, full_counts
from secateur._couple import couple
from secateur._cut import cut
from secateur._replay import FUSED
from secateur._trace import trace
from secateur._units import call
from secateur.ops import normalization
from secateur.ops._rule import KEEPS_ZEROS
from secateur.ops.modules import make_ready
from secateur.schema.groups import Groups


def keeping(model: nn.Module, inputs: Any, param: str, axis: int, kept: Sequence[int]) -> nn.Module:
    """The verified cut that keeps these units of the group that holds an axis of a parameter; all else stays."""
    groups = couple(trace(model, inputs))
    group = next(g for g in groups.groups if any((m.param, m.axis) == (param, axis) for m in g.members))
    units = keep_all(groups)
    units[group.index] = list(kept)
    small, receipt = cut(model, groups, plan_of(groups, units))
    assert receipt.verification is not None
    return small


# -- norms and other statistics --------------------------------------------------------------------------------------

K = [0, 2, 3, 7]


def _sliced(model: Any, statistic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    y = x @ model.a.weight[K].T + model.a.bias[K]
    return statistic(y) @ model.head.weight[:, K].T + model.head.bias


class Between(nn.Module):
    """A statistic over features between two linear layers."""

    def __init__(self, statistic: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.head, self.statistic = nn.Linear(5, 8), nn.Linear(8, 3), statistic

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.statistic(self.a(x)))


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda y: F.layer_norm(y, y.shape[-1:]),
    "layer_norm_written_out": lambda y: (
        (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-5) ** 0.5
    ),
    "rms_norm": lambda y: F.rms_norm(y, y.shape[-1:]),
    "softmax": lambda y: y.softmax(-1),
    "log_softmax": lambda y: y.log_softmax(-1),
    "softmax_with_temperature": lambda y: (y / 0.3).softmax(-1) * y,
    "mean": lambda y: y - y.mean(-1, keepdim=True),
    "standard_deviation": lambda y: y / y.std(-1, keepdim=True),
    "maximum": lambda y: y / y.amax(-1, keepdim=True),
    "log_sum_exp": lambda y: y - y.logsumexp(-1, keepdim=True),
    "product": lambda y: y * y.prod(-1, keepdim=True),
    "norm": lambda y: y / y.norm(dim=-1, keepdim=True),
    "sum_of_squares": lambda y: y * y.square().sum(-1, keepdim=True),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_over_the_cut_axis_runs_over_the_survivors(name: str) -> None:
    model, x = Between(STATISTICS[name]).eval(), torch.randn(4, 5)
    small = keeping(model, x, "a.weight", 0, K)
    torch.testing.assert_close(small(x), _sliced(model, STATISTICS[name], x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_a_group_norm_takes_its_statistics_over_the_channels_left_in_each_group(n_groups: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(n_groups, 8), nn.Conv2d(8, 2, 1)).eval()
    model[1].weight.data.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 4, 4)
    small = keeping(model, x, "0.weight", 0, [0, 2, 3])
    k = [0, 2, 3] if n_groups == 1 else [0, 2, 3, 4, 6, 7]  # by index in every group
    y = F.conv2d(x, model[0].weight[k], model[0].bias[k])
    parts = y.view(2, n_groups, -1)
    parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    y = parts.view(y.shape) * model[1].weight[k].view(-1, 1, 1) + model[1].bias[k].view(-1, 1, 1)
    expected = F.conv2d(y, model[2].weight[:, k], model[2].bias)
    torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-5)
    assert small[1].num_groups == n_groups


def test_whole_groups_of_a_group_norm_go_one_by_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1)).eval()
    x = torch.randn(2, 3, 4, 4)
    small = keeping(model, x, "0.weight", 0, [0, 3])
    assert (small[1].num_groups, small[1].num_channels) == (2, 4)
    k = [0, 1, 6, 7]
    y = F.group_norm(F.conv2d(x, model[0].weight[k], model[0].bias[k]), 2)
    torch.testing.assert_close(small(x), F.conv2d(y, model[2].weight[:, k], model[2].bias))


def test_the_residual_width_of_an_encoder_goes_through_its_layer_norms() -> None:
    model, x = build("layer_norm")
    k = [1, 4, 5, 8]
    small = keeping(model, x, "a.weight", 0, k)
    h = x @ model.a.weight[k].T + model.a.bias[k]
    n1, n2 = model.norm, model.last
    y = F.layer_norm(h, (4,), n1.weight[k], n1.bias[k])
    y = torch.relu(y @ model.b.weight[:, k].T + model.b.bias) @ model.c.weight[k].T + model.c.bias[k]
    expected = F.layer_norm(h + y, (4,), n2.weight[k], n2.bias[k]) @ model.head.weight[:, k].T + model.head.bias
    torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-5)


# -- attention -------------------------------------------------------------------------------------------------------


def attention_by_hand(model: Any, x: Tensor, heads: Sequence[int], scale: float) -> Tensor:
    """softmax(q k^T scale) v for these heads of nn.MultiheadAttention, each by itself."""
    a, size = model.attention, model.attention.head_dim
    y = torch.tanh(model.stem(x))
    q, k, v = F.linear(y, a.in_proj_weight, a.in_proj_bias).chunk(3, -1)
    out = a.out_proj.bias.expand(y.shape)
    for h in heads:
        here = slice(h * size, (h + 1) * size)
        weights = (q[..., here] @ k[..., here].transpose(-1, -2) * scale).softmax(-1)
        out = out + weights @ v[..., here] @ a.out_proj.weight[:, here].T
    return model.head(y + out)


@pytest.mark.parametrize("heads", [[0], [2], [0, 2]], ids=str)
def test_heads_of_torch_attention_go_one_by_one(heads: list[int]) -> None:
    model, x = build("multihead")
    small = keeping(model, x, "attention.in_proj_weight", 0, heads)
    torch.testing.assert_close(small(x), attention_by_hand(model, x, heads, 0.5), rtol=1e-5, atol=1e-5)
    assert small.attention.num_heads == len(heads)


def test_the_width_of_torch_attention_goes_and_its_heads_keep_their_size() -> None:
    model, x = build("multihead")
    k = [0, 1, 5, 7, 10]
    small = keeping(model, x, "stem.weight", 0, k)
    assert (small.attention.embed_dim, small.attention.num_heads, small.attention.head_dim) == (5, 3, 4)
    by_hand = copy.deepcopy(model)
    gone = [i for i in range(12) if i not in k]
    with torch.no_grad():
        by_hand.attention.in_proj_weight[:, gone] = 0.0
        by_hand.head.weight[:, gone] = 0.0
    torch.testing.assert_close(small(x), attention_by_hand(by_hand, x, range(3), 0.5), rtol=1e-5, atol=1e-5)


# -- recurrent -------------------------------------------------------------------------------------------------------


def lstm_by_hand(rnn: nn.LSTM, x: Tensor, k: Sequence[int]) -> Tensor:
    """One layer, one direction, one example after the other, on the hidden units k alone."""
    size = rnn.hidden_size
    rows = [g * size + u for g in range(4) for u in k]
    w, u = rnn.weight_ih_l0[rows], rnn.weight_hh_l0[rows][:, list(k)]
    b = rnn.bias_ih_l0[rows] + rnn.bias_hh_l0[rows]
    h = c = x.new_zeros(x.shape[0], len(k))
    out = []
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ w.T + h @ u.T + b).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out, 1)


def gru_by_hand(rnn: nn.GRU, x: Tensor, k: Sequence[int]) -> Tensor:
    size = rnn.hidden_size
    rows = [g * size + u for g in range(3) for u in k]
    w, u, bi, bh = (
        rnn.weight_ih_l0[rows],
        rnn.weight_hh_l0[rows][:, list(k)],
        rnn.bias_ih_l0[rows],
        rnn.bias_hh_l0[rows],
    )
    h = x.new_zeros(x.shape[0], len(k))
    out = []
    for t in range(x.shape[1]):
        ri, zi, ni = (x[:, t] @ w.T + bi).chunk(3, -1)
        rh, zh, nh = (h @ u.T + bh).chunk(3, -1)
        r, z = (ri + rh).sigmoid(), (zi + zh).sigmoid()
        h = (1 - z) * (ni + r * nh).tanh() + z * h
        out.append(h)
    return torch.stack(out, 1)


@pytest.mark.parametrize(("name", "by_hand"), [("lstm", lstm_by_hand), ("gru", gru_by_hand)])
def test_a_recurrent_layer_without_some_hidden_units(name: str, by_hand: Any) -> None:
    model, (x,) = build(name)
    k = [1, 2, 5]
    small = keeping(model, (x,), "rnn.weight_hh_l0", 1, k)
    expected = by_hand(model.rnn, x, k) @ model.head.weight[:, k].T + model.head.bias
    torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-5)
    assert small.rnn.hidden_size == 3


def test_a_smaller_recurrent_layer_is_a_plain_torch_module_on_packed_sequences() -> None:
    model, inputs = build("packed")
    groups = couple(trace(model, inputs))
    small, _ = cut(model, groups, random_plan(groups, 0))
    assert type(small.rnn) is nn.LSTM
    ids, lengths = inputs
    one_by_one = [small(ids[i : i + 1, : int(n)], lengths[i : i + 1]) for i, n in enumerate(lengths)]
    together = small(ids, lengths)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(together[i, :n], one_by_one[i][0], rtol=1e-5, atol=1e-6)


# -- costs -----------------------------------------------------------------------------------------------------------


def flops(model: nn.Module, inputs: Any) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(copy.deepcopy(model).eval(), inputs)
    return int(counter.get_total_flops())


COUNTED = (
    "perceptron residual grouped dense unet squeeze_excite pixel_shuffle pad_module wavenet conv_lstm conv1d conv3d "
    "channels_last own_attention explicit_attention grouped_query chunked_glu lora weight_norm shared multihead_weights"
).split()


@pytest.mark.parametrize("name", COUNTED)
def test_macs_are_half_the_flops_that_torch_counts_before_and_after(name: str) -> None:
    model, inputs = build(name)
    groups: Groups = couple(trace(model, inputs))
    assert 2 * cost(groups.costs, full_counts(groups)).macs == flops(model, inputs)
    for seed in range(3):
        plan = random_plan(groups, seed)
        small, _ = cut(model, groups, plan, verify=False)
        assert 2 * cost(groups.costs, [len(k) for k in plan.kept]).macs == flops(small, inputs)


def test_macs_of_a_convolution_by_formula() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    groups = couple(trace(model, torch.randn(2, 3, 8, 8)))
    places = 2 * 4 * 4
    for n in (8, 5, 1):
        assert cost(groups.costs, [n]).macs == places * (n * 3 * 9 + 4 * n)
        assert cost(groups.costs, [n]).params == n * 27 + n + 4 * n + 4


def test_macs_of_a_recurrent_layer_by_formula() -> None:
    model, (x,) = build("lstm")
    groups = couple(trace(model, (x,)))
    steps = x.shape[0] * x.shape[1]
    for n in (6, 4, 1):
        assert cost(groups.costs, [n]).macs == steps * (4 * n * (5 + n) + 4 * n)


def test_cells_that_are_one_operation_on_a_gpu_are_taken_apart_into_what_they_compute() -> None:
    torch.manual_seed(0)
    x, h, c = torch.randn(3, 5).double(), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    for bias in (True, False):
        lstm, gru = nn.LSTMCell(5, 4, bias=bias).double(), nn.GRUCell(5, 4, bias=bias).double()
        for cell in (lstm, gru):
            parts = (F.linear(x, cell.weight_ih), F.linear(h, cell.weight_hh))
            biases = (cell.bias_ih, cell.bias_hh) if bias else ()
            fused = FUSED[f"aten._thnn_fused_{type(cell).__name__[:-4].lower()}_cell.default"]
            if cell is lstm:
                for a, b in zip(fused(*parts, c, *biases)[:2], lstm(x, (h, c)), strict=True):
                    torch.testing.assert_close(a, b)
            else:
                torch.testing.assert_close(fused(*parts, h, *biases)[0], gru(x, h))


@pytest.mark.parametrize("padded", [False, True])
def test_the_hint_that_a_mask_is_causal_is_taken_as_torch_takes_it(padded: bool) -> None:
    """The mask is not looked at then, unless there is padding too: one that is not causal tells the two apart."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    swapped = copy.deepcopy(attention)
    make_ready(swapped, "multihead_attention")
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    other = torch.full((5, 5), -math.inf, dtype=torch.float64).triu(2)
    padding = torch.zeros(2, 5, dtype=torch.float64).index_fill(1, torch.tensor([4]), -math.inf) if padded else None
    given = {"attn_mask": other, "is_causal": True, "need_weights": False, "key_padding_mask": padding}
    torch.testing.assert_close(swapped(x, x, x, **given)[0], attention(x, x, x, **given)[0])
    for model in (attention, swapped):
        with pytest.raises(RuntimeError, match="is_causal hint"):
            model(x, x, x, is_causal=True, need_weights=False)


def test_all_kernels_of_batch_norm_leave_zeros_where_everything_is_zero() -> None:
    """One that was left out made groups inexact on a GPU that are exact on a CPU."""
    kernels = {name for name, rule in normalization.RULES if rule is normalization.batch_norm}
    assert "cudnn_batch_norm" in kernels
    assert kernels <= KEEPS_ZEROS
