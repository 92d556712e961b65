"""Write the forward of a module again, from its recorded program, with integers that a cut can change.

The module gets a subclass of its own class whose forward is generated (a torch.fx graph, printed as Python), and one
new attribute, `baked`: the integers that stood in the forward. Parameters, children, names and `state_dict` are
untouched. From then on these integers are attributes like any other.
"""

from __future__ import annotations

import copy
import functools
import inspect
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from inspect import isroutine
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import get_overridable_functions, resolve_name

from secateur.errors import FileCorrupt, RewrittenForward
from secateur.schema.graph import Attribute
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

# made from no tensor, so that torch does not count them among the functions that tensors may override
_FACTORIES = "zeros ones full empty arange linspace eye tensor as_tensor rand randn tril_indices triu_indices".split()
_OPERATORS = {f.__name__: f for f in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod)}
PROPERTIES = ("T", "mT", "H", "mH", "real", "imag", "data")


@functools.cache
def functions() -> Mapping[str, Callable[..., Any]]:
    """Everything that a program may call, by name: functions of torch on tensors, and nothing else."""
    found = {resolve_name(f): f for space in get_overridable_functions().values() for f in space}
    found = {name: f for name, f in found.items() if name and not name.endswith("__get__")}
    in_place = [n for n, f in vars(torch).items() if n.endswith("_") and n[0] != "_" and isroutine(f)]
    found.update({f"torch.{n}": vars(torch)[n] for n in (*_FACTORIES, *in_place)})
    for n in dir(Tensor):
        if n[0] != "_" and isroutine(getattr(Tensor, n)):
            found.setdefault(f"torch.Tensor.{n}", getattr(Tensor, n))
    return MappingProxyType(found)


@functools.cache
def names() -> Mapping[Callable[..., Any], str]:
    """The name of every function that a program may call."""
    below = vars(Tensor.__base__)  # what methods written in Python call by themselves
    inherited = {below[n]: f"torch.Tensor.{n}" for n in below if f"torch.Tensor.{n}" in functions()}
    return MappingProxyType(
        {**{f: n for f, n in inherited.items() if isroutine(f)}, **{f: n for n, f in functions().items()}}
    )


def offsets(rewrite: Rewrite) -> dict[str, int]:
    """Where the integers of each mode begin in `baked`: at 0 for both, where both modes hold the same ones."""
    first, *_ = rewrite.programs.values()
    start, made = 0, {}
    for mode, program in rewrite.programs.items():
        shared = program.baked == first.baked
        made[mode] = 0 if shared else start or len(first.baked)
    return made


def _integers(rewrite: Rewrite) -> tuple[int, ...]:
    """The recorded value of every element of `baked`."""
    made: tuple[int, ...] = ()
    for mode, first in offsets(rewrite).items():
        made = made[:first] + rewrite.programs[mode].baked if first or not made else made
    return made


def baked_attributes(rewrites: Iterable[Rewrite]) -> dict[Attribute, int]:
    """The integers that become attributes, with their recorded values."""
    return {Attribute(r.module, "baked", i): value for r in rewrites for i, value in enumerate(_integers(r))}


def rewrite_forward(module: nn.Module, rewrite: Rewrite) -> None:
    """Give a module its forward written again, in place. It computes what it did until `baked` is changed."""
    module.__class__ = _class(type(module), rewrite)
    module.baked = _integers(rewrite)  # type: ignore[assignment]


def _class(kind: type[nn.Module], rewrite: Rewrite) -> type[nn.Module]:
    first = offsets(rewrite)
    forwards = {mode: _compiled(kind, program, first[mode]) for mode, program in rewrite.programs.items()}

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        mode = "train" if self.training else "eval"
        if mode not in forwards:
            raise RewrittenForward(
                f"this forward was written again from a recording, and none was made in mode {mode}",
                where=rewrite.module,
                todo="record example inputs on which the model runs in both modes",
            )
        return forwards[mode](self, *args, **kwargs)

    def deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(vars(self), memo))
        return made

    def reduce(self: nn.Module) -> tuple[Any, ...]:
        return _remade, (kind, rewrite), vars(self)

    body = {"forward": forward, "__deepcopy__": deepcopy, "__reduce__": reduce, "__doc__": kind.__doc__}
    return type(f"Rewritten{kind.__name__}", (kind,), {**body, "__module__": kind.__module__})


def _remade(kind: type[nn.Module], rewrite: Rewrite) -> nn.Module:
    made = _class(kind, rewrite)
    return made.__new__(made)


def _compiled(kind: type[nn.Module], program: Program, first: int) -> Callable[..., Any]:
    code = _Writer(kind, program, first).graph.python_code("self")
    space: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, f"<{kind.__name__}.forward, written again>", "exec"), space)
    return space["forward"]  # type: ignore[no-any-return]


