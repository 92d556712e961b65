"""Paired scores of two models, example by example, and the independent units made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur import _evaluate
from secateur._certify.census import IN_ORDER, Census, repeated
from secateur._certify.claim import Settings
from secateur._evaluate import Evaluation
from secateur.errors import CertificateError, EmptyData, InputError, SecateurError
from secateur.schema.certificate import Drops, Outcome
from secateur.schema.members import Certifier
from secateur.schema.task import Batch, Batches, Task

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """Examples kept, in the order in which they were read: all arrays are [n]."""

    dense: Floats
    pruned: Floats
    dense_correct: Floats | None
    pruned_correct: Floats | None
    weights: Floats
    groups: tuple[object, ...] | None
    strata: tuple[object, ...] | None
    hashes: tuple[str, ...]
    clipped: tuple[int, int]

    @property
    def n(self) -> int:
        return len(self.dense)


def read(
    model: nn.Module,
    candidate: nn.Module,
    held_out: Batches,
    task: Task,
    settings: Settings,
    census: Census,
    name: str,
    cache: dict[str, tuple[float, float]],
) -> Sample:
    """The scores of both models, pairwise; stops as soon as a sequential test has certified."""
    claim, checkable = settings.claim, census.held_out.checkable
    parts: list[Sample] = []
    seen: set[object] = set()
    total = _evaluate.length(held_out)
    margin = claim.margin / claim.scale
    for index, batch in enumerate(held_out):
        where = f"candidate {name!r}, batch {index}"
        if index == 0:
            _check_kin(model, candidate, batch, task, settings.device, name)
        pruned = _run(candidate, batch, task, settings.device, where, name)
        hashes = _evaluate.batch_hashes(batch)
        known = checkable and all(h in cache for h in hashes)
        if known:
            rows = np.array([cache[h] for h in hashes])
            dense_scores, dense_correct = rows[:, 0], rows[:, 1]
        else:
            dense = _evaluate.evaluate_batch(
                model, batch, task, device=settings.device, where=f"the dense model, batch {index}"
            )
            dense_scores = claim.scores(dense)
            dense_correct = np.full(dense.n, np.nan) if dense.correct is None else dense.correct.numpy()
            cache.update({h: (float(s), float(c)) for h, s, c in zip(hashes, dense_scores, dense_correct, strict=True)})
        keys = pruned.groups
        keep = [
            i
            for i, h in enumerate(hashes)
            if h not in census.shared
            and not (
                checkable and settings.duplicates != "keep" and repeated(h, None if keys is None else keys[i], seen)
            )
        ]
        strata = None if settings.strata is None else _keys(settings.strata(batch), pruned.n, where)
        pruned_scores = claim.scores(pruned)
        parts.append(
            Sample(
                dense=dense_scores[keep],
                pruned=pruned_scores[keep],
                dense_correct=None if task.correct is None else dense_correct[keep],
                pruned_correct=None if pruned.correct is None else pruned.correct.numpy()[keep],
                weights=pruned.weights.numpy()[keep],
                groups=None if keys is None else tuple(keys[i] for i in keep),
                strata=None if strata is None else tuple(strata[i] for i in keep),
                hashes=tuple(hashes[i] for i in keep),
                clipped=(claim.clipped(dense_scores[keep]), claim.clipped(pruned_scores[keep])),
            )
        )
        if settings.progress is not None:
            settings.progress(f"certify {name}", index + 1, total)
        if settings.early and settings.test is not None and parts[-1].n:
            sample = _join(parts)
            if decide(drops_of(sample, settings, census), settings.test, margin, settings.level).certified:
                return sample
    sample = _join(parts)
    if sample.n == 0:
        raise EmptyData("no held-out example is left", where="held_out")
    # In another order another copy of a repeated example may be the first, and decide which group stays.
    exact = not census.groups or census.held_out.positions == IN_ORDER
    if exact and n_units(sample) != census.held_out.n_units:
        raise InputError(
            "the held-out data changed in length while it was read",
            where=f"candidate {name!r}",
            expected=f"{census.held_out.n_units} units, as in the first pass",
            got=n_units(sample),
            todo="pass data that gives the same examples at every pass",
        )
    return sample


def _run(
    candidate: nn.Module, batch: Batch, task: Task, device: torch.device | str | None, where: str, name: str
) -> Evaluation:
    try:
        return _evaluate.evaluate_batch(candidate, batch, task, device=device, where=where)
    except SecateurError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise _stranger(name, f"{type(error).__name__}: {error}") from error


def _check_kin(
    model: nn.Module, candidate: nn.Module, batch: Batch, task: Task, device: torch.device | str | None, name: str
) -> None:
    """Refuse a candidate whose output has another shape: it was made for another task."""
    shapes = []
    for judged in (model, candidate):
        moved = _evaluate.to_device(batch, _evaluate.device_of(judged) if device is None else torch.device(device))
        try:
            with _evaluate.mode(judged), torch.no_grad():
                out = task.forward(judged, moved)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            if judged is model:
                raise
            raise _stranger(name, f"{type(error).__name__}: {error}") from error
        shapes.append(list(out.shape) if isinstance(out, Tensor) else None)
    if shapes[0] != shapes[1]:
        raise _stranger(name, f"an output of shape {shapes[1]}, the dense model's is {shapes[0]}")


def _stranger(name: str, got: str) -> CertificateError:
    return CertificateError(
        f"candidate {name!r} does not do the task of the dense model",
        where="candidates",
        expected="a pruned version of the dense model: same inputs, same outputs",
        got=got,
        todo="leave it out of the path",
    )


def _keys(given: Iterable[object], n: int, where: str) -> tuple[object, ...]:
    keys = tuple(k.item() if isinstance(k, Tensor) else k for k in given)
    if len(keys) != n:
        raise InputError("strata are not one key per example", where=where, expected=n, got=len(keys))
    return keys


def _join(parts: Sequence[Sample]) -> Sample:
    def arrays(pick: Callable[[Sample], Floats | None]) -> Floats | None:
        found = [a for a in map(pick, parts) if a is not None]
        return np.concatenate(found) if len(found) == len(parts) else None

    def keys(pick: Callable[[Sample], tuple[object, ...] | None]) -> tuple[object, ...] | None:
        found = [a for a in map(pick, parts) if a is not None]
        return tuple(k for part in found for k in part) if len(found) == len(parts) else None

    return Sample(
        dense=np.concatenate([p.dense for p in parts]),
        pruned=np.concatenate([p.pruned for p in parts]),
        dense_correct=arrays(lambda p: p.dense_correct),
        pruned_correct=arrays(lambda p: p.pruned_correct),
        weights=np.concatenate([p.weights for p in parts]),
        groups=keys(lambda p: p.groups),
        strata=keys(lambda p: p.strata),
        hashes=tuple(h for p in parts for h in p.hashes),
        clipped=(sum(p.clipped[0] for p in parts), sum(p.clipped[1] for p in parts)),
    )


def n_units(sample: Sample) -> int:
    return sample.n if sample.groups is None else len(set(sample.groups))


def unit_scores(sample: Sample, settings: Settings, census: Census) -> tuple[Floats, Floats, Floats | None]:
    """(dense, pruned, weights) per unit [n], in the order in which a sequential test may look at them."""
    members = _members(sample.groups, sample.n)
    sums = np.add.reduceat(sample.weights[members.order], members.starts)
    if not (sums > 0).all():
        raise CertificateError("a unit has weight 0", where="held_out", todo="leave it out of the data")

    def mean(values: Floats) -> Floats:
        if sample.groups is None:
            return values  # as they are: 0 and 1 stay 0 and 1, whatever the weights
        return np.asarray(np.add.reduceat((sample.weights * values)[members.order], members.starts) / sums)

    weights = None
    if settings.max_weight is not None:
        if float(sums.max()) > settings.max_weight * (1 + 1e-9):
            raise CertificateError(
                "a unit weighs more than max_weight",
                expected=f"at most {settings.max_weight:g}, stated beforehand",
                got=f"{float(sums.max()):g}",
                todo="raise max_weight on fresh data, or let every unit count the same",
            )
        weights = np.minimum(sums / settings.max_weight, 1.0)
    elif float(sample.weights.max()) - float(sample.weights.min()) > 1e-12:
        raise CertificateError(
            "the task weighs examples, and the largest possible weight is not known",
            expected="max_weight=, a bound known before the data is seen",
            todo="pass it, or use a task without weights: then every unit counts the same",
        )
    order = _order(sample, members, settings, census)
    return mean(sample.dense)[order], mean(sample.pruned)[order], None if weights is None else weights[order]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Members:
    """Examples sorted by unit: `order` [n], and where each unit starts in it [n_units]."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]


