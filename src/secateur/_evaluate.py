"""(model, batches, task) -> one loss and one score per example; and what all stages need to know of data.

A batch is whatever the task understands: a tensor, a tuple, a dict, a Hugging Face `BatchEncoding`. Where a batch
must be taken apart into examples (content hashes, per-example gradients) the first axis of its tensors is
the example axis.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from secateur.errors import EmptyData, InputError, NonFinite, OneShotIterable, TaskShapeError
from secateur.schema.task import Batch, Batches, Task

_TENSORS: Any = (Tensor, PackedSequence)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """One number per example, in the order of the data.

    Attributes:
        losses: [N] float64, nats.
        correct: [N] float64 in [0, 1]; None where the task has no such score.
        weights: [N] float64; all one where the task gives none.
        groups: N hashable keys: examples with one key depend on each other; None where the task gives none.
    """

    losses: Tensor
    correct: Tensor | None
    weights: Tensor
    groups: tuple[object, ...] | None = None

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.losses)

    @property
    def mean_loss(self) -> float:
        """Weighted mean loss, nats."""
        return float((self.weights * self.losses).sum() / self.weights.sum())

    @property
    def error(self) -> float:
        """Standard error of the mean loss, nats; 0 for a single example."""
        n = float(self.weights.sum()) ** 2 / float(self.weights.square().sum())
        spread = float((self.weights * (self.losses - self.mean_loss).square()).sum() / self.weights.sum())
        return math.sqrt(spread / (n - 1)) if n > 1 else 0.0

    @property
    def mean_correct(self) -> float | None:
        """Weighted mean score in [0, 1]; None where the task has none."""
        if self.correct is None:
            return None
        return float((self.weights * self.correct).sum() / self.weights.sum())


def evaluate(
    model: nn.Module,
    batches: Batches,
    task: Task,
    *,
    train: bool = False,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """The loss and the score of every example.

    Args:
        model: runs in eval mode, without gradients; its modes are restored, also when something fails.
        batches: can be iterated again.
        train: run in train mode instead (dropout on, batch statistics); buffers are restored too.
        device: where batches are moved to; None = where the model's parameters are.
        progress: called as (label, batches done, batches in all or 0).

    Raises:
        OneShotIterable, EmptyData: of the data.  TaskShapeError, NonFinite: of what the task returned.
    """
    parts = list(evaluate_batches(model, batches, task, train=train, device=device, progress=progress))
    if sum(p.n for p in parts) == 0:
        raise _no_examples()
    return join(parts)


def evaluate_batches(
    model: nn.Module,
    batches: Batches,
    task: Task,
    *,
    train: bool = False,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Iterator[Evaluation]:
    """As `evaluate`, batch by batch, so that a caller can stop early.

    Between two batches the model is as the caller left it: stopping needs no clean-up.
    """
    check_batches(batches)
    total = length(batches)
    for index, batch in enumerate(batches):
        yield evaluate_batch(model, batch, task, train=train, device=device, where=f"batch {index}")
        if progress is not None:
            progress("evaluate", index + 1, total)


def evaluate_batch(
    model: nn.Module,
    batch: Batch,
    task: Task,
    *,
    train: bool = False,
    device: torch.device | str | None = None,
    where: str = "a batch",
) -> Evaluation:
    """The losses and scores of one batch; `where` names it in errors."""
    batch = to_device(batch, device_of(model) if device is None else torch.device(device))
    with mode(model, train=train), torch.no_grad():
        out = task.forward(model, batch)
        losses = check_losses(task.losses(out, batch), task, where=where)
        correct = None if task.correct is None else task.correct(out, batch)
    n = len(losses)
    return Evaluation(
        losses=losses.detach().cpu().double(),
        correct=None if correct is None else _check_correct(correct, n, task, where),
        weights=weights_of(task, batch, n, where=where),
        groups=groups_of(task, batch, n, where=where),
    )


def join(parts: Sequence[Evaluation]) -> Evaluation:
    """Several evaluations, one after the other, as one."""
    correct = [p.correct for p in parts if p.correct is not None]
    groups = [p.groups for p in parts if p.groups is not None]
    return Evaluation(
        losses=torch.cat([p.losses for p in parts]),
        correct=torch.cat(correct) if correct else None,
        weights=torch.cat([p.weights for p in parts]),
        groups=tuple(key for keys in groups for key in keys) if groups else None,
    )


# What the task returned


def check_losses(losses: object, task: Task, *, where: str) -> Tensor:
    """The losses of one batch, if they are [N] and finite.

    Raises:
        TaskShapeError: a scalar (a mean or a sum over the batch), more axes than one, or no tensor.
        NonFinite: NaN or infinity.
    """
    if not isinstance(losses, Tensor):
        raise TaskShapeError(
            f"the losses of task {task.name!r} are not a tensor",
            where=where,
            expected="a tensor of shape [N], one loss per example",
            got=type(losses).__name__,
            todo="return the tensor of the loss function, not a number made of it",
        )
    if losses.ndim != 1 or not losses.is_floating_point():
        scalar = losses.ndim == 0
        raise TaskShapeError(
            f"the losses of task {task.name!r} are not one number per example",
            where=where,
            expected="a floating-point tensor of shape [N]",
            got=f"{str(losses.dtype).removeprefix('torch.')} of shape {list(losses.shape)}"
            + (": a mean or sum over the batch" if scalar else ""),
            todo="pass reduction='none' to the loss function, or tasks.from_mean(loss) if only a mean exists"
            if scalar
            else "sum or average over all axes but the first, which is the example",
        )
    if len(losses) == 0:
        raise EmptyData("a batch without examples", where=where, todo="leave empty batches out of the data")
    bad = ~torch.isfinite(losses.detach())
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        raise NonFinite(
            f"the loss of task {task.name!r} is not finite for {int(bad.sum())} of {len(losses)} examples",
            where=f"{where}, example {first}",
            expected="finite losses",
            got=float(losses[first].detach()),
            todo="look at that example; in half precision, try bfloat16 or float32",
        )
    return losses


def _check_correct(correct: object, n: int, task: Task, where: str) -> Tensor:
    if not isinstance(correct, Tensor) or correct.shape != (n,):
        raise TaskShapeError(
            f"the scores (correct) of task {task.name!r} are not one number per example",
            where=where,
            expected=f"a tensor of shape [{n}], as the losses",
            got=list(correct.shape) if isinstance(correct, Tensor) else type(correct).__name__,
            todo="return (prediction == label), one value in [0, 1] for each example",
        )
    scores = correct.detach().cpu().double()
    if not bool(torch.isfinite(scores).all()):
        raise NonFinite(f"the scores (correct) of task {task.name!r} are not finite", where=where)
    if bool((scores < 0).any() or (scores > 1).any()):
        raise InputError(
            f"the scores (correct) of task {task.name!r} leave [0, 1]",
            where=where,
            expected="values in [0, 1], 1 = right",
            got=f"{float(scores.min()):g} to {float(scores.max()):g}",
            todo="scale them; certificates need bounded scores",
        )
    return scores


def weights_of(task: Task, batch: Batch, n: int, *, where: str) -> Tensor:
    """The weights of the examples of one batch, [N] float64; all one where the task gives none."""
    if task.weights is None:
        return torch.ones(n, dtype=torch.float64)
    given: object = task.weights(batch)
    if not isinstance(given, Tensor) or given.shape != (n,):
        raise TaskShapeError(
            f"the weights of task {task.name!r} are not one number per example",
            where=where,
            expected=f"a tensor of shape [{n}], as the losses",
            got=list(given.shape) if isinstance(given, Tensor) else type(given).__name__,
        )
    weights = given.detach().cpu().double()
    if not bool(torch.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise InputError(
            f"the weights of task {task.name!r} are not usable",
            where=where,
            expected="finite weights >= 0, not all zero",
        )
    return weights


def groups_of(task: Task, batch: Batch, n: int, *, where: str) -> tuple[object, ...] | None:
    """The dependence keys of the examples of one batch; None where the task gives none."""
    if task.groups is None:
        return None
    keys = tuple(k.item() if isinstance(k, Tensor) else k for k in task.groups(batch))
    if len(keys) != n:
        raise TaskShapeError(
            f"the groups of task {task.name!r} are not one key per example", where=where, expected=n, got=len(keys)
        )
    return keys


# The model while it runs


@contextmanager
def mode(model: nn.Module, *, train: bool = False) -> Iterator[None]:
    """The model in eval (or train) mode; every module's own mode is restored, and in train mode every buffer too."""
    modules = list(model.modules())
    flags = [m.training for m in modules]
    buffers = [(b, b.detach().clone()) for b in model.buffers()] if train else []
    try:
        model.train(train)
        yield
    finally:
        # Through `train`, which modules may override; then by hand, since a shared child may have two parents.
        for module, flag in zip(modules, flags, strict=True):
            if module.training != flag:
                module.train(flag)
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)


