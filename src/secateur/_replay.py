"""Run a model's own forward under observation: operations pass through a watcher, integers know their origin.

`trace` records with it; the masked oracle below computes with it what a cut model must compute; neither ever replays
recorded sizes, so any batch size that the model accepts will do. All of it happens on throw-away copies.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import operator
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from secateur._surgery import borrow, duplicate
from secateur._units import call, extent_value, offsets
from secateur.errors import CutError, TraceError
from secateur.ops import rule_key
from secateur.ops.modules import closure_integers, make_ready, rebind, swap_key
from secateur.schema.graph import Attribute, Comparison, Expression, Op
from secateur.schema.groups import Groups, Outline, Site

T = TypeVar("T")

# torch functions that are recorded as one operation; everything else is seen as the ATen operations it consists of
WHOLE = frozenset(
    "linear matmul __matmul__ __rmatmul__ einsum bilinear scaled_dot_product_attention "
    "lstm gru rnn_tanh rnn_relu".split()
)
DROPOUT = frozenset("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout".split())
_NOT_SIZES = frozenset(
    "padding kernel_size stride dilation output_padding padding_idx ceil_mode scale_factor num_layers".split()
)
# functions that compute with an integer instead of measuring with it
_NUMERIC = frozenset(
    "add sub mul div true_divide divide multiply subtract pow rsub floor_divide fmod remainder tensor as_tensor clamp "
    "__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __rdiv__ __pow__ __rpow__ "
    "__iadd__ __isub__ __imul__ __itruediv__ add_ sub_ mul_ div_ fill_".split()
)
_RANDOM = frozenset("rand rand_like randn randn_like normal uniform bernoulli exponential".split())
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_DEMO = os.path.join(_HERE, "cli", "demo_models")  # networks as users write them
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep


def _lstm_cell(
    from_input: Tensor, from_hidden: Tensor, c: Tensor, b_input: Tensor | None = None, b_hidden: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """h, c, and what a backward pass would need."""
    gates = _plus(from_input, b_input) + _plus(from_hidden, b_hidden)
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c, gates


def _gru_cell(
    from_input: Tensor, from_hidden: Tensor, h: Tensor, b_input: Tensor | None = None, b_hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h, and what a backward pass would need."""
    gates = _plus(from_input, b_input)
    r, z, n = gates.chunk(3, 1)
    hidden_r, hidden_z, hidden_n = _plus(from_hidden, b_hidden).chunk(3, 1)
    n = (n + (r + hidden_r).sigmoid() * hidden_n).tanh()
    z = (z + hidden_z).sigmoid()
    return (h - n) * z + n, gates


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """g v / |v|, and |v|: in the precision of v, where the kernel of a GPU computes in single precision."""
    norm = torch.norm_except_dim(v, 2, dim)
    return v * (g / norm), norm


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


# operations that are one on a GPU and several elsewhere, as the several that they are
FUSED: Mapping[str, Callable[..., tuple[Tensor, ...]]] = types.MappingProxyType(
    {
        "aten._thnn_fused_lstm_cell.default": _lstm_cell,
        "aten._thnn_fused_gru_cell.default": _gru_cell,
    }
)
# operations whose kernels are less exact than the precision they are given
_EXACT: Mapping[str, Callable[..., Any]] = types.MappingProxyType({"aten._weight_norm_interface.default": _weight_norm})


class Session:
    """What happened to integers during one run.

    Attributes:
        comparisons: equalities that held.  escapes: integers that became floats, in order.
        lost: (number of the escape, module at work) of those that Python took, so that no one can follow them.
        substitute: number of the escape -> value to use instead (the masked oracle sets these).
        modules: paths of the modules at work.
    """

    def __init__(self, substitute: Mapping[int, int] | None = None) -> None:
        self.comparisons: list[Comparison] = []
        self.escapes: list[Expression] = []
        self.lost: list[tuple[int, str]] = []
        self.substitute = dict(substitute or {})
        self.modules: list[str] = []

    @property
    def module(self) -> str:
        """The innermost module at work."""
        return self.modules[-1] if self.modules else ""

    def escape(self, value: TracedInt, *, lost: bool = True) -> int:
        """Note that `value` leaves the integers; the value it has outside."""
        if lost:
            self.lost.append((len(self.escapes), self.module))
        self.escapes.append(value.origin)
        return self.substitute.get(len(self.escapes) - 1, int.__index__(value))


