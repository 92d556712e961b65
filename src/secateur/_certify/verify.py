"""Deriving a certificate again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from secateur import _evaluate
from secateur._betting import Betting
from secateur._certify.census import take_census
from secateur._certify.certify import derive
from secateur._certify.claim import Settings, make_claim
from secateur._evaluate import Progress
from secateur._exact import Exact
from secateur._surgery import fingerprint_weights
from secateur.errors import InputError
from secateur.schema.certificate import Certificate, CertificateCheck, Check, Strata, Tested
from secateur.schema.members import Certifier
from secateur.schema.task import Batch, Batches, Task


def verify_certificate(
    certificate: Certificate,
    model: nn.Module,
    candidates: Sequence[nn.Module],
    held_out: Batches,
    task: Task,
    *,
    test: Certifier | None = None,
    also: Sequence[Batches] = (),
    strata: Callable[[Batch], Iterable[object]] | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> CertificateCheck:
    """Derive a certificate again from the models and the data, and compare; never a second try, whatever comes out.

    Args:
        test: only for a certifier of your own; the others are known by name.
        also, strata: as given to `certify`; without them the drops per class are not compared.

    Raises:
        As `certify`, except that nothing is held against data used before.
    """
    checks = [
        Check(name="dense model", holds=fingerprint_weights(model) == certificate.dense),
        Check(
            name="candidates",
            holds=tuple(fingerprint_weights(c) for c in candidates) == tuple(e.weights for e in certificate.path),
            detail=f"{len(certificate.path)} on the path",
        ),
        Check(
            name="error probability",
            holds=_within(certificate),
            detail=f"{certificate.level:g} spent on try {certificate.attempt}, {certificate.spent:g} before",
        ),
        Check(name="claim", holds=_consistent(certificate), detail="names the last candidate before a failure"),
        Check(name="arithmetic", holds=_adds_up(certificate), detail="the counts as written lead to the decisions"),
    ]
    for batches in (held_out, *also):
        _evaluate.check_batches(batches)
    census = take_census(held_out, also, task, certificate.duplicates, progress)
    same = census.held_out.fingerprint == certificate.held_out.fingerprint
    same &= census.held_out.n_units == certificate.held_out.n_units
    checkable = certificate.held_out.checkable and census.held_out.checkable
    checks.append(
        Check(
            name="held-out data",
            holds=same or not checkable,
            detail=f"{census.held_out.n_examples} examples, {census.held_out.n_units} units"
            if checkable
            else "changes at every pass: not checkable",
        )
    )
    if not all(c.holds for c in checks):
        return CertificateCheck(checks=tuple(checks))
    known: dict[str, Certifier] = {"exact": Exact(), "betting": Betting()}
    if test is None and certificate.test not in known:
        raise InputError(f"the certifier {certificate.test!r} is not one of ours", todo="pass it as test=")
    margin_of: dict[str, float | None] = {certificate.claim: certificate.margin}
    settings = Settings(
        claim=make_claim(task, margin_of.get("score"), margin_of.get("loss"), certificate.clip),
        test=test if test is not None else known[certificate.test],
        level=certificate.level,
        max_weight=certificate.max_weight,
        strata=strata,
        duplicates=certificate.duplicates,
        early=certificate.early,
        population=certificate.population,
        seed=certificate.seed,
        device=device,
        progress=progress,
    )
    again = derive(
        model, candidates, held_out, task, settings, census, certificate.path,
        confidence=certificate.confidence, earlier=certificate.earlier, notes=[],
    )  # fmt: skip
    checks.append(
        Check(
            name="decision",
            holds=again.certified == certificate.certified,
            detail=f"certified: {again.certified}",
        )
    )
    if not certificate.early:
        pairs = list(zip(certificate.tested, again.tested, strict=False))
        checks += [
            Check(name=f"evidence for {a.name}", holds=_agree(a, b), detail=_counts_in_words(b)) for a, b in pairs
        ]
        checks.append(Check(name="candidates tested", holds=len(certificate.tested) == len(again.tested)))
    if strata is not None and certificate.strata is not None and not certificate.early:
        checks.append(Check(name="drops per class", holds=_same_strata(certificate.strata, again.strata)))
    return CertificateCheck(checks=tuple(checks))


def _within(c: Certificate) -> bool:
    """Whether the error probability of all tries stays within 1 - confidence, and is that of the tries remembered."""
    spent = math.fsum(t.level for t in c.earlier)
    return (
        math.isclose(spent, c.spent, abs_tol=1e-12)
        and c.attempt == len(c.earlier) + 1
        and c.level + spent <= (1 - c.confidence) * (1 + 1e-9)
    )


def _consistent(c: Certificate) -> bool:
    flags = [t.certified for t in c.tested]
    if [t.index for t in c.tested] != list(range(len(flags))) or not all(flags[:-1]):
        return False
    passed = [t for t in c.tested if t.certified]
    return c.certified == (passed[-1].name if passed else None) and (flags[-1] is False or len(flags) == len(c.path))


def _adds_up(c: Certificate) -> bool:
    """Counts against the region of the exact test; e-values against 1/level."""
    for t in c.tested:
        if c.test == "exact":
            if t.losses is None or t.gains is None or t.losses + t.gains > t.n:
                return False
            again = Exact().decide(t.n, t.losses, t.gains, margin=c.margin, level=c.level)
        elif c.test == "betting":
            again = t.evidence is not None and t.evidence * c.level >= 1 - 1e-9 and t.drop <= c.margin * (1 + 1e-9)
        else:
            again = t.certified  # the arithmetic of another test is not known here
        if again != t.certified:
            return False
    return True


def _agree(a: Tested, b: Tested) -> bool:
    close = all(
        (x is None and y is None)
        or (x is not None and y is not None and math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-9))
        for x, y in ((a.drop, b.drop), (a.limit, b.limit), (a.evidence, b.evidence), (a.dense, b.dense))
    )
    return close and (a.certified, a.n, a.losses, a.gains, a.lost, a.gained) == (
        b.certified, b.n, b.losses, b.gains, b.lost, b.gained,
    )  # fmt: skip


def _same_strata(a: Strata, b: Strata | None) -> bool:
    return b is not None and [(s.key, s.n, s.losses, s.gains) for s in a.items] == [
        (s.key, s.n, s.losses, s.gains) for s in b.items
    ]


def _counts_in_words(t: Tested) -> str:
    return f"n {t.n}, drop {t.drop:.6g}" + ("" if t.losses is None else f", losses {t.losses}, gains {t.gains}")