def device_of(model: nn.Module) -> torch.device | None:
    """Where the model's first parameter (or buffer) is; None for a model without any."""
    for tensor in model.parameters():
        return tensor.device
    for buffer in model.buffers():
        return buffer.device
    return None


# Data


@runtime_checkable
class _Movable(Protocol):
    def to(self, device: torch.device) -> Any: ...


def to_device(batch: Batch, device: torch.device | str | None) -> Any:
    """The batch with its tensors on `device`, in the same containers; what holds no tensors is passed on."""
    if device is None:
        return batch
    where = torch.device(device)

    def move(item: Any) -> Any:
        return item.to(where) if isinstance(item, _TENSORS) else item

    moved = map_leaves(move, batch)
    # Own batch classes (graphs, ragged images) offer `.to`, as tensors do.
    if moved is batch and isinstance(batch, _Movable) and not isinstance(batch, Tensor | PackedSequence):
        return batch.to(where)
    return moved


def map_leaves(function: Callable[[Any], Any], batch: Any) -> Any:
    """The batch with `function` applied to what its tuples, lists, dicts and dataclasses hold; same containers."""
    if isinstance(batch, PackedSequence) or _is_column(batch):
        return function(batch)
    if isinstance(batch, tuple) and type(batch) is not tuple:
        return type(batch)(*(map_leaves(function, v) for v in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(map_leaves(function, v) for v in batch)
    if isinstance(batch, dict) and type(batch) is dict:
        return {k: map_leaves(function, v) for k, v in batch.items()}
    if isinstance(batch, MutableMapping):
        # A class of its own (BatchEncoding, OrderedDict): a shallow copy keeps whatever else it carries.
        made = copy.copy(batch)
        for key, value in list(batch.items()):
            made[key] = map_leaves(function, value)
        return made
    if isinstance(batch, Mapping):
        return {k: map_leaves(function, v) for k, v in batch.items()}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        values = {f.name: map_leaves(function, getattr(batch, f.name)) for f in dataclasses.fields(batch) if f.init}
        return dataclasses.replace(batch, **values)
    return function(batch)


def leaves(batch: Any) -> Iterator[tuple[str, Any]]:
    """(path, item) for everything that the tuples, lists, dicts and dataclasses of a batch hold, in order."""
    if isinstance(batch, PackedSequence) or _is_column(batch):
        yield "", batch
    elif isinstance(batch, tuple | list):
        for i, value in enumerate(batch):
            yield from ((f"/{i}{path}", item) for path, item in leaves(value))
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from ((f"/{key}{path}", item) for path, item in leaves(value))
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for f in dataclasses.fields(batch):
            yield from ((f"/{f.name}{path}", item) for path, item in leaves(getattr(batch, f.name)))
    else:
        yield "", batch


def batch_size(batch: Batch) -> int:
    """Examples in a batch: the length of the first axis of its first tensor that has axes.

    Raises:
        InputError: no tensor with an axis in it.
    """
    for _, item in leaves(batch):
        if isinstance(item, Tensor) and item.ndim > 0:
            return len(item)
        if isinstance(item, PackedSequence):
            return int(item.batch_sizes[0])
    raise InputError(
        "a batch without tensors cannot be taken apart into examples",
        got=type(batch).__name__,
        todo="put the inputs into the batch as tensors, the first axis over examples",
    )


def examples(batch: Batch, start: int, stop: int) -> Any:
    """Examples `start` to `stop` of a batch, as a smaller batch.

    Tensors and lists of plain values whose length is the batch's are sliced; whatever else is in the batch is
    shared by all examples and passed on.
    """
    n = batch_size(batch)

    def part(item: Any) -> Any:
        return item[start:stop] if _per_example(item, n) else item

    return map_leaves(part, batch)


def _per_example(item: Any, n: int) -> bool:
    return (isinstance(item, Tensor) and item.ndim > 0 and len(item) == n) or (_is_column(item) and len(item) == n)


def _is_column(item: Any) -> bool:
    """A list of texts, numbers or Nones: one value per example, as collate functions leave them."""
    return isinstance(item, list) and all(v is None or isinstance(v, str | bytes | int | float) for v in item)


def length(batches: Batches) -> int:
    """Number of batches, 0 where it is not known beforehand."""
    if not isinstance(batches, Sized):
        return 0
    try:
        return len(batches)
    except TypeError:  # a DataLoader over an IterableDataset has __len__ and refuses it
        return 0


def check_batches(batches: object) -> None:
    """Refuse data that cannot be iterated again, or that is visibly empty; reads no example.

    Raises:
        OneShotIterable: a generator, `zip`, `map`, an open iterator.
        EmptyData: no batch.  InputError: not iterable, or one batch instead of several.
    """
    if isinstance(batches, Iterator):
        raise OneShotIterable(
            "the data can be iterated only once",
            where="batches",
            expected="something that can be iterated again: a DataLoader, a list of batches",
            got=f"a {type(batches).__name__}",
            todo="write list(...) around it if it fits in memory, or pass the DataLoader itself",
        )
    if isinstance(batches, Tensor | Mapping | str | bytes):
        raise InputError(
            "one batch was given where an iterable of batches belongs",
            where="batches",
            expected="an iterable of batches: a DataLoader, a list of batches",
            got=f"a {type(batches).__name__}",
            todo="write [batch] for a single batch",
        )
    if not _iterates(batches):
        raise InputError(
            "the data cannot be iterated",
            where="batches",
            expected="an iterable of batches: a DataLoader, a list of batches",
            got=f"a {type(batches).__name__}",
        )
    if isinstance(batches, Sized):
        try:
            empty = len(batches) == 0
        except TypeError:
            empty = False
        if empty:
            raise _no_examples()


def _iterates(batches: object) -> bool:
    # `__getitem__` alone makes an iterable too (a plain map-style dataset of ready batches).
    return any("__iter__" in c.__dict__ or "__getitem__" in c.__dict__ for c in type(batches).__mro__)


def _no_examples() -> EmptyData:
    return EmptyData(
        "the data holds no example",
        where="batches",
        expected="at least one batch with at least one example",
        todo="if it worked once before, the data can be iterated only once: pass the DataLoader, not its iterator",
    )


# Content hashes


def batch_hashes(batch: Batch) -> list[str]:
    """One hash of the content per example of a batch: all its tensors (dtype, shape, bytes) and strings.

    Inputs and labels both count. What belongs to no single example (tensors of another length) counts for all.
    """
    n = batch_size(batch)
    hashers = [hashlib.sha256() for _ in range(n)]
    for path, item in leaves(batch):
        if _per_example(item, n) and not isinstance(item, Tensor):
            for hasher, value in zip(hashers, item, strict=True):
                hasher.update(f"{path}|{_describe(value)}".encode())
        elif _per_example(item, n):
            data = item.detach().cpu().contiguous()
            header = f"{path}|{data.dtype}|{list(data.shape[1:])}".encode()
            rows = _bytes(data, n)
            for i, hasher in enumerate(hashers):
                hasher.update(header)
                hasher.update(rows[i])
        else:
            shared = f"{path}|{_describe(item)}".encode()
            for hasher in hashers:
                hasher.update(shared)
    return [h.hexdigest() for h in hashers]


def _bytes(data: Tensor, n: int) -> list[bytes]:
    if data.numel() == 0:
        return [b""] * n
    flat = data.reshape(n, -1).contiguous()
    raw = (flat.view(torch.uint8) if not flat.is_complex() else torch.view_as_real(flat).view(torch.uint8)).numpy()
    return [raw[i].tobytes() for i in range(n)]


def _describe(item: Any) -> str:
    if isinstance(item, Tensor):
        data = item.detach().cpu().reshape(1, -1)
        return f"{data.dtype}|{list(item.shape)}|{hashlib.sha256(_bytes(data, 1)[0]).hexdigest()}"
    if isinstance(item, PackedSequence):
        return f"packed|{_describe(item.data)}|{_describe(item.batch_sizes)}"
    if item is None or isinstance(item, str | bytes | int | float | bool):
        return f"{type(item).__name__}|{item!r}"
    if isinstance(item, list):
        return f"list|{item!r}"
    return type(item).__name__  # an object without known content: its class only, never its address


def example_hashes(batches: Batches) -> list[str]:
    """One content hash (sha256, hex) per example, in the order of the data.

    Two examples agree where all tensors and strings agree bit for bit, labels included. The same text padded to
    another length, or an image augmented anew at every pass, has another hash.

    Raises:
        OneShotIterable, EmptyData: of the data.
    """
    check_batches(batches)
    hashes = [h for batch in batches for h in batch_hashes(batch)]
    if not hashes:
        raise _no_examples()
    return hashes


def check_data(batches: Batches, hashes: Sequence[str]) -> None:
    """Refuses data that are not the same, in the same order, at the next pass; `hashes` are those of the first."""
    if example_hashes(batches) != hashes:
        raise InputError(
            "the search data are not the same from one pass to the next",
            where="batches",
            expected="the same examples in the same order: the pruned model is compared with the dense one by position",
            todo="turn shuffling and random augmentation off for the search data",
        )


def combine_hashes(hashes: Sequence[str], *, ordered: bool = False) -> str:
    """One hash of many: of their order too if `ordered`; else their sum modulo 2^256, so that parts can be added."""
    if ordered:
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return f"{sum(int(h, 16) for h in hashes) % 2**256:064x}"


def fingerprint_data(batches: Batches, *, ordered: bool = False) -> str:
    """One hash of all examples, whatever the batch size.

    Args:
        ordered: whether the order counts. Folds by position need that; a shuffling loader then never has the
            same fingerprint twice.
    """
    return combine_hashes(example_hashes(batches), ordered=ordered)
