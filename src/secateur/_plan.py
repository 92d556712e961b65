"""plan: scores, or measured curves, and a budget -> which units stay."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secateur import _cost, _counts, _curves
from secateur.errors import InputError, NothingToCut, StaleArtifact
from secateur.schema.budget import Budget
from secateur.schema.curves import Curves
from secateur.schema.groups import CostTerm, Groups
from secateur.schema.members import Allocator
from secateur.schema.plan import Plan
from secateur.schema.problem import Problem
from secateur.schema.scores import Scores


def plan(
    groups: Groups,
    scores: Scores,
    budget: Budget,
    *,
    allocator: Allocator,
    curves: Curves | None = None,
    costs: Sequence[CostTerm] | None = None,
    round_to: int = 1,
    least: int = 1,
) -> Plan:
    """Which units to keep: the allocator says how many of each group, the scores say which.

    Args:
        groups: from `couple`.  scores: from `score`; units go in ascending order, ties by index.
        budget: fractions of the dense cost that are kept; never exceeded.
        allocator: how many units each group keeps.
        curves: from `scan`: then the allocator sees the measured loss of the groups (isotonic fit of all folds, shaped
            by the scores between the measured points) instead of sums of scores; the removal order stays theirs.
        costs: cost terms to use in place of `groups.costs`.
        round_to: every parameter axis that is cut keeps a multiple of this length; a group that cannot is left whole.
        least: fewest units that any group keeps.

    Raises:
        NothingToCut: everything is frozen.  NonFinite: a score is NaN or infinite.
        StaleArtifact: scores or curves of another model.
        BudgetUnreachable: `.least` has the least reachable fractions.  Unsatisfiable: contradicting count equations.
        IncomparableScores: scores in arbitrary units and an allocator that compares groups.
    """
    problem = problem_of(groups, scores, budget, curves=curves, costs=costs, round_to=round_to, least=least)
    counts = tuple(int(k) for k in allocator(problem))
    before, after = (_cost.cost(problem.costs, k) for k in (problem.n_units, counts))
    assert _counts.satisfied(_counts.system(problem), counts), f"{allocator.name} broke a count equation: {counts}"
    assert _cost.within(after, _cost.limits(budget, before)), f"{allocator.name} exceeded the budget: {after}"
    removed = [n - k for n, k in zip(problem.n_units, counts, strict=True)]
    return Plan(
        kept=_counts.kept_units(_counts.removal_order(groups, scores), counts),
        names=problem.names,
        n_units=problem.n_units,
        budget=budget,
        before=before,
        after=after,
        predicted=None
        if problem.unit != "nats"
        else math.fsum(x for losses, r in zip(problem.losses, removed, strict=True) for x in losses[:r]),
        allocator=allocator.name,
        criterion=scores.criterion,
        structure=groups.structure,
    )


def problem_of(
    groups: Groups,
    scores: Scores,
    budget: Budget,
    *,
    curves: Curves | None = None,
    costs: Sequence[CostTerm] | None = None,
    round_to: int = 1,
    least: int = 1,
) -> Problem:
    """What an allocator solves. Arguments and errors as in `plan`."""
    if not groups.groups:
        reasons = sorted({frozen.reason for frozen in groups.frozen})
        raise NothingToCut(
            "nothing in this model can be removed",
            got="; ".join(reasons[:8]) or "no groups",
            todo="`secateur trace` lists what is frozen and why",
        )
    if least < 1:
        raise InputError("a group keeps at least one unit", where="least", expected="1 or more", got=least)
    _counts.removal_order(groups, scores)  # refuses what cannot be ranked
    n_units = _cost.full_counts(groups)
    if curves is None:
        losses = tuple(tuple(sorted(values)) for values in scores.values)
    else:
        check_curves(groups, scores, curves)
        losses = _measured(groups, scores, curves)
    return Problem(
        losses=losses,
        n_units=n_units,
        least=tuple(min(max(least, group.least), group.n_units) for group in groups.groups),
        costs=tuple(groups.costs if costs is None else costs),
        equations=(*groups.equations, *(_counts.alignments(groups, round_to, least) if round_to != 1 else ())),
        budget=budget,
        unit=scores.unit if curves is None else "nats",
        names=tuple(group.name for group in groups.groups),
    )


def _measured(groups: Groups, scores: Scores, curves: Curves) -> tuple[tuple[float, ...], ...]:
    """[group][j] from curves; zeros for groups of which nothing can be removed, since no point can exist."""
    constraints = _counts.system_of(groups)
    losses = []
    for group, readings in zip(groups.groups, _curves.read(curves), strict=True):
        if not readings and _counts.with_count(constraints, group.index, 1)[group.index] == group.n_units:
            losses.append((0.0,) * group.n_units)
        else:
            losses.append(_curves.increments(readings, sorted(scores.values[group.index]), where=group.name))
    return tuple(losses)


def check_curves(groups: Groups, scores: Scores, curves: Curves) -> None:
    """Refuses curves that are not of these groups, or were measured in the removal order of another criterion."""
    if curves.n_units != _cost.full_counts(groups) or (curves.structure and curves.structure != groups.structure):
        raise StaleArtifact(
            "the curves belong to another model",
            expected=f"{len(groups.groups)} groups, structure {groups.structure[:12]}",
            got=f"{len(curves.names)} groups, structure {curves.structure[:12]}",
            todo="scan the model that these groups were found in",
        )
    if curves.criterion != scores.criterion:
        raise StaleArtifact(
            "the curves were measured in another removal order",
            expected=f"scores of {curves.criterion}",
            got=f"scores of {scores.criterion}",
            todo="scan with these scores, or plan with those that the scan used",
        )
