"""Equal loss: every group may lose the same amount. What sensitivity curves have been read for since 2016."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur import _counts
from secateur.allocators import _search
from secateur.schema.problem import Problem


@dataclass(frozen=True, slots=True)
class EqualLoss:
    """The smallest loss a for which the budget is met when each group goes as far as a loss of at most a takes it.

    The feasible counts nearest to that are taken. What still fits is given back to the groups that lost most.

    Source: layer-wise sensitivity analysis, Li et al. 2017, arXiv:1608.08710, section 3.2. Differs from it: the allowed
    loss is solved for, the cost is the true one, and count equations hold.
    """

    normalise: _search.Normaliser | None = None
    name: str = "equal_loss"

    def __call__(self, problem: Problem) -> tuple[int, ...]:
        """Kept counts, [group].

        Raises:
            IncomparableScores: losses in arbitrary units and no normaliser.
            BudgetUnreachable, Unsatisfiable: as all allocators.
        """
        search = _search.prepare(_search.comparable(problem, self.normalise))
        # Predicted improvements are no credit for what follows them.
        totals = [np.maximum.accumulate(np.maximum(total, 0.0)) for total in search.convex]
        allowed = np.unique(np.concatenate(totals))

        def counts(index: int) -> tuple[int, ...]:
            removed = [int(np.searchsorted(total, allowed[index], side="right")) - 1 for total in totals]
            kept = [max(a, n - r) for a, n, r in zip(problem.least, problem.n_units, removed, strict=True)]
            return _counts.project(search.constraints, kept)

        def loss_so_far(present: NDArray[np.int64], changes: NDArray[np.int64]) -> NDArray[np.float64]:
            lost = np.array([t[n - k] for t, n, k in zip(totals, problem.n_units, present.tolist(), strict=True)])
            most: NDArray[np.float64] = np.max(np.where(changes != 0, lost, 0.0), axis=1)
            return most

        full = _counts.project(search.constraints, problem.n_units)
        if _search.fits(search, full):
            return full
        low, high = -1, len(allowed) - 1
        best = search.floor
        if _search.fits(search, found := counts(high)):
            best = found
        while high - low > 1:
            middle = (low + high) // 2
            if _search.fits(search, found := counts(middle)):
                high, best = middle, found
            else:
                low = middle
        return _search.give_back(search, best, loss_so_far)


def equal_loss(normalise: _search.Normaliser | None = None) -> EqualLoss:
    """The same loss for every group; `normalise` (mean, max, lamp) makes arbitrary units comparable."""
    return EqualLoss(normalise=normalise)
