"""cross_validate: how much may go, where only the allowed drop is given.

Index conventions: n example, f fold, t trial (a kept fraction of the MACs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur import _evaluate, _surgery
from secateur._evaluate import Evaluation, Progress
from secateur._plan import plan
from secateur.errors import BudgetUnreachable, InputError, NonFinite
from secateur.metrics import mean
from secateur.schema.budget import Budget
from secateur.schema.curves import Curves
from secateur.schema.groups import Groups
from secateur.schema.members import Allocator, Metric, Recovery
from secateur.schema.scores import Scores
from secateur.schema.task import Batches, Task
from secateur.schema.validation import Choice, Trial, Validation

GRID = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
KEYS_PER_FOLD = 10  # with fewer keys than that, keys are kinds (classes, sites), not units of dependence


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drops:
    """Paired drops of all trials; positive = worse.

    Attributes:
        values: [t, n].  weights: [n].  fold: [n].  keys: who depends on whom, [n], or None.
        metric: (drops, weights, keys) -> (value, standard error).
    """

    values: Tensor
    weights: Tensor
    fold: Tensor
    keys: tuple[object, ...] | None
    metric: Metric

    def __call__(self, trial: int, chosen: Tensor | None = None) -> tuple[float, float]:
        """Metric and standard error of one trial, on the chosen examples [n] (bool)."""
        values = self.values[trial]
        if not bool(torch.isfinite(values).all()):
            return math.inf, 0.0
        if chosen is None:
            return self.metric(values, self.weights, self.keys)
        keys = None if self.keys is None else tuple(k for k, c in zip(self.keys, chosen.tolist(), strict=True) if c)
        return self.metric(values[chosen], self.weights[chosen], keys)


def cross_validate(
    model: nn.Module,
    groups: Groups,
    scores: Scores,
    curves: Curves | None,
    batches: Batches,
    task: Task,
    *,
    max_drop: float,
    allocator: Allocator,
    folds: int = 5,
    metric: Metric | None = None,
    grid: Sequence[float] = GRID,
    recovery: Recovery | None = None,
    recovery_data: Batches | None = None,
    round_to: int = 1,
    least: int = 1,
    progress: Progress | None = None,
) -> Validation:
    """Tries kept fractions of the MACs and says which one keeps the allowed drop, with folds as judges.

    Every fraction is planned, cut and measured once on all search examples, paired with the dense model. Then, for
    each fold: on the other folds the smallest fraction with  drop + one standard error <= max_drop  is chosen, and
    judged on the fold that was left out. The answer is the safest of the equals (one-standard-error rule): among the
    fractions that pass on all examples, the largest that is no more than the standard error of the folds' choices
    above the smallest. Where most folds' choices did not hold on the fold that was left out, it is at least the
    largest of these choices. If nothing passes, the answer is to keep everything.

    Nothing here was recovered unless `recovery` is given: after retraining more may go.

    Args:
        curves: from `scan`, for the allocator; None = plan on scores.
        batches: the search data, in a fixed order. An example's fold is its position modulo `folds`; where the task
            names many keys (patients, videos), examples with one key stay in one fold.
        max_drop: allowed drop of the score; of the mean loss, in nats, where the task has no score.
        allocator, round_to, least: as in `plan`.
        metric: how drops become one number (`secateur.metrics`); None = their mean.
        grid: kept fractions of the MACs; those that cannot be reached are left out.
        recovery: a cheap one, after every cut, on `recovery_data` (None = the search data).

    Raises:
        InputError: a setting that cannot be used, or data that change order.  BudgetUnreachable: no fraction of the
        grid can be reached.  And all errors of `plan` and of the task.
    """
    judge = metric or mean()
    kept = sorted(set(grid), reverse=True)
    _check(kept, max_drop, folds)
    _evaluate.check_data(batches, _evaluate.example_hashes(batches))
    base = _evaluate.evaluate(model, batches, task)
    fold = _folds(base, folds)
    tried: list[tuple[float, float]] = []
    drops: list[Tensor] = []
    for index, fraction in enumerate(kept):
        try:
            made = plan(
                groups,
                scores,
                Budget(macs=fraction),
                allocator=allocator,
                curves=curves,
                round_to=round_to,
                least=least,
            )
        except BudgetUnreachable:
            if not tried:
                raise
            break  # smaller ones are out of reach as well
        small = _surgery.apply(model, _surgery.receipt_for(model, groups, made.kept))
        if recovery is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # every trial meets the same recovery
                small = recovery(
                    small,
                    batches if recovery_data is None else recovery_data,
                    task,
                    teacher=model,
                    seed=0,
                    progress=None,
                )
        drops.append(_paired(base, small, batches, task))
        assert made.before is not None and made.after is not None
        tried.append((fraction, made.after.macs / made.before.macs))
        if progress is not None:
            progress("cross-validate", index + 1, len(kept))
    measured = Drops(values=torch.stack(drops), weights=base.weights, fold=fold, keys=base.groups, metric=judge)
    trials = tuple(_trial(measured, t, asked, macs, folds, max_drop) for t, (asked, macs) in enumerate(tried))
    choices = tuple(_choice(measured, trials, f, max_drop) for f in range(folds))
    answer, spread, reason = _answer(trials, choices, max_drop)
    return Validation(
        budget=Budget(macs=answer),
        kept=answer,
        reason=reason,
        max_drop=max_drop,
        unit="nats" if base.correct is None else "score",
        metric=judge.name,
        trials=trials,
        choices=choices,
        spread=spread,
        n=base.n,
        allocator=allocator.name,
        criterion=scores.criterion,
        structure=groups.structure,
        data=_evaluate.fingerprint_data(batches),
    )


def _check(kept: Sequence[float], max_drop: float, folds: int) -> None:
    if not max_drop >= 0 or max_drop == math.inf:
        raise InputError("the allowed drop must be a number of at least 0", where="max_drop", got=max_drop)
    if folds < 2:
        raise InputError("one fold has no others to choose on", where="folds", expected="2 or more", got=folds)
    if not kept or not all(0.0 < k < 1.0 for k in kept):
        raise InputError("the grid holds kept fractions between 0 and 1", where="grid", got=tuple(kept))


def _folds(base: Evaluation, folds: int) -> Tensor:
    """[n]: the fold of each example."""
    if folds > base.n:
        raise InputError("every fold needs an example", where="folds", expected=f"2 to {base.n}", got=folds)
    if base.groups is not None:
        place = {key: i for i, key in enumerate(dict.fromkeys(base.groups))}
        if len(place) >= KEYS_PER_FOLD * folds:
            return torch.tensor([place[key] % folds for key in base.groups])
    return torch.arange(base.n) % folds


def _paired(base: Evaluation, small: nn.Module, batches: Batches, task: Task) -> Tensor:
    """[n] drops; infinite where the cut model computes no finite loss any more, which is a result and not an error."""
    try:
        pruned = _evaluate.evaluate(small, batches, task)
    except NonFinite:
        return torch.full((base.n,), math.inf, dtype=torch.float64)
    if base.correct is None or pruned.correct is None:
        return pruned.losses - base.losses
    return base.correct - pruned.correct


def _trial(drops: Drops, trial: int, kept: float, macs: float, folds: int, max_drop: float) -> Trial:
    drop, error = drops(trial)
    return Trial(
        kept=kept,
        macs=macs,
        drop=drop,
        error=error,
        fold_drops=tuple(drops(trial, drops.fold == fold)[0] for fold in range(folds)),
        accepted=drop + error <= max_drop,
    )


def _choice(drops: Drops, trials: Sequence[Trial], fold: int, max_drop: float) -> Choice:
    """The smallest fraction that passes on the other folds, judged on this one."""
    here = drops.fold == fold
    passing = [t for t in range(len(trials)) if sum(drops(t, ~here)) <= max_drop]
    if not passing:
        return Choice(fold=fold, kept=1.0, drop=0.0, error=0.0, within=True)
    drop, error = drops(passing[-1], here)
    return Choice(fold=fold, kept=trials[passing[-1]].kept, drop=drop, error=error, within=drop <= max_drop)


def _answer(trials: Sequence[Trial], choices: Sequence[Choice], max_drop: float) -> tuple[float, float, str]:
    """(kept fraction, standard error of the folds' choices, reason)."""
    picked = torch.tensor([choice.kept for choice in choices], dtype=torch.float64)
    spread = float(picked.std() / math.sqrt(len(choices)))
    accepted = [trial.kept for trial in trials if trial.accepted]
    if not accepted:
        return 1.0, spread, f"no fraction that was tried keeps the drop within {max_drop:g}: nothing should go"
    smallest = min(accepted)
    # Rounded, since 0.5 + 0.1 must reach 0.6.
    equals = [kept for kept in accepted if kept <= round(smallest + spread, 9)]
    answer, reason = max(equals), f"{smallest:g} is the smallest fraction that keeps the drop within {max_drop:g}"
    if answer > smallest:
        reason += f"; {answer:g} is its equal within the standard error of the folds' choices, and safer"
    broken = sum(not choice.within for choice in choices)
    if 2 * broken > len(choices):
        safer = [kept for kept in [*accepted, 1.0] if kept >= max(answer, float(picked.max()))]
        answer = min(safer)
        reason += (
            f"; {broken} of {len(choices)} choices did not hold on the fold that was left out, so {answer:g} is kept"
        )
    return answer, spread, reason
