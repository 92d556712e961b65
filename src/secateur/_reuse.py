"""Prefix reuse: up to the first operation that a cut changes, a cut model computes what the dense model computed.

The dense forward is recorded once per batch. A cut model then runs the user's own forward again: as long as it asks
for the recorded operations on equal operands it is given their results without computing them, and from there on it
computes. Nothing is assumed about models, parameters or groups: operations and operands are compared, one by one.
Results that nobody reads afterwards are not kept; empty memory of the right size stands for them.

What a tensor is, is told by the memory it lies in (a cell) and its place there: views need no care, and a result that
is overwritten later on is handed out as it will be when the computing begins.

Index conventions: p position in the sequence of operations of one forward; views are not counted.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import time
import weakref
from collections.abc import Callable, Collection, Hashable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from secateur import _evaluate
from secateur._evaluate import Evaluation
from secateur._replay import intercepted, map_tensors, undisturbed, written_tensors
from secateur.errors import InputError
from secateur.schema.task import Batch, Task

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    f"{letter}IB": 2 ** (10 * (i + 1)) for i, letter in enumerate("KMGT")
}


def bytes_of(memory: int | str) -> int:
    """A number of bytes, also as text: `2GiB`, `500 MB`.

    Raises:
        InputError: neither.
    """
    text = str(memory).strip().upper()
    digits = text.rstrip("BIKMGT ")
    try:
        n = int(float(digits) * _UNITS[text[len(digits) :].strip()])
    except (ValueError, KeyError, OverflowError):
        n = -1
    if n < 0:
        raise InputError(
            "this is no amount of memory", where="memory", expected='bytes, or text such as "2GiB"', got=memory
        )
    return n


# What is recorded


class Seen(NamedTuple):
    """A tensor as an operation meets it: a place in a cell, or in memory that comes from outside.

    `version`: how often that memory had been written; it is worth nothing any more once that is not so.
    """

    memory: int | Tensor
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    version: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One operation of the dense forward.

    Attributes:
        args, out: as called and returned, every tensor as `Seen`.
        aliases: all that it returns lies in the memory of its operands, and it writes nothing.
        seconds: that it took.
    """

    function: Any
    args: Any
    out: Any
    aliases: bool
    seconds: float


