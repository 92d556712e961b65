"""The verb `score`: predicted loss increase of every unit, for one criterion or several, in one pass over the data.

And `compare`: what the scores said beside what was measured when units were really taken away.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import torch
from torch import Tensor, nn

from secateur._curves import spearman
from secateur._evaluate import Evaluation, Progress, check_data, combine_hashes, evaluate, example_hashes
from secateur._stats import FREE, Statistics, can_give, check_weights, collect, merge_stores, of_group
from secateur._surgery import apply, fingerprint_structure, receipt_for
from secateur.errors import CutError, InputError, MissingStatistic, NonFinite, NothingToCut, StaleArtifact
from secateur.schema.comparison import Agreement, Comparison
from secateur.schema.groups import Group, Groups
from secateur.schema.members import Criterion
from secateur.schema.scores import Scores
from secateur.schema.task import Batches, Task


@overload
def score(
    model: nn.Module,
    groups: Groups,
    batches: Batches,
    task: Task,
    *,
    criterion: Criterion,
    seed: int = ...,
    exact: bool = ...,
    store: str | Path | None = ...,
    resume: bool = ...,
    every: int = ...,
    progress: Progress | None = ...,
) -> Scores: ...


@overload
def score(
    model: nn.Module,
    groups: Groups,
    batches: Batches,
    task: Task,
    *,
    criterion: Sequence[Criterion],
    seed: int = ...,
    exact: bool = ...,
    store: str | Path | None = ...,
    resume: bool = ...,
    every: int = ...,
    progress: Progress | None = ...,
) -> list[Scores]: ...


def score(
    model: nn.Module,
    groups: Groups,
    batches: Batches,
    task: Task,
    *,
    criterion: Criterion | Sequence[Criterion],
    seed: int = 0,
    exact: bool = False,
    store: str | Path | None = None,
    resume: bool = False,
    every: int = 16,
    progress: Progress | None = None,
) -> Scores | list[Scores]:
    """One number per unit: how much the mean loss is predicted to rise if the unit goes.

    Args:
        model: as it was traced. It runs in eval mode; modes, gradients and flags are left as they were.
        batches: can be iterated again; read once, whatever the number of criteria; not at all for criteria that
            look at weights only.
        criterion: `sc.criteria.obd()`, or a list of criteria, which then share the pass.
        seed: of random probes and drawn labels.
        exact: take one example at a time instead of the fast way: slow; gives the same numbers.
        store: file that holds what was summed so far, replaced in one step after `every` batches and at the end: a
            pass that was killed goes on from there, with the numbers of an uninterrupted one; and the stores of parts
            of the data add up to the scores of all of it (`merge_scores`). Batches must come in a fixed order.
        resume: the store may already hold a part of this pass, or all of it.

    Returns:
        Scores, or a list of them in the order of the criteria.

    Raises:
        MissingStatistic: a criterion needs what this task or this model cannot give.
        NonFinite: NaN or infinity in a weight, loss, gradient or score, with its name.
        StaleArtifact: the groups were made for another model, or the store for another pass.
        InputError: the store is in use and `resume` was not asked for.
    """
    several = not isinstance(criterion, Criterion)
    criteria = [criterion] if isinstance(criterion, Criterion) else list(criterion)
    if not criteria:
        raise InputError("no criterion was given", todo="pass criterion=sc.criteria.obd()")
    _check_structure(model, groups)
    check_weights(model, groups)
    for c in criteria:
        _check_kinds(c, groups)
    if every < 1:
        raise InputError("the store is written after some number of batches", where="every", expected=">= 1", got=every)
    needs = sorted({n for c in criteria for n in (*c.needs, *(w for w in c.wants if can_give(task, w)))})
    stats = collect(
        model,
        groups,
        batches,
        task,
        needs,
        seed=seed,
        exact=exact,
        store=store,
        resume=resume,
        every=every,
        progress=progress,
    )
    made = [_scores_of(c, stats, model, groups) for c in criteria]
    return made if several else made[0]


@overload
def merge_scores(model: nn.Module, groups: Groups, stores: Sequence[str | Path], *, criterion: Criterion) -> Scores: ...


@overload
def merge_scores(
    model: nn.Module, groups: Groups, stores: Sequence[str | Path], *, criterion: Sequence[Criterion]
) -> list[Scores]: ...


def merge_scores(
    model: nn.Module,
    groups: Groups,
    stores: Sequence[str | Path],
    *,
    criterion: Criterion | Sequence[Criterion],
) -> Scores | list[Scores]:
    """The scores of all the data, from passes over parts of it: other processes, other machines, other days.

    Sums add, so the numbers are those of one pass over all parts, up to the rounding of a sum in another order.

    Args:
        model, groups: as the parts were scored with.
        stores: what `score(..., store=)` left, one per part; each part is finished, and none is given twice.
        criterion: any that the parts have the statistics for.

    Raises:
        StaleArtifact: parts of another model, or of different tasks or settings.
        InputError: no part, the same part twice, or one that is not finished.
        MissingStatistic: the criterion needs what the parts did not collect.
        FileCorrupt: a part that is no whole store.
    """
    several = not isinstance(criterion, Criterion)
    criteria = [criterion] if isinstance(criterion, Criterion) else list(criterion)
    if not criteria or not stores:
        raise InputError("nothing to merge", expected="at least one store and one criterion")
    _check_structure(model, groups)
    check_weights(model, groups)
    stats = merge_stores(model, groups, stores)
    for c in criteria:
        _check_kinds(c, groups)
        lacking = sorted(n for n in c.needs if n not in FREE and n not in stats.needs)
        if lacking:
            raise MissingStatistic(
                f"criterion {c.name!r} needs what the stores do not hold",
                where=str(stores[0]),
                expected=", ".join(lacking),
                got=", ".join(stats.needs),
                todo="score the parts with this criterion in the list",
            )
    made = [_scores_of(c, stats, model, groups) for c in criteria]
    return made if several else made[0]


def scores_of(criterion: Criterion, stats: Statistics, model: nn.Module, groups: Groups) -> Scores:
    """Scores from statistics that were collected (or merged from parts) before."""
    _check_kinds(criterion, groups)
    return _scores_of(criterion, stats, model, groups)


def _scores_of(criterion: Criterion, stats: Statistics, model: nn.Module, groups: Groups) -> Scores:
    columns: dict[str, list[tuple[float, ...]]] = {}
    common: dict[str, Tensor] = {}
    for g, group in enumerate(groups.groups):
        wanted = [w for w in criterion.wants if w in stats.needs]
        given = of_group(stats, model, groups, g, (*criterion.needs, *wanted), common)
        _check_present(criterion, given, group)
        found = criterion.compute(given)
        for name, values in found.items():
            columns.setdefault(name, []).append(_checked(values, name, criterion, group))
    if any(len(c) != len(groups.groups) for c in columns.values()):
        columns = {k: c for k, c in columns.items() if len(c) == len(groups.groups)}
    used = set(criterion.needs) - set(FREE)
    return Scores(
        criterion=criterion.name,
        unit=criterion.unit,
        order=criterion.order,
        source=criterion.source,
        values=tuple(columns.get("value", ())),
        errors=tuple(columns.get("error", ())),
        linear=tuple(columns.get("linear", ())),
        quadratic=tuple(columns.get("quadratic", ())),
        n_examples=stats.n if used else 0,
        structure=groups.structure,
        data=stats.data if used else "",
    )


def compare(
    model: nn.Module,
    groups: Groups,
    batches: Batches,
    task: Task,
    scores: Sequence[Scores],
    *,
    n_units: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Leave-one-out on a sample of units beside every criterion's prediction.

    What is measured is what a cut computes: in exact groups the unit's readers are set to zero, on a copy of the
    model; elsewhere the unit is really cut.

    Args:
        batches: to measure on; other examples than those the scores come from make the honest comparison.
        scores: of the same groups.
        n_units: how many units to take away, spread evenly over the groups; each costs one pass over the data.
        seed: of the sample.

    Raises:
        InputError: no scores, two of one name, or scores of other groups; examples that change order.
        NothingToCut: no single unit can be taken from any group.
    """
    _check_structure(model, groups)
    names = [s.criterion for s in scores]
    sizes = [g.n_units for g in groups.groups]
    if not scores or len(set(names)) != len(names) or any([len(v) for v in s.values] != sizes for s in scores):
        raise InputError("compare needs scores of these groups, each criterion once", got=names)
    hashes = example_hashes(batches)
    check_data(batches, hashes)  # the pruned model is compared with the dense one example by example
    chosen, skipped = _sample(model, groups, n_units, seed)
    dense, rises = _leave_one_out(model, groups, batches, task, chosen, "compare", progress)
    weights = dense.weights / dense.weights.sum()
    measured, errors, halves = [], [], []
    for rise in rises:
        mean = (weights * rise).sum()
        measured.append(float(mean))
        errors.append(float((weights * (rise - mean)).square().sum().sqrt()))
        halves.append([float((weights * rise)[k::2].sum() / weights[k::2].sum()) for k in (0, 1)])
    predicted = {s.criterion: tuple(s.values[g][u] for g, u in chosen) for s in scores}
    everything = range(len(chosen))
    per_group = [
        (group.name, [i for i, (h, _) in enumerate(chosen) if h == g]) for g, group in enumerate(groups.groups)
    ]
    parts: list[tuple[str, Sequence[int]]] = [("", everything), *((n, rows) for n, rows in per_group if rows)]
    agreements = tuple(
        _agreement(s, name, predicted[s.criterion], measured, rows) for name, rows in parts for s in scores
    )
    return Comparison(
        names=tuple(g.name for g in groups.groups),
        units=tuple(chosen),
        measured=tuple(measured),
        errors=tuple(errors),
        predicted=predicted,
        agreements=agreements,
        ceiling=_ceiling(halves),
        cheapest=_cost_of_lowest(measured, measured),
        skipped=tuple(skipped),
        n_examples=dense.n,
        structure=groups.structure,
        data=combine_hashes(hashes),
    )


