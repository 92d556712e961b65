"""Recover: recalibration against the statistics computed by hand, training against a loop written out."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from secateur._fit import Training, make_optimizer, rate
from secateur._recover import derive, recover, seeded
from secateur.errors import EmptyData, InputError, NonFinite, OneShotIterable, TaskShapeError
from secateur.recoveries import RECOVERIES, chain, distill, finetune, recalibrate
from secateur.recoveries.distill import soft_losses
from secateur.schema.task import Task

TASK = Task(
    forward=lambda model, batch: model(batch[0]),
    losses=lambda out, batch: F.cross_entropy(out, batch[1], reduction="none"),
    correct=lambda out, batch: (out.argmax(-1) == batch[1]).double(),
)


def blobs(n: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=g)
    return torch.randn(n, 5, generator=g) + 2.0 * F.one_hot(y, 5), y


def batches(n: int = 60, size: int = 16):
    x, y = blobs(n)
    return list(zip(x.split(size), y.split(size), strict=True))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.outer = nn.Linear(8, 3)

    def forward(self, x):
        return self.outer(self.drop(torch.relu(self.norm(self.inner(x)))))


def snapshot(model: nn.Module):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        {k: m.training for k, m in model.named_modules()},
        {k: (None if p.grad is None else p.grad.clone()) for k, p in model.named_parameters()},
    )


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# ------------------------------------------------------------------------------------- recalibrate
@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_recalibrated_statistics_are_the_exact_ones_whatever_the_batch_sizes(sizes, seed):
    x = torch.randn(sum(sizes), 5, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    data = [(part, None) for part in x.split(sizes)]
    net = Net()
    made = recover(net, data, TASK, recovery=recalibrate())
    seen = net.inner(x).detach().double()
    assert torch.allclose(made.norm.running_mean.double(), seen.mean(0), atol=1e-5)
    assert torch.allclose(made.norm.running_var.double(), seen.var(0, unbiased=True), rtol=1e-4, atol=1e-6)
    assert int(made.norm.num_batches_tracked) == len(sizes)
    assert torch.equal(net.norm.running_mean, torch.zeros(8))


def test_deep_recalibration_in_one_batch_equals_torch_with_momentum_one():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    x = torch.randn(7, 1, 9, 9) * 2 + 1
    made = recover(net, [(x, None)], TASK, recovery=recalibrate())
    by_torch = copy.deepcopy(net).train()
    for module in by_torch.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        by_torch(x)
    for name, value in by_torch.named_buffers():
        assert torch.allclose(dict(made.named_buffers())[name], value, rtol=1e-5, atol=1e-6), name


def test_a_last_batch_of_one_example_counts_and_does_not_crash():
    x = torch.randn(9, 5)
    net = Net()
    made = recover(net, [(x[:8], None), (x[8:], None)], TASK, recovery=recalibrate())
    assert torch.allclose(made.norm.running_mean, net.inner(x).detach().mean(0), atol=1e-6)


def test_recalibration_stops_after_the_batches_asked_for():
    x = torch.randn(30, 5)
    net, told = Net(), []
    made = recover(
        net, [(p, None) for p in x.split(10)], TASK, recovery=recalibrate(n_batches=2),
        progress=lambda *a: told.append(a),
    )  # fmt: skip
    assert torch.allclose(made.norm.running_mean, net.inner(x[:20]).detach().mean(0), atol=1e-6)
    assert told == [("recalibrate", 1, 2), ("recalibrate", 2, 2)]


def test_recalibration_changes_nothing_but_statistics_and_leaves_other_models_alone():
    net = Net()
    made = recover(net, batches(), TASK, recovery=recalibrate())
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), made.parameters(), strict=True))
    assert not made.norm._forward_pre_hooks
    plain = nn.Linear(5, 3)
    assert same(snapshot(recover(plain, batches(), TASK, recovery=recalibrate())), snapshot(plain))


def test_activations_that_are_not_finite_are_refused_by_recalibration():
    data = [(torch.full((4, 5), float("inf")), None)]
    with pytest.raises(NonFinite, match="before a batch norm"):
        recover(Net(), data, TASK, recovery=recalibrate())


# ------------------------------------------------------------------------------------- training
def test_finetune_equals_the_loop_written_out():
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    data = [(x.double(), y) for x, y in batches()]
    made = recover(net, data, TASK, recovery=finetune(epochs=2, lr=0.01, weight_decay=0.1, clip=0.5, warmup=0.25))
    by_hand = copy.deepcopy(net)
    matrices = [p for p in by_hand.parameters() if p.ndim > 1]
    vectors = [p for p in by_hand.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])
    for t in range(8):
        lr = 0.01 * (t + 1) / 2 if t < 2 else 0.01 * 0.5 * (1 + math.cos(math.pi * (t - 2) / 6))
        for group in optimizer.param_groups:
            group["lr"] = lr
        x, y = data[t % 4]
        optimizer.zero_grad()
        F.cross_entropy(by_hand(x), y).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
        optimizer.step()
    for p, q in zip(made.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-12)


def test_example_weights_weigh_in_the_training_loss():
    weighted = Task(forward=TASK.forward, losses=TASK.losses, weights=lambda b: (b[1] == 0).double())
    net = nn.Linear(5, 3)
    x, y = blobs()
    only_zeros = [(x[y == 0], y[y == 0])]
    setting = finetune(epochs=3, optimizer="sgd", lr=0.1)
    a = recover(net, [(x, y)], weighted, recovery=setting)
    b = recover(net, only_zeros, TASK, recovery=setting)
    assert torch.allclose(a.weight, b.weight, atol=1e-6)


@given(st.integers(1, 300), st.floats(0.0, 0.95), st.booleans())
def test_the_learning_rate_rises_to_its_peak_and_never_leaves_its_range(updates, warmup, cosine):
    training = Training(
        epochs=1, lr=0.3, weight_decay=0, optimizer="sgd", clip=None, warmup=warmup, cosine=cosine
    )  # fmt: skip
    rates = [rate(t, updates, training) for t in range(updates)]
    rising = math.ceil(warmup * updates)
    assert all(0.0 < r <= 0.3 + 1e-12 for r in rates)
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    assert max(rates) == pytest.approx(0.3)


def test_biases_and_norms_get_no_weight_decay():
    net = Net()
    training = Training(epochs=1, lr=1.0, weight_decay=0.2, optimizer="adamw", clip=1.0, warmup=0.0, cosine=True)
    groups = make_optimizer(list(net.parameters()), training).param_groups
    decayed = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert {n: decayed[id(p)] for n, p in net.named_parameters()} == {
        n: 0.2 if n in ("inner.weight", "outer.weight") else 0.0 for n, _ in net.named_parameters()
    }


@pytest.mark.parametrize("name", sorted(RECOVERIES))
def test_every_recovery_leaves_model_teacher_and_random_states_alone(name: str):
    net, teacher = Net(), Net()
    net.norm.eval()  # a batch norm that the user has frozen
    net.inner.weight.requires_grad_(False)
    TASK.losses(net(blobs()[0]), batches(size=60)[0]).sum().backward()
    x, y = blobs()
    own = torch.Generator().manual_seed(3)
    data = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, generator=own)
    before = snapshot(net), snapshot(teacher), torch.get_rng_state(), own.get_state()
    python, numpy = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    made = recover(net, data, TASK, recovery=RECOVERIES[name](), teacher=teacher, seed=1)
    assert same((snapshot(net), snapshot(teacher), torch.get_rng_state(), own.get_state()), before)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy)  # noqa: NPY002
    assert {k: m.training for k, m in made.named_modules()} == {k: m.training for k, m in net.named_modules()}
    assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in net.parameters()]
    assert all(p.grad is None for p in made.parameters())
    assert torch.equal(made.inner.weight, net.inner.weight)


def test_a_batch_norm_frozen_in_a_training_model_stays_frozen_and_an_eval_model_is_trained_in_train_mode():
    frozen = Net()
    frozen.norm.eval()
    made = recover(frozen, batches(), TASK, recovery=finetune(epochs=1))
    assert torch.equal(made.norm.running_mean, frozen.norm.running_mean)
    asleep = Net().eval()
    made = recover(asleep, batches(), TASK, recovery=finetune(epochs=1))
    assert not torch.equal(made.norm.running_mean, asleep.norm.running_mean)
    assert not any(m.training for m in made.modules())


@pytest.mark.parametrize("own_generator", ["none", "loader", "sampler"])
def test_one_seed_gives_the_same_bits_and_another_seed_others(own_generator: str):
    x, y = blobs()
    data = TensorDataset(x, y)
    generator = torch.Generator().manual_seed(5)
    loader = {
        "none": lambda: DataLoader(data, batch_size=16, shuffle=True),
        "loader": lambda: DataLoader(data, batch_size=16, shuffle=True, generator=generator),
        "sampler": lambda: DataLoader(data, batch_size=16, sampler=RandomSampler(data, generator=generator)),
    }[own_generator]()
    net = Net()
    runs = []
    for seed in (7, 7, 8):
        torch.rand(seed)  # whatever happened before must not matter
        next(iter(loader))
        runs.append(recover(net, loader, TASK, recovery=finetune(epochs=2), seed=seed).state_dict())
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_seeded_restores_also_after_an_error():
    before, python = torch.get_rng_state(), random.getstate()
    with pytest.raises(KeyError), seeded(3):
        raise KeyError(torch.rand(2), random.random())
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


@given(st.integers(0, 10**6), st.integers(0, 50))
def test_derived_seeds_fit_every_generator_and_differ_between_purposes(seed: int, step: int):
    made = {derive(seed, step), derive(seed, step, "recover"), derive(seed, step + 1), derive(seed + 1, step)}
    assert len(made) == 4
    assert all(0 <= s < 2**63 for s in made)


# ------------------------------------------------------------------------------------- distillation
@given(st.integers(1, 4), st.integers(2, 6), st.floats(0.5, 8.0), st.integers(0, 99))
def test_soft_losses_are_the_divergence_of_softmaxes(n, classes, temperature, seed):
    g = torch.Generator().manual_seed(seed)
    s, t = torch.randn(n, classes, generator=g).double(), torch.randn(n, classes, generator=g).double()
    p, q = torch.softmax(t / temperature, -1), torch.softmax(s / temperature, -1)
    by_hand = temperature**2 * torch.distributions.kl_divergence(
        torch.distributions.Categorical(p), torch.distributions.Categorical(q)
    )
    made = soft_losses(s, t, temperature=temperature, distance="kl", class_dim=-1)
    assert torch.allclose(made, by_hand, atol=1e-9)
    maps = soft_losses(
        s[:, :, None].expand(n, classes, 3), t[:, :, None].expand(n, classes, 3),
        temperature=temperature, distance="kl", class_dim=1,
    )  # fmt: skip
    assert torch.allclose(maps, by_hand, atol=1e-9)
    squared = soft_losses(s, t, temperature=1.0, distance="squared", class_dim=-1)
    assert torch.allclose(squared, (s - t).pow(2).mean(-1))


def test_distillation_without_labels_comes_near_the_teacher():
    teacher, student = nn.Linear(5, 3), nn.Linear(5, 3)
    data = [(x, None) for x, _ in batches()]
    made = recover(student, data, TASK, recovery=distill(epochs=60, lr=0.05, weight=1.0), teacher=teacher)
    x = blobs(seed=1)[0]

    def apart(model):
        return (torch.softmax(model(x), -1) - torch.softmax(teacher(x), -1)).abs().max().item()

    assert apart(made) < 0.02 < apart(student)


def test_half_the_weight_is_half_of_each_loss():
    teacher, student = nn.Linear(5, 3), nn.Linear(5, 3)
    x, y = blobs()
    step = {"epochs": 1, "optimizer": "sgd", "lr": 1.0, "warmup": 0.0, "weight_decay": 0.0, "clip": None}
    made = recover(student, [(x, y)], TASK, recovery=distill(**step, weight=0.25, temperature=3.0), teacher=teacher)
    p = copy.deepcopy(student)
    soft = F.kl_div(
        F.log_softmax(p(x) / 3, -1), F.log_softmax(teacher(x) / 3, -1), log_target=True, reduction="batchmean"
    )
    (0.25 * 9 * soft + 0.75 * F.cross_entropy(p(x), y)).backward()
    # The first Nesterov step from rest is lr (1 + momentum) times the gradient.
    assert torch.allclose(made.weight, student.weight - 1.9 * p.weight.grad, atol=1e-5)


def test_the_teacher_runs_in_eval_mode():
    class Spy(nn.Linear):
        def forward(self, x):
            assert not self.training
            assert not torch.is_grad_enabled()
            return super().forward(x)

    teacher = Spy(5, 3)
    recover(nn.Linear(5, 3), batches(), TASK, recovery=distill(epochs=1), teacher=teacher)
    assert teacher.training


def test_logits_can_be_taken_out_of_an_output_object():
    boxed = Task(forward=lambda m, b: {"logits": m(b[0])}, losses=lambda o, b: TASK.losses(o["logits"], b))
    student, teacher = nn.Linear(5, 3), nn.Linear(5, 3)
    a = recover(student, batches(), boxed, recovery=distill(epochs=1, logits=lambda o: o["logits"]), teacher=teacher)
    b = recover(student, batches(), TASK, recovery=distill(epochs=1), teacher=teacher)
    assert torch.equal(a.weight, b.weight)
    with pytest.raises(TaskShapeError, match="logits=lambda"):
        recover(student, batches(), boxed, recovery=distill(epochs=1), teacher=teacher)


def test_a_chain_does_one_after_the_other():
    net = Net()
    both = chain(recalibrate(), finetune(epochs=1, optimizer="sgd"))
    assert both.name == "recalibrate + finetune"
    assert both.gradients
    assert "2105.07576" in both.source
    made = recover(net, batches(), TASK, recovery=both, seed=4)
    first = recover(net, batches(), TASK, recovery=recalibrate(), seed=4)
    second = recover(first, batches(), TASK, recovery=finetune(epochs=1, optimizer="sgd"), seed=4)
    assert same(made.state_dict(), second.state_dict())


# ------------------------------------------------------------------------------------- refusals
def test_bad_input_is_refused_by_name():
    net = Net()
    with pytest.raises(OneShotIterable):
        recover(net, (b for b in batches()), TASK, recovery=finetune())
    with pytest.raises(EmptyData):
        recover(net, [], TASK, recovery=finetune())
    with pytest.raises(InputError, match="needs the dense model"):
        recover(net, batches(), TASK, recovery=distill())
    with pytest.raises(InputError, match="requires a gradient"):
        recover(copy.deepcopy(net).requires_grad_(False), batches(), TASK, recovery=finetune())
    with pytest.raises(InputError, match="empty chain"):
        chain()


def test_a_last_batch_of_one_example_in_training_is_refused_with_what_to_do():
    x, y = blobs(17)
    data = list(zip(x.split(16), y.split(16), strict=True))
    with pytest.raises(InputError, match="drop_last"):
        recover(Net(), data, TASK, recovery=finetune())
    wrong = Task(forward=lambda m, b: int("no"), losses=TASK.losses)
    with pytest.raises(ValueError, match="invalid literal"):
        recover(Net(), data, wrong, recovery=finetune())


def test_a_loss_or_gradient_that_is_not_finite_stops_the_training_and_says_where():
    net = nn.Linear(5, 3)
    before = snapshot(net)
    data = batches()
    data[2] = (data[2][0] * float("nan"), data[2][1])
    with pytest.raises(NonFinite, match="epoch 1, batch 2"):
        recover(net, data, TASK, recovery=finetune())
    steep = Task(forward=TASK.forward, losses=lambda out, b: (out.sum(1) - out.sum(1).detach()).abs().sqrt())
    with pytest.raises(NonFinite, match="gradient"):
        recover(net, batches(), steep, recovery=finetune())
    assert same(snapshot(net), before)


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (finetune, {"epochs": 0}),
        (finetune, {"lr": 0.0}),
        (finetune, {"lr": float("nan")}),
        (finetune, {"weight_decay": -1.0}),
        (finetune, {"optimizer": "adam"}),
        (finetune, {"clip": 0.0}),
        (finetune, {"warmup": 1.0}),
        (distill, {"temperature": 0.0}),
        (distill, {"weight": 0.0}),
        (distill, {"distance": "cosine"}),
        (recalibrate, {"n_batches": 0}),
    ],
)
def test_settings_out_of_range_are_refused_and_named(make, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        make(**bad)
