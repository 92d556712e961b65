"""What the report reads out of scores and curves: means with standard errors, predictions, rank correlation.

Index conventions: g group, j removed fraction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur.schema.curves import Curves, Point
from secateur.schema.scores import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measured point over all folds.

    Attributes:
        removed: fraction of the units.  n_removed: units.
        loss, error: mean paired increase of the loss and its standard error, nats.
        drop, drop_error: the same of the score; None where the task has none.
        predicted: what the scores predict, nats; None where they have no unit.
    """

    removed: float
    n_removed: int
    loss: float
    error: float
    drop: float | None
    drop_error: float | None
    predicted: float | None


def measured(curves: Curves, scores: Scores | None, *, recovered: bool = False) -> tuple[tuple[Measured, ...], ...]:
    """[g][j]: the folds merged (sums add), in order of the removed units."""
    merged: dict[tuple[int, int], list[Point]] = {}
    for point in curves.points:
        if point.recovered == recovered:
            merged.setdefault((point.group, point.n_removed), []).append(point)
    found: list[list[Measured]] = [[] for _ in curves.names]
    for (group, _), points in sorted(merged.items()):
        found[group].append(_merge(points, curves.n_units[group], scores))
    return tuple(tuple(line) for line in found)


def _merge(points: list[Point], n_units: int, scores: Scores | None) -> Measured:
    weight = sum(p.weight for p in points)
    # examples that count the same are worth this many
    n = weight * weight / sum(p.weight_sq or p.weight for p in points)
    loss, error = _mean(sum(p.loss for p in points), sum(p.loss_sq for p in points), n, weight)
    drop = drop_error = None
    if all(p.drop is not None and p.drop_sq is not None for p in points):
        drop, drop_error = _mean(sum(p.drop or 0.0 for p in points), sum(p.drop_sq or 0.0 for p in points), n, weight)
    first, predicted = points[0], None
    if scores is not None and scores.unit == "nats":
        removed = ((first.group, first.n_removed), *first.also)
        predicted = math.fsum(math.fsum(sorted(scores.values[g])[:k]) for g, k in removed)
    return Measured(
        removed=first.n_removed / n_units,
        n_removed=first.n_removed,
        loss=loss,
        error=error,
        drop=drop,
        drop_error=drop_error,
        predicted=predicted,
    )


def _mean(total: float, squares: float, n: float, weight: float) -> tuple[float, float]:
    mean = total / weight
    variance = max(0.0, squares / weight - mean * mean) * (n / (n - 1) if n > 1 else 1.0)
    return mean, math.sqrt(variance / max(n, 1.0))


def rank_correlation(lines: tuple[tuple[Measured, ...], ...]) -> float | None:
    """Spearman's correlation of predicted and measured loss over all points; None for fewer than three."""
    from scipy.stats import rankdata

    pairs = [(p.predicted, p.loss) for line in lines for p in line if p.predicted is not None and p.n_removed]
    if len(pairs) < 3:
        return None
    a, b = rankdata([x for x, _ in pairs]), rankdata([y for _, y in pairs])
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else None