class TracedInt(int):
    """An int that remembers the expression it came from, through arithmetic and comparisons."""

    origin: Expression
    session: Session

    @classmethod
    def make(cls, value: int, origin: Expression, session: Session) -> TracedInt:
        """An int with a memory."""
        made = cls(value)
        made.origin, made.session = origin, session
        return made

    def __deepcopy__(self, memo: object) -> TracedInt:
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int.__index__(self),)

    def __neg__(self) -> TracedInt:
        return TracedInt.make(-int.__index__(self), Op("sub", 0, self.origin), self.session)

    def __truediv__(self, other: Any) -> Any:
        return self.session.escape(self) / _outside(other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.session.escape(self)

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(self.session.escape(self), _outside(other), modulo)

    def __rpow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(other, self.session.escape(self), modulo)

    def __float__(self) -> float:
        return float(self.session.escape(self))

    def __eq__(self, other: object) -> bool:
        return self._compared(other, int.__eq__)

    def __ne__(self, other: object) -> bool:
        return self._compared(other, int.__ne__)

    __hash__ = int.__hash__

    def _compared(self, other: object, how: Callable[[int, Any], Any]) -> bool:
        result = how(self, other)
        if isinstance(other, int) and int.__index__(self) == int.__index__(other):
            self.session.comparisons.append(
                Comparison(self.origin, origin_of(other), source_line(), self.session.module)
            )
        return result  # type: ignore[no-any-return]


def _outside(value: Any) -> Any:
    return value.session.escape(value) if isinstance(value, TracedInt) else value


def origin_of(value: int) -> Expression:
    """The expression of a traced int, the number itself for a plain one."""
    return value.origin if isinstance(value, TracedInt) else int(value)


def _arithmetic(name: Any, function: Callable[[int, int], int]) -> None:
    def forward(a: TracedInt, b: Any) -> Any:
        if type(b) not in (int, TracedInt, bool):
            return getattr(int, f"__{name}__")(a, b) if not isinstance(b, float) else NotImplemented
        value = function(int.__index__(a), int.__index__(b))
        return TracedInt.make(value, Op(name, a.origin, origin_of(b)), a.session)

    def reflected(a: TracedInt, b: Any) -> Any:
        if type(b) not in (int, bool):
            return NotImplemented
        value = function(int(b), int.__index__(a))
        return TracedInt.make(value, Op(name, int(b), a.origin), a.session)

    setattr(TracedInt, f"__{name}__", forward)
    setattr(TracedInt, f"__r{name}__", reflected)


for _name, _function in (
    ("add", operator.add),
    ("sub", operator.sub),
    ("mul", operator.mul),
    ("floordiv", operator.floordiv),
    ("mod", operator.mod),
):
    _arithmetic(_name, _function)


def source_line() -> str:
    """`folder/file.py:line` of the innermost frame that is neither torch's nor ours: the user's forward."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = _name_of_source(frame.f_code.co_filename)
        if name:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@functools.cache
def _name_of_source(path: str) -> str:
    """`folder/file.py`; empty for torch's files and ours."""
    theirs = path.startswith(_DEMO) or not path.startswith((_HERE, _TORCH, "<"))
    return "/".join(path.split(os.sep)[-2:]) if theirs else ""


def plain(item: Any) -> Any:
    """Arguments without traced integers, as torch expects them."""
    if isinstance(item, Tensor):
        return item
    if isinstance(item, TracedInt):
        return int.__index__(item)
    if isinstance(item, slice):
        return slice(plain(item.start), plain(item.stop), plain(item.step))
    if isinstance(item, torch.Size):
        return torch.Size(plain(i) for i in item)
    if type(item) in (tuple, list):
        return type(item)(plain(i) for i in item)
    if type(item) is dict:
        return {k: plain(v) for k, v in item.items()}
    return item


def base_name(function: Any) -> str:
    """`view` for `torch.Tensor.view` and for the operator `aten.view.default`."""
    name: str = getattr(function, "__name__", "")
    return name.partition(".")[0] if isinstance(function, torch._ops.OpOverload) else name


class Watcher(Protocol):
    """What is told about a run."""

    session: Session

    def sizes(self, tensor: Tensor) -> torch.Size:
        """The shape of a tensor, with integers that know where they come from."""

    def operation(self, op: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation and return its result."""

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """A torch function call as the forward wrote it has returned."""


class _Functions(TorchFunctionMode):
    """Sees torch function calls, as the forward writes them."""

    def __init__(self, watcher: Watcher, operations: _Operations) -> None:
        super().__init__()
        self.watcher, self.operations = watcher, operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = base_name(func)
        if name == "sym_size":  # of an exported program
            return self.watcher.sizes(args[0])[args[1]]
        if name == "__get__":
            if func.__self__ is torch.Tensor.shape:
                return self.watcher.sizes(args[0])
            out = func(*args, **kwargs)
            self.watcher.called(func, args, kwargs, out)
            return out
        if func is torch.Tensor.size:
            shape = self.watcher.sizes(args[0])
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            return shape if axis is None else shape[axis]
        if name in DROPOUT:
            # Nothing is dropped: what is has no place in a recording, and no equal in a smaller model. In either mode
            # the same numbers, but not the same tensor: a forward written from this tells them apart in training.
            with self.operations.silence():
                out = (args[0] if args else kwargs["input"]).detach()
        elif name in WHOLE:
            with self.operations.silence():
                out = self.watcher.operation(name, func, plain(args), plain(kwargs))
        elif name in _NUMERIC:
            out = func(*plain(self._numbers(args)), **plain(self._numbers(kwargs)))
        else:
            out = func(*plain(args), **plain(kwargs))
        self.watcher.called(func, args, kwargs, out)
        return out

    def _numbers(self, item: Any) -> Any:
        """Traced integers as the numbers they are, noted as having left the integers."""
        if isinstance(item, TracedInt):
            return self.watcher.session.escape(item, lost=False)
        if type(item) in (tuple, list):
            return type(item)(self._numbers(i) for i in item)
        if type(item) is dict:
            return {k: self._numbers(v) for k, v in item.items()}
        return item


class _Operations(TorchDispatchMode):
    """Sees ATen operations."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watcher, self.silent = watcher, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, is_question, is_composite = _described(func)
        if self.silent or is_question:
            return func(*args, **kwargs)
        # under inference mode nobody has taken composite operations apart before they come here
        if is_composite or name in FUSED:
            with self:
                return FUSED.get(name, func.decompose)(*args, **kwargs)
        return self.watcher.operation(name, _EXACT.get(name, func), tuple(args), dict(kwargs))

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Operations inside a function that is recorded whole are not seen."""
        before, self.silent = self.silent, True
        try:
            yield
        finally:
            self.silent = before


@functools.cache
def _described(func: Any) -> tuple[str, bool, bool]:
    """Name of an ATen operation; is it only a question about a tensor (its device)?  is it made of other operations?"""
    if func.namespace == "prim":
        return str(func), True, False
    return str(func), False, torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def run_watched(model: Callable[..., Any], inputs: Any, watcher: Watcher) -> Any:
    """The model's output, with every operation passed through the watcher. Without gradients."""
    operations = _Operations(watcher)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with uncollected(), warnings.catch_warnings(), torch.no_grad(), _Functions(watcher, operations), operations:
            warnings.filterwarnings("ignore", message="RNN module weights are not part of single")  # while it is masked
            return call(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, Python's cyclic collector does not come by.

    What it does to dead tensors would be recorded too, at whatever moment it came; and where many small objects are
    made and kept it looks through all that a process holds again and again, for longer than they took to make.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Intercepting(TorchDispatchMode):
    """Hands every ATen operation over instead of running it."""

    def __init__(self, operation: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operation = operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        return self.operation(func, args, kwargs or {})


@contextlib.contextmanager
def intercepted(operation: Callable[[Any, Any, Any], Any]) -> Iterator[None]:
    """Inside, `operation(function, args, kwargs)` stands for every ATen operation; in it, operations are ordinary."""
    with uncollected(), _Intercepting(operation):
        yield


def undisturbed() -> contextlib.AbstractContextManager[Any]:
    """Inside, operations are ordinary, as in an operation that was intercepted."""
    return _disable_current_modes()


def written_tensors(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an ATen operation writes in place, by its schema."""
    found: list[Tensor] = []
    for position, name in _written_arguments(function):
        value = args[position] if position < len(args) else kwargs.get(name)
        items: Iterable[Any] = value if isinstance(value, tuple | list) else [value]
        found += [t for t in items if isinstance(t, Tensor)]
    return found


@functools.cache
def _written_arguments(function: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that an operation writes in place."""
    if not isinstance(function, torch._ops.OpOverload) or not function._schema.is_mutable:
        return ()
    arguments = enumerate(function._schema.arguments)
    return tuple((i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)


def stage(
    model: nn.Module, session: Session, *, borrowed: bool = False
) -> tuple[nn.Module, list[tuple[Attribute, int]], dict[int, str]]:
    """A throw-away copy, ready to be watched.

    Classes that cannot hold uneven sizes are swapped, integer attributes are traced, and tied weights become distinct
    tensors on the same memory, so that it shows under which name each one is read.

    Args:
        borrowed: the copy reads the weights of `model` where they lie, and must not write them.

    Returns:
        The copy, its integer attributes with values, and the name of each parameter and buffer by its id.
    """
    double = duplicate(model, borrow(model) if borrowed else None)
    for module in double.modules():
        key = swap_key(module)
        if key is not None:
            make_ready(module, key)
    names = _separate(double)
    return double, _trace_attributes(double, session), names


def _separate(model: nn.Module) -> dict[int, str]:
    names: dict[int, str] = {}
    for path, module in model.named_modules():
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            if id(tensor) in names and leaf in module._parameters:
                tensor = nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
                setattr(module, leaf, tensor)
            names[id(tensor)] = f"{path}.{leaf}" if path else leaf
    return names


def _trace_attributes(model: nn.Module, session: Session) -> list[tuple[Attribute, int]]:
    found: list[tuple[Attribute, int]] = []
    seen: set[int] = set()

    def traced(value: int, path: str, name: str, position: int | None = None) -> TracedInt:
        attribute = Attribute(path, name, position)
        found.append((attribute, value))
        return TracedInt.make(value, attribute, session)

    def visit(owner: dict[str, Any], path: str, prefix: str) -> None:
        for name, value in list(owner.items()):
            if name in _NOT_SIZES or name.startswith("_"):
                continue
            if type(value) is int and value > 1:
                owner[name] = traced(value, path, prefix + name)
            elif type(value) in (tuple, list) and value and all(type(v) is int for v in value) and max(value) > 1:
                owner[name] = type(value)(traced(v, path, prefix + name, i) for i, v in enumerate(value))
            elif type(value) is types.FunctionType and closure_integers(value) and not prefix:
                inside = closure_integers(value)
                owner[name] = rebind(
                    value, {k: traced(v, path, f"{name}.<closure>.{k}") for k, v in inside.items() if v > 1}
                )
            elif not prefix and _is_settings(value) and id(value) not in seen:
                seen.add(id(value))
                visit(vars(value), path, f"{name}.")

    for path, module in model.named_modules():
        visit(vars(module), path, "")
    return found


def _is_settings(value: object) -> bool:
    """A plain object that a module holds and may read integers from (a configuration)."""
    kind = type(value)
    return (
        not isinstance(value, nn.Module | Tensor | type | Mapping)
        and not kind.__module__.startswith(("torch", "builtins", "numpy", "collections", "functools"))
        and type(getattr(value, "__dict__", None)) is dict
    )


def set_mode(model: nn.Module, mode: str) -> None:
    """Evaluation, or training with batch norm as in evaluation (a single example has no batch statistics)."""
    model.train(mode == "train")
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def map_tensors(item: Any, function: Callable[[Tensor], Any]) -> Any:
    """`item` with `function` applied to every tensor in nested tuples, lists and mappings."""
    if isinstance(item, Tensor):
        return function(item)
    if isinstance(item, torch.Size):
        return item
    if isinstance(item, tuple | list):
        parts = [map_tensors(i, function) for i in item]
        return type(item)(*parts) if isinstance(item, tuple) and type(item) is not tuple else type(item)(parts)
    if isinstance(item, Mapping):
        return {k: map_tensors(v, function) for k, v in item.items()}
    return item


def leaves(item: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists, mappings and simple output objects, in order."""
    if isinstance(item, Tensor):
        return [item]
    found: list[Tensor] = []
    seen: set[int] = set()

    def visit(part: Any) -> None:
        if isinstance(part, Tensor):
            found.append(part)
            return
        if id(part) in seen:
            return
        seen.add(id(part))
        if isinstance(part, Mapping):
            for value in part.values():
                visit(value)
        elif isinstance(part, tuple | list):
            for value in part:
                visit(value)
        elif type(getattr(part, "__dict__", None)) is dict and not isinstance(part, nn.Module | type):
            for value in vars(part).values():
                if isinstance(value, Tensor | tuple | list | Mapping) or type(getattr(value, "__dict__", None)) is dict:
                    visit(value)

    visit(item)
    return found


@functools.cache
def is_pointwise(op: str) -> bool:
    """Whether torch itself tags this operator as element by element."""
    target: Any = torch.ops
    for part in op.split("."):
        if not hasattr(target, part):
            return False
        target = getattr(target, part)
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags


class Plain:
    """A watcher that only keeps dropout out, and notes whether anything was computed below double precision."""

    def __init__(self, session: Session | None = None) -> None:
        self.session = session or Session()
        self.low_precision = False

    def sizes(self, tensor: Tensor) -> torch.Size:
        """The plain shape."""
        return torch.Size(torch._C._TensorBase.shape.__get__(tensor))  # type: ignore[attr-defined]

    def operation(self, op: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run it, with the dropout inside attention and recurrent layers switched off."""
        args, kwargs = quiet(op, args, kwargs)
        out = function(*args, **kwargs)
        if rule_key(op) in _RANDOM and isinstance(out, Tensor) and out.is_floating_point():
            out.fill_(0.5)  # what is drawn at random must not depend on how much is drawn
        for tensor in leaves(out):
            if tensor.is_floating_point() and tensor.dtype != torch.float64:
                self.low_precision = True
        return out

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Nothing to note."""


def quiet(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a whole operation as in evaluation: without dropout."""
    if op == "scaled_dot_product_attention":
        if len(args) > 4:
            return (*args[:4], 0.0, *args[5:]), kwargs
        return args, {**kwargs, "dropout_p": 0.0} if "dropout_p" in kwargs else kwargs
    if op in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        # (..., dropout, training, bidirectional[, batch_first])
        position = 6 if isinstance(args[3], tuple | list) else 5
        return (*args[:position], 0.0, False, *args[position + 2 :]), kwargs
    return args, kwargs


class Masked(Plain):
    """Computes on the model at full size, with units silenced, what the cut model computes.

    Operations whose result depends on how many entries survive (`Groups.sites`) are run on the survivors only, and
    their result is spread out again with zeros.
    """

    def __init__(self, outline: Outline, sites: Sequence[Site], alive: Tensor, session: Session) -> None:
        super().__init__(session)
        self.outline, self.alive = outline, alive
        self.seen = dict.fromkeys(outline.counts, 0)
        self.pending = {
            (s.op, s.occurrence): s
            for s in sites
            if any(_survivors(a, alive) is not None for part in s.inputs for a in part)
        }

    def operation(self, op: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run it, on the survivors where that matters."""
        if op not in self.seen:
            return super().operation(op, function, args, kwargs)
        occurrence, self.seen[op] = self.seen[op], self.seen[op] + 1
        site = self.pending.get((op, occurrence))
        if site is None:
            return super().operation(op, function, args, kwargs)
        return self._on_survivors(site, op, function, args, kwargs)

    def sizes(self, tensor: Tensor) -> torch.Size:
        """The shape; its integers report to the session when they become floats, as they did when recorded."""
        return torch.Size(TracedInt.make(n, n, self.session) for n in super().sizes(tensor))

    def finish(self) -> None:
        """Refuse a forward that took another path than the recorded one: its operations could not be told apart.

        Raises:
            CutError: some operation occurred more or less often than recorded.
        """
        if self.pending and self.seen != self.outline.counts:
            raise CutError(
                "the forward took another path once units were silenced, so the cut cannot be verified",
                expected=self.outline.counts,
                got=self.seen,
                todo="pass verify=False and compare outputs yourself, or give example inputs that always take one path",
            )

    def _on_survivors(self, site: Site, op: str, function: Any, args: Any, kwargs: Any) -> Any:
        remaining = iter(site.inputs)

        def compact(tensor: Tensor) -> Tensor:
            for axis, units in enumerate(next(remaining)):
                index = _survivors(units, self.alive)
                if index is not None:
                    tensor = tensor.index_select(axis, index.to(tensor.device))
            return tensor

        small_args, small_kwargs = map_tensors(args, compact), map_tensors(kwargs, compact)
        small_args = _patched(op, small_args, site, self.alive)
        out = super().operation(op, function, small_args, small_kwargs)
        expected = iter(site.outputs)

        def spread(tensor: Tensor) -> Tensor:
            for axis, units in enumerate(next(expected)):
                index = _survivors(units, self.alive)
                if index is not None and units is not None:
                    shape = list(tensor.shape)
                    shape[axis] = len(units)
                    tensor = tensor.new_zeros(shape).index_copy(axis, index.to(tensor.device), tensor)
            return tensor

        return map_tensors(out, spread)


def _survivors(units: Sequence[int] | None, alive: Tensor) -> Tensor | None:
    """Indices that survive along an axis, None where all do."""
    if units is None:
        return None
    owner = torch.tensor(units)
    keep = (owner < 0) | alive[owner.clamp(min=0)]
    return None if bool(keep.all()) else keep.nonzero().reshape(-1)


def _patched(op: str, args: tuple[Any, ...], site: Site, alive: Tensor) -> tuple[Any, ...]:
    """Integer arguments that name sizes of the survivors."""
    key = rule_key(op)
    if key in ("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm"):
        return (args[0], list(args[0].shape[-len(args[1]) :]), *args[2:])
    if key == "native_group_norm":
        x, weight, bias, n, _, space, groups, eps = args
        units = site.inputs[0][1]
        if units is not None:
            owner = torch.tensor(units)
            keep = ((owner < 0) | alive[owner.clamp(min=0)]).view(groups, -1)
            groups = int(keep.any(1).sum())
        return x, weight, bias, n, x.shape[1], space, groups, eps
    return args


def tiny(dtype: torch.dtype) -> float:
    """What a silenced weight is set to: not zero, since weight norm would divide by it."""
    return 1e-30 if dtype == torch.float64 else 1e-15


def silenced(model: nn.Module, groups: Groups, alive: Tensor) -> None:
    """Set every parameter slice of the units that are gone to (almost) zero, in place."""
    first = offsets(groups)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for group, start in zip(groups.groups, first, strict=False):
            for member in group.members:
                owner = torch.tensor(member.units)
                gone = (owner >= 0) & ~alive[(owner + start).clamp(min=0)]
                if bool(gone.any()):
                    tensor = tensors[member.param]
                    index = gone.nonzero().reshape(-1).to(tensor.device)
                    tensor.index_fill_(member.axis, index, tiny(tensor.dtype))


def alive_units(groups: Groups, kept: Sequence[Sequence[int]]) -> Tensor:
    """[number of global units] bool."""
    first = offsets(groups)
    alive = torch.zeros(first[-1], dtype=torch.bool)
    for start, units in zip(first, kept, strict=False):
        alive[[start + u for u in units]] = True
    return alive


def masked_output(
    model: nn.Module,
    groups: Groups,
    kept: Sequence[Sequence[int]],
    inputs: Any,
    *,
    run: int,
    watcher: Callable[[Masked], Watcher] | None = None,
) -> tuple[Any, bool]:
    """What the model computes with the units that are not in `kept` silenced, statistics over the survivors only.

    Args:
        run: which recording (`Groups.outlines`) to follow.  watcher: wraps the oracle, to look over its shoulder.

    Returns:
        The output, and whether anything was computed below double precision.
    """
    outline = groups.outlines[run]
    counts = [len(units) for units in kept]
    session = Session({e.position: extent_value(e.extent, counts) for e in groups.escapes if e.run == run})
    double, _, _ = stage(model, session)
    set_mode(double, outline.mode)
    alive = alive_units(groups, kept)
    silenced(double, groups, alive)
    oracle = Masked(outline, [s for s in groups.sites if s.run == run], alive, session)
    out = run_watched(double, inputs, oracle if watcher is None else watcher(oracle))
    oracle.finish()
    return out, oracle.low_precision


def plain_output(model: nn.Module, inputs: Any, mode: str, watcher: Watcher | None = None) -> Any:
    """What the model computes without dropout, in evaluation or training mode. Its mode is left so: pass a copy.

    One that is in evaluation mode runs as it is: what modules do when their mode is set could mend what a user meets.
    """
    if mode != "eval" or any(module.training for module in model.modules()):
        set_mode(model, mode)
    return run_watched(model, inputs, watcher or Plain())


def check_runs(model: nn.Module, inputs: Any) -> None:
    """Refuse inputs that the model cannot be run on.

    Raises:
        TraceError: with what the model itself raised.
    """
    double = copy.deepcopy(model).eval()
    try:
        with torch.no_grad():
            call(double, inputs)
    except Exception as error:
        raise TraceError(
            "the model cannot be run on the example inputs",
            where=type(model).__name__,
            got=f"{type(error).__name__}: {error}",
            todo="pass what you pass to the model: one tensor, a tuple of arguments, or a dict of keyword arguments",
        ) from error
