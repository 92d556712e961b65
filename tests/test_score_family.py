"""Criteria with statistics of their own, from a whole network, against slow and independent formulas; and the laws
of all criteria on networks of any shape.
"""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import criteria, tasks
from secateur._couple import couple
from secateur._score import score
from secateur._trace import trace
from secateur.criteria import CRITERIA
from secateur.errors import MissingStatistic
from secateur.schema.groups import Groups
from secateur.schema.scores import Scores
from test_score import CONV_DATA, MLP_DATA, close, convnet, labelled, mlp

TASK = tasks.classification()


def tensor(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def doubled(data: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(x.double(), y) for x, y in data]


def test_grasp_is_half_of_what_the_squared_gradient_loses_when_a_unit_goes() -> None:
    """By finite differences of the squared gradient norm, in the scale of the weights that produce the unit."""
    model, groups = mlp()
    model.double()
    (x, y) = doubled(MLP_DATA)[0]
    parts = [(x[:3], y[:3]), (x[3:], y[3:])]
    found = tensor(score(model, groups, parts, TASK, criterion=criteria.grasp()).values[0])

    def norm(unit: int, scale: float) -> float:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[0].weight[unit] *= scale
            other[0].bias[unit] *= scale
        wanted = [other[0].weight, other[0].bias, other[2].weight]
        grads = torch.autograd.grad(F.cross_entropy(other(x), y), wanted)  # what belongs to a group
        return float(sum(g.square().sum() for g in grads))

    expected = [(norm(u, 1 + 1e-5) - norm(u, 1 - 1e-5)) / 2e-5 / 2 for u in range(5)]
    torch.testing.assert_close(found, tensor(tuple(expected)), rtol=1e-5, atol=1e-9)


def test_synflow_is_the_sum_over_all_paths_through_the_unit() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)
    )
    groups = couple(trace(model, torch.randn(2, 3)))
    found = score(model, groups, [labelled(torch.randn(6, 3), 2)], TASK, criterion=criteria.synflow())
    w = [model[i].weight.detach().abs().double().tolist() for i in (0, 2, 4)]
    by_unit: dict[str, list[float]] = {"0": [0.0] * 4, "2": [0.0] * 5}
    for i, u, v, o in itertools.product(range(3), range(4), range(5), range(2)):
        path = w[0][u][i] * w[1][v][u] * w[2][o][v]
        by_unit["0"][u] += path
        by_unit["2"][v] += path
    assert {g.name for g in groups.groups} == set(by_unit)
    for group, values in zip(groups.groups, found.values, strict=True):
        assert list(values) == pytest.approx(by_unit[group.name])


def test_synflow_does_not_depend_on_the_data_and_changes_nothing() -> None:
    model, groups = convnet()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    one = score(model, groups, CONV_DATA, TASK, criterion=criteria.synflow())
    x, y = CONV_DATA[0]
    other = score(model, groups, [(x[:2] * 3, y[:2]), (x, y)], TASK, criterion=criteria.synflow())
    assert one.values == other.values
    assert min(itertools.chain(*one.values)) >= 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_synflow_refuses_token_ids_by_name() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 7))
    groups = couple(trace(model, torch.randint(0, 7, (2, 3))))
    with pytest.raises(MissingStatistic, match="token ids"):
        score(model, groups, [torch.randint(0, 7, (4, 3))], tasks.language_modeling(), criterion=criteria.synflow())


