"""Measured curves beside what the scores predicted, and how well the two agree.

Index conventions: g group, j removed fraction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from secateur._curves import Reading, read
from secateur.schema.curves import Curves
from secateur.schema.scores import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One point of a curve.

    Attributes:
        reading: what was measured, all folds together.
        predicted: increase of the loss that the scores predict, nats; None where they have no unit.
        recovered: the same after a cheap recovery (batch norm recalibrated); None where there was none.
    """

    reading: Reading
    predicted: float | None
    recovered: Reading | None


def measured(curves: Curves, scores: Scores | None) -> tuple[tuple[Measured, ...], ...]:
    """[g][j]: every point that was measured, in order of the units removed."""
    after = {(r.group, r.n_removed): r for line in read(curves, recovered=True) for r in line}
    return tuple(
        tuple(
            Measured(
                reading=reading,
                predicted=_predicted(reading, scores),
                recovered=after.get((reading.group, reading.n_removed)),
            )
            for reading in line
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
    from scipy.stats import rankdata

    pairs = [(p.predicted, p.reading.loss) for line in lines for p in line if p.predicted is not None]
    if len(pairs) < 3:
        return None
    a, b = rankdata([x for x, _ in pairs]), rankdata([y for _, y in pairs])
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else None
