"""One pass over the data that collects everything several criteria need: named statistics, units first.

The gate of unit u multiplies everything that reads the unit: all elements of its `read` members by 1 - t. At t = 1
the unit is gone, whatever stands before it. Its per-example gradient is

    g[n, u] = d loss[n] / d gate[u] = sum over the read elements of u of w * d loss[n] / d w

A group that nothing reads (the halves of an inner product, queries and keys) is gated where it is written: at the
first parameter that writes it and that parameter's bias; the other factor is left as it is.

Statistics, per group (U units, P elements of a unit, padded with 0):

    units            [U]     global numbers of the units
    write_weights    [U, P]  weights that produce the unit (with biases);  read_weights: that consume it;
                             scale_weights: that multiply it element by element (norms' scales, not their shifts);
                             all_weights: all of these and the shifts
    write_gradients  [U, P]  gradient of the mean loss at write_weights, nats per unit of weight; likewise
                             read_gradients, scale_gradients, all_gradients
    n                []      examples, discounted for uneven weights: (sum w)^2 / sum w^2
    gate_mean        [U]     mean over examples of g, nats
    gate_moments     [U, 4]  means of g, g^2, g^3, g^4
    gate_absolute    [U]     mean of |g|
    gate_expected    [U, 4]  means of e, e^2, g e, g^2 e, where e is what g is expected to be from the model's own
                             prediction: the gate gradient of `Task.tempered`, times the one factor (surer than right:
                             positive; less sure: negative) with which it explains the losses' gradient along the
                             model's output
    gate_unexpected  []      the share of the squared means of g - e, summed over all units, that is not noise of the
                             examples: 1 - sum of squared standard errors / sum of squared means, at least n/(n + 2000)
    gate_projected   [U, 5]  means of s, s^2, g s, g^2 s, e s with s the part of the losses' curvature (Hessian H by the
                             model's output) that lies along the direction t in which `Task.tempered` has its
                             gradient: s = t'Ht / |t|^4 (t'Ju)^2, where t'Ju is the gate gradient of the tempered losses
    projected_share  []      how much of the trace of H, summed over examples, that part is: t'Ht / |t|^2 over tr H
    gate_sampled/k   [U, 5]  means of s, s^2, g s, g^2 s, e s with s = mean over k draws of (gate gradient of the
                             task's curvature draw)^2: an unbiased estimate of the Gauss-Newton diagonal per example;
                             e s is 0 unless gate_expected is collected as well
    curvature_ratio  []      trace of the losses' Hessian over their squared gradient, both with respect to the model's
                             output and summed over examples: 1 where the model's probabilities are right, and what
                             the empirical Fisher information must be multiplied with where they are not
    gate_hessian/k   [U, 2]  Hutchinson estimate of the Hessian diagonal of the mean loss over gates, k probes per
                             batch, and the variance of that estimate
    activation       [U, 4]  of what the readers of the unit see: mean, mean square, mean absolute value, share of
                             exact zeros; over examples and positions, averaged over the readers' channels
    input_norm       [U, P]  root mean square of the input that each read element multiplies
    gate_shift       [U]     what g[n, u] would be, on average, if the readers saw the unit's mean in place of the unit:
                             sum over positions of mean(x) * d loss[n] / d x
    gate_samples/m   [N, U]  g of at most m examples, a random sample, over sqrt(N): its Gram matrix is the Fisher
                             information of the gates. Those whose content hashes are smallest are kept, so that parts
                             add in any order
    feature_rank     [U]     rank of the unit's map [H, W] as convolutions read it, averaged over examples and readers
    write_flow       [U, P]  |w| dR/d|w|, where R is the sum of the outputs of a network whose weights and buffers are
                             replaced by their absolute values, for an input of ones, in float64; likewise read_flow ...
    write_hessian_products  [U, P]  H g: Hessian of the mean loss, over the weights of all groups, times its gradient;
                             two passes over the data, so parts do not add. Likewise read_hessian_products ...

How: where a reader is a linear map or an ungrouped convolution that is called as such, its input x is tapped, and
g[n, u] = sum over positions and channels of x * dloss/dx: one forward, one backward without weight gradients, for
the whole batch. On the first batch it is checked that examples do not mix and that the sums equal autograd's weight
gradients; groups that fail, or whose readers are something else, are done one example at a time
(`torch.func.vmap`, or a plain loop where an operation has no batching rule). All ways give the same numbers.

Index conventions: n example, u unit, p element of a unit, c channel.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from secateur import _store
from secateur._evaluate import (
    Progress,
    batch_hashes,
    batch_size,
    check_batches,
    check_losses,
    combine_hashes,
    device_of,
    examples,
    leaves,
    length,
    map_leaves,
    mode,
    to_device,
    weights_of,
)
from secateur._kernels import without_cudnn
from secateur._recurrence import RECURRENT, Linear, Sink, Watch, unrolled
from secateur._surgery import fingerprint_weights
from secateur._units import matrix, offsets
from secateur.errors import (
    EmptyData,
    FileCorrupt,
    InputError,
    MissingStatistic,
    NonFinite,
    SecateurError,
    StaleArtifact,
    TaskShapeError,
)
from secateur.schema.groups import Group, Groups, Member
from secateur.schema.task import Batch, Batches, Task

ROLES: Mapping[str, tuple[str, ...] | None] = {
    "write": ("write", "both"),
    "read": ("read", "both"),
    "scale": ("scale",),
    "all": None,
}
FREE = ("units", "n", *(f"{role}_weights" for role in ROLES))
PASS = (
    *("gate_mean", "gate_moments", "gate_absolute", "gate_expected", "gate_unexpected", "gate_sampled", "gate_hessian"),
    *("gate_projected", "projected_share", "curvature_ratio", "gate_shift", "gate_samples"),
    *("activation", "input_norm", "feature_rank"),
    *(f"{role}_{what}" for role in ROLES for what in ("gradients", "flow", "hessian_products")),
)
PER_EXAMPLE = (
    *("gate_moments", "gate_absolute", "gate_expected", "gate_unexpected", "gate_sampled", "gate_samples"),
    *("gate_projected", "projected_share", "gate_shift", "curvature_ratio"),
)


# Examples on which the noise of a unit's gate gradient is as large as what no prediction explains of its mean: about so
# many on the ResNet-20 of docs/scores.md, on training and on test images.
TYPICAL = 2000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """Sums over examples; two of them for two parts of the data add up to that of the whole.

    Attributes:
        sums: name -> [U in all] or [U in all, k] float64, weighted sums over examples.
        params: name -> canonical parameter name -> sums in the parameter's shape (or [axis, k]).
        rows: [at most m, 1 + U in all] float64: weight and gate gradients of the sampled examples.
        keys: their content hashes, ascending.
        missing: statistic -> groups for which it could not be collected.
        n: examples.  weight, weight_sq: sums of their weights and squared weights.
        data: sum of the examples' content hashes, as hex.
        needs: what was asked for.
    """

    sums: Mapping[str, Tensor]
    params: Mapping[str, Mapping[str, Tensor]]
    rows: Tensor | None
    keys: tuple[str, ...]
    missing: Mapping[str, frozenset[int]]
    n: int
    weight: float
    weight_sq: float
    data: str
    needs: tuple[str, ...]
    per_example: bool


def merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of both parts of the data.

    Raises:
        InputError: they hold different statistics.
    """
    if set(a.needs) != set(b.needs) or a.per_example != b.per_example:
        raise InputError("two different sets of statistics cannot be added", expected=a.needs, got=b.needs)
    rows, keys = _lowest([(a.rows, a.keys), (b.rows, b.keys)], _count_of("gate_samples", a.needs))
    return Statistics(
        rows=rows,
        keys=keys,
        sums=_add(a.sums, b.sums),
        params={k: _add(a.params.get(k, {}), b.params.get(k, {})) for k in {*a.params, *b.params}},
        missing={k: a.missing.get(k, frozenset()) | b.missing.get(k, frozenset()) for k in {*a.missing, *b.missing}},
        n=a.n + b.n,
        weight=a.weight + b.weight,
        weight_sq=a.weight_sq + b.weight_sq,
        data=combine_hashes([a.data, b.data]),
        needs=a.needs,
        per_example=a.per_example,
    )


def _add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: a[k] + b[k] if k in a and k in b else (a[k] if k in a else b[k]) for k in {**a, **b}}


def _lowest(parts: Sequence[tuple[Tensor | None, tuple[str, ...]]], most: int) -> tuple[Tensor | None, tuple[str, ...]]:
    """The rows with the smallest keys of several parts: a uniform sample, whatever the order of the parts."""
    rows = [r for r, _ in parts if r is not None]
    if not rows:
        return None, ()
    keys = [k for _, own in parts for k in own]
    chosen = sorted(range(len(keys)), key=keys.__getitem__)[:most]
    return torch.cat(rows)[chosen], tuple(keys[i] for i in chosen)


def can_give(task: Task, need: str) -> bool:
    """Whether a task has what this statistic is made from."""
    base = need.partition("/")[0]
    made_from = {"gate_sampled": task.curvature, **dict.fromkeys(_EXPECTED, task.tempered)}
    return (task.per_example or base not in PER_EXAMPLE) and made_from.get(base, task) is not None


def check_needs(needs: Sequence[str], task: Task) -> None:
    """Refuse statistics that do not exist, or that this task cannot give.

    Raises:
        MissingStatistic: naming it.
    """
    for need in needs:
        base = need.partition("/")[0]
        if base not in FREE and base not in PASS:
            raise MissingStatistic(
                f"there is no statistic {need!r}", expected=", ".join((*FREE, *PASS)), todo="see secateur/_stats.py"
            )
        if base in PER_EXAMPLE and not task.per_example:
            raise MissingStatistic(
                f"{base} needs one loss per example, and task {task.name!r} has only a mean over the batch",
                expected="a task with per-example losses",
                got="tasks.from_mean",
                todo="write sc.Task(forward=..., losses=...) with reduction='none', or use criteria.taylor() "
                "or criteria.hutchinson(), which need only the mean",
            )
        if base == "gate_sampled" and task.curvature is None:
            raise MissingStatistic(
                f"{base} needs the curvature of the losses at the output, and task {task.name!r} does not say it",
                todo="give sc.Task(curvature=...), or use a criterion with the empirical Fisher",
            )
        if base in _EXPECTED and task.tempered is None:
            raise MissingStatistic(
                f"{base} needs the model's own prediction, and task {task.name!r} does not say how to read it",
                todo="give sc.Task(tempered=...), or use criteria.obd(first='plain')",
            )


