"""Judging one candidate, and its classes."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from secateur._certify.census import IN_ORDER, Census
from secateur._certify.claim import Settings
from secateur._certify.sample import Sample, decide, drops_of, mean_drop, n_units, unit_scores
from secateur._exact import POWER
from secateur.schema.certificate import Needed, Strata, Stratum, Tested
from secateur.schema.members import Certifier


def judge(
    sample: Sample,
    settings: Settings,
    test: Certifier,
    census: Census,
    margin: float,
    name: str,
    index: int,
) -> Tested:
    claim = settings.claim
    dense, pruned, weights = unit_scores(sample, settings, census)
    drops = drops_of(sample, settings, census)
    outcome = decide(drops, test, margin, settings.level)
    share = np.full(len(dense), 1 / len(dense)) if weights is None else weights / weights.sum()
    drop, certified = mean_drop(drops), outcome.certified
    limit = max(test.limit(drops, margin=margin, level=settings.level), drop)
    # The limit is found numerically, from above; the decision is what counts, and the two must agree.
    limit = min(limit, margin) if certified else max(limit, margin)
    binary = differences(sample)
    lost, gained = _discordant(sample, census) if binary is not None else ((), ())
    differs = (sample.dense != sample.pruned) if claim.clip is None or binary is None else binary != 0
    needed = None
    if not certified:
        found = test.needed(drops, margin=margin, level=settings.level)
        needed = (
            Needed(n=None, more=None, power=POWER, calculation=_hopeless(drop, margin, settings))
            if found is None
            else Needed(n=found[0], more=max(found[0] - len(dense), 1), power=POWER, calculation=found[1])
        )
    return Tested(
        name=name,
        index=index,
        certified=certified,
        n=len(dense),
        n_saved=census.held_out.n_units - len(dense),
        n_examples=sample.n,
        dense=claim.natural(float(share @ dense)),
        pruned=claim.natural(float(share @ pruned)),
        drop=drop * claim.scale,
        limit=limit * claim.scale,
        evidence=outcome.evidence,
        churn=float(np.mean(differs)),
        losses=None if binary is None else len(lost),
        gains=None if binary is None else len(gained),
        lost=lost,
        gained=gained,
        mcnemar=None if binary is None else _mcnemar(len(lost), len(gained)),
        clipped=None if claim.clip is None else (sample.clipped[0] / sample.n, sample.clipped[1] / sample.n),
        needed=needed,
    )


def _hopeless(drop: float, margin: float, settings: Settings) -> str:
    if settings.population:
        return "the whole population was looked at"
    return f"the observed drop {drop * settings.claim.scale:.4g} is not below the margin {settings.claim.margin:.4g}"


def differences(sample: Sample) -> NDArray[np.int64] | None:
    """[n]: 1 = right for the dense model only, -1 = for the pruned one only; None unless all scores are 0 or 1."""
    d, p = sample.dense_correct, sample.pruned_correct
    if d is None or p is None or not bool((np.isin(d, (0.0, 1.0)) & np.isin(p, (0.0, 1.0))).all()):
        return None
    return np.asarray((d - p).astype(np.int64))


def _discordant(sample: Sample, census: Census) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions of the examples lost and gained; in the order of hashes where the loader has none of its own."""
    difference = differences(sample)
    assert difference is not None
    in_order = census.held_out.positions == IN_ORDER
    places = list(range(sample.n))
    if census.held_out.checkable:
        position: dict[str, list[int]] = {}
        for i, h in enumerate(census.hashes if in_order else sorted(census.hashes)):
            position.setdefault(h, []).append(i)
        for found in position.values():
            found.reverse()
        places = [position[h].pop() for h in sample.hashes]

    def where(sign: int) -> tuple[int, ...]:
        return tuple(sorted(places[i] for i in np.flatnonzero(difference == sign)))

    return where(1), where(-1)


def _mcnemar(losses: int, gains: int) -> float:
    """Exact two-sided McNemar p-value: losses ~ Bin(losses + gains, 1/2) if the models were equally good."""
    total = losses + gains
    return 1.0 if total == 0 else min(1.0, 2 * float(bdtr(min(losses, gains), total, 0.5)))


def strata_of(
    name: str, sample: Sample, settings: Settings, census: Census, test: Certifier, margin: float, n_path: int
) -> Strata:
    """Limits per stratum at delta / (strata x candidates): they hold together, whichever candidate was chosen."""
    assert sample.strata is not None
    keys = sorted(set(sample.strata), key=lambda k: (str(type(k)), k if isinstance(k, int | float) else 0, str(k)))
    level = settings.level / (len(keys) * n_path)
    claim = settings.claim
    items = []
    for key in keys:
        part = _part(sample, np.array([k == key for k in sample.strata]))
        found = dataclasses.replace(census.held_out, n_units=n_units(part), checkable=True)
        inside = dataclasses.replace(census, held_out=found)
        drops = drops_of(part, settings, inside)
        drop = mean_drop(drops)
        binary = differences(part)
        items.append(
            Stratum(
                key=str(key),
                n=len(drops.values),
                drop=drop * claim.scale,
                limit=max(test.limit(drops, margin=margin, level=level), drop) * claim.scale,
                losses=None if binary is None else int((binary == 1).sum()),
                gains=None if binary is None else int((binary == -1).sum()),
            )
        )
    return Strata(candidate=name, level=level, items=tuple(sorted(items, key=lambda s: -s.limit)))


def _part(sample: Sample, mask: NDArray[np.bool_]) -> Sample:
    chosen = np.flatnonzero(mask)
    return Sample(
        dense=sample.dense[chosen],
        pruned=sample.pruned[chosen],
        dense_correct=None if sample.dense_correct is None else sample.dense_correct[chosen],
        pruned_correct=None if sample.pruned_correct is None else sample.pruned_correct[chosen],
        weights=sample.weights[chosen],
        groups=None if sample.groups is None else tuple(sample.groups[i] for i in chosen),
        strata=None,
        hashes=tuple(sample.hashes[i] for i in chosen),
        clipped=(0, 0),
    )
