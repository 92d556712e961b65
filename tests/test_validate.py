"""cross_validate: on models whose true drop is known, the chosen amount keeps the allowed drop and wastes little."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch import nn

from secateur import _evaluate, _surgery, _validate
from secateur._plan import plan
from secateur._scan import scan
from secateur._validate import cross_validate
from secateur.allocators import greedy, uniform
from secateur.errors import BudgetUnreachable, InputError
from secateur.metrics import quantile, worst_group
from secateur.schema import from_json, to_json
from secateur.schema.budget import Budget
from secateur.schema.graph import Attribute
from secateur.schema.groups import CostTerm, Extent, Group, Groups, Member, Setting
from secateur.schema.scores import Scores
from secateur.schema.task import Task
from secateur.schema.validation import Choice, Trial, Validation
from secateur.tasks import classification

WIDTH = 40


class Votes(nn.Module):
    """Forty hidden units; each copies one noisy vote for the label, and the output adds them up."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(WIDTH, WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, 2, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.eye(WIDTH))
            self.out.weight.copy_(torch.stack([-torch.ones(WIDTH), torch.ones(WIDTH)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(x))


def make_parts(n: int = 600, noise: float = 2.0, seed: int = 0):
    model = Votes().double().eval()
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=generator)
    x = (2.0 * y - 1.0)[:, None] + noise * torch.randn(n, WIDTH, generator=generator, dtype=torch.float64)
    unit = tuple(range(WIDTH))
    group = Group(
        index=0,
        name="hidden",
        kind="neuron",
        n_units=WIDTH,
        members=(
            Member(param="hidden.weight", axis=0, units=unit, role="write"),
            Member(param="out.weight", axis=1, units=unit, role="read"),
        ),
    )
    kept = Extent(0, ((0, 1),))
    groups = Groups(
        groups=(group,),
        frozen=(),
        equations=(),
        costs=(
            CostTerm(what="macs", where="hidden", op="linear", coefficient=1, extents=(Extent(WIDTH), kept)),
            CostTerm(what="macs", where="out", op="linear", coefficient=1, extents=(kept, Extent(2))),
        ),
        settings=(
            Setting(attribute=Attribute("hidden", "out_features"), extent=kept),
            Setting(attribute=Attribute("out", "in_features"), extent=kept),
        ),
        sites=(),
        swaps=(),
        notes=(),
        structure=_surgery.fingerprint_structure(model),
    )
    scores = Scores(
        criterion="none", unit="nats", order=0, source="", values=((0.0,) * WIDTH,), structure=groups.structure
    )
    return model, groups, scores, [(a, b) for a, b in zip(x.split(100), y.split(100), strict=True)]


def run(parts, max_drop: float, **settings) -> Validation:
    model, groups, scores, batches = parts
    settings = {"task": classification(), "allocator": uniform(), "curves": None, **settings}
    task, curves = settings.pop("task"), settings.pop("curves")
    return cross_validate(model, groups, scores, curves, batches, task, max_drop=max_drop, **settings)


def true_drop(parts, kept: float, *, fresh: int = 20_000) -> float:
    model, groups, scores, _ = parts
    _, _, _, batches = make_parts(fresh, seed=99)
    made = plan(groups, scores, Budget(macs=kept), allocator=uniform())
    small = _surgery.apply(model, _surgery.receipt_for(model, groups, made.kept))
    dense, pruned = (_evaluate.evaluate(m, batches, classification()) for m in (model, small))
    return dense.mean_correct - pruned.mean_correct


def test_trials_are_the_paired_drops_of_real_cuts() -> None:
    parts = make_parts()
    model, groups, scores, batches = parts
    found = run(parts, 0.05, grid=(0.5, 0.25), folds=3)
    assert [t.kept for t in found.trials] == [0.5, 0.25]
    dense = _evaluate.evaluate(model, batches, classification())
    for trial in found.trials:
        made = plan(groups, scores, Budget(macs=trial.kept), allocator=uniform())
        small = _surgery.apply(model, _surgery.receipt_for(model, groups, made.kept))
        drop = (dense.correct - _evaluate.evaluate(small, batches, classification()).correct).numpy()
        assert trial.macs == made.after.macs / made.before.macs
        assert trial.drop == pytest.approx(drop.mean())
        assert trial.error == pytest.approx(drop.std(ddof=1) / np.sqrt(len(drop)), rel=1e-6)
        assert trial.fold_drops == pytest.approx([drop[f::3].mean() for f in range(3)])
        assert trial.accepted == (trial.drop + trial.error <= 0.05)


def test_each_fold_is_judged_by_what_the_others_chose() -> None:
    parts = make_parts()
    found = run(parts, 0.03)
    drops = {t.kept: np.array(t.fold_drops) for t in found.trials}
    assert [c.fold for c in found.choices] == [0, 1, 2, 3, 4]
    for choice in found.choices:
        others = [f for f in range(5) if f != choice.fold]
        # folds are of equal size here: the mean over the others is the mean of their means
        assert drops[choice.kept][others].mean() <= 0.03
        assert choice.drop == pytest.approx(drops[choice.kept][choice.fold])
        assert choice.within == (choice.drop <= 0.03)


def test_what_is_chosen_keeps_the_allowed_drop_on_fresh_data_and_wastes_little() -> None:
    kept = []
    for seed in range(6):
        parts = make_parts(seed=seed)
        found = run(parts, 0.04)
        assert found.budget == Budget(macs=found.kept)
        assert true_drop(parts, found.kept) <= 0.04 + 0.01
        kept.append(found.kept)
    # 0.3 of the votes drop 0.033 in truth, 0.2 drop 0.08
    assert 0.2 < np.mean(kept) <= 0.5, kept


def test_a_larger_allowed_drop_never_keeps_more() -> None:
    parts = make_parts()
    kept = [run(parts, d).kept for d in (0.0, 0.01, 0.02, 0.05, 0.1, 0.5)]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == 0.2


def test_where_nothing_may_go_everything_is_kept() -> None:
    found = run(make_parts(noise=0.01), 0.0, grid=(0.9, 0.5))
    assert found.kept == 0.5  # votes without noise: nothing is lost, and nothing is certain to be
    model, groups, scores, batches = make_parts()
    alone = [(x, (x[:, :1] > 0).long().squeeze(1)) for x, _ in batches]
    with torch.no_grad():
        model.out.weight[:, 1:] = 0.0  # only the first unit matters, and it goes first
    found = cross_validate(model, groups, scores, None, alone, classification(), max_drop=0.01, allocator=uniform())
    assert found.kept == 1.0
    assert found.budget == Budget(macs=1.0)
    assert "nothing should go" in found.reason
    assert all(c.kept == 1.0 and c.within for c in found.choices)


def trial(kept: float, *, accepted: bool) -> Trial:
    return Trial(kept=kept, macs=kept, drop=0.0, error=0.0, fold_drops=(), accepted=accepted)


def choices(*kept: float, broken: int = 0) -> list[Choice]:
    return [Choice(fold=i, kept=k, drop=0.0, error=0.0, within=i >= broken) for i, k in enumerate(kept)]


def test_the_safest_of_the_equals_is_taken() -> None:
    trials = [trial(k, accepted=k >= 0.3) for k in (0.7, 0.5, 0.4, 0.3, 0.2)]
    assert _validate._answer(trials, choices(0.3, 0.3, 0.3), 0.01)[0] == 0.3
    kept, spread, reason = _validate._answer(trials, choices(0.3, 0.5, 0.3, 0.5, 0.4), 0.01)
    assert 0.04 < spread < 0.1
    assert kept == 0.3
    kept, spread, reason = _validate._answer(trials, choices(0.3, 0.7, 0.3, 0.7), 0.01)
    assert 0.1 < spread < 0.2
    assert kept == 0.4
    assert "safer" in reason


def test_choices_that_do_not_hold_make_the_answer_safer() -> None:
    trials = [trial(k, accepted=k >= 0.3) for k in (0.7, 0.5, 0.4, 0.3)]
    kept, _, reason = _validate._answer(trials, choices(0.3, 0.3, 0.5, broken=2), 0.01)
    assert kept == 0.5
    assert "2 of 3 choices did not hold" in reason
    assert _validate._answer(trials, choices(0.3, 0.3, 1.0, broken=2), 0.01)[0] == 1.0


def test_a_task_without_a_score_is_judged_by_its_loss() -> None:
    task = classification()
    found = run(make_parts(), 0.1, task=Task(forward=task.forward, losses=task.losses))
    assert found.unit == "nats"
    assert run(make_parts(), 0.1).unit == "score"


def test_a_robust_metric_is_never_laxer() -> None:
    parts = make_parts()
    grouped = dataclasses.replace(classification(), groups=lambda batch: batch[1].tolist())
    plain = run(parts, 0.03, task=grouped)
    robust = run(parts, 0.03, task=grouped, metric=worst_group())
    assert robust.metric == "worst_group"
    assert all(a.drop >= b.drop - 1e-12 for a, b in zip(robust.trials, plain.trials, strict=True))
    assert robust.kept >= plain.kept
    assert run(parts, 0.5, metric=quantile(0.5)).metric.startswith("quantile")


def test_dependent_examples_stay_in_one_fold() -> None:
    many = _evaluate.Evaluation(
        losses=torch.zeros(300),
        correct=None,
        weights=torch.ones(300),
        groups=tuple(i // 3 for i in range(300)),
    )
    fold = _validate._folds(many, 5).reshape(100, 3)
    assert (fold == fold[:, :1]).all()
    assert torch.bincount(fold[:, 0]).tolist() == [20] * 5
    few = dataclasses.replace(many, groups=tuple(i % 4 for i in range(300)))
    assert torch.equal(_validate._folds(few, 5), torch.arange(300) % 5)


def test_curves_are_used_and_the_record_survives_json() -> None:
    model, groups, scores, batches = parts = make_parts(200)
    curves = scan(model, groups, scores, batches, classification(), removed=(0.25, 0.5, 0.75))
    found = run(parts, 0.05, curves=curves, allocator=greedy())
    assert from_json(Validation, to_json(found)) == found
    assert run(parts, 0.05, curves=curves, allocator=greedy()) == found


def test_a_cut_model_that_computes_nothing_finite_is_not_accepted() -> None:
    model, groups, scores, batches = make_parts()
    task = classification()

    def losses(out: torch.Tensor, batch) -> torch.Tensor:
        found = task.losses(out, batch)
        return found if out.abs().max() > 40 else found + torch.inf

    broken = Task(forward=task.forward, losses=losses, correct=task.correct)
    found = run((model, groups, scores, batches), 0.5, task=broken, grid=(0.9, 0.2))
    assert found.kept == 0.9
    assert found.trials[1].drop == float("inf")
    assert not found.trials[1].accepted
    assert from_json(Validation, to_json(found)) == found


def test_fractions_out_of_reach_are_left_out() -> None:
    found = run(make_parts(), 0.5, grid=(0.9, 0.5, 0.01), least=10)
    assert [t.kept for t in found.trials] == [0.9, 0.5]
    with pytest.raises(BudgetUnreachable):
        run(make_parts(), 0.5, grid=(0.1,), least=10)


def test_bad_settings_are_refused() -> None:
    parts = make_parts(100)
    refuse = functools.partial(pytest.raises, InputError)
    for bad in (-0.1, float("nan"), float("inf")):
        with refuse(match="allowed drop"):
            run(parts, bad)
    with refuse(match="one fold"):
        run(parts, 0.1, folds=1)
    with refuse(match="every fold"):
        run(parts, 0.1, folds=101)
    for bad_grid in ((), (1.0,), (0.0,)):
        with refuse(match="grid"):
            run(parts, 0.1, grid=bad_grid)
