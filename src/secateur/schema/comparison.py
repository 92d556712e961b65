"""Comparison: what scores predicted beside what was measured when units were really taken away, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How well one criterion predicted, over all sampled units or those of one group.

    Attributes:
        criterion: its name.  unit: of its scores.
        group: name of the group; "" for all of them together.
        n: units.
        spearman: rank correlation of score and measured loss increase; None where either is constant or n < 3.
        slope: least-squares slope of the measured increase over the score, with intercept: 1 where the scores are
            calibrated, 2 where losses rise twice as fast as predicted; None for arbitrary units.
        cost: mean measured loss increase of the quarter of the units that the criterion ranks lowest, nats.
    """

    criterion: str
    unit: Literal["nats", "a.u."]
    group: str
    n: int
    spearman: float | None
    slope: float | None
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Scores against leave-one-out.

    Attributes:
        names: of all groups.  units: (group, unit) that were taken away, each alone.
        measured: [units] mean increase of the loss, nats, paired with the dense model.  errors: standard errors.
        predicted: criterion -> [units] its scores.
        agreements: first over all units, for every criterion; then per group.
        ceiling: the rank correlation that perfect scores could reach, given the noise of the measurement: the square
            root of its reliability (split halves, Spearman-Brown); None where it cannot be had.
        cheapest: mean measured increase of the quarter of the units that cost least: no criterion can do better.
        skipped: groups from which a single unit cannot be taken, since a count equation forbids it.
        n_examples: examples the measurement used.
    """

    names: tuple[str, ...]
    units: tuple[tuple[int, int], ...]
    measured: tuple[float, ...]
    errors: tuple[float, ...]
    predicted: dict[str, tuple[float, ...]]
    agreements: tuple[Agreement, ...]
    ceiling: float | None
    cheapest: float
    skipped: tuple[str, ...]
    n_examples: int
    structure: str = ""
    data: str = ""
