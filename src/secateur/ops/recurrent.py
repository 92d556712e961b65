"""Recurrent layers recorded whole: torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu, plain and packed.

    gates[t] = W_ih x[t] + b_ih + W_hh h[t-1] + b_hh,     h[t] = cell(gates[t], h[t-1])

A hidden unit owns its row in every gate of W_ih, W_hh and the biases, its column of W_hh, and its column in whatever
reads the output. One module keeps one hidden_size: layers and directions lose equally many units, each its own.

Index conventions: g gate, h hidden unit, p projected unit, i input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.ops._kernel import Kernel, Label, support
from secateur.ops._rule import Operation, Rule, bare

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """Plain (x, hx, weights, bias, layers, dropout, training, bidirectional, ...) or packed (data, sizes, hx, ...)."""
    packed = isinstance(op.args[3], tuple | list)
    x: Label = op.args[0]
    states = op.args[2] if packed else op.args[1]
    states = [states] if isinstance(states, Label) else list(states)
    rest = op.args[3:] if packed else op.args[2:]
    weights, has_bias, layers, _, _, bidirectional = rest[:6]
    steps = x.shape[0] if packed else x.shape[0] * x.shape[1]
    line = _feature_line(k, x)
    directions = 2 if bidirectional else 1
    per = len(weights) // (layers * directions)
    gates = _GATES[op.op]
    projected = per == (5 if has_bias else 3)
    hidden: list[Tensor] = []
    outputs: list[Tensor] = []
    for layer in range(layers):
        ends = []
        for direction in range(directions):
            first = (layer * directions + direction) * per
            h, out = _layer(k, line, weights[first : first + per], gates, has_bias, projected, steps)
            hidden.append(h)
            ends.append(out)
        outputs += ends
        line = _joined(ends)
    k.even([_row(h) for h in hidden], 1, "one hidden_size per module")
    if projected:
        k.even([_row(o) for o in outputs], 1, "one proj_size per module")
        # torch takes proj_size = hidden_size for no projection at all
        k.facts.least.extend((h, outputs[0].numel() + 1) for h in hidden)
    for n, state in enumerate(states):
        _tie_state(k, state, outputs if n == 0 else hidden)
    shape = op.shapes[0]
    assert shape is not None
    result: list[Label | None] = [Label(shape, tuple(s.reshape((1,) * (len(shape) - 1) + (-1,)) for s in line.slots))]
    for n, final in enumerate(op.shapes[1:]):
        assert final is not None
        result.append(_final_state(final, outputs if n == 0 else hidden))
    return result


def _row(line: Tensor) -> Label:
    return Label((1, line.numel()), (line.reshape(1, -1),))


def _joined(ends: Sequence[Tensor]) -> Label:
    line = torch.cat([e.reshape(-1) for e in ends])
    return Label((1, line.numel()), (line.reshape(1, -1),))


def _feature_line(k: Kernel, x: Label) -> Label:
    """The atoms of the input features (last axis) as [1, I]; whatever varies over time or batch is frozen."""
    x = k.only(x, range(x.rank - 1), "a recurrent layer steps along this axis")
    return Label((1, x.shape[-1]), tuple(s.reshape(1, -1) for s in x.slots))


def _layer(
    k: Kernel, line: Label, weights: Sequence[Label], gates: int, has_bias: bool, projected: bool, steps: int
) -> tuple[Tensor, Tensor]:
    """One direction of one layer: its hidden line [H] and its output line ([H], or [P] with a projection)."""
    w_ih, w_hh = weights[:2]
    rows = [k.contract(line, w_ih, [1], multiplier=steps)]
    hidden = _gate_rows(k, w_ih, gates)
    output = hidden
    if projected:
        w_hr = weights[-1]
        read = k.contract(Label((1, hidden.numel()), (hidden.reshape(1, -1),)), w_hr, [1], multiplier=steps)
        output = _rows(read)
    rows.append(k.contract(Label((1, output.numel()), (output.reshape(1, -1),)), w_hh, [1], multiplier=steps))
    for row in rows:
        _tie_gates(k, row, hidden, gates)
    for bias in weights[2:4] if has_bias else ():
        for slot in bias.slots:
            k.facts.writings.append(slot)
        _tie_gates(k, bias, hidden, gates)
    return hidden, output


def _gate_rows(k: Kernel, w: Label, gates: int) -> Tensor:
    return _rows(w).reshape(gates, -1)[0]


def _rows(label: Label) -> Tensor:
    """The atoms along the first axis; one of length 1 has none, since nothing of it can go."""
    if label.shape[0] == 1:
        return torch.zeros(1, dtype=torch.int32)
    return next(s for s in label.slots if support(s) == {0}).reshape(-1)


def _tie_gates(k: Kernel, rows: Label, hidden: Tensor, gates: int) -> None:
    for slot in rows.slots:
        k.unify(slot.reshape(gates, -1), hidden.reshape(1, -1))


def _tie_state(k: Kernel, state: Label, lines: Sequence[Tensor]) -> None:
    """An initial state [layers * directions, B, H]: zeros may shrink freely, anything else ties all layers."""
    slots = [s for s in state.slots if support(s) == {state.rank - 1}]
    for s in state.slots:
        if support(s) != {state.rank - 1}:
            if _is_virtual(k, s):
                continue
            k.freeze(s, "an initial state differs per layer or example")
    if not slots:
        for line in lines:
            k.freeze(line, "an initial state of fixed size is given")
    for s in slots:
        for line in lines[:1] if _is_virtual(k, s) else lines:
            k.unify(s.reshape(-1), line)


def _is_virtual(k: Kernel, slot: Tensor) -> bool:
    atoms = slot[slot != 0]
    ranges = [k.facts.axes[key] for key in k.facts.virtual]
    low, high = int(atoms.min()), int(atoms.max())
    return any(base <= low and high < base + n for base, n in ranges)


def _final_state(shape: tuple[int, ...], lines: Sequence[Tensor]) -> Label:
    """h_n, c_n [layers * directions, B, H]: each layer has its own units, in equal number, so no grid is needed."""
    grid = torch.stack([line.reshape(-1) for line in lines])
    view = (grid.shape[0], *(1,) * (len(shape) - 2), grid.shape[1])
    return Label(shape, (grid.reshape(view),))


def pack(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """_pack_padded_sequence(x [.., .., F], lengths, batch_first): (data [N, F], batch sizes)."""
    line = _feature_line(k, op.args[0])
    shape = op.shape
    return [Label(shape, line.slots), *[bare(s) for s in op.shapes[1:]]]


def unpack(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """_pad_packed_sequence(data [N, F], batch sizes, batch_first, padding, length): (x [.., .., F], lengths)."""
    data = k.only(op.args[0], [0], "packed steps lie along this axis")
    return [Label(op.shape, tuple(s.unsqueeze(0) for s in data.slots)), *[bare(s) for s in op.shapes[1:]]]


RULES: tuple[tuple[str, Rule], ...] = (
    *((name, recurrent) for name in _GATES),
    ("_pack_padded_sequence", pack),
    ("_pad_packed_sequence", unpack),
)