def _members(groups: tuple[object, ...] | None, n: int) -> _Members:
    if groups is None:
        return _Members(order=np.arange(n), starts=np.arange(n))
    numbers: dict[object, int] = {}
    unit = np.array([numbers.setdefault(g, len(numbers)) for g in groups])
    order = np.argsort(unit, kind="stable")
    return _Members(order=order, starts=np.searchsorted(unit[order], np.arange(len(numbers))))


def _order(sample: Sample, members: _Members, settings: Settings, census: Census) -> NDArray[np.int64]:
    """As read where that is random; else by salted content hash, so that the order of the data does not matter."""
    n = len(members.starts)
    if settings.early:
        return np.arange(n)
    if not census.held_out.checkable:
        return np.random.default_rng(settings.seed).permutation(n)
    groups = np.split(members.order, members.starts[1:])
    salted = [
        hashlib.sha256(f"{settings.seed}|{'|'.join(sorted(sample.hashes[i] for i in group))}".encode()).hexdigest()
        for group in groups
    ]
    return np.array(sorted(range(n), key=lambda u: (salted[u], u)), dtype=np.int64)


def drops_of(sample: Sample, settings: Settings, census: Census) -> Drops:
    dense, pruned, weights = unit_scores(sample, settings, census)
    n_units = census.held_out.n_units
    # Rounding in means of groups must not leave [-1, 1].
    return Drops(
        values=np.clip(dense - pruned, -1.0, 1.0),
        weights=weights,
        planned=n_units,
        population=n_units if settings.population else None,
    )


def mean_drop(drops: Drops) -> float:
    """The observed drop, weighted as the claim is."""
    if drops.weights is None:
        return float(drops.values.mean())
    return float(drops.weights @ drops.values / drops.weights.sum())


def decide(drops: Drops, test: Certifier, margin: float, level: float) -> Outcome:
    """The test's decision, where the observed drop is within the margin, too.

    A capital may have crossed on a lucky part; nobody should read "at most 1 %" beside an observed drop of 2 %.
    To certify less often than the test allows keeps its guarantee.
    """
    outcome = test(drops, margin=margin, level=level)
    return replace(outcome, certified=outcome.certified and mean_drop(drops) <= margin + 1e-12)
