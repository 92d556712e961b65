"""Reading the data once before any model does: how many units, what stands elsewhere, what came before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from secateur import _evaluate
from secateur._evaluate import Progress
from secateur.errors import CertificateError, EmptyData, InputError, SplitOverlap
from secateur.schema.certificate import Certificate, HeldOut, Overlap, Try
from secateur.schema.task import Batches, Task

Duplicates = Literal["refuse", "merge", "keep"]


# Shared or repeated examples up to this share are dropped and counted; above it the split itself is wrong.
_TOLERATED = 0.01
_SKETCH = 1024
IN_ORDER = "order of the data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """The held-out data as found by reading it once, before any model has seen it."""

    hashes: tuple[str, ...]
    shared: frozenset[str]
    held_out: HeldOut
    groups: bool


def take_census(
    held_out: Batches, also: Sequence[Batches], task: Task, duplicates: Duplicates, progress: Progress | None
) -> Census:
    if duplicates not in ("refuse", "merge", "keep"):
        raise InputError("unknown treatment of duplicates", expected="refuse, merge or keep", got=duplicates)
    hashes, keys = _hashes(held_out, task, progress)
    checkable, stable = _repeats(held_out, hashes)
    overlaps, shared = [], set[str]()
    for batches in also:
        others, _ = _hashes(batches, None, progress)
        ours = set(others).intersection(hashes)
        usable = checkable and _repeats(batches, others)[0]
        overlaps.append(
            Overlap(n=len(others), shared=sum(h in ours for h in hashes) if usable else 0, checkable=usable)
        )
        shared |= ours if usable else set()
    n_shared = sum(h in shared for h in hashes)
    if n_shared > _TOLERATED * len(hashes):
        raise SplitOverlap(
            f"{n_shared} of {len(hashes)} held-out examples also stand in the data used for training or choosing",
            expected=f"at most {_TOLERATED:.0%}",
            got=f"{n_shared / len(hashes):.1%}",
            todo="split the data again, so that nothing held out was seen before",
        )
    n_duplicates, units = 0, set[object]()
    seen: set[object] = set()
    for i, h in enumerate(hashes):
        key = None if keys is None else keys[i]
        if h in shared:
            continue
        # Copies inside one group are what groups are for; across groups they tie the groups together.
        if checkable and duplicates != "keep" and repeated(h, key, seen):
            n_duplicates += 1
            continue
        units.add(i if keys is None else ("group", key))
    if duplicates == "refuse" and n_duplicates > _TOLERATED * len(hashes):
        raise CertificateError(
            f"{n_duplicates} of {len(hashes)} held-out examples occur more than once",
            where="held_out",
            expected=f"at most {_TOLERATED:.0%}: copies are not independent evidence",
            got=f"{n_duplicates / len(hashes):.1%}",
            todo="pass duplicates='merge' if they are copies (each counts once), duplicates='keep' if they were drawn "
            "independently and happen to be equal, or groups in the task",
        )
    if not units:
        raise EmptyData("no held-out example is left", where="held_out", got=f"{n_shared} of {len(hashes)} shared")
    return Census(
        hashes=tuple(hashes),
        shared=frozenset(shared),
        groups=keys is not None,
        held_out=HeldOut(
            fingerprint=_evaluate.combine_hashes(hashes),
            n_examples=len(hashes),
            n_units=len(units),
            n_shared=n_shared,
            n_duplicates=n_duplicates,
            checkable=checkable,
            unit="example" if keys is None else "group",
            positions=IN_ORDER if stable else "order of content hashes",
            sketch=tuple(sorted({h[:16] for h in hashes})[:_SKETCH]) if checkable else (),
            overlaps=tuple(overlaps),
        ),
    )


def _hashes(batches: Batches, task: Task | None, progress: Progress | None) -> tuple[list[str], list[object] | None]:
    hashes: list[str] = []
    keys: list[object] | None = [] if task is not None and task.groups is not None else None
    total = _evaluate.length(batches)
    for index, batch in enumerate(batches):
        found = _evaluate.batch_hashes(batch)
        hashes += found
        if keys is not None and task is not None:
            keys += _evaluate.groups_of(task, batch, len(found), where=f"batch {index}") or ()
        if progress is not None:
            progress("hash", index + 1, total)
    if not hashes:
        raise EmptyData("the data holds no example", where="held_out", expected="at least one example")
    return hashes, keys


def _repeats(batches: Batches, hashes: list[str]) -> tuple[bool, bool]:
    """(whether another pass gives the same examples, whether in the same order), from its first batch."""
    first = _evaluate.batch_hashes(next(iter(batches)))
    known = set(hashes)
    return all(h in known for h in first), first == hashes[: len(first)]


def repeated(h: str, key: object, seen: set[object]) -> bool:
    """Whether this content came before, in another group if there are groups; remembers it."""
    if (h, key) in seen and key is not None:
        return False
    if h in seen:
        return True
    seen |= {h, (h, key)}
    return False


def tries(history: Sequence[Certificate]) -> tuple[Try, ...]:
    """All tries before this one, whether all certificates of the series are given or only the last."""
    found: list[Try] = []
    for c in history:
        own = Try(level=c.level, fingerprint=c.held_out.fingerprint, sketch=c.held_out.sketch)
        found += [t for t in (*c.earlier, own) if t not in found]
    return tuple(found)


def check_fresh(census: Census, earlier: Sequence[Try]) -> list[str]:
    """Notes on earlier tries; refuses data that one of them has used."""
    notes = []
    ours = {h[:16] for h in census.hashes}
    for number, before in enumerate(earlier, start=1):
        hits = sum(s in ours for s in before.sketch)
        if before.fingerprint == census.held_out.fingerprint or hits > _TOLERATED * max(len(before.sketch), 1):
            raise CertificateError(
                "this held-out data has been used before",
                where=f"try {number} of the history",
                expected="fresh data for every try",
                got=f"{hits} of {len(before.sketch)} remembered examples of try {number} occur again",
                todo="hold out data that no earlier try has seen; to check a certificate, verify it instead",
            )
        if hits:
            notes.append(f"{hits} of {len(before.sketch)} remembered examples of try {number} occur again.")
        if not before.sketch or not census.held_out.checkable:
            notes.append(f"Whether the data differs from that of try {number} could not be checked.")
    return notes