def collect(
    model: nn.Module,
    groups: Groups,
    batches: Batches,
    task: Task,
    needs: Sequence[str],
    *,
    seed: int = 0,
    device: torch.device | None = None,
    exact: bool = False,
    store: str | Path | None = None,
    resume: bool = False,
    every: int = 16,
    progress: Progress | None = None,
) -> Statistics:
    """Everything in `needs`, in one pass over the data, in memory that depends on model and batch size only.

    The model runs in eval mode; modes, gradients and flags are restored, also when something fails.

    Args:
        seed: of the random probes and drawn labels.
        exact: one example at a time for all groups: slow, and the yardstick of the fast way.
        store: file that is replaced after `every` batches and at the end, so that a killed pass can go on.
        resume: the store may hold a part of the same pass; its batches are read again, but not computed.

    Raises:
        OneShotIterable, EmptyData, TaskShapeError, NonFinite, MissingStatistic: with the reason.
        InputError: the store is not empty and `resume` was not asked for, or a statistic does not add.
        StaleArtifact: the store is of another model, task, data set or setting.
    """
    check_needs(needs, task)
    chosen = {n for n in needs if n.partition("/")[0] in PASS}
    if any(n.endswith("_hessian_products") for n in chosen):
        chosen.add("all_gradients")
    needs = tuple(sorted(chosen))
    if not needs:
        return _nothing(needs, task)
    check_batches(batches)
    where = device or device_of(model)
    total = length(batches)
    plan = _plan(model, groups, needs, exact=exact)
    stats = _nothing(needs, task)
    # On the CPU whatever the model's device: the same numbers are drawn everywhere.
    generator = torch.Generator().manual_seed(seed)
    twice = [n for n in needs if n.endswith("_hessian_products")]
    header = _header(model, groups, task, needs, seed=seed, exact=exact) if store is not None else {}
    done = 0
    if store is not None:
        if twice:
            raise InputError(f"{twice[0]} needs two passes over the data: parts of it do not add", where="store")
        stats, done = _resumed(store, header, stats, plan, generator, where, resume=resume)
    skipped: list[str] = []
    index = -1
    with torch.inference_mode(False), torch.enable_grad(), mode(model), _recurrent_gradients(where):
        for index, raw in enumerate(batches):
            if index < done:
                skipped = [combine_hashes([*skipped, *batch_hashes(raw)])]
                continue
            if index == done:
                _check_skipped(skipped, stats, store)
            batch = to_device(raw, where)
            if index == 0 and task.per_example:
                plan = _rehearsed(model, groups, plan, batch, task, needs)
            part = _batch_statistics(model, groups, plan, batch, task, needs, generator, f"batch {index}")
            if index == 0 and any(n.endswith("_flow") for n in needs):
                flow = _flow(model, _members_of(groups, _parameters(model), list(ROLES)), batch, task)
                ones = torch.ones((), dtype=torch.float64)
                part = dataclasses.replace(
                    part, sums={**part.sums, "flow_runs": ones}, params={**part.params, "flow": flow}
                )
            stats = merge(stats, part)
            if store is not None and (index + 1) % every == 0:
                _save(store, header, stats, plan, generator, batches=index + 1, finished=False)
            if progress is not None:
                progress("score", index + 1, total)
            if all(n.endswith("_flow") for n in needs):
                break  # whatever the data, the flow is the same
        if index < done:
            _check_skipped(skipped if index + 1 == done else [*skipped, "0"], stats, store)
        if twice:
            products = _hessian_products(model, groups, stats, batches, task, where)
            stats = dataclasses.replace(stats, params={**stats.params, "hessian_products": products})
    if stats.n == 0:
        raise EmptyData(
            "the data holds no example",
            where="batches",
            todo="if it worked once before, the data can be iterated only once: pass the DataLoader itself",
        )
    if stats.weight <= 0:
        raise InputError("all examples have weight 0", where="Task.weights")
    if store is not None:
        _save(store, header, stats, plan, generator, batches=index + 1, finished=True)
    return stats


def _nothing(needs: tuple[str, ...], task: Task) -> Statistics:
    return Statistics(
        sums={},
        params={},
        rows=None,
        keys=(),
        missing={},
        n=0,
        weight=0.0,
        weight_sq=0.0,
        data=combine_hashes([]),
        needs=needs,
        per_example=task.per_example,
    )


# Statistics in a file: what a killed pass goes on from, and what passes over parts of the data leave to be added


FORMAT = 1


def load(path: str | Path) -> tuple[dict[str, Any], Statistics]:
    """(header, statistics) of a store. The header names model, weights, task and settings, and what is done.

    Raises:
        FileCorrupt: missing, truncated, changed, or something else.
    """
    tensors = _store.load_tensors(path)
    try:
        about = json.loads(bytes(tensors.pop("about").numpy()))
        assert about["format"] == FORMAT
        params: dict[str, dict[str, Tensor]] = {kind: {} for kind in about["params"]}
        for name, value in tensors.items():
            first, _, rest = name.partition("|")
            if first in params:
                params[first][rest] = value
        stats = Statistics(
            sums={k.removeprefix("sums|"): v for k, v in tensors.items() if k.startswith("sums|")},
            params=params,
            rows=tensors.get("rows"),
            keys=tuple(about["keys"]),
            missing={k: frozenset(v) for k, v in about["missing"].items()},
            n=about["n"],
            weight=about["weight"],
            weight_sq=about["weight_sq"],
            data=about["data"],
            needs=tuple(about["header"]["needs"]),
            per_example=about["per_example"],
        )
        return {**about, "generator": tensors["generator"]}, stats
    except (KeyError, TypeError, ValueError, AssertionError):
        raise FileCorrupt("this file holds no statistics", where=str(path), todo="make it again") from None


def merge_stores(model: nn.Module, groups: Groups, stores: Sequence[str | Path]) -> Statistics:
    """The statistics of all parts of the data.

    Raises:
        StaleArtifact, InputError, FileCorrupt: a part that does not belong to the others, or is not finished.
    """
    total: Statistics | None = None
    seen: dict[tuple[str, int], str | Path] = {}
    header: Mapping[str, Any] = {}
    for path in stores:
        about, stats = load(path)
        if total is None:
            own = {"structure": groups.structure, "groups": _groups_hash(groups), "weights": fingerprint_weights(model)}
            header = {**about["header"], **own}
        check_header(path, header, about["header"], but=("seed",))
        if not about["finished"]:
            raise InputError(
                "a part is not finished", where=str(path), todo="go on with it: score(..., store=, resume=True)"
            )
        if (stats.data, stats.n) in seen:
            raise InputError(
                "the same examples were given twice", where=str(path), got=f"those of {seen[stats.data, stats.n]}"
            )
        seen[stats.data, stats.n] = path
        total = stats if total is None else merge(total, stats)
    assert total is not None
    return total


def _save(
    path: str | Path,
    header: Mapping[str, Any],
    stats: Statistics,
    plan: _Plan,
    generator: torch.Generator,
    *,
    batches: int,
    finished: bool,
) -> None:
    about = {
        "format": FORMAT,
        "header": header,
        "batches": batches,
        "finished": finished,
        "tapped": sorted(plan.tapped),
        "vmap": plan.vmap,
        "params": sorted(stats.params),
        "keys": stats.keys,
        "missing": {k: sorted(v) for k, v in stats.missing.items()},
        "n": stats.n,
        "weight": stats.weight,
        "weight_sq": stats.weight_sq,
        "data": stats.data,
        "per_example": stats.per_example,
    }
    tensors = {f"sums|{k}": v for k, v in stats.sums.items()}
    tensors |= {f"{kind}|{k}": v for kind, values in stats.params.items() for k, v in values.items()}
    tensors |= {} if stats.rows is None else {"rows": stats.rows}
    text = json.dumps(about, sort_keys=True).encode()
    tensors |= {"about": torch.frombuffer(bytearray(text), dtype=torch.uint8), "generator": generator.get_state()}
    _store.save_tensors(path, tensors)


def _header(
    model: nn.Module, groups: Groups, task: Task, needs: Sequence[str], *, seed: int, exact: bool
) -> dict[str, Any]:
    return {
        "structure": groups.structure,
        "groups": _groups_hash(groups),
        "weights": fingerprint_weights(model),
        "task": task.name,
        "needs": list(needs),
        "seed": seed,
        "exact": exact,
    }


def _groups_hash(groups: Groups) -> str:
    return hashlib.sha256(repr([(g.name, g.members) for g in groups.groups]).encode()).hexdigest()


def check_header(
    path: str | Path, header: Mapping[str, Any], got: Mapping[str, Any], *, but: Sequence[str] = ()
) -> None:
    """Refuse statistics of something else.

    Raises:
        StaleArtifact: naming what differs.
    """
    for key, value in header.items():
        if key not in but and got.get(key) != value:
            raise StaleArtifact(
                "the store holds statistics of something else",
                where=f"{path}: {key}",
                expected=value,
                got=got.get(key),
                todo="use another file; this one belongs to another model, task or setting",
            )


def _resumed(
    path: str | Path,
    header: Mapping[str, Any],
    nothing: Statistics,
    plan: _Plan,
    generator: torch.Generator,
    where: torch.device | None,
    *,
    resume: bool,
) -> tuple[Statistics, int]:
    """What the store holds, and the batches it is made of; plan and generator are put where they were."""
    if not Path(path).exists():
        return nothing, 0
    if not resume:
        raise InputError(
            "the store already holds statistics",
            where=str(path),
            todo="pass resume=True to go on with them, or another file",
        )
    about, stats = load(path)
    check_header(path, header, about["header"])
    plan.tapped = set(about["tapped"])
    plan.vmap = about["vmap"]
    plan.verified = set(range(len(plan.offsets) - 1))
    generator.set_state(about["generator"])
    on_device = {
        kind: values if kind != "gradients" else {k: v.to(where) for k, v in values.items()}
        for kind, values in stats.params.items()
    }
    return dataclasses.replace(stats, params=on_device), int(about["batches"])


def _check_skipped(skipped: Sequence[str], stats: Statistics, store: str | Path | None) -> None:
    if combine_hashes(list(skipped)) != stats.data:
        raise StaleArtifact(
            "the first batches are not those that the store was made of",
            where=str(store),
            expected="the same examples in the same order of batches",
            todo="turn shuffling and random augmentation off, or start with another file",
        )


