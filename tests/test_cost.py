"""Costs are exact integers; the arrays for searching say the same as the plain sum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import _cost
from secateur.errors import InputError
from secateur.schema.budget import Budget
from secateur.schema.costs import Costs
from secateur.schema.groups import CostTerm, Extent, Group, Groups


def chain_terms(sizes: tuple[int, ...], *, inputs: int, outputs: int) -> tuple[CostTerm, ...]:
    """Linear layers inputs -> k0 -> k1 ... -> outputs, with biases."""
    ends = [Extent(inputs), *(Extent(0, ((g, 1),)) for g in range(len(sizes))), Extent(outputs)]
    terms = []
    for i, (a, b) in enumerate(itertools.pairwise(ends)):
        terms.append(CostTerm(what="macs", where=f"l{i}", op="linear", coefficient=1, extents=(a, b)))
        terms.append(CostTerm(what="params", where=f"l{i}.weight", op="", coefficient=1, extents=(a, b), bytes_per=4))
        terms.append(CostTerm(what="params", where=f"l{i}.bias", op="", coefficient=1, extents=(b,), bytes_per=4))
    return tuple(terms)


def groups_of(terms: tuple[CostTerm, ...], sizes: tuple[int, ...]) -> Groups:
    made = tuple(Group(index=i, name=f"g{i}", kind="neuron", n_units=n, members=()) for i, n in enumerate(sizes))
    return Groups(
        groups=made, frozen=(), equations=(), costs=terms, settings=(), sites=(), swaps=(), notes=(), structure="s"
    )


def test_cost_of_a_chain_of_linear_layers_is_what_torch_counts() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counts = (5, 7)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 7), torch.nn.Linear(7, 2))
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3))
    made = _cost.cost(chain_terms((9, 9), inputs=3, outputs=2), counts)
    assert 2 * made.macs == counter.get_total_flops()
    assert made.params == sum(p.numel() for p in model.parameters())
    assert made.memory == 4 * made.params


def test_halving_every_width_of_a_chain_saves_more_than_half() -> None:
    groups = groups_of(chain_terms((8, 8, 8), inputs=0, outputs=0), (8, 8, 8))
    assert _cost.fractions(groups, (4, 4, 4))["macs"] == 0.25


def test_buffers_count_in_the_memory_only() -> None:
    terms = (
        CostTerm(what="params", where="w", op="", coefficient=2, extents=(Extent(3),), bytes_per=4),
        CostTerm(what="buffers", where="b", op="", coefficient=1, extents=(Extent(0, ((0, 1),)),), bytes_per=8),
    )
    assert _cost.cost(terms, (5,)) == Costs(macs=0, params=6, memory=64)


def test_counts_that_break_a_division_are_refused() -> None:
    term = CostTerm(what="macs", where="conv", op="conv2d", coefficient=1, extents=(Extent(0, ((0, 1),), 4),))
    assert _cost.cost((term,), (8,)).macs == 2
    with pytest.raises(InputError, match="conv"):
        _cost.cost((term,), (6,))


def test_a_limit_reads_the_fraction_as_the_decimal_that_was_written() -> None:
    full = Costs(macs=10, params=1000, memory=3)
    for tenths in range(1, 11):
        assert _cost.limits(Budget(macs=tenths / 10), full) == {"macs": tenths}
    assert _cost.limits(Budget(params=0.29, memory=0.5), full) == {"params": 290, "memory": 1}
    assert _cost.within(Costs(macs=7, params=0, memory=0), {"macs": 7})
    assert not _cost.within(Costs(macs=7, params=2, memory=0), {"macs": 7, "params": 1})


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 10**12), st.data())
def test_a_quotient_of_costs_is_a_budget_that_allows_its_cost(dense: int, data) -> None:
    part = data.draw(st.integers(1, dense))
    assert _cost.limits(Budget(macs=part / dense), Costs(macs=dense, params=1, memory=1)) == {"macs": part}


@st.composite
def systems(draw):
    n_groups = draw(st.integers(1, 4))
    extents = st.builds(
        lambda fixed, terms, divisor: Extent(fixed * divisor, tuple((g, m * divisor) for g, m in terms), divisor),
        st.integers(0, 5),
        st.dictionaries(st.integers(0, n_groups - 1), st.integers(1, 4), max_size=2).map(lambda d: tuple(d.items())),
        st.integers(1, 3),
    )
    terms = st.builds(
        lambda what, coefficient, parts: CostTerm(
            what=what, where="x", op="y", coefficient=coefficient, extents=tuple(parts), bytes_per=4
        ),
        st.sampled_from(["macs", "params", "buffers"]),
        st.integers(1, 9),
        st.lists(extents, max_size=4),
    )
    full = tuple(draw(st.lists(st.integers(1, 20), min_size=n_groups, max_size=n_groups)))
    counts = [tuple(draw(st.integers(0, n)) for n in full) for _ in range(3)]
    return tuple(draw(st.lists(terms, max_size=5))), full, counts


@settings(max_examples=100, deadline=None)
@given(systems())
def test_the_arrays_give_the_same_integers(system) -> None:
    terms, full, counts = system
    compiled = _cost.compile_terms(terms, full)
    expected = [_cost._tuple(_cost.cost(terms, k)) for k in counts]
    assert _cost.totals(compiled, np.array(counts)).tolist() == [list(e) for e in expected]


@settings(max_examples=100, deadline=None)
@given(systems(), st.data())
def test_changes_of_a_few_groups_are_differences_of_totals(system, data) -> None:
    terms, full, counts = system
    compiled = _cost.compile_terms(terms, full)
    size = data.draw(st.integers(1, len(full)))
    moving = data.draw(st.permutations(range(len(full))))[:size]
    points = np.array([[data.draw(st.integers(0, full[g])) for g in moving] for _ in range(3)])
    expected = []
    for point in points:
        there = list(counts[0])
        for g, k in zip(moving, point.tolist(), strict=True):
            there[g] = k
        expected.append((_cost.totals(compiled, there) - _cost.totals(compiled, counts[0])).tolist())
    assert _cost.changes(compiled, counts[0], moving, points).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(systems())
def test_the_gradient_is_that_of_the_real_polynomial(system) -> None:
    terms, full, counts = system
    compiled = _cost.compile_terms(terms, full)

    def real(k: np.ndarray) -> np.ndarray:
        total = np.zeros(3)
        for term in terms:
            size = float(term.coefficient)
            for extent in term.extents:
                size *= (extent.fixed + sum(m * k[g] for g, m in extent.terms)) / extent.divisor
            weights = {"macs": (1, 0, 0), "params": (0, 1, 4), "buffers": (0, 0, 4)}[term.what]
            total += size * np.array(weights)
        return total

    k = np.array(counts[0], float)
    numeric = np.stack([(real(k + h) - real(k - h)) / 2e-3 for h in np.eye(len(full)) * 1e-3], axis=1)
    found = np.stack([_cost.gradient(compiled, k, weights) for weights in np.eye(3)])
    assert np.allclose(found, numeric, rtol=1e-4, atol=1e-3 * (1 + np.abs(numeric).max()))


def test_costs_beyond_64_bits_stay_exact() -> None:
    huge = 2**40
    term = CostTerm(what="macs", where="x", op="y", coefficient=3, extents=(Extent(huge), Extent(0, ((0, huge),))))
    compiled = _cost.compile_terms((term,), (2,))
    assert _cost.totals(compiled, (2,))[0] == 3 * huge * huge * 2
