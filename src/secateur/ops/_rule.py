"""The form of an op rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from secateur.ops._kernel import Kernel, Label


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A recorded operation, with labels where tensors were.

    Attributes:
        op: qualified name.  args, kwargs: as recorded.  shapes: of the outputs, None where an output is no tensor.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[tuple[int, ...] | None, ...]

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """Argument number `position`, or keyword `name`, or the default."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        assert self.shapes[0] is not None
        return self.shapes[0]

    @property
    def labels(self) -> list[Label]:
        """All tensor arguments, in order."""
        found: list[Label] = []
        _collect((self.args, tuple(self.kwargs.values())), found)
        return found

    @property
    def function(self) -> Callable[..., Any]:
        """The torch operator itself, to be run on label arrays."""
        target: Any = torch.ops
        for part in self.op.split("."):
            target = getattr(target, part)
        return target  # type: ignore[no-any-return]


def _collect(item: object, found: list[Label]) -> None:
    if isinstance(item, Label):
        found.append(item)
    elif isinstance(item, tuple | list):
        for part in item:
            _collect(part, found)


Rule = Callable[[Kernel, Operation], Label | Sequence[Label | None]]


def bare(shape: Sequence[int] | None) -> Label | None:
    """A label without atoms: a value of fixed size."""
    return None if shape is None else Label(tuple(shape))
