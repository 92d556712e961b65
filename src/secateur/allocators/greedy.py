"""Greedy: whatever saves the most cost for the least predicted loss goes first."""

from __future__ import annotations

from dataclasses import dataclass

from secateur import _counts
from secateur.allocators import _search
from secateur.schema.problem import Problem


@dataclass(frozen=True, slots=True)
class Greedy:
    """Smallest feasible moves by predicted loss per cost saved, until the budget is met; then what fits comes back.

    MACs are products of widths, so what a unit saves shrinks as its neighbours go: the true cost is made linear
    again at every step. For a separable cost and ascending losses this is the linear-programming optimum up to
    the last unit.
    """

    normalise: _search.Normaliser | None = None
    name: str = "greedy"

    def __call__(self, problem: Problem) -> tuple[int, ...]:
        """Kept counts, [group].

        Raises:
            IncomparableScores: losses in arbitrary units and no normaliser.
            BudgetUnreachable, Unsatisfiable: as all allocators.
        """
        search = _search.prepare(_search.comparable(problem, self.normalise))
        full = _counts.project(search.constraints, problem.n_units)
        found = _search.descend(search, full)
        return _search.give_back(search, found, _search.loss_regained_per_cost(search))


def greedy(normalise: _search.Normaliser | None = None) -> Greedy:
    """Least predicted loss per cost saved; `normalise` (mean, max, lamp) makes arbitrary units comparable."""
    return Greedy(normalise=normalise)
