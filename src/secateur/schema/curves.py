"""Curves: measured loss and score against the removed fraction, per group and fold.

Sums are stored, not means: merging is exact.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measurement: the lowest-scoring `n_removed` units of a group taken away, on the examples of one fold.

    Differences are pruned minus dense for the loss, dense minus pruned for the score: positive = worse.

    Attributes:
        removed: requested fraction in [0, 1].  n_removed: units really removed.
        n: examples.  weight: sum of example weights (n where unweighted).
        loss, loss_sq: weighted sums of the paired loss difference and of its square.
        drop, drop_sq: the same for the paired drop in `correct`; None where the task has none.
        base_loss, base_correct: sums of the dense model's loss and score on the same examples.
        recovered: measured after the cheap recovery that will follow.
        weight_sq: sum of the squared example weights (n where unweighted; 0 = not recorded, taken as unweighted).
        also: (group, units) removed together with it, because count equations ask for that.
    """

    group: int
    removed: float
    n_removed: int
    fold: int
    n: int
    weight: float
    loss: float
    loss_sq: float
    drop: float | None
    drop_sq: float | None
    base_loss: float
    base_correct: float | None
    recovered: bool = False
    weight_sq: float = 0.0
    also: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Measured sensitivity of every group.

    Attributes:
        points: in the order (group, removed, fold, recovered).
        names: group names; n_units: their sizes.
        n_folds: folds of the search split; an example's fold is its position modulo `n_folds`.
        structure, weights, data: fingerprints; a stale curve is refused.
    """

    points: tuple[Point, ...]
    names: tuple[str, ...]
    n_units: tuple[int, ...]
    n_folds: int
    criterion: str
    structure: str = ""
    weights: str = ""
    data: str = ""
