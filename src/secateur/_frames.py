"""Programs: what the forwards of the user's own modules do, noted call by call while the model is recorded.

A program is only needed where an integer stands in a forward, as a literal or in a closure; then the forward can be
written again with that integer as an attribute (`_rewrite`). What a program cannot say (a value read out of a tensor,
an object of the user's) is its problem, and named.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import GetSetDescriptorType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from secateur._replay import TracedInt, origin_of
from secateur._rewrite import PROPERTIES, names
from secateur.schema.graph import Attribute, Expression, Op, Size
from secateur.schema.program import (
    Arithmetic,
    Baked,
    Constant,
    Held,
    Length,
    Listed,
    Program,
    Rewrite,
    Slice,
    Slot,
    Step,
)

# they answer a question that no cut and no other batch size changes
_STATIC = frozenset("dim ndimension is_floating_point is_complex is_contiguous element_size size is_cuda".split())
_CONSTANTS: tuple[tuple[type, Literal["dtype", "device", "layout", "memory_format"]], ...] = (
    (torch.dtype, "dtype"),
    (torch.device, "device"),
    (torch.layout, "layout"),
    (torch.memory_format, "memory_format"),
)


class _Problem(Exception):
    """Something that a program cannot say."""


@dataclass(slots=True)
class _Frame:
    """A forward at work.

    Attributes:
        slots: tensor -> slot.  lengths: recorded value -> slot.  integers: those handed in -> slot.
        baked: integers that stood in the forward.
    """

    path: str
    module: nn.Module
    slots: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)
    lengths: dict[int, int] = field(default_factory=dict)
    integers: dict[Expression, int] = field(default_factory=dict)
    n_slots: int = 0
    inputs: list[tuple[str, Any]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    baked: list[int] = field(default_factory=list)
    problem: str = ""

    def fresh(self) -> int:
        """A new slot."""
        self.n_slots += 1
        return self.n_slots - 1


class Frames:
    """The forwards at work, and the programs of those that are done.

    Args:
        name_of: name of a parameter or buffer of the model, None for any other tensor.
        attributes: the integer attributes of the model, with their values.
    """

    def __init__(
        self,
        name_of: Callable[[Tensor], str | None],
        attributes: Mapping[Attribute, int],
    ) -> None:
        self.name_of, self.attributes = name_of, attributes
        self.stack: list[_Frame | None] = []
        self.programs: dict[str, Program] = {}
        self.problems: dict[str, str] = {}

    @property
    def top(self) -> _Frame | None:
        """The forward that is at work itself, if it is one of the user's and can be told so far."""
        frame = self.stack[-1] if self.stack else None
        return None if frame is None or frame.problem else frame

    def enter(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward begins."""
        if type(module).__module__.startswith(("torch.", "secateur.")):
            self.stack.append(None)
            return
        frame = _Frame(path, module)
        self.stack.append(frame)
        with _Noting(frame):
            bound = _signature(type(module).forward).bind(module, *args, **kwargs)
            bound.apply_defaults()
            for name, value in list(bound.arguments.items())[1:]:
                frame.inputs.append((name, self._given(frame, value)))

    def leave(self, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """A forward is done: its own program is whole, and it was one step of the forward around it."""
        frame = self.stack.pop()
        if frame is not None:
            output = None
            with _Noting(frame):
                output = self._noted(frame, out, shaping=False, output=True)
            self._finish(frame, output)
        outer = self.top
        if outer is not None:
            with _Noting(outer):
                if outer.path and not path.startswith(outer.path + "."):
                    raise _Problem(f"it calls {path}, which it does not hold")
                inside = path[len(outer.path) + 1 :] if outer.path else path
                self._step(outer, "child", (inside, *args), kwargs, out, shaping=False)

    def _finish(self, frame: _Frame, output: Any) -> None:
        if frame.problem:
            self.problems.setdefault(frame.path, frame.problem)
            return
        made = Program(inputs=tuple(frame.inputs), steps=tuple(frame.steps), output=output, baked=tuple(frame.baked))
        if self.programs.setdefault(frame.path, made) != made:
            self.problems.setdefault(frame.path, "its forward does not always do the same")

    def measured(self, tensor: Tensor, value: int) -> None:
        """The shape of a tensor was asked for."""
        frame = self.top
        if frame is not None:
            with _Noting(frame):
                frame.lengths.setdefault(value, self._slot(frame, tensor))

    def called(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, shaping: bool
    ) -> int:
        """A function of torch was called; the number of the step that it is, -1 where it is none.

        Args:
            shaping: its integers are lengths.
        """
        frame = self.top
        if frame is None:
            return -1
        if function.__name__ in _STATIC:
            return -1
        with _Noting(frame):
            return self._step(frame, function, args, kwargs, out, shaping=shaping)
        return -1

    def property(self, getter: Any, tensor: Tensor, out: Any) -> None:
        """A property of a tensor was read."""
        frame = self.top
        if frame is not None and isinstance(out, Tensor):
            with _Noting(frame):
                name = getter.__self__.__name__ if isinstance(getter.__self__, GetSetDescriptorType) else "something"
                if name not in PROPERTIES:
                    raise _Problem(f"it reads .{name} of a tensor")
                self._step(frame, "property", (tensor, name), {}, out, shaping=False)

    # -- writing down ------------------------------------------------------------------------------------------------

    def _step(
        self,
        frame: _Frame,
        function: str | Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Any,
        *,
        shaping: bool,
    ) -> int:
        noted_args = tuple(self._noted(frame, a, shaping=shaping) for a in args)
        noted_kwargs = {k: self._noted(frame, v, shaping=shaping) for k, v in kwargs.items()}
        multiple = isinstance(out, tuple | list)
        name = args[0] if function == "child" else function if isinstance(function, str) else function.__name__
        outputs = tuple(self._result(frame, r, name) for r in (out if multiple else [out]))
        frame.steps.append(
            Step(function=function, args=noted_args, kwargs=noted_kwargs, outputs=outputs, multiple=multiple)  # type: ignore[arg-type]  # named in `_named`
        )
        return len(frame.steps) - 1

    def _result(self, frame: _Frame, item: Any, name: str) -> Any:
        if item is None:
            return None
        if isinstance(item, Tensor):
            return self._own(frame, item)
        if type(item) in (tuple, list):
            return tuple(self._result(frame, part, name) for part in item)
        if isinstance(item, bool | int | float):
            raise _Problem(f"{name.rpartition('.')[2]} takes values out of tensors")
        raise _Problem(f"{name} returns an object of type {type(item).__name__}")

    def _own(self, frame: _Frame, tensor: Tensor) -> int:
        """The slot of a result; what was written in place keeps its own."""
        slot: int | None = frame.slots.get(tensor)
        if slot is None:
            slot = frame.slots[tensor] = frame.fresh()
        return slot

    def _slot(self, frame: _Frame, tensor: Tensor) -> int:
        """The slot of an argument: made before, or held by the module."""
        slot: int | None = frame.slots.get(tensor)
        if slot is not None:
            return slot
        name = self.name_of(tensor)
        if name is not None and (not frame.path or name.startswith(frame.path + ".")):
            path = name[len(frame.path) + 1 :] if frame.path else name
        else:
            held = [k for k, v in vars(frame.module).items() if v is tensor]
            if not held:
                raise _Problem("it uses a tensor that it neither holds nor was given")
            path = held[0]
        slot = frame.slots[tensor] = frame.fresh()
        frame.steps.append(Step(function="hold", args=(path,), kwargs={}, outputs=(slot,)))
        return slot

    def _given(self, frame: _Frame, item: Any) -> Any:
        """An input: tensors and integers that were measured become slots."""
        if isinstance(item, Tensor):
            return Slot(self._own(frame, item))
        if isinstance(item, TracedInt):
            return Slot(frame.integers.setdefault(origin_of(item), frame.fresh()))
        return self._structure(item, lambda i: self._given(frame, i))

    def _noted(self, frame: _Frame, item: Any, *, shaping: bool, output: bool = False) -> Any:
        """An argument, or an output."""
        if isinstance(item, Tensor):
            return Slot(self._slot(frame, item))
        if isinstance(item, TracedInt):
            return self._integer(frame, origin_of(item), shaping)
        if type(item) is int and shaping:
            return self._bake(frame, item)
        if isinstance(item, torch.dtype | torch.device) and not output:
            for tensor, slot in frame.slots.items():  # moved and converted with the module
                if (tensor.dtype if isinstance(item, torch.dtype) else tensor.device) == item and _is_given(
                    frame, slot
                ):
                    return Constant("like", "dtype" if isinstance(item, torch.dtype) else "device", slot)
        return self._structure(item, lambda i: self._noted(frame, i, shaping=shaping, output=output))

    def _structure(self, item: Any, each: Callable[[Any], Any]) -> Any:
        if item is None or isinstance(item, bool | int | float | str):
            return item
        if item is Ellipsis:
            return Constant("ellipsis", "")
        for kind, name in _CONSTANTS:
            if isinstance(item, kind):
                return Constant(name, str(item).removeprefix("torch."))
        if isinstance(item, slice):
            return Slice(each(item.start), each(item.stop), each(item.step))
        if type(item) is list:
            return Listed(tuple(each(i) for i in item))
        if type(item) in (tuple, torch.Size):
            return tuple(each(i) for i in item)
        if type(item) is dict and all(isinstance(k, str) for k in item):
            return {k: each(v) for k, v in item.items()}
        raise _Problem(f"it handles an object of type {type(item).__name__}")

    def _bake(self, frame: _Frame, value: int) -> Any:
        if abs(value) < 2:
            return value
        frame.baked.append(value)
        return Baked(len(frame.baked) - 1)

    def _integer(self, frame: _Frame, e: Expression, shaping: bool) -> Any:
        """An integer with a memory, by what the module itself knows."""
        if isinstance(e, int):
            return self._bake(frame, e) if shaping else e
        if e in frame.integers:
            return Slot(frame.integers[e])
        if isinstance(e, Op):
            left, right = (self._integer(frame, part, shaping) for part in (e.left, e.right))
            return Arithmetic(e.operator, left, right)
        if isinstance(e, Size):
            if e.value not in frame.lengths:
                raise _Problem("an integer comes from a tensor of another module")
            return Length(frame.lengths[e.value], e.axis)
        if (e.module == frame.path or not frame.path or e.module.startswith(frame.path + ".")) and "<" not in e.name:
            inside = e.module[len(frame.path) :].lstrip(".")
            return Held(f"{inside}.{e.name}" if inside else e.name, e.position)
        return self._bake(frame, self.attributes[e])


def _is_given(frame: _Frame, slot: int) -> bool:
    def inside(item: Any) -> bool:
        if isinstance(item, Slot):
            return item.number == slot
        parts = item.values() if isinstance(item, dict) else item.items if isinstance(item, Listed) else item
        return isinstance(item, tuple | dict | Listed) and any(inside(i) for i in parts)

    return any(inside(structure) for _, structure in frame.inputs)


class _Noting:
    """Whatever cannot be said becomes the problem of the frame."""

    def __init__(self, frame: _Frame) -> None:
        self.frame = frame

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, _Problem):
            self.frame.problem = self.frame.problem or str(error)
            return True
        return False


def rewrites(recorded: Mapping[str, list[Frames]]) -> tuple[Rewrite, ...]:
    """What can be written again, and why not, from the recordings in each mode.

    Modules in whose forward no integer stands are left out.
    """
    programs: dict[str, dict[str, Program]] = {}
    problems: dict[str, str] = {}
    for mode, all_frames in recorded.items():
        for frames in all_frames:
            problems = {**frames.problems, **problems}
            for path, program in frames.programs.items():
                if programs.setdefault(path, {}).setdefault(mode, program) != program:
                    problems.setdefault(path, "its forward does not always do the same")
    made = []
    for path in dict.fromkeys((*programs, *problems)):
        try:
            if path in problems:
                raise _Problem(problems[path])
            if any(p.baked for p in programs[path].values()):
                named = {mode: _named(program) for mode, program in programs[path].items()}
                made.append(Rewrite(module=path, programs=named))
        except _Problem as problem:
            made.append(Rewrite(module=path, programs={}, problem=str(problem)))
    return tuple(made)


def _named(program: Program) -> Program:
    """The program with its functions by name. Names are looked up for the few programs that are needed only."""
    steps = []
    for step in program.steps:
        function: Any = step.function
        if not isinstance(function, str):
            name = names().get(function)
            if name is None:
                raise _Problem(f"it calls {function.__name__}")
            step = dataclasses.replace(step, function=name)
        steps.append(step)
    return dataclasses.replace(program, steps=tuple(steps))


@functools.cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)
