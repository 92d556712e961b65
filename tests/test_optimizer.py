"""carry_optimizer: training goes on as if the removed weights had only been masked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from secateur import _surgery
from secateur._optimizer import carry_optimizer
from secateur.errors import InputError
from secateur.schema.receipt import Receipt

KEPT = (0, 2, 5)
MAKERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def receipt_of(model: nn.Module, kept: tuple[int, ...]) -> Receipt:
    return Receipt(
        kept={"0.weight": (kept, None), "0.bias": (kept,), "2.weight": (None, kept)},
        shapes={n: tuple(p.shape) for n, p in model.named_parameters()},
        changes=(),
        swaps=(),
        structure=_surgery.fingerprint_structure(model),
    )


def train(model: nn.Module, optimizer, data, *, dead: tuple[int, ...] = ()) -> None:
    for x, y in data:
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        for unit in dead:
            model[0].weight.grad[unit] = 0
            model[0].bias.grad[unit] = 0
            model[2].weight.grad[:, unit] = 0
        optimizer.step()
        with torch.no_grad():
            for unit in dead:  # momentum revives what is only masked
                model[2].weight[:, unit] = 0


def data(n: int = 6):
    return [(torch.randn(8, 4).double(), torch.randn(8, 3).double()) for _ in range(n)]


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_training_goes_on_as_if_the_removed_units_were_only_masked(name: str):
    dense, batches = net(), data()
    optimizer = MAKERS[name](dense.parameters())
    train(dense, optimizer, batches)
    receipt = receipt_of(dense, KEPT)
    small = _surgery.apply(dense, receipt)
    carried = carry_optimizer(optimizer, small, receipt)
    state = copy.deepcopy(optimizer.state_dict())
    train(small, carried, batches)
    assert str(optimizer.state_dict()) == str(state)
    with torch.no_grad():
        for unit in (1, 3, 4):
            dense[2].weight[:, unit] = 0
    train(dense, optimizer, batches, dead=(1, 3, 4))
    kept = list(KEPT)
    assert torch.allclose(small[0].weight, dense[0].weight[kept], atol=1e-12)
    assert torch.allclose(small[0].bias, dense[0].bias[kept], atol=1e-12)
    assert torch.allclose(small[2].weight, dense[2].weight[:, kept], atol=1e-12)
    assert torch.allclose(small[2].bias, dense[2].bias, atol=1e-12)


def test_a_second_cut_speaks_of_the_dense_model_and_carries_from_the_first():
    dense = net()
    first = receipt_of(dense, KEPT)
    small = _surgery.apply(dense, first)
    optimizer = torch.optim.Adam(small.parameters())
    train(small, optimizer, data(2))
    then = receipt_of(small, (0, 2))
    composed = _surgery.compose(first, then)
    smaller = _surgery.apply(small, then)
    by_step = carry_optimizer(optimizer, smaller, then)
    by_path = carry_optimizer(optimizer, smaller, composed, earlier=first)
    assert composed.kept["0.bias"] == ((0, 5),)
    assert str(by_step.state_dict()) == str(by_path.state_dict())
    moment = optimizer.state[small[2].weight]["exp_avg"]
    assert torch.equal(by_path.state[smaller[2].weight]["exp_avg"], moment[:, [0, 2]])


def test_parameters_are_told_by_the_model_or_by_their_names_where_the_order_is_another():
    dense = net()
    receipt = receipt_of(dense, KEPT)
    small = _surgery.apply(dense, receipt)
    shuffled = torch.optim.SGD([{"params": [dense[2].weight, dense[0].bias], "lr": 0.5}, {"params": [dense[0].weight]}])
    with pytest.raises(InputError, match="model="):
        carry_optimizer(shuffled, small, receipt)
    carried = carry_optimizer(shuffled, small, receipt, model=dense)
    assert all(p is q for p, q in zip(carried.param_groups[0]["params"], (small[2].weight, small[0].bias), strict=True))
    assert carried.param_groups[0]["lr"] == 0.5
    named = torch.optim.SGD(reversed(list(dense.named_parameters())), lr=0.1)
    carried = carry_optimizer(named, small, receipt)
    assert carried.param_groups[0]["params"][0] is small[2].bias


def test_state_that_cannot_be_cut_is_refused_and_schedulers_stay_behind():
    dense = net()
    receipt = receipt_of(dense, KEPT)
    small = _surgery.apply(dense, receipt)
    with pytest.raises(InputError, match="outside"):
        carry_optimizer(torch.optim.LBFGS(dense.parameters()), small, receipt)
    factored = torch.optim.Adafactor(dense.parameters(), lr=0.1)
    train(dense, factored, data(1))
    with pytest.raises(InputError, match="shape of its parameter"):
        carry_optimizer(factored, small, receipt)
    scheduled = torch.optim.SGD(dense.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(scheduled, 1)
    carried = carry_optimizer(scheduled, small, receipt)
    before = dense[0].weight.detach().clone()
    train(small, carried, data(1))
    assert torch.equal(dense[0].weight, before)
