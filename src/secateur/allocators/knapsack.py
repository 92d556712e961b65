"""Knapsack: dynamic programming over whole loss curves and the true cost, humps and staircases included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur import _cost, _counts
from secateur.allocators import _search
from secateur.schema.problem import Problem


@dataclass(frozen=True, slots=True)
class Knapsack:
    """Least total predicted loss, with the cost made linear around the present counts until nothing improves.

    A choice is a feasible count of a group (of all groups that an equation ties together). What each choice costs
    is exact while the others stay; dynamic programming over `bins` shares of the budget picks one per
    component; the cost is made linear there and so on. The best solution seen that truly meets the budget is
    returned, never worse than `greedy`, from which it starts.

    Components with more than one free direction keep the counts that greedy gave them.
    """

    normalise: _search.Normaliser | None = None
    bins: int = 2048
    choices: int = 256
    rounds: int = 12
    name: str = "knapsack"

    def __call__(self, problem: Problem) -> tuple[int, ...]:
        """Kept counts, [group].

        Raises:
            IncomparableScores: losses in arbitrary units and no normaliser.
            BudgetUnreachable, Unsatisfiable: as all allocators.
        """
        search = _search.prepare(_search.comparable(problem, self.normalise))
        worth = _search.loss_regained_per_cost(search)
        full = _counts.project(search.constraints, problem.n_units)
        best = _search.give_back(search, _search.descend(search, full), worth)
        value = _search.predicted(search, best)
        for kind, limit in enumerate(search.limit):
            if limit is None:
                continue
            present, margin, seen = best, 0, set[tuple[int, ...]]()
            for _ in range(self.rounds):
                counts = self._solve(search, present, kind, limit - margin)
                if counts is None or (counts in seen and margin == 0):
                    break
                seen.add(counts)
                over = int(_cost.totals(search.compiled, counts)[kind]) - limit
                if _search.fits(search, counts):
                    fuller = _search.give_back(search, counts, worth)
                    if (lower := _search.predicted(search, fuller)) < value:
                        best, value = fuller, lower
                    margin //= 2
                else:
                    # The linear cost promised too much there: ask for less next time.
                    margin += max(over, 0)
                present = counts
        return best

    def _solve(self, search: _search.Search, present: tuple[int, ...], kind: int, limit: int) -> tuple[int, ...] | None:
        """The best choice per component under the cost made linear at `present`; None if none meets the limit."""
        base = int(_cost.totals(search.compiled, present)[kind])
        options: list[tuple[tuple[int, ...], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = []
        least_cost = float(base)
        for component in _counts.components(search.constraints):
            if len(component.basis) != 1:
                continue
            points = _choices(search, component, present, self.choices)
            changes = _cost.changes(search.compiled, present, component.groups, points)
            costs = changes[:, kind].astype(np.float64)
            losses = np.zeros(len(points))
            for i, g in enumerate(component.groups):
                losses += search.cumulative[g][search.problem.n_units[g] - points[:, i]]
            least_cost += costs.min()
            options.append((component.groups, points, costs - costs.min(), losses))
        room = limit - least_cost
        if room < 0:
            return None
        size = room / self.bins or 1.0
        reach = np.zeros(self.bins + 1)  # least loss with at most b bins spent
        picks = []
        for _, _, costs, losses in options:
            spent = np.ceil(costs / size - 1e-9).astype(np.int64)
            rows = np.full((len(spent), self.bins + 1), np.inf)
            for row, (s, loss) in enumerate(zip(spent.tolist(), losses.tolist(), strict=True)):
                if s <= self.bins:
                    rows[row, s:] = reach[: self.bins + 1 - s] + loss
            pick = np.argmin(rows, axis=0)
            picks.append((pick, spent))
            reach = rows[pick, np.arange(self.bins + 1)]
        counts, b = list(present), self.bins
        for (groups, points, _, _), (pick, spent) in zip(reversed(options), reversed(picks), strict=True):
            chosen = int(pick[b])
            for g, k in zip(groups, points[chosen].tolist(), strict=True):
                counts[g] = k
            b -= int(spent[chosen])
        return tuple(counts)


def _choices(
    search: _search.Search, component: _counts.Component, present: tuple[int, ...], most: int
) -> NDArray[np.int64]:
    """Feasible counts of a component, all of them or evenly spread ones; the present ones always."""
    low, high = [[bounds[g] for g in component.groups] for bounds in (search.problem.least, search.problem.n_units)]
    points = _counts.points(component, low, high)
    if len(points) <= most:
        return points
    here = int(np.flatnonzero((points == np.array([present[g] for g in component.groups])).all(axis=1))[0])
    spread = np.linspace(0, len(points) - 1, most - 1).round().astype(np.int64)
    chosen: NDArray[np.int64] = points[np.unique([*spread, here])]
    return chosen


def knapsack(normalise: _search.Normaliser | None = None) -> Knapsack:
    """Dynamic programming over curves and cost; `normalise` (mean, max, lamp) makes arbitrary units comparable."""
    return Knapsack(normalise=normalise)
