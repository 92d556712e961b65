"""A program of torch.export as something that can be recorded, in the names of the model it was made of.

A program is flat: the layers are gone, and every integer of the forward is a literal. Its nodes still say in which
layer they stood. Where that is one of torch.nn's own, whose integers are attributes, the literals are traced as those.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn.modules.conv import _ConvNd

from secateur._replay import Session, TracedInt, base_name
from secateur._surgery import tensors
from secateur.errors import InputError
from secateur.schema.graph import Attribute

# function -> (class of the layer, position of the argument, attribute)
_OWN: dict[str, tuple[type[nn.Module], int, str]] = {
    "layer_norm": (nn.LayerNorm, 1, "normalized_shape"),
    "rms_norm": (nn.RMSNorm, 1, "normalized_shape"),
    "group_norm": (nn.GroupNorm, 1, "num_groups"),
    **{f"conv{n}d": (_ConvNd, 6, "groups") for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (_ConvNd, 6, "groups") for n in (1, 2, 3)},
}


class Exported:
    """A program, checked against the model that it was made of.

    Attributes:
        inputs: the example inputs it was made with.  attributes: the integers of torch.nn's layers in it.

    Raises:
        InputError: it was made of another model, or with keyword arguments.
    """

    def __init__(self, program: ExportedProgram, model: nn.Module) -> None:
        self.module = program.module(check_guards=False)
        for module in self.module.modules():  # a forward may write into them
            module._buffers.update({k: None if b is None else b.clone() for k, b in module._buffers.items()})
        self.layers = dict(model.named_modules())
        self._check(model)
        args, kwargs = program.example_inputs or ((), {})
        if kwargs or not args:
            raise InputError(
                "the program was not exported with positional example inputs",
                got=sorted(kwargs),
                todo="export it with a tuple of arguments, or trace the model itself",
            )
        self.inputs: tuple[Any, ...] = args
        self.attributes: dict[Attribute, int] = {}
        self.node: fx.Node | None = None

    def _check(self, model: nn.Module) -> None:
        theirs = {name: tuple(t.shape) for name, _, t in tensors(self.module)}
        ours = {name: tuple(t.shape) for name, _, t in tensors(model)}
        wrong = sorted(name for name, shape in theirs.items() if ours.get(name, shape) != shape)
        missing = sorted(name for name, _ in self.module.named_parameters() if name not in ours)
        if wrong or missing:
            where = (wrong or missing)[0]
            raise InputError(
                "this program was exported from another model",
                where=where,
                expected=ours.get(where, "no such parameter"),
                got=theirs[where],
                todo="pass the model that torch.export.export was given, unchanged",
            )

    def names(self) -> dict[int, str]:
        """The name of each parameter and buffer by its id."""
        return {id(t): name for name, canonical, t in tensors(self.module) if name == canonical}

    def on(self, session: Session) -> Callable[..., Any]:
        """The program as a function, node by node."""
        return _Nodes(self, session).run

    def place(self) -> str:
        """`folder/file.py:line` in the user's forward of the node at work."""
        trace = (self.node.meta.get("stack_trace") or "") if self.node is not None else ""
        lines = re.findall(r'File "([^"]+)", line (\d+)', trace)
        return "/".join(lines[-1][0].split("/")[-2:]) + f":{lines[-1][1]}" if lines else ""

    def path(self) -> str:
        """The innermost layer of the node at work."""
        stack = self.node.meta.get("nn_module_stack") if self.node is not None else None
        return list(stack.values())[-1][0] if stack else ""


class _Nodes(fx.Interpreter):
    """Runs the nodes of a program one by one."""

    def __init__(self, program: Exported, session: Session) -> None:
        super().__init__(program.module)
        self.program, self.session = program, session

    def run_node(self, n: fx.Node) -> Any:
        """As the interpreter does, telling the session where it is."""
        self.program.node = n
        self.session.modules[:] = [self.program.path()]
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """With the integers of torch.nn's own layers as their attributes."""
        kind, position, name = _OWN.get(base_name(target), (None, 0, ""))
        layer = self.program.layers.get(self.session.module)
        if kind is not None and isinstance(layer, kind) and len(args) > position:
            args = (*args[:position], self._own(args[position], name), *args[position + 1 :])
        return super().call_function(target, args, kwargs)

    def _own(self, value: Any, name: str) -> Any:
        if isinstance(value, list | tuple):
            return [self._traced(v, Attribute(self.session.module, name, i)) for i, v in enumerate(value)]
        return self._traced(value, Attribute(self.session.module, name))

    def _traced(self, value: int, attribute: Attribute) -> int:
        self.program.attributes[attribute] = value
        return TracedInt.make(value, attribute, self.session)
