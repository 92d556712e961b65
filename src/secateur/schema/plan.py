"""Plan: which units to keep."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.schema.budget import Budget
from secateur.schema.costs import Costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which units of which group stay.

    Attributes:
        kept: [group]: the kept units, ascending.
        names, n_units: of the groups, for messages and reports.
        budget: what was asked for; None where the plan was made by hand or from an allowed drop.
        before, after: cost of the dense and of the planned model.
        predicted: predicted increase of the mean loss, nats; None where the scores have no unit.
        allocator, criterion: who decided.
        structure: fingerprint of the model.
    """

    kept: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    n_units: tuple[int, ...]
    budget: Budget | None = None
    before: Costs | None = None
    after: Costs | None = None
    predicted: float | None = None
    allocator: str = ""
    criterion: str = ""
    structure: str = ""