@dataclass(slots=True, kw_only=True)
class Cell:
    """Memory that an operation made.

    Attributes:
        born, last: position of the operation that made it, and of the last one that reads or writes it.
        writes: positions of the operations that write it, ascending.
    """

    born: int
    last: int
    n_bytes: int
    writes: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """A forward of the dense model on one batch, up to the losses.

    Attributes:
        limit: position beyond which nothing may be reused: something is drawn at random there, or memory written that
            was there before.
    """

    steps: tuple[Step, ...]
    cells: tuple[Cell, ...]
    limit: int

    @property
    def signature(self) -> tuple[Any, ...]:
        """The operations. Batches on which they are the same part from a cut model at the same position."""
        return tuple(step.function for step in self.steps)

    def live(self, p: int) -> tuple[int, ...]:
        """Cells that exist when operation p begins and are needed from there on."""
        return tuple(i for i, cell in enumerate(self.cells) if cell.born < p <= cell.last)

    def versions(self, p: int) -> dict[tuple[int, int], int]:
        """Bytes of the live cells, each with the number of times that it was written before p."""
        return {(i, bisect.bisect_left(self.cells[i].writes, p)): self.cells[i].n_bytes for i in self.live(p)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefix:
    """A batch with what the dense model computes on it.

    Attributes:
        parts: family of cut models -> position at which they part from the dense one.
        kept: position -> content of the live cells there. Empty: nothing is reused.
    """

    batch: Batch
    recording: Recording | None = None
    parts: Mapping[Hashable, int] = field(default_factory=dict)
    kept: Mapping[int, Mapping[int, torch.UntypedStorage]] = field(default_factory=dict)


class _Parted(Exception):
    """A forward has left the recorded sequence, or asks for what was not kept."""


# Tensors and their memory


class Handed(Tensor):
    """A tensor that asks before it is read past the operations.

    Of one that was handed out instead of computed the memory may hold nothing, or what it will hold later.
    """

    # Operations on it are ordinary ones, with ordinary results.
    __torch_function__ = nn.Parameter.__torch_function__
    owner: weakref.ref[_Recorder | _Follower]

    def _values(self, *, shared: bool = True) -> Tensor:
        owner = self.owner()
        if owner is None:  # a forward has left it in the module, and another one found it there
            raise _Parted("a result outlived its forward")
        return owner.values(self, shared=shared)

    def tolist(self) -> Any:
        """As of a tensor."""
        return self._values(shared=False).tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """As of a tensor."""
        return self._values().numpy(force=force)

    def data_ptr(self) -> int:
        """As of a tensor."""
        return self._values().data_ptr()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """As of a tensor."""
        return self._values().__array__(*args, **kwargs)

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        """As of a tensor."""
        return self._values().__dlpack__(*args, **kwargs)


def _marked(out: Any, owner: _Recorder | _Follower) -> Any:
    """Results that lie in cells as `Handed`."""

    def mark(tensor: Tensor) -> Tensor:
        if owner.book.of(tensor) is None:
            return tensor
        made = tensor.as_subclass(Handed)
        made.owner = weakref.ref(owner)
        return made

    return map_tensors(out, mark)


class _Cells:
    """Which cell a tensor lies in, during one forward.

    The weak references do not keep memory, but keep its address from being given to other memory.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[int, StorageWeakRef]] = {}

    def of(self, tensor: Tensor) -> int | None:
        found = self.known.get(_address(tensor))
        return None if found is None else found[0]

    def enter(self, tensor: Tensor, cell: int) -> None:
        self.known[_address(tensor)] = cell, StorageWeakRef(tensor.untyped_storage())

    def seen(self, tensor: Tensor) -> Seen:
        cell = self.of(tensor)
        return Seen(
            tensor if cell is None else cell,
            tuple(tensor.shape),
            tensor.stride(),
            int(tensor.storage_offset()),
            tensor.dtype,
            tensor.device,
            0 if cell is not None or tensor.is_inference() else tensor._version,
        )

    def described(self, item: Any) -> Any:
        """Arguments or results with every tensor as `Seen`."""
        if isinstance(item, Tensor):
            return self.seen(item)
        if isinstance(item, tuple | list):
            parts = [self.described(part) for part in item]
            return parts if isinstance(item, list) else tuple(parts)
        if isinstance(item, dict):
            return [(key, self.described(item[key])) for key in sorted(item)]
        return item


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Address and size of the memory that a tensor lies in: `set_` and `resize_` change them."""
    return _address(tensor), tensor.untyped_storage().nbytes()


def _plain(tensors: Sequence[Tensor]) -> bool:
    """Whether these are ordinary tensors, which own memory can be told of."""
    return all(
        type(t) in (Tensor, nn.Parameter, Handed) and t.layout == torch.strided and not t.is_quantized and not t.is_meta
        for t in tensors
    )


def _tensors(item: Any) -> list[Tensor]:
    if isinstance(item, Tensor):
        return [item]
    if isinstance(item, tuple | list):
        return [t for part in item for t in _tensors(part)]
    return _tensors(list(item.values())) if isinstance(item, dict) else []


def _all_seen(item: Any) -> list[Seen]:
    if isinstance(item, Seen):
        return [item]
    return [seen for part in item for seen in _all_seen(part)] if isinstance(item, tuple | list) else []


def _is_view(function: Any, out: Any, given: Sequence[Tensor]) -> bool:
    """Whether this is a view, and really one: `reshape` may be either."""
    return bool(function.is_view) and {_address(t) for t in _tensors(out)} <= {_address(t) for t in given}


# The dense model


class _Keeper:
    """Keeps the live cells at some positions of a forward that is expected to go as `plan` did."""

    def __init__(self, plan: Recording, positions: Collection[int]) -> None:
        self.plan = plan
        self.wanted = {p: plan.versions(p) for p in positions}
        self.needed = {cell for versions in self.wanted.values() for cell, _ in versions}
        self.memory: dict[int, torch.UntypedStorage] = {}
        self.versions: dict[tuple[int, int], torch.UntypedStorage] = {}
        self.kept: dict[int, dict[int, torch.UntypedStorage]] = {}

    def enter(self, cell: int, tensor: Tensor) -> None:
        """An operation has made this cell."""
        if cell in self.needed:
            self.memory[cell] = tensor.untyped_storage()

    def keep(self, p: int) -> None:
        """The live cells as they are before operation p; copied where that or a later one writes them."""
        if p in self.wanted and self.memory.keys() >= {cell for cell, _ in self.wanted[p]}:
            for cell, version in self.wanted[p].keys() - self.versions.keys():
                overwritten = len(self.plan.cells[cell].writes) > version
                self.versions[cell, version] = self.memory[cell].clone() if overwritten else self.memory[cell]
            self.kept[p] = {cell: self.versions[cell, version] for cell, version in self.wanted[p]}


class _Recorder:
    """Runs every operation and writes it down."""

    def __init__(self, keeper: _Keeper | None) -> None:
        self.keeper, self.book = keeper, _Cells()
        self.steps: list[Step] = []
        self.cells: list[Cell] = []
        self.limit: float = math.inf

    def operation(self, function: Any, args: Any, kwargs: Any) -> Any:
        given, p = _tensors((args, kwargs)), len(self.steps)
        if not _plain(given):
            return self._beyond(function(*args, **kwargs), given)
        operands, written = self.book.described((args, kwargs)), written_tensors(function, args, kwargs)
        if self.keeper is not None and not function.is_view:
            self.keeper.keep(p)
        may_draw = torch.Tag.nondeterministic_seeded in function.tags
        drawn, memory = _random_state(given) if may_draw else None, [_memory(t) for t in given]
        start = time.perf_counter()
        out = function(*args, **kwargs)
        seconds = time.perf_counter() - start
        made = _tensors(out)
        if not _plain(made):
            return self._beyond(out, given)
        if _is_view(function, out, given):
            return _marked(out, self)
        moved = memory != [_memory(t) for t in given]
        if torch.Tag.inplace_view in function.tags and not moved:
            written = []  # `transpose_` writes where the values are to be found, not the values
        old = {_address(t) for t in given}
        inside = [_address(t) in old for t in made]
        self._enter([t for t, is_old in zip(made, inside, strict=True) if not is_old], p)
        aliases = bool(made) and all(inside) and not written
        self._note(p, [] if aliases else given, written)
        if (
            (may_draw and drawn != _random_state(given))
            or any(isinstance(a, torch.Generator) for a in (*args, *kwargs.values()))
            or any(self.book.of(t) is None for t in written)
            or moved
            or 0 < sum(inside) < len(inside)  # part of it new, part of it old
        ):
            self.limit = min(self.limit, p)
        results = self.book.described(out)
        self.steps.append(Step(function=function, args=operands, out=results, aliases=aliases, seconds=seconds))
        return _marked(out, self)

    def values(self, tensor: Tensor, *, shared: bool) -> Tensor:
        """A tensor that is read past the operations: nothing is reused beyond."""
        p = len(self.steps)
        self.limit = min(self.limit, p)
        self._note(p, [tensor], [tensor] if shared else [])
        if self.keeper is not None:
            with undisturbed():
                self.keeper.keep(p)  # before it is written
        return tensor.as_subclass(Tensor)

    def _enter(self, fresh: Sequence[Tensor], p: int) -> None:
        for tensor in fresh:
            if self.book.of(tensor) is not None:
                self.limit = min(self.limit, p)  # two results in one memory
            else:
                if self.keeper is not None:
                    self.keeper.enter(len(self.cells), tensor)
                self.book.enter(tensor, len(self.cells))
                self.cells.append(Cell(born=p, last=p, n_bytes=tensor.untyped_storage().nbytes()))

    def _note(self, p: int, read: Sequence[Tensor], written: Sequence[Tensor] = ()) -> None:
        for cell in {self.book.of(t) for t in (*read, *written)} - {None}:
            self.cells[cell].last = p  # type: ignore[index]
        for cell in {self.book.of(t) for t in written} - {None}:
            self.cells[cell].writes.append(p)  # type: ignore[index]

    def _beyond(self, out: Any, given: Sequence[Tensor]) -> Any:
        """There are tensors that are no plain memory: nothing is reused from here on."""
        self.limit = min(self.limit, len(self.steps))
        self._note(len(self.steps), [t for t in given if _plain([t])])
        return out

    def finish(self, results: Sequence[Tensor]) -> Recording:
        end = len(self.steps)
        self._note(end, results)
        if self.keeper is not None:
            self.keeper.keep(end)
        return Recording(steps=tuple(self.steps), cells=tuple(self.cells), limit=int(min(self.limit, end)))


def record(model: nn.Module, batch: Batch, task: Task, keeper: _Keeper | None = None) -> Recording:
    """The operations of the dense model on a batch; what the keeper asks for is kept by the way."""
    recorder = _Recorder(keeper)
    with _own_randomness(model), intercepted(recorder.operation):
        results = _evaluate.evaluate_batch(model, batch, task)
    return recorder.finish(_of(results))


def _random_state(near: Sequence[Tensor]) -> tuple[bytes, ...]:
    """Of the generators that an operation on these tensors may draw from: attention without dropout draws nothing."""
    cards = {t.device for t in near if t.device.type == "cuda"}
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(card) for card in sorted(cards, key=str))]
    return tuple(state.numpy().tobytes() for state in states)


