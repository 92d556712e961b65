"""Gradual pruning: `step(state, run) -> state`. One step scores, plans, cuts, recovers, measures, and accepts or stops.

A `State` is frozen and small; the tensors lie beside it, one file per candidate (or in memory, where the run has no
folder). A step starts from files alone and from random states derived from (seed, step): an interrupted run that is
resumed does again what the interrupted step did, bit for bit, on the same machine with the same number of threads.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from secateur import _cost, _store, _surgery, recoveries
from secateur._couple import couple
from secateur._cut import cut
from secateur._evaluate import Evaluation, Progress, evaluate, fingerprint_data, length
from secateur._plan import plan
from secateur._recover import derive, recover, seeded
from secateur._scan import scan
from secateur._score import score
from secateur._trace import trace
from secateur.errors import FileCorrupt, InputError, StaleArtifact
from secateur.schema import from_json, to_json
from secateur.schema.budget import Budget
from secateur.schema.costs import Costs
from secateur.schema.curves import Curves
from secateur.schema.groups import Groups
from secateur.schema.members import Allocator, Criterion, Recovery, Schedule
from secateur.schema.plan import Plan
from secateur.schema.precision import Precision
from secateur.schema.receipt import Receipt
from secateur.schema.scores import Scores
from secateur.schema.state import Candidate, State
from secateur.schema.task import Data, Task
from secateur.schema.validation import Validation

Scan = Literal["never", "once", "each"]
Noun = TypeVar("Noun")
STATE_FILE = "state.json"
# Means are sums of many floats: two that are equal on paper may differ in the last digits.
ROUNDING = 1e-9
# So many batches of the training data enter the fingerprint of a run: enough to notice another data set.
TRAIN_BATCHES = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """Everything that stays the same as long as a run goes on.

    Attributes:
        model: the dense model, never changed.  example_inputs: as for `trace`.
        steps: gradual steps.  max_drop: allowed drop on the search data; None = any.
        scan: `each`: every step measures curves of its own for the allocator.  precision: of curves.
        confidence, clip: of the certificate.
        couple, plan: further keyword arguments of these verbs (freeze, tie, rules, baked; round_to, least).
        folder: where state and tensors are kept; None = in `memory`.
        memory: file name -> tensors, for a run without a folder.
    """

    model: nn.Module
    example_inputs: Any
    data: Data
    task: Task
    criterion: Criterion
    allocator: Allocator
    recovery: Recovery
    schedule: Schedule
    steps: int
    max_drop: float | None
    scan: Scan
    precision: Precision | None
    confidence: float
    clip: float | None
    seed: int
    couple: Mapping[str, Any]
    plan: Mapping[str, Any]
    folder: Path | None
    memory: dict[str, dict[str, Tensor]]
    progress: Progress | None = None


# The loop body


def begin(run: Run, groups: Groups, budget: Budget | None, settings: str) -> State:
    """Step 0: the dense model as the first candidate.

    It is saved only if curves will follow, to say whose they are; otherwise the first step writes the first file,
    so that a run that fails before has touched nothing.

    Args:
        groups: of the dense model.  budget: the final target; None = still to be chosen.
        settings: `fingerprint` of the run.
    """
    with repeatable(run, "dense"):
        found = evaluate(run.model, run.data.search, run.task, progress=labelled(run.progress, "dense model"))
    dense = Candidate(
        step=0,
        file="",
        receipt=None,
        costs=_cost.cost(groups.costs, _cost.full_counts(groups)),
        removed=0.0,
        search_loss=found.mean_loss,
        search_correct=found.mean_correct,
        drop=0.0,
        accepted=True,
        weights=_surgery.fingerprint_weights(run.model),
    )
    state = State(
        step=0,
        steps=run.steps,
        budget=budget,
        max_drop=run.max_drop,
        candidates=(dense,),
        finished=False,
        reason="",
        seed=run.seed,
        settings=settings,
    )
    if run.scan != "never":
        save_state(run, state)
    return state


def aim(run: Run, state: State, validation: Validation) -> State:
    """The state with the budget that cross-validation chose; finished, if nothing may go."""
    if state.step > 0 or state.finished:
        return state
    nothing = validation.kept >= 1.0
    aimed = dataclasses.replace(
        state, budget=validation.budget, finished=nothing, reason=validation.reason if nothing else ""
    )
    save_state(run, aimed)
    return aimed


def step(state: State, run: Run, *, scores: Scores | None = None, curves: Curves | None = None) -> State:
    """One step further: from the last good candidate to a smaller one, which is accepted or ends the run.

    The budget of step t of n is 1 - f(t) (1 - budget) of the *original* cost, f the schedule. A candidate is accepted
    if its drop on the search data is at most `max_drop`; better than the dense model is never a violation. If it
    is not accepted, the run is finished, and the last good step counts.

    Args:
        state: not finished, with a budget.
        scores, curves: of the model that the step starts from, if they are known already.

    Returns:
        The next state, saved beside its tensors if the run has a folder. If anything fails before that,
        files and models are as they were.
    """
    assert not state.finished, "a finished run has no next step"
    assert state.budget is not None, "a step needs a budget"
    number, base, data, task = state.step + 1, state.candidates[-1], run.data, run.task
    tell = labelled(run.progress, f"step {number}/{state.steps}")
    with repeatable(run, "step", number):
        model = restore(run, base)
        groups = couple(trace(model, run.example_inputs), **run.couple)
        scores = scores or score(
            model,
            groups,
            data.search,
            task,
            criterion=run.criterion,
            seed=derive(run.seed, "score", number),
            progress=tell,
        )
        if run.scan == "each" and curves is None:
            store = run.folder and run.folder / f"scan-{number}.jsonl"
            cheap = recoveries.recalibrate() if recoveries.has_running_statistics(model) else None
            curves = scan(
                model,
                groups,
                scores,
                data.search,
                task,
                store=store,
                resume=True,
                recovery=cheap,
                precision=run.precision,
                progress=tell,
            )
        budget = budget_of_step(state, run.schedule, number)
        receipt, small, costs = base.receipt, model, base.costs
        if budget is not None:
            chosen = plan(groups, scores, budget, allocator=run.allocator, curves=curves, **run.plan)
            small, receipt = cut(model, groups, chosen, example_inputs=run.example_inputs, receipt=base.receipt)
            costs = _cost.cost(groups.costs, [len(units) for units in chosen.kept])
        small = recover(
            small,
            data.train,
            task,
            recovery=run.recovery,
            teacher=run.model,
            receipt=receipt,
            seed=derive(run.seed, "recover", number),
            progress=tell,
        )
        found = evaluate(small, data.search, task, progress=tell)
    candidate = _judge(state, number, small, receipt, costs, found)
    if run.folder is not None and not (run.folder / STATE_FILE).exists():
        save_state(run, state)  # whose run it is must be known before the first tensors lie there
    put(run, candidate.file, {n: t for n, c, t in _surgery.tensors(small) if n == c})
    reason = ""
    if not candidate.accepted:
        reason = (
            f"step {number} of {state.steps} lost {candidate.drop:.4g} on the search data, "
            f"more than the {state.max_drop:.4g} allowed: rolled back to step {base.step}"
        )
    elif number == state.steps:
        reason = f"all {state.steps} steps done" if state.steps > 1 else "done"
    following = dataclasses.replace(
        state,
        step=number,
        candidates=(*state.candidates, candidate),
        finished=bool(reason),
        reason=reason,
    )
    save_state(run, following)
    return following


def _judge(
    state: State, number: int, small: nn.Module, receipt: Receipt | None, costs: Costs, found: Evaluation
) -> Candidate:
    dense = state.candidates[0]
    if found.mean_correct is not None and dense.search_correct is not None:
        drop = dense.search_correct - found.mean_correct
    else:
        drop = found.mean_loss - dense.search_loss
    return Candidate(
        step=number,
        file=f"step-{number}.safetensors",
        receipt=receipt,
        costs=costs,
        removed=1.0 - costs.macs / dense.costs.macs if dense.costs.macs else 0.0,
        search_loss=found.mean_loss,
        search_correct=found.mean_correct,
        drop=drop,
        accepted=state.max_drop is None or drop <= state.max_drop + ROUNDING,
        weights=_surgery.fingerprint_weights(small),
    )


def budget_of_step(state: State, schedule: Schedule, number: int) -> Budget | None:
    """The budget of a step as fractions of the model that it starts from; None where that meets it already.

    The limit is computed from the dense cost, in whole MACs, parameters and bytes, and only then divided by the
    current cost: the base never drifts.
    """
    assert state.budget is not None
    share = schedule(number, state.steps)
    if not 0.0 < share <= 1.0 or (number == state.steps and share != 1.0):
        raise InputError(
            "a schedule must give fractions in (0, 1], and 1 at the last step",
            where=f"{schedule.name}({number}, {state.steps})",
            got=share,
        )
    named = {k: v for k, v in dataclasses.asdict(state.budget).items() if v is not None}
    # At the end the user's own number, not one that went through arithmetic.
    target = Budget(**{k: v if share == 1.0 else 1.0 - share * (1.0 - v) for k, v in named.items()})
    now = dataclasses.asdict(state.candidates[-1].costs)
    limits = _cost.limits(target, state.candidates[0].costs)
    # Half a unit above the limit: rounds down to exactly the limit, whatever the last digit of the quotient is.
    kept = {k: (limit + 0.5) / now[k] for k, limit in limits.items() if limit < now[k]}
    return Budget(**kept) if kept else None


# Tensors and files


def put(run: Run, file: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep tensors beside the state, in the folder of the run or in its memory."""
    if run.folder is not None:
        _store.save_tensors(run.folder / file, tensors)
    else:
        run.memory[file] = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def restore(run: Run, candidate: Candidate) -> nn.Module:
    """The model of a candidate, built from the dense one, its receipt and its tensors.

    A run that goes on rebuilds its models just as one that was resumed: both see the same bits.

    Raises:
        FileCorrupt: the tensors are missing, truncated, or not those that the state speaks of.
    """
    if candidate.step == 0:
        return copy.deepcopy(run.model)
    if run.folder is not None:
        saved = _store.load_tensors(run.folder / candidate.file)
    else:
        saved = run.memory[candidate.file]
    model = copy.deepcopy(run.model) if candidate.receipt is None else _surgery.apply(run.model, candidate.receipt)
    own = {name: tensor for name, canonical, tensor in _surgery.tensors(model) if name == canonical}
    if {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in saved.items()}:
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        if _surgery.fingerprint_weights(model) == candidate.weights:
            return model
    raise FileCorrupt(
        "these tensors are not those that the state of the run speaks of",
        where=str(run.folder and run.folder / candidate.file),
        expected=candidate.weights[:12],
        todo="start afresh in an empty folder",
    )


