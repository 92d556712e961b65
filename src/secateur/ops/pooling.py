"""Operations over the last axes (space, time) that treat every channel alike: pools, resampling, padding by copies."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.ops._kernel import Kernel, Label
from secateur.ops._rule import Operation, Rule


def over_space(n: int) -> Rule:
    """A rule for operations over the last n axes: atoms on earlier axes pass, on these they are frozen."""

    def rule(k: Kernel, op: Operation) -> Sequence[Label | None]:
        x: Label = op.args[0]
        lead = k.lead(x, x.rank - n, "a window slides along this axis")
        out: list[Label | None] = []
        for shape in op.shapes:
            if shape is None:
                out.append(None)
                continue
            slots = [s.reshape(tuple(s.shape) + (1,) * (len(shape) - lead.rank)) for s in lead.slots]
            out.append(k.label(shape, slots))
        return out

    return rule


def unpool(n: int) -> Rule:
    """max_unpool(x, positions, size) over the last n axes: a channel goes with its positions."""

    def rule(k: Kernel, op: Operation) -> Label:
        x, positions = (k.lead(item, item.rank - n, "a window slides along this axis") for item in op.args[:2])
        both = k.pointwise(x.shape, [x, positions])
        return k.label(op.shape, [s.reshape(tuple(s.shape) + (1,) * n) for s in both.slots])

    return rule


ONE = (
    "avg_pool1d adaptive_avg_pool1d max_pool1d max_pool1d_with_indices adaptive_max_pool1d reflection_pad1d "
    "replication_pad1d upsample_nearest1d _upsample_nearest_exact1d upsample_linear1d"
).split()
TWO = (
    "avg_pool2d max_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d "
    "fractional_max_pool2d reflection_pad2d replication_pad2d upsample_nearest2d _upsample_nearest_exact2d "
    "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
).split()
THREE = (
    "avg_pool3d max_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d "
    "reflection_pad3d replication_pad3d upsample_nearest3d _upsample_nearest_exact3d upsample_trilinear3d"
).split()
RULES: tuple[tuple[str, Rule], ...] = (
    *((name, over_space(1)) for name in ONE),
    *((name, over_space(2)) for name in TWO),
    *((name, over_space(3)) for name in THREE),
    ("max_unpool2d", unpool(2)),
    ("max_unpool3d", unpool(3)),
)