def _own_randomness(model: nn.Module) -> AbstractContextManager[None]:
    """What the dense model draws must not be missing for those that are measured."""
    device = _evaluate.device_of(model)
    return torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else [])


def _of(results: Evaluation) -> list[Tensor]:
    return [t for t in (results.losses, results.correct, results.weights) if t is not None]


# The cut models


class _Follower:
    """Hands out recorded results before position `start`, and computes from there on.

    Args:
        content: of the cells that are live at `start`; None = nothing, and the forward ends there.
    """

    def __init__(self, recording: Recording, start: int, content: Mapping[int, torch.UntypedStorage] | None) -> None:
        self.recording, self.start, self.content = recording, start, content
        self.p, self.book = 0, _Cells()
        self.hollow: set[int] = set()  # cells of which only the size is right
        self.failed = False

    def operation(self, function: Any, args: Any, kwargs: Any) -> Any:
        given = _tensors((args, kwargs))
        if function.is_view and _is_view(function, out := function(*args, **kwargs), given):
            return _marked(out, self)
        run = self._handed if self.p < self.start else self._computed
        return run(function, args, kwargs, given)

    def part(self, reason: str) -> _Parted:
        """The end of it, also where the forward catches exceptions."""
        self.failed = True
        return _Parted(reason)

    def outlived(self) -> bool:
        """Whether somebody still holds a result without content: a later forward might read it."""
        return any(cell in self.hollow and not memory.expired() for cell, memory in self.book.known.values())

    def values(self, tensor: Tensor, *, shared: bool) -> Tensor:
        """A tensor that is to be read past the operations; `shared`: and may be written so."""
        cell = self.book.of(tensor)
        if self.p < self.start or cell in self.hollow or (shared and cell is not None and not self._overwritten(cell)):
            raise self.part("values are read that are not there")
        return tensor.as_subclass(Tensor)

    def _computed(self, function: Any, args: Any, kwargs: Any, given: Sequence[Tensor]) -> Any:
        if self.content is None:
            raise self.part("the end of what can be reused")
        if self.hollow and any(self.book.of(t) in self.hollow for t in given):
            raise self.part("a result is needed that was not kept")
        for tensor in written_tensors(function, args, kwargs):
            cell = self.book.of(tensor)
            if cell is not None and not self._overwritten(cell):
                raise self.part("memory is written that the dense model only reads")
        return function(*args, **kwargs)

    def _overwritten(self, cell: int) -> bool:
        """Whether the dense model writes the cell from `start` on: then every forward has a copy of its own."""
        return self.recording.cells[cell].writes[-1:] >= [self.start]

    def _handed(self, function: Any, args: Any, kwargs: Any, given: Sequence[Tensor]) -> Any:
        step = self.recording.steps[self.p]
        if function is not step.function or not self._equal(step.args, (args, kwargs)):
            raise self.part("another operation, or other operands, than in the dense model")
        out = _marked(function(*args, **kwargs), self) if step.aliases else self._results(step.out, given)
        self.p += 1
        return out

    def _equal(self, recorded: Any, got: Any) -> bool:
        if isinstance(recorded, Seen):
            return isinstance(got, Tensor) and _plain([got]) and self._same(recorded, got)
        if isinstance(recorded, tuple | list):
            got = [(key, got[key]) for key in sorted(got)] if isinstance(got, dict) else got
            return (
                isinstance(got, tuple | list)
                and len(got) == len(recorded)
                and all(self._equal(a, b) for a, b in zip(recorded, got, strict=True))
            )
        return type(recorded) is type(got) and bool(recorded == got)

    def _same(self, recorded: Seen, got: Tensor) -> bool:
        """The same place of the same cell, or equal values from outside."""
        seen = self.book.seen(got)
        if recorded[1:-1] != seen[1:-1]:
            return False
        if isinstance(recorded.memory, Tensor) and isinstance(seen.memory, Tensor):
            written = not recorded.memory.is_inference() and recorded.memory._version != recorded.version
            return not written and (recorded.memory is got or bool(torch.equal(recorded.memory, got)))
        return type(recorded.memory) is type(seen.memory) and bool(recorded.memory == seen.memory)

    def _results(self, recorded: Any, given: Sequence[Tensor]) -> Any:
        if isinstance(recorded, Seen):
            return self._tensor(recorded, given)
        if isinstance(recorded, tuple | list):
            return type(recorded)(self._results(part, given) for part in recorded)
        return recorded

    def _tensor(self, recorded: Seen, given: Sequence[Tensor]) -> Any:
        """An operand, where the operation returned one, else a new tensor."""
        cell = recorded.memory
        assert isinstance(cell, int), "a result that is no view lies in new memory, or in that of an operand"
        for operand in given:
            if self.book.of(operand) == cell and self.book.seen(operand) == recorded:
                return operand
        storage = next((t.untyped_storage() for t in given if self.book.of(t) == cell), None)
        if storage is None:
            storage = self._storage(cell, recorded.device)
        made = torch.empty(0, dtype=recorded.dtype, device=recorded.device)
        made = made.set_(storage, recorded.offset, recorded.shape, recorded.stride)
        self.book.enter(made, cell)
        return _marked(made, self)

    def _storage(self, cell: int, device: torch.device) -> torch.UntypedStorage:
        found = None if self.content is None else self.content.get(cell)
        if found is None:
            self.hollow.add(cell)
            return torch.UntypedStorage(self.recording.cells[cell].n_bytes, device=device)
        return found.clone() if self._overwritten(cell) else found


