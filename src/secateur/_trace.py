"""trace: record what computes what. One eager run of a throw-away copy per mode and example input."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram

from secateur._exported import Exported
from secateur._frames import Frames, rewrites
from secateur._lengths import sizes
from secateur._replay import (
    DROPOUT,
    Plain,
    Session,
    TracedInt,
    base_name,
    check_runs,
    leaves,
    map_tensors,
    origin_of,
    quiet,
    run_watched,
    set_mode,
    source_line,
    stage,
    uncollected,
    written_tensors,
)
from secateur._surgery import fingerprint_structure, tensors
from secateur._training import Asked, changed_by_mode, training_flags_read
from secateur.errors import InputError, TraceError, UnsupportedModel
from secateur.ops.modules import swap_key
from secateur.ops.sizes import CELLS
from secateur.schema.graph import Attribute, Call, Graph, Integer, Node, Parameter, Ref, Run, Size, Value

ExampleInputs = Tensor | tuple[Any, ...] | Mapping[str, Any] | list[Any]

_ATOMS = frozenset((type(None), bool, int, float, str))
_MODES: tuple[Literal["eval", "train"], ...] = ("eval", "train")
# calls whose integer arguments shape their result, kept even when no integer in them has a memory; and those of cells
_SHAPING = CELLS.union(
    "view reshape expand repeat new_zeros new_ones new_full new_empty zeros ones empty full unflatten split slice pad "
    "split_with_sizes chunk tensor_split __getitem__ narrow slice_scatter conv1d conv2d conv3d conv_transpose1d "
    "conv_transpose2d conv_transpose3d group_norm layer_norm rms_norm repeat_interleave unfold roll __setitem__".split()
)


@uncollected()
def trace(
    model: nn.Module, example_inputs: ExampleInputs | None = None, *, exported: ExportedProgram | None = None
) -> Graph:
    """Record what computes what, in evaluation and in training mode, on every example input given.

    Args:
        model: any model that runs; it is only read. A compiled or data-parallel wrapper is looked through.
        example_inputs: what the model takes: a tensor, a tuple of arguments, a mapping of keyword arguments,
            or a list of several of those. Small ones will do: batch 1 or 2, the smallest legal size.
        exported: what `torch.export.export` made of this very model. The operations are then taken from the program
            (in evaluation mode, with its own example inputs), and the forward of the model is not run here. Integers of
            the forward are literals in a program: what they count is frozen, but for those of torch.nn's own layers.

    Returns:
        The graph: symbolic, without weights or activations.

    Raises:
        TraceError: the model cannot be run on the example inputs.
        UnsupportedModel: a quantised, scripted or lazily built model.
    """
    model = unwrapped(model)
    check_supported(model)
    if exported is not None:
        return _trace_exported(model, example_inputs, exported)
    if example_inputs is None:
        raise InputError("no example inputs", todo="pass one batch as the model takes it")
    runs: list[Run] = []
    notes: list[str] = []
    touched: set[str] = set()
    attributes: dict[Attribute, int] = {}
    recorded: dict[str, list[Frames]] = {"eval": [], "train": []}
    for example, inputs in enumerate(each_input(example_inputs)):
        for mode in _MODES:
            try:
                recording = _record(model, inputs, mode, example)
            except Exception as error:
                if mode == "eval":
                    if not any(t.is_meta for _, _, t in tensors(model)):
                        check_runs(model, inputs)
                    raise TraceError(
                        "the forward could not be recorded",
                        where=type(model).__name__,
                        got=f"{type(error).__name__}: {error}",
                        todo="please report it with the model; a forward that runs should record",
                    ) from error
                notes.append(f"training mode was not recorded: {type(error).__name__}: {str(error)[:200]}")
                continue
            touched |= recording.touched
            recorded[mode].append(recording.frames)
            if not any(_same(recording.run, other) for other in runs):
                runs.append(recording.run)
            attributes.update(recording.attributes)
            if recording.for_both:
                recorded["train"].append(recording.frames)
                break
    parameters = _parameters(model)
    return Graph(
        runs=tuple(runs),
        parameters=parameters,
        attributes=tuple(attributes.items()),
        swaps=tuple((path, key) for path, m in model.named_modules() if (key := swap_key(m)) is not None),
        unexecuted=_unexecuted(parameters, touched),
        notes=tuple(dict.fromkeys(notes)),
        structure=fingerprint_structure(model),
        rewrites=rewrites(recorded),
        examples=tuple(each_input(example_inputs)),
    )


def _trace_exported(model: nn.Module, example_inputs: ExampleInputs | None, exported: ExportedProgram) -> Graph:
    program = Exported(exported, model)
    inputs = program.inputs if example_inputs is None else each_input(example_inputs)[0]
    session = Session()
    recorder = _Recorder(session, program.names(), {n: c for n, c, _ in tensors(model)}, program.attributes)
    recorder.place = program.place
    try:
        run = _run_of(program.on(session), inputs, recorder, "eval", 0)
    except Exception as error:
        raise TraceError(
            "the exported program could not be recorded",
            where=type(model).__name__,
            got=f"{type(error).__name__}: {error}",
            todo="trace the model itself: sc.trace(model, example_inputs)",
        ) from error
    touched = {v.name for v in run.values if v.name is not None}
    parameters = _parameters(model)
    return Graph(
        runs=(run,),
        parameters=parameters,
        attributes=tuple(program.attributes.items()),
        swaps=(),
        unexecuted=_unexecuted(parameters, touched),
        notes=("recorded from an exported program: training mode and other branches were not seen",),
        structure=fingerprint_structure(model),
        examples=(inputs,),
    )


def _unexecuted(parameters: Sequence[Parameter], touched: Collection[str]) -> tuple[str, ...]:
    executed = {p.canonical for p in parameters if p.name in touched}
    return tuple(p.name for p in parameters if p.name == p.canonical and p.name not in executed and p.dtype != "int64")


def _same(run: Run, other: Run) -> bool:
    """Whether a run says nothing that another one has not said: training mode of a model without branches."""
    return dataclasses.replace(run, mode=other.mode) == other


def each_input(example_inputs: ExampleInputs) -> Sequence[Any]:
    """The example inputs one by one."""
    items = example_inputs if isinstance(example_inputs, list) else [example_inputs]
    for item in items:
        if not isinstance(item, Tensor | tuple | Mapping):
            raise InputError(
                "example inputs must be a tensor, a tuple of arguments or a mapping of keyword arguments",
                got=type(item).__name__,
                todo="pass one batch as the model takes it, for example next(iter(loader))[0]",
            )
    if not items:
        raise InputError("no example inputs", todo="pass one batch as the model takes it")
    return items


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile or (Distributed)DataParallel."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


def check_supported(model: nn.Module) -> None:
    """Refuse by name what cannot be cut.

    Raises:
        UnsupportedModel: scripted, quantised or lazy modules.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModel(
            "a scripted model has no Python forward to keep", todo="prune the model before torch.jit.script or trace"
        )
    for path, module in model.named_modules():
        kind = type(module)
        if "quantized" in kind.__module__ or kind.__module__.startswith(("torchao", "bitsandbytes")):
            raise UnsupportedModel(
                "quantised modules cannot be cut",
                where=path,
                got=kind.__name__,
                todo="prune first, quantise afterwards",
            )
    for name, _, tensor in tensors(model):
        if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            raise UnsupportedModel(
                "a lazy module has no sizes yet", where=name, todo="run the model once on real data, then prune"
            )
        if tensor.is_quantized or tensor.layout != torch.strided:
            raise UnsupportedModel(
                "quantised or sparse tensors cannot be cut", where=name, got=f"{tensor.layout}, {tensor.dtype}"
            )


