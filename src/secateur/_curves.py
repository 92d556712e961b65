"""Reading curves: means and standard errors of the measured points, an isotonic fit with intervals, interpolation.

Index conventions: g group, j measured point, in order of the units removed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.errors import InputError, StaleArtifact
from secateur.schema.curves import Curves, Point
from secateur.schema.scores import Scores

CONFIDENCE = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One point of a curve, over all folds that were asked for.

    Attributes:
        removed: fraction of the units.  n_removed: units.  n: examples.
        loss, error: mean paired increase of the loss and its standard error, nats. As measured, also if negative.
        drop, drop_error: the same of the score; None where the task has none.
        fit, low, high: of the loss: isotonic fit from 0 on, and its 95 % interval.
        also: (group, units) that a count equation removed together with them.
    """

    group: int
    removed: float
    n_removed: int
    n: int
    loss: float
    error: float
    drop: float | None
    drop_error: float | None
    fit: float
    low: float
    high: float
    also: tuple[tuple[int, int], ...] = ()


def read(
    curves: Curves, *, recovered: bool | None = None, folds: Collection[int] | None = None
) -> tuple[tuple[Reading, ...], ...]:
    """[g][j]: every measured point, with the isotonic fit of its group.

    The fit is the nondecreasing function from loss 0 at 0 removed that is nearest to the measured means, weighted by
    1 / error² (a running maximum would be biased upward by noise). Its interval is the same fit of the ends of the
    points' intervals, loss ± 1.96 error.

    Args:
        recovered: points measured after the recovery, or before; None = after, where there are such.
        folds: which folds; None = all.
    """
    if recovered is None:
        recovered = any(point.recovered for point in curves.points)
    merged: dict[tuple[int, int], dict[int, Point]] = {}
    for point in curves.points:
        if point.recovered == recovered and (folds is None or point.fold in folds):
            # The same units under two requested fractions are one measurement.
            merged.setdefault((point.group, point.n_removed), {}).setdefault(point.fold, point)
    by_group: list[list[list[Point]]] = [[] for _ in curves.names]
    for (group, _), points in sorted(merged.items()):
        by_group[group].append(list(points.values()))
    return tuple(_read_group(points, n) for points, n in zip(by_group, curves.n_units, strict=True))


def _read_group(points: list[list[Point]], n_units: int) -> tuple[Reading, ...]:
    means = [mean_and_error(fold_points) for fold_points in points]
    drops = [_drop(fold_points) for fold_points in points]
    loss, error = (np.array([m[i] for m in means], np.float64) for i in (0, 1))
    # A point without spread (one example, or no change at all) is not infinitely certain.
    positive = error[error > 0]
    least = positive.min() if len(positive) else 1.0
    # 1 / error², as a share of the largest: 1 / error² itself can be more than a float holds
    weights = np.maximum(np.square(least / np.maximum(error, least)), np.finfo(np.float64).tiny)
    fits = [isotonic(loss + z * error, weights) for z in (0.0, -CONFIDENCE, CONFIDENCE)]
    return tuple(
        Reading(
            group=fold_points[0].group,
            removed=fold_points[0].n_removed / n_units,
            n_removed=fold_points[0].n_removed,
            n=sum(p.n for p in fold_points),
            loss=float(loss[j]),
            error=float(error[j]),
            drop=drops[j][0],
            drop_error=drops[j][1],
            fit=float(fits[0][j]),
            low=float(fits[1][j]),
            high=float(fits[2][j]),
            also=fold_points[0].also,
        )
        for j, fold_points in enumerate(points)
    )


