"""Reductions. Sums and norms ignore zeros; means and variances count entries; extrema and orders freeze their axis."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.ops._kernel import Kernel, Label
from secateur.ops._rule import Operation, Rule, bare


def _axes(dim: object) -> list[int] | None:
    if dim is None:
        return None
    if isinstance(dim, int):
        return [dim]
    assert isinstance(dim, tuple | list)
    return [int(d) for d in dim] or None


def _reduce(k: Kernel, op: Operation, dim: object, *, sums: bool, reason: str) -> Sequence[Label | None]:
    x: Label = op.args[0]
    keepdim = len(op.shape) == x.rank
    return [k.reduce(x, _axes(dim), keepdim=keepdim, sums=sums, reason=reason) for _ in op.shapes]


def total(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """Sums over axes: sum(x, dim)."""
    return _reduce(k, op, op.arg(1, "dim"), sums=True, reason="sum")


def norm(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """Norms over axes: norm(x, p, dim), linalg_vector_norm(x, ord, dim)."""
    return _reduce(k, op, op.arg(2, "dim"), sums=True, reason="norm")


def mean(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """mean, amax, amin over axes: the number, or the zeros, would change the result."""
    return _reduce(k, op, op.arg(1, "dim"), sums=False, reason="mean over this axis")


def variance(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """var, std, var_mean over axes."""
    dim = op.arg(1, "dim")
    return _reduce(k, op, None if isinstance(dim, bool) else dim, sums=False, reason="variance over this axis")


def extremum(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """max, min, median: of two tensors (pointwise), or along an axis, which is then frozen."""
    x = op.args[0]
    if len(op.args) > 1 and isinstance(op.args[1], Label):
        return [k.pointwise(op.shape, [x, op.args[1]])]
    dim = op.arg(1, "dim")
    if dim is None:
        k.freeze_label(x, "an extremum over everything is taken")
        return [bare(shape) for shape in op.shapes]
    return _along(k, op, x, dim, "an extremum is taken along this axis")


def choice(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """argmax, argmin: the result is a position."""
    x, dim = op.args[0], op.arg(1, "dim")
    if dim is None:
        k.freeze_label(x, "a position is taken from it")
        return [bare(shape) for shape in op.shapes]
    return _along(k, op, x, dim, "a position is taken along this axis")


def _along(k: Kernel, op: Operation, x: Label, dim: int, reason: str) -> Sequence[Label | None]:
    left = k.only(x, [dim], reason)
    out = k.reduce(left, [dim], keepdim=len(op.shape) == x.rank, sums=True)
    return [Label(out.shape, out.slots) for _ in op.shapes]


def order(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """topk, sort, argsort, kthvalue: the order along the axis decides."""
    name = op.op.split(".")[1]
    position = 2 if name in ("topk", "kthvalue") else 1
    dim = op.arg(position, "dim", -1)
    if isinstance(dim, bool):
        dim = op.kwargs.get("dim", -1)
    x = k.only(op.args[0], [dim], f"{name} orders this axis")
    if op.shapes[0] is not None and len(op.shapes[0]) < x.rank:  # kthvalue drops the axis
        x = k.reduce(x, [dim], keepdim=False, sums=True)
    return [None if s is None else Label(s, x.slots) for s in op.shapes]


def running(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """cumsum, cumprod, cummax, logcumsumexp: entries before this one count."""
    x = k.only(op.args[0], [op.arg(1, "dim")], "a running sum goes along this axis")
    return [None if s is None else Label(s, x.slots) for s in op.shapes]


def logical(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """any, all: over axes."""
    return _reduce(k, op, op.arg(1, "dim"), sums=False, reason="a test over this axis")


def log_sum_exp(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """logsumexp: a zero still counts exp(0)."""
    return _reduce(k, op, op.arg(1, "dim"), sums=False, reason="logsumexp over this axis")


RULES: tuple[tuple[str, Rule], ...] = (
    ("sum", total),
    ("nansum", total),
    ("linalg_vector_norm", norm),
    ("norm", norm),
    ("mean", mean),
    ("amax", mean),
    ("amin", mean),
    ("prod", mean),
    ("var", variance),
    ("std", variance),
    ("var_mean", variance),
    ("std_mean", variance),
    ("max", extremum),
    ("min", extremum),
    ("median", extremum),
    ("argmax", choice),
    ("argmin", choice),
    ("topk", order),
    ("sort", order),
    ("argsort", order),
    ("kthvalue", order),
    ("cumsum", running),
    ("cumprod", running),
    ("cummax", running),
    ("cummin", running),
    ("logcumsumexp", running),
    ("any", logical),
    ("all", logical),
    ("logsumexp", log_sum_exp),
)
