"""Uniform: the same fraction of every group stays. The yardstick of all others; needs no scores to be comparable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur import _counts
from secateur.allocators import _search
from secateur.schema.problem import Problem


@dataclass(frozen=True, slots=True)
class Uniform:
    """The largest fraction s such that the feasible counts nearest to s * n_units meet the budget.

    What still fits is given back to the groups that kept the smallest fraction.
    """

    name: str = "uniform"

    def __call__(self, problem: Problem) -> tuple[int, ...]:
        """Kept counts, [group].

        Raises:
            BudgetUnreachable, Unsatisfiable: as all allocators.
        """
        search = _search.prepare(problem)

        def counts(kept: float) -> tuple[int, ...]:
            return _counts.project(search.constraints, [kept * n for n in problem.n_units])

        def fraction_gone(present: NDArray[np.int64], changes: NDArray[np.int64]) -> NDArray[np.float64]:
            kept = present / np.array(problem.n_units)
            gone: NDArray[np.float64] = np.max(np.where(changes != 0, 1.0 - kept, 0.0), axis=1)
            return gone

        if _search.fits(search, full := counts(1.0)):
            return _search.give_back(search, full, fraction_gone)
        low, high = 0.0, 1.0
        best = search.floor
        while high - low > 0.25 / max(problem.n_units):
            middle = (low + high) / 2
            if _search.fits(search, found := counts(middle)):
                low, best = middle, found
            else:
                high = middle
        return _search.give_back(search, best, fraction_gone)


def uniform() -> Uniform:
    """The same fraction of every group."""
    return Uniform()
