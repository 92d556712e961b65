"""What is done to one model of the zoo: by Secateur without any hint, and by Torch-Pruning at its best honest settings.

Nothing may pass vacuously: tiny scales are randomised first, and the distance to the dense model is reported.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo_models import Entry

HIGHEST_RATIO = 0.8
UNIFORM_RATIO = 0.4


@dataclasses.dataclass(slots=True, kw_only=True)
class Trial:
    """What happened to one model.

    Attributes:
        outcome: `ok`; `frozen` (refused with reasons); `mismatch` (a wrong result was caught); `error`; `timeout`;
            `memory`; `unbuilt` (the model itself does not run here).
        params: of the dense model.  removed: fraction of them that is gone.
        reach: the fraction that goes when every group loses 40 % (as near as the equations let it).
        allowed: the same if no integer of the forward asked for anything: neither equations nor frozen groups.
        groups, inexact, frozen: number of groups, of those that are inexact; indices frozen per reason.
        error, tolerance, distance: of the verification; distance is that to the dense model's output.
        seconds: of CPU time, per stage.
    """

    outcome: str
    message: str = ""
    params: int = 0
    removed: float = 0.0
    reach: float | None = None
    allowed: float | None = None
    groups: int = 0
    inexact: int = 0
    equations: int = 0
    frozen: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unexecuted: int = 0
    error: float | None = None
    tolerance: float | None = None
    distance: float | None = None
    checks: tuple[str, ...] = ()
    swapped: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def count(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def randomise(model: nn.Module, seed: int) -> None:
    """Give every constant or tiny parameter, and the statistics of batch norm, values that matter. In place."""
    generator = torch.Generator().manual_seed(seed)
    scales = {
        id(m.weight)
        for m in model.modules()
        if isinstance(getattr(m, "weight", None), Tensor) and ("Norm" in type(m).__name__ or "norm" in type(m).__name__)
    }

    def uniform(t: Tensor) -> Tensor:
        return torch.rand(t.shape, generator=generator).to(t.dtype) + 0.5

    def normal(t: Tensor, std: float) -> Tensor:
        return torch.randn(t.shape, generator=generator).to(t.dtype) * std

    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if not buffer.is_floating_point():
                continue
            if name.endswith("running_mean"):
                buffer.copy_(normal(buffer, 0.1))
            elif name.endswith("running_var"):
                buffer.copy_(uniform(buffer))
        for parameter in model.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if id(parameter) in scales and parameter.dim() == 1:
                parameter.copy_(uniform(parameter))
            elif parameter.numel() == 1:
                if abs(float(parameter)) < 1e-3:
                    parameter.fill_(0.5)
            elif float(parameter.std()) < 1e-4:
                # layer scales start near 0, gates and slopes at a constant, biases and heads at 0
                middle = float(parameter.flatten()[0])
                tiny_scale = 0 < abs(middle) < 1e-3
                parameter.copy_(uniform(parameter) if tiny_scale else middle + normal(parameter, 0.1))


def prepare(entry: Entry, seed: int) -> tuple[nn.Module, Any]:
    """The model with values that matter, and inputs on which it runs."""
    torch.manual_seed(seed)
    model = entry.build().eval()
    inputs = entry.inputs()
    randomise(model, seed)
    run(model, inputs)
    return model, inputs


def ours(entry: Entry, seed: int) -> Trial:
    """Record, couple, choose at random, cut, verify."""
    from secateur._couple import couple
    from secateur._cut import cut, verify_cut
    from secateur._trace import trace
    from secateur.errors import CutMismatch, NothingToCut, SecateurError

    try:
        model, inputs = prepare(entry, seed)
    except Exception as error:  # noqa: BLE001  whatever the library raises: the model does not run here
        return Trial(outcome="unbuilt", message=said(error))
    trial = Trial(outcome="error", params=count(model))
    first, given = first_use()
    pruned = couple(trace(first, given))
    cut(first, pruned, random_plan(pruned, seed), verify=False)
    try:
        clock = Clock(trial.seconds)
        graph = trace(model, inputs)
        clock.lap("record")
        trial.notes, trial.unexecuted = graph.notes, len(graph.unexecuted)
        groups = couple(graph)
        clock.lap("couple")
        trial.groups, trial.equations = len(groups.groups), len(groups.equations)
        trial.inexact = sum(not g.exact for g in groups.groups)
        for f in groups.frozen:
            trial.frozen[f.reason] = trial.frozen.get(f.reason, 0) + f.count
        plan = random_plan(groups, seed)
        clock.lap("plan")
        small, receipt = cut(model, groups, plan, verify=False)
        clock.lap("cut")
        trial.removed = 1 - count(small) / max(trial.params, 1)
        trial.swapped = len(receipt.swaps)
        verification = verify_cut(model, small, groups, plan.kept, groups.examples)
        clock.lap("verify")
        trial.error, trial.tolerance = verification.error, verification.tolerance
        trial.distance, trial.checks = verification.distance, verification.checks
        trial.reach, trial.allowed = reach(groups), allowed(graph)
        trial.outcome = "ok" if type(small) is type(model) else "error"
    except CutMismatch as error:
        trial.outcome, trial.message = "mismatch", said(error)
    except NothingToCut as error:
        trial.outcome, trial.message = "frozen", said(error)
    except SecateurError as error:
        trial.message = said(error)
    except Exception as error:  # noqa: BLE001  a fault of ours, to be counted and not to stop the run
        trial.message = traced(error)
    return trial


def first_use() -> tuple[nn.Module, Tensor]:
    """What each tool prunes before its clock starts: what a process pays once is not the model's."""
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    return nn.Sequential(*layers).eval(), torch.zeros(1, 3, 8, 8)