class _Writer:
    """Turns a program into a torch.fx graph."""

    def __init__(self, kind: type[nn.Module], program: Program, first: int) -> None:
        self.graph, self.first = fx.Graph(), first
        self.made: dict[int, fx.Node] = {}
        parameters = inspect.signature(kind.forward).parameters
        given = []
        for name, structure in program.inputs:
            parameter = parameters[name]
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
            stars = "**" if parameter.kind is parameter.VAR_KEYWORD else stars
            given.append((self.graph.placeholder(stars + name, default_value=parameter.default), structure, name))
        for node, structure, name in given:
            self._take(node, structure, name)
        for step in program.steps:
            self._step(step)
        self.graph.output(self._argument(program.output))

    def _take(self, node: fx.Node, structure: Any, name: str) -> None:
        """Unpack an input; what is no value of the program must be what it was."""
        if isinstance(structure, Slot):
            self.made[structure.number] = node
        elif isinstance(structure, Listed | tuple | dict):
            parts: Any = structure.items if isinstance(structure, Listed) else structure
            self.graph.call_function(_same_length, (node, len(parts), name))
            for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
                self._take(self.graph.call_function(operator.getitem, (node, key)), part, f"{name}[{key!r}]")
        elif not isinstance(structure, Constant):  # a dtype or device may change with the module
            self.graph.call_function(_same, (node, structure, name))

    def _step(self, step: Step) -> None:
        if step.function == "hold":
            (number,) = step.outputs
            assert number is not None
            self.made[number] = self.graph.get_attr(_plain(step.args[0]))
            return
        args = tuple(self._argument(a) for a in step.args)
        kwargs = {_plain(k): self._argument(v) for k, v in step.kwargs.items()}
        if step.function == "child":
            made = self.graph.call_module(_plain(args[0]), args[1:], kwargs)
        elif step.function == "property":
            if args[1] not in PROPERTIES:
                raise FileCorrupt("a program reads something that is no property of tensors", got=args[1])
            made = self.graph.call_function(getattr, args)
        else:
            function = functions().get(step.function)
            if function is None:
                raise FileCorrupt("a program calls something that is no function of torch", got=step.function)
            method = step.function.removeprefix("torch.Tensor.")
            if method != step.function and not method.startswith("__"):
                made = self.graph.call_method(method, args, kwargs)
            else:
                made = self.graph.call_function(function, args, kwargs)
        self._results(made, step)

    def _results(self, made: fx.Node, step: Step) -> None:
        self._place(made, step.outputs if step.multiple else step.outputs[0] if step.outputs else None)

    def _place(self, made: fx.Node, outputs: Any) -> None:
        if isinstance(outputs, int):
            self.made[outputs] = made
        elif isinstance(outputs, tuple):
            for position, part in enumerate(outputs):
                if part is not None:
                    self._place(self.graph.call_function(operator.getitem, (made, position)), part)

    def _argument(self, item: Any) -> Any:
        if isinstance(item, Slot):
            return self.made[item.number]
        if isinstance(item, Baked):
            return self.graph.call_function(
                operator.getitem, (self.graph.get_attr("baked"), self.first + item.position)
            )
        if isinstance(item, Held):
            held = self.graph.get_attr(_plain(item.path))
            return held if item.position is None else self.graph.call_function(operator.getitem, (held, item.position))
        if isinstance(item, Length):
            return self.graph.call_method("size", (self.made[item.slot], item.axis))
        if isinstance(item, Arithmetic):
            function = _OPERATORS.get(item.operator)
            if function is None:
                raise FileCorrupt("a program computes with an operator that integers do not have", got=item.operator)
            return self.graph.call_function(function, (self._argument(item.left), self._argument(item.right)))
        if isinstance(item, Slice):
            return slice(*(self._argument(i) for i in (item.start, item.stop, item.step)))
        if isinstance(item, Constant):
            return self._constant(item)
        if isinstance(item, Listed):
            return [self._argument(i) for i in item.items]
        if isinstance(item, tuple):
            return tuple(self._argument(i) for i in item)
        if isinstance(item, dict):
            return {k: self._argument(v) for k, v in item.items()}
        return item

    def _constant(self, item: Constant) -> Any:
        if item.kind == "like":
            return self.graph.call_function(getattr, (self.made[item.slot], item.name))
        if item.kind == "ellipsis":
            return ...
        value = torch.device(item.name) if item.kind == "device" else vars(torch).get(item.name)
        if not isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format):
            raise FileCorrupt("a program names a constant that torch does not have", got=item.name)
        return value


def _plain(name: Any) -> str:
    """A name as it may stand in a generated forward: what comes from a file must not become code there.

    Raises:
        FileCorrupt: anything but names joined by dots, none of Python's own (`__class__`).
    """
    if not isinstance(name, str) or not re.fullmatch(r"(?!__)\w+(\.(?!__)\w+)*", name, re.ASCII):
        raise FileCorrupt("a program names something that cannot be a name", got=name)
    return name


def _same(value: Any, recorded: Any, name: str) -> None:
    """Refuse an input that would have taken the forward another way."""
    if isinstance(value, Tensor) or value != recorded:
        raise RewrittenForward(
            "this forward was written again from a recording in which an argument was different",
            where=name,
            expected=recorded,
            got=type(value).__name__ if isinstance(value, Tensor) else value,
            todo="trace the model with example inputs of this kind, and cut it again",
        )


def _same_length(value: Any, recorded: int, name: str) -> None:
    if len(value) != recorded:
        raise RewrittenForward(
            "this forward was written again from a recording in which more or fewer arguments were given",
            where=name,
            expected=recorded,
            got=len(value),
            todo="trace the model with example inputs of this kind, and cut it again",
        )
