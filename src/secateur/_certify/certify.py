"""The path of candidates, from the first to the first that fails."""

from __future__ import annotations

import dataclasses
import itertools
import math
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from secateur import _evaluate
from secateur._betting import Betting
from secateur._certify.census import Census, check_fresh, take_census, tries
from secateur._certify.claim import Claim, Settings, make_claim
from secateur._certify.judge import judge, strata_of
from secateur._certify.sample import Sample, read
from secateur._evaluate import Progress
from secateur._exact import Exact
from secateur._surgery import fingerprint_weights, package_version
from secateur.errors import CertificateError, InputError
from secateur.schema.certificate import Certificate, Entry, Tested, Try
from secateur.schema.members import Certifier
from secateur.schema.task import Batch, Batches, Task

Duplicates = Literal["refuse", "merge", "keep"]


def certify(
    model: nn.Module,
    candidates: Sequence[nn.Module],
    held_out: Batches,
    task: Task,
    *,
    max_drop: float | None = None,
    confidence: float = 0.95,
    test: Certifier | None = None,
    names: Sequence[str] | None = None,
    also: Sequence[Batches] = (),
    max_loss_increase: float | None = None,
    clip: float | tuple[float, float] | None = None,
    max_weight: float | None = None,
    strata: Callable[[Batch], Iterable[object]] | None = None,
    history: Sequence[Certificate] = (),
    more_tries: bool = False,
    duplicates: Duplicates = "refuse",
    random_order: bool = False,
    population: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Name the sparsest candidate whose drop is shown to be at most the margin.

    The claim: with probability at least `confidence` over the draw of the held-out units, the named candidate, if one
    is named, has E[dense score - pruned score] <= max_drop (or E[clipped pruned loss - clipped dense loss]
    <= max_loss_increase) on the distribution that the units were drawn from independently.

    Args:
        model: the dense model.  candidates: dense to sparse, fixed before; none is changed.
        held_out: touched once: used neither for training nor for choosing anything.
        task: gives `correct` (scores in [0, 1]) or losses; `groups` names dependent examples: then whole groups are
            the units, and each group counts the same unless `max_weight` is given.
        max_drop: allowed drop of the mean score, in [0, 1).  max_loss_increase: allowed rise of the mean clipped
            loss, nats. Exactly one of the two.
        clip: losses are clipped to [0, clip] or [low, high], nats; needed for a loss budget, since a mean of
            unbounded losses cannot be certified from any number of examples.
        test: a certifier; None = the exact test for 0/1 scores of independent examples, betting for anything else.
            Which one it is depends on the kind of data only, never on how the models did.
        names: of the candidates.  also: the other splits (search, train): held-out examples that stand there too
            are dropped and counted.
        max_weight: the largest weight a unit can have (with groups: the most examples, or the largest sum
            of weights), known beforehand; units then count by weight. None = every unit counts the same.
        strata: (batch) -> N keys, for example the labels: drops per class, with limits that hold together.
        history: earlier certificates of this series, or the last of them, which remembers the others. Try k >= 2
            spends delta / (k (k + 1)), on fresh data.
        more_tries: spend delta / 2 on the first try, so that later ones remain possible.
        duplicates: examples that occur more than once: `refuse` (up to 1 % are merged), `merge` into one, or `keep`
            where they are independent draws that happen to be equal.
        random_order: whether the batches come in an order that is random; then (or with a shuffling DataLoader)
            a sequential test stops early and saves evaluations.
        population: the held-out data is not a sample but all that matters (sampling without replacement).
        seed: of the order in which units are looked at where that order is ours.
        device: where batches are moved to; None = where each model is.

    Raises:
        CertificateError: no score, no clip, varying weights without `max_weight`, a candidate of another task, data
            used before, no error probability left, more than 1 % duplicates.
        SplitOverlap: more than 1 % of the held-out examples stand in another split.
        InputError, NonFinite, TaskShapeError, EmptyData, OneShotIterable: of the arguments and the data.
    """
    claim = make_claim(task, max_drop, max_loss_increase, clip)
    if not 0.5 <= confidence < 1:
        raise InputError("the confidence is out of range", expected="0.5 <= confidence < 1", got=confidence)
    if max_weight is not None and not (math.isfinite(max_weight) and max_weight > 0):
        raise InputError("max_weight is out of range", expected="a positive number", got=max_weight)
    if population and max_weight is not None:
        raise InputError("a finite population and weighted units do not go together", todo="leave one of them out")
    if population and strata is not None:
        raise InputError("strata and a finite population do not go together", todo="leave one of them out")
    if population and test is not None and not test.sequential:
        raise InputError(f"the {test.name} test is for samples, not for a population", todo="pass certifiers.betting()")
    path = _path(model, candidates, names)
    earlier = tries(history)
    level = _level(confidence, earlier, more_tries)
    for batches in (held_out, *also):
        _evaluate.check_batches(batches)
    census = take_census(held_out, also, task, duplicates, progress)
    fresh = check_fresh(census, earlier)
    if test is None:
        test = _default(claim, census.groups, max_weight, population)
    settings = Settings(
        claim=claim,
        test=test,
        level=level,
        max_weight=max_weight,
        strata=strata,
        duplicates=duplicates,
        early=_may_stop(test, held_out, random_order, census.groups),
        population=population,
        seed=seed,
        device=device,
        progress=progress,
    )
    notes = [*_path_notes(path), *_data_notes(census, also), *fresh]
    return derive(
        model, candidates, held_out, task, settings, census, path,
        confidence=confidence, earlier=earlier, notes=notes,
    )  # fmt: skip


def derive(
    model: nn.Module,
    candidates: Sequence[nn.Module],
    held_out: Batches,
    task: Task,
    settings: Settings,
    census: Census,
    path: tuple[Entry, ...],
    *,
    confidence: float,
    earlier: tuple[Try, ...],
    notes: list[str],
) -> Certificate:
    claim, level = settings.claim, settings.level
    margin = claim.margin / claim.scale
    cache: dict[str, tuple[float, float]] = {}
    test = settings.test
    tested: list[Tested] = []
    shown: tuple[str, Sample] | None = None
    for index, (entry, candidate) in enumerate(zip(path, candidates, strict=True)):
        sample = read(model, candidate, held_out, task, settings, census, entry.name, cache)
        if test is None:
            # The kind of score, seen on the dense model alone: 0/1 or in between. Not a result of the comparison.
            binary = bool(np.isin(sample.dense, (0.0, 1.0)).all())
            test = Exact() if binary else Betting()
            settings = dataclasses.replace(settings, test=test)
        result = judge(sample, settings, test, census, margin, entry.name, index)
        tested.append(result)
        if result.certified or shown is None:
            shown = (entry.name, sample)
        if not result.certified:
            break
    assert test is not None
    passed = [t for t in tested if t.certified]
    everything = len(passed) == len(path)
    strata = (
        None
        if settings.strata is None or shown is None
        else strata_of(*shown, settings, census, test, margin, len(path))
    )
    if test.sequential and census.groups:
        notes.append("Groups are complete only at the end of the data, so everything was evaluated.")
    elif test.sequential and not settings.early:
        notes.append(
            "The held-out order is not known to be random, so everything was evaluated, and the units were looked at "
            "in the order of their salted content hashes. A shuffling DataLoader, or random_order=True, saves "
            "evaluations."
        )
    if settings.population:
        notes.append("The held-out data was taken to be the whole population: the claim is about these units only.")
    return Certificate(
        claim=claim.kind,
        margin=claim.margin,
        confidence=confidence,
        level=level,
        attempt=len(earlier) + 1,
        spent=math.fsum(t.level for t in earlier),
        earlier=earlier,
        certified=passed[-1].name if passed else None,
        index=passed[-1].index if passed else None,
        # Where all pass, no drop exceeds the largest limit; where one fails, only the margin is shown for the others.
        bound=None if not passed else max(t.limit for t in passed) if everything else claim.margin,
        test=test.name,
        settings=test.settings,
        source=test.source,
        path=path,
        tested=tuple(tested),
        dense=fingerprint_weights(model),
        held_out=census.held_out,
        task=task.name,
        strata=strata,
        clip=claim.clip,
        max_weight=settings.max_weight,
        population=settings.population,
        early=settings.early,
        duplicates=settings.duplicates,
        seed=settings.seed,
        versions=_versions(),
        notes=tuple(notes),
    )


def _path(model: nn.Module, candidates: Sequence[nn.Module], names: Sequence[str] | None) -> tuple[Entry, ...]:
    if isinstance(candidates, nn.Module) or not candidates:
        raise InputError(
            "a path of candidates is needed",
            expected="a list of models, dense to sparse",
            got="one model" if isinstance(candidates, nn.Module) else "an empty list",
            todo="write [small] for a single candidate",
        )
    labels = [f"candidate {i + 1}" for i in range(len(candidates))] if names is None else list(names)
    if len(labels) != len(candidates) or len(set(labels)) != len(labels):
        raise InputError(
            "the names do not fit the candidates", expected=f"{len(candidates)} different names", got=labels
        )
    return tuple(
        Entry(name=label, weights=fingerprint_weights(c), n_params=sum(p.numel() for p in c.parameters()))
        for label, c in zip(labels, candidates, strict=True)
    )


def _default(claim: Claim, groups: bool, max_weight: float | None, population: bool) -> Certifier | None:
    """Betting where the exact test cannot serve; None = by the kind of score, once the dense scores are known."""
    return Betting() if claim.kind == "loss" or groups or max_weight is not None or population else None


def _may_stop(test: Certifier | None, held_out: Batches, random_order: bool, groups: bool) -> bool:
    """Early stopping needs that what was read so far is a random part; groups are complete at the end only."""
    shuffled = (
        isinstance(held_out, DataLoader)
        and isinstance(held_out.sampler, RandomSampler)
        and not held_out.sampler.replacement
    )
    return test is not None and test.sequential and not groups and (random_order or shuffled)


def _level(confidence: float, earlier: Sequence[Try], more_tries: bool) -> float:
    """The error probability of this try: the sum over all tries never exceeds 1 - confidence."""
    delta = round(1 - confidence, 12)
    k, spent = len(earlier) + 1, math.fsum(t.level for t in earlier)
    level = delta / (k * (k + 1)) if k > 1 or more_tries else delta
    if spent + level > delta * (1 + 1e-9):
        raise CertificateError(
            f"no error probability is left for try {k} at confidence {confidence:g}",
            where="history",
            expected=f"at most {delta:g} over all tries together",
            got=f"{spent:g} spent before, {level:g} = delta / ({k} x {k + 1}) for this one",
            todo="plan for more tries before the first (more_tries=True), or claim a lower confidence; "
            "to check a certificate, verify it instead",
        )
    return level


def _path_notes(path: tuple[Entry, ...]) -> list[str]:
    sizes = [e.n_params for e in path]
    if any(later > earlier for earlier, later in itertools.pairwise(sizes)):
        return ["Parameters do not shrink along the path; the order was kept as given."]
    return []


def _data_notes(census: Census, also: Sequence[Batches]) -> list[str]:
    held_out, notes = census.held_out, []
    if not held_out.checkable:
        notes.append("The held-out examples change at every pass: overlap and duplicates are not checkable.")
    if any(not o.checkable for o in held_out.overlaps) and held_out.checkable:
        notes.append("Another split changes at every pass: overlap with it is not checkable.")
    if not also:
        notes.append("No other split was given, so overlap with training or search data was not checked.")
    if held_out.n_shared:
        notes.append(f"{held_out.n_shared} held-out examples that also stand in another split were dropped.")
    if held_out.n_duplicates:
        notes.append(f"{held_out.n_duplicates} repeated held-out examples were counted once.")
    if census.groups:
        notes.append(f"The {held_out.n_units} units are whole groups of dependent examples.")
    return notes


def _versions() -> dict[str, str]:
    return {
        "secateur": package_version(),
        "torch": str(torch.__version__),
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "python": platform.python_version(),
    }
