"""Problem: what an allocator solves. Costs as functions of counts, losses sorted, constraints, limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from secateur.schema.budget import Budget
from secateur.schema.groups import CostTerm, Equation


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Choose kept counts k[g] that meet the budget with the least predicted loss.

    Attributes:
        losses: [group][j]: predicted loss increase of removing the j-th unit of the removal order. Ascending where it
            comes from scores; differences of measured curves need not be.
        n_units: units per group.  least: least kept count per group (at least 1).
        costs: the true, multilinear cost terms.
        equations: integer constraints every solution satisfies.
        budget: fractions kept.
        unit: unit of `losses`; an allocator that compares groups refuses `a.u.`.
        names: group names, for messages.
    """

    losses: tuple[tuple[float, ...], ...]
    n_units: tuple[int, ...]
    least: tuple[int, ...]
    costs: tuple[CostTerm, ...]
    equations: tuple[Equation, ...]
    budget: Budget
    unit: Literal["nats", "a.u."]
    names: tuple[str, ...]
