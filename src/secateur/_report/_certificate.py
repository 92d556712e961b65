"""The certificate in words that a manager understands, and in a table that a statistician can check."""

from __future__ import annotations

from typing import Any

from secateur._report._format import number, percent, points
from secateur.schema.certificate import Certificate, Tested


def difference(certificate: Certificate, value: float, *, sign: bool = False) -> str:
    """A drop of the score in points, or an increase of the clipped loss in nats."""
    return points(value, sign=sign) if certificate.claim == "score" else f"{number(value)} nats"


def claim(certificate: Certificate) -> str:
    """What was tested, as one sentence."""
    what = "the mean score falls" if certificate.claim == "score" else "the mean clipped loss rises"
    margin = difference(certificate, certificate.margin)
    return f"With {percent(certificate.confidence, 0)} confidence, {what} by at most {margin}"


def headline(certificate: Certificate) -> str:
    """The outcome as one sentence."""
    if certificate.certified is not None:
        return f"Certified: {claim(certificate)[0].lower()}{claim(certificate)[1:]}."
    return "Not certifiable on this held-out data."


def lines(certificate: Certificate) -> list[str]:
    """What follows the headline: the bound, the data, and what would be needed for more."""
    found = []
    chosen, failed = certificate.chosen, certificate.failed
    if chosen is not None:
        found.append(
            f"This holds for {chosen.name}: on {_units(certificate, chosen)} the observed drop was "
            f"{difference(certificate, chosen.drop)}; its upper confidence limit is "
            f"{difference(certificate, chosen.limit)}."
        )
    if failed is not None:
        found.append(
            f"{failed.name[:1].upper()}{failed.name[1:]} could not be certified: the observed drop was "
            f"{difference(certificate, failed.drop)} on {_units(certificate, failed)}, its upper confidence limit "
            f"{difference(certificate, failed.limit)} against {difference(certificate, certificate.margin)} allowed."
        )
        if failed.needed is not None:
            found.append(_needed(failed))
    return found


def _units(certificate: Certificate, tested: Tested) -> str:
    what = "held-out examples" if certificate.held_out.unit == "example" else "independent groups of held-out examples"
    return f"{tested.n:,} {what}"


def _needed(failed: Tested) -> str:
    needed = failed.needed
    assert needed is not None
    if needed.n is None or needed.more is None:
        return "If what was observed is the truth, no number of examples would certify it: prune less, or allow more."
    return (
        f"If what was observed is the truth, about {max(needed.more, 0):,} more held-out examples "
        f"({needed.n:,} in all) would "
        f"certify it with probability {percent(needed.power, 0)}."
    )


def section(certificate: Certificate | None) -> dict[str, Any] | None:
    """The section of the page; None without a certificate."""
    if certificate is None:
        return None
    binary = any(t.losses is not None for t in certificate.tested)
    betting = any(t.evidence is not None for t in certificate.tested)
    head = [
        *("candidate", "", "dense", "pruned", "drop", "upper limit"),
        *(["worse / better"] if binary else []),
        "churn",
        *(["e-value"] if betting else []),
    ]
    rows = []
    for t in certificate.tested:
        mean = percent if certificate.claim == "score" else number
        rows.append(
            [
                t.name,
                "certified" if t.certified else "not certified",
                mean(t.dense),
                mean(t.pruned),
                difference(certificate, t.drop, sign=True),
                difference(certificate, t.limit, sign=True),
                *([f"{t.losses} / {t.gains}"] if binary else []),
                percent(t.churn),
                "" if t.evidence is None else f"e = {number(t.evidence)}",
            ]
        )
    tested = {t.index for t in certificate.tested}
    rows += [
        [entry.name, "not tested", *([""] * (len(head) - 2))]
        for i, entry in enumerate(certificate.path)
        if i not in tested
    ]
    return {
        "lead": f"{claim(certificate)}: that is the question. The candidates were fixed before the held-out data was "
        "read, tested from the largest to the smallest, and the first failure ends the test.",
        "head": head,
        "rows": rows,
        "numeric": tuple(range(2, len(head))),
        "facts": _facts(certificate),
    }


def _facts(certificate: Certificate) -> list[str]:
    held, settings = certificate.held_out, f" ({certificate.settings})" if certificate.settings else ""
    order = (
        f"Order of the tests: fixed sequence, each at level {number(certificate.level)}; no correction is needed, "
        "since it stops at the first failure (Angelopoulos, Bates, Candès, Jordan & Lei 2021, arXiv:2110.01052)."
    )
    data = (
        f"Held-out data: {held.n_examples:,} examples, {held.n_units:,} independent units used; {held.n_shared} left "
        f"out since they stand in the other data too, {held.n_duplicates} since they came twice."
    )
    facts = [f"Test: {certificate.test}{settings}. {certificate.source}", order, data]
    if not held.checkable:
        facts.append("The examples change at every pass, so that overlap with the other data could not be checked.")
    if certificate.attempt > 1:
        facts.append(
            f"This is try number {certificate.attempt}; the ones before have spent {number(certificate.spent)} of the "
            "error probability."
        )
    if certificate.bound is not None:
        facts.append(
            f"All certified candidates together: the drop is at most {difference(certificate, certificate.bound)}."
        )
    if certificate.strata is not None and certificate.strata.items:
        worst = certificate.strata.worst
        facts.append(
            f"Worst class or group of {certificate.strata.candidate}: {worst.key}, {worst.n} examples, drop "
            f"{difference(certificate, worst.drop)}, upper limit {difference(certificate, worst.limit)} (the limits of "
            "all classes hold together)."
        )
    facts += [
        f"McNemar, for information ({t.name} equal to the dense model): p = {number(t.mcnemar)}"
        for t in certificate.tested
        if t.mcnemar is not None
    ]
    return facts + list(certificate.notes)
