"""Groups: which indices of which parameter axes must go together, and what a cut of them changes.

Index conventions: g group, u unit (local to its group), i index along a parameter axis.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from secateur.schema.graph import Attribute
from secateur.schema.program import Rewrite

Role = Literal["write", "read", "both", "scale"]
Kind = Literal["channel", "neuron", "head", "head_dim", "hidden", "residual", "embedding", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One axis of one parameter or buffer, and the unit that each of its indices belongs to.

    Attributes:
        param: canonical name.  axis: which axis.
        units: [size of the axis]; the unit (0 .. n_units-1) of each index, -1 where the index is not of this group.
        role: `write`: the axis produces the unit's activation (rows of the weight before it, its bias);
            `read`: the axis is contracted with the activation (columns of the weight after it);
            `both`: tied weights that do both; `scale`: acts on it element by element (batch norm, gates, states).
        readers: the names under which it is read, where the role is `read` or `both` (tied weights have several names).
    """

    param: str
    axis: int
    units: tuple[int, ...]
    role: Role
    readers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Units that are interchangeable in count: removing any k of them has the same shape and the same cost.

    Attributes:
        index: position in `Groups.groups`.  name: unique and readable, the first written parameter (`layer1.0.conv1`).
        members: all axes concerned.
        exact: zeroing the units gives exactly what the cut model computes.
        inexact_because: the statistic that runs over the cut axis, where `exact` is False.
        gated: scaling the `read` members of a unit by (1 - t) scales its whole effect: at t = 1 it is gone.
        module: path of the module that writes it.
        least: fewest units that may stay (a projected LSTM needs more hidden than projected units).
    """

    index: int
    name: str
    kind: Kind
    n_units: int
    members: tuple[Member, ...]
    exact: bool = True
    inexact_because: str = ""
    gated: bool = True
    module: str = ""
    least: int = 1


@dataclass(frozen=True, slots=True)
class Extent:
    """A length as a linear function of kept counts k: (fixed + sum of multiplicity * k[group]) / divisor.

    Attributes:
        terms: (group index, multiplicity).
        divisor: the division is exact for every count that satisfies the equations.
    """

    fixed: int
    terms: tuple[tuple[int, int], ...] = ()
    divisor: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTerm:
    """One product in the cost of the model: coefficient * product of extents.

    Attributes:
        what: `macs` for a multiply-accumulate of an operation, `params` for the elements of a parameter, `buffers` for
            those of a buffer (they count in the memory only).
        where: module path of the operation, or parameter name.  op: name of the operation.
        bytes_per: bytes of one element, for `params` and `buffers`.
    """

    what: Literal["macs", "params", "buffers"]
    where: str
    op: str
    coefficient: int
    extents: tuple[Extent, ...]
    bytes_per: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Equation:
    """An integer constraint on kept counts: sum of coefficient * k[group] + constant is 0 (or 0 modulo `modulus`).

    Attributes:
        terms: (group index, coefficient).
        modulus: 0 for an equality, else the sum must be a multiple of it.
        reason: what asks for it (`chunk(3)`, `one hidden_size`, `round_to 8`), source: where.
    """

    terms: tuple[tuple[int, int], ...]
    constant: int = 0
    modulus: int = 0
    reason: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An integer attribute of a module that must follow a cut, as a function of kept counts."""

    attribute: Attribute
    extent: Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """Something that cannot be removed, and why.

    Attributes:
        param, axis: what is frozen.  count: how many of its indices.
        reason: in words.  node: the operation that decided.  source: file:line in the user's forward.
    """

    param: str
    axis: int
    count: int
    reason: str
    node: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A recorded operation whose result depends on how many entries survive (norm, mean, softmax, attention scale).

    The masked oracle evaluates it on the survivors only.

    Attributes:
        run: index into `Graph.runs`.
        op, occurrence: the operation, and which of its kind in the order of the run (0 = first). Counting by kind keeps
            its place when the same forward runs in another precision, with conversions of type more or fewer.
        inputs: for each tensor argument in order of appearance, for each axis, the global unit of each index
            (-1: always kept), or None where nothing on that axis can be removed.
        outputs: the same for each output.
    """

    run: int
    op: str
    occurrence: int
    inputs: tuple[tuple[tuple[int, ...] | None, ...], ...]
    outputs: tuple[tuple[tuple[int, ...] | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Escape:
    """An integer of the forward that became a float (`head_dim ** -0.5`, `math.sqrt(d)`) and follows a cut.

    Attributes:
        run: index into `Graph.runs`.  position: which of the escapes of that run, in order.
        extent: the integer as a function of kept counts.
    """

    run: int
    position: int
    extent: Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What the masked oracle needs to know of a recorded run.

    Attributes:
        mode: `eval` or `train`.  example: which of the example inputs.
        counts: how often each operation that stands in a `Site` occurs in this run.
    """

    mode: Literal["eval", "train"]
    example: int
    counts: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """All that `couple` found out.

    Global units: unit u of group g has the number `offsets(groups)[g] + u`.

    Attributes:
        groups: what can be removed.
        frozen: what cannot, with reasons.
        equations: integer constraints on the kept counts.
        costs: MACs (of the example inputs) and parameters as functions of the kept counts.
        settings: integer attributes that follow.
        sites: operations that the masked oracle evaluates on survivors.
        escapes: integers that became floats and follow a cut.
        swaps: modules that need a class which can hold uneven sizes: (module path, key in `ops.SWAPS`).
        outlines: the recorded runs, in the order of `Site.run`.
        structure: fingerprint of the model that was recorded.
        rewrites: modules whose forward is written again, since integers stand in it that follow a cut.
        examples: the example inputs that were recorded, for verification; neither saved nor compared.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    equations: tuple[Equation, ...]
    costs: tuple[CostTerm, ...]
    settings: tuple[Setting, ...]
    sites: tuple[Site, ...]
    swaps: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    structure: str
    escapes: tuple[Escape, ...] = ()
    outlines: tuple[Outline, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    examples: Any = field(default=(), compare=False, repr=False, metadata={"json": False})
