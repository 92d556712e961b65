"""scan: measured loss and score against the removed fraction, group by group, by real cuts.

The work goes chunk by chunk: every point is measured on one run of batches before the next run is read. Chunks grow
geometrically, whatever else is asked for, so that a store serves scans of any length.

Index conventions: g group, n example, f fold, c chunk.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur import _counts, _curves, _evaluate, _reuse, _sequence, _store, _surgery
from secateur._evaluate import Evaluation, Progress
from secateur._reuse import Prefix
from secateur.errors import (
    CutError,
    FileCorrupt,
    InputError,
    NonFinite,
    NothingToCut,
    SecateurError,
    StaleArtifact,
    UnknownName,
)
from secateur.schema.curves import Curves, Point
from secateur.schema.groups import Groups
from secateur.schema.members import Executor, Recovery
from secateur.schema.precision import Precision
from secateur.schema.scores import Scores
from secateur.schema.task import Batches, Task

REMOVED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FORMAT = 2  # of the store
FIRST = 200  # examples of the first chunk, at least
GROWTH = 0.5  # every later chunk has at least this part of the examples before it
DENSE_ERRORS = 3.0  # how precise a point has to be by default, in standard errors of the dense loss
SORTED = 1e-6  # p-value below which the dense losses of chunks differ by more than chance
MOST_BYTES = 2**28  # of a chunk: it stays in memory while all points are measured on it
MEMORY = "2GiB"
Counts = tuple[int, ...]
Sums = list[dict[str, float | int | None]]  # [f]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A run of whole batches, `start` to `stop`; its `n` examples begin at position `first` of the data."""

    start: int
    stop: int
    first: int
    n: int


@dataclass(frozen=True, slots=True)
class Target:
    """A cut to be measured: kept counts of all groups; as it is, or after the recovery."""

    counts: Counts
    recovered: bool


