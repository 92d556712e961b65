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

MOST_STEPS = 8192  # of a descent; larger models go several units at a time until the last stretch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Search:
    """A problem, prepared.

    Attributes:
        limit: [C], infinite where the budget names no limit; within 2**53, or Python integers.
        cumulative: [g][n_removed], predicted loss of removing that many, from 0.
        convex: [g][n_removed], the greatest convex function below `cumulative`: its slopes ascend, so that comparing
            them unit by unit never gets stuck before a hump.
        floor: the cheapest feasible counts.
    """

    problem: Problem
    constraints: _counts.System
    compiled: _cost.Compiled
    limit: tuple[int | None, ...]
    cumulative: tuple[NDArray[np.float64], ...]
    convex: tuple[NDArray[np.float64], ...]
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
    search = Search(
        problem=problem,
        constraints=constraints,
        compiled=compiled,
        limit=limit,
        cumulative=tuple(_cumulative(np.asarray(losses, np.float64)) for losses in problem.losses),
        convex=tuple(_convex(np.asarray(losses, np.float64)) for losses in problem.losses),
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


def _least(constraints: _counts.System, compiled: _cost.Compiled, weights: NDArray[np.float64]) -> Counts:
    """Feasible counts of least weighted cost: exact where a component has a least element, which costs rise from.

    Otherwise the product of widths is made linear at the present counts and minimised until nothing improves.
    """
    best = _counts.project(constraints, constraints.least)
    value = _cost.totals(compiled, best) @ weights
    while True:
        counts = _counts.minimise(constraints, weights @ _cost.gradient(compiled, best))
        if (lower := _cost.totals(compiled, counts) @ weights) >= value:
            return best
        best, value = counts, lower


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


def fits(search: Search, counts: Sequence[int]) -> bool:
    """Whether the exact cost of these counts meets the budget."""
    return _within(search, _cost.totals(search.compiled, counts))


def _within(search: Search, costs: NDArray[Any]) -> bool:
    return all(limit is None or value <= limit for value, limit in zip(costs.tolist(), search.limit, strict=True))


def predicted(search: Search, counts: Sequence[int]) -> float:
    """Predicted loss increase of keeping these counts."""
    removed = [n - k for n, k in zip(search.problem.n_units, counts, strict=True)]
    return float(sum(total[r] for total, r in zip(search.cumulative, removed, strict=True)))


def change_of_loss(search: Search, counts: Sequence[int], change: Move) -> float:
    """How much the (convex) predicted loss grows by a change of counts."""
    total = 0.0
    for g, step in enumerate(change):
        if step:
            removed = search.problem.n_units[g] - counts[g]
            total += float(search.convex[g][removed - step] - search.convex[g][removed])
    return total


def add(counts: Sequence[int], change: Sequence[int], times: int = 1) -> Counts:
    """Counts plus a change."""
    return tuple(k + times * d for k, d in zip(counts, change, strict=True))


def _inside(search: Search, counts: Sequence[int]) -> bool:
    return all(a <= k <= n for a, k, n in zip(search.problem.least, counts, search.problem.n_units, strict=True))


# Going down, and giving back


def descend(search: Search, counts: Counts) -> Counts:
    """Removes, again and again, what costs the least predicted loss per cost saved, until the budget is met.

    What a move saves is the derivative of the true, multilinear cost at the present counts, counted in shares of
    what each unmet limit is still exceeded by. Predicted improvements rank as free, the greatest first; ties go to
    the first group.
    """
    limit = np.array([np.inf if v is None else float(v) for v in search.limit])
    stride = max(1, -(-sum(counts) // MOST_STEPS))
    moves = _moves(search, counts, range(len(counts)), -1)
    losses = {g: change_of_loss(search, counts, m) for g, m in moves.items()}
    while not _within(search, costs := _cost.totals(search.compiled, counts)):
        if not moves:
            return search.floor
        over = np.maximum(costs.astype(np.float64) - limit, 0.0)
        price = (1.0 / np.where(over > 0, over, np.inf)) @ _cost.gradient(search.compiled, counts)
        keys = np.array(list(moves))
        saved = -(np.array(list(moves.values()), np.float64) @ price)
        loss = np.array(list(losses.values()))
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(saved > 0, np.maximum(loss, 0.0) / saved, np.inf)
        best = int(keys[np.lexsort((keys, loss, rate))[0]])
        change, times = moves[best], stride
        while times > 1 and (
            not _inside(search, add(counts, change, times)) or fits(search, add(counts, change, times))
        ):
            times = 1
        counts = add(counts, change, times)
        touched = [g for g, m in moves.items() if any(a and b for a, b in zip(m, change, strict=True))]
        if any(not _inside(search, add(counts, moves[g])) for g in touched):
            touched = _renew(search, counts, moves, change, -1)
            losses = {g: losses.get(g, 0.0) for g in moves}
        losses.update({g: change_of_loss(search, counts, moves[g]) for g in touched})
    return counts


def give_back(search: Search, counts: Counts, worth: Callable[[Counts, Move], float]) -> Counts:
    """Gives units back, the worthiest first, while the budget is still met: nothing more fits into the result."""
    moves = _moves(search, counts, range(len(counts)), +1)
    while moves:
        # What does not fit now never will: costs only rise from here.
        moves = {g: m for g, m in moves.items() if fits(search, add(counts, m))}
        if not moves:
            break
        best = max(moves, key=lambda g: (worth(counts, moves[g]), -g))
        change = moves[best]
        counts = add(counts, change)
        if any(not _inside(search, add(counts, m)) for m in moves.values()):
            _renew(search, counts, moves, change, +1)
    return counts


def loss_regained_per_cost(search: Search) -> Callable[[Counts, Move], float]:
    """A worth for `give_back`: predicted loss won back per share of the limits that it takes."""
    scale = np.array([0.0 if v is None else 1.0 / max(v, 1) for v in search.limit])

    def worth(counts: Counts, change: Move) -> float:
        taken = (_cost.totals(search.compiled, add(counts, change)) - _cost.totals(search.compiled, counts)).astype(
            np.float64
        ) @ scale
        gain = -change_of_loss(search, counts, change)
        return gain / taken if taken > 0 else math.inf

    return worth


def _renew(search: Search, counts: Counts, moves: dict[int, Move], change: Move, direction: int) -> list[int]:
    """Finds the moves of the component that `change` touches anew, in place; returns the groups that have one."""
    group = next(g for g, d in enumerate(change) if d)
    component = next(c for c in _counts.components(search.constraints) if group in c.groups)
    for g in component.groups:
        moves.pop(g, None)
    fresh = _moves(search, counts, component.groups, direction)
    moves.update(fresh)
    return list(fresh)


def _moves(search: Search, counts: Counts, groups: Sequence[int], direction: int) -> dict[int, Move]:
    """The smallest feasible change of each group; groups that would share one are named by the first."""
    found: dict[int, Move] = {}
    seen: set[Move] = set()
    for g in groups:
        change = _counts.move(search.constraints, counts, g, direction)
        if change is not None and change not in seen:
            seen.add(change)
            found[g] = change
    return found
