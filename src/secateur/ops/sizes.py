"""How the integer arguments of a torch function call relate to lengths of its tensors.

`self.proj(x).view(b, t, self.heads, self.head_dim)` says that `self.heads` must equal the length of axis 2 of the
result. After a cut it still must: `requirements` lists every such statement of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.schema.graph import Call, Integer, Ref, Size, Value
from secateur.schema.table import table


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """`argument` counts what survives of entries start .. stop of an axis of a value.

    Attributes:
        argument: the integer of the call; None: that axis must not change at all.
        rows: the axis is seen as [argument, rest] and rows are counted (groups of a convolution).
        sign: -1 where a negative index counts from the end.
    """

    argument: int | Integer | None
    value: int
    axis: int
    start: int = 0
    stop: int | None = None
    rows: bool = False
    sign: int = 1


Lookup = Callable[[int], Value]


def requirements(call: Call, value: Lookup) -> Iterator[Requirement]:
    """Everything that a call says about lengths."""
    reader = _READERS.get(call.function)
    if reader is not None:
        yield from reader(call, value)


# a single step couples the state it is given with nothing that it makes, but torch wants both of one width
CELLS = frozenset("rnn_tanh_cell rnn_relu_cell gru_cell lstm_cell".split())


def equal_lengths(call: Call, value: Lookup) -> Iterator[tuple[Size, Size]]:
    """Axes that a call makes, or wants, of one length: the parts of tensor_split(x, n), the states of a cell."""
    if call.function in CELLS:
        given = _argument(call, 1, "hx")
        states = given if isinstance(given, tuple) else (given,)
        for before, after in zip(states, call.outputs, strict=True):
            assert isinstance(before, Ref)
            assert after is not None
            yield Size(before.value, len(value(after).shape) - 1), Size(after, len(value(after).shape) - 1)
        return
    if call.function != "tensor_split" or not _is_int(_argument(call, 1, "indices_or_sections")):
        return
    parts = [o for o in call.outputs if o is not None]
    axis = number(_argument(call, 2, "dim", 0)) % len(value(parts[0]).shape)
    for other in parts[1:]:
        yield Size(parts[0], axis), Size(other, axis)


def number(item: int | Integer) -> int:
    """The recorded value of an integer argument."""
    return item.value if isinstance(item, Integer) else item


def _is_int(item: object) -> bool:
    return isinstance(item, Integer) or type(item) is int


def _argument(call: Call, position: int, name: str, default: Any = None) -> Any:
    return call.args[position] if position < len(call.args) else call.kwargs.get(name, default)


def _flat(items: Sequence[Any]) -> tuple[Any, ...]:
    return items[0] if len(items) == 1 and isinstance(items[0], tuple) else tuple(items)


def _lengths(items: Sequence[Any], out: int | None, first: int = 0) -> Iterator[Requirement]:
    if out is None:
        return
    for axis, item in enumerate(items):
        if _is_int(item) and number(item) >= 0:
            yield Requirement(argument=item, value=out, axis=first + axis)


def _after_tensor(call: Call, value: Lookup) -> Iterator[Requirement]:
    """view, reshape, expand, new_zeros: (x, *sizes) or (x, sizes)."""
    items = call.args[1:] or (call.kwargs.get("shape", call.kwargs.get("size", ())),)
    if call.function in ("new_full",):
        items = items[:1]
    yield from _lengths(_flat(items), call.outputs[0])


def _factory(call: Call, value: Lookup) -> Iterator[Requirement]:
    """zeros(*sizes), zeros(sizes), full(sizes, fill)."""
    items = call.args[:1] if call.args and isinstance(call.args[0], tuple) else call.args
    items = items or (call.kwargs.get("size", ()),)
    yield from _lengths(_flat(items), call.outputs[0])


def _unflatten(call: Call, value: Lookup) -> Iterator[Requirement]:
    axis, sizes = _argument(call, 1, "dim"), _argument(call, 2, "sizes")
    out = call.outputs[0]
    if out is not None:
        rank = len(value(out).shape)
        axis = number(axis)
        first = axis if axis >= 0 else rank + axis - len(sizes) + 1
        yield from _lengths(sizes, out, first)


def _split(call: Call, value: Lookup) -> Iterator[Requirement]:
    """split(x, size) or split(x, sizes). A last part that is smaller than the rest must not outgrow them: it stays."""
    sizes = _argument(call, 1, "split_size_or_sections", call.kwargs.get("split_size"))
    axis = number(_argument(call, 2, "dim", 0))
    parts = [o for o in call.outputs if o is not None]
    axis %= len(value(parts[0]).shape)
    if isinstance(sizes, tuple):
        for size, out in zip(sizes, parts, strict=False):
            if _is_int(size):
                yield Requirement(argument=size, value=out, axis=axis)
    elif _is_int(sizes):
        uneven = value(parts[-1]).shape[axis] != number(sizes)
        for out in parts:
            yield Requirement(argument=None if uneven else sizes, value=out, axis=axis)


def _narrow(call: Call, value: Lookup) -> Iterator[Requirement]:
    x, axis, start, length = (_argument(call, i, n) for i, n in enumerate(("input", "dim", "start", "length")))
    axis = number(axis) % len(value(x.value).shape)
    if _is_int(start) and _is_int(length):
        first = number(start)
        yield Requirement(argument=start, value=x.value, axis=axis, stop=first)
        yield Requirement(argument=length, value=x.value, axis=axis, start=first, stop=first + number(length))


def _item(call: Call, value: Lookup) -> Iterator[Requirement]:
    """x[...], x[...] = y: every slice bound counts the entries before it; a step other than 1 fixes the axis."""
    x, index = call.args[:2]
    if not isinstance(x, Ref):
        return
    shape = value(x.value).shape
    items = index if isinstance(index, tuple) and not (index and index[0] == "slice") else (index,)
    consumed = sum(1 for i in items if i is not None and not _is_ellipsis(i))
    axis = 0
    for item in items:
        if item is None:
            continue
        if _is_ellipsis(item):
            axis += len(shape) - consumed
            continue
        if isinstance(item, tuple) and item and item[0] == "slice":
            yield from _slice(item, x.value, axis, shape[axis])
        axis += 1


def _aten_slice(call: Call, value: Lookup) -> Iterator[Requirement]:
    """slice(x, dim, start, end, step) of an exported program: as x[start:end:step]."""
    x, axis, start, end, step = (_argument(call, i, n) for i, n in enumerate(("self", "dim", "start", "end", "step")))
    shape = value(x.value).shape
    at = number(0 if axis is None else axis) % len(shape)
    yield from _slice(("slice", start, end, step), x.value, at, shape[at])


def _slice_scatter(call: Call, value: Lookup) -> Iterator[Requirement]:
    """slice_scatter(x, source, dim, start, end, step): as the slice it writes to."""
    names = enumerate(("input", "src", "dim", "start", "end", "step"))
    x, _, axis, start, end, step = (_argument(call, i, name) for i, name in names)
    shape = value(x.value).shape
    at = number(0 if axis is None else axis) % len(shape)
    yield from _slice(("slice", start, end, step), x.value, at, shape[at])


def _is_ellipsis(item: object) -> bool:
    return isinstance(item, str) and item == "..."


def _slice(item: tuple[Any, ...], x: int, axis: int, length: int) -> Iterator[Requirement]:
    _, start, stop, step = item
    if step is not None and number(step) != 1:
        yield Requirement(argument=None, value=x, axis=axis)
        return
    for bound in (start, stop):
        if not _is_int(bound):
            continue
        at = number(bound)
        if at >= length:
            # "to the end": a literal beyond the end stays beyond it, a traced one must still reach the end
            if isinstance(bound, Integer):
                yield Requirement(argument=bound, value=x, axis=axis, stop=length)
        elif at > 0:
            yield Requirement(argument=bound, value=x, axis=axis, stop=at)
        elif at < 0:
            yield Requirement(argument=bound, value=x, axis=axis, start=length + at, stop=length, sign=-1)


def _repeat(call: Call, value: Lookup) -> Iterator[Requirement]:
    """repeat_interleave(x, n, dim) of an axis of length 1: n is the new length."""
    x, times, axis = (_argument(call, i, n) for i, n in enumerate(("input", "repeats", "dim")))
    out = call.outputs[0]
    if _is_int(times) and _is_int(axis) and out is not None:
        at = number(axis) % len(value(out).shape)
        if value(x.value).shape[at] == 1:
            yield Requirement(argument=times, value=out, axis=at)


def _convolution(call: Call, value: Lookup) -> Iterator[Requirement]:
    transposed = call.function.startswith("conv_transpose")
    groups = _argument(call, 6, "groups", 1)
    x, w = _argument(call, 0, "input"), _argument(call, 1, "weight")
    if number(groups) > 1:
        rank = len(value(w.value).shape)
        yield Requirement(argument=groups, value=x.value, axis=len(value(x.value).shape) - rank + 1, rows=True)
        if transposed and call.outputs[0] is not None:
            out = call.outputs[0]
            yield Requirement(argument=groups, value=out, axis=len(value(out).shape) - rank + 1, rows=True)


def _group_norm(call: Call, value: Lookup) -> Iterator[Requirement]:
    x, groups = _argument(call, 0, "input"), _argument(call, 1, "num_groups")
    if number(groups) > 1:
        yield Requirement(argument=groups, value=x.value, axis=1, rows=True)


def _last_axes(call: Call, value: Lookup) -> Iterator[Requirement]:
    """layer_norm, rms_norm(x, shape, ...)."""
    x, shape = _argument(call, 0, "input"), _argument(call, 1, "normalized_shape")
    rank = len(value(x.value).shape)
    yield from _lengths(shape, x.value, rank - len(shape))


def _pad(call: Call, value: Lookup) -> Iterator[Requirement]:
    out = call.outputs[0]
    pads = _argument(call, 1, "pad")
    if out is None:
        return
    shape = value(out).shape
    for position, amount in enumerate(pads):
        axis = len(shape) - 1 - position // 2
        if not _is_int(amount) or number(amount) <= 0:
            continue
        low, high = (0, number(amount)) if position % 2 == 0 else (shape[axis] - number(amount), shape[axis])
        yield Requirement(argument=amount, value=out, axis=axis, start=low, stop=high)


_READERS = table(
    *(
        (name, _after_tensor)
        for name in ("view", "reshape", "expand", "new_zeros", "new_ones", "new_full", "new_empty")
    ),
    *((name, _factory) for name in ("zeros", "ones", "empty", "full")),
    ("unflatten", _unflatten),
    ("split", _split),
    ("split_with_sizes", _split),
    ("narrow", _narrow),
    ("repeat_interleave", _repeat),
    ("__getitem__", _item),
    ("__setitem__", _item),
    ("slice", _aten_slice),
    ("slice_scatter", _slice_scatter),
    *((f"conv{n}d", _convolution) for n in (1, 2, 3)),
    *((f"conv_transpose{n}d", _convolution) for n in (1, 2, 3)),
    ("group_norm", _group_norm),
    ("layer_norm", _last_axes),
    ("rms_norm", _last_axes),
    ("pad", _pad),
)
