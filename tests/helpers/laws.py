"""The law of an op rule on a small network: what it leaves prunable, and that cutting equals silencing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from helpers.oracle import assert_equal_to_silenced, exact_only
from helpers.random_plans import random_plan
from secateur._couple import couple
from secateur._cut import cut
from secateur._trace import trace
from secateur.schema.groups import Groups


def hold(model: nn.Module, inputs: Any, prunable: Mapping[tuple[str, int], int], *, double: bool = True) -> Groups:
    """Cut at three random uneven ratios and compare with the silenced model.

    Args:
        prunable: (parameter, axis) -> how many of its indices can go.
        double: whether the model can compute in double precision.

    Returns:
        The groups.
    """
    model.eval()
    groups = couple(trace(model, inputs))
    for (param, axis), expected in prunable.items():
        found = sum(
            sum(u >= 0 for u in m.units) for g in groups.groups for m in g.members if (m.param, m.axis) == (param, axis)
        )
        assert found == expected, (param, axis, found, [(f.param, f.axis, f.reason) for f in groups.frozen])
    for seed in range(3 if groups.groups else 0):
        plan = random_plan(groups, seed, may_go=exact_only)
        small, receipt = cut(model, groups, plan)
        assert receipt.verification is not None
        if double:
            assert_equal_to_silenced(model, small, groups, plan, inputs)
    return groups