# From sums to the statistics of one group


def of_group(
    stats: Statistics,
    model: nn.Module,
    groups: Groups,
    g: int,
    needs: Sequence[str],
    common: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The statistics of group g by name, units first; means, not sums.

    Args:
        common: is filled with those that all groups share; given again, they are taken from there.

    Raises:
        MissingStatistic: one of `needs` was not collected for this group.
    """
    group = groups.groups[g]
    lo = offsets(groups)[g]
    units = slice(lo, lo + group.n_units)
    names = {m.param for m in group.members}
    found: dict[str, Tensor] = {
        "units": torch.arange(units.start, units.stop),
        "n": torch.tensor(stats.weight**2 / stats.weight_sq if stats.weight_sq else 0.0, dtype=torch.float64),
    }
    for need in needs:
        base = need.partition("/")[0]
        if g in stats.missing.get(base, frozenset()):
            raise MissingStatistic(
                f"{base} could not be collected for group {group.name!r}",
                where=group.module or group.name,
                expected="readers that are linear maps or ungrouped convolutions (for feature_rank: 2-D convolutions)",
                todo="use a criterion that does not look at activations, or leave the group out with couple(freeze=)",
            )
        if base.endswith("_weights"):
            found[base] = _weights(model, groups, g, ROLES[base.removesuffix("_weights")])
        elif base.endswith("_gradients"):
            sums = {k: v / stats.weight for k, v in stats.params["gradients"].items() if k in names}
            found[base] = matrix(groups, g, sums, ROLES[base.removesuffix("_gradients")]).cpu().double()
        elif base.endswith("_flow"):
            sums = {k: v / stats.sums["flow_runs"] for k, v in stats.params["flow"].items() if k in names}
            found[base] = matrix(groups, g, sums, ROLES[base.removesuffix("_flow")])
        elif base.endswith("_hessian_products"):
            sums = {k: v / stats.weight for k, v in stats.params["hessian_products"].items() if k in names}
            found[base] = matrix(groups, g, sums, ROLES[base.removesuffix("_hessian_products")]).cpu().double()
        elif base == "gate_samples":
            assert stats.rows is not None
            rows = stats.rows[: _count(need)]
            found[base] = rows[:, 1:][:, units] * (rows[:, :1] / rows[:, 0].sum()).sqrt()
        elif base == "gate_shift":
            found[base] = _shift(stats, group)
        elif base == "feature_rank":
            found[base] = _per_unit(stats.params["ranks"], group)[:, 0]
        elif base == "input_norm":
            found[base] = _input_norm(stats, model, groups, g)
        elif base == "activation":
            found[base] = _activation(stats, groups.groups[g])
        elif base == "gate_hessian":
            scale = torch.tensor([1.0, 1.0 / stats.weight], dtype=torch.float64)
            found[base] = stats.sums[need][units] / stats.weight * scale
        elif base in _COMMON:
            common = {} if common is None else common
            if base not in common:
                common[base] = _COMMON[base](stats, found["n"])
            found[base] = common[base]
        elif base == "gate_expected":
            found[base] = _expected(stats, units)
        elif base in ("gate_sampled", "gate_projected"):
            found[base] = stats.sums[need][units] / stats.weight * _factor(stats) ** torch.tensor([0, 0, 0, 0, 1])
        elif base in PASS:
            found[base] = stats.sums[need][units] / stats.weight
    return found


def check_weights(model: nn.Module, groups: Groups) -> None:
    """Refuse NaN and infinity in what can be pruned.

    Raises:
        NonFinite: naming the parameter.
    """
    names = {m.param for g in groups.groups for m in g.members}
    for name, value in _parameters(model).items():
        if name in names and not bool(torch.isfinite(value).all()):
            raise NonFinite("a weight is not finite", where=name, todo="repair the checkpoint before pruning it")


def _weights(model: nn.Module, groups: Groups, g: int, roles: tuple[str, ...] | None) -> Tensor:
    names = {m.param for m in groups.groups[g].members if roles is None or m.role in roles}
    if roles == ROLES["scale"]:  # by torch's naming, the only thing that tells a scale from a shift
        names = {n for n in names if n.rpartition(".")[2] != "bias"}
    tensors = {k: v.detach().double() for k, v in _parameters(model).items() if k in names}
    return matrix(groups, g, tensors, roles).cpu()


def _ratio(stats: Statistics) -> Tensor:
    trace, squares = stats.sums["curvature_ratio"].unbind()
    if squares <= 1e-10 * trace.abs():  # what is left of zero in float32
        raise MissingStatistic(
            "the losses have no gradient: the model is at the minimum of every example's loss",
            expected="a loss that is not yet zero; that of tasks.match_output(model) is, for the model itself",
            todo="use criteria.obd(curvature='sampled'), whose labels are drawn from the model",
        )
    if trace <= 0:
        raise MissingStatistic(
            "the losses have no positive curvature with respect to the model's output",
            expected="a loss such as cross-entropy or squared error, computed from the output in Task.losses",
            got=f"a Hessian with trace {float(trace):g}",
            todo=_EMPIRICAL,
        )
    return trace / squares


def _projected_share(stats: Statistics) -> Tensor:
    """Between 0 and 1: a projection has no more trace than the whole, unless the whole is estimated."""
    trace, _ = stats.sums["curvature_ratio"].unbind()
    return (stats.sums["projected_share"] / trace).clamp(0, 1) if trace > 0 else torch.zeros((), dtype=torch.float64)


def _factor(stats: Statistics) -> Tensor:
    """What the gradient of the tempered losses is multiplied with to be, along the output, that of the losses."""
    losses, tempered = stats.sums.get("slopes", torch.zeros(2, dtype=torch.float64)).unbind()
    return losses / tempered if tempered != 0 else tempered  # all logits equal: the prediction expects nothing


def _expected(stats: Statistics, units: slice = slice(None)) -> Tensor:
    """The statistic gate_expected, [U, 4]."""
    return stats.sums["gate_expected"][units] / stats.weight * _factor(stats) ** torch.tensor([1, 2, 1, 1])


def unexpected(moments: Tensor, expected: Tensor, n: Tensor) -> Tensor:
    """One share for all units, weighted by what they are worth: that of James & Stein 1961, or n / (n + 2,000).

    A share for each group would follow its own noise: a group has few units, and their noise is correlated. So is that
    of all units: a few hard examples move them together, and the share of one sample may be far too small by accident,
    which costs more than one that is too large. So it is at least what it usually is (`TYPICAL`).

    Args:
        moments, expected: [U in all, 4], the statistics gate_moments and gate_expected.  n: examples.
    """
    g, gg = moments.unbind(1)[:2]
    e, ee, ge, _ = expected.unbind(1)
    squares = (g - e).square()
    noise = (gg - 2 * ge + ee - squares).clamp(min=0) / n
    total = squares.sum()
    usual = n / (n + TYPICAL)
    return torch.maximum(1 - noise.sum() / total, usual) if total > 0 else torch.ones_like(total)


# statistics that all groups share, from those of all and the number of examples
_COMMON: Mapping[str, Callable[[Statistics, Tensor], Tensor]] = {
    "curvature_ratio": lambda stats, n: _ratio(stats),
    "projected_share": lambda stats, n: _projected_share(stats),
    "gate_unexpected": lambda stats, n: unexpected(stats.sums["gate_moments"] / stats.weight, _expected(stats), n),
}


def _input_norm(stats: Statistics, model: nn.Module, groups: Groups, g: int) -> Tensor:
    spread: dict[str, Tensor] = {}
    weights = _parameters(model)
    for member in groups.groups[g].members:
        if member.role in ("read", "both"):
            count, _, squares, _, _ = stats.params["inputs"][member.param].unbind(1)
            shape = [-1 if a == member.axis else 1 for a in range(weights[member.param].ndim)]
            spread[member.param] = (squares / count).sqrt().view(shape).expand(weights[member.param].shape)
    return matrix(groups, g, spread, ROLES["read"]).double()


def _activation(stats: Statistics, group: Group) -> Tensor:
    """[U, 4]: mean, mean square, mean absolute value, share of zeros."""
    return _per_unit(stats.params["inputs"], group)


def _per_unit(lines: Mapping[str, Tensor], group: Group) -> Tensor:
    """Means over observations of what is recorded at the readers, [channel, 1 + k] with the count first: [U, k]."""
    total = torch.zeros(())
    channels = torch.zeros(group.n_units, 1, dtype=torch.float64)
    for member in group.members:
        if member.role in ("read", "both") and member.param in lines:
            line = lines[member.param]
            owner = torch.tensor(member.units)
            inside = owner >= 0
            if total.ndim == 0:
                total = torch.zeros(group.n_units, line.shape[1] - 1, dtype=torch.float64)
            total.index_add_(0, owner[inside], (line[:, 1:] / line[:, :1])[inside])
            channels.index_add_(0, owner[inside], torch.ones(int(inside.sum()), 1, dtype=torch.float64))
    return total / channels.clamp(min=1)


def _shift(stats: Statistics, group: Group) -> Tensor:
    total = torch.zeros(group.n_units, dtype=torch.float64)
    for member in group.members:
        if member.role in ("read", "both"):
            line = stats.params["inputs"][member.param]
            owner = torch.tensor(member.units)
            inside = owner >= 0
            pull = stats.params["shifts"].get(member.param)
            if pull is not None:  # else it came to the tap of another reader of the same
                total.index_add_(0, owner[inside], (line[:, 1] / line[:, 0] * pull / stats.weight)[inside])
    return total


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters (not buffers: running statistics are no weights) by canonical name."""
    return dict(model.named_parameters())


# What is gated, and how


class _Gate(NamedTuple):
    """One axis of one parameter that the gates of a group multiply.

    owner: [length of the axis] global unit of each index, or -1.  span: the same where these are consecutive numbers.
    names: under which the parameter is read.
    """

    param: str
    axis: int
    owner: Tensor
    span: slice | None
    names: tuple[str, ...]
    group: int


@dataclass(slots=True, kw_only=True)
class _Plan:
    """What one pass learns on its first batch; lives as long as the pass.

    alike: parameter -> a number that it shares with those that have the same gates along what they read.
    """

    gates: tuple[_Gate, ...]
    alike: Mapping[str, int]
    n_units: int
    offsets: tuple[int, ...]
    readable: frozenset[int]
    tapped: set[int]
    verified: set[int] = field(default_factory=set)
    layouts: dict[tuple[int, int], _Layout] = field(default_factory=dict)
    vmap: bool = True


Order = Literal["major", "minor"]
ORDERS: tuple[Order, ...] = ("major", "minor")


class _Layout(NamedTuple):
    """Where the examples stand in a tapped input: axis, and whether they vary slowest or fastest along it."""

    axis: int
    order: Order


def gate_members(group: Group) -> tuple[Member, ...]:
    """The members whose elements the gate of a unit multiplies: its readers, or the first writer and its bias."""
    readers = tuple(m for m in group.members if m.role in ("read", "both"))
    if readers:
        return readers
    writers = [m for m in group.members if m.role == "write"]
    if not writers:
        return ()
    first = max(writers, key=lambda m: m.param == group.name or m.param.rpartition(".")[0] == group.name)
    home = first.param.rpartition(".")[0]
    chosen = [m for m in writers if m.param.rpartition(".")[0] == home]
    # One weight and its bias; a second weight in the same module (an LSTM's other matrix) is another factor.
    bias = first.param.replace("weight", "bias")
    return tuple(m for m in chosen if m.param in (first.param, bias))


def _plan(model: nn.Module, groups: Groups, needs: Sequence[str], *, exact: bool) -> _Plan:
    start = offsets(groups)
    gates, readable = [], set()
    parameters = _parameters(model)
    for g, group in enumerate(groups.groups):
        members = [m for m in gate_members(group) if m.param in parameters]
        reads = bool(members) and all(m.role in ("read", "both") for m in members)
        # Two gated axes of one parameter would count the elements where they meet twice in a tap.
        single = len({m.param for m in members}) == len(members)
        if reads and single and not exact:
            readable.add(g)
        for m in members:
            units = torch.tensor(m.units, dtype=torch.long)
            owner = torch.where(units >= 0, units + start[g], units)
            first = int(owner[0])
            whole = first >= 0 and bool((owner == torch.arange(first, first + len(owner))).all())
            span = slice(first, first + len(owner)) if whole else None
            gates.append(_Gate(m.param, m.axis, owner, span, m.readers or (m.param,), g))
    found: dict[str, tuple[Any, ...]] = {}
    for gate in gates:
        found[gate.param] = (*found.get(gate.param, ()), gate.group, tuple(gate.owner.tolist()))
    numbers = {owners: number for number, owners in enumerate(dict.fromkeys(found.values()))}
    return _Plan(
        gates=tuple(gates),
        alike={param: numbers[owners] for param, owners in found.items()},
        n_units=start[-1],
        offsets=start,
        readable=frozenset(readable),
        tapped=set(readable),
    )


# The statistics of one batch


class _Found(NamedTuple):
    """What one batch gave.

    losses: [N].  gates: [N, U].  tempered: [N, U].  drawn: k of [N, U].  inputs: parameter -> [axis, 5].
    ranks: parameter -> [axis, 2].  shifts: parameter -> [axis].  slopes: [2], see `_slope`.  bend: see `_bend`.
    """

    losses: Tensor
    gates: Tensor | None
    tempered: Tensor | None
    drawn: tuple[Tensor, ...]
    gradients: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    ranks: Mapping[str, Tensor]
    shifts: Mapping[str, Tensor]
    slopes: Tensor | None
    bend: _Bend | None


class _Bend(NamedTuple):
    """Second derivatives of the losses by the model's output, all float64; t is the tempered losses' gradient there.

    trace: sum over n of w tr H[n].  squares: sum over n of w |gradient of loss n|^2.  along: t'Ht / |t|^2 per example,
    [N].  direction: |t|^2 per example, [N].  Both are 0 where the output does not say whose it is, or t is not known.
    """

    trace: Tensor
    squares: Tensor
    along: Tensor
    direction: Tensor


def _batch_statistics(
    model: nn.Module,
    groups: Groups,
    plan: _Plan,
    batch: Batch,
    task: Task,
    needs: tuple[str, ...],
    generator: torch.Generator,
    where: str,
) -> Statistics:
    found = _measure(model, groups, plan, batch, task, needs, generator, where)
    n = len(found.losses)
    w = weights_of(task, batch, n, where=where)
    sums: dict[str, Tensor] = {}
    if found.gates is not None:
        g = found.gates.cpu().double()
        _check_gates(g, groups, plan, where)
        sums["gate_mean"] = w @ g
        if task.per_example:
            square = g * g
            sums["gate_moments"] = torch.stack([w @ g, w @ square, w @ (square * g), w @ (square * square)], dim=1)
            sums["gate_absolute"] = w @ g.abs()
        bend = found.bend
        if bend is not None:
            sums["curvature_ratio"] = torch.stack([bend.trace, bend.squares])
        e = torch.zeros_like(g)
        if found.tempered is not None and found.slopes is not None:
            e = found.tempered.cpu().double()
            _check_gates(e, groups, plan, where)
            sums["gate_expected"] = torch.stack([w @ v for v in (e, e * e, g * e, g * g * e)], dim=1)
            sums["slopes"] = found.slopes
            if bend is not None:
                ratio = bend.along / bend.direction.clamp(min=1e-300)
                sums["gate_projected"] = _curved(w, g, e, ratio.unsqueeze(1) * e * e)
                sums["projected_share"] = w @ bend.along
        for need in needs:
            if need.partition("/")[0] == "gate_sampled":
                s = torch.stack([d.cpu().double().square() for d in found.drawn[: _count(need)]]).mean(0)
                _check_gates(s, groups, plan, where)
                sums[need] = _curved(w, g, e, s)
    for need in needs:
        if need.startswith("gate_hessian"):
            estimates = _hessian(model, plan, batch, task, _count(need), generator, w, where)
            _check_gates(estimates, groups, plan, where)
            each = estimates.mean(0)
            spread = estimates.var(0) / len(estimates) if len(estimates) > 1 else torch.zeros_like(each)
            total = w.sum()
            # The variance of a sum of batches is the sum of w^2 * variance; `of_group` undoes the scale.
            sums[need] = torch.stack([total * each, total.square() * spread], dim=1)
    everything = frozenset(range(len(groups.groups)))
    lacking = everything - frozenset(plan.tapped)
    mapped = {g for g in plan.tapped if any(m.param in found.ranks for m in gate_members(groups.groups[g]))}
    hashes = batch_hashes(batch)
    rows: Tensor | None = None
    keys: tuple[str, ...] = ()
    if (most := _count_of("gate_samples", needs)) and found.gates is not None:
        each = torch.cat([w.unsqueeze(1), found.gates.cpu().double()], dim=1)
        rows, keys = _lowest([(each, tuple(hashes))], most)
    return Statistics(
        sums=sums,
        params={"gradients": found.gradients, "inputs": found.inputs, "ranks": found.ranks, "shifts": found.shifts},
        rows=rows,
        keys=keys,
        missing={
            **dict.fromkeys(("activation", "input_norm", "gate_shift"), lacking),
            "feature_rank": everything - mapped,
        },
        n=n if task.per_example else int(w.sum()),
        weight=float(w.sum()),
        weight_sq=float(w.square().sum()),
        data=combine_hashes(hashes),
        needs=needs,
        per_example=task.per_example,
    )


def _curved(w: Tensor, g: Tensor, e: Tensor, s: Tensor) -> Tensor:
    """What is kept of a second derivative s beside g and e, [N, U] each: weighted sums, [U, 5]."""
    return torch.stack([w @ v for v in (s, s * s, g * s, g * g * s, e * s)], dim=1)


def _count(need: str) -> int:
    return int(need.partition("/")[2] or 1)


def _count_of(base: str, needs: Sequence[str]) -> int:
    """The largest k of `base/k` among the needs, 0 where there is none."""
    return max((_count(n) for n in needs if n.partition("/")[0] == base), default=0)


def _measure(
    model: nn.Module,
    groups: Groups,
    plan: _Plan,
    batch: Batch,
    task: Task,
    needs: Sequence[str],
    generator: torch.Generator,
    where: str,
) -> _Found:
    bases = {n.partition("/")[0] for n in needs}
    parameters = _parameters(model)
    gated = bool(bases & _GATED)
    wanted = [b.removesuffix("_gradients") for b in bases if b.endswith("_gradients")]
    names = _members_of(groups, parameters, wanted)
    draws = _count_of("gate_sampled", needs)
    first = not plan.verified
    if not task.per_example and first:
        _refuse_sums(model, batch, task)
    # The first batch is also differentiated by the tapped weights themselves, to compare.
    checked = [p.param for p in plan.gates if p.group in plan.tapped] if first and gated else []
    watched = gated or bool(bases & _SEEN)
    gradients: dict[str, Tensor] = {}
    gates: Tensor | None = None
    tempered: Tensor | None = None
    drawn: list[Tensor] = []
    shifts: dict[str, Tensor] = {}
    taps = _Taps(plan, parameters, watch=watched, record=bool(bases & _SEEN), ranks="feature_rank" in bases)
    taps.pull = "gate_shift" in bases
    spots: list[Tensor] = []
    t: list[Tensor | None] = []
    slopes: Tensor | None = None
    with _requiring(model, {*names, *checked}):
        with taps:
            out = task.forward(model, batch)
        if bases & _EXPECTED:
            out, spots = _with_spots(out, _viewed)
        losses = check_losses(task.losses(out, batch), task, where=where)
        n = len(losses)
        if not task.per_example and n != 1:
            raise TaskShapeError("a task with a mean over the batch returned several losses", where=where, got=n)
        w = weights_of(task, batch, n, where=where).to(losses.device, losses.dtype)
        even = task.weights is None or not task.per_example
        if gated:
            plan.tapped -= {g.group for g in plan.gates if g.param in taps.bad}
            _find_layouts(taps, plan, losses)
            # A graph that nothing asks again frees its activations on the way back, which is faster too.
            again = draws > 0 or bool(bases & _EXPECTED)
            # One pass gives the gradient of the weighted mean and, divided by its weight, each example's own. There
            # the weights (tokens) are small numbers, whatever they are: half precision has no room for large ones.
            scale = 1.0 if even else float(w.mean()) or 1.0
            share = torch.ones_like(w) if even else w / scale
            back = taps.backward(share * losses, sorted({*names, *checked}), spots, keep=again)
            gates, totals = back.gates, back.gradients
            if first:
                _verify(plan, groups, parameters, gates, totals)
            each = share.to(gates).clamp(min=torch.finfo(gates.dtype).tiny).unsqueeze(1)
            gates = gates / each
            by = w if even else torch.full_like(w, scale)
            shifts = {k: (by.to(v.dtype) @ v).cpu().double() for k, v in back.pulls.items()}
            gradients = {k: totals[k].double() * (scale if task.per_example else float(w[0])) for k in names}
            taps.pull = False
            if bases & _EXPECTED:
                assert task.tempered is not None
                surrogate = check_losses(task.tempered(out, batch), task, where=where)
                expected = taps.backward(share * surrogate, (), spots, keep=draws > 0)
                tempered = expected.gates / each
                t = [None if grad is None else grad * scale for grad in expected.spots]
                slopes = scale * torch.stack([_slope(spots, grads) for grads in (back.spots, expected.spots)])
            for k in range(draws):
                assert task.curvature is not None
                surrogate = check_losses(task.curvature(out, batch, generator), task, where=where)
                drawn.append(taps.backward(surrogate, (), keep=k + 1 < draws).gates)
        elif watched:
            plan.tapped -= {g.group for g in plan.gates if g.param in taps.bad or g.param not in taps.inputs}
        if names and not gated:
            taps.sink = None
            gradients = {k: v.double() for k, v in taps.gradients((w * losses).sum(), sorted(names))[0].items()}
        # Break the circle between taps and graph, so that activations are freed now and not by the collector.
        taps.sink = None
    all_finite = not gradients or _finite(torch.stack([v.sum() for v in gradients.values()]))
    for name, value in {} if all_finite else gradients.items():
        if not _finite(value):
            raise NonFinite(f"the gradient of {name} is not finite", where=where, todo=_HALF)
    if gated:
        assert gates is not None
        slow = frozenset(range(len(groups.groups))) - frozenset(plan.tapped)
        if slow and plan.n_units:
            columns = _columns(plan, slow).to(gates.device)

            def with_slow(fast: Tensor, losses_of: Callable[[Any, Batch], Tensor]) -> Tensor:
                more = _one_by_one(model, plan, slow, batch, task, losses_of, n)
                return fast.index_copy(1, columns, more.to(fast))

            gates = with_slow(gates, task.losses)
            if tempered is not None and task.tempered is not None:
                tempered = with_slow(tempered, task.tempered)
            if draws and task.curvature is not None:
                curvature_of = task.curvature
                drawn = [with_slow(d, lambda out, batch: curvature_of(out, batch, generator)) for d in drawn]
    plan.verified |= set(range(len(groups.groups)))
    return _Found(
        losses=losses.detach(),
        gates=gates,
        tempered=tempered,
        drawn=tuple(drawn),
        gradients=gradients,
        inputs=dict(taps.inputs),
        ranks=dict(taps.ranks),
        shifts=shifts,
        slopes=slopes,
        bend=_bend(out, batch, task, w, generator, t) if bases & (_CURVED | _PROJECTED) else None,
    )


def _rehearsed(model: nn.Module, groups: Groups, plan: _Plan, batch: Batch, task: Task, needs: Sequence[str]) -> _Plan:
    """What the checks of a first batch find out, found out on its first examples, where that is cheaper."""
    if not {n.partition("/")[0] for n in needs} & _GATED:
        return plan
    trial = dataclasses.replace(plan, tapped=set(plan.tapped), verified=set(), layouts={})
    try:
        if batch_size(batch) <= 2 * _FEW:
            return plan
        few = examples(batch, 0, _FEW)
        found = _measure(model, groups, trial, few, task, ("gate_mean",), torch.Generator(), "a first look")
    except (SecateurError, RuntimeError, ValueError, TypeError, IndexError):
        return plan  # not a batch that can be sliced: the checks are made on all of it, and errors named there
    return trial if len(found.losses) == _FEW else plan


_FEW = 4
_CURVED = frozenset({"curvature_ratio", "projected_share"})
_GATED = _CURVED | {n for n in PASS if n.startswith("gate_") and n != "gate_hessian"}
_PROJECTED = frozenset({"gate_projected", "projected_share"})
_EXPECTED = _PROJECTED | {"gate_expected", "gate_unexpected"}  # made from the tempered losses
_SEEN = frozenset({"activation", "input_norm", "gate_shift", "feature_rank"})
_EMPIRICAL = "use criteria.obd(curvature='empirical')"
_HALF = "look at the inputs; in half precision, try bfloat16 or float32"


def _members_of(groups: Groups, parameters: Mapping[str, Tensor], wanted: Sequence[str]) -> set[str]:
    chosen = set()
    for role in wanted:
        allowed = ROLES[role]
        chosen |= {
            m.param
            for g in groups.groups
            for m in g.members
            if m.param in parameters and (allowed is None or m.role in allowed)
        }
    return chosen


def _check_gates(g: Tensor, groups: Groups, plan: _Plan, where: str) -> None:
    if not _finite(g):
        bad = ~torch.isfinite(g).all(0)
        unit = int(bad.nonzero()[0])
        index = max(i for i, start in enumerate(plan.offsets[:-1]) if start <= unit)
        group = groups.groups[index]
        raise NonFinite(
            f"the gradient of {int(bad.sum())} units is not finite",
            where=f"{where}, group {group.name!r}, unit {unit - plan.offsets[index]}, "
            f"parameters {', '.join(m.param for m in gate_members(group))}",
            expected="finite gradients",
            todo=_HALF,
        )


def _finite(t: Tensor) -> bool:
    """Whether all numbers are; their sum is not where one is not, and is found faster."""
    return bool(torch.isfinite(t.sum())) or bool(torch.isfinite(t).all())


def _refuse_sums(model: nn.Module, batch: Batch, task: Task) -> None:
    """A mean over a batch lies between those of its halves; a sum is theirs together."""
    size = batch_size(batch)
    if size < 2:
        return
    with torch.no_grad():
        whole, one, two = (
            float(task.losses(task.forward(model, part), part).sum())
            for part in (batch, examples(batch, 0, size // 2), examples(batch, size // 2, size))
        )
    mean = (one * (size // 2) + two * (size - size // 2)) / size
    if abs(whole - one - two) < 1e-3 * abs(whole) and abs(whole - mean) > 1e-2 * abs(whole):
        raise TaskShapeError(
            f"the loss of task {task.name!r} is a sum over the batch, not a mean",
            expected="the mean over the batch",
            got=f"{whole:g} for a batch whose halves have {one:g} and {two:g}",
            todo="use reduction='mean', or better reduction='none' and sc.Task(...)",
        )


@contextmanager
def _requiring(model: nn.Module, names: set[str]) -> Iterator[None]:
    """Gradients for exactly these parameters while the graph is built (frozen ones too); flags are restored."""
    named = list(model.named_parameters())
    flags = [p.requires_grad for _, p in named]
    try:
        for name, p in named:
            if p.is_floating_point() or p.is_complex():
                p.requires_grad_(name in names)
        yield
    finally:
        for (_, p), flag in zip(named, flags, strict=True):
            p.requires_grad_(flag)


# The fast way: taps at the inputs of the readers


class _Call(NamedTuple):
    """One tapped call.  channel: axis of x that the weight contracts.  positions: shape of x."""

    key: tuple[int, int]
    param: str
    channel: int
    shape: torch.Size


# function -> (position of x, position of the weight, contracted axis of the weight, channel axis of x)
_LINEAR: Mapping[Any, tuple[int, int, int, int]] = {
    F.linear: (0, 1, 1, -1),
    torch.matmul: (0, 1, 0, -1),
    torch.mm: (0, 1, 0, -1),
    torch.Tensor.matmul: (0, 1, 0, -1),
    torch.Tensor.__matmul__: (0, 1, 0, -1),
    torch.Tensor.mm: (0, 1, 0, -1),
    torch.addmm: (1, 2, 0, -1),
    F.conv1d: (0, 1, 1, 1),
    F.conv2d: (0, 1, 1, 1),
    F.conv3d: (0, 1, 1, 1),
    F.conv_transpose1d: (0, 1, 0, 1),
    F.conv_transpose2d: (0, 1, 0, 1),
    F.conv_transpose3d: (0, 1, 0, 1),
}
_GROUPS_AT: Mapping[Any, int] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), 6),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 6),
}


class _Tap(torch.autograd.Function):
    """Identity; its backward shows (x, dloss/dx) to `sink`. `root` ties every tap to one leaf."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, root: Tensor, sink: Sink) -> Tensor:
        ctx.save_for_backward(x)
        ctx.sink = sink
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.sink(ctx.saved_tensors[0], grads[0])
        return grads[0], torch.zeros((), device=grads[0].device), None


_tap: Callable[[Tensor, Tensor, Sink], Tensor] = _Tap.apply


@dataclass(frozen=True, slots=True, kw_only=True)
class _Back:
    """What came back from the losses.

    gates: [N, U], of each example's own loss.  gradients: of the sum of losses, by parameter.  spots: likewise, by the
    watched parts of the output.  pulls: dloss[n]/dx summed over positions, [N, C], by parameter, if asked for.
    """

    gates: Tensor
    gradients: dict[str, Tensor]
    spots: list[Tensor | None]
    pulls: dict[str, Tensor]


class _Taps(TorchFunctionMode):
    """Watches a forward pass for calls that contract a gated weight with its input, and taps that input."""

    def __init__(
        self, plan: _Plan, parameters: Mapping[str, Tensor], *, watch: bool, record: bool, ranks: bool
    ) -> None:
        super().__init__()
        self.plan = plan
        self.record = record
        self.ranked = ranks
        self.names = {id(parameters[g.param]): g.param for g in plan.gates if watch and g.group in plan.tapped}
        self.axes = {g.param: g.axis for g in plan.gates if g.group in plan.tapped}
        self.parameters = parameters
        self.bad: set[str] = set()
        self.calls: list[_Call] = []
        self.counts: dict[str, int] = {}
        self.inputs: dict[str, Tensor] = {}
        self.ranks: dict[str, Tensor] = {}
        self.sink: Callable[[_Call, Tensor, Tensor], None] | None = None
        self.last: tuple[Tensor, int, int, Tensor] | None = None
        self.tapped: tuple[Tensor, tuple[int, int, int], Tensor] | None = None
        self.pull = False
        device = next((p.device for p in parameters.values()), torch.device("cpu"))
        self.root = torch.zeros((), device=device, requires_grad=True)

    def __exit__(self, *reason: Any) -> None:
        self.last = self.tapped = None  # they would hold on to the graph, and the graph to them
        super().__exit__(*reason)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        names = self.names
        touched = {names[id(a)] for a in _flat((args, kwargs) if kwargs else args) if id(a) in names}
        if not touched:
            return func(*args, **kwargs)
        if func in _LINEAR:
            tapped = self._linear_inputs(func, args, kwargs)
            if tapped is not None:
                return func(*tapped, **kwargs)
        # Not for packed sequences (whose fourth argument is no flag), nor with dropout between layers.
        if func in RECURRENT and not kwargs and isinstance(args[3], bool) and not (args[5] and args[6]):
            return unrolled(RECURRENT[func], self._linear, Watch(self._seen_by, self.root), *args)
        if func is F.multi_head_attention_forward:
            return _opened(self._linear, args, kwargs)
        result = func(*args, **kwargs)
        if func is not F.embedding and any(isinstance(r, Tensor) and id(r) not in self.names for r in _flat(result)):
            # A view, a cast, a whole attention: where the weight goes from here is not seen.
            self.bad |= touched
        return result

    def _linear_inputs(self, func: Any, args: Any, kwargs: Any) -> Any:
        at, weight_at, axis, channel = _LINEAR[func]
        grouped = kwargs.get("groups", args[_GROUPS_AT[func]] if len(args) > _GROUPS_AT.get(func, 99) else 1)
        if len(args) <= max(at, weight_at) or id(args[weight_at]) not in self.names or grouped != 1:
            return None
        x, weight = args[at], args[weight_at]
        batched = x.ndim == weight.ndim if channel == 1 else x.ndim >= 1 and weight.ndim == 2
        if self.axes[self.names[id(weight)]] != axis or not batched or not x.is_floating_point():
            return None
        return (*args[:at], self._tapped(x, weight, channel % x.ndim), *args[at + 1 :])

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(self._tapped(x, weight, x.ndim - 1) if self._contracts(weight) else x, weight, bias)

    def _seen_by(self, weight: Tensor, x: Tensor) -> Sink | None:
        """What is to be shown what `weight` reads in all steps."""
        return self._watched(x, weight, x.ndim - 1) if self._contracts(weight) else None

    def _contracts(self, weight: Tensor) -> bool:
        return id(weight) in self.names and self.axes[self.names[id(weight)]] == 1

    def _tapped(self, x: Tensor, weight: Tensor, channel: int) -> Tensor:
        name = self.names[id(weight)]
        what = (x._version, channel, self.plan.alike[name])
        if self.tapped is not None and self.tapped[0] is x and self.tapped[1] == what:
            # Queries, keys and values read the same units: what comes back from all of them comes to one tap.
            if self.record:
                self._record(name, x, channel)
            return self.tapped[2]
        self.tapped = (x, what, _tap(x, self.root, self._watched(x, weight, channel)))
        return self.tapped[2]

    def _watched(self, x: Tensor, weight: Tensor, channel: int) -> Sink:
        name = self.names[id(weight)]
        call = _Call((id(weight), self.counts.get(name, 0)), name, channel, x.shape)
        self.counts[name] = call.key[1] + 1
        self.calls.append(call)
        if self.record:
            self._record(name, x, channel)

        def sink(x: Tensor, grad: Tensor) -> None:
            if self.sink is not None:
                self.sink(call, x, grad)

        return sink

    def _record(self, name: str, x: Tensor, channel: int) -> None:
        # Queries, keys and values read the same; what was summed last is kept with the tensor that it is of.
        if self.last is None or self.last[0] is not x or self.last[1:3] != (x._version, channel):
            self.last = (x, x._version, channel, _moments(x, channel))
        _accumulate(self.inputs, name, self.last[3])
        if self.ranked and x.ndim == 4 and channel == 1:  # maps [N, C, H, W]
            ranks = torch.linalg.matrix_rank(x.detach().to(_wide(x))).double().sum(0).cpu()
            _accumulate(self.ranks, name, torch.stack([torch.full_like(ranks, len(x)), ranks], dim=1))

    def backward(self, losses: Tensor, names: Sequence[str], spots: Sequence[Tensor] = (), *, keep: bool) -> _Back:
        """Each example's own gate gradients, and the gradients of the sum of losses by parameters and spots."""
        n = len(losses)
        gates = torch.zeros(n, self.plan.n_units, dtype=torch.float64, device=losses.device)
        if losses.device.type == "mps":
            gates = gates.float()
        each: dict[str, Tensor] = {}
        pulls: dict[str, Tensor] = {}

        def add(call: _Call, x: Tensor, grad: Tensor) -> None:
            layout = self.plan.layouts.get(call.key)
            if layout is not None:
                _accumulate(each, call.param, _per_example(x * grad, call.channel, layout, n))
                if self.pull:
                    _accumulate(pulls, call.param, _per_example(grad, call.channel, layout, n))

        self.sink = add
        totals, at = self.gradients(losses.sum(), names, spots, keep=keep)
        for gate in self.plan.gates:
            if gate.group in self.plan.tapped and gate.param in each:
                if gate.span is not None:  # as nearly always; much faster
                    gates[:, gate.span] += each[gate.param]
                    continue
                owner = gate.owner.to(gates.device)
                inside = owner >= 0
                gates.index_add_(1, owner[inside], each[gate.param][:, inside].to(gates.dtype))
        return _Back(gates=gates, gradients=totals, pulls=pulls, spots=at)

    def gradients(
        self, loss: Tensor, names: Sequence[str], spots: Sequence[Tensor] = (), *, keep: bool = False
    ) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """Gradients of `loss` by parameter and by spot; whatever taps lie on the way report to the sink."""
        weights = [self.parameters[k] for k in names]
        if not loss.requires_grad:
            return {k: torch.zeros_like(w) for k, w in zip(names, weights, strict=True)}, [None] * len(spots)
        with torch.autograd.set_multithreading_enabled(False):
            asked = [self.root, *weights, *spots]
            grads = torch.autograd.grad(loss, asked, retain_graph=keep, allow_unused=True)[1:]
        found = zip(names, weights, grads[: len(names)], strict=True)
        return {k: torch.zeros_like(w) if g is None else g for k, w, g in found}, list(grads[len(names) :])


def _opened(linear: Linear, args: Any, kwargs: Any) -> Any:
    """Multi-head attention with its projections done outside, through `linear`, and identities in their place."""
    bound = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
    bound.apply_defaults()
    a = bound.arguments
    q, k, v = a["query"], a["key"], a["value"]
    bias = a["in_proj_bias"]
    if a["use_separate_proj_weight"]:
        biases = (None, None, None) if bias is None else bias.chunk(3)
        weights = (a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"])
        projected = [linear(x, w, b) for x, w, b in zip((q, k, v), weights, biases, strict=True)]
    elif q is k and k is v:
        projected = list(linear(q, a["in_proj_weight"], bias).chunk(3, dim=-1))
    else:
        projected = [linear(x, a["in_proj_weight"], bias).chunk(3, dim=-1)[i] for i, x in enumerate((q, k, v))]
    eye = torch.eye(projected[0].shape[-1], dtype=projected[0].dtype, device=projected[0].device)
    a.update(query=projected[0], key=projected[1], value=projected[2], in_proj_weight=None, in_proj_bias=None)
    a.update(use_separate_proj_weight=True, q_proj_weight=eye, k_proj_weight=eye, v_proj_weight=eye)
    out_weight, out_bias = a["out_proj_weight"], a["out_proj_bias"]
    a.update(out_proj_weight=eye, out_proj_bias=None)
    out, attention = F.multi_head_attention_forward(*bound.args, **bound.kwargs)
    return linear(out, out_weight, out_bias), attention


def _flat(value: Any) -> list[Any]:
    """What stands in nested tuples, lists and dictionaries."""
    found, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, tuple | list):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        else:
            found.append(item)
    return found


def _accumulate(into: dict[str, Tensor], name: str, part: Tensor) -> None:
    into[name] = into[name] + part if name in into else part


_CACHED = 2**16  # numbers


def _parts(x: Tensor, channel: int) -> tuple[Tensor, ...]:
    """x cut along its first axis, so that what is made of a part stays in a processor's own memory."""
    if channel == 0 or x.device.type != "cpu" or x.numel() < 2 * _CACHED:
        return (x,)
    parts: tuple[Tensor, ...] = x.split(max(1, _CACHED * len(x) // x.numel()))
    return parts


def _moments(x: Tensor, channel: int) -> Tensor:
    """Sums over everything but the channel, [C, 5] float64: ones, x, x^2, |x|, [x = 0]."""
    x = x.detach().to(_wide(x))
    if x.ndim == 1:
        x, channel = x.unsqueeze(0), 1
    rest = [a for a in range(x.ndim) if a != channel]
    parts = _parts(x, channel)
    spare, sums = torch.empty_like(parts[0]), x.new_zeros(4, x.shape[channel])
    for part in parts:
        made = spare[: len(part)]
        sums[0] += part.sum(rest)
        sums[1] += torch.square(part, out=made).sum(rest)
        sums[2] += torch.abs(part, out=made).sum(rest)
        sums[3] += torch.eq(part, 0, out=made).sum(rest)  # as numbers: sums of truth values are ten times slower
    count = float(x.numel() // x.shape[channel])
    return F.pad(sums.t().cpu().double(), (1, 0), value=count)


def _per_example(x: Tensor, channel: int, layout: _Layout, n: int) -> Tensor:
    """Sum over positions, in float32 at least: [N, C]."""
    if layout.axis < 0:
        x, axis = x.unsqueeze(0), 0
        channel += 1
    else:
        axis = layout.axis
        if x.shape[axis] != n:
            x = _split_axis(x, axis, layout, n)
            channel += channel > axis
            axis += layout.order == "minor"
    rest = [a for a in range(x.ndim) if a not in (axis, channel)]
    total = torch.sum(x, rest, dtype=_wide(x)) if rest else x.to(_wide(x))
    return total if axis < channel else total.T


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _split_axis(x: Tensor, axis: int, layout: _Layout, n: int) -> Tensor:
    each = x.shape[axis] // n
    split: Tensor = x.unflatten(axis, (n, each) if layout.order == "major" else (each, n))
    return split


def _find_layouts(taps: _Taps, plan: _Plan, losses: Tensor) -> None:
    """Where the examples stand in every tapped input: where the loss of some has gradient, and of the others not.

    Two backward passes, one for each half of the examples, for calls not seen before. A call without a fitting
    axis (examples that mix, or rows routed elsewhere) sends its groups the slow way.
    """
    n = len(losses)
    fresh = [c for c in taps.calls if c.key not in plan.layouts or not _fits(c, plan.layouts[c.key], n)]
    if not fresh:
        return
    if n == 1:
        # Nothing to tell apart; kept for this batch only, since a larger one must still be looked at.
        for call in taps.calls:
            plan.layouts[call.key] = _Layout(-1, "major")
        return
    marks: list[dict[tuple[int, int], Tensor]] = []
    for half in (slice(0, n // 2), slice(n // 2, n)):
        seen: dict[tuple[int, int], Tensor] = {}

        def look(call: _Call, x: Tensor, grad: Tensor, seen: dict[tuple[int, int], Tensor] = seen) -> None:
            seen[call.key] = (grad != 0).any(call.channel)

        taps.sink = look
        taps.gradients(losses[half].sum(), (), keep=True)
        marks.append(seen)
    for call in fresh:
        looked = [m.get(call.key) for m in marks]
        found = _layouts_of(call, n, looked)
        if len(found) > 1 and not any(bool(mark.any()) for mark in looked if mark is not None):
            plan.layouts.pop(call.key, None)  # no gradient yet, which fits everywhere: the next batch may tell
        elif found:
            plan.layouts[call.key] = found[0]
        else:
            plan.tapped -= {g.group for g in plan.gates if g.param == call.param}
            plan.layouts.pop(call.key, None)


def _fits(call: _Call, layout: _Layout, n: int) -> bool:
    return (layout.axis < 0 and n == 1) or (layout.axis >= 0 and call.shape[layout.axis] % n == 0)


def _layouts_of(call: _Call, n: int, marks: Sequence[Tensor | None]) -> list[_Layout]:
    """Those in which no half of the examples has gradient among the other half.

    If there is one along an axis that is as long as there are examples, those of other axes are left out.
    """
    rest = [a for a in range(len(call.shape)) if a != call.channel and call.shape[a] and call.shape[a] % n == 0]
    alike = [a for a in rest if call.shape[a] == n]
    candidates = [_Layout(a, "major") for a in alike]
    candidates += [_Layout(a, o) for a in rest if a not in alike for o in ORDERS]
    clean = []
    for layout in candidates:
        position = layout.axis - (layout.axis > call.channel)
        outsides = []
        for mark, outside in zip(marks, (slice(n // 2, n), slice(0, n // 2)), strict=True):
            if mark is not None:
                rows = _split_axis(mark, position, layout, n)
                outsides.append(rows.movedim(position if layout.order == "major" else position + 1, 0)[outside])
        if not any(bool(rows.any()) for rows in outsides):
            clean.append(layout)
    return [c for c in clean if c.axis in alike] or clean


def _verify(
    plan: _Plan, groups: Groups, parameters: Mapping[str, Tensor], gates: Tensor, totals: Mapping[str, Tensor]
) -> None:
    """Tapped sums against autograd's own weight gradients: sum over n of g[n, u] = sum over the elements of w dL/dw."""
    for index in sorted(plan.tapped):
        group = groups.groups[index]
        units = slice(plan.offsets[index], plan.offsets[index + 1])
        mine = [g for g in plan.gates if g.group == index]
        if any(m.role == "both" for m in group.members):
            continue  # the weight's own gradient holds the writing path too
        expected = torch.zeros(group.n_units, dtype=torch.float64)
        scale = torch.zeros(group.n_units, dtype=torch.float64)
        for gate in mine:
            w = parameters[gate.param].detach()
            product = (w * totals[gate.param]).double().movedim(gate.axis, 0).reshape(w.shape[gate.axis], -1).cpu()
            inside = gate.owner >= 0
            local = gate.owner[inside] - plan.offsets[index]
            expected.index_add_(0, local, product.sum(1)[inside])
            scale.index_add_(0, local, product.abs().sum(1)[inside])
        got = gates[:, units].sum(0).cpu().double()
        coarse = any(parameters[g.param].dtype in (torch.float16, torch.bfloat16) for g in mine)
        tolerance = (5e-2 if coarse else 1e-3) * (scale + gates[:, units].abs().sum(0).cpu().double()).max()
        if bool(((got - expected).abs() > tolerance).any()):
            plan.tapped.discard(index)


# The slow way: one example at a time


def _columns(plan: _Plan, slow: frozenset[int]) -> Tensor:
    return torch.cat([torch.arange(plan.offsets[g], plan.offsets[g + 1]) for g in sorted(slow)])


class _Gated(nn.Module):
    """The task's forward as a module, so that `functional_call` can replace parameters inside it."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.forward_of = task.forward

    def forward(self, batch: Batch) -> Any:
        return self.forward_of(self.model, batch)


def _gated_output(model: nn.Module, plan: _Plan, chosen: frozenset[int], task: Task) -> Callable[[Tensor, Batch], Any]:
    """From (gates [units of the chosen groups], batch) -> output of the model with the gates in place."""
    renumber = torch.full((plan.n_units + 1,), -1, dtype=torch.long)
    columns = _columns(plan, chosen)
    renumber[columns] = torch.arange(len(columns))
    names = dict(model.named_parameters(remove_duplicate=False))
    sites: dict[str, list[tuple[int, Tensor]]] = {}
    for gate in plan.gates:
        if gate.group in chosen:
            for name in gate.names:
                sites.setdefault(name, []).append((gate.axis, renumber[gate.owner]))
    module = _Gated(model, task)

    def run(gates: Tensor, batch: Batch) -> Any:
        padded = torch.cat([gates, gates.new_ones(1)])
        replaced = {}
        for name, places in sites.items():
            w = names[name].detach()
            for axis, owner in places:
                line = padded[owner.to(gates.device)]  # -1 is the last, which is one
                w = w * line.view([-1 if a == axis else 1 for a in range(w.ndim)]).to(w.dtype)
            replaced[f"model.{name}"] = w
        return torch.func.functional_call(module, replaced, (batch,), tie_weights=False)

    return run


def _one_by_one(
    model: nn.Module,
    plan: _Plan,
    chosen: frozenset[int],
    batch: Batch,
    task: Task,
    losses_of: Callable[[Any, Batch], Tensor],
    n: int,
) -> Tensor:
    """Gate gradients [N, units of the chosen groups] of losses_of(out, batch) -> [N]."""
    run = _gated_output(model, plan, chosen, task)
    device = device_of(model)
    ones = torch.ones(len(_columns(plan, chosen)), device=device, dtype=_gate_dtype(model))

    def loss(gates: Tensor, one: Batch) -> Tensor:
        values = losses_of(run(gates, one), one)
        if values.shape != (1,):
            raise TaskShapeError(
                f"task {task.name!r} does not give one loss for one example",
                expected=[1],
                got=list(values.shape),
                todo="the first axis of every tensor in a batch must be the example",
            )
        return values[0]

    with _requiring(model, set()), _exact_kernels():
        if not task.per_example:
            return _gradient(loss, ones, batch).unsqueeze(0)
        if batch_size(batch) != n:
            raise TaskShapeError(
                f"task {task.name!r} gives {n} losses for a batch of {batch_size(batch)} examples",
                todo="the first axis of every tensor in a batch must be the example, and each must have one loss",
            )
        if plan.vmap and n > 1:
            try:
                return _vmapped(loss, ones, batch, n)
            except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError):
                # No batching rule, control flow on values, ...: the loop below raises again what is not about vmap.
                plan.vmap = False
        return torch.stack([_gradient(loss, ones, examples(batch, i, i + 1)) for i in range(n)])


def _gate_dtype(model: nn.Module) -> torch.dtype:
    wide = any(p.dtype == torch.float64 for p in model.parameters())
    return torch.float64 if wide else torch.float32


@contextmanager
def _exact_kernels() -> Iterator[None]:
    # Attention kernels without batching rule or second derivative; cuDNN's RNN refuses backward in eval mode.
    with sdpa_kernel(SDPBackend.MATH), without_cudnn(), warnings.catch_warnings():
        # vmap loops over an operation without a batching rule, which is what is wanted, and warns of it.
        warnings.filterwarnings("ignore", message=".*not yet implemented the batching rule.*")
        yield


class _WithoutCudnn(TorchFunctionMode):
    """Recurrent layers on the kernels that have a backward in evaluation mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with without_cudnn() if func in RECURRENT else nullcontext():
            return func(*args, **(kwargs or {}))


def _recurrent_gradients(device: torch.device | None) -> AbstractContextManager[Any]:
    """Inside, a recurrent layer on this device has gradients in evaluation mode too."""
    return _WithoutCudnn() if device is not None and device.type == "cuda" else nullcontext()


def _gradient(loss: Callable[[Tensor, Batch], Tensor], ones: Tensor, batch: Batch) -> Tensor:
    gates = ones.clone().requires_grad_()
    value = loss(gates, batch)
    if not value.requires_grad:
        return torch.zeros_like(ones)
    (grad,) = torch.autograd.grad(value, gates, allow_unused=True)
    return torch.zeros_like(ones) if grad is None else grad.detach()


def _vmapped(loss: Callable[[Tensor, Batch], Tensor], ones: Tensor, batch: Batch, n: int) -> Tensor:
    tensors: list[Tensor] = []

    def take(item: Any) -> Any:
        if isinstance(item, Tensor) and item.ndim > 0 and len(item) == n:
            tensors.append(item)
        elif isinstance(item, list):
            raise TypeError("a list of values per example has no tensor axis")
        return item

    map_leaves(take, batch)

    def one(*slices: Tensor) -> Tensor:
        rest = iter(slices)

        def put(item: Any) -> Any:
            return next(rest).unsqueeze(0) if isinstance(item, Tensor) and item.ndim > 0 and len(item) == n else item

        rebuilt = map_leaves(put, batch)
        gradient: Tensor = torch.func.grad(lambda gates: loss(gates, rebuilt))(ones)
        return gradient

    # About 64 MiB of per-example weight gradients at a time.
    chunk = max(1, min(n, 2**24 // max(1, len(ones) * 64)))
    result: Tensor = torch.func.vmap(one, randomness="different", chunk_size=chunk)(*tensors)
    return result.detach()


# Passes of their own


def _flow(model: nn.Module, names: set[str], batch: Batch, task: Task) -> dict[str, Tensor]:
    """|w| dR/d|w| by parameter: see `write_flow`. The batch only tells how an input looks."""
    inputs = [item for _, item in leaves(batch) if isinstance(item, Tensor)]
    if not inputs or not inputs[0].is_floating_point():
        raise MissingStatistic(
            "the flow through a network is defined for an input of ones, and this input is no field of real numbers",
            expected="an input of floating-point numbers",
            got="token ids or other integers",
            todo="use another criterion, such as criteria.obd()",
        )

    def one(item: Any) -> Any:
        return torch.ones_like(item, dtype=torch.float64) if _is_real(item) else item

    weights = {k: p.detach().double().abs() for k, p in model.named_parameters() if _is_real(p)}
    wanted = sorted(names & set(weights))
    if not wanted:
        return {}
    for k in wanted:
        weights[k].requires_grad_()
    state = {**weights, **{k: b.detach().double().abs() for k, b in model.named_buffers() if _is_real(b)}}
    device = device_of(model) or torch.device("cpu")
    with _exact_kernels(), torch.autocast(device.type, enabled=False):
        placed = {f"model.{k}": v for k, v in state.items()}
        out = torch.func.functional_call(_Gated(model, task), placed, (map_leaves(one, examples(batch, 0, 1)),))
        total = torch.stack([v.sum() for _, v in leaves(out) if _is_real(v)]).sum()
        grads = torch.autograd.grad(total, [weights[k] for k in wanted], allow_unused=True)
    return {
        k: torch.zeros(weights[k].shape, dtype=torch.float64) if g is None else (weights[k].detach() * g).cpu()
        for k, g in zip(wanted, grads, strict=True)
    }


def _is_real(item: Any) -> bool:
    return isinstance(item, Tensor) and item.is_floating_point()


def _hessian_products(
    model: nn.Module, groups: Groups, stats: Statistics, batches: Batches, task: Task, where: torch.device | None
) -> dict[str, Tensor]:
    """Sums over examples of H[n] g by parameter, with g the gradient of the mean loss that `stats` holds."""
    names = sorted(_members_of(groups, _parameters(model), ["all"]))
    if not names:
        return {}
    weights = [_parameters(model)[k] for k in names]
    direction = [(stats.params["gradients"][k] / stats.weight).to(w) for k, w in zip(names, weights, strict=True)]
    total = {k: torch.zeros_like(w, dtype=torch.float64) for k, w in zip(names, weights, strict=True)}
    with _requiring(model, set(names)), _exact_kernels():
        for index, raw in enumerate(batches):
            batch, spot = to_device(raw, where), f"batch {index}"
            losses = check_losses(task.losses(task.forward(model, batch), batch), task, where=spot)
            w = weights_of(task, batch, len(losses), where=spot).to(losses.device, losses.dtype)
            grads = torch.autograd.grad((w * losses).sum(), weights, create_graph=True, allow_unused=True)
            along = [(g * d).sum() for g, d in zip(grads, direction, strict=True) if g is not None and g.requires_grad]
            if along:
                products = torch.autograd.grad(torch.stack(along).sum(), weights, allow_unused=True)
                for k, p in zip(names, products, strict=True):
                    if p is not None:
                        total[k] += p
    for k, p in total.items():
        if not _finite(p):
            raise NonFinite(f"the Hessian times the gradient is not finite at {k}", todo=_HALF)
    return total


# Second order


def _with_spots(out: Any, made: Callable[[Tensor], Tensor]) -> tuple[Any, list[Tensor]]:
    """The output with `made` of its tensors of real numbers, and these: by them losses can be differentiated."""
    spots: list[Tensor] = []

    def put(item: Any) -> Any:
        if not _is_real(item):
            return item
        spots.append(made(item))
        return spots[-1]

    return map_leaves(put, out), spots


def _cut_off(t: Tensor) -> Tensor:
    return t.detach().requires_grad_()


def _viewed(t: Tensor) -> Tensor:
    """A view: what the model itself makes of a part of its output is not the losses' doing."""
    return t.view_as(t) if t.requires_grad else _cut_off(t)


def _slope(spots: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Tensor:
    """How losses rise along the output: the sum of <spot, gradient>, float64."""
    slope = torch.zeros((), dtype=torch.float64)
    for spot, grad in zip(spots, grads, strict=True):
        if grad is not None:
            slope += _by_example(spot.detach(), grad).sum()
    return slope


def _by_example(a: Tensor, b: Tensor) -> Tensor:
    """Sums of a * b over everything but the first axis, [N] float64. Half precision is not rounded to half."""
    if a.ndim < 2:
        a, b = a.reshape(-1, 1), b.reshape(-1, 1)
    sums = []
    for x, y in zip(parts := _parts(a, -1), b.split(len(parts[0])), strict=True):
        sums.append((x.to(_wide(x)) * y.to(_wide(y))).flatten(1).sum(1))
    return torch.cat(sums).double().cpu()


def _bend(
    out: Any, batch: Batch, task: Task, w: Tensor, generator: torch.Generator, t: Sequence[Tensor | None]
) -> _Bend:
    """Second derivatives of the losses by the model's output. Only the loss function is differentiated, not the model.

    The trace is exact for small outputs (up to 32 numbers per example), else estimated with random signs.

    Args:
        t: gradient of the weighted sum of the tempered losses by every part of the output; empty where not known.
    """
    own, spots = _with_spots(out, _cut_off)
    values = task.losses(own, batch)
    zero = torch.zeros((), dtype=torch.float64)
    try:
        # The derivative of the weighted gradient is the weighted Hessian; squares have the weight with its root.
        lines = torch.autograd.grad((w * values).sum(), spots, create_graph=True, allow_unused=True)
        rooted, common = lines, float(w[0])
        if common == 0 or not bool((w == common).all()):
            rooted = torch.autograd.grad((w.sqrt() * values).sum(), spots, retain_graph=True, allow_unused=True)
            common = 1.0
        flat = [g.detach() for g in rooted if g is not None]
        squares = sum((_by_example(g, g).sum() for g in flat), zero) / common
        along, direction = _along(lines, spots, t, w)
        traces = [
            _trace(line, spot, len(values), generator)
            for line, spot in zip(lines, spots, strict=True)
            if line is not None and line.requires_grad  # else the losses are linear in this part of the output
        ]
    except RuntimeError as reason:
        raise MissingStatistic(
            f"the losses of task {task.name!r} cannot be differentiated twice by the model's output",
            expected="an output that is a tensor, or a tuple, mapping or dataclass of tensors; a smooth loss",
            got=f"{type(out).__name__}: {str(reason).splitlines()[0]}",
            todo=_EMPIRICAL,
        ) from None
    return _Bend(trace=sum(traces, zero), squares=squares, along=along, direction=direction)


def _along(
    lines: Sequence[Tensor | None], spots: Sequence[Tensor], t: Sequence[Tensor | None], w: Tensor
) -> tuple[Tensor, Tensor]:
    """t'Ht / |t|^2 and |t|^2 of every example, [N] float64.

    Args:
        lines: gradient of the weighted sum of losses by spot, differentiable.  t: that of the tempered losses.
    """
    n = len(w)
    curved, squares = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    each = zip(lines, spots, t or [None] * len(spots), strict=True)
    found = [(line, spot, d) for line, spot, d in each if d is not None and spot.dim() and len(spot) == n]
    curving = [(line, d) for line, _, d in found if line is not None and line.requires_grad]
    products: Sequence[Tensor | None] = [None] * len(found)
    if curving:
        products = torch.autograd.grad(
            [line for line, _ in curving],
            [spot for _, spot, _ in found],
            [d.to(line) for line, d in curving],
            retain_graph=True,
            allow_unused=True,
        )
    for (_, _, d), product in zip(found, products, strict=True):
        squares += _by_example(d, d)
        curved += 0 if product is None else _by_example(d, product)
    weights = w.double().cpu()
    weights = weights.where(weights > 0, 1.0)  # what weighs nothing has no t, and counts nothing
    return curved / squares.clamp(min=1e-300) / weights, squares / weights.square()


def _trace(grad: Tensor, spot: Tensor, n: int, generator: torch.Generator) -> Tensor:
    each = spot.numel() // n if spot.dim() and len(spot) == n else 0
    if 0 < each <= 32:
        probes = [torch.zeros(n, each).index_fill(1, torch.tensor([k]), 1.0).view(spot.shape) for k in range(each)]
        share = 1.0
    else:  # the more numbers, the less noise in the sum of all
        count = 4 if spot.numel() < 2**18 else 1
        probes = [_signs(spot.shape, generator) for _ in range(count)]
        share = 1 / count
    total = torch.zeros((), dtype=torch.float64)
    for probe in probes:
        z = probe.to(spot)
        (hz,) = torch.autograd.grad(grad, spot, z, retain_graph=True, allow_unused=True)
        if hz is not None:
            total += share * _by_example(z, hz).sum()
    return total


def _signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random signs, 1 or -1: eight from each byte that is drawn."""
    drawn = torch.randint(0, 256, (-(-shape.numel() // 8),), dtype=torch.uint8, generator=generator)
    bits = (torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1
    return (2.0 * bits - 1).index_select(0, drawn.int()).view(-1)[: shape.numel()].view(shape)


def _hessian(
    model: nn.Module,
    plan: _Plan,
    batch: Batch,
    task: Task,
    probes: int,
    generator: torch.Generator,
    w: Tensor,
    where: str,
) -> Tensor:
    """Hutchinson estimates z * (H z) of the diagonal of the Hessian of the weighted mean loss: [probes, U]."""
    run = _gated_output(model, plan, frozenset(range(len(plan.offsets) - 1)), task)
    dtype, device = _gate_dtype(model), device_of(model)
    gates = torch.ones(plan.n_units, dtype=dtype, device=device, requires_grad=True)
    with _requiring(model, set()), _exact_kernels():
        losses = check_losses(task.losses(run(gates, batch), batch), task, where=where)
        mean = (w.to(losses.device, losses.dtype) * losses).sum() / float(w.sum())
        (grad,) = torch.autograd.grad(mean, gates, create_graph=True)
        estimates = []
        for k in range(probes):
            z = (torch.randint(0, 2, (plan.n_units,), generator=generator) * 2 - 1).to(gates)
            (hz,) = torch.autograd.grad(grad @ z, gates, retain_graph=k + 1 < probes, allow_unused=True)
            estimates.append(torch.zeros_like(z) if hz is None else z * hz.detach())
    return torch.stack(estimates).cpu().double()
