"""Unit-first views: against loops over plain indices, and what the groups promise about shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.nets import NETS, build
from secateur._cost import cost, full_counts
from secateur._couple import couple
from secateur._trace import trace
from secateur._units import call, extent_value, matrix, offsets, unit_sums
from secateur.schema.groups import Extent, Groups

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
SOME = (
    "perceptron",
    "residual",
    "grouped",
    "shared",
    "tied_lm",
    "own_attention",
    "lstm_two_both_ways",
    "pixel_shuffle",
)


def prepared(name: str) -> tuple[nn.Module, Groups, dict[str, Tensor]]:
    model, inputs = build(name)
    generator = torch.Generator().manual_seed(0)
    noise = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in model.named_parameters()}
    return model, couple(trace(model, inputs)), noise


def elements_of(groups: Groups, g: int, u: int, shapes: dict[str, Any], roles: set[str] | None) -> set[tuple[str, Any]]:
    """The elements of one unit, by walking over every index of every member."""
    found = set()
    for m in groups.groups[g].members:
        if m.param not in shapes or (roles is not None and m.role not in roles):
            continue
        for index in torch.cartesian_prod(
            *[torch.arange(n) for n in shapes[m.param]], torch.zeros(1, dtype=torch.long)
        ):
            place = tuple(index[:-1].tolist())
            if m.units[place[m.axis]] == u:
                found.add((m.param, place))
    return found


@pytest.mark.parametrize("name", ["perceptron", "shared", "tied_lm", "lstm"])
@pytest.mark.parametrize("roles", [None, {"write"}, {"read", "both"}], ids=["all", "write", "read"])
def test_sums_and_matrices_hold_each_element_of_a_unit_once(name: str, roles: set[str] | None) -> None:
    _, groups, noise = prepared(name)
    shapes = {n: tuple(t.shape) for n, t in noise.items()}
    sums = unit_sums(groups, noise, roles)
    for g, group in enumerate(groups.groups):
        rows = matrix(groups, g, noise, roles)
        assert sums[g].shape == (group.n_units,)
        assert rows.shape[0] == group.n_units
        for u in range(group.n_units):
            values = [float(noise[p][place]) for p, place in elements_of(groups, g, u, shapes, roles)]
            assert float(sums[g][u]) == pytest.approx(sum(values), abs=1e-12)
            in_row = sorted(v for v in rows[u].tolist() if v)
            assert in_row == pytest.approx(sorted(values), abs=1e-12)


@pytest.mark.parametrize("name", SOME)
def test_sums_are_the_row_sums_of_the_matrix(name: str) -> None:
    _, groups, noise = prepared(name)
    for roles in (None, {"write", "both"}, {"read"}):
        for g, total in enumerate(unit_sums(groups, noise, roles)):
            rows = matrix(groups, g, noise, roles)
            assert torch.allclose(rows.sum(1).double(), total.double(), atol=1e-10)


@pytest.mark.parametrize("name", SOME)
def test_sums_are_linear_and_ignore_unknown_tensors(name: str) -> None:
    _, groups, noise = prepared(name)
    double = {n: 2 * t for n, t in noise.items()} | {"nowhere": torch.ones(3)}
    for a, b in zip(unit_sums(groups, noise), unit_sums(groups, double), strict=True):
        assert torch.allclose(2 * a, b)
    assert all(float(t.abs().sum()) == 0 for t in unit_sums(groups, {}))


@pytest.mark.parametrize("name", NETS)
def test_groups_are_consistent_with_the_shapes(name: str) -> None:
    model, inputs = build(name)
    groups = couple(trace(model, inputs))
    shapes = {n: tuple(t.shape) for n, t in (*model.named_parameters(), *model.named_buffers())}
    assert offsets(groups)[-1] == sum(g.n_units for g in groups.groups)
    for group in groups.groups:
        assert group.members
        assert len({(m.param, m.axis) for m in group.members}) == len(group.members)
        assert {u for m in group.members for u in m.units if u >= 0} == set(range(group.n_units))
        for m in group.members:
            assert len(m.units) == shapes[m.param][m.axis]
            owned = [sum(1 for u in m.units if u == k) for k in range(group.n_units)]
            assert len(set(owned)) == 1, "units of a group are interchangeable"
    # an index belongs to one group, or is frozen
    for param, shape in shapes.items():
        for axis, size in enumerate(shape):
            owners = [g for g in groups.groups for m in g.members if (m.param, m.axis) == (param, axis)]
            taken = [
                sum(1 for g in owners for m in g.members if (m.param, m.axis) == (param, axis) and m.units[i] >= 0)
                for i in range(size)
            ]
            assert max(taken, default=0) <= 1


@pytest.mark.parametrize("name", SOME)
def test_equations_hold_for_the_dense_model(name: str) -> None:
    _, groups, _ = prepared(name)
    counts = full_counts(groups)
    for eq in groups.equations:
        total = eq.constant + sum(c * counts[g] for g, c in eq.terms)
        assert (total % eq.modulus if eq.modulus else total) == 0
        assert eq.reason
    assert cost(groups.costs, counts).params > 0


def test_extents_are_linear() -> None:
    assert extent_value(Extent(5), (1, 2)) == 5
    assert extent_value(Extent(1, ((0, 2), (1, 3))), (4, 5)) == 24
    assert extent_value(Extent(0, ((0, 6),), 3), (4,)) == 8


def test_calls_take_tensors_tuples_and_mappings() -> None:
    model = nn.Bilinear(2, 3, 4)
    x, y = torch.randn(5, 2), torch.randn(5, 3)
    assert torch.equal(call(model, (x, y)), call(model, {"input1": x, "input2": y}))
    assert call(nn.Identity(), x) is x
