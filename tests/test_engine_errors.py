"""What the engine refuses: by which error, saying what, and that nothing was changed."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.nets import build, sequence
from helpers.random_plans import keep_all, plan_of, random_plan
from secateur._couple import couple
from secateur._cut import cut
from secateur._surgery import apply, fingerprint_weights
from secateur._trace import trace
from secateur.errors import (
    CoupleError,
    CutError,
    CutMismatch,
    InputError,
    NothingToCut,
    ReceiptMismatch,
    SecateurError,
    TraceError,
    UnsupportedModel,
)
from secateur.ops import RULES, Kernel, Label, Operation
from secateur.schema.groups import Groups
from secateur.schema.plan import Plan


@pytest.fixture
def perceptron() -> tuple[nn.Module, Tensor, Groups]:
    model, inputs = build("perceptron")
    return model, inputs, couple(trace(model, inputs))


# -- trace -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (torch.randn(2, 7), "mat1 and mat2"),
        ((torch.randn(2, 6), 3), "positional argument"),
        ({"y": torch.randn(2, 6)}, "unexpected keyword"),
        ((), "missing 1 required"),
    ],
    ids=["width", "arguments", "keyword", "none"],
)
def test_a_model_that_cannot_run_on_the_example_inputs(inputs: Any, says: str) -> None:
    model, _ = build("perceptron")
    before = fingerprint_weights(model)
    with pytest.raises(TraceError, match="cannot be run on the example inputs") as caught:
        trace(model, inputs)
    assert says in str(caught.value)
    assert "do this:" in str(caught.value)
    assert caught.value.where == "Perceptron"
    assert fingerprint_weights(model) == before


@pytest.mark.parametrize("inputs", [3, "x", None, [], ["x"], [3]], ids=repr)
def test_example_inputs_of_the_wrong_type(inputs: Any) -> None:
    model, _ = build("perceptron")
    with pytest.raises(InputError, match="example inputs"):
        trace(model, inputs)


def test_a_training_mode_that_fails_is_noted_and_evaluation_goes_on() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise ValueError("needs targets in training")
            return self.b(torch.relu(self.a(x)))

    graph = trace(Broken(), torch.randn(2, 6))
    assert [r.mode for r in graph.runs] == ["eval"]
    assert any("needs targets in training" in n for n in graph.notes)
    assert couple(graph).groups


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(build("perceptron")[0], sequence(6)[:, 0])


def quantised() -> nn.Module:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("packed", torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8))

        def forward(self, x: Tensor) -> Tensor:
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Quantised()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2))


def sparse() -> nn.Module:
    model = nn.Linear(4, 4)
    model.register_buffer("mask", torch.eye(4).to_sparse())
    return model


@pytest.mark.parametrize(
    ("make", "says"),
    [(scripted, "scripted"), (quantised, "quantised"), (lazy, "lazy"), (sparse, "sparse")],
    ids=["scripted", "quantised", "lazy", "sparse"],
)
def test_models_that_cannot_be_cut_are_refused_by_name(make: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        trace(make(), torch.randn(2, 4))


# -- couple ----------------------------------------------------------------------------------------------------------


def test_a_rule_that_fails_is_named_with_its_node() -> None:
    def broken(k: Kernel, op: Operation) -> Label:
        raise IndexError("no such slot")

    model, inputs = build("perceptron")
    with pytest.raises(CoupleError, match=r"the rule for aten\.relu\.default failed: IndexError: no such slot"):
        couple(trace(model, inputs), rules={**RULES, "relu": broken})


# -- cut -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["width", "name", "dtype", "tying"])
def test_groups_of_another_model_are_refused(perceptron: tuple[nn.Module, Tensor, Groups], change: str) -> None:
    model, _, groups = perceptron
    other = copy.deepcopy(model)
    if change == "width":
        other.b = nn.Linear(16, 13)
    elif change == "name":
        other.extra = nn.Linear(2, 2)
    elif change == "dtype":
        other.double()
    else:
        other.extra = other.a
    with pytest.raises(ReceiptMismatch, match="made for another model") as caught:
        cut(other, groups, random_plan(groups, 0))
    assert "trace and couple this model" in str(caught.value)


def test_other_weights_of_the_same_model_are_welcome(perceptron: tuple[nn.Module, Tensor, Groups]) -> None:
    _, _, groups = perceptron
    other, _ = build("perceptron", seed=5)
    small, _ = cut(other, groups, random_plan(groups, 0))
    assert small.a.out_features < 16


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ([[]], "at least 1 of"),
        ([[0, 0]], "distinct"),
        ([[16]], "of this group"),
        ([[-1]], "of this group"),
    ],
    ids=["empty", "twice", "beyond", "negative"],
)
def test_kept_units_that_do_not_exist(
    perceptron: tuple[nn.Module, Tensor, Groups], kept: list[list[int]], says: str
) -> None:
    model, _, groups = perceptron
    with pytest.raises(InputError, match=says) as caught:
        cut(model, groups, plan_of(groups, [kept[0], [0]]))
    assert caught.value.where == "a"


def test_a_plan_with_too_few_groups(perceptron: tuple[nn.Module, Tensor, Groups]) -> None:
    model, _, groups = perceptron
    plan = Plan(kept=((0,),), names=("a",), n_units=(16,))
    with pytest.raises(InputError, match="one list of kept units per group"):
        cut(model, groups, plan)


def test_counts_that_violate_an_equation_are_refused_with_its_reason() -> None:
    model, inputs = build("lstm_two_both_ways")
    groups = couple(trace(model, inputs))
    kept = keep_all(groups)
    kept[0] = [0, 1]
    with pytest.raises(CutError, match="one hidden_size per module") as caught:
        cut(model, groups, plan_of(groups, kept))
    assert "2 of 6" in str(caught.value)


def test_a_model_of_which_nothing_can_go_says_why() -> None:
    model = nn.Linear(4, 3)
    groups = couple(trace(model, torch.randn(2, 4)))
    assert not groups.groups
    with pytest.raises(NothingToCut) as caught:
        cut(model, groups, plan_of(groups, []))
    assert "output of the model" in str(caught.value)


def test_groups_read_from_a_file_need_inputs_to_be_verified(perceptron: tuple[nn.Module, Tensor, Groups]) -> None:
    model, inputs, groups = perceptron
    bare = dataclasses.replace(groups, examples=())
    plan = random_plan(groups, 0)
    with pytest.raises(InputError, match="verified on example inputs"):
        cut(model, bare, plan)
    assert cut(model, bare, plan, example_inputs=inputs)[1] == cut(model, groups, plan)[1]
    assert cut(model, bare, plan, verify=False)[1].verification is None


def test_a_receipt_for_another_model_is_refused(perceptron: tuple[nn.Module, Tensor, Groups]) -> None:
    model, _, groups = perceptron
    small, receipt = cut(model, groups, random_plan(groups, 0), verify=False)
    for other in (small, build("residual")[0], nn.Sequential(copy.deepcopy(model))):
        with pytest.raises(ReceiptMismatch, match="another model"):
            apply(other, receipt)


def test_a_receipt_that_did_not_make_this_model_is_refused(perceptron: tuple[nn.Module, Tensor, Groups]) -> None:
    model, inputs, groups = perceptron
    small, _ = cut(model, groups, random_plan(groups, 0), verify=False)
    _, other = cut(model, groups, random_plan(groups, 9, 0.85, 0.9), verify=False)
    again = couple(trace(small, inputs))
    with pytest.raises(ReceiptMismatch):
        cut(small, again, random_plan(again, 0), receipt=other)


# -- wrong rules -----------------------------------------------------------------------------------------------------


def forgets_the_order(k: Kernel, op: Operation) -> Label:
    """A cat whose parts are labelled the wrong way round."""
    first, second = op.args[0]
    swapped = Operation(op=op.op, args=((second, first), *op.args[1:]), kwargs=op.kwargs, shapes=op.shapes)
    return RULES["cat"](k, swapped)  # type: ignore[return-value]


def takes_softmax_for_pointwise(k: Kernel, op: Operation) -> Label:
    return op.args[0]


class Cat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], -1))


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).softmax(-1))


@pytest.mark.parametrize(
    ("model", "rules"),
    [
        (Cat(), {"cat": forgets_the_order}),
        (Softmax(), {"_softmax": takes_softmax_for_pointwise, "softmax": takes_softmax_for_pointwise}),
    ],
    ids=["wrong indices", "statistic forgotten"],
)
def test_a_wrong_rule_is_caught_by_the_verification_and_nothing_has_changed(
    model: nn.Module, rules: dict[str, Any]
) -> None:
    x = torch.randn(2, 6)
    model.train()
    before = fingerprint_weights(model)
    groups = couple(trace(model, x), rules={**RULES, **rules})
    with pytest.raises(CutMismatch) as caught:
        cut(model, groups, random_plan(groups, 0))
    assert caught.value.error is None or caught.value.error > 1e-3
    assert "your model is untouched" in str(caught.value)
    assert fingerprint_weights(model) == before
    assert all(m.training for m in model.modules())
    right = couple(trace(model, x))
    _, receipt = cut(model, right, random_plan(right, 0))
    assert receipt.verification is not None


def test_a_rule_that_ties_too_little_makes_a_cut_that_does_not_run_and_says_so() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.a(x) + self.b(x)))

    model = Sum()
    rules = {**RULES, "add": lambda k, op: op.args[0]}
    groups = couple(trace(model, torch.randn(2, 6)), rules=rules)
    kept = keep_all(groups)
    kept[0] = [0, 3]
    with pytest.raises(CutMismatch, match="does not run"):
        cut(model, groups, plan_of(groups, kept))


def test_every_refusal_is_an_error_of_the_library() -> None:
    for kind in (CoupleError, CutError, CutMismatch, InputError, NothingToCut, TraceError, UnsupportedModel):
        assert issubclass(kind, SecateurError)
    assert issubclass(InputError, ValueError)