def _parameters(model: nn.Module) -> tuple[Parameter, ...]:
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return tuple(
        Parameter(
            name=name,
            canonical=canonical,
            kind="parameter" if name in own else "buffer",
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
        )
        for name, canonical, tensor in tensors(model)
    )


class _WritesWeights(Exception):
    """The forward wants to write a parameter or buffer that was lent to the recording for reading."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Recording:
    """What one run of the model told.

    Attributes:
        touched: names of the parameters and buffers that took part.  attributes: integers of modules, with values.
        for_both: a run in evaluation mode, and training mode would do the very same.
    """

    run: Run
    touched: set[str]
    attributes: dict[Attribute, int]
    frames: Frames
    for_both: bool


def _record(model: nn.Module, inputs: Any, mode: Literal["eval", "train"], example: int) -> _Recording:
    """Record on the memory of the user's weights, or on a copy where the forward writes to them."""
    with contextlib.suppress(_WritesWeights):
        return _recorded(model, inputs, mode, example, borrowed=True)
    return _recorded(model, inputs, mode, example, borrowed=False)


def _recorded(
    model: nn.Module, inputs: Any, mode: Literal["eval", "train"], example: int, *, borrowed: bool
) -> _Recording:
    session = Session()
    double, attributes, names = stage(model, session, borrowed=borrowed)
    set_mode(double, mode)
    canonical = {name: first for name, first, _ in tensors(model)}
    lent = _memories(model) if borrowed else frozenset()
    recorder = _Recorder(session, names, canonical, dict(attributes), lent=lent)
    recorder.named.extend(tensor for _, _, tensor in tensors(double))
    for path, module in double.named_modules():
        recorder.follow(path, module)
    inputs = map_tensors(copy.deepcopy(inputs), lambda t: t)
    with _without_weights(double, recorder) as inputs_for, training_flags_read() as asked:
        inputs = inputs_for(inputs)
        run = _run_of(double, inputs, recorder, mode, example)
    for number, path in session.lost:
        if sizes(session.escapes[number]):
            recorder.frames.problems.setdefault(path, "Python computes a number from the length of a tensor")
    return _Recording(
        run=run,
        touched={v.name for v in recorder.values if v.name is not None},
        attributes=dict(attributes),
        frames=recorder.frames,
        for_both=mode == "eval" and not _differs_in_training(double, asked, recorder.frames),
    )


