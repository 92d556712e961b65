"""Validation: how much to remove, as chosen by cross-validation on the search data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from secateur.schema.budget import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One amount that was tried: planned, cut and measured on all search examples, paired with the dense model.

    Attributes:
        kept: fraction of the MACs that was asked for.  macs: that was really kept.
        drop, error: the metric of the drop over all folds, and its standard error.
        fold_drops: the metric of the drop on each fold alone.
        accepted: drop + error is within the allowed drop, on all folds together.
    """

    kept: float
    macs: float
    drop: float
    error: float
    fold_drops: tuple[float, ...]
    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one fold says: chosen on the others, judged on it.

    Attributes:
        fold: that was left out.  kept: fraction chosen on the others (1 = remove nothing).
        drop, error: of that choice on the fold that was left out.  within: drop is within the allowed one.
    """

    fold: int
    kept: float
    drop: float
    error: float
    within: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The amount that was chosen, and on what grounds.

    Attributes:
        budget: the answer, Budget(macs=kept).  kept: fraction of the MACs; 1 where nothing may go.
        reason: in words.
        max_drop: allowed drop.  unit: `score` (points of the mean score) or `nats` (where the task has no score).
        metric: how drops of examples become one number.
        trials: from the largest kept fraction to the smallest.  choices: [fold].
        spread: standard error of the folds' choices: how much they disagree.
        n: examples.
    """

    budget: Budget
    kept: float
    reason: str
    max_drop: float
    unit: Literal["score", "nats"]
    metric: str
    trials: tuple[Trial, ...]
    choices: tuple[Choice, ...]
    spread: float
    n: int
    allocator: str = ""
    criterion: str = ""
    structure: str = ""
    data: str = ""
