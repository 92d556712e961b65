"""Element by element: y[i] = f(a[i], b[i], ...), with broadcasting. What meets on an axis goes together.

f(0) need not be 0: the columns that read the result go too.
"""

from __future__ import annotations

from collections.abc import Sequence

from secateur.ops._kernel import Kernel, Label
from secateur.ops._rule import Operation, Rule


def pointwise(k: Kernel, op: Operation) -> Label:
    """All tensor arguments broadcast to the output."""
    return k.pointwise(op.shape, op.labels)


def same(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """Every output has the shape and the atoms of the first argument."""
    x: Label = op.args[0]
    return [Label(x.shape, x.slots) if s == x.shape else (None if s is None else Label(s)) for s in op.shapes]


def like(k: Kernel, op: Operation) -> Label:
    """A fresh value of the size of the first argument (zeros_like, rand_like, ...): its size follows."""
    x: Label = op.args[0]
    return Label(x.shape, x.slots)


def prelu(k: Kernel, op: Operation) -> Label:
    """torch.prelu(x, w): one slope per channel (axis 1), or one for all."""
    x, w = op.args[:2]
    return k.along(x, [w], min(1, x.rank - 1)) if w.shape[0] > 1 else x


def clone(k: Kernel, op: Operation) -> Label:
    """The same values, elsewhere."""
    x: Label = op.args[0]
    return x


NAMES = (
    "abs add addcdiv addcmul atan2 bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min "
    "clip copysign cos cosh div divide elu eq erf erfc exp exp2 expm1 floor floor_divide fmod ge gelu gt "
    "hardshrink hardsigmoid hardswish hardtanh heaviside isfinite isinf isnan isneginf isposinf le leaky_relu lerp "
    "log log10 log1p log2 log_sigmoid_forward logaddexp logical_and logical_not logical_or logical_xor logit lt "
    "masked_fill maximum minimum mish mul multiply nan_to_num ne neg pow reciprocal relu relu6 remainder round rsqrt "
    "rsub selu sgn sigmoid sign silu sin sinh softplus softshrink softsign sqrt square sub subtract tan tanh threshold "
    "true_divide trunc where xlogy erfinv special_erfcx floor_divide _prelu_kernel rrelu_with_noise bitwise_left_shift "
    "bitwise_right_shift  copy polar complex real imag angle hypot special_log1p sinc "
    "special_i0 special_entr acos asin atan acosh asinh atanh lgamma digamma"
).split()
SAME = "native_dropout dropout bernoulli feature_dropout alpha_dropout".split()
LIKE = (
    "zeros_like ones_like full_like empty_like rand_like randn_like randint_like zero fill normal uniform exponential"
).split()
CLONE = (
    "clone contiguous detach alias _to_copy to lift_fresh lift_fresh_copy lift positive resolve_conj resolve_neg "
    "type_as _conj _neg_view conj requires_grad_"
).split()
RULES: tuple[tuple[str, Rule], ...] = (
    *((name, pointwise) for name in dict.fromkeys(NAMES)),
    *((name, same) for name in SAME),
    *((name, like) for name in LIKE),
    *((name, clone) for name in CLONE),
    ("prelu", prelu),
)