def _differs_in_training(double: nn.Module, asked: Asked, frames: Frames) -> bool:
    """Whether the copy, which has run in evaluation mode, would do, or have to be written, otherwise in training."""
    if asked.differs or (asked.dropout and any(program.baked for program in frames.programs.values())):
        return True
    return changed_by_mode(double)


def _run_of(
    model: Callable[..., Any], inputs: Any, recorder: _Recorder, mode: Literal["eval", "train"], example: int
) -> Run:
    given = [recorder.register(t) for t in leaves(inputs)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            out = run_watched(model, inputs, recorder)
        finally:
            if recorder.refused:  # whatever the forward made of it
                raise _WritesWeights
    session = recorder.session
    # a parameter handed out by the forward was never part of an operation
    outputs = [recorder.reference(t).value for t in leaves(out)]
    return Run(
        mode=mode,
        example=example,
        values=tuple(recorder.values),
        nodes=tuple(recorder.nodes),
        calls=tuple(recorder.calls),
        comparisons=tuple(dict.fromkeys(session.comparisons)),
        escapes=tuple(session.escapes),
        inputs=tuple(given),
        outputs=tuple(outputs),
        lost=tuple(session.lost),
    )


def _memories(model: nn.Module) -> frozenset[int]:
    """Where the parameters and buffers of the model lie."""
    return frozenset(t.untyped_storage().data_ptr() for _, _, t in tensors(model)) - {0}


@contextlib.contextmanager
def _without_weights(double: nn.Module, recorder: _Recorder) -> Iterator[Callable[[Any], Any]]:
    """A model on the meta device runs on fake tensors: shapes without values, as if it were on the CPU."""
    if not any(t.is_meta for _, _, t in tensors(double)):
        yield lambda inputs: inputs
        return
    recorder.names.clear()  # the tensors that had these names are about to be freed
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for path, module in double.named_modules():
            for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is None:
                    continue
                made: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                if leaf in module._parameters:
                    made = nn.Parameter(made, requires_grad=False)
                setattr(module, leaf, made)
                recorder.name(made, f"{path}.{leaf}" if path else leaf)
        yield lambda inputs: map_tensors(
            inputs, lambda t: torch.empty(t.shape, dtype=t.dtype) if t.is_meta else fake.from_tensor(t)
        )


class _Recorder(Plain):
    """Writes down values, operations and the calls that shape them."""

    def __init__(
        self,
        session: Session,
        names: Mapping[int, str],
        canonical: Mapping[str, str],
        attributes: Mapping[Attribute, int],
        *,
        lent: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__(session)
        self.names, self.canonical = dict(names), canonical
        self.named: list[Tensor] = []  # kept alive: another tensor in the place of one would take over its name
        self.lent, self.refused = lent, False
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.calls: list[Call] = []
        self.known = _Known()
        self.modules = session.modules
        self.place: Callable[[], str] = source_line
        self.frames = Frames(lambda t: self.names.get(id(t)), attributes)

    def follow(self, path: str, module: nn.Module) -> None:
        """Keep track of the innermost module at work."""

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.modules.append(path)
            self.frames.enter(path, module, args, kwargs)

        def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            self.modules.pop()
            self.frames.leave(path, args, kwargs, out)

        module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        module.register_forward_hook(leave, always_call=True, with_kwargs=True)

    def name(self, tensor: Tensor, name: str) -> None:
        """This tensor stands for the parameter of that name."""
        self.names[id(tensor)] = name
        self.named.append(tensor)

    def register(self, tensor: Tensor) -> int:
        """A new value for this tensor."""
        name = self.names.get(id(tensor))
        self.values.append(
            Value(
                shape=tuple(Plain.sizes(self, tensor)),
                dtype=_dtype(tensor.dtype),
                param=None if name is None else self.canonical.get(name, name),
                name=name,
            )
        )
        self.known[tensor] = len(self.values) - 1
        return len(self.values) - 1

    def reference(self, tensor: Tensor) -> Ref:
        """The value of a tensor; a tensor never seen before is a constant of the model."""
        index = self.known.get(tensor)
        return Ref(self.register(tensor) if index is None else index)

    def sizes(self, tensor: Tensor) -> torch.Size:
        """The shape, each length knowing its tensor and axis."""
        plain_sizes = Plain.sizes(self, tensor)
        value = self.reference(tensor).value
        self.frames.measured(tensor, value)
        return torch.Size(TracedInt.make(n, Size(value, axis), self.session) for axis, n in enumerate(plain_sizes))

    def operation(self, op: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation and write it down."""
        args, kwargs = quiet(op, args, kwargs)
        seen_args, seen_kwargs = self._written(args), {k: self._written(v) for k, v in kwargs.items()}
        writes = written_tensors(function, args, kwargs)
        if writes and any(_memory(t) in self.lent for t in writes):
            self.refused = True
            raise _WritesWeights
        before = [self.reference(t).value for t in writes]
        places = [_memory(t) for t in writes]
        out = super().operation(op, function, args, kwargs)
        if places != [_memory(t) for t in writes]:
            self.known.moved()
        for tensor in writes:
            self.known.pop(tensor)
        outputs: list[int | None] = []
        for item in out if isinstance(out, tuple | list) else [out]:
            index = self.known.get(item) if isinstance(item, Tensor) else None
            if index is not None and self.values[index].name is None and all(item is not t for t in writes):
                outputs.append(index)  # the operation returned its own argument
            else:
                outputs.append(self.register(item) if isinstance(item, Tensor) else None)
        self.nodes.append(
            Node(
                op=op,
                args=seen_args,
                kwargs=seen_kwargs,
                outputs=tuple(outputs),
                multiple=isinstance(out, tuple | list),
                writes=tuple(before),
                module=self.modules[-1] if self.modules else "",
                source=self.place(),
            )
        )
        for tensor, old in zip(writes, before, strict=True):
            if self.known.get(tensor) is None:
                self.register(tensor)
            self._spread_write(tensor, old)
        return out

    def _spread_write(self, tensor: Tensor, old: int) -> None:
        """Other tensors on the written memory have changed too: each gets a new value, made by `alias_write`."""
        memory = _memory(tensor)
        if not memory:
            return
        new = self.reference(tensor).value
        for other, stale in self.known.within(memory):
            if other is tensor:
                continue
            if stale in (old, new) or _place(other) == _place(tensor):
                self.known[other] = new
                continue
            self.known.pop(other)
            fresh = self.register(other)
            self.nodes.append(
                Node(
                    op="alias_write",
                    args=(Ref(stale), Ref(new), _place(other), _place(tensor)),
                    kwargs={},
                    outputs=(fresh,),
                    multiple=False,
                    module=self.modules[-1] if self.modules else "",
                    source=self.place(),
                )
            )

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Keep the call if its integers matter."""
        name = base_name(function)
        if name == "__get__":
            self.frames.property(function, args[0], out)
            return
        if name in DROPOUT:
            self.known[out] = self.reference(args[0] if args else kwargs["input"]).value  # nothing was dropped
        shaping = name in _SHAPING or _has_traced((args, kwargs))
        step = self.frames.called(function, args, kwargs, out, shaping)
        if not shaping:
            return
        results = [out] if isinstance(out, Tensor) else (list(out) if isinstance(out, tuple | list) else [])
        self.calls.append(
            Call(
                function=name,
                args=self._written(args),
                kwargs={k: self._written(v) for k, v in kwargs.items()},
                outputs=tuple(self.reference(t).value if isinstance(t, Tensor) else None for t in results),
                module=self.modules[-1] if self.modules else "",
                source=self.place(),
                step=step,
            )
        )

    def _written(self, item: Any) -> Any:
        """Arguments as they are written down."""
        if type(item) in _ATOMS:
            return item
        if isinstance(item, Tensor):
            return self.reference(item)
        if isinstance(item, TracedInt):
            return Integer(int.__index__(item), origin_of(item))
        if isinstance(item, slice):
            return ("slice", self._written(item.start), self._written(item.stop), self._written(item.step))
        if isinstance(item, tuple | list):
            return tuple(self._written(i) for i in item)
        if isinstance(item, bool | int | float | str):
            return item
        if item is Ellipsis:
            return "..."
        return str(item)


class _Known:
    """The value of each tensor that is alive, by identity, in the order in which they became known."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self.inside: dict[
            int, list[int]
        ] = {}  # address of a memory -> ids of tensors that were seen there, or once were

    def get(self, tensor: Tensor) -> int | None:
        """The value of a tensor, None where it has none yet."""
        reference, value = self.found.get(id(tensor), (None, 0))
        return value if reference is not None and reference() is tensor else None

    def __setitem__(self, tensor: Tensor, value: int) -> None:
        if self.get(tensor) is None:
            self.found.pop(id(tensor), None)  # of a tensor that is gone
            self.inside.setdefault(_memory(tensor), []).append(id(tensor))
        self.found[id(tensor)] = (weakref.ref(tensor), value)

    def pop(self, tensor: Tensor) -> None:
        """Forget a tensor."""
        self.found.pop(id(tensor), None)

    def within(self, memory: int) -> list[tuple[Tensor, int]]:
        """The tensors that are alive in this memory, with their values."""
        alive = []
        for number in dict.fromkeys(self.inside.get(memory, ())):
            reference, value = self.found.get(number, (None, 0))
            if reference is not None and (tensor := _alive(reference)) is not None and _memory(tensor) == memory:
                alive.append((tensor, value))
        self.inside[memory] = [id(tensor) for tensor, _ in alive]
        return alive

    def moved(self) -> None:
        """An operation has given a tensor another memory: look again where each one lies."""
        self.inside.clear()
        for number, (reference, _) in self.found.items():
            if (tensor := _alive(reference)) is not None:
                self.inside.setdefault(_memory(tensor), []).append(number)


def _alive(reference: weakref.ref[Tensor]) -> Tensor | None:
    tensor = reference()
    if tensor is not None:
        tensor._fix_weakref()  # type: ignore[attr-defined]  # of a tensor that only C++ still held
    return tensor


def _memory(tensor: Tensor) -> int:
    """The address of the memory in which a tensor lies, of the storage itself where there is none; 0 if empty."""
    if tensor.is_sparse:
        return 0
    storage = tensor.untyped_storage()
    return storage._cdata if isinstance(tensor, FakeTensor) else storage.data_ptr()


@functools.cache
def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _place(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Where a tensor lies in its memory: shape, strides, offset."""
    return tuple(Plain.sizes(Plain(), tensor)), tuple(tensor.stride()), int(tensor.storage_offset())


def _has_traced(item: Any) -> bool:
    if type(item) in _ATOMS or isinstance(item, Tensor):
        return False
    if isinstance(item, TracedInt):
        return True
    if isinstance(item, slice):
        return any(isinstance(i, TracedInt) for i in (item.start, item.stop, item.step))
    if isinstance(item, Mapping):
        return any(_has_traced(i) for i in item.values())
    if isinstance(item, tuple | list):
        return any(_has_traced(i) for i in item)
    return False