def calibrate(
    model: nn.Module,
    groups: Groups,
    batches: Batches,
    task: Task,
    scores: Scores,
    *,
    n_units: int = 32,
    progress: Progress | None = None,
) -> Scores:
    """The scores times one factor, found by taking a few units away: nats by which the loss really rises.

        factor = sum of the measured increases / sum of the predicted ones

    over units that stand evenly spread in the order of the scores, the lowest and the highest among them: removing a
    unit is a large step, so the few highest ones rise by more than an expansion says. The order of the units, and with
    it what a plan removes, stays the same; what the plan expects to lose does not.

    Args:
        batches: to measure on; other examples than those of the scores.
        scores: in nats.  n_units: to take away; each costs one pass over the data.

    Raises:
        InputError: scores in arbitrary units, or of other groups; increases that are no more than noise.
        NothingToCut: no single unit can be taken from any group.
    """
    _check_structure(model, groups)
    if scores.unit != "nats" or [len(v) for v in scores.values] != [g.n_units for g in groups.groups]:
        raise InputError(
            "only scores of these groups, in nats, can be calibrated",
            where=scores.criterion,
            got=scores.unit,
            todo="use a criterion in nats, such as criteria.obd()",
        )
    check_data(batches, example_hashes(batches))
    everything, _ = _sample(model, groups, sum(g.n_units for g in groups.groups), 0)
    ordered = sorted(everything, key=lambda unit: (scores.values[unit[0]][unit[1]], unit))
    chosen = [ordered[i] for i in evenly(len(ordered), n_units)]
    dense, rises = _leave_one_out(model, groups, batches, task, chosen, "calibrate", progress)
    weights = dense.weights / dense.weights.sum()
    total = torch.stack(rises).sum(0)
    measured, predicted = float((weights * total).sum()), sum(scores.values[g][u] for g, u in chosen)
    error = float((weights * (total - measured)).square().sum().sqrt())
    if not (measured > 2 * error and predicted > 0):
        raise InputError(
            "the measured increases cannot be told from noise, or the predicted ones do not add up to anything",
            where=scores.criterion,
            got=f"measured {measured:.3g} +- {error:.2g}, predicted {predicted:.3g}",
            todo="measure more units (n_units=) or more examples",
        )
    factor = measured / predicted

    def scaled(rows: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(factor * v for v in row) for row in rows)

    return dataclasses.replace(
        scores,
        criterion=f"{scores.criterion}_scaled",
        values=scaled(scores.values),
        errors=scaled(scores.errors),
        linear=scaled(scores.linear),
        quadratic=scaled(scores.quadratic),
    )


