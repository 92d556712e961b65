"""Whatever a scan measured, also what falls, is negative, constant, huge or of one example: later stages take it."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import reports
from secateur import _cost, _couple, _curves, _plan, _report, _trace, _validate, allocators
from secateur.schema.budget import Budget
from secateur.schema.curves import Curves, Point
from secateur.schema.scores import Scores
from secateur.tasks import classification

means = st.one_of(
    st.just(0.0), st.floats(-1.0, 2.0), st.floats(-1e-9, 1e-9), st.floats(-1e12, 1e12), st.sampled_from([1e30, -1e30])
)


@st.composite
def curves_of(draw: st.DrawFn, names: tuple[str, ...], n_units: tuple[int, ...], criterion: str) -> Curves:
    """One to five points in each group, each with its own number of examples; now and then two equal groups."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    points = []
    for group, n in enumerate(n_units):
        constant = draw(st.booleans())
        level = draw(means)
        for n_removed in sorted(draw(st.sets(st.integers(1, n - 1), min_size=1, max_size=5))):
            mean = level if constant else draw(means)
            d = rng.normal(mean, draw(st.sampled_from([0.0, 0.1, abs(mean)])), draw(st.sampled_from([1, 3, 100])))
            points.append(
                Point(
                    group=group,
                    removed=n_removed / n,
                    n_removed=n_removed,
                    fold=0,
                    n=len(d),
                    weight=float(len(d)),
                    weight_sq=float(len(d)),
                    loss=float(d.sum()),
                    loss_sq=float((d * d).sum()),
                    drop=None,
                    drop_sq=None,
                    base_loss=0.1 * len(d),
                    base_correct=None,
                )
            )
    return Curves(points=tuple(points), names=names, n_units=n_units, n_folds=1, criterion=criterion)


def network() -> tuple[nn.Module, object, Scores]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    groups = _couple.couple(_trace.trace(model, torch.zeros(2, 6)))
    rng = np.random.default_rng(0)
    values = tuple(tuple(rng.normal(size=group.n_units).tolist()) for group in groups.groups)
    return (
        model,
        groups,
        Scores(criterion="obd", unit="nats", order=2, source="", values=values, structure=groups.structure),
    )


MODEL, GROUPS, SCORES = network()
WILD = curves_of(tuple(g.name for g in GROUPS.groups), tuple(g.n_units for g in GROUPS.groups), "obd")


@settings(max_examples=150, deadline=None)
@given(WILD)
def test_what_is_read_is_what_was_measured_beside_a_fit_that_ascends(curves: Curves) -> None:
    for readings in _curves.read(curves):
        for reading in readings:
            (point,) = (p for p in curves.points if (p.group, p.n_removed) == (reading.group, reading.n_removed))
            assert reading.loss == pytest.approx(point.loss / point.n)  # also where negative
            assert reading.n == point.n
            assert all(map(math.isfinite, (reading.loss, reading.error, reading.fit, reading.low, reading.high)))
        fits = [r.fit for r in readings]
        assert fits == sorted(fits)
        assert fits[0] >= 0


def test_errors_as_small_as_floats_go_are_read() -> None:
    tiny = Point(
        group=0, removed=0.1, n_removed=1, fold=0, n=3, weight=3.0, loss=1.6e-159, loss_sq=9.2e-319,
        drop=None, drop_sq=None, base_loss=0.3, base_correct=None, recovered=False, weight_sq=3.0, also=(),
    )  # fmt: skip
    large = dataclasses.replace(tiny, removed=0.2, n_removed=2, loss=3.0, loss_sq=5.0)
    curves = Curves(
        points=(tiny, large), names=("0",), n_units=(10,), n_folds=1, criterion="obd", structure="", weights="", data=""
    )
    (readings,) = _curves.read(curves)
    assert [r.fit for r in readings] == pytest.approx([0.0, 1.0])


@settings(max_examples=60, deadline=None)
@given(
    WILD,
    st.sampled_from(["uniform", "greedy", "knapsack", "equal_loss", "global_threshold"]),
    st.sampled_from([0.8, 0.5, 0.3]),
)
def test_every_allocator_plans_with_any_curves(curves: Curves, name: str, kept: float) -> None:
    made = _plan.plan(GROUPS, SCORES, Budget(macs=kept), allocator=allocators.ALLOCATORS[name](), curves=curves)
    counts = [len(units) for units in made.kept]
    assert all(1 <= k <= n for k, n in zip(counts, curves.n_units, strict=True))
    assert _cost.cost(GROUPS.costs, counts).macs <= kept * _cost.cost(GROUPS.costs, curves.n_units).macs
    assert math.isfinite(made.predicted)
    assert made.predicted >= 0


@settings(max_examples=6, deadline=None)
@given(WILD, st.floats(0.0, 1.0))
def test_cross_validation_takes_any_curves(curves: Curves, max_drop: float) -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(20, 6, generator=generator), torch.randint(0, 3, (20,), generator=generator))] * 2
    found = _validate.cross_validate(
        MODEL, GROUPS, SCORES, curves, batches, classification(), max_drop=max_drop, allocator=allocators.greedy(),
        folds=2, grid=(0.8, 0.5),
    )  # fmt: skip
    assert found.kept in (0.8, 0.5, 1.0)


@settings(max_examples=2, deadline=None)
@given(curves_of(reports.NAMES, reports.UNITS, "obd"))
def test_the_report_shows_any_curves(curves: Curves) -> None:
    text = _report.render(dataclasses.replace(reports.full(), curves=curves))
    assert re.search(r"\bnan\b", text) is None
    assert all(name in text for name in curves.names)
