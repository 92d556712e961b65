"""Programs of torch.export as an entrance: the same groups as from the model, or fewer, and the cut is of the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helpers.nets import build
from helpers.random_plans import random_plan
from secateur._couple import couple
from secateur._cut import cut
from secateur._trace import trace
from secateur.errors import InputError
from secateur.schema.groups import Groups

SAME = (
    "perceptron residual grouped dense unet squeeze_excite pixel_shuffle wavenet inplace inplace_slice conv1d "
    "group_norm_inside layer_norm channels_last chunked_glu einsum_attention weight_norm"
).split()
COARSER = "pad_lambda shuffle own_attention explicit_attention".split()


def recorded_both_ways(name: str) -> tuple[nn.Module, Groups, Groups]:
    model, inputs = build(name)
    model.eval()
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    program = torch.export.export(model, args)
    return model, couple(trace(model, exported=program)), couple(trace(model, args))


def members(groups: Groups) -> set[frozenset[tuple[str, int, int]]]:
    """Every unit, as the indices of parameters that go with it."""
    return {
        frozenset((m.param, m.axis, i) for m in g.members for i, u in enumerate(m.units) if u == unit)
        for g in groups.groups
        for unit in range(g.n_units)
    }


@pytest.mark.parametrize("name", SAME)
def test_a_program_gives_the_groups_of_the_model(name: str) -> None:
    model, exported, eager = recorded_both_ways(name)
    assert [(g.name, g.members, g.exact) for g in exported.groups] == [
        (g.name, g.members, g.exact) for g in eager.groups
    ]
    assert exported.settings == eager.settings
    assert exported.equations == eager.equations
    small, receipt = cut(model, exported, random_plan(exported, 0))
    assert type(small) is type(model)
    assert receipt.verification is not None
    assert receipt.verification.error < 1e-9


@pytest.mark.parametrize("name", COARSER)
def test_where_integers_are_literals_a_program_gives_fewer_units_and_never_others(name: str) -> None:
    model, exported, eager = recorded_both_ways(name)
    assert members(exported) < members(eager)
    assert any("fixed in the forward" in f.reason for f in exported.frozen)
    if exported.groups:
        _, receipt = cut(model, exported, random_plan(exported, 0))
        assert receipt.verification is not None


def test_a_program_with_a_free_batch_says_nothing_about_the_batch() -> None:
    model, inputs = build("residual")
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(model.eval(), (inputs,), dynamic_shapes=shapes)
    graph = trace(model, exported=program)
    assert {node.module for node in graph.runs[0].nodes} >= {"stem", "head"}
    assert any("nets.py:" in node.source for node in graph.runs[0].nodes)
    _, receipt = cut(model, couple(graph), random_plan(couple(graph), 1))
    assert receipt.verification is not None
    assert "eval, one example more" in receipt.verification.checks


def test_a_program_of_another_model_is_refused() -> None:
    model, inputs = build("residual")
    program = torch.export.export(model.eval(), (inputs,))
    other = copy.deepcopy(model)
    other.head = nn.Linear(12, 7)
    with pytest.raises(InputError, match="another model"):
        trace(other, exported=program)


def test_neither_inputs_nor_a_program_is_refused() -> None:
    model, _ = build("perceptron")
    with pytest.raises(InputError, match="no example inputs"):
        trace(model)