def evenly(n: int, most: int) -> list[int]:
    """At most so many of the positions 0 to n - 1, evenly spread, the first and the last among them."""
    return [round(i) for i in torch.linspace(0, n - 1, min(most, n)).tolist()]


def _leave_one_out(
    model: nn.Module,
    groups: Groups,
    batches: Batches,
    task: Task,
    chosen: Sequence[tuple[int, int]],
    stage: str,
    progress: Progress | None,
) -> tuple[Evaluation, list[Tensor]]:
    """The dense model on the data, and for each unit [N]: the increase of each loss once that unit is gone."""
    sizes = [g.n_units for g in groups.groups]
    spare = copy.deepcopy(model)
    dense = evaluate(model, batches, task)
    rises = []
    for done, (g, u) in enumerate(chosen):
        if _can_be_silenced(groups.groups[g]):
            with _silenced(spare, groups.groups[g], u):
                rises.append(evaluate(spare, batches, task).losses - dense.losses)
        else:
            kept = [[v for v in range(n) if (index, v) != (g, u)] for index, n in enumerate(sizes)]
            small = apply(model, receipt_for(model, groups, kept))
            rises.append(evaluate(small, batches, task).losses - dense.losses)
        if progress is not None:
            progress(stage, done + 1, len(chosen))
    return dense, rises


