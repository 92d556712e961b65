"""Norms and softmax. Where the statistic runs over the cut axis, zeroing is not removing: the group is inexact."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.ops._kernel import Kernel, Label, support
from secateur.ops._rule import Operation, Rule, bare


def _rest(op: Operation) -> list[Label | None]:
    return [bare(shape) for shape in op.shapes[1:]]


def batch_norm(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """native_batch_norm(x, weight, bias, mean, var, training, ...): one statistic per channel, which is axis 1."""
    x = op.args[0]
    vectors = [a for a in op.args[1:5] if isinstance(a, Label)]
    out = k.along(x, vectors, min(1, x.rank - 1))
    training = any(a is True for a in op.args[5:6]) or op.op.split(".")[1] == "_native_batch_norm_legit"
    if training:
        k.statistic(out, [d for d in range(x.rank) if d != 1], "batch statistics")
    return [out, *_rest(op)]


def layer_norm(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """native_layer_norm(x, shape, weight, bias, eps): mean and variance over the last axes."""
    x, shape = op.args[:2]
    last = list(range(x.rank - len(shape), x.rank))
    k.statistic(x, last, "layer norm: mean and variance over this axis")
    out = x
    for vector in (op.arg(2, "weight"), op.arg(3, "bias")):
        if isinstance(vector, Label):
            out = k.pointwise(x.shape, [out, vector])
    return [out, *_rest(op)]


def group_norm(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """native_group_norm(x, weight, bias, N, C, HxW, groups, eps).

    Channels are [groups, channels per group]; whole groups stay exact, the same index in every group does not.
    """
    x, weight, bias = op.args[:3]
    groups = op.args[6]
    inside = x.shape[1] // groups
    k.statistic(x, range(2, x.rank), "group norm: mean and variance over this axis")
    for slot in x.slots:
        if 1 not in support(slot):
            continue
        line = k.collapse(slot, [d for d in support(slot) if d != 1]).reshape(1, groups, inside)
        if groups > 1 and inside > 1:
            line = k.collapse(line, [1] if inside > groups else [2])
        if line.shape[2] > 1:
            k.statistic(Label((1, groups, inside), (line,)), [2], "group norm: mean and variance over channels")
    return [k.along(x, [weight, bias], 1), *_rest(op)]


def instance_norm(k: Kernel, op: Operation) -> Label:
    """instance_norm(x, weight, bias, mean, var, ...): statistics over space only."""
    x: Label = op.args[0]
    k.statistic(x, range(2, x.rank), "instance norm: mean and variance over this axis")
    return k.along(x, [a for a in op.args[1:5] if isinstance(a, Label)], 1)


def rms_norm(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """rms_norm(x, shape, weight, eps): root mean square over the last axes."""
    x, shape = op.args[:2]
    k.statistic(x, range(x.rank - len(shape), x.rank), "RMS norm: mean square over this axis")
    weight = op.arg(2, "weight")
    out = k.pointwise(x.shape, [x, weight]) if isinstance(weight, Label) else x
    return [out, *_rest(op)]


def softmax(k: Kernel, op: Operation) -> Label:
    """softmax, log_softmax: the denominator counts what survives."""
    x: Label = op.args[0]
    k.statistic(x, [op.arg(1, "dim")], "softmax")
    return x


def weight_norm(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """W = g v / |v| with the norm over all axes but `dim`."""
    v, g = op.args[:2]
    axis = op.arg(2, "dim", 0) % v.rank
    norm = k.reduce(v, [d for d in range(v.rank) if d != axis], keepdim=True, sums=True)
    scale = k.pointwise(norm.shape, [norm, g])
    return [k.pointwise(v.shape, [v, scale]), *_rest(op)]


RULES: tuple[tuple[str, Rule], ...] = (
    ("native_batch_norm", batch_norm),
    ("_native_batch_norm_legit", batch_norm),
    ("_native_batch_norm_legit_no_training", batch_norm),
    ("_batch_norm_with_update", batch_norm),
    ("cudnn_batch_norm", batch_norm),
    ("batch_norm", batch_norm),
    ("native_layer_norm", layer_norm),
    ("layer_norm", layer_norm),
    ("native_group_norm", group_norm),
    ("instance_norm", instance_norm),
    ("rms_norm", rms_norm),
    ("_fused_rms_norm", rms_norm),
    ("_softmax", softmax),
    ("softmax", softmax),
    ("_safe_softmax", softmax),
    ("_log_softmax", softmax),
    ("log_softmax", softmax),
    ("_weight_norm_interface", weight_norm),
    ("_weight_norm", weight_norm),
)
