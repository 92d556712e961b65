"""Every family of op rules has its law: cut equals silenced, on a minimal network around the operation.

The network is `head(op(tanh(body(x))))`: the operation stands between a layer that writes prunable features and one
that reads them. Each case says what the rule leaves prunable: `all` of the body's rows, some (`part`), or `none`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.oracle import assert_equal_to_silenced, exact_only
from helpers.random_plans import random_plan
from secateur._couple import couple
from secateur._cut import cut
from secateur._trace import trace
from secateur.ops import RULES
from secateur.schema.groups import Groups

Operation = Callable[[Tensor], Tensor]


class Around(nn.Module):
    """Features [n, t, d] (or an image [n, d, s, s]) through an operation, then a layer that reads whatever comes."""

    def __init__(self, op: Operation, *, image: bool = False, d: int = 8) -> None:
        super().__init__()
        self.op = op
        self.body: nn.Module = nn.Conv2d(3, d, 1) if image else nn.Linear(5, d)
        sample = torch.zeros(2, d, 4, 4) if image else torch.zeros(2, 6, d)
        out = op(sample)
        self.flat = image
        self.head: nn.Module = nn.Conv2d(out.shape[1], 3, 1) if image else nn.Linear(out.shape[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.op(torch.tanh(self.body(x))))


def sequence_input() -> Tensor:
    return torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))


def image_input() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def prunable(groups: Groups) -> str:
    rows = sum(sum(u >= 0 for u in m.units) for g in groups.groups for m in g.members if m.param == "body.weight")
    return {0: "none", 8: "all"}.get(rows, "part")


def hold(model: nn.Module, inputs: Any, leaves: str) -> None:
    model.eval()
    groups = couple(trace(model, inputs))
    assert prunable(groups) == leaves, [(f.param, f.axis, f.reason) for f in groups.frozen]
    for seed in range(3 if groups.groups else 0):
        plan = random_plan(groups, seed, may_go=exact_only)
        small, _ = cut(model, groups, plan, verify=False)
        if all(g.exact or len(k) == g.n_units for g, k in zip(groups.groups, plan.kept, strict=True)):
            assert_equal_to_silenced(model, small, groups, plan, inputs)
        _, receipt = cut(model, groups, random_plan(groups, seed))
        assert receipt.verification is not None
        assert receipt.verification.error <= 1e-9


# -- pointwise -------------------------------------------------------------------------------------------------------

UNARY = (
    "abs acos asin asinh atan ceil cos cosh erf erfc exp exp2 expm1 floor log1p neg reciprocal round sigmoid sign sin "
    "sinh sqrt square tan tanh trunc digamma lgamma relu sinc positive frac logit rsqrt"
).split()
ACTIVATIONS = (
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu6 selu silu softplus "
    "softshrink softsign tanhshrink"
).split()


@pytest.mark.parametrize("name", UNARY)
def test_pointwise_function(name: str) -> None:
    hold(Around(lambda x: getattr(torch, name)(0.4 * x.square() + 0.3)), sequence_input(), "all")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str) -> None:
    hold(Around(getattr(F, name)), sequence_input(), "all")


POINTWISE: dict[str, Operation] = {
    "clamp": lambda x: x.clamp(-0.5, 0.3),
    "scalar_arithmetic": lambda x: (2 - x * 3 + 1) / 4,
    "power": lambda x: x**2 + x.abs() ** 0.5,
    "masked_fill": lambda x: x.masked_fill(x > 0.2, -1.0),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x.exp()),
    "maximum": lambda x: torch.maximum(x, -x).minimum(x.exp()),
    "lerp": lambda x: torch.lerp(x, x.cos(), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.exp(), value=0.5),
    "atan2": lambda x: torch.atan2(x, x.exp()),
    "logical": lambda x: ((x > 0) & (x < 0.5)).float() + (x > 0).logical_not().to(x.dtype),
    "inplace": lambda x: x.mul(2).add_(1).clamp_(max=1.5),
    "zeros_like": lambda x: x + torch.zeros_like(x) + torch.full_like(x, 0.5),
    "new_zeros": lambda x: x + x.new_zeros(x.shape) + torch.ones(x.shape[-1], dtype=x.dtype),
    "clone_detach": lambda x: x.clone() + x.detach().contiguous(),
    "nan_to_num": torch.nan_to_num,
    "broadcast_over_time": lambda x: x * x.mean(1, keepdim=True),
    "float_round_trip": lambda x: x.double().to(x.dtype),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_expression(name: str) -> None:
    hold(Around(POINTWISE[name]), sequence_input(), "all")


# -- movement --------------------------------------------------------------------------------------------------------

MOVEMENT: dict[str, tuple[Operation, str]] = {
    "transpose_twice": (lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), "all"),
    "permute": (lambda x: x.permute(2, 0, 1).permute(1, 2, 0), "all"),
    "reshape": (lambda x: x.reshape(-1, x.shape[-1]).reshape(x.shape), "all"),
    "flatten_unflatten": (lambda x: x.flatten(0, 1).unflatten(0, (2, 6)), "all"),
    "squeeze": (lambda x: x.unsqueeze(1).squeeze(1), "all"),
    "flip_features": (lambda x: x.flip(-1), "all"),
    "flip_time": (lambda x: x.flip(1), "all"),
    "roll_time": (lambda x: x.roll(1, 1), "all"),
    "roll_features": (lambda x: x.roll(1, -1), "none"),
    "select_time": (lambda x: x[:, -1], "all"),
    "slice_time": (lambda x: x[:, 1:-1:2], "all"),
    "slice_features": (lambda x: x[..., :3], "part"),
    "narrow_features": (lambda x: x.narrow(-1, 2, 4), "part"),
    "stride_features": (lambda x: x[..., ::2], "none"),
    "one_feature": (lambda x: x[..., :1] * x, "part"),
    "chunk_sum": (lambda x: sum(x.chunk(2, -1)), "all"),
    "chunk_times": (lambda x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1].cos(), "all"),
    "split_unequal": (lambda x: torch.cat([p.exp() for p in x.split([3, 5], -1)], -1), "none"),
    "tensor_split_halves": (lambda x: torch.tensor_split(x, 2, -1)[0].exp() - torch.tensor_split(x, 2, -1)[1], "all"),
    "unbind_heads": (lambda x: sum(x.unflatten(-1, (2, 4)).unbind(-2)), "none"),
    "cat_with_itself": (lambda x: torch.cat([x, -x, x.cos()], -1), "all"),
    "cat_over_time": (lambda x: torch.cat([x, x[:, :2]], 1), "all"),
    "stack": (lambda x: torch.stack([x, x.cos()], -1).flatten(-2), "all"),
    "stack_first": (lambda x: torch.stack([x, x.cos()]).prod(0), "all"),
    "hstack": (lambda x: torch.hstack([x, x]), "all"),
    "expand": (lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1).sum(1), "all"),
    "repeat_features": (lambda x: x.repeat(1, 1, 2), "all"),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, -1), "all"),
    "repeat_time": (lambda x: x.repeat(1, 2, 1), "all"),
    "tile": (lambda x: x.tile(1, 2, 1), "all"),
    "movedim": (lambda x: x.movedim(-1, 0).movedim(0, -1), "all"),
    "unfold_time": (lambda x: x.unfold(1, 2, 2).mean(-1), "all"),
    "unfold_features": (lambda x: x.unfold(-1, 2, 2).mean(-1), "none"),
    "pad_time": (lambda x: F.pad(x, (0, 0, 1, 2)), "all"),
    "pad_features": (lambda x: F.pad(x, (2, 1)), "all"),
    "pad_features_with_ones": (lambda x: F.pad(x, (2, 1), value=1.0), "none"),
    "crop_features": (lambda x: F.pad(x, (-2, -1)), "none"),
    "diagonal": (lambda x: (x.unsqueeze(-1) * x.unsqueeze(-2)).diagonal(dim1=-2, dim2=-1), "none"),
    "meshed_heads": (lambda x: x.view(2, 6, 2, 4).transpose(2, 3).reshape(2, 6, 8), "none"),
    "as_strided_same": (lambda x: x.contiguous().as_strided(x.shape, x.stride()), "all"),
    "complex": (
        lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(2, 6, 4, 2)) * 1j).flatten(-2),
        "none",
    ),
}


@pytest.mark.parametrize("name", MOVEMENT)
def test_movement(name: str) -> None:
    op, leaves = MOVEMENT[name]
    hold(Around(op), sequence_input(), leaves)


# -- reductions and orders -------------------------------------------------------------------------------------------

REDUCTIONS: dict[str, tuple[Operation, str]] = {
    "mean_time": (lambda x: x.mean(1), "all"),
    "sum_features": (lambda x: x * x.sum(-1, keepdim=True), "all"),
    "mean_features": (lambda x: x - x.mean(-1, keepdim=True), "all"),
    "var_features": (lambda x: x / (x.var(-1, keepdim=True) + 1), "all"),
    "std_unbiased": (lambda x: x / (x.std(-1, keepdim=True, unbiased=False) + 1), "all"),
    "var_mean": (lambda x: x * torch.var_mean(x, -1, keepdim=True)[0], "all"),
    "amax_features": (lambda x: x - x.amax(-1, keepdim=True), "all"),
    "max_time": (lambda x: x.max(1).values, "all"),
    "max_features": (lambda x: x * x.max(-1, keepdim=True).values, "none"),
    "prod_time": (lambda x: x.prod(1), "all"),
    "prod_features": (lambda x: x + (1 + x).prod(-1, keepdim=True), "all"),
    "norm_features": (lambda x: x / x.norm(dim=-1, keepdim=True), "all"),
    "norm_one": (lambda x: x / torch.linalg.vector_norm(x, 1, dim=-1, keepdim=True), "all"),
    "norm_inf": (lambda x: x / torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True), "all"),
    "softmax_features": (lambda x: x.softmax(-1), "all"),
    "log_softmax_features": (lambda x: x.log_softmax(-1), "all"),
    "softmax_time": (lambda x: x.softmax(1), "all"),
    "logsumexp": (lambda x: x - x.logsumexp(-1, keepdim=True), "all"),
    "argmax": (lambda x: x * x.argmax(-1, keepdim=True), "none"),
    "topk_time": (lambda x: x.topk(2, 1).values, "all"),
    "topk_features": (lambda x: x.topk(2, -1).values, "none"),
    "sort_time": (lambda x: x.sort(1).values, "all"),
    "cumsum_time": (lambda x: x.cumsum(1), "all"),
    "cumsum_features": (lambda x: x.cumsum(-1), "none"),
    "any": (lambda x: x * (x > 0.9).any(1, keepdim=True), "all"),
    "normalize": (lambda x: F.normalize(x, dim=-1), "all"),
    "mean_over_everything": (lambda x: x * x.mean(), "all"),
    "cosine": (lambda x: x * F.cosine_similarity(x, x.sin(), dim=-1).unsqueeze(-1), "all"),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(name: str) -> None:
    op, leaves = REDUCTIONS[name]
    hold(Around(op), sequence_input(), leaves)


# -- products --------------------------------------------------------------------------------------------------------

PRODUCTS: dict[str, tuple[Operation, str]] = {
    "gram_over_features": (lambda x: (x @ x.transpose(1, 2)) @ x, "all"),
    "gram_over_time": (lambda x: x @ (x.transpose(1, 2) @ x), "all"),
    "einsum_features": (lambda x: torch.einsum("bid,bjd,bje->bie", x, x, x), "all"),
    "einsum_ellipsis": (lambda x: torch.einsum("...d,...d->...d", x, x), "all"),
    "einsum_outer": (lambda x: torch.einsum("btd,bte->btde", x, x[..., :2]).flatten(-2), "part"),
    "bmm": (lambda x: torch.bmm(x, torch.bmm(x.transpose(1, 2), x)), "all"),
    "baddbmm": (lambda x: torch.baddbmm(x, x @ x.transpose(1, 2), x), "all"),
    "addbmm": (lambda x: torch.addbmm(x[0], x @ x.transpose(1, 2), x).expand(2, 6, x.shape[-1]) + x, "all"),
    "linear_attention": (lambda x: (F.elu(x) + 1) @ ((F.elu(x) + 1).transpose(1, 2) @ x), "all"),
    "linear_attention_over_features": (lambda x: ((F.elu(x) + 1) @ (F.elu(x) + 1).transpose(1, 2)) @ x, "all"),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), "all"),
    "attention_scaled": (lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.3), "all"),
    "attention_causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3), "all"),
    "attention_values": (lambda x: F.scaled_dot_product_attention(x[..., :2], x[..., :2], x, scale=1.0), "part"),
    "cdist": (lambda x: x * torch.cdist(x, x).sum(-1, keepdim=True), "none"),
    "outer_of_heads": (lambda x: (x.view(2, 6, 2, 4, 1) * x.view(2, 6, 2, 1, 4)).sum(2).flatten(-2), "none"),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_product(name: str) -> None:
    op, leaves = PRODUCTS[name]
    hold(Around(op), sequence_input(), leaves)


# -- indexing --------------------------------------------------------------------------------------------------------


def _scatter_time(x: Tensor) -> Tensor:
    index = torch.tensor([0, 1, 0, 2, 1, 0]).view(1, 6, 1).expand(x.shape)
    return torch.zeros_like(x).scatter_add(1, index, x)


def _index_put(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, torch.tensor([3, 0])] = x[:, :2]
    return y


def _slice_write(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:3] = 0.5 * y[:, 1:3]
    return y


def _slice_write_features(x: Tensor) -> Tensor:
    y = x.clone()
    y[..., :4] *= 2.0
    return y


def _mask_assign(x: Tensor) -> Tensor:
    y = x.clone()
    y[y < 0] = 0.25
    return y


INDEXING: dict[str, tuple[Operation, str]] = {
    "index_time": (lambda x: x[:, torch.tensor([0, 2, 2])], "all"),
    "index_features": (lambda x: x[..., torch.tensor([0, 2, 5])], "none"),
    "index_select_time": (lambda x: x.index_select(1, torch.tensor([3, 1])), "all"),
    "gather_time": (lambda x: x.gather(1, torch.tensor([1, 0]).view(1, 2, 1).expand(2, 2, x.shape[-1])), "all"),
    "gather_features": (lambda x: x.gather(2, torch.zeros(2, 6, 3, dtype=torch.long)), "none"),
    "take_along_time": (lambda x: torch.take_along_dim(x, x.argsort(1), 1), "all"),
    "scatter_time": (_scatter_time, "all"),
    "index_add": (lambda x: torch.zeros_like(x).index_add(1, torch.tensor([0, 1, 0, 2, 1, 0]), x), "all"),
    "index_fill_time": (lambda x: x.index_fill(1, torch.tensor([0, 3]), 0.5), "all"),
    "index_fill_features": (lambda x: x.index_fill(2, torch.tensor([0, 3]), 0.5), "none"),
    "index_put": (_index_put, "all"),
    "slice_write": (_slice_write, "all"),
    "slice_write_features": (_slice_write_features, "part"),
    "mask_assign": (_mask_assign, "all"),
    "mask_select": (lambda x: x[:, torch.tensor([True, False, True, True, False, False])], "none"),
    "tril": (lambda x: (x @ x.transpose(1, 2)).tril() @ x, "all"),
    "triu_features": (lambda x: x.triu(), "none"),
}


@pytest.mark.parametrize("name", INDEXING)
def test_indexing(name: str) -> None:
    op, leaves = INDEXING[name]
    hold(Around(op), sequence_input(), leaves)


# -- images ----------------------------------------------------------------------------------------------------------

IMAGES: dict[str, tuple[Operation, str]] = {
    "max_pool": (lambda x: F.max_pool2d(x, 2), "all"),
    "max_pool_indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "all"),
    "max_unpool": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), "all"),
    "avg_pool": (lambda x: F.avg_pool2d(x, 3, 1, 1), "all"),
    "adaptive_avg": (lambda x: F.adaptive_avg_pool2d(x, 2), "all"),
    "adaptive_max": (lambda x: F.adaptive_max_pool2d(x, 2), "all"),
    "lp_pool": (lambda x: F.lp_pool2d(x, 2.0, 2), "all"),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), "all"),
    "bilinear": (lambda x: F.interpolate(x, size=(3, 5), mode="bilinear"), "all"),
    "bicubic": (lambda x: F.interpolate(x, size=(3, 5), mode="bicubic"), "all"),
    "reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "all"),
    "replicate": (lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"), "all"),
    "circular": (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), "all"),
    "zero_space": (lambda x: F.pad(x, (1, 1, 1, 1)), "all"),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), "all"),
    "space_softmax": (lambda x: x * x.flatten(2).softmax(-1).view(x.shape), "all"),
    "channel_attention": (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), "all"),
    "local_response": (lambda x: F.local_response_norm(x, 3), "none"),
    "group_norm": (lambda x: F.group_norm(x, 4), "none"),
    "group_norm_inside": (lambda x: F.group_norm(x, 2), "all"),
    "instance_norm": (F.instance_norm, "all"),
    "layer_norm_space": (lambda x: F.layer_norm(x, (4, 4)), "all"),
    "layer_norm_channels": (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2), "all"),
    "rms_norm_channels": (lambda x: F.rms_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2), "all"),
    "glu": (lambda x: F.glu(x, 1), "all"),
    "dropout": (lambda x: F.dropout(F.dropout2d(x, 0.5, False), 0.5, False), "all"),
    "grid_sample": (lambda x: F.grid_sample(x, torch.zeros(2, 3, 3, 2, dtype=x.dtype), align_corners=False), "all"),
    "unfold_patches": (lambda x: F.unfold(x, 2, stride=2).view(2, -1, 2, 2), "all"),
    "kernel_of_channels": (
        lambda x: F.conv1d(x.mean((2, 3)).unsqueeze(1), x.new_ones(1, 1, 3)).view(2, -1, 1, 1),
        "none",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_image_operation(name: str) -> None:
    op, leaves = IMAGES[name]
    hold(Around(op, image=True), image_input(), leaves)


# -- less common -----------------------------------------------------------------------------------------------------

RARE: dict[str, tuple[Operation, str]] = {
    "addcdiv": (lambda x: torch.addcdiv(x, x, x.exp() + 1), "all"),
    "copysign": (lambda x: torch.copysign(x.exp(), x), "all"),
    "hypot": (lambda x: torch.hypot(x, x.cos()), "all"),
    "xlogy": (lambda x: torch.xlogy(x.exp(), x.exp()), "all"),
    "remainders": (lambda x: torch.fmod(x, 0.3) + x.remainder(0.2) + x.floor_divide(0.4), "all"),
    "comparisons": (lambda x: (x >= 0.1).to(x.dtype) + (x != 0.5) * x + (x <= -0.1) * 2.0, "all"),
    "logaddexp": (lambda x: torch.logaddexp(x, x.cos()), "all"),
    "threshold": (lambda x: F.threshold(x, 0.1, 0.7), "all"),
    "heaviside": (lambda x: torch.heaviside(x, x.new_ones(())) * x.exp(), "all"),
    "polar": (lambda x: torch.polar(x.exp(), x).real + torch.complex(x, x.cos()).imag, "all"),
    "angle": (lambda x: torch.complex(x, x.exp()).angle() + torch.complex(x, x).conj().imag, "all"),
    "new_full": (lambda x: x + x.new_full(x.shape, 0.5), "all"),
    "ones_like": (lambda x: x + 2 * torch.ones_like(x), "all"),
    "min_time": (lambda x: x.min(1).values, "all"),
    "amin_features": (lambda x: x - x.amin(-1, keepdim=True), "all"),
    "median_time": (lambda x: x.median(1).values, "all"),
    "kthvalue_time": (lambda x: x.kthvalue(2, 1).values, "all"),
    "argsort_time": (lambda x: x.argsort(1).to(x.dtype) * x, "all"),
    "cumulative_time": (lambda x: x.cumprod(1) + x.cummax(1).values + x.logcumsumexp(1), "all"),
    "nansum_features": (lambda x: x * x.nansum(-1, keepdim=True), "all"),
    "std_mean_features": (lambda x: x / (torch.std_mean(x, -1, keepdim=True)[0] + 1), "all"),
    "all_features": (lambda x: x * (x > -2).all(-1, keepdim=True), "all"),
    "index_copy_time": (lambda x: x.index_copy(1, torch.tensor([0, 3]), x[:, 1:3].exp()), "all"),
    "index_reduce_time": (
        lambda x: torch.ones_like(x).index_reduce(1, torch.tensor([0, 1, 0, 2, 1, 0]), x, "amax"),
        "all",
    ),
    "scatter_reduce_time": (
        lambda x: x.scatter_reduce(1, torch.tensor([0, 1, 0, 2, 1, 0]).view(1, 6, 1).expand(x.shape), x, "amax"),
        "all",
    ),
    "slice_scatter_time": (lambda x: torch.slice_scatter(x, x[:, :2].exp(), 1, 1, 3), "all"),
    "select_scatter_time": (lambda x: torch.select_scatter(x, x[:, 0].exp(), 1, 3), "all"),
    "vector_and_matrix": (lambda x: (x[0].T @ x[0, :, 0]).expand(2, 6, x.shape[-1]) * x, "part"),
    "transposes": (lambda x: x.mT.swapaxes(1, 2).moveaxis(0, 1).swapdims(0, 1), "all"),
    "rot90_time_and_batch": (lambda x: torch.rot90(x, 1, [0, 1]), "all"),
    "fft_time": (lambda x: torch.fft.ifft(torch.fft.fft(x, dim=1) * 0.5, dim=1).real, "all"),
    "rfft_time": (lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=6, dim=1), "all"),
    "fft_features": (lambda x: torch.fft.fft(x, dim=-1).real, "none"),
    "pool_time": (lambda x: F.adaptive_max_pool1d(F.avg_pool1d(x.mT, 2, 1), 3).mT, "all"),
    "resample_time": (lambda x: F.interpolate(x.mT, scale_factor=2, mode="linear").mT, "all"),
    "volume": (
        lambda x: (
            F.interpolate(F.max_pool3d(x.mT.unsqueeze(-1).unsqueeze(-1), (2, 1, 1)), scale_factor=(2, 1, 1))
            .flatten(2)
            .mT
        ),
        "all",
    ),
}


@pytest.mark.filterwarnings("ignore:index_reduce.. is in beta")
@pytest.mark.parametrize("name", RARE)
def test_rare_operation(name: str) -> None:
    op, leaves = RARE[name]
    hold(Around(op), sequence_input(), leaves)


def test_a_slice_of_the_features_written_by_slice_scatter() -> None:
    hold(Around(lambda x: torch.slice_scatter(x, x[..., :4].exp(), -1, 4, 8)), sequence_input(), "none")


def test_table_of_rules_has_no_empty_entry() -> None:
    assert len(RULES) > 250
    assert all(callable(rule) and isinstance(name, str) and name for name, rule in RULES.items())


# -- made inside an operation -----------------------------------------------------------------------------------------

INSIDE: dict[str, Operation] = {
    "sum_of_exponentials": lambda x: x / x.exp().sum(-1, keepdim=True),
    "norm_of_cosines": lambda x: x / x.cos().norm(dim=-1, keepdim=True),
    "tensor_split": lambda x: torch.cat(torch.tensor_split(x, 2, -1)[::-1], -1),
    "channel_shuffle": lambda x: F.channel_shuffle(x.transpose(1, 2), 2).transpose(1, 2),
}


@pytest.mark.parametrize("name", INSIDE)
def test_sums_of_what_is_not_zero_and_parts_made_inside_an_operation(name: str) -> None:
    hold(Around(INSIDE[name]), sequence_input(), "all")
