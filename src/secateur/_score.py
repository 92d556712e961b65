"""The verb `score`: predicted loss increase of every unit, for one criterion or several, in one pass over the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

import torch
from torch import Tensor, nn

from secateur._evaluate import Progress
from secateur._stats import FREE, Statistics, check_weights, collect, of_group
from secateur._surgery import fingerprint_structure
from secateur.errors import InputError, MissingStatistic, NonFinite, StaleArtifact
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

    Returns:
        Scores, or a list of them in the order of the criteria.

    Raises:
        MissingStatistic: a criterion needs what this task or this model cannot give.
        NonFinite: NaN or infinity in a weight, loss, gradient or score, with its name.
        StaleArtifact: the groups were made for another model.
    """
    several = not isinstance(criterion, Criterion)
    criteria = [criterion] if isinstance(criterion, Criterion) else list(criterion)
    if not criteria:
        raise InputError("no criterion was given", todo="pass criterion=sc.criteria.obd()")
    _check_structure(model, groups)
    check_weights(model, groups)
    for c in criteria:
        _check_kinds(c, groups)
    needs = sorted({n for c in criteria for n in c.needs})
    stats = collect(model, groups, batches, task, needs, seed=seed, exact=exact, progress=progress)
    made = [_scores_of(c, stats, model, groups) for c in criteria]
    return made if several else made[0]


def scores_of(criterion: Criterion, stats: Statistics, model: nn.Module, groups: Groups) -> Scores:
    """Scores from statistics that were collected (or merged from parts) before."""
    _check_kinds(criterion, groups)
    return _scores_of(criterion, stats, model, groups)


def _scores_of(criterion: Criterion, stats: Statistics, model: nn.Module, groups: Groups) -> Scores:
    columns: dict[str, list[tuple[float, ...]]] = {}
    for g, group in enumerate(groups.groups):
        given = of_group(stats, model, groups, g, criterion.needs)
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
        if need.endswith(("_weights", "_gradients")) and given[need].shape[1] == 0:
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