def test_hrank_is_the_mean_rank_of_the_maps_that_a_convolution_reads() -> None:
    model, groups = convnet()
    with torch.no_grad():
        model[1].weight[0], model[1].bias[0] = 0.0, 1.0  # a constant map: rank 1
        model[1].weight[1], model[1].bias[1] = 0.0, -1.0  # after ReLU nothing is left: rank 0
    kept = Groups(**{f: getattr(groups, f) for f in groups.__dataclass_fields__} | {"groups": groups.groups[:1]})
    x, y = CONV_DATA[0]
    parts = [(x[:4], y[:4]), (x[4:], y[4:])]
    found = score(model, kept, parts, TASK, criterion=criteria.hrank())
    model.eval()
    seen = model[:3](x).detach()
    expected = [sum(int((torch.linalg.svdvals(seen[n, c]) > 1e-5).sum()) for n in range(7)) / 7 for c in range(6)]
    assert list(found.values[0]) == pytest.approx(expected)
    assert (found.values[0][0], found.values[0][1]) == (1.0, 0.0)
    with pytest.raises(MissingStatistic, match="2-D convolutions"):
        score(model, groups, CONV_DATA, TASK, criterion=criteria.hrank())  # the second group is read by a linear map


def test_the_surgeon_keeps_a_random_sample_that_does_not_depend_on_the_batches() -> None:
    model, groups = mlp()
    x, y = labelled(torch.randn(40, 4, generator=torch.Generator().manual_seed(3)))
    made = criteria.obs(samples=10)
    whole = score(model, groups, [(x, y)], TASK, criterion=made)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    parts = [(x[i], y[i]) for i in order.split(7)]
    close(score(model, groups, parts, TASK, criterion=made).values, whole.values)
    everything = score(model, groups, [(x, y)], TASK, criterion=criteria.obs(samples=40))
    assert everything.values != whole.values
    # With all examples and much damping it is the Fisher information.
    damped = score(model, groups, parts, TASK, criterion=[criteria.obs(samples=40, damping=1e6), criteria.fisher()])
    close(damped[0].values, damped[1].values, rel=1e-3)


def test_the_surgeon_finds_a_unit_that_another_can_stand_in_for_cheap() -> None:
    model, groups = mlp()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
        model[2].weight[:, 1] = model[2].weight[:, 0]
    found = score(model, groups, MLP_DATA, TASK, criterion=[criteria.obs(damping=1e-4), criteria.fisher()])
    relative = [a / b for a, b in zip(found[0].values[0], found[1].values[0], strict=True)]
    assert max(relative[:2]) < 0.02


def test_mean_replacement_is_the_slope_on_the_way_to_the_mean() -> None:
    """Finite differences, and the error shrinks at order two: the first order is right."""
    model, groups = convnet()
    model.double().eval()
    model[2] = nn.Tanh()
    x, y = doubled(CONV_DATA)[0]
    parts = [(x[:3], y[:3]), (x[3:], y[3:])]
    found = score(model, groups, parts, TASK, criterion=criteria.mean_replacement())
    seen = model[:3](x).detach()
    flat = model[:5](x).detach()

    def loss(group: int, unit: int, t: float) -> float:
        if group == 0:
            h = seen.clone()
            h[:, unit] += t * (seen[:, unit].mean() - seen[:, unit])
            return float(F.cross_entropy(model[3:](h), y).detach())
        h = flat.clone()
        columns = slice(9 * unit, 9 * unit + 9)  # each element of the flattened map has a mean of its own
        h[:, columns] += t * (flat[:, columns].mean(0) - flat[:, columns])
        return float(F.cross_entropy(model[5:](h), y).detach())

    for group, values in enumerate(found.values):
        for unit, value in enumerate(values):
            off = [abs(loss(group, unit, t) - loss(group, unit, 0) - t * value) for t in (0.02, 0.01)]
            assert math.log2(off[0] / off[1]) == pytest.approx(2, abs=0.2)


def test_the_weight_form_is_the_slope_in_the_scale_of_the_producing_weights() -> None:
    model, groups = mlp(activation=nn.GELU())
    model.double()
    x, y = doubled(MLP_DATA)[0]
    found = score(model, groups, [(x, y)], TASK, criterion=criteria.weight_taylor())

    def loss(unit: int, t: float) -> float:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[0].weight[unit] *= 1 - t
            other[0].bias[unit] *= 1 - t
        return float(F.cross_entropy(other(x), y).detach())

    for unit, value in enumerate(found.linear[0]):
        off = [abs(loss(unit, t) - loss(unit, 0) - t * value) for t in (0.04, 0.01)]
        assert math.log(off[0] / off[1], 4) == pytest.approx(found.order + 1, abs=0.2)


