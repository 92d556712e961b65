"""Global threshold: the units with the smallest predicted loss go, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur import _counts
from secateur.allocators import _search
from secateur.schema.problem import Problem


@dataclass(frozen=True, slots=True)
class GlobalThreshold:
    """One threshold on the unit losses of all groups, as low as the budget allows.

    All units stand in one order (loss, group, position): the first R go, R being the smallest number for which the
    feasible counts nearest to the rest meet the budget. Ties break by index, so the count is exact. What still fits
    is given back, the dearest unit first.

    Differs from the usual global ranking: count equations hold, and the number is exact.
    Source: Molchanov et al. 2017, arXiv:1611.06440 (global ranking); `lamp`: Lee et al. 2021, arXiv:2010.07611.
    """

    normalise: _search.Normaliser | None = None
    name: str = "global_threshold"

    def __call__(self, problem: Problem) -> tuple[int, ...]:
        """Kept counts, [group].

        Raises:
            IncomparableScores: losses in arbitrary units and no normaliser.
            BudgetUnreachable, Unsatisfiable: as all allocators.
        """
        search = _search.prepare(_search.comparable(problem, self.normalise))
        n_units = np.array(problem.n_units)
        removable = [n - a for n, a in zip(problem.n_units, problem.least, strict=True)]
        losses = np.concatenate(
            [np.diff(total)[:r] for total, r in zip(search.convex, removable, strict=True)] or [np.empty(0)]
        )
        group = np.repeat(np.arange(len(n_units)), removable)
        # Losses ascend within a group, so a stable sort by loss alone is the order (loss, group, position).
        order = group[np.argsort(losses, kind="stable")]

        def counts(n_removed: int) -> tuple[int, ...]:
            gone = np.bincount(order[:n_removed], minlength=len(n_units))
            return _counts.project(search.constraints, n_units - gone)

        def dearest(present: NDArray[np.int64], changes: NDArray[np.int64]) -> NDArray[np.float64]:
            each: NDArray[np.float64] = -_search.changes_of_loss(search, present, changes) / changes.sum(axis=1)
            return each

        if _search.fits(search, full := counts(0)):
            return _search.give_back(search, full, dearest)
        low, high = 0, len(order)
        best = search.floor
        if _search.fits(search, found := counts(high)):
            best = found
        while high - low > 1:
            middle = (low + high) // 2
            if _search.fits(search, found := counts(middle)):
                high, best = middle, found
            else:
                low = middle
        return _search.give_back(search, best, dearest)


def global_threshold(normalise: _search.Normaliser | None = None) -> GlobalThreshold:
    """One threshold over all groups; `normalise` (mean, max, lamp) makes arbitrary units comparable."""
    return GlobalThreshold(normalise=normalise)