def part(recording: Recording, small: nn.Module, batch: Batch, task: Task) -> int:
    """The position at which a cut model parts from the dense one; computes nothing, and spoils the model.

    Forwards may leave in their module what they were given: throw `small` away.
    """
    follower = _Follower(recording, recording.limit, None)
    try:
        with _own_randomness(small), intercepted(follower.operation):
            _evaluate.evaluate_batch(small, batch, task)
    except Exception:  # noqa: BLE001 - whatever a forward makes of results without content, it came to this position
        pass
    return follower.p


def choose(recording: Recording, uses: Mapping[int, int], memory: int) -> tuple[int, ...]:
    """Positions at which keeping the live cells saves the most time per byte, within `memory` bytes.

    A cut model that parts at p goes on from the last kept position that is not after p. Greedy: the position that
    saves the most time per further byte comes first.

    Args:
        uses: position -> how many forwards part there.
    """
    at = sorted(p for p in uses if 0 < p <= recording.limit)
    reached = list(itertools.accumulate((step.seconds for step in recording.steps), initial=0.0))
    forwards = list(itertools.accumulate((uses[p] for p in at), initial=0))
    versions = {p: recording.versions(p) for p in at}
    chosen: list[int] = []
    held: dict[tuple[int, int], int] = {}

    def gain(p: int) -> float:
        i = bisect.bisect_left(chosen, p)
        until = bisect.bisect_left(at, chosen[i]) if i < len(chosen) else len(at)
        saved = reached[p] - (reached[chosen[i - 1]] if i else 0.0)
        return saved * (forwards[until] - forwards[bisect.bisect_left(at, p)])

    while left := [p for p in at if p not in chosen]:
        price = {p: sum(n for key, n in versions[p].items() if key not in held) for p in left}
        affordable = [p for p in left if sum(held.values()) + price[p] <= memory]
        if not affordable:
            break
        best = max(affordable, key=lambda p: (gain(p) / max(price[p], 1), p))
        bisect.insort(chosen, best)
        held |= versions[best]
    return tuple(chosen)


