"""All allocators solve one problem: the budget is met to the last unit, every equation holds, nothing is random."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from secateur import _cost, _counts
from secateur.allocators import ALLOCATORS, _search, equal_loss, global_threshold, greedy, knapsack, uniform
from secateur.errors import BudgetUnreachable, IncomparableScores, Unsatisfiable
from secateur.schema.budget import Budget
from secateur.schema.groups import CostTerm, Equation, Extent
from secateur.schema.problem import Problem


def chain(
    losses: list[list[float]],
    budget: Budget,
    *,
    equations: tuple[Equation, ...] = (),
    least: int = 1,
    ends: tuple[int, int] = (3, 5),
    unit: str = "nats",
) -> Problem:
    """Groups in a chain: MACs and parameters are products of neighbouring widths."""
    n_units = tuple(len(values) for values in losses)
    lengths = [Extent(ends[0]), *(Extent(0, ((g, 1),)) for g in range(len(losses))), Extent(ends[1])]
    terms = []
    for i, (a, b) in enumerate(itertools.pairwise(lengths)):
        terms.append(CostTerm(what="macs", where=f"l{i}", op="linear", coefficient=10 - i, extents=(a, b)))
        terms.append(CostTerm(what="params", where=f"l{i}", op="", coefficient=1, extents=(a, b), bytes_per=4))
    return Problem(
        losses=tuple(tuple(sorted(values)) for values in losses),
        n_units=n_units,
        least=tuple(min(least, n) for n in n_units),
        costs=tuple(terms),
        equations=equations,
        budget=budget,
        unit=unit,  # type: ignore[arg-type]
        names=tuple(f"g{i}" for i in range(len(losses))),
    )


def within(problem: Problem, counts: tuple[int, ...]) -> bool:
    full, now = _cost.cost(problem.costs, problem.n_units), _cost.cost(problem.costs, counts)
    pairs = (
        (problem.budget.macs, now.macs, full.macs),
        (problem.budget.params, now.params, full.params),
        (problem.budget.memory, now.memory, full.memory),
    )
    return all(
        kept is None or after <= Fraction(str(kept)) * before or after / before <= kept for kept, after, before in pairs
    )


def solutions(problem: Problem) -> list[tuple[int, ...]]:
    """Every count that satisfies the equations and the budget, by trying all."""
    system = _counts.system(problem)
    ranges = [range(a, n + 1) for a, n in zip(problem.least, problem.n_units, strict=True)]
    return [k for k in itertools.product(*ranges) if _counts.satisfied(system, k) and within(problem, k)]


def loss_of(problem: Problem, counts: tuple[int, ...]) -> float:
    return math.fsum(sum(v[: n - k]) for v, n, k in zip(problem.losses, problem.n_units, counts, strict=True))


@st.composite
def problems(draw):
    n_groups = draw(st.integers(1, 3))
    losses = [draw(st.lists(st.floats(-0.25, 1.0, width=16), min_size=1, max_size=7)) for _ in range(n_groups)]
    equations = []
    for _ in range(draw(st.integers(0, 2))):
        g = draw(st.integers(0, n_groups - 1))
        h = draw(st.integers(0, n_groups - 1))
        if g != h and draw(st.booleans()):
            difference = len(losses[g]) - len(losses[h])
            equations.append(Equation(terms=((g, 1), (h, -1)), constant=-difference, reason="one size"))
        else:
            modulus = draw(st.integers(2, 3))
            terms = ((g, 1),) if g == h else ((g, 1), (h, 1))
            equations.append(Equation(terms=terms, modulus=modulus, reason="split"))
    names = draw(st.sampled_from([("macs",), ("params",), ("memory",), ("macs", "params")]))
    budget = Budget(**{name: draw(st.floats(0.05, 1.0)) for name in names})
    return chain(losses, budget, equations=tuple(equations), least=draw(st.integers(1, 2)))


@pytest.mark.parametrize("name", ALLOCATORS)
@settings(max_examples=80, deadline=None)
@given(problem=problems())
def test_every_allocator_meets_the_budget_the_equations_and_leaves_no_room(name: str, problem: Problem) -> None:
    allocator = ALLOCATORS[name]()
    possible = solutions(problem)
    if not possible:
        with pytest.raises((BudgetUnreachable, Unsatisfiable)):
            allocator(problem)
        return
    counts = allocator(problem)
    assert all(type(k) is int for k in counts)
    assert counts in possible
    system = _counts.system(problem)
    for g in range(len(counts)):
        change = _counts.move(system, counts, g, +1)
        if change is not None:
            assert not within(problem, tuple(a + b for a, b in zip(counts, change, strict=True))), (
                "a unit more would have fitted"
            )
    assert allocator(problem) == counts


@settings(max_examples=80, deadline=None)
@given(problem=problems())
def test_the_least_reachable_fraction_is_the_true_minimum(problem: Problem) -> None:
    system = _counts.system(problem)
    ranges = [range(a, n + 1) for a, n in zip(problem.least, problem.n_units, strict=True)]
    feasible = [k for k in itertools.product(*ranges) if _counts.satisfied(system, k)]
    assume(feasible and not any(within(problem, k) for k in feasible))
    with pytest.raises(BudgetUnreachable) as caught:
        greedy()(problem)
    full = _cost.cost(problem.costs, problem.n_units)
    for kind, least in caught.value.least.items():
        cheapest = min(_cost.ratio(_cost.cost(problem.costs, k), full)[kind] for k in feasible)
        assert least == pytest.approx(cheapest)


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_knapsack_is_never_worse_than_greedy_and_near_the_optimum(problem: Problem) -> None:
    # An allocator goes as far as the budget asks; with improvements to gain the optimum would go on.
    problem = dataclasses.replace(problem, losses=tuple(tuple(sorted(map(abs, v))) for v in problem.losses))
    possible = solutions(problem)
    assume(possible)
    spread = sum(abs(x) for values in problem.losses for x in values)
    best = min(loss_of(problem, k) for k in possible)
    clever, plain = (loss_of(problem, a(problem)) for a in (knapsack(), greedy()))
    assert clever <= plain + 1e-12
    assert clever >= best - 1e-9
    assert clever - best <= 0.35 * spread + 1e-9


def test_knapsack_and_greedy_are_close_to_the_optimum_on_average() -> None:
    rng = np.random.default_rng(0)
    excess: dict[str, list[float]] = {"greedy": [], "knapsack": [], "uniform": []}
    for _ in range(30):
        losses = [sorted((rng.gamma(0.5, 1, 8) * rng.uniform(0.2, 3)).tolist()) for _ in range(3)]
        problem = chain(losses, Budget(macs=float(rng.uniform(0.3, 0.7))))
        best = min(loss_of(problem, k) for k in solutions(problem))
        for name in excess:
            excess[name].append(loss_of(problem, ALLOCATORS[name]()(problem)) / best - 1)
    mean = {name: float(np.mean(values)) for name, values in excess.items()}
    assert mean["knapsack"] < 0.05, mean
    assert mean["greedy"] < 0.2, mean
    assert mean["uniform"] > mean["greedy"], mean


def test_knapsack_looks_beyond_a_hump() -> None:
    """The first unit of g0 is dear and the others are free: removing all of g0 is best, one at a time it looks bad."""
    problem = chain([[1.0] * 4, [0.4] * 4], Budget(params=0.45), ends=(4, 4))
    humped = Problem(
        losses=((0.5, 0.0, 0.0, 0.0), (0.4, 0.4, 0.4, 0.4)),
        n_units=problem.n_units,
        least=problem.least,
        costs=problem.costs,
        equations=(),
        budget=problem.budget,
        unit="nats",
        names=problem.names,
    )
    best = min(loss_of(humped, k) for k in solutions(humped))
    assert loss_of(humped, knapsack()(humped)) == pytest.approx(best)


def test_global_threshold_without_equations_is_the_sorted_list() -> None:
    rng = np.random.default_rng(1)
    losses = [rng.random(12).tolist(), rng.random(9).tolist(), rng.random(15).tolist()]
    problem = chain(losses, Budget(macs=0.4))
    counts = global_threshold()(problem)
    ranked = sorted((x, g) for g, values in enumerate(losses) for x in values)
    kept = [len(values) for values in losses]
    for _, g in ranked:
        if within(problem, tuple(kept)):
            break
        kept[g] -= 1
    # what the list removed, but for units that still fitted
    assert all(a >= b for a, b in zip(counts, kept, strict=True))
    assert sum(counts) - sum(kept) <= 1


def test_ties_are_broken_by_index_and_the_count_is_exact() -> None:
    problem = chain([[0.5] * 10, [0.5] * 10], Budget(params=0.5), ends=(0, 0))
    assert global_threshold()(problem) == (5, 10)
    assert within(problem, (5, 10))
    assert greedy()(problem) == greedy()(problem)


def test_uniform_keeps_the_same_fraction() -> None:
    problem = chain([[0.0] * 40, [0.0] * 80, [0.0] * 20], Budget(macs=0.25), ends=(0, 0))
    counts = uniform()(problem)
    assert [k / n for k, n in zip(counts, problem.n_units, strict=True)] == pytest.approx([0.5] * 3, abs=0.03)


def test_equal_loss_takes_the_same_loss_from_every_group() -> None:
    steep, flat = [0.1 * i for i in range(1, 41)], [0.01 * i for i in range(1, 41)]
    problem = chain([steep, flat], Budget(macs=0.5))
    counts = equal_loss()(problem)
    lost = [sum(sorted(v)[: 40 - k]) for v, k in zip((steep, flat), counts, strict=True)]
    assert lost[0] == pytest.approx(lost[1], rel=0.3)
    assert counts[0] > counts[1]


def test_greedy_sees_that_costs_are_products() -> None:
    # g0 sits between a wide input and g1; g1 between g0 and a wide output: equal losses, very different savings
    problem = chain([[0.1] * 10, [0.1] * 10], Budget(macs=0.7), ends=(100, 1))
    counts = greedy()(problem)
    assert counts[0] < counts[1]


def test_predicted_improvements_go_first_and_do_not_confuse_the_ratio() -> None:
    problem = chain([[-5.0, 0.1, 0.1, 0.1], [-0.1, 0.2, 0.2, 0.2]], Budget(macs=0.6))
    for allocator in (greedy(), knapsack()):
        counts = allocator(problem)
        assert counts[0] <= 3
        assert within(problem, counts)


def test_a_budget_of_one_removes_nothing_unless_an_equation_asks() -> None:
    losses = [[0.1] * 10, [-0.5] * 10]
    for name, make in ALLOCATORS.items():
        assert make()(chain(losses, Budget(macs=1.0))) == (10, 10), name
        aligned = chain(
            losses, Budget(macs=1.0), equations=(Equation(terms=((0, 1),), modulus=8, reason="round_to 8"),)
        )
        assert make()(aligned) == (8, 10), name


@pytest.mark.parametrize("name", ["equal_loss", "global_threshold", "greedy", "knapsack"])
def test_arbitrary_units_are_refused_unless_normalised(name: str) -> None:
    rng = np.random.default_rng(2)
    losses = [rng.random(8).tolist(), (1e6 * rng.random(8)).tolist()]
    problem = chain(losses, Budget(macs=0.5), unit="a.u.")
    with pytest.raises(IncomparableScores, match="normalise"):
        ALLOCATORS[name]()(problem)
    for normalise in ("mean", "max", "lamp"):
        counts = ALLOCATORS[name](normalise)(problem)
        scaled = chain([losses[0], [x * 1e-6 for x in losses[1]]], Budget(macs=0.5), unit="a.u.")
        assert ALLOCATORS[name](normalise)(scaled) == counts, "the scale of a group must not matter"


def test_lamp_is_the_published_score() -> None:
    # Lee et al. 2021: score(u) = w[u]^2 / sum of w[v]^2 over v not smaller than u
    problem = chain([[1.0, 2.0, 5.0]], Budget(macs=0.5), unit="a.u.")
    assert _search.comparable(problem, "lamp").losses == ((1 / 8, 2 / 7, 5 / 5),)


def test_uniform_accepts_arbitrary_units() -> None:
    problem = chain([[1.0] * 8, [1e6] * 8], Budget(macs=0.5), unit="a.u.")
    assert within(problem, uniform()(problem))


def test_an_unreachable_budget_says_what_is_reachable() -> None:
    problem = chain([[0.1] * 10, [0.1] * 10], Budget(macs=0.001))
    with pytest.raises(BudgetUnreachable, match="macs of at least") as caught:
        uniform()(problem)
    reachable = caught.value.least["macs"]
    again = chain([[0.1] * 10, [0.1] * 10], Budget(macs=reachable))
    assert uniform()(again) == (1, 1)


def test_a_large_model_is_allocated_in_seconds() -> None:
    rng = np.random.default_rng(3)
    losses = [sorted((rng.gamma(0.5, 1, 2048) * s).tolist()) for s in rng.uniform(0.2, 3, 24)]
    problem = chain(losses, Budget(macs=0.5), equations=tuple(Equation(terms=((g, 1),), modulus=8) for g in range(24)))
    for name, make in ALLOCATORS.items():
        counts = make()(problem)
        assert within(problem, counts), name
        assert all(k % 8 == 0 for k in counts), name
