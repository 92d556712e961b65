"""Graph: what computes what. Recorded operations, symbolic sizes, and where each integer came from.

A graph holds no weights and no activations: it can be written by hand and saved as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from secateur.schema.program import Rewrite


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor that was recorded: an input, a parameter or buffer, a constant, or the output of a node.

    Attributes:
        param: canonical name, if it is a parameter or buffer (tied ones share the canonical name).
        name: the name under which it was read (differs from `param` where weights are tied).
    """

    shape: tuple[int, ...]
    dtype: str
    param: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Ref:
    """A value in the arguments of a node, by index into `Run.values`."""

    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operation.

    Attributes:
        op: qualified name, `aten.relu.default`, or the torch function recorded whole (`linear`, `lstm`, ...).
        args, kwargs: as called; tensors are `Ref`s, everything else plain.
        outputs: indices of the output values, None where an output is not a tensor.
        multiple: whether the operation returned a tuple or list.
        writes: values that the operation wrote in place.
        module: path of the innermost module. source: file:line in the user's forward.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    multiple: bool
    writes: tuple[int, ...] = ()
    module: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Attribute:
    """An integer attribute of a module: `module.name`, or element `position` of a tuple attribute."""

    module: str
    name: str
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """The length of axis `axis` of a recorded value."""

    value: int
    axis: int


@dataclass(frozen=True, slots=True)
class Op:
    """Arithmetic on two expressions: add, sub, mul, floordiv, mod."""

    operator: Literal["add", "sub", "mul", "floordiv", "mod"]
    left: int | Attribute | Size | Op
    right: int | Attribute | Size | Op


Expression = int | Attribute | Size | Op


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer argument of a call, with the expression that produced it."""

    value: int
    origin: Expression


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One torch function call as the forward wrote it, kept where integers shape its result.

    Attributes:
        function: name of the torch function (`view`, `split`, `__getitem__`, ...).
        args, kwargs: tensors as `Ref`s, traced integers as `Integer`s, slices as ("slice", start, stop, step).
        outputs: indices of the output values.
        step: number of the call in the program of its module, -1 where it has none (`Graph.rewrites`).
    """

    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    module: str = ""
    source: str = ""
    step: int = -1


@dataclass(frozen=True, slots=True)
class Comparison:
    """An equality that the forward tested and found true: both sides must stay equal after a cut."""

    left: Expression
    right: Expression
    source: str = ""
    module: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One recorded forward pass, in the mode `eval` or `train`.

    Attributes:
        example: which of the example inputs.
        escapes: integers that became floats, in order (`head_dim ** -0.5`).
        lost: (number of an escape, module) of those that Python computed with, unseen by torch.
        inputs, outputs: indices of values.
    """

    mode: Literal["eval", "train"]
    example: int
    values: tuple[Value, ...]
    nodes: tuple[Node, ...]
    calls: tuple[Call, ...]
    comparisons: tuple[Comparison, ...]
    escapes: tuple[Expression, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    lost: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter or buffer of the model.

    Attributes:
        canonical: the first name of the same tensor (tied weights share it).
        kind: `parameter` or `buffer`.  dtype: without the `torch.` prefix.
    """

    name: str
    canonical: str
    kind: Literal["parameter", "buffer"]
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """What computes what, for every mode and example input that was recorded.

    Attributes:
        runs: the recordings, joined by parameter names.
        parameters: all parameters and buffers, under every name they have.
        attributes: the integer attributes of modules, with their values.
        swaps: modules that need a class which can hold uneven sizes: (module path, key in `ops.SWAPS`).
        unexecuted: parameters that no run touched; whatever they might couple to is frozen.
        notes: what could not be recorded, and why.
        rewrites: modules in whose forward integers stand, and how it can be written again without them.
        structure: fingerprint of names, shapes and dtypes of the model.
        examples: the example inputs that were recorded, for verification; neither saved nor compared.
    """

    runs: tuple[Run, ...]
    parameters: tuple[Parameter, ...]
    attributes: tuple[tuple[Attribute, int], ...]
    swaps: tuple[tuple[str, str], ...]
    unexecuted: tuple[str, ...]
    notes: tuple[str, ...]
    structure: str
    rewrites: tuple[Rewrite, ...] = ()
    examples: Any = field(default=(), compare=False, repr=False, metadata={"json": False})