def save_state(run: Run, state: State) -> None:
    """Replace the state file in one step; the tensors that it names are on disk already."""
    if run.folder is not None:
        _store.write_json(run.folder / STATE_FILE, to_json(state))


def is_empty(folder: Path) -> bool:
    """Whether `folder` holds nothing, or is not there; what a killed writer left half-written counts as nothing."""
    return not folder.exists() or all(p.name.startswith(".") and p.name.endswith(".tmp") for p in folder.iterdir())


def load_state(folder: Path, settings: str) -> State:
    """The state that a run left in `folder`.

    Raises:
        StaleArtifact: it was made with another model, other data or other settings, or there is none.
        FileCorrupt: it is truncated or changed.
    """
    if not (folder / STATE_FILE).exists():
        raise StaleArtifact(
            "this folder holds something else than a run of prune",
            where=str(folder),
            expected=f"a file {STATE_FILE}",
            todo="name an empty or a new folder",
        )
    state = from_json(State, _store.read_json(folder / STATE_FILE))
    if state.settings != settings:
        raise StaleArtifact(
            "this folder holds a run with another model, other data or other settings",
            where=str(folder),
            expected=settings[:12],
            got=state.settings[:12],
            todo="pass what the run was started with, or start a new run in an empty folder",
        )
    return state