def isotonic(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nonnegative, nondecreasing sequence nearest to `values` in weighted least squares."""
    from scipy.optimize import isotonic_regression

    if not len(values):
        return values
    fitted = np.asarray(isotonic_regression(values, weights=weights).x, np.float64)
    return np.maximum(fitted, 0.0)  # with a bound, the solution is the unbounded one, clipped


def mean_and_error(points: Iterable[Point]) -> tuple[float, float]:
    """Mean paired increase of the loss over folds, and its standard error; nats."""
    points = tuple(points)
    return moments(math.fsum(p.loss for p in points), math.fsum(p.loss_sq for p in points), *_sizes(points))


def _drop(points: Iterable[Point]) -> tuple[float | None, float | None]:
    points = tuple(points)
    if any(p.drop is None or p.drop_sq is None for p in points):
        return None, None
    return moments(
        math.fsum(p.drop or 0.0 for p in points), math.fsum(p.drop_sq or 0.0 for p in points), *_sizes(points)
    )


def _sizes(points: tuple[Point, ...]) -> tuple[float, float]:
    """Sum of the weights, and the effective number of examples."""
    weight = math.fsum(p.weight for p in points)
    n = effective(weight, math.fsum(p.weight_sq for p in points))
    return weight, n if n > 0 else float(sum(p.n for p in points))


def effective(weight: float, weight_sq: float) -> float:
    """The effective number of examples (Kish 1965): (sum w)² / sum w²; 0 where nothing has weight."""
    return weight * weight / weight_sq if weight_sq > 0 else 0.0


def moments(total: float, squares: float, weight: float, n: float) -> tuple[float, float]:
    """Mean and standard error from weighted sums, and the effective number of examples."""
    mean = total / weight
    variance = max(squares / weight - mean * mean, 0.0)
    return mean, math.sqrt(variance / (n - 1)) if n > 1 else 0.0


def increments(
    readings: tuple[Reading, ...], scores: Sequence[float], *, where: str | None = None
) -> tuple[float, ...]:
    """Measured loss of taking away the j-th unit of the removal order, [n_units]: differences of the fit.

    Between two measured points the difference is shared among the units in proportion to their scores (equally where
    these are not positive). Beyond the last point scores go on at the rate at which they were right so far, and never
    below the slope of the last stretch or of the whole curve: nothing is free because nobody looked. What
    equations made several groups lose together is shared among them equally.

    Args:
        scores: of the units, ascending, in any unit.

    Raises:
        InputError: a group was never measured.
    """
    if not readings:
        raise InputError("a group has no measured point", where=where, todo="scan all groups, or plan without curves")
    weights = np.maximum(np.asarray(scores, np.float64), 0.0)
    made = np.zeros(len(weights))
    start, reached, slope = 0, 0.0, 0.0
    for reading in readings:
        stop = reading.n_removed
        # The parts of a fit can fall where shares change; what was lost stays lost.
        total = max(reading.fit / (1 + len(reading.also)), reached)
        part = weights[start:stop]
        shares = part / part.sum() if part.sum() > 0 else np.full(stop - start, 1.0 / (stop - start))
        made[start:stop] = (total - reached) * shares
        slope = (total - reached) / (stop - start)
        start, reached = stop, total
    if start < len(weights):
        seen = weights[:start].sum()
        rate = reached / seen if seen > 0 else 0.0
        made[start:] = np.maximum(rate * weights[start:], max(slope, reached / start))
    return tuple(made.tolist())


def merge(parts: Iterable[Curves], *, names: Sequence[str] = ()) -> Curves:
    """Partial curves of the same scan, made at different times or places, as one. Sums are stored: merging is exact.

    Of a point that was measured with two precisions the more precise one counts: its examples include the others.

    Args:
        names: of the parts, for messages: files, machines.

    Raises:
        InputError: nothing to merge.  StaleArtifact: of another model, data set, criterion or number of folds.
    """
    parts = tuple(parts)
    if not parts:
        raise InputError("no curves to merge")
    first = parts[0]
    points: dict[tuple[int, float, int, bool], Point] = {}
    for part, name in itertools.zip_longest(parts, names[: len(parts)], fillvalue=""):
        assert isinstance(part, Curves)
        source = f"{name}: " if name else ""
        for what in ("names", "n_units", "n_folds", "criterion", "structure", "weights", "data"):
            mine, theirs = _field(first, what), _field(part, what)
            if mine != theirs:
                raise StaleArtifact(
                    "curves of different scans cannot be merged",
                    where=f"{source}{what}",
                    expected=mine,
                    got=theirs,
                    todo="merge parts that were scanned with the same model, data and settings",
                )
        for point in part.points:
            key = order(point)
            held = points.setdefault(key, point)
            if held.n < point.n:
                points[key] = point
            elif held.n == point.n and held != point:
                raise StaleArtifact(
                    "the same point was measured twice, differently",
                    where=f"{source}{first.names[point.group]}, removed {point.removed}, fold {point.fold}",
                    expected=points[key],
                    got=point,
                    todo="leave one of the two parts out",
                )
    merged = tuple(points[key] for key in sorted(points))
    return Curves(
        points=merged,
        names=first.names,
        n_units=first.n_units,
        n_folds=first.n_folds,
        criterion=first.criterion,
        structure=first.structure,
        weights=first.weights,
        data=first.data,
    )


def _field(curves: Curves, what: str) -> object:
    return {
        "names": curves.names,
        "n_units": curves.n_units,
        "n_folds": curves.n_folds,
        "criterion": curves.criterion,
        "structure": curves.structure,
        "weights": curves.weights,
        "data": curves.data,
    }[what]


def order(point: Point) -> tuple[int, float, int, bool]:
    """The place of a point in `Curves.points`."""
    return point.group, point.removed, point.fold, point.recovered


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One point of a curve, with all there is to compare it with.

    Attributes:
        reading: what was measured right after the cut, all folds together.
        predicted: increase of the loss that the scores predict, nats; None where they have no unit.
        recovered: the same point after the cheap recovery; None where there was none.
    """

    reading: Reading
    predicted: float | None
    recovered: Reading | None


def measured(curves: Curves, scores: Scores | None) -> tuple[tuple[Measured, ...], ...]:
    """[g][j]: every measured point beside its prediction, and before and after the recovery."""
    after = {(r.group, r.n_removed): r for line in read(curves, recovered=True) for r in line}
    return tuple(
        tuple(
            Measured(reading=r, predicted=_predicted(r, scores), recovered=after.get((r.group, r.n_removed)))
            for r in line
        )
        for line in read(curves, recovered=False)
    )


def _predicted(reading: Reading, scores: Scores | None) -> float | None:
    if scores is None or scores.unit != "nats":
        return None
    removed = ((reading.group, reading.n_removed), *reading.also)
    return math.fsum(math.fsum(sorted(scores.values[g])[:k]) for g, k in removed)


def rank_correlation(lines: Sequence[Sequence[Measured]]) -> float | None:
    """Spearman's correlation of predicted and measured loss over all points; None for fewer than three."""
    pairs = [(p.predicted, p.reading.loss) for line in lines for p in line if p.predicted is not None]
    return spearman([x for x, _ in pairs], [y for _, y in pairs])


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties share their mean rank; None for fewer than three, or where all are equal."""
    from scipy.stats import rankdata

    if len(x) < 3:
        return None
    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else None