def _sample(model: nn.Module, groups: Groups, n_units: int, seed: int) -> tuple[list[tuple[int, int]], list[str]]:
    generator = torch.Generator().manual_seed(seed)
    orders, skipped = [], []
    for g, group in enumerate(groups.groups):
        if group.n_units == 1 or not (_can_be_silenced(group) or _can_be_cut(model, groups, g)):
            skipped.append(group.name)
            continue
        orders.append([(g, int(u)) for u in torch.randperm(group.n_units, generator=generator)])
    if not orders:
        raise NothingToCut("no single unit can be taken away", where=", ".join(skipped))
    # One of each group, then a second of each, ...: small groups run out first.
    turns = [order[k] for k in range(max(map(len, orders))) for order in orders if k < len(order)]
    return sorted(turns[:n_units]), skipped


def _can_be_silenced(group: Group) -> bool:
    return group.exact and any(m.role == "read" for m in group.members) and all(m.role != "both" for m in group.members)


def _can_be_cut(model: nn.Module, groups: Groups, g: int) -> bool:
    try:
        receipt_for(model, groups, [range(h.n_units - (index == g)) for index, h in enumerate(groups.groups)])
    except CutError:  # a count equation
        return False
    return True


@contextmanager
def _silenced(model: nn.Module, group: Group, unit: int) -> Iterator[None]:
    """Zero in everything that reads the unit; put back afterwards, bit for bit."""
    saved = []
    try:
        with torch.no_grad():
            for member in group.members:
                if member.role == "read":
                    weight = model.get_parameter(member.param)
                    mine = torch.tensor([i for i, u in enumerate(member.units) if u == unit], device=weight.device)
                    saved.append((weight, member.axis, mine, weight.index_select(member.axis, mine)))
                    weight.index_fill_(member.axis, mine, 0.0)
        yield
    finally:
        with torch.no_grad():
            for weight, axis, mine, values in reversed(saved):
                weight.index_copy_(axis, mine, values)


