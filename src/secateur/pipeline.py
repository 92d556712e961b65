"""prune: the verbs in order. Read this first: it is the whole library on one page.

trace -> couple -> score (-> scan -> cross_validate, where the budget is to be chosen)
then, step by step: score -> plan -> cut -> recover -> evaluate, accepted or rolled back (`_gradual.step`)
then certify; report, save and export take the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from torch import nn

from secateur import _gradual, allocators, criteria, recoveries, schedules
from secateur._certify.census import take_census
from secateur._certify.certify import certify
from secateur._certify.claim import make_claim
from secateur._couple import couple
from secateur._evaluate import Progress, check_batches
from secateur._gradual import Run, Scan, kept, repeatable, step
from secateur._plan import plan
from secateur._recover import derive
from secateur._report import report
from secateur._scan import scan as scan_groups
from secateur._score import score
from secateur._trace import trace
from secateur._validate import cross_validate
from secateur.errors import CertificateError, InputError
from secateur.schema.budget import Budget
from secateur.schema.certificate import Certificate
from secateur.schema.curves import Curves
from secateur.schema.members import Allocator, Criterion, Recovery, Schedule
from secateur.schema.precision import Precision
from secateur.schema.result import Result, Used
from secateur.schema.state import State
from secateur.schema.task import Data, Task
from secateur.schema.validation import Validation

PRECISION = Precision()


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Data,
    task: Task,
    budget: Budget | None = None,
    max_drop: float | None = None,
    steps: int = 3,
    criterion: Criterion | None = None,
    allocator: Allocator | None = None,
    recovery: Recovery | None = None,
    schedule: Schedule | None = None,
    scan: Scan | None = None,
    precision: Precision | None = PRECISION,
    confidence: float = 0.95,
    clip: float | None = None,
    freeze: Sequence[str] = (),
    tie: Sequence[Sequence[str]] = (),
    rules: Mapping[str, Any] | None = None,
    baked: Literal["freeze", "submodule"] = "freeze",
    round_to: int = 1,
    least: int = 1,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Result:
    """A smaller model of the same class, found step by step, with the evidence that it is still good enough.

    Args:
        model: the trained, dense model; never changed.
        example_inputs: what it is called with: a tensor, a tuple of arguments, a dict of keyword arguments,
            or a list of several of those.
        data: `train` for recovery, `search` for all choices, `held_out` for the certificate (None = none).
        task: what the network is for, one loss and one score per example.
        budget: what may be kept of the original cost. None: chosen by cross-validation for `max_drop`.
        max_drop: allowed drop of the mean score, or increase of the mean loss in nats where the task has no score.
            None: whatever it costs; then there is no certificate.
        steps: gradual steps.
        criterion: default `obd()`, with curvature drawn from the model where the task has no labels.
        allocator: default `greedy()`.  schedule: default `cubic()`.
        recovery: after every cut; default `chain(finetune(epochs=3), recalibrate())`.
        scan: measure curves, for the allocator and the report: `never`, `once` (of the dense model), or at `each`
            step anew. Default: `once` if there is no budget, else `never`.
        precision: how well a point of these curves has to be known; the search data must stand in random order then.
            None = every point on all examples.
        confidence: of the certificate.  clip: for a task without a score: losses count up to `clip` nats in it.
        freeze, tie, rules, baked: as in `couple`.  round_to, least: as in `plan`.
        seed: the same seed gives the same plan, weights and numbers on the same machine.
        out: folder that holds the run as it goes on; new or empty, unless `resume`.
        resume: go on from what `out` holds, or start afresh if it is empty.
        progress: called with (label, done, total).

    Returns:
        `result.model` is the smallest candidate within `max_drop` on the search data; `result.certificate` names the
        sparsest certified one; `result.candidates` has all.

    Raises:
        InputError: and its kinds, for what cannot be used.  BudgetUnreachable: with the least reachable cost.
        StaleArtifact: `out` holds a run with another model, other data or other settings.
        CutMismatch: a cut that was not exact; nothing was changed.
    """
    run = Run(
        model=model,
        example_inputs=example_inputs,
        data=data,
        task=task,
        criterion=criterion or (criteria.obd() if task.labels else criteria.obd(curvature="sampled")),
        allocator=allocator or allocators.greedy(),
        recovery=recovery or recoveries.chain(recoveries.finetune(epochs=3), recoveries.recalibrate()),
        schedule=schedule or schedules.cubic(),
        steps=steps,
        max_drop=max_drop,
        scan=scan or ("once" if budget is None else "never"),
        precision=precision,
        confidence=confidence,
        clip=clip,
        seed=seed,
        couple={"freeze": freeze, "tie": tie, "rules": rules, "baked": baked},
        plan={"round_to": round_to, "least": least},
        folder=None if out is None else Path(out),
        memory={},
        progress=progress,
    )
    _check(run, budget, resume=resume)
    settings, held = _resumed(run, budget, resume=resume)
    if held is None:
        _check_held_out(run)
    tell = _gradual.labelled(progress, "dense model")

    # What the network is made of, and what each part is worth.
    graph = trace(model, example_inputs)
    groups = couple(graph, **run.couple)
    with repeatable(run, "score"):
        scores = score(
            model, groups, data.search, task, criterion=run.criterion, seed=derive(seed, "score"), progress=tell
        )
    if budget is not None:  # what cannot be met is refused here, before anything is trained or written
        reachable = allocators.uniform() if run.scan == "each" else run.allocator  # may need curves that come later
        plan(groups, scores, budget, allocator=reachable, **run.plan)
    state = held or _gradual.begin(run, groups, budget, settings)

    # How much may go, where the user has not said so: measured curves, and the largest cut that all folds allow.
    curves, validation, cheap = None, None, recoveries.recalibrate()
    if run.scan != "never":
        store = run.folder and run.folder / "scan.jsonl"
        curves = kept(run, "curves.json", Curves, lambda: scan_groups(
            model, groups, scores, data.search, task, store=store, resume=True, progress=tell,
            recovery=cheap if recoveries.has_running_statistics(model) else None, precision=precision,
        ))  # fmt: skip
    if budget is None:
        assert max_drop is not None
        validation = kept(run, "validation.json", Validation, lambda: cross_validate(
            model, groups, scores, curves, data.search, task, max_drop=max_drop, allocator=run.allocator,
            recovery=cheap, recovery_data=data.train, progress=tell, **run.plan,
        ))  # fmt: skip
        state = _gradual.aim(run, state, validation)

    # Score, plan, cut, recover, evaluate; until the budget is met, or the allowed drop is exceeded.
    while not state.finished:
        first = state.step == 0
        state = step(state, run, scores=scores if first else None, curves=curves if first else None)

    # The claim, on data that nothing above has seen.
    models = tuple(_gradual.restore(run, candidate).eval() for candidate in state.candidates)
    path = [c.step for c in state.candidates if c.accepted and c.step > 0]
    certificate, notes = _certify_path(run, models, path, state)

    last = state.candidates[path[-1] if path else 0]  # every step is smaller than the one before
    return Result(
        model=models[last.step],
        models=models,
        chosen=last.step,
        state=state,
        graph=graph,
        groups=groups,
        scores=scores,
        plan=_gradual.dense_plan(run, groups, last, state.budget) if last.receipt else None,
        receipt=last.receipt,
        curves=curves,
        validation=validation,
        certificate=certificate,
        used=_used(run),
        reporter=report,
        notes=notes,
    )


def _check(run: Run, budget: Budget | None, *, resume: bool) -> None:
    """Refuse what cannot work before anything is computed."""
    for batches in (run.data.train, run.data.search, run.data.held_out):
        if batches is not None:
            check_batches(batches)
    drop, scored = run.max_drop, run.task.correct is not None
    most, expected_drop = (1.0, "a number in [0, 1)") if scored else (math.inf, "a number of nats, at least 0")
    checks: tuple[tuple[str, bool, str, object], ...] = (
        ("steps", run.steps >= 1, "a whole number, at least 1", run.steps),
        ("max_drop", drop is None or 0.0 <= drop < most, expected_drop, drop),
        ("confidence", 0.5 <= run.confidence < 1.0, "a number in [0.5, 1)", run.confidence),
        ("scan", run.scan in ("never", "once", "each"), "'never', 'once' or 'each'", run.scan),
        ("seed", 0 <= run.seed < 2**63, "a whole number, at least 0", run.seed),
    )
    for name, ok, expected, got in checks:
        if not ok:
            raise InputError("a setting of prune cannot be used", where=name, expected=expected, got=repr(got))
    if budget is None and drop is None:
        raise InputError(
            "neither how much to remove nor how much may be lost was given",
            where="budget, max_drop",
            todo="pass budget=Budget(macs=0.5), or max_drop=0.01 to have the budget chosen, or both",
        )
    if resume and run.folder is None:
        raise InputError("resume needs the folder that holds the run", where="out", todo="pass out=")
    if run.folder is not None and not resume and not _gradual.is_empty(run.folder):
        raise InputError(
            "the folder of the run is not empty",
            where=str(run.folder),
            todo="pass resume=True to go on with the run that it holds, or name another folder",
        )


def _check_held_out(run: Run) -> None:
    """Refuse a claim that cannot be made, and held-out data that stands in other splits, before hours of work."""
    held_out, drop, scored = run.data.held_out, run.max_drop, run.task.correct is not None
    if held_out is None or drop is None:
        return
    make_claim(run.task, drop if scored else None, None if scored else drop, run.clip)
    with repeatable(run, "census"), suppress(CertificateError):  # those are told at the end, in the notes
        take_census(held_out, (run.data.search, run.data.train), run.task, "refuse", run.progress)


def _resumed(run: Run, budget: Budget | None, *, resume: bool) -> tuple[str, State | None]:
    """The fingerprint of the run, and the state that its folder holds, if any."""
    if run.folder is None:
        return "", None
    settings = _gradual.fingerprint(run, budget)
    return settings, _gradual.load_state(run.folder, settings) if resume and not _gradual.is_empty(run.folder) else None


def _used(run: Run) -> tuple[Used, ...]:
    members = (
        ("criterion", run.criterion, run.criterion.name, run.criterion.source),
        ("allocator", run.allocator, run.allocator.name, ""),
        ("recovery", run.recovery, run.recovery.name, run.recovery.source),
        ("schedule", run.schedule, run.schedule.name, run.schedule.source),
        ("task", run.task, run.task.name, ""),
    )
    return tuple(
        Used(role=role, name=name, settings=_gradual.in_words(member), source=source)
        for role, member, name, source in members
    )


def _certify_path(
    run: Run, models: Sequence[nn.Module], path: Sequence[int], state: State
) -> tuple[Certificate | None, tuple[str, ...]]:
    """The certificate of the accepted candidates, and what the user should know."""
    held_out, drop, scored = run.data.held_out, run.max_drop, run.task.correct is not None
    notes = [] if state.reason.endswith("done") else [state.reason]
    if held_out is None or drop is None or not path:
        missing = (
            "there is no held-out data"
            if held_out is None
            else "no allowed drop was named (max_drop)"
            if drop is None
            else "no smaller model stayed within the allowed drop on the search data"
        )
        return None, (*notes, f"No certificate: {missing}.")

    def make() -> Certificate:
        return certify(
            run.model,
            [models[i] for i in path],
            held_out,
            run.task,
            max_drop=drop if scored else None,
            max_loss_increase=None if scored else drop,
            clip=run.clip,
            confidence=run.confidence,
            names=[f"step {i}" for i in path],
            also=(run.data.search, run.data.train),
            seed=run.seed,
            progress=run.progress,
        )

    try:
        return kept(run, "certificate.json", Certificate, make), tuple(notes)
    except CertificateError as error:  # the models are there and worth having; the claim is not made
        return None, (*notes, f"No certificate: {error.what}. {error.todo or ''}".rstrip())
