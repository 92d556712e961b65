"""What the allocators share: the limits, the least reachable counts, steps down, and giving back what still fits.

Index conventions: g group, c kind of cost (macs, params, memory), m move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from secateur import _cost, _counts
from secateur.errors import BudgetUnreachable, IncomparableScores
from secateur.schema.problem import Problem

Counts = tuple[int, ...]
Move = tuple[int, ...]
Normaliser = Literal["mean", "max", "lamp"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# (counts [g], changes [m, g]) -> what each change is worth, [m]; the first of equals is taken
Worth = Callable[[Ints, Ints], Floats]

LISTED = 20_000  # points of a component that are tried one by one
MOST_STEPS = 8192  # of a descent; larger models go several units at a time until the last stretch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Search:
    """A problem, prepared.

    Attributes:
        limit: [C], infinite where the budget names no limit; within 2**53, or Python integers.
        cumulative: [g][n_removed], predicted loss of removing that many, from 0.
        convex: [g][n_removed], the greatest convex function below `cumulative`: its slopes ascend, so that comparing
            them unit by unit never gets stuck before a hump.
        flat, start: `convex` in one array, and where in it each group begins.
        floor: the cheapest feasible counts.
    """

    problem: Problem
    constraints: _counts.System
    compiled: _cost.Compiled
    limit: tuple[int | None, ...]
    cumulative: tuple[NDArray[np.float64], ...]
    convex: tuple[NDArray[np.float64], ...]
    flat: NDArray[np.float64]
    start: NDArray[np.int64]
    floor: Counts


def prepare(problem: Problem) -> Search:
    """Checks that the equations and the budget can be met.

    Raises:
        Unsatisfiable: the equations contradict each other.  BudgetUnreachable: with the least reachable fractions.
    """
    constraints = _counts.system(problem)
    _counts.check(constraints)
    compiled = _cost.compile_terms(problem.costs, problem.n_units)
    full = _cost.cost(problem.costs, problem.n_units)
    limits = _cost.limits(problem.budget, full)
    limit = tuple(limits.get(kind) for kind in _cost.KINDS)
    floor = _least(constraints, compiled, np.array([0.0 if v is None else 1.0 / max(v, 1) for v in limit]))
    convex = tuple(_convex(np.asarray(losses, np.float64)) for losses in problem.losses)
    sizes = [len(total) for total in convex]
    search = Search(
        problem=problem,
        constraints=constraints,
        compiled=compiled,
        limit=limit,
        cumulative=tuple(_cumulative(np.asarray(losses, np.float64)) for losses in problem.losses),
        convex=convex,
        flat=np.concatenate(convex) if convex else np.empty(0),
        start=np.cumsum([0, *sizes[:-1]]) if sizes else np.empty(0, np.int64),
        floor=floor,
    )
    if not fits(search, floor):
        least = {}
        for index, kind in enumerate(_cost.KINDS):
            if kind in limits:
                alone = _least(constraints, compiled, np.eye(len(_cost.KINDS))[index])
                least[kind] = _cost.ratio(_cost.cost(problem.costs, alone), full)[kind]
        raise BudgetUnreachable(
            "the budget cannot be met",
            least=least,
            expected=", ".join(f"{kind} of at least {math.ceil(v * 1e4) / 1e4:.4f}" for kind, v in least.items()),
            got=problem.budget,
            todo="raise the budget, lower `least`, or free more groups; `.least` has the exact fractions",
        )
    return search


def _least(constraints: _counts.System, compiled: _cost.Compiled, weights: Floats) -> Counts:
    """Feasible counts of least weighted cost.

    A component whose counts can all be least at once simply is there. Of the others every point is tried, as long as
    they can be listed, one component after the other until nothing improves; those that cannot be listed follow the
    cost made linear. Exact unless several components of these kinds meet in one product.
    """
    best = _counts.project(constraints, constraints.least)
    value = _cost.totals(compiled, best) @ weights
    loose = [c for c in _counts.components(constraints) if any(best[g] > constraints.least[g] for g in c.groups)]
    while loose:
        counts = list(_counts.minimise(constraints, _cost.gradient(compiled, best, weights)))
        if _cost.totals(compiled, counts) @ weights > value:
            counts = list(best)
        for component in loose:
            low, high = [[bounds[g] for g in component.groups] for bounds in (constraints.least, constraints.n_units)]
            if _counts.n_points(component, low, high) > LISTED:
                continue
            points = _counts.points(component, low, high)
            cheapest = int(np.argmin(_cost.changes(compiled, counts, component.groups, points) @ weights))
            for g, k in zip(component.groups, points[cheapest].tolist(), strict=True):
                counts[g] = k
        if (lower := _cost.totals(compiled, counts) @ weights) >= value:
            break
        best, value = tuple(counts), lower
    return best


def _cumulative(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(losses)])


def _convex(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.optimize import isotonic_regression

    # The greatest convex minorant of a sum has as slopes the isotonic fit of the summands.
    ascending = bool((np.diff(losses) >= 0).all())
    return _cumulative(losses if ascending else np.asarray(isotonic_regression(losses).x, np.float64))


def comparable(problem: Problem, normalise: Normaliser | None) -> Problem:
    """The problem with losses that can be compared across groups.

    `mean`, `max`: divided by the mean or the largest absolute value of the group.  `lamp`: each divided by the sum of
    those that are not smaller (Lee et al. 2021, arXiv:2010.07611, eq. 1, for nonnegative losses).

    Raises:
        IncomparableScores: arbitrary units and no normaliser.
    """
    if normalise is None:
        if problem.unit == "nats":
            return problem
        raise IncomparableScores(
            "scores in arbitrary units cannot be compared across groups",
            expected="scores in nats, or a normaliser",
            got=problem.unit,
            todo="score with a criterion whose unit is nats (obd, taylor), give measured curves, "
            "say normalise='mean', or use the uniform allocator",
        )
    return replace(problem, losses=tuple(_normalised(losses, normalise) for losses in problem.losses))


def _normalised(losses: Sequence[float], normalise: Normaliser) -> tuple[float, ...]:
    values = np.asarray(losses, np.float64)
    if not len(values):
        return ()
    if normalise == "lamp":
        scale = np.cumsum(np.maximum(values, 0.0)[::-1])[::-1]
    else:
        magnitude = np.abs(values)
        scale = np.full(len(values), magnitude.mean() if normalise == "mean" else magnitude.max())
    return tuple((values / np.where(scale > 0, scale, 1.0)).tolist())


# Looking at counts


def fits(search: Search, counts: Sequence[int] | Ints) -> bool:
    """Whether the exact cost of these counts meets the budget."""
    return _within(search, _cost.totals(search.compiled, counts))


def _within(search: Search, costs: NDArray[Any]) -> bool:
    return all(limit is None or value <= limit for value, limit in zip(costs.tolist(), search.limit, strict=True))


def predicted(search: Search, counts: Sequence[int]) -> float:
    """Predicted loss increase of keeping these counts."""
    removed = [n - k for n, k in zip(search.problem.n_units, counts, strict=True)]
    return float(sum(total[r] for total, r in zip(search.cumulative, removed, strict=True)))


def changes_of_loss(search: Search, counts: Ints, changes: Ints) -> Floats:
    """How much the (convex) predicted loss grows by each change [m, g] of counts [g]."""
    at = search.start + np.array(search.problem.n_units) - counts
    grown: Floats = (search.flat[at - changes] - search.flat[at]).sum(axis=1)
    return grown


def _inside(search: Search, counts: Ints) -> NDArray[np.bool_]:
    """Whether counts [..., g] lie within their bounds."""
    problem = search.problem
    good = (counts >= np.array(problem.least)) & (counts <= np.array(problem.n_units))
    return np.asarray(np.all(good, axis=-1))


# Going down, and giving back


def descend(search: Search, counts: Counts) -> Counts:
    """Removes, again and again, what costs the least predicted loss per cost saved, until the budget is met.

    What a move saves is the derivative of the true, multilinear cost at the present counts, counted in shares of
    what each unmet limit is still exceeded by. Predicted improvements rank as free, the greatest first; ties go to
    the first group.
    """
    limit = np.array([np.inf if v is None else float(v) for v in search.limit])
    stride = max(1, -(-sum(counts) // MOST_STEPS))
    present = np.array(counts, np.int64)
    groups, changes = _moves(search, counts, range(len(counts)), -1)
    losses = changes_of_loss(search, present, changes)
    while not _within(search, costs := _cost.totals(search.compiled, present)):
        if not len(groups):
            return search.floor
        over = np.maximum(costs.astype(np.float64) - limit, 0.0)
        price = _cost.gradient(search.compiled, present, 1.0 / np.where(over > 0, over, np.inf))
        saved = -(changes @ price)
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(saved > 0, np.maximum(losses, 0.0) / saved, np.inf)
        change = changes[np.lexsort((groups, losses, rate))[0]]
        times = stride
        while times > 1 and (not _inside(search, present + times * change) or fits(search, present + times * change)):
            times = 1
        present = present + times * change
        touched = changes[:, change != 0].any(axis=1)
        if not _inside(search, present + changes[touched]).all():
            groups, changes = _renew(search, present, groups, changes, change, -1)
            losses = changes_of_loss(search, present, changes)
        else:
            losses[touched] = changes_of_loss(search, present, changes[touched])
    return tuple(present.tolist())


def give_back(search: Search, counts: Counts, worth: Worth) -> Counts:
    """Gives units back, the worthiest first, while the budget is still met: nothing more fits into the result."""
    present = np.array(counts, np.int64)
    stride = max(1, -(-sum(search.problem.n_units) // MOST_STEPS))
    groups, changes = _moves(search, counts, range(len(counts)), +1)
    while len(groups):
        best = int(np.argmax(worth(present, changes)))
        change = changes[best]
        several = present + (stride - 1) * change
        if stride > 1 and _inside(search, several + change) and fits(search, several + change):
            present = several
        if not fits(search, present + change):
            # What does not fit now never will: costs only rise from here.
            groups, changes = np.delete(groups, best), np.delete(changes, best, axis=0)
            continue
        present = present + change
        if not _inside(search, present + changes).all():
            groups, changes = _renew(search, present, groups, changes, change, +1)
    return tuple(present.tolist())


def loss_regained_per_cost(search: Search) -> Worth:
    """A worth for `give_back`: predicted loss won back per share of the limits that it takes."""
    scale = np.array([0.0 if v is None else 1.0 / max(v, 1) for v in search.limit])

    def worth(counts: Ints, changes: Ints) -> Floats:
        taken = changes @ _cost.gradient(search.compiled, counts, scale)
        gained: Floats = -changes_of_loss(search, counts, changes) / np.maximum(taken, 1e-300)
        return gained

    return worth


def _moves(search: Search, counts: Sequence[int], groups: Sequence[int], direction: int) -> tuple[Ints, Ints]:
    """The smallest feasible change of each group, [m, g]; those that would share one are named by the first, [m]."""
    found: dict[Move, int] = {}
    for g in groups:
        change = _counts.move(search.constraints, counts, g, direction)
        if change is not None:
            found.setdefault(change, g)
    return np.array(list(found.values()), np.int64), np.array(list(found), np.int64).reshape(len(found), len(counts))


def _renew(
    search: Search, counts: Ints, groups: Ints, changes: Ints, change: Ints, direction: int
) -> tuple[Ints, Ints]:
    """`_moves` after counts of one component came so near to their bounds that its moves are others."""
    group = int(np.flatnonzero(change)[0])
    component = next(c for c in _counts.components(search.constraints) if group in c.groups)
    stays = ~np.isin(groups, component.groups)
    fresh = _moves(search, counts.tolist(), component.groups, direction)
    groups, changes = np.concatenate([groups[stays], fresh[0]]), np.concatenate([changes[stays], fresh[1]])
    order = np.argsort(groups)
    return groups[order], changes[order]
