"""Count equations: every answer of the solver is compared with trying all combinations."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers.many import many
from secateur import _counts
from secateur._counts import System
from secateur.errors import InputError, Unsatisfiable
from secateur.schema.groups import Equation, Group, Groups, Member


def feasible(system: System) -> list[tuple[int, ...]]:
    """The slow, obvious answer."""
    ranges = [range(a, n + 1) for a, n in zip(system.least, system.n_units, strict=True)]
    found = []
    for k in itertools.product(*ranges):
        for e in system.equations:
            value = e.constant + sum(c * k[g] for g, c in e.terms)
            if value != 0 if e.modulus == 0 else value % e.modulus != 0:
                break
        else:
            found.append(k)
    return found


def distance(system: System, k: tuple[int, ...], target: tuple[float, ...]) -> float:
    return sum(abs(a - t) / max(n, 1) for a, t, n in zip(k, target, system.n_units, strict=True))


@st.composite
def systems(draw, max_groups: int = 4, max_units: int = 7):
    n_groups = draw(st.integers(1, max_groups))
    n_units = tuple(draw(st.integers(1, max_units)) for _ in range(n_groups))
    least = tuple(draw(st.integers(0, n)) for n in n_units)
    # Real equations are true of the dense model; half of those made here are, so that not all are contradictions.
    equations = []
    for _ in range(draw(st.integers(0, 4))):
        size = draw(st.integers(1, min(3, n_groups)))
        chosen = draw(st.permutations(range(n_groups)))[:size]
        terms = tuple((g, draw(st.sampled_from([-3, -2, -1, 1, 1, 2, 4]))) for g in chosen)
        modulus = draw(st.sampled_from([0, 0, 2, 3, 4, 6]))
        true_of_dense = -sum(c * n_units[g] for g, c in terms)
        constant = draw(st.sampled_from([true_of_dense, true_of_dense, 0, 1, -2]))
        equations.append(Equation(terms=terms, constant=constant, modulus=modulus))
    return System(n_units=n_units, least=least, equations=tuple(equations))


@many(300)
@given(systems(), st.data())
def test_projection_is_feasible_and_nearest(system: System, data) -> None:
    target = tuple(data.draw(st.floats(-1, n + 1)) for n in system.n_units)
    answers = feasible(system)
    if not answers:
        with pytest.raises(Unsatisfiable):
            _counts.project(system, target)
        with pytest.raises(Unsatisfiable):
            _counts.check(system)
        return
    _counts.check(system)
    found = _counts.project(system, target)
    assert found in answers
    assert distance(system, found, target) == pytest.approx(min(distance(system, k, target) for k in answers), abs=1e-9)
    assert _counts.satisfied(system, found)


@many(300)
@given(systems(), st.data())
def test_the_program_for_large_systems_agrees_with_the_list_for_small_ones(system: System, data) -> None:
    target = np.array([data.draw(st.floats(-1, n + 1)) for n in system.n_units])
    weights = 1 / np.array(system.n_units, float)
    prices = np.array([data.draw(st.integers(-3, 9)) for _ in system.n_units], float)
    off = np.abs(target - np.rint(target))
    moved = float(2 * off[off < _counts.NEAR] @ weights[off < _counts.NEAR])  # such targets are taken for whole numbers
    for component in _counts.components(system):
        if component.origin is None or not component.basis:
            continue
        index = list(component.groups)
        bounds = [[system.least[g] for g in index], [system.n_units[g] for g in index]]
        points = _counts.points(component, *bounds)
        for objective in (_counts._Nearest(target, weights), _counts._Cheapest(prices)):
            found = _counts._solve_program(component, *bounds, objective)
            if not len(points):
                assert found is None
                continue
            assert found in [tuple(p) for p in points.tolist()]
            values = _counts._values(component, points, objective)
            reached = _counts._values(component, np.array([found]), objective)[0]
            assert reached == pytest.approx(values.min(), abs=1e-6 + moved)


def test_a_target_next_to_a_whole_number_does_not_stop_the_program() -> None:
    tie = Equation(terms=((0, -1), (3, 1)), constant=-2, modulus=0, reason="", source="")
    system = System(n_units=(1, 1, 1, 3), least=(0, 0, 0, 0), equations=(tie,), names=())
    (component,) = [c for c in _counts.components(system) if len(c.groups) == 2]
    for off in (1e-5, 1e-6, 1e-7, 1e-8, -1e-6):
        nearest = _counts._Nearest(np.array([off, 0.0, 0.0, 0.0]), 1 / np.array(system.n_units, float))
        assert _counts._solve_program(component, [0, 0], [1, 3], nearest) == (0, 2)


@many(150)
@given(systems(), st.data())
def test_the_cheapest_counts_are_the_cheapest(system: System, data) -> None:
    answers = feasible(system)
    assume(answers)
    prices = np.array([data.draw(st.integers(-3, 9)) for _ in system.n_units], float)
    found = _counts.minimise(system, prices)
    assert found in answers
    assert prices @ found == pytest.approx(min(prices @ np.array(k) for k in answers))


@many(150)
@given(systems(), st.data())
def test_a_fixed_count_is_met_as_nearly_as_can_be_and_the_others_stay_full(system: System, data) -> None:
    answers = feasible(system)
    assume(answers)
    group = data.draw(st.integers(0, len(system.n_units) - 1))
    count = data.draw(st.integers(0, system.n_units[group]))
    found = _counts.with_count(system, group, count)
    nearest = min(abs(k[group] - count) for k in answers)
    assert abs(found[group] - count) == nearest
    rivals = [k for k in answers if k[group] == found[group]]
    missing = [sum((n - a) / n for a, n in zip(k, system.n_units, strict=True)) for k in [found, *rivals]]
    assert missing[0] == pytest.approx(min(missing))


@many(200)
@given(systems(), st.data())
def test_a_move_is_the_smallest_that_keeps_the_equations(system: System, data) -> None:
    answers = feasible(system)
    assume(answers)
    start = data.draw(st.sampled_from(answers))
    group = data.draw(st.integers(0, len(start) - 1))
    direction = data.draw(st.sampled_from([-1, 1]))
    component = next(c for c in _counts.components(system) if group in c.groups)
    candidates = [
        k
        for k in answers
        if (k[group] - start[group]) * direction >= 1
        and all((a - b) * direction >= 0 for a, b in zip(k, start, strict=True))
        and all(k[g] == start[g] for g in range(len(k)) if g not in component.groups)
    ]
    change = _counts.move(system, start, group, direction)
    if not candidates:
        assert change is None
        return
    assert change is not None
    reached = tuple(a + b for a, b in zip(start, change, strict=True))
    assert reached in candidates
    assert distance(system, reached, start) == pytest.approx(min(distance(system, k, start) for k in candidates))


@many(200)
@given(systems())
def test_a_contradiction_names_equations_that_contradict_each_other(system: System) -> None:
    assume(not feasible(system))
    numbered = tuple(
        Equation(terms=e.terms, constant=e.constant, modulus=e.modulus, reason=f"#{i}#")
        for i, e in enumerate(system.equations)
    )
    with pytest.raises(Unsatisfiable) as caught:
        _counts.check(System(n_units=system.n_units, least=system.least, equations=numbered))
    blamed = [e for e in numbered if f"{e.reason}" in str(caught.value)]
    assert blamed, "nothing was named"
    assert not feasible(System(n_units=system.n_units, least=system.least, equations=tuple(blamed)))
    for left_out in blamed:
        fewer = tuple(e for e in blamed if e is not left_out)
        assert feasible(System(n_units=system.n_units, least=system.least, equations=fewer)), "not a smallest set"


def test_the_error_reads_like_the_equation() -> None:
    system = System(
        n_units=(6, 6),
        least=(1, 1),
        equations=(
            Equation(terms=((0, 1), (1, -1)), constant=-1, reason="one hidden_size", source="model.py:12"),
            Equation(terms=((0, 1),), modulus=4, reason="round_to 4"),
            Equation(terms=((1, 1),), modulus=4, reason="round_to 4"),
        ),
        names=("lstm.0", "lstm.1"),
    )
    with pytest.raises(Unsatisfiable) as caught:
        _counts.check(system)
    text = str(caught.value)
    assert "k[lstm.0] - k[lstm.1] - 1 is 0 (one hidden_size, model.py:12)" in text
    assert "k[lstm.0] is a multiple of 4 (round_to 4)" in text
    assert "1 <= k[lstm.0] <= 6" in text


def test_a_false_statement_about_constants_is_named() -> None:
    system = System(n_units=(3,), least=(1,), equations=(Equation(terms=(), constant=2, reason="chunk(3)"),))
    with pytest.raises(Unsatisfiable, match=r"chunk\(3\)"):
        _counts.check(system)
    _counts.check(System(n_units=(3,), least=(1,), equations=(Equation(terms=(), constant=6, modulus=3),)))


def test_bounds_alone_can_be_unsatisfiable() -> None:
    with pytest.raises(Unsatisfiable):
        _counts.project(System(n_units=(3,), least=(1,), equations=()), (2,), upper=(0,))


def test_a_target_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(InputError, match="one count per group"):
        _counts.project(System(n_units=(3,), least=(1,), equations=()), (2, 2))


def test_many_tied_groups_are_solved_along_one_direction() -> None:
    n = 300
    equal = tuple(Equation(terms=((g, 1), (g + 1, -1))) for g in range(n - 1))
    system = System(n_units=(64,) * n, least=(1,) * n, equations=(*equal, Equation(terms=((0, 1),), modulus=8)))
    (component,) = _counts.components(system)
    assert len(component.basis) == 1
    assert _counts.project(system, [29.0] * n) == (32,) * n
    assert _counts.move(system, (32,) * n, 5, -1) == (-8,) * n


def test_aligned_parts_leave_concatenations_free() -> None:
    aligned = tuple(Equation(terms=((g, 1),), modulus=8) for g in range(5))
    total = Equation(terms=tuple((g, 1) for g in range(5)), constant=64, modulus=8)
    system = System(n_units=(32,) * 5, least=(1,) * 5, equations=(*aligned, total))
    assert [c.groups for c in _counts.components(system)] == [(0,), (1,), (2,), (3,), (4,)]


def make_groups(*members: tuple[Member, ...]) -> Groups:
    groups = tuple(
        Group(index=i, name=f"g{i}", kind="channel", n_units=max(max(m.units) for m in ms) + 1, members=ms)
        for i, ms in enumerate(members)
    )
    return Groups(
        groups=groups, frozen=(), equations=(), costs=(), settings=(), sites=(), swaps=(), notes=(), structure=""
    )


def axis(param: str, n: int, each: int = 1, before: int = 0, after: int = 0) -> Member:
    units = (-1,) * before + tuple(u for u in range(n) for _ in range(each)) + (-1,) * after
    return Member(param=param, axis=0, units=units, role="write")


def aligned_solutions(groups: Groups, round_to: int) -> set[tuple[int, ...]]:
    n = tuple(g.n_units for g in groups.groups)
    equations = _counts.alignments(groups, round_to)
    return set(feasible(System(n_units=n, least=(1,) * len(n), equations=equations)))


def test_alignment_is_of_lengths_not_of_units() -> None:
    # heads of 16 channels, 6 of them: always aligned; 24 channels: 8, 16, 24
    groups = make_groups((axis("q", 6, each=16),), (axis("w", 24), axis("b", 24)))
    assert aligned_solutions(groups, 8) == {(h, c) for h in range(1, 7) for c in (8, 16, 24)}
    assert aligned_solutions(groups, 1) == {(h, c) for h in range(1, 7) for c in range(1, 25)}
    assert _counts.alignments(groups, 1) == ()


def test_what_only_scales_asks_for_no_alignment() -> None:
    table = Member(param="bias_table", axis=1, units=tuple(range(6)), role="scale")
    assert aligned_solutions(make_groups((axis("q", 6, each=16), table)), 8) == {(h,) for h in range(1, 7)}
    assert aligned_solutions(make_groups((dataclasses.replace(table, units=tuple(range(16))),)), 8) == {(8,), (16,)}


def test_alignment_counts_what_is_fixed_on_the_axis() -> None:
    assert aligned_solutions(make_groups((axis("w", 9, before=2, after=1),)), 4) == {(1,), (5,), (9,)}


def test_a_group_that_cannot_be_aligned_is_left_whole_and_says_so() -> None:
    groups = make_groups((axis("w", 6),), (axis("v", 16),))
    assert aligned_solutions(groups, 8) == {(6, 8), (6, 16)}
    (left,) = (e for e in _counts.alignments(groups, 8) if not e.modulus)
    assert "left whole" in left.reason
    assert left.source == "w axis 0"


def test_a_shared_axis_that_can_never_be_aligned_binds_nothing() -> None:
    n = 4
    first = Member(
        param="cat", axis=1, units=(*[u for u in range(n) for _ in range(2)], *[-1] * (2 * n + 1)), role="read"
    )
    second = Member(
        param="cat", axis=1, units=(*[-1] * (2 * n), *[u for u in range(n) for _ in range(2)], -1), role="read"
    )
    assert _counts.alignments(make_groups((first,), (second,)), 2) == ()


def test_round_to_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="round_to"):
        _counts.alignments(make_groups((axis("w", 6),)), 0)


def test_a_large_system_with_many_directions_is_solved_by_the_program() -> None:
    n = 24
    system = System(
        n_units=(64,) * n, least=(1,) * n, equations=(Equation(terms=tuple((g, 1) for g in range(n)), modulus=32),)
    )
    (component,) = _counts.components(system)
    assert _counts.n_points(component, system.least, system.n_units) > _counts.MOST_POINTS
    found = _counts.project(system, [21.0] * n)  # 24 * 21 = 504, the nearest multiple of 32 is 512
    assert sum(found) == 512
    assert sum(abs(k - 21) for k in found) == 8
