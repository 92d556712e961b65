"""plan: units go in the order of their scores, as many as the allocator says, and stale input is refused."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from secateur import _cost
from secateur._plan import plan, problem_of
from secateur.allocators import global_threshold, greedy, uniform
from secateur.errors import (
    BudgetUnreachable,
    IncomparableScores,
    InputError,
    NonFinite,
    NothingToCut,
    StaleArtifact,
    Unsatisfiable,
)
from secateur.schema import from_json, to_json
from secateur.schema.budget import Budget
from secateur.schema.curves import Curves, Point
from secateur.schema.groups import CostTerm, Equation, Extent, Frozen, Group, Groups, Member
from secateur.schema.plan import Plan
from secateur.schema.scores import Scores


def make_groups(sizes: tuple[int, ...] = (8, 8), equations: tuple[Equation, ...] = ()) -> Groups:
    """A chain of linear layers 4 -> sizes... -> 2."""
    ends = [Extent(4), *(Extent(0, ((g, 1),)) for g in range(len(sizes))), Extent(2)]
    terms = [
        CostTerm(what=what, where=f"l{i}.weight", op="linear", coefficient=1, extents=(a, b), bytes_per=4)
        for i, (a, b) in enumerate(itertools.pairwise(ends))
        for what in ("macs", "params")
    ]
    groups = tuple(
        Group(
            index=i,
            name=f"l{i}",
            kind="neuron",
            n_units=n,
            members=(Member(param=f"l{i}.weight", axis=0, units=tuple(range(n)), role="write"),),
        )
        for i, n in enumerate(sizes)
    )
    return Groups(
        groups=groups,
        frozen=(Frozen(param="head.weight", axis=0, count=2, reason="output of the model"),),
        equations=equations,
        costs=tuple(terms),
        settings=(),
        sites=(),
        swaps=(),
        notes=(),
        structure="structure-1",
    )


def make_scores(*values: list[float], unit: str = "nats", structure: str = "structure-1") -> Scores:
    return Scores(
        criterion="obd",
        unit=unit,  # type: ignore[arg-type]
        order=2,
        source="",
        values=tuple(tuple(v) for v in values),
        structure=structure,
    )


ASCENDING = [0.1 * i for i in range(8)]


def test_the_lowest_scoring_units_go() -> None:
    values = [[0.5, 0.1, 0.9, 0.3, 0.8, 0.2, 0.7, 0.6], ASCENDING[::-1]]
    made = plan(make_groups(), make_scores(*values), Budget(macs=0.5), allocator=uniform())
    for kept, scores in zip(made.kept, values, strict=True):
        gone = set(range(8)) - set(kept)
        assert max(scores[u] for u in gone) < min(scores[u] for u in kept)
        assert list(kept) == sorted(kept)


def test_ties_go_by_unit_index() -> None:
    made = plan(make_groups((6,)), make_scores([1.0] * 6), Budget(params=0.5), allocator=uniform())
    assert made.kept == ((3, 4, 5),)


def test_the_plan_says_what_it_costs_and_what_it_predicts() -> None:
    groups, scores = make_groups(), make_scores(ASCENDING, ASCENDING)
    made = plan(groups, scores, Budget(macs=0.5), allocator=greedy())
    counts = [len(kept) for kept in made.kept]
    assert made.before == _cost.cost(groups.costs, (8, 8))
    assert made.after == _cost.cost(groups.costs, counts)
    assert made.after.macs <= 0.5 * made.before.macs
    lost = [sum(scores.values[g][u] for u in range(8) if u not in kept) for g, kept in enumerate(made.kept)]
    assert made.predicted == pytest.approx(sum(lost))
    assert (made.allocator, made.criterion, made.structure) == ("greedy", "obd", "structure-1")
    assert from_json(Plan, to_json(made)) == made


def test_a_plan_without_units_predicts_nothing() -> None:
    scores = make_scores(ASCENDING, ASCENDING, unit="a.u.")
    assert plan(make_groups(), scores, Budget(macs=0.5), allocator=uniform()).predicted is None
    with pytest.raises(IncomparableScores):
        plan(make_groups(), scores, Budget(macs=0.5), allocator=greedy())


def test_equations_and_alignment_hold() -> None:
    groups = make_groups((16, 16), (Equation(terms=((0, 1), (1, -1)), reason="one hidden_size"),))
    scores = make_scores([0.001 * i for i in range(16)], [1.0 + i for i in range(16)])
    made = plan(groups, scores, Budget(macs=0.6), allocator=global_threshold(), round_to=4)
    assert len(made.kept[0]) == len(made.kept[1])
    assert len(made.kept[0]) % 4 == 0


def test_contradicting_alignment_is_named() -> None:
    groups = make_groups(
        (8, 12), (Equation(terms=((0, 1), (1, -1)), constant=1, reason="chunk(2)", source="net.py:7"),)
    )
    with pytest.raises(Unsatisfiable, match=r"chunk\(2\), net.py:7"):
        plan(groups, make_scores(ASCENDING, [1.0] * 12), Budget(macs=0.9), allocator=uniform(), round_to=4)


def test_the_least_number_of_units_stays() -> None:
    scores = make_scores([0.0] * 8, [9.0] * 8)
    made = plan(make_groups(), scores, Budget(macs=0.5), allocator=greedy(), least=3)
    assert min(len(kept) for kept in made.kept) >= 3
    with pytest.raises(BudgetUnreachable):
        plan(make_groups(), scores, Budget(macs=0.05), allocator=greedy(), least=3)
    with pytest.raises(InputError, match="least"):
        plan(make_groups(), scores, Budget(macs=0.5), allocator=greedy(), least=0)


def test_other_costs_can_be_given() -> None:
    only_second = (CostTerm(what="macs", where="x", op="y", coefficient=1, extents=(Extent(0, ((1, 1),)),)),)
    made = plan(
        make_groups(), make_scores(ASCENDING, ASCENDING), Budget(macs=0.5), allocator=greedy(), costs=only_second
    )
    assert [len(kept) for kept in made.kept] == [8, 4]


def test_what_cannot_be_ranked_is_refused() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFinite, match="l1, unit 3"):
            plan(
                make_groups(),
                make_scores(ASCENDING, [0, 1, 2, bad, 4, 5, 6, 7]),
                Budget(macs=0.5),
                allocator=uniform(),
            )


def test_scores_and_curves_of_another_model_are_refused() -> None:
    with pytest.raises(StaleArtifact, match="scores"):
        plan(make_groups(), make_scores(ASCENDING), Budget(macs=0.5), allocator=uniform())
    with pytest.raises(StaleArtifact, match="scores"):
        plan(make_groups((8,)), make_scores(ASCENDING, structure="other"), Budget(macs=0.5), allocator=uniform())
    with pytest.raises(StaleArtifact, match="curves"):
        plan(
            make_groups((8,)),
            make_scores(ASCENDING),
            Budget(macs=0.5),
            allocator=uniform(),
            curves=make_curves((8,), {0: {4: 0.1}}, structure="other"),
        )


def test_curves_in_the_order_of_another_criterion_are_refused() -> None:
    scores = dataclasses.replace(make_scores(ASCENDING), criterion="taylor")
    curves = make_curves((8,), {0: {4: 0.1}})
    with pytest.raises(StaleArtifact, match="removal order"):
        plan(make_groups((8,)), scores, Budget(macs=0.5), allocator=uniform(), curves=curves)


def test_nothing_to_cut_lists_the_reasons() -> None:
    with pytest.raises(NothingToCut, match="output of the model"):
        plan(make_groups(()), make_scores(), Budget(macs=0.5), allocator=uniform())


def make_curves(
    sizes: tuple[int, ...], losses: dict[int, dict[int, float]], *, structure: str = "structure-1", also: tuple = ()
) -> Curves:
    points = []
    for group, by_removed in losses.items():
        for n_removed, loss in by_removed.items():
            points.append(
                Point(
                    group=group,
                    removed=n_removed / sizes[group],
                    n_removed=n_removed,
                    fold=0,
                    n=100,
                    weight=100.0,
                    loss=100 * loss,
                    loss_sq=100 * loss * loss + 1.0,
                    drop=None,
                    drop_sq=None,
                    base_loss=10.0,
                    base_correct=None,
                    also=also,
                )
            )
    names = tuple(f"l{i}" for i in range(len(sizes)))
    return Curves(points=tuple(points), names=names, n_units=sizes, n_folds=1, criterion="obd", structure=structure)


def test_curves_overrule_the_size_of_scores_but_not_their_order() -> None:
    # by the scores the first group is cheap; measured, it is the dear one
    scores = make_scores([0.001 * i for i in range(8)], [0.1 * i for i in range(8)])
    curves = make_curves((8, 8), {0: {2: 1.0, 6: 9.0}, 1: {2: 0.01, 6: 0.05}})
    by_scores = plan(make_groups(), scores, Budget(macs=0.6), allocator=greedy())
    by_curves = plan(make_groups(), scores, Budget(macs=0.6), allocator=greedy(), curves=curves)
    assert len(by_scores.kept[0]) < len(by_scores.kept[1])
    assert len(by_curves.kept[0]) > len(by_curves.kept[1])
    assert by_curves.kept[1] == tuple(range(8 - len(by_curves.kept[1]), 8))


def measured(scores: list[float], losses: dict[int, float]) -> tuple[float, ...]:
    curves = make_curves((8,), {0: losses})
    return problem_of(make_groups((8,)), make_scores(scores), Budget(macs=0.5), curves=curves).losses[0]


def test_between_measured_points_the_scores_give_the_shape() -> None:
    losses = measured([1.0, 3.0, 1.0, 3.0, 9.0, 9.0, 9.0, 9.0][::-1], {2: 0.2, 4: 0.6, 6: 0.6, 7: 1.0})
    # ascending scores: 1 1 3 3 9 9 9 9
    assert losses == pytest.approx((0.1, 0.1, 0.2, 0.2, 0.0, 0.0, 0.4, 0.4))
    assert measured([-1.0] * 8, {2: 0.2, 4: 0.6})[:4] == pytest.approx((0.1, 0.1, 0.2, 0.2))


def test_beyond_the_last_point_nothing_is_free() -> None:
    assert measured([0.0] * 8, {2: 0.2, 4: 0.6})[4:] == pytest.approx((0.2,) * 4)  # the slope of the last stretch
    assert measured([0.0] * 8, {2: 0.4, 4: 0.4})[4:] == pytest.approx((0.1,) * 4)  # that of the whole curve
    # the scores were half of what was measured, and go on so
    assert measured([0.1] * 4 + [0.5] * 4, {4: 0.8})[4:] == pytest.approx((1.0,) * 4)


def test_noisy_and_negative_curves_never_crash_a_plan() -> None:
    curves = make_curves((8, 8), {0: {2: -0.5, 4: 0.3, 6: -0.2}, 1: {2: 0.4, 4: 0.1, 6: 0.2}})
    problem = problem_of(make_groups(), make_scores(ASCENDING, ASCENDING), Budget(macs=0.5), curves=curves)
    assert all(x >= 0 for losses in problem.losses for x in losses)
    for allocator in (uniform(), global_threshold(), greedy()):
        plan(make_groups(), make_scores(ASCENDING, ASCENDING), Budget(macs=0.5), allocator=allocator, curves=curves)


def test_curves_make_arbitrary_units_comparable() -> None:
    scores = make_scores(ASCENDING, ASCENDING, unit="a.u.")
    curves = make_curves((8, 8), {0: {4: 0.3}, 1: {4: 0.1}})
    made = plan(make_groups(), scores, Budget(macs=0.5), allocator=greedy(), curves=curves)
    assert made.predicted is not None


def test_what_was_removed_together_is_not_counted_twice() -> None:
    groups = make_groups((8, 8), (Equation(terms=((0, 1), (1, -1)), reason="one hidden_size"),))
    first = make_curves((8, 8), {0: {4: 0.6}}, also=((1, 4),))
    second = make_curves((8, 8), {1: {4: 0.6}}, also=((0, 4),))
    both = dataclasses.replace(first, points=first.points + second.points)
    made = plan(groups, make_scores(ASCENDING, ASCENDING), Budget(params=0.4375), allocator=greedy(), curves=both)
    assert [len(kept) for kept in made.kept] == [4, 4]
    assert made.predicted == pytest.approx(0.6)


def test_an_unmeasured_group_is_refused() -> None:
    curves = make_curves((8, 8), {0: {4: 0.3}})
    with pytest.raises(InputError, match="no measured point"):
        plan(make_groups(), make_scores(ASCENDING, ASCENDING), Budget(macs=0.5), allocator=greedy(), curves=curves)