@dataclass(frozen=True, slots=True)
class Job:
    """The unit of work: one target on its next chunk; on all that it needs, where it has to be recovered first.

    Attributes:
        before: what was measured of the target so far, chunk by chunk.
    """

    target: Target
    before: tuple[Sums, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums of a job, [c].

    Attributes:
        in_full: batches on which the cut model did otherwise than the dense one, and computed everything.
    """

    sums: list[Sums]
    in_full: int


@dataclass(frozen=True, slots=True, eq=False)
class Shelf:
    """Cut models that wait for their next chunk: `room` for so many. Every process has its own."""

    room: int
    models: dict[Counts, nn.Module] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        """Empty, where it is sent to."""
        return Shelf, (self.room,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setup:
    """What every measurement needs.

    Attributes:
        order: [g][j]: the unit that goes j-th.  base: the dense model on all examples.  chunks: [c].
    """

    model: nn.Module
    groups: Groups
    order: tuple[tuple[int, ...], ...]
    batches: Batches
    task: Task
    base: Evaluation
    chunks: tuple[Chunk, ...]
    n_folds: int
    recovery: Recovery | None
    precision: Precision | None
    shelf: Shelf


Families = dict[Hashable, tuple[Counts, int]]  # what parts from the dense model at one position: an example, how many


@dataclass(slots=True, eq=False)
class Sight:
    """What one process knows of the dense model's forward: a copy of its own to observe, and earlier observations."""

    dense: nn.Module
    plan: _reuse.Recording | None = None
    known: dict[Any, dict[Hashable, int]] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class Shared:
    """The batches of a round, and what the dense model computes on them: once in every process that asks for it.

    Attributes:
        families: of the cut models of this round; empty where nothing is reused.  memory: bytes for each batch.
    """

    setup: Setup
    held: Batches
    families: Families
    memory: int
    sight: Sight
    made: list[Prefix] | None = None

    def prefixes(self) -> Sequence[Prefix]:
        """[batch]; without families, none."""
        if self.made is None:
            self.made = [self._prefix(batch) for batch in (self.held if self.families else ())]
        return self.made

    def _prefix(self, batch: Any) -> Prefix:
        setup, sight = self.setup, self.sight
        families = {
            family: (functools.partial(_cut, setup, counts), n) for family, (counts, n) in self.families.items()
        }
        made = _reuse.prepare(
            sight.dense, batch, setup.task, families, memory=self.memory, known=sight.known, plan=sight.plan
        )
        sight.plan = made.recording or sight.plan
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """What it is computed from; where it is sent to, it is computed again, with the same results."""
        return _shared_elsewhere, (self.setup, self.held if self.families else (), self.families, self.memory)


def _shared_elsewhere(setup: Setup, held: Batches, families: Families, memory: int) -> Shared:
    sight = Sight(copy.deepcopy(setup.model))
    return Shared(setup=setup, held=held, families=families, memory=memory, sight=sight)


def scan(
    model: nn.Module,
    groups: Groups,
    scores: Scores,
    batches: Batches,
    task: Task,
    *,
    removed: Sequence[float] = REMOVED,
    only: Sequence[str] = (),
    n_folds: int = 5,
    store: str | Path | None = None,
    resume: bool = False,
    recovery: Recovery | None = None,
    precision: Precision | None = None,
    memory: int | str = MEMORY,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Curves:
    """Takes the lowest-scoring units of each group away, fraction by fraction, and measures what that does.

    Every point is a real cut, evaluated on the same examples as the dense model: what is measured is what `cut` would
    produce, also where a statistic runs over the cut axis. Where a count equation ties a group to others, they
    lose the units that they must, lowest scores first, and the point says so (`Point.also`).

    Args:
        model: the dense model; never changed.  groups, scores: found on it.
        batches: the search data, in a fixed order: examples are paired by position, and an example's fold is its
            position modulo `n_folds`. Not more than one chunk of them is held in memory.
        removed: fractions of the units of a group, in (0, 1). At least one unit goes, at least one stays.
        only: names of the groups to scan, where others are scanned elsewhere (`merge_curves`); none = all.
        n_folds: folds whose sums are kept apart, for cross-validation.
        store: file to which every measurement of a point on a chunk is appended as it comes (JSON lines with
            checksums); a scan that was killed goes on from there.
        resume: the store may already hold measurements. Without it, a store that is not empty is refused.
        recovery: a cheap one, on the same data; each cut is then measured before and after it.
        precision: points stop as soon as they are known that well, which saves most of the time; None = all examples
            for every point. Then the examples must stand in random order: what comes first speaks for the rest.
        memory: for what the dense model computes on a chunk before the units of a group matter, in bytes or as text:
            cut models go on from there. Beyond it, and with 0, they compute it again; the results are the same.
        executor: where the measurements run; None = here, one after the other. The results are the same.

    Returns:
        Points in the order (group, removed, fold, recovered).

    Raises:
        NothingToCut: no group.  StaleArtifact: scores or a store of another model, other data or settings.
        InputError: fractions outside (0, 1), too few examples, examples that change order from pass to pass, or that
            are sorted while a precision asks for some of them only.
        CutError: a group whose deepest cut does not run; found before anything else is measured.
        NonFinite: a cut model whose loss is no number.  FileCorrupt: a store that was changed.
    """
    budget = _reuse.bytes_of(memory)
    order = _counts.removal_order(groups, scores)
    plan = targets(groups, removed, only)
    hashes = _evaluate.example_hashes(batches)
    _evaluate.check_data(batches, hashes)
    weights = _surgery.fingerprint_weights(model)
    base, chunks = _dense(model, batches, task)
    if not 1 <= n_folds <= base.n:
        raise InputError("every fold needs an example", where="n_folds", expected=f"1 to {base.n}", got=n_folds)
    if precision is not None:
        _check_order(base, chunks)
        if precision.absolute is None:
            precision = dataclasses.replace(precision, absolute=DENSE_ERRORS * base.error)
    header = {
        "scan": FORMAT,
        "structure": groups.structure,
        "weights": weights,
        "data": _evaluate.combine_hashes(hashes, ordered=True),
        "order": hashlib.sha256(repr(order).encode()).hexdigest(),
        "criterion": scores.criterion,
        "task": task.name,
        "base_loss": f"{base.mean_loss:.4g}",  # a task is functions; this is how another one shows
        "n_folds": n_folds,
        "recovery": _describe(recovery),
        "chunks": [chunk.stop for chunk in chunks],
    }
    setup = Setup(
        model=model,
        groups=groups,
        order=order,
        batches=batches,
        task=task,
        base=base,
        chunks=chunks,
        n_folds=n_folds,
        recovery=recovery,
        precision=precision,
        shelf=Shelf(budget // 4 // max(1, sum(t.nbytes for _, _, t in _surgery.tensors(model)))),
    )
    states = (False, True) if recovery is not None else (False,)
    wanted = dict.fromkeys(counts for by_fraction in plan.values() for counts in by_fraction.values())
    done: dict[Target, list[Sums]] = {Target(counts, state): [] for counts in wanted for state in states}
    targeted = tuple(done)
    done |= _open_store(store, header, n_folds=n_folds, resume=resume)
    _check_cuts(setup, [target.counts for target in targeted if _needed(setup, done[target]) is None])
    run: Callable[..., Iterable[tuple[int, Any]]] = executor or _one_after_the_other
    n_done, in_full = sum(_settled_chunks(setup, done[target]) for target in targeted), 0
    for held, jobs in _shared(setup, budget - budget // 4, _rounds(setup, targeted, done), executor):
        for index, measured in run(functools.partial(measure, setup, held), jobs):
            target = jobs[index].target
            in_full += measured.in_full
            n_done -= len(done[target])
            for sums in measured.sums:
                if store is not None:
                    _store.append_line(store, _line(target, len(done[target]), sums))
                done[target].append(sums)
            n_done += _settled_chunks(setup, done[target])
            if progress is not None:
                progress("scan", n_done, len(targeted) * len(chunks))
    if in_full and progress is not None:
        progress("scan: batches that went another way than the dense model's", in_full, in_full)
    points = [
        point
        for group, by_fraction in plan.items()
        for fraction, counts in by_fraction.items()
        for target in (Target(counts, state) for state in states)
        for point in _points(groups, group, fraction, target, _added(done[target][: _needed(setup, done[target])]))
    ]
    return Curves(
        points=tuple(sorted(points, key=_curves.order)),
        names=tuple(group.name for group in groups.groups),
        n_units=tuple(group.n_units for group in groups.groups),
        n_folds=n_folds,
        criterion=scores.criterion,
        structure=groups.structure,
        weights=weights,
        data=_evaluate.combine_hashes(hashes),
    )


def targets(groups: Groups, removed: Sequence[float], only: Sequence[str] = ()) -> dict[int, dict[float, Counts]]:
    """Kept counts of all groups by group and requested fraction: the nearest that satisfy the count equations.

    Groups of which nothing can go are left out, and all but `only` where that names some.

    Raises:
        NothingToCut: no group at all.  InputError: a fraction outside (0, 1).
        UnknownName: `only` names no group.
    """
    if not groups.groups:
        raise NothingToCut("nothing in this model can be removed", todo="`secateur trace` lists what is frozen and why")
    for fraction in removed:
        if not 0.0 < fraction < 1.0:
            raise InputError("a removed fraction must lie between 0 and 1", where="removed", got=fraction)
    names = [group.name for group in groups.groups]
    for name in only:
        if name not in names:
            raise UnknownName("no group of that name", where="only", expected=", ".join(names), got=name)
    constraints = _counts.system_of(groups)
    found: dict[int, dict[float, Counts]] = {}
    for group in (g for g in groups.groups if not only or g.name in only):
        for fraction in sorted(set(removed)):
            n_removed = min(max(1, int(fraction * group.n_units + 0.5)), group.n_units - 1)
            counts = _counts.with_count(constraints, group.index, group.n_units - n_removed)
            if counts[group.index] < group.n_units:
                found.setdefault(group.index, {})[fraction] = counts
    return found


def measure(setup: Setup, shared: Shared, job: Job) -> Measured:
    """The work function: cut, maybe recover, and evaluate chunk by chunk; [c][f], JSON-ready.

    Args:
        shared: the batches of the next chunk. A target that is recovered first reads its own.
    """
    made: list[Sums] = []
    in_full = 0
    for chunk, pruned, n in evaluated(setup, shared.prefixes(), job):
        made.append(_sums(setup, chunk, pruned))
        in_full += n
        if _needed(setup, [*job.before, *made]) is not None:
            break
    return Measured(made, in_full)


def evaluated(setup: Setup, batches: Iterable[Prefix], job: Job) -> Iterator[tuple[Chunk, Evaluation, int]]:
    """The chunks of a job, the cut model on them, and how many batches had to be computed in full."""
    counts, chunks = job.target.counts, setup.chunks[len(job.before) :]
    try:
        if job.target.recovered:
            assert setup.recovery is not None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # every cut meets the same recovery, whichever was measured before it
                small = setup.recovery(
                    _cut(setup, counts), setup.batches, setup.task, teacher=setup.model, seed=0, progress=None
                )
            stream = (Prefix(batch=batch) for batch in itertools.islice(setup.batches, chunks[0].start, None))
            for chunk in chunks:
                yield chunk, *_on_chunk(setup, small, job.target, chunk, stream)
            return
        waiting = setup.shelf.models.pop(counts, None)
        small = _cut(setup, counts) if waiting is None else waiting
        state = _state(small)
        pruned, in_full = _on_chunk(setup, small, job.target, chunks[0], iter(batches))
        # What a forward changes (a counter, a cache) must not reach the next chunk: there may be no room another time.
        if not in_full and len(setup.shelf.models) < setup.shelf.room and _state(small) == state:
            setup.shelf.models[counts] = small
        yield chunks[0], pruned, in_full
    except NonFinite as error:
        raise NonFinite(
            "a model that was cut computes no finite loss",
            where=", ".join(
                f"{group.name}: {k} of {group.n_units} units kept"
                for group, k in zip(setup.groups.groups, counts, strict=True)
                if k < group.n_units
            ),
            got=error.what,
            todo="leave this fraction out (`removed`), or freeze the group; what was measured so far is in the store",
        ) from error


def _on_chunk(
    setup: Setup, small: nn.Module, target: Target, chunk: Chunk, stream: Iterator[Prefix]
) -> tuple[Evaluation, int]:
    numbered = zip(range(chunk.start, chunk.stop), stream)  # noqa: B905 (leaves the rest)
    pruned = list(_evaluations(setup, small, target, numbered))
    return _evaluate.join([evaluation for evaluation, _ in pruned]), sum(not followed for _, followed in pruned)


def _state(model: nn.Module) -> tuple[object, ...]:
    """Which objects the modules hold, and how often each tensor was written."""
    held = (tuple((name, id(value)) for name, value in vars(module).items()) for module in model.modules())
    written = (0 if t.is_inference() else t._version for _, _, t in _surgery.tensors(model))
    return (*held, *written)


def _evaluations(
    setup: Setup, small: nn.Module, target: Target, prefixes: Iterable[tuple[int, Prefix]]
) -> Iterator[tuple[Evaluation, bool]]:
    """A cut model on batches, and whether it went on from where it parts from the dense one.

    Once it goes another way than the dense model did, what it holds may not be trusted: it is made anew, and computes
    everything.
    """
    follows = True
    for index, prefix in prefixes:
        where = f"batch {index}"
        if follows:
            found = _reuse.evaluate(prefix, small, setup.task, _family(setup, target.counts), where=where)
            if found is not None:
                yield found, True
                continue
            small, follows = _cut(setup, target.counts), False
        yield _evaluate.evaluate_batch(small, prefix.batch, setup.task, where=where), False


def _family(setup: Setup, counts: Counts) -> tuple[int, ...]:
    """The groups that lose units: they tell where the cut model parts from the dense one, not how many units go."""
    return tuple(group.index for group, k in zip(setup.groups.groups, counts, strict=True) if k < group.n_units)


def _cut(setup: Setup, counts: Counts) -> nn.Module:
    kept = _counts.kept_units(setup.order, counts)
    return _surgery.apply(setup.model, _surgery.receipt_for(setup.model, setup.groups, kept))


def _rounds(
    setup: Setup, targets: Sequence[Target], done: Mapping[Target, Sequence[Sums]]
) -> Iterator[tuple[Batches, list[Job]]]:
    """What is still to be measured, with the batches for it; `done` grows between two rounds.

    First chunk by chunk, so that each is read once; then what has to be recovered, each in one go. Whether a target
    goes on depends on its own sums in the order of the chunks only, hence not on who measured them when.
    """
    stream, at = iter(setup.batches), 0
    for c, chunk in enumerate(setup.chunks):
        plain = [t for t in targets if not t.recovered and len(done[t]) == c and _needed(setup, done[t]) is None]
        if plain:
            held = list(itertools.islice(stream, chunk.start - at, chunk.stop - at))
            at = chunk.stop
            yield held, [Job(target, tuple(done[target])) for target in plain]
    recovered = [t for t in targets if t.recovered and _needed(setup, done[t]) is None]
    if recovered:
        yield setup.batches, [Job(target, tuple(done[target])) for target in recovered]


def _needed(setup: Setup, measured: Sequence[Sums]) -> int | None:
    """The first number of chunks that are enough for a target, out of those measured; None = more are needed."""
    if setup.precision is not None:
        for c in range(1, len(measured) + 1):
            if _known(setup.precision, _added(measured[:c]), setup.base.n):
                return c
    return len(measured) if len(measured) == len(setup.chunks) else None


def _settled_chunks(setup: Setup, measured: Sequence[Sums]) -> int:
    """Chunks that need not be looked at any more."""
    return len(measured) if _needed(setup, measured) is None else len(setup.chunks)


def _known(precision: Precision, sums: Sums, n_all: int) -> bool:
    """Whether the sums over the examples so far say enough."""
    added = {
        name: math.fsum(fold[name] or 0 for fold in sums) for name in ("n", "weight", "weight_sq", "loss", "loss_sq")
    }
    n = _curves.effective(added["weight"], added["weight_sq"])
    if min(n, added["n"]) < FIRST or any(not fold["weight"] for fold in sums):
        return False
    mean, error = _curves.moments(added["loss"], added["loss_sq"], added["weight"], n)
    assert precision.absolute is not None
    if error <= max(precision.absolute, precision.relative * abs(mean)):
        return True
    if precision.ceiling is None:
        return False
    # One looks again and again, so only a time-uniform interval decides.
    return mean - error * math.sqrt(n) * _sequence.width(n, level=precision.level, aim=n_all / 4) > precision.ceiling


def _shared(
    setup: Setup, memory: int, rounds: Iterable[tuple[Batches, list[Job]]], executor: Executor | None
) -> Iterator[tuple[Shared, list[Job]]]:
    """The rounds, with what the dense model computes on their batches; nothing of it outlives a round.

    Processes that see the memory of this one find it there. Those that do not compute it themselves, once each, since
    it is larger by far than what it is made of.
    """
    remote = getattr(executor, "remote", False)
    sight = Sight(copy.deepcopy(setup.model))
    for held, jobs in rounds:
        families: Families = {}
        for job in () if jobs[0].target.recovered else jobs:
            counts, n = families.get(family := _family(setup, job.target.counts), (job.target.counts, 0))
            families[family] = counts, n + 1
        each = memory // _evaluate.length(held) // (executor.n if remote else 1)  # type: ignore[union-attr]
        shared = Shared(setup=setup, held=held, families=families, memory=each, sight=sight)
        if not remote:
            shared.prefixes()
        yield shared, jobs


def _one_after_the_other(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[tuple[int, Any]]:
    return ((index, work(item)) for index, item in enumerate(items))


def _dense(model: nn.Module, batches: Batches, task: Task) -> tuple[Evaluation, tuple[Chunk, ...]]:
    """The dense model on all examples, and the chunks that these are measured in."""
    parts, sizes = [], []
    for index, batch in enumerate(batches):
        parts.append(_evaluate.evaluate_batch(model, batch, task, where=f"batch {index}"))
        sizes.append(sum(item.nbytes for _, item in _evaluate.leaves(batch) if isinstance(item, Tensor)))
    return _evaluate.join(parts), chunks_of([part.n for part in parts], sizes)


def chunks_of(n_examples: Sequence[int], n_bytes: Sequence[int]) -> tuple[Chunk, ...]:
    """Growing runs of whole batches, [c].

    Args:
        n_examples: of each batch, as the task counts them.  n_bytes: of each batch.
    """
    made, start, first = [], 0, 0
    while start < len(n_examples):
        stop, n, size = start + 1, n_examples[start], n_bytes[start]
        while stop < len(n_examples) and n < max(FIRST, GROWTH * first) and size + n_bytes[stop] <= MOST_BYTES:
            n, size, stop = n + n_examples[stop], size + n_bytes[stop], stop + 1
        made.append(Chunk(start=start, stop=stop, first=first, n=n))
        start, first = stop, first + n
    return tuple(made)


# Sums


def _sums(setup: Setup, chunk: Chunk, pruned: Evaluation) -> Sums:
    """[f]: weighted sums of the paired differences over the examples of one chunk."""
    if pruned.n != chunk.n:
        raise InputError(
            "the data gave another number of examples than before", where="search data", expected=chunk.n, got=pruned.n
        )
    base, end = setup.base, chunk.first + chunk.n
    made: Sums = []
    for fold in range(setup.n_folds):
        # The examples whose position in the data is `fold` modulo `n_folds`.
        first = (fold - chunk.first) % setup.n_folds
        at, dense = slice(first, None, setup.n_folds), slice(chunk.first + first, end, setup.n_folds)
        w = base.weights[dense]
        loss = pruned.losses[at] - base.losses[dense]
        drop = base_correct = None
        if base.correct is not None and pruned.correct is not None:
            drop, base_correct = base.correct[dense] - pruned.correct[at], base.correct[dense]
        made.append(
            {
                "n": len(w),
                "weight": float(w.sum()),
                "weight_sq": float((w * w).sum()),
                "loss": float((w * loss).sum()),
                "loss_sq": float((w * loss * loss).sum()),
                "drop": _sum(w, drop),
                "drop_sq": _sum(w, None if drop is None else drop * drop),
                "base_loss": float((w * base.losses[dense]).sum()),
                "base_correct": _sum(w, base_correct),
            }
        )
    return made


def _sum(weights: Tensor, values: Tensor | None) -> float | None:
    return None if values is None else float((weights * values).sum())


def _added(chunks: Sequence[Sums]) -> Sums:
    """The sums over several chunks, added in their order."""
    return [
        {
            name: None if value is None else sum(sums[fold][name] or 0 for sums in chunks)
            for name, value in first.items()
        }
        for fold, first in enumerate(chunks[0])
    ]


def _points(groups: Groups, group: int, fraction: float, target: Target, sums: Sums) -> Iterable[Point]:
    full = [g.n_units for g in groups.groups]
    also = tuple((g, n - k) for g, (n, k) in enumerate(zip(full, target.counts, strict=True)) if g != group and k < n)
    for fold, values in enumerate(sums):
        named: dict[str, Any] = values
        yield Point(
            group=group,
            removed=fraction,
            n_removed=full[group] - target.counts[group],
            fold=fold,
            recovered=target.recovered,
            also=also,
            **named,
        )


# Checks and the store


def _check_order(base: Evaluation, chunks: Sequence[Chunk]) -> None:
    """Refuses sorted examples: what the first of them say would not hold for the rest."""
    from scipy.stats import kruskal

    if len(chunks) < 2 or len(base.losses.unique()) < 2:
        return
    found = kruskal(*(base.losses[c.first : c.first + c.n].numpy() for c in chunks))
    if found.pvalue < SORTED:
        raise InputError(
            "the search data do not stand in random order",
            where="batches, with a precision",
            expected="examples in random order, the same at every pass: each point looks at the first ones only",
            got=f"dense losses that differ between parts of the data (Kruskal-Wallis, p = {found.pvalue:.1g})",
            todo="shuffle the search data once, with a fixed seed, before they are batched; or measure every point on "
            "all of them: precision=None, --full",
        )


def _check_cuts(setup: Setup, missing: Sequence[Counts]) -> None:
    """One deep cut of every group meets one batch before hours are spent."""
    full = [group.n_units for group in setup.groups.groups]
    deepest: dict[int, Counts] = {}
    for counts in missing:
        for g, (k, n) in enumerate(zip(counts, full, strict=True)):
            if k < n and (g not in deepest or k < deepest[g][g]):
                deepest[g] = counts
    batch = next(iter(setup.batches))
    for counts in dict.fromkeys(deepest.values()):
        try:
            _evaluate.evaluate_batch(_cut(setup, counts), batch, setup.task, where="the first batch")
        except SecateurError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            names = [g.name for g, k in zip(setup.groups.groups, counts, strict=True) if k < g.n_units]
            raise CutError(
                "a model that was cut does not run; nothing was measured",
                where=", ".join(names),
                got=f"{type(error).__name__}: {error}",
                todo="freeze this group, and report the model: a rule of the coupling is wrong",
            ) from error


def _describe(recovery: Recovery | None) -> str:
    """Name and settings. The repr of anything but a dataclass holds an address, which no resumed run would meet."""
    if recovery is None:
        return ""
    return repr(recovery) if dataclasses.is_dataclass(recovery) else recovery.name


def _line(target: Target, chunk: int, sums: Sums) -> dict[str, Any]:
    return {"counts": target.counts, "recovered": target.recovered, "chunk": chunk, "sums": sums}


def _open_store(
    store: str | Path | None, header: Mapping[str, Any], *, n_folds: int, resume: bool
) -> dict[Target, list[Sums]]:
    """The measurements that the store holds; it is begun if it is empty."""
    if store is None:
        return {}
    lines = _store.read_lines(store)
    if not lines:
        _store.append_line(store, dict(header))
        return {}
    first, *rest = lines
    if not resume:
        raise InputError(
            "the store already holds a scan",
            where=str(store),
            todo="pass resume=True to go on with it, or another file",
        )
    for key, value in header.items():
        got = first.get(key) if isinstance(first, dict) else None
        if got != value:
            raise StaleArtifact(
                "the store holds a scan of something else",
                where=f"{store}: {key}",
                expected=value,
                got=got,
                todo="scan into another file; this one belongs to another model, data set or setting",
            )
    done: dict[Target, list[Sums]] = {}
    for number, line in enumerate(rest, start=2):
        try:
            target = Target(tuple(line["counts"]), line["recovered"])
            held = done.setdefault(target, [])
            whole = line["chunk"] == len(held) and len(line["sums"]) == n_folds
        except (KeyError, TypeError):
            whole = False
        if not whole:
            raise FileCorrupt("this is not a line of a scan", where=f"{store}:{number}", todo="start afresh")
        held.append(line["sums"])
    return done
