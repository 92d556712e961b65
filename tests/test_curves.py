"""Reading curves: means, standard errors and the isotonic fit, compared with the same numbers computed plainly."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import _curves
from secateur.errors import InputError, StaleArtifact
from secateur.schema import from_json, to_json
from secateur.schema.curves import Curves, Point


def points_of(
    differences: np.ndarray, weights: np.ndarray, *, n_removed: int = 3, n_folds: int = 2, group: int = 0
) -> list[Point]:
    made = []
    for fold in range(n_folds):
        d, w = differences[fold::n_folds], weights[fold::n_folds]
        made.append(
            Point(
                group=group,
                removed=n_removed / 10,
                n_removed=n_removed,
                fold=fold,
                n=len(d),
                weight=float(w.sum()),
                weight_sq=float((w**2).sum()),
                loss=float((w * d).sum()),
                loss_sq=float((w * d * d).sum()),
                drop=float((w * d).sum()),
                drop_sq=float((w * d * d).sum()),
                base_loss=0.0,
                base_correct=0.0,
            )
        )
    return made


def curves_of(points: list[Point], n_groups: int = 1) -> Curves:
    return Curves(
        points=tuple(sorted(points, key=_curves.order)),
        names=tuple(f"g{i}" for i in range(n_groups)),
        n_units=(10,) * n_groups,
        n_folds=2,
        criterion="obd",
    )


def test_mean_and_standard_error_are_those_of_the_examples() -> None:
    d = np.random.default_rng(0).normal(0.3, 1.0, 37)
    ((reading,),) = _curves.read(curves_of(points_of(d, np.ones(37))))
    assert reading.n == 37
    assert reading.loss == pytest.approx(d.mean())
    assert reading.error == pytest.approx(d.std(ddof=1) / math.sqrt(37))
    assert (reading.drop, reading.drop_error) == pytest.approx((reading.loss, reading.error))


def test_weights_of_zero_leave_examples_out() -> None:
    d = np.random.default_rng(0).normal(0.3, 1.0, 40)
    w = np.where(np.arange(40) < 25, 2.0, 0.0)
    ((reading,),) = _curves.read(curves_of(points_of(d, w)))
    assert reading.loss == pytest.approx(d[:25].mean())
    assert reading.error == pytest.approx(d[:25].std(ddof=1) / 5)


def test_folds_can_be_left_out() -> None:
    d = np.random.default_rng(0).normal(0.3, 1.0, 40)
    ((reading,),) = _curves.read(curves_of(points_of(d, np.ones(40))), folds=(1,))
    assert reading.loss == pytest.approx(d[1::2].mean())


def brute_force_isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The best of all partitions into blocks with ascending, nonnegative means."""
    n, best, answer = len(values), math.inf, values
    for cuts in itertools.product((False, True), repeat=n - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), n]
        fit = np.concatenate(
            [
                np.full(b - a, max(np.average(values[a:b], weights=weights[a:b]), 0.0))
                for a, b in itertools.pairwise(edges)
            ]
        )
        if (np.diff(fit) >= -1e-12).all() and (error := float(weights @ (fit - values) ** 2)) < best:
            best, answer = error, fit
    return answer


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 2), st.floats(0.1, 5)), min_size=1, max_size=7))
def test_the_fit_is_the_best_ascending_one(pairs: list[tuple[float, float]]) -> None:
    values, weights = np.array(pairs).T
    assert _curves.isotonic(values, weights) == pytest.approx(brute_force_isotonic(values, weights), abs=1e-6)


def test_intervals_enclose_the_fit_and_ascend() -> None:
    rng = np.random.default_rng(0)
    points = []
    for n_removed, mean in ((1, -0.1), (3, 0.4), (5, 0.2), (8, 1.0)):
        points += points_of(rng.normal(mean, 1.0, 60), np.ones(60), n_removed=n_removed)
    (readings,) = _curves.read(curves_of(points))
    assert [r.n_removed for r in readings] == [1, 3, 5, 8]
    assert all(r.low <= r.fit <= r.high for r in readings)
    assert all(a.fit <= b.fit and a.low <= b.low and a.high <= b.high for a, b in itertools.pairwise(readings))
    assert readings[0].loss < 0.05  # the measured value is shown as it is
    assert readings[1].fit == readings[2].fit


def test_the_interval_of_the_fit_covers_a_monotone_truth() -> None:
    rng = np.random.default_rng(1)
    truth = np.array([0.0, 0.02, 0.05, 0.2, 0.8])
    covered = []
    for _ in range(200):
        points = []
        for j, mean in enumerate(truth):
            points += points_of(rng.normal(mean, 0.3, 50), np.ones(50), n_removed=2 * j + 1)
        (readings,) = _curves.read(curves_of(points))
        covered += [r.low <= t <= r.high for r, t in zip(readings, truth, strict=True)]
    assert 0.93 <= np.mean(covered) <= 1.0


def test_points_without_spread_are_read() -> None:
    one = points_of(np.array([0.5]), np.ones(1), n_folds=1)
    ((reading,),) = _curves.read(curves_of(one))
    assert (reading.loss, reading.error, reading.fit) == (0.5, 0.0, 0.5)
    same = points_of(np.zeros(20), np.ones(20), n_removed=5)
    ((reading,),) = _curves.read(curves_of(same))
    assert (reading.fit, reading.low, reading.high) == (0.0, 0.0, 0.0)


def test_points_after_recovery_are_preferred() -> None:
    before = points_of(np.full(10, 5.0), np.ones(10))
    after = [dataclasses.replace(p, recovered=True, loss=p.loss / 5) for p in before]
    curves = curves_of(before + after)
    assert _curves.read(curves)[0][0].loss == pytest.approx(1.0)
    assert _curves.read(curves, recovered=False)[0][0].loss == pytest.approx(5.0)


def test_merging_parts_gives_the_whole() -> None:
    rng = np.random.default_rng(2)
    points = [
        p for g in (0, 1) for r in (2, 5) for p in points_of(rng.normal(size=8), np.ones(8), n_removed=r, group=g)
    ]
    whole = curves_of(points, 2)
    parts = [dataclasses.replace(whole, points=tuple(p for p in whole.points if p.group == g)) for g in (1, 0)]
    assert _curves.merge([*parts, parts[0]]) == whole
    assert from_json(Curves, to_json(whole)) == whole


def test_parts_of_other_scans_are_refused() -> None:
    whole = curves_of(points_of(np.zeros(4), np.ones(4)))
    with pytest.raises(StaleArtifact, match="data"):
        _curves.merge([whole, dataclasses.replace(whole, data="other")])
    with pytest.raises(StaleArtifact, match="there: data"):
        _curves.merge([whole, dataclasses.replace(whole, data="other")], names=["here", "there"])
    changed = tuple(dataclasses.replace(p, loss=1.0) for p in whole.points)
    with pytest.raises(StaleArtifact, match="measured twice"):
        _curves.merge([whole, dataclasses.replace(whole, points=changed)])
    with pytest.raises(InputError):
        _curves.merge([])