# Laws, for all criteria

# Where numbers are drawn the laws hold on average only.
DETERMINED = sorted(set(CRITERIA) - {"random", "hutchinson"})


class Chain(nn.Module):
    """Two convolutions with batch norm, so that every criterion finds what it looks at."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(2, first, 3, padding=1), nn.BatchNorm2d(first), nn.Conv2d(first, second, 3)
        self.m, self.c = nn.BatchNorm2d(second), nn.Conv2d(second, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.m(self.b(torch.relu(self.n(self.a(x))))))).mean((2, 3))


def chain(first: int, second: int, seed: int) -> tuple[Chain, Groups]:
    torch.manual_seed(seed)
    model = Chain(first, second)
    for norm in (model.n, model.m):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.2, 0.3)
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 2)
    model.double().eval()
    return model, couple(trace(model, torch.randn(2, 2, 5, 5, dtype=torch.float64)))


def all_scores(model: nn.Module, groups: Groups, batches: list[tuple[Tensor, Tensor]]) -> list[Scores]:
    return score(model, groups, batches, TASK, criterion=[CRITERIA[n]() for n in DETERMINED])


@settings(max_examples=3)
@given(first=st.integers(1, 5), second=st.integers(1, 4), n=st.integers(1, 19), seed=st.integers(0, 99))
def test_permuting_units_permutes_the_scores_of_every_criterion(first: int, second: int, n: int, seed: int) -> None:
    model, groups = chain(first, second, seed)
    batches = doubled([labelled(torch.randn(n, 2, 5, 5))])
    order = torch.randperm(first)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in model.a.named_parameters():
            other.a.get_parameter(name).copy_(value[order])
        for name, value in model.n.state_dict().items():
            if value.ndim:
                other.n.state_dict()[name].copy_(value[order])
        other.b.weight.copy_(model.b.weight[:, order])
    for a, b in zip(all_scores(model, groups, batches), all_scores(other, groups, batches), strict=True):
        for before, after, group in zip(a.values, b.values, groups.groups, strict=True):
            moved = tuple(before[i] for i in order) if group.name == "a" else before
            close((moved,), (after,), rel=1e-6)


@settings(max_examples=3)
@given(
    first=st.integers(1, 5),
    cuts=st.lists(st.integers(1, 22), unique=True, max_size=3).map(sorted),
    seed=st.integers(0, 99),
)
def test_the_scores_of_every_criterion_do_not_depend_on_how_the_data_is_cut_into_batches(
    first: int, cuts: list[int], seed: int
) -> None:
    model, groups = chain(first, 3, seed)
    (x, y) = doubled([labelled(torch.randn(23, 2, 5, 5))])[0]
    parts = [(x[i:j], y[i:j]) for i, j in itertools.pairwise([0, *cuts, 23])]
    for a, b in zip(all_scores(model, groups, parts), all_scores(model, groups, [(x, y)]), strict=True):
        close(a.values, b.values, rel=1e-6)
        assert (a.data, a.n_examples) == (b.data, b.n_examples) or a.criterion == "synflow"


def test_a_dead_layer_scores_zero_in_every_criterion_that_predicts_the_loss() -> None:
    model, groups = chain(3, 4, 1)
    with torch.no_grad():
        model.c.weight.zero_()
    batches = doubled([labelled(torch.randn(9, 2, 5, 5))])
    for found in all_scores(model, groups, batches):
        if found.unit == "nats":
            assert max(abs(v) for row in found.values for v in row) < 1e-12, found.criterion
    hutchinson = score(model, groups, batches, TASK, criterion=criteria.hutchinson(2))
    assert max(abs(v) for row in hutchinson.values for v in row) < 1e-12
