"""Program: what the forward of one module did, as it wrote it; enough to write that forward again with other integers.

Index conventions: slot, a value of the program (tensor, or integer that was handed in), in the order of appearance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Slot:
    """A value of the program."""

    number: int


@dataclass(frozen=True, slots=True)
class Baked:
    """An integer that stood in the forward itself: element `position` of the module's new attribute `baked`."""

    position: int


@dataclass(frozen=True, slots=True)
class Held:
    """What the module holds: `weight`, `attention.heads`, or an element of a tuple of integers."""

    path: str
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Length:
    """The length of an axis of a value, read when the program runs."""

    slot: int
    axis: int


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Integer arithmetic on two of `int`, `Slot`, `Baked`, `Held`, `Length`, `Arithmetic`."""

    operator: Literal["add", "sub", "mul", "floordiv", "mod"]
    left: Any
    right: Any


@dataclass(frozen=True, slots=True)
class Slice:
    """start:stop:step."""

    start: Any
    stop: Any
    step: Any


@dataclass(frozen=True, slots=True)
class Listed:
    """A list, where a tuple would mean something else."""

    items: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of torch (`dtype float32`, `memory_format channels_last`), or the ellipsis of an index.

    The kind `like` is the dtype or device of a value of the program, so that the module can be moved and converted.
    """

    kind: Literal["dtype", "device", "layout", "memory_format", "ellipsis", "like"]
    name: str
    slot: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call of the forward.

    Attributes:
        function: `torch.Tensor.view`, `torch.nn.functional.linear`; `child` of the module (its path is the first
            argument); `hold` for a tensor that the module holds; `property` of a tensor (its name is the second).
        args, kwargs: nouns of this file, numbers, strings, None, tuples and dicts of these.
        outputs: slots of the results, in tuples where they are nested.  multiple: whether the call returns several.
    """

    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Any, ...]
    multiple: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a forward did in one mode.

    Attributes:
        inputs: by parameter of the forward, what it was given: slots, and constants that later calls must repeat.
        output: slots and constants in tuples and dicts.
        baked: the integers that stood in the forward.
    """

    inputs: tuple[tuple[str, Any], ...]
    steps: tuple[Step, ...]
    output: Any
    baked: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """How the forward of a module can be written again with its integers as attributes.

    Attributes:
        module: its path.
        programs: by mode; where both modes hold the same integers in the same places, they share them.
        problem: why that cannot be done, else empty.
    """

    module: str
    programs: dict[str, Program]
    problem: str = ""
