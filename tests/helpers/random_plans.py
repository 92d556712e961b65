"""Random uneven plans that respect the count equations: even ratios hide wrong indices and wrong ties."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from secateur._counts import project, system_of
from secateur.schema.groups import Group, Groups
from secateur.schema.plan import Plan


def random_plan(
    groups: Groups,
    seed: int = 0,
    low: float = 0.1,
    high: float = 0.8,
    *,
    may_go: Callable[[Group], bool] = lambda group: True,
) -> Plan:
    """Remove a random fraction between `low` and `high` of every group that may go, each group its own fraction."""
    dice = random.Random(seed)
    wanted = [g.n_units * (1 - dice.uniform(low, high)) if may_go(g) else float(g.n_units) for g in groups.groups]
    counts: Sequence[int] = project(system_of(groups), [max(1.0, w) for w in wanted])
    kept = tuple(tuple(sorted(dice.sample(range(g.n_units), n))) for g, n in zip(groups.groups, counts, strict=True))
    return plan_of(groups, kept)


def plan_of(groups: Groups, kept: Sequence[Sequence[int]]) -> Plan:
    """A plan made by hand."""
    return Plan(
        kept=tuple(tuple(k) for k in kept),
        names=tuple(g.name for g in groups.groups),
        n_units=tuple(g.n_units for g in groups.groups),
        structure=groups.structure,
    )


def keep_all(groups: Groups) -> list[list[int]]:
    """The plan that removes nothing, as lists to be edited."""
    return [list(range(g.n_units)) for g in groups.groups]