class Clock:
    """CPU seconds of this process between laps: with one thread the same as a clock's on a machine that is free."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.started = seconds, time.process_time()

    def lap(self, name: str) -> None:
        """Note the time since the last lap."""
        now = time.process_time()
        self.seconds[name] = round(now - self.started, 4)
        self.started = now


def run(model: Callable[..., Any], inputs: Any) -> Any:
    """The model's output."""
    with torch.no_grad():
        if isinstance(inputs, Mapping):
            return model(**copy.deepcopy(dict(inputs)))
        return model(*copy.deepcopy(inputs)) if isinstance(inputs, tuple) else model(inputs)


def said(error: BaseException) -> str:
    """Type and text of an error."""
    return f"{type(error).__name__}: {error}"[:3000]


def traced(error: Exception) -> str:
    """The same with the last frames."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return said(error) + " <- " + " <- ".join(f"{f.filename.split('/')[-1]}:{f.lineno}" for f in reversed(frames))


def random_plan(groups: Any, seed: int) -> Any:
    """Uneven ratios between 0 and 0.8 per group, moved to the nearest counts that satisfy the equations."""
    from secateur.schema.plan import Plan

    chance = random.Random(seed)
    counts = nearest(groups, [1 - chance.uniform(0.0, HIGHEST_RATIO) for _ in groups.groups])
    kept = tuple(tuple(sorted(chance.sample(range(g.n_units), c))) for g, c in zip(groups.groups, counts, strict=True))
    return Plan(kept=kept, names=tuple(g.name for g in groups.groups), n_units=tuple(g.n_units for g in groups.groups))


def nearest(groups: Any, fractions: Sequence[float]) -> Sequence[int]:
    """Counts that satisfy the equations, nearest to these fractions of the units."""
    from secateur._counts import project, system_of

    target = [max(g.least, g.n_units * f) for g, f in zip(groups.groups, fractions, strict=True)]
    if groups.equations:
        return project(system_of(groups), target)
    return [max(1, round(t)) for t in target]


def reach(groups: Any) -> float:
    """The fraction of parameters that goes when every group loses the same, as near as the equations let it."""
    counts = nearest(groups, [1 - UNIFORM_RATIO] * len(groups.groups))
    return _gone(groups.costs, [g.n_units for g in groups.groups], counts)


def allowed(graph: Any) -> float:
    """The same from the labels alone: no equations, nothing frozen because of an integer of the forward."""
    from secateur import _couple, ops

    kernel, environments = _couple._label_all(graph, ops.RULES)
    _couple._freeze_unexecuted(kernel, graph)
    _couple._freeze_opaque(kernel, graph, environments)
    solved = _couple._solve(kernel, graph, _couple._demands(graph), environments)
    full = [len(units) for units in solved.units_of_group]
    kept = [max(1, round(n * (1 - UNIFORM_RATIO))) for n in full]
    return _gone(_couple._params(graph, solved), full, kept)


def _gone(terms: Sequence[Any], full: Sequence[int], kept: Sequence[int]) -> float:
    before = after = 0.0
    for term in terms:
        if term.what == "params":
            before += term.coefficient * _extents(term.extents, full)
            after += term.coefficient * _extents(term.extents, kept)
    return 1 - after / before if before else 0.0


def _extents(extents: Sequence[Any], counts: Sequence[int]) -> float:
    product = 1.0
    for e in extents:
        product *= (e.fixed + sum(m * counts[g] for g, m in e.terms)) / e.divisor
    return product
