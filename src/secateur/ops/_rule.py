"""The form of an op rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from secateur.ops._kernel import Kernel, Label


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A recorded operation, with labels where tensors were.

    Attributes:
        op: qualified name.  args, kwargs: as recorded.  shapes: of the outputs, None where an output is no tensor.
        dtypes: of the outputs, without the `torch.` prefix.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[tuple[int, ...] | None, ...]
    dtypes: tuple[str | None, ...] = ()

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """Argument number `position`, or keyword `name`, or the default."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        assert self.shapes[0] is not None
        return self.shapes[0]

    @property
    def labels(self) -> list[Label]:
        """All tensor arguments, in order."""
        found: list[Label] = []
        _collect((self.args, tuple(self.kwargs.values())), found)
        return found

    @property
    def function(self) -> Callable[..., Any]:
        """The torch operator itself, to be run on label arrays."""
        target: Any = torch.ops
        for part in self.op.split("."):
            target = getattr(target, part)
        return target  # type: ignore[no-any-return]


def _collect(item: object, found: list[Label]) -> None:
    if isinstance(item, Label):
        found.append(item)
    elif isinstance(item, tuple | list):
        for part in item:
            _collect(part, found)


# operations that leave zeros where all tensor arguments have zeros, whatever else they are given
KEEPS_ZEROS = frozenset(
    "linear matmul __matmul__ __rmatmul__ einsum bilinear scaled_dot_product_attention convolution _convolution "
    "mm bmm addmm baddbmm mv abs asin asinh atan atanh ceil celu elu erf expm1 floor gelu hardshrink hardswish "
    "hardtanh leaky_relu log1p mish mul multiply neg _prelu_kernel prelu relu relu6 round selu sgn sign silu sin "
    "sinh softshrink softsign sqrt square tan tanh trunc native_batch_norm cudnn_batch_norm batch_norm "
    "_native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update instance_norm "
    "native_layer_norm native_group_norm rms_norm _fused_rms_norm embedding clone contiguous detach alias _to_copy "
    "to lift_fresh dropout native_dropout view _unsafe_view reshape permute transpose t squeeze unsqueeze select slice "
    "unbind split split_with_sizes chunk expand repeat cat stack constant_pad_nd zeros zeros_like new_zeros sum mean "
    "lstm gru rnn_tanh rnn_relu copy pixel_shuffle pixel_unshuffle unsafe_split _softmax index_select index roll "
    "flip unfold avg_pool2d max_pool2d max_pool2d_with_indices _adaptive_avg_pool2d adaptive_avg_pool2d "
    "upsample_bilinear2d upsample_nearest2d cumsum linalg_vector_norm norm amax glu "
    "_pack_padded_sequence _pad_packed_sequence".split()
)
# zero where every tensor argument is zero, but not if a plain number is given too
ADDS_ZEROS = frozenset("add sub rsub subtract maximum minimum where lerp addcmul".split())


def keeps_zeros(key: str, op: Operation, labels: Sequence[Label]) -> bool:
    """Whether entries of silenced units, zero in every tensor argument (`labels`), are zero in the result."""
    if any(not label.zero for label in labels):
        return key in ("mul", "multiply") and any(label.zero for label in labels)
    if key in KEEPS_ZEROS:
        return True
    if key in ("div", "divide", "true_divide"):
        return isinstance(op.args[0], Label) and op.args[0].zero
    return key in ADDS_ZEROS and all(isinstance(a, Label) for a in op.args)


Rule = Callable[[Kernel, Operation], Label | Sequence[Label | None]]


def bare(shape: Sequence[int] | None) -> Label | None:
    """A label without atoms: a value of fixed size."""
    return None if shape is None else Label(tuple(shape))