def prepare(
    model: nn.Module,
    batch: Batch,
    task: Task,
    families: Mapping[Hashable, tuple[Callable[[], nn.Module], int]],
    *,
    memory: int,
    known: MutableMapping[Any, dict[Hashable, int]],
    plan: Recording | None = None,
) -> Prefix:
    """Run the dense model on a batch and keep what cut models will go on from.

    Args:
        model: a copy that nobody else uses: its forward may leave in it what was observed.
        families: of cut models that part from the dense one at the same position: how to make one of them, and how many
            forwards there will be.
        memory: bytes that may be kept for this batch.
        known: where families part from the dense model, by signature of a recording; grows.
        plan: of an earlier batch: if this one goes the same way, one pass of the dense model is enough.

    Returns:
        A prefix; one without content where the dense forward cannot be observed, or that would not pay.
    """
    uses = {family: n for family, (_, n) in families.items()}
    if not memory or not _pays(uses, plan, known):
        return Prefix(batch=batch)
    try:
        keeper = None if plan is None else _keeper(plan, uses, known[plan.signature], memory)
        recording = record(model, batch, task, keeper)
        parts = known.setdefault(recording.signature, {})
        for family, (make, _) in families.items():
            if family not in parts:
                parts[family] = part(recording, make(), batch, task)
        if keeper is None or not _same_course(keeper.plan, recording):
            keeper = _keeper(recording, uses, parts, memory)
            # What is kept belongs to the operands of this very pass: a model may count its passes.
            recording = record(model, batch, task, keeper)
            if not _same_course(keeper.plan, recording):
                return Prefix(batch=batch)
    except (RuntimeError, TypeError, ValueError, AttributeError, _Parted):  # the forward does not bear observation
        return Prefix(batch=batch)
    return Prefix(batch=batch, recording=recording, parts=parts, kept=keeper.kept)