def _agreement(
    scores: Scores, group: str, predicted: Sequence[float], measured: Sequence[float], rows: Sequence[int]
) -> Agreement:
    x, y = [predicted[i] for i in rows], [measured[i] for i in rows]
    return Agreement(
        criterion=scores.criterion,
        unit=scores.unit,
        group=group,
        n=len(rows),
        spearman=spearman(x, y),
        slope=slope_of(x, y) if scores.unit == "nats" else None,
        cost=_cost_of_lowest(x, y),
    )


def _cost_of_lowest(order_by: Sequence[float], values: Sequence[float]) -> float:
    """Mean of `values` over the quarter that is lowest in `order_by` (ties by index)."""
    lowest = sorted(range(len(order_by)), key=lambda i: (order_by[i], i))[: max(1, len(order_by) // 4)]
    return sum(values[i] for i in lowest) / len(lowest)


def slope_of(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Least-squares slope of y over x, with intercept."""
    n = len(x)
    mx, my = sum(x) / n, sum(y) / n
    xx = sum((a - mx) ** 2 for a in x)
    return None if n < 3 or xx <= 0 else sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / xx


def _ceiling(halves: Sequence[Sequence[float]]) -> float | None:
    r = spearman([a for a, _ in halves], [b for _, b in halves])
    # Spearman-Brown: the reliability of both halves together; its root bounds the correlation with the truth.
    return None if r is None or r <= 0 else math.sqrt(2 * r / (1 + r))


def _check_structure(model: nn.Module, groups: Groups) -> None:
    if groups.structure and groups.structure != fingerprint_structure(model):
        raise StaleArtifact(
            "the groups were made for another model",
            expected="the model that was traced",
            got="a model whose parameters have other names, shapes or types",
            todo="call trace and couple again for this model",
        )


def _check_kinds(criterion: Criterion, groups: Groups) -> None:
    for group in groups.groups:
        if criterion.kinds and group.kind not in criterion.kinds:
            raise MissingStatistic(
                f"criterion {criterion.name!r} does not serve units of kind {group.kind!r}",
                where=group.name,
                expected=f"one of {', '.join(criterion.kinds)}",
                todo="use a criterion for any kind, such as criteria.obd(), or freeze the group in couple(freeze=)",
            )


def _check_present(criterion: Criterion, given: Mapping[str, Tensor], group: Group) -> None:
    for need in criterion.needs:
        if need.endswith(("_weights", "_gradients", "_flow", "_hessian_products")) and given[need].shape[1] == 0:
            raise MissingStatistic(
                f"criterion {criterion.name!r} needs {need}, and this group has none",
                where=group.name,
                todo="use a criterion that looks at other weights, such as criteria.obd()",
            )


def _checked(values: Tensor, name: str, criterion: Criterion, group: Group) -> tuple[float, ...]:
    assert values.shape == (group.n_units,), (
        f"criterion {criterion.name} returned {name} of shape {list(values.shape)} for {group.n_units} units"
    )
    if not bool(torch.isfinite(values).all()):
        first = int((~torch.isfinite(values)).nonzero()[0])
        raise NonFinite(
            f"the {name} of criterion {criterion.name!r} is not finite",
            where=f"group {group.name!r}, unit {first}",
            got=float(values[first]),
        )
    return tuple(values.double().tolist())
