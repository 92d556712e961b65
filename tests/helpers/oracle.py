"""A slow, independent answer to "what must a cut model compute?".

Nothing of the library's own oracle is used: the dense model is copied, every weight that belongs to a removed unit is
overwritten by plain indexing, and its own forward is run. That is right for groups that are exact. Groups whose
statistic runs over the cut axis are kept whole here (`exact_only`); their answers are worked out by hand elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.schema.groups import Group, Groups
from secateur.schema.plan import Plan

# not zero: weight norm divides by the norm of the weight
SILENT = 1e-30


def exact_only(group: Group) -> bool:
    """Whether silencing a unit of this group by hand gives the cut model's output."""
    return group.exact


def silence(model: nn.Module, groups: Groups, plan: Plan, roles: Sequence[str] | None = None) -> nn.Module:
    """A copy in double precision with every slice of every removed unit overwritten.

    Args:
        roles: only these members; None = all of them.
    """
    double = copy.deepcopy(model).double()
    tensors = {**dict(double.named_parameters()), **dict(double.named_buffers())}
    with torch.no_grad():
        for group, kept in zip(groups.groups, plan.kept, strict=True):
            for member in group.members:
                if roles is not None and member.role not in roles:
                    continue
                for i, unit in enumerate(member.units):
                    if unit >= 0 and unit not in kept:
                        tensors[member.param].select(member.axis, i).fill_(SILENT)
    return double


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All tensors that the model returns, in double precision and evaluation mode."""
    double = copy.deepcopy(model).double().eval()
    inputs = widen(inputs)
    # torch's fused encoder kernel reads sizes of its own; the plain path is what both models share
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            if isinstance(inputs, Mapping):
                out = double(**inputs)
            elif isinstance(inputs, tuple):
                out = double(*inputs)
            else:
                out = double(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return flat(out)


def widen(item: Any) -> Any:
    """Floating-point inputs in double precision."""
    if isinstance(item, Tensor):
        return item.double() if item.is_floating_point() else item
    if isinstance(item, Mapping):
        return {k: widen(v) for k, v in item.items()}
    if isinstance(item, tuple | list):
        return type(item)(widen(v) for v in item)
    return item


def flat(item: Any) -> list[Tensor]:
    """The tensors inside an output, in order."""
    if isinstance(item, Tensor):
        return [item]
    parts = list(item.values()) if isinstance(item, Mapping) else item if isinstance(item, tuple | list) else []
    return [t for part in parts for t in flat(part)]


def gap(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Largest difference relative to the largest expected entry; raises where the shapes differ."""
    assert [tuple(t.shape) for t in expected] == [tuple(t.shape) for t in got]
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if a.is_floating_point() and a.numel():
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)))
        else:
            assert torch.equal(a, b)
    return worst


def assert_equal_to_silenced(
    model: nn.Module, small: nn.Module, groups: Groups, plan: Plan, inputs: Any, tolerance: float = 1e-9
) -> float:
    """Raise unless the cut model computes what the silenced one does; returns the distance to the dense output."""
    removed = [g for g, kept in zip(groups.groups, plan.kept, strict=True) if len(kept) < g.n_units]
    assert all(g.exact for g in removed), "this oracle cannot judge an inexact group"
    got = run(small, inputs)
    difference = gap(run(silence(model, groups, plan), inputs), got)
    assert difference < tolerance, f"the cut model is off by {difference:.2e}"
    return gap(run(model, inputs), got)
