"""Networks that other tools trip over: cut equals mask, or everything is frozen with a true reason."""

from __future__ import annotations

import pytest
import torch

from helpers.nasty import NASTY
from helpers.nets import randomise
from helpers.oracle import assert_equal_to_silenced, exact_only
from helpers.random_plans import random_plan
from secateur._cost import cost
from secateur._couple import couple
from secateur._cut import cut
from secateur._trace import trace

# an honest refusal: every entry is bound to its neighbour, or counted by a literal
REFUSED = {"Minus": "fixed in the forward", "Capsule": "fixed in the forward"}


@pytest.mark.parametrize("name", [n for n in NASTY if n not in REFUSED])
def test_nasty_network_is_cut_exactly(name: str) -> None:
    torch.manual_seed(0)
    kind, inputs = NASTY[name]
    model = randomise(kind())
    groups = couple(trace(model, inputs))
    dense = sum(p.numel() for p in model.parameters())
    removed = []
    for seed in range(3):
        plan = random_plan(groups, seed)
        small, receipt = cut(model, groups, plan)
        assert receipt.verification is not None
        assert receipt.verification.error <= 1e-9
        params = sum(p.numel() for p in small.parameters())
        assert cost(groups.costs, [len(k) for k in plan.kept]).params == params
        removed.append(1 - params / dense)
        plan = random_plan(groups, seed, may_go=exact_only)
        if all(g.exact or len(k) == g.n_units for g, k in zip(groups.groups, plan.kept, strict=True)):
            small, _ = cut(model, groups, plan, verify=False)
            assert_equal_to_silenced(model, small, groups, plan, inputs)
    assert max(removed) > 0.2


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_frozen_with_the_reason(name: str) -> None:
    kind, inputs = NASTY[name]
    groups = couple(trace(kind().eval(), inputs))
    assert not groups.groups
    assert any(REFUSED[name] in f.reason and "nasty.py:" in f.reason for f in groups.frozen)