def _keeper(recording: Recording, uses: Mapping[Hashable, int], parts: Mapping[Hashable, int], memory: int) -> _Keeper:
    return _Keeper(recording, choose(recording, _by_position(uses, parts), memory))


def _by_position(uses: Mapping[Hashable, int], parts: Mapping[Hashable, int]) -> dict[int, int]:
    made: dict[int, int] = {}
    for family, n in uses.items():
        p = parts.get(family, 0)
        made[p] = made.get(p, 0) + n
    return made


def _same_course(a: Recording, b: Recording) -> bool:
    """Whether the same operations make, read and write the same cells, whatever their sizes."""
    return a.signature == b.signature and [(c.born, c.last, c.writes) for c in a.cells] == [
        (c.born, c.last, c.writes) for c in b.cells
    ]


def _pays(uses: Mapping[Hashable, int], plan: Recording | None, known: Mapping[Any, Mapping[Hashable, int]]) -> bool:
    """Whether what is saved is more than two further passes of the dense model."""
    if plan is None:
        return sum(uses.values()) > 4
    reached = list(itertools.accumulate((step.seconds for step in plan.steps), initial=0.0))
    by_position = _by_position(uses, known[plan.signature])
    return sum(n * reached[p] for p, n in by_position.items()) > 2 * reached[-1]


def evaluate(prefix: Prefix, small: nn.Module, task: Task, family: Hashable, *, where: str) -> Evaluation | None:
    """A cut model on a batch, without computing what the dense model has computed.

    Returns:
        The losses and scores of the batch; None where the forward does not do what was recorded, fails, or leaves
        results behind. Then make the cut model anew and evaluate it in full: this one may hold results without content.
    """
    if prefix.recording is None:
        return _evaluate.evaluate_batch(small, prefix.batch, task, where=where)
    limit = prefix.parts.get(family, 0)
    start = max((p for p in prefix.kept if p <= limit), default=0)
    follower = _Follower(prefix.recording, start, prefix.kept.get(start, {}))
    drawn = torch.get_rng_state()
    try:
        with intercepted(follower.operation):
            results = _evaluate.evaluate_batch(small, prefix.batch, task, where=where)
    except Exception:  # noqa: BLE001 - the full forward will tell whether this is the model's own error
        results = None
    if results is None or follower.failed or follower.p < start or follower.outlived():
        torch.set_rng_state(drawn)
        return None
    return dataclasses.replace(
        results,
        losses=results.losses.as_subclass(Tensor),
        correct=None if results.correct is None else results.correct.as_subclass(Tensor),
        weights=results.weights.as_subclass(Tensor),
    )
