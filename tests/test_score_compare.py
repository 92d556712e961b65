"""Scores beside leave-one-out: the measurement against zeroing by hand, the figures against scipy."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from scipy import stats as sps
from torch import Tensor, nn

from secateur import criteria, tasks
from secateur._couple import couple
from secateur._score import calibrate, compare, score
from secateur._trace import trace
from secateur.errors import InputError, NothingToCut
from secateur.schema import from_json, to_json
from secateur.schema.comparison import Comparison
from secateur.schema.groups import Groups
from secateur.schema.scores import Scores


def trained() -> tuple[nn.Module, Groups, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    x = torch.randn(300, 4, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, couple(trace(model, x[:2])), [(x[:100], y[:100]), (x[100:], y[100:])]


def by_hand(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> dict[tuple[int, int], Tensor]:
    """Loss increase of every example [N] when a hidden unit is silenced."""
    x, y = torch.cat([b[0] for b in data]), torch.cat([b[1] for b in data])
    found = {}
    with torch.no_grad():
        base = F.cross_entropy(model(x), y, reduction="none")
        for g, layer in enumerate((2, 4)):
            weight = model[layer].weight
            for u in range(weight.shape[1]):
                saved = weight[:, u].clone()
                weight[:, u] = 0
                found[g, u] = (F.cross_entropy(model(x), y, reduction="none") - base).double()
                weight[:, u] = saved
    return found


def test_the_comparison_measures_what_zeroing_measures_and_counts_as_scipy_does() -> None:
    model, groups, data = trained()
    names = [g.name for g in groups.groups]
    scores = score(
        model,
        groups,
        data,
        tasks.classification(),
        criterion=[criteria.obd(), criteria.magnitude(), criteria.absolute_taylor()],
    )
    truth = by_hand(model, data)
    perfect = Scores(
        criterion="perfect",
        unit="nats",
        order=0,
        source="",
        values=tuple(tuple(float(truth[g, u].mean()) for u in range(n)) for g, n in enumerate((12, 8))),
    )
    seen: list[tuple[str, int, int]] = []
    found = compare(
        model,
        groups,
        data,
        tasks.classification(),
        [*scores, perfect],
        n_units=99,
        progress=lambda *a: seen.append(a),
    )
    assert len(found.units) == 20
    assert seen[-1] == ("compare", 20, 20)
    for unit, measured, error in zip(found.units, found.measured, found.errors, strict=True):
        assert measured == pytest.approx(float(truth[unit].mean()), abs=1e-5)
        assert error == pytest.approx(float(truth[unit].std(correction=0)) / 300**0.5, rel=1e-3, abs=1e-6)
    for agreement in found.agreements:
        chosen = [i for i, (g, _) in enumerate(found.units) if agreement.group in ("", names[g])]
        x = [found.predicted[agreement.criterion][i] for i in chosen]
        y = [found.measured[i] for i in chosen]
        assert agreement.n == len(chosen)
        assert agreement.spearman == pytest.approx(sps.spearmanr(x, y).statistic)
        if agreement.unit == "nats":
            assert agreement.slope == pytest.approx(sps.linregress(x, y).slope)
        else:
            assert agreement.slope is None
    overall = {a.criterion: a for a in found.agreements if a.group == ""}
    assert overall["perfect"].spearman == pytest.approx(1, abs=0.01)
    assert overall["perfect"].slope == pytest.approx(1, abs=1e-3)
    assert overall["perfect"].cost == pytest.approx(found.cheapest)
    assert all(a.cost >= found.cheapest - 1e-12 for a in overall.values())
    assert found.ceiling is not None
    assert 0.5 < found.ceiling <= 1
    obd, magnitude = overall["obd"].spearman, overall["magnitude_l2"].spearman
    assert obd is not None
    assert magnitude is not None
    assert obd > magnitude, "a trained network, the same examples"
    assert from_json(Comparison, to_json(found)) == found


def test_a_sample_is_spread_over_the_groups_and_depends_on_the_seed() -> None:
    model, groups, data = trained()
    scores = [score(model, groups, data, tasks.classification(), criterion=criteria.magnitude())]
    runs = [compare(model, groups, data[:1], tasks.classification(), scores, n_units=6, seed=s) for s in (0, 0, 1)]
    assert [sum(g == k for g, _ in runs[0].units) for k in (0, 1)] == [3, 3]
    assert runs[0] == runs[1]
    assert runs[0].units != runs[2].units


def test_the_model_is_left_as_it_was() -> None:
    model, groups, data = trained()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scores = [score(model, groups, data, tasks.classification(), criterion=criteria.obd())]
    compare(model, groups, data, tasks.classification(), scores, n_units=4)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_calibrated_scores_add_up_to_what_was_measured_on_the_units_spread_over_their_order() -> None:
    model, groups, data = trained()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = score(model, groups, data, tasks.classification(), criterion=criteria.obd())
    truth = {unit: float(rise.mean()) for unit, rise in by_hand(model, data).items()}
    flat = sorted((v, (g, u)) for g, row in enumerate(plain.values) for u, v in enumerate(row))
    for n_units, ranks in ((5, [0, 5, 10, 14, 19]), (99, list(range(20)))):
        made = calibrate(model, groups, data, tasks.classification(), plain, n_units=n_units)
        factor = sum(truth[flat[i][1]] for i in ranks) / sum(flat[i][0] for i in ranks)
        for name in ("values", "errors", "linear", "quadratic"):
            for row, old in zip(getattr(made, name), getattr(plain, name), strict=True):
                assert row == pytest.approx([factor * v for v in old], rel=1e-3)
        assert made.criterion == "obd_scaled"
        twice = dataclasses.replace(plain, values=tuple(tuple(2 * v for v in row) for row in plain.values))
        again = calibrate(model, groups, data, tasks.classification(), twice, n_units=n_units)
        assert again.values[0] == pytest.approx(made.values[0]), "whatever the scale was"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_cannot_be_calibrated_is_refused() -> None:
    model, groups, data = trained()
    task = tasks.classification()
    with pytest.raises(InputError, match="nats"):
        calibrate(model, groups, data, task, score(model, groups, data, task, criterion=criteria.magnitude()))
    nothing = score(model, groups, data, task, criterion=criteria.obd())
    with pytest.raises(InputError, match="noise"):
        calibrate(model, groups, data, dataclasses.replace(task, losses=lambda o, b: 0 * o.sum(1)), nothing, n_units=4)


def test_what_cannot_be_compared_is_refused() -> None:
    model, groups, data = trained()
    one = score(model, groups, data, tasks.classification(), criterion=criteria.magnitude())
    with pytest.raises(InputError, match="once"):
        compare(model, groups, data, tasks.classification(), [one, one])
    with pytest.raises(InputError):
        compare(model, groups, data, tasks.classification(), [dataclasses.replace(one, values=one.values[:1])])
    with pytest.raises(InputError):
        compare(model, groups, data, tasks.classification(), [])
    single = nn.Sequential(nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 3))
    alone = couple(trace(single, torch.randn(2, 4)))
    scores = score(single, alone, data, tasks.classification(), criterion=criteria.magnitude())
    with pytest.raises(NothingToCut):
        compare(single, alone, data, tasks.classification(), [scores])
