"""Sums of products: y[r] = sum_c a[r, c] b[r, c]. One primitive, `Kernel.contract`, serves them all."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.ops._kernel import Kernel, Label
from secateur.ops._rule import Operation, Rule


def linear(k: Kernel, op: Operation) -> Label:
    """y[..., o] = sum_i x[..., i] w[o, i] + b[o]."""
    return k.linear(op.args[0], op.arg(1, "weight"), op.arg(2, "bias"))


def matmul(k: Kernel, op: Operation) -> Label:
    """torch.matmul with all its broadcasting; also mm, bmm, mv, dot."""
    return k.matmul(op.args[0], op.arg(1, "other"))


def rmatmul(k: Kernel, op: Operation) -> Label:
    """x.__rmatmul__(y) = y @ x."""
    return k.matmul(op.args[1], op.args[0])


def addmm(k: Kernel, op: Operation) -> Label:
    """addmm, baddbmm, addmv: b + x @ w."""
    b, x, w = op.args[:3]
    product = k.matmul(x, w)
    for slot in b.slots:
        k.facts.writings.append(slot)
    return k.pointwise(product.shape, [product, b])


def addbmm(k: Kernel, op: Operation) -> Label:
    """b[r, o] + sum_nc x[n, r, c] w[n, c, o]."""
    b, x, w = op.args[:3]
    product = k.matmul(x, w)
    return k.pointwise(op.shape, [k.reduce(product, [0], keepdim=False, sums=True), b])


def einsum(k: Kernel, op: Operation) -> Label:
    """torch.einsum: operands are broadcast to one virtual product over all letters, and the others summed away."""
    equation = op.args[0].replace(" ", "")
    operands = op.args[1:]
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    letters, result = _letters(equation, [x.rank for x in operands])
    if any(len(set(word)) < len(word) for word in letters):
        for x in operands:
            k.freeze_label(x, "einsum takes a diagonal")
        return Label(op.shape)
    order = list(result) + [c for c in dict.fromkeys("".join(letters)) if c not in result]
    aligned = [_align(k, x, word, order) for x, word in zip(operands, letters, strict=True)]
    out = aligned[0]
    summed = list(range(len(result), len(order)))
    for i, x in enumerate(aligned[1:], start=1):
        # a letter can be summed as soon as no later operand has it
        later = {c for word in letters[i + 1 :] for c in word}
        now = [d for d in summed if order[d] not in later and (out.shape[d] > 1 or x.shape[d] > 1)]
        out = _keep_axes(k, k.contract(out, x, now), order, now)
    if len(aligned) == 1:
        out = _keep_axes(k, k.reduce(out, summed, keepdim=False, sums=True), order, summed) if summed else out
    out = k.reshape_ones(out, out.shape[: len(result)]) if out.rank > len(result) else out
    return k.label(out.shape, out.slots)


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    left, arrow, right = equation.partition("->")
    words = left.split(",")
    dots = max((r - len(w.replace("...", "")) for w, r in zip(words, ranks, strict=True) if "..." in w), default=0)
    pool = "ΑΒΓΔΕΖΗΘ"[:dots]
    words = [
        w.replace("...", pool[dots - (r - len(w.replace("...", ""))) :] if "..." in w else "")
        for w, r in zip(words, ranks, strict=True)
    ]
    if not arrow:
        text = "".join(words)
        right = "..." + "".join(sorted(c for c in dict.fromkeys(text) if text.count(c) == 1 and c not in pool))
    return words, right.replace("...", pool)


def _align(k: Kernel, x: Label, word: str, order: Sequence[str]) -> Label:
    present = [c for c in order if c in word]
    x = k.permute(x, [word.index(c) for c in present])
    shape = [x.shape[present.index(c)] if c in word else 1 for c in order]
    return k.reshape_ones(x, shape)


def _keep_axes(k: Kernel, out: Label, order: Sequence[str], dropped: Sequence[int]) -> Label:
    source = iter(out.shape)
    return k.reshape_ones(out, [1 if d in dropped else next(source) for d in range(len(order))])


def bilinear(k: Kernel, op: Operation) -> Label:
    """y[..., o] = sum_ij x[..., i] w[o, i, j] z[..., j] + b[o]."""
    x, z, w = op.args[:3]
    bias = op.arg(3, "bias")
    lead = x.shape[:-1]
    x4 = k.reshape_ones(x, (*lead, 1, x.shape[-1], 1))
    z4 = k.reshape_ones(z, (*lead, 1, 1, z.shape[-1]))
    w4 = k.reshape_ones(w, (1,) * len(lead) + w.shape)
    rank = len(lead)
    first = k.contract(w4, x4, [rank + 1])
    first = k.reshape_ones(first, (*first.shape[: rank + 1], 1, first.shape[rank + 1]))
    out = k.contract(first, z4, [rank + 1, rank + 2])
    return k.add_bias(out, bias, -1)


def attention(k: Kernel, op: Operation) -> Label:
    """softmax(q k^T * scale + mask) v.

    Without an explicit scale it is 1 / sqrt(head size): then the result depends on how much of the head size survives.
    """
    q, key, value = op.args[:3]
    mask = op.arg(3, "attn_mask")
    scale = op.kwargs.get("scale", op.args[6] if len(op.args) > 6 else None)
    if op.kwargs.get("enable_gqa", False) and q.shape[-3] != key.shape[-3]:
        times = q.shape[-3] // key.shape[-3]
        key, value = _repeat_heads(k, key, times), _repeat_heads(k, value, times)
    if scale is None:
        k.statistic(q, [-1], "the attention scale is 1 / sqrt(head size)")
        k.statistic(key, [-1], "the attention scale is 1 / sqrt(head size)")
    logits = k.matmul(q, k.transpose(key))
    if isinstance(mask, Label):
        logits = k.pointwise(logits.shape, [logits, mask])
    k.statistic(logits, [-1], "softmax")
    return k.matmul(logits, value)


def _repeat_heads(k: Kernel, x: Label, times: int) -> Label:
    shape = (*x.shape[:-3], x.shape[-3] * times, *x.shape[-2:])
    slots = [s.repeat_interleave(times, -3) if s.shape[-3] > 1 else s for s in x.slots]
    return k.label(shape, slots)


RULES: tuple[tuple[str, Rule], ...] = (
    ("linear", linear),
    ("matmul", matmul),
    ("__matmul__", matmul),
    ("__rmatmul__", rmatmul),
    ("mm", matmul),
    ("bmm", matmul),
    ("mv", matmul),
    ("dot", matmul),
    ("vdot", matmul),
    ("addmm", addmm),
    ("baddbmm", addmm),
    ("addmv", addmm),
    ("addbmm", addbmm),
    ("einsum", einsum),
    ("bilinear", bilinear),
    ("scaled_dot_product_attention", attention),
)