def kept(run: Run, file: str, noun: type[Noun], make: Callable[[], Noun]) -> Noun:
    """What an earlier session of this run has left in `file`, or `make()`, which is then left there."""
    path = run.folder and run.folder / file
    if path is not None and path.exists():
        return from_json(noun, _store.read_json(path))
    with repeatable(run, file):
        made = make()
    if path is not None:
        _store.write_json(path, to_json(made))
    return made


def repeatable(run: Run, *purpose: str | int) -> AbstractContextManager[None]:
    """Inside, all randomness, that of the data included, follows from the seed of the run and `purpose` alone."""
    return seeded(derive(run.seed, *purpose), run.data.train, run.data.search, run.data.held_out)


# Fingerprints


def digest(state: State) -> str:
    """SHA-256 of a state: ranks, and two runs, agree if this does."""
    return hashlib.sha256(json.dumps(to_json(state), sort_keys=True).encode()).hexdigest()


def fingerprint(run: Run, budget: Budget | None) -> str:
    """SHA-256 of everything on which the outcome of a run depends, but for machine and versions.

    Model, search data, held-out data, members and settings enter whole; the training data with its number of batches
    and the first few of them. Functions are known by their names only.
    """
    data = {}
    with repeatable(run, "fingerprint"):
        start = list(itertools.islice(run.data.train, TRAIN_BATCHES))
        data["train"] = [length(run.data.train), fingerprint_data(start, ordered=True)]
        data["search"] = [fingerprint_data(run.data.search, ordered=True)]
        if run.data.held_out is not None:
            data["held_out"] = [fingerprint_data(run.data.held_out)]
    content = {
        "model": _surgery.fingerprint_weights(run.model),
        "data": data,
        "budget": _describe(budget),
        "task": _describe(run.task),
        "members": [_describe(m) for m in (run.criterion, run.allocator, run.recovery, run.schedule)],
        "settings": [run.steps, run.max_drop, run.scan, run.confidence, run.clip, run.seed],
        "precision": _describe(run.precision),
        "couple": _describe(run.couple),
        "plan": _describe(run.plan),
        "inputs": _describe(run.example_inputs),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _describe(value: object) -> Any:
    """A value as JSON that is the same in another process: never an address."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        shape = [str(value.dtype), list(value.shape)]
        return [*shape, hashlib.sha256(value.detach().cpu().double().numpy().tobytes()).hexdigest()]
    if isinstance(value, FunctionType | BuiltinFunctionType | MethodType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, functools.partial):
        return [_describe(value.func), _describe(value.args), _describe(value.keywords)]
    if isinstance(value, Mapping):
        return {str(k): _describe(v) for k, v in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        parts = [_describe(v) for v in value]
        return sorted(parts, key=repr) if isinstance(value, set | frozenset) else parts
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"class": name, **{f.name: _describe(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    return name


# Fields that say what a member is, not how it was set.
_FACTS = frozenset({"name", "source", "unit", "order", "gradients", "per_example"})


def in_words(member: object) -> str:
    """The settings of a member, as a person would write them: `epochs=3, lr=0.001`; what it is made of in brackets."""
    if not dataclasses.is_dataclass(member) or isinstance(member, type):
        return ""
    parts = []
    for field in dataclasses.fields(member):
        value = getattr(member, field.name)
        if isinstance(value, tuple) and value and all(dataclasses.is_dataclass(v) for v in value):
            parts.append(" + ".join(f"{type(v).__name__.lower()}({in_words(v)})" for v in value))
        elif dataclasses.is_dataclass(value):
            parts.append(in_words(value))
        elif field.name not in _FACTS and isinstance(value, bool | int | float | str):
            parts.append(f"{field.name}={value}")
    return ", ".join(parts)


def labelled(progress: Progress | None, prefix: str) -> Progress | None:
    """`progress` with `prefix` before every label."""
    if progress is None:
        return None
    told = progress
    return lambda label, done, total: told(f"{prefix}: {label}", done, total)


# The whole way from the dense model, as one plan


def dense_plan(run: Run, groups: Groups, candidate: Candidate, budget: Budget | None) -> Plan:
    """The plan that makes all the cuts of a candidate in one go, from the dense model, to which `groups` belong."""
    receipt = candidate.receipt
    kept_units = []
    for group in groups.groups:
        gone = set()
        for member in group.members:
            axes = None if receipt is None else receipt.kept.get(member.param)
            indices = None if axes is None else axes[member.axis]
            if indices is not None:
                there = set(indices)
                gone |= {u for i, u in enumerate(member.units) if u >= 0 and i not in there}
        kept_units.append(tuple(u for u in range(group.n_units) if u not in gone))
    return Plan(
        kept=tuple(kept_units),
        names=tuple(g.name for g in groups.groups),
        n_units=tuple(g.n_units for g in groups.groups),
        budget=budget,
        before=_cost.cost(groups.costs, _cost.full_counts(groups)),
        after=candidate.costs,
        allocator=run.allocator.name,
        criterion=run.criterion.name,
        structure=groups.structure,
    )
