"""cut: what holds for every network, whatever it is made of. One battery over `helpers.nets.NETS`."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from helpers.nets import NETS, build
from helpers.oracle import assert_equal_to_silenced, exact_only, flat, gap, run, silence
from helpers.random_plans import keep_all, plan_of, random_plan
from secateur._cost import cost, full_counts
from secateur._couple import couple
from secateur._cut import cut
from secateur._surgery import apply, fingerprint_weights
from secateur._trace import trace
from secateur._units import call
from secateur.schema._record import from_json, to_json
from secateur.schema.groups import Groups
from secateur.schema.receipt import Receipt

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
SEEDS = (0, 1, 2)
every_net = pytest.mark.parametrize("name", NETS)


@functools.cache
def prepared(name: str) -> tuple[nn.Module, Any, Groups]:
    model, inputs = build(name)
    return model, inputs, couple(trace(model, inputs))


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@every_net
def test_cut_equals_the_model_silenced_by_hand(name: str) -> None:
    model, inputs, groups = prepared(name)
    for seed in SEEDS:
        plan = random_plan(groups, seed, may_go=exact_only)
        small, _ = cut(model, groups, plan, verify=False)
        assert_equal_to_silenced(model, small, groups, plan, inputs)


@every_net
def test_cut_is_verified_and_really_smaller(name: str) -> None:
    model, _, groups = prepared(name)
    for seed in SEEDS:
        small, receipt = cut(model, groups, random_plan(groups, seed))
        check = receipt.verification
        assert check is not None
        assert check.error <= 1e-9
        # nothing passes because nothing was taken
        assert check.distance > 1e-4
        assert n_parameters(small) < 0.95 * n_parameters(model)
        assert isinstance(small, type(model))
        assert type(small) is type(model) or type(model).__name__ in type(small).__name__


@every_net
def test_cost_of_the_groups_counts_the_parameters_of_the_cut_model(name: str) -> None:
    model, _, groups = prepared(name)
    assert cost(groups.costs, full_counts(groups)).params == n_parameters(model)
    plan = random_plan(groups, 5)
    small, _ = cut(model, groups, plan, verify=False)
    assert cost(groups.costs, [len(k) for k in plan.kept]).params == n_parameters(small)
    kept_bytes = sum(t.numel() * t.element_size() for t in (*small.parameters(), *small.buffers()))
    assert cost(groups.costs, [len(k) for k in plan.kept]).memory == kept_bytes


@every_net
def test_silencing_the_readers_of_a_gated_unit_is_removing_it(name: str) -> None:
    model, inputs, groups = prepared(name)
    tied = {g.index for g in groups.groups if any(m.role == "both" for m in g.members)}
    plan = random_plan(groups, 3, may_go=lambda g: g.exact and g.gated and g.index not in tied)
    small, _ = cut(model, groups, plan, verify=False)
    if all(len(k) == g.n_units for k, g in zip(plan.kept, groups.groups, strict=True)):
        assert any(not g.exact or not g.gated or g.index in tied for g in groups.groups)
    assert gap(run(silence(model, groups, plan, roles=("read",)), inputs), run(small, inputs)) < 1e-9


@every_net
def test_the_model_of_the_user_is_untouched(name: str) -> None:
    model, inputs = build(name)
    model.train()
    before = fingerprint_weights(model)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    attributes = plain_attributes(model)
    groups = couple(trace(model, inputs))
    small, _ = cut(model, groups, random_plan(groups, 1))
    assert fingerprint_weights(model) == before
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert plain_attributes(model) == attributes
    assert not {id(p) for p in model.parameters()} & {id(p) for p in small.parameters()}
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in small.parameters()}


def plain_attributes(model: nn.Module) -> dict[str, dict[str, str]]:
    return {n: {k: repr(v) for k, v in vars(m).items() if k[0] != "_"} for n, m in model.named_modules()}


@every_net
def test_cut_model_keeps_flags_and_names(name: str) -> None:
    model, _, groups = prepared(name)
    small, _ = cut(model, groups, random_plan(groups, 2), verify=False)
    assert list(small.state_dict()) == list(model.state_dict())
    assert [n for n, _ in small.named_modules()] == [n for n, _ in model.named_modules()]
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [type(p) for p in small.parameters()] == [type(p) for p in model.parameters()]


@every_net
def test_cut_model_lives_on(name: str) -> None:
    """deepcopy, state_dict, train and eval, one step of backward: all as on the dense model."""
    model, inputs, groups = prepared(name)
    small, receipt = cut(model, groups, random_plan(groups, 2), verify=False)
    expected = run(small, inputs)
    assert gap(expected, run(copy.deepcopy(small), inputs)) == 0.0
    other = apply(build(name, seed=9)[0], receipt)
    other.load_state_dict(small.state_dict())
    for (key, buffer), (_, source) in zip(other.named_buffers(), small.named_buffers(), strict=True):
        if key not in small.state_dict():
            buffer.copy_(source)
    assert gap(expected, run(other, inputs)) == 0.0
    assert gradients(small.train(), inputs) == gradients(copy.deepcopy(model).train(), inputs)
    assert not any(m.training for m in small.eval().modules())


def gradients(model: nn.Module, inputs: Any) -> set[str]:
    model.zero_grad()
    sum(t.square().sum() for t in flat(call(model, inputs)) if t.is_floating_point()).backward()
    for n, p in model.named_parameters():
        assert p.grad is None or p.grad.shape == p.shape, n
        assert p.grad is None or bool(p.grad.isfinite().all()), n
    return {n for n, p in model.named_parameters() if p.grad is not None}


@every_net
def test_a_receipt_does_the_same_cut_again(name: str) -> None:
    model, _, groups = prepared(name)
    small, receipt = cut(model, groups, random_plan(groups, 4))
    again = from_json(Receipt, to_json(receipt))
    assert again == receipt
    assert fingerprint_weights(apply(model, again)) == fingerprint_weights(small)


@every_net
def test_cuts_compose_in_indices_of_the_dense_model(name: str) -> None:
    model, inputs, groups = prepared(name)
    once, first = cut(model, groups, random_plan(groups, 0, 0.1, 0.4), verify=False)
    then = couple(trace(once, inputs))
    if not then.groups:
        pytest.skip("nothing is left to cut")
    twice, receipt = cut(once, then, random_plan(then, 1, 0.1, 0.5), receipt=first, verify=True)
    assert receipt.structure == first.structure
    assert receipt.shapes == first.shapes
    direct = apply(model, receipt)
    assert fingerprint_weights(direct) == fingerprint_weights(twice)
    assert gap(run(twice, inputs), run(direct, inputs)) == 0.0
    for axes, tensor_name in ((axes, n) for n, axes in receipt.kept.items()):
        for size, kept in zip(receipt.shapes[tensor_name], axes, strict=True):
            assert kept is None or (list(kept) == sorted(set(kept)) and set(kept) <= set(range(size)))


@every_net
def test_keeping_everything_changes_nothing(name: str) -> None:
    model, inputs, groups = prepared(name)
    small, receipt = cut(model, groups, plan_of(groups, keep_all(groups)), verify=False)
    assert receipt.kept == {}
    assert receipt.changes == ()
    assert fingerprint_weights(small) == fingerprint_weights(model)
    assert gap(run(model, inputs), run(small, inputs)) == 0.0


@pytest.mark.parametrize("name", NETS)
def test_one_unit_of_each_group_may_be_all_that_is_left(name: str) -> None:
    model, _, groups = prepared(name)
    small, receipt = cut(model, groups, random_plan(groups, 0, 1.0, 1.0))
    assert receipt.verification is not None
    assert n_parameters(small) < n_parameters(model)


def test_tracing_and_coupling_twice_give_the_same_groups() -> None:
    for name in ("residual", "own_attention", "lstm_two_both_ways"):
        model, inputs, groups = prepared(name)
        assert couple(trace(copy.deepcopy(model), inputs)) == groups


def test_half_precision_models_are_cut_in_their_own_precision() -> None:
    model, inputs, _ = prepared("residual")
    half = copy.deepcopy(model).bfloat16()
    groups = couple(trace(half, inputs.bfloat16()))
    small, _ = cut(half, groups, random_plan(groups, 0))
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert small(inputs.bfloat16()).dtype == torch.bfloat16


def test_verification_covers_another_batch_size() -> None:
    model, _, groups = prepared("residual")
    _, receipt = cut(model, groups, random_plan(groups, 0))
    assert receipt.verification is not None
    assert any("one example more" in c for c in receipt.verification.checks)


def test_another_input_than_the_traced_one_gives_the_cut_model_too() -> None:
    """Nothing of the recorded input is baked in: neither batch, length nor image size."""
    for name, inputs in (
        ("unet", torch.randn(3, 3, 16, 12)),
        ("own_attention", torch.randn(1, 9, 6)),
        ("lstm_two_both_ways", torch.randn(4, 3, 5)),
        ("encoder", torch.randn(3, 2, 6)),
        ("conv_lstm", torch.randn(1, 2, 2, 5, 3)),
        ("cell_loop", torch.randn(5, 2, 5)),
    ):
        model, _, groups = prepared(name)
        plan = random_plan(groups, 1, may_go=exact_only)
        small, _ = cut(model, groups, plan, verify=False)
        assert_equal_to_silenced(model, small, groups, plan, inputs)
