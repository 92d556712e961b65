"""couple: which indices of which parameter axes must go together.

Every recorded operation passes its rule over labels (`ops`); what the rules unify are edges between atoms. Connected
components are units; those that touch an output, an op without a rule or an immovable length are frozen, with the
reason; and units that are interchangeable in shape and cost form a group.

Index conventions: a atom, c class (connected component), u global unit, g group.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from secateur._lengths import (
    Linear,
    Link,
    Solution,
    Statement,
    add,
    linear,
    of_extent,
    scale,
    sizes,
    solve,
    to_equation,
    to_extent,
)
from secateur._replay import is_pointwise, uncollected
from secateur._rewrite import baked_attributes, offsets
from secateur.errors import CoupleError, UnknownName
from secateur.ops import RULES, rule_key
from secateur.ops._kernel import INT, Kernel, Label, Product, Statistic, support
from secateur.ops._rule import Operation, Rule, bare, keeps_zeros
from secateur.ops.sizes import Requirement, equal_lengths, number, requirements
from secateur.schema.graph import Attribute, Call, Expression, Graph, Integer, Node, Op, Ref, Run, Size
from secateur.schema.groups import (
    CostTerm,
    Equation,
    Escape,
    Extent,
    Frozen,
    Group,
    Groups,
    Kind,
    Member,
    Outline,
    Role,
    Site,
)
from secateur.schema.program import Arithmetic, Baked, Listed, Rewrite, Slice

_FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex64": 8, "complex128": 16, "int64": 8}


@uncollected()
def couple(
    graph: Graph,
    *,
    freeze: Iterable[str] = (),
    tie: Iterable[tuple[str, str]] = (),
    rules: Mapping[str, Rule] | None = None,
    baked: Literal["freeze", "submodule"] = "freeze",
) -> Groups:
    """Find the groups of a recorded model.

    Args:
        graph: from `trace`.
        freeze: names of parameters or modules (wildcards allowed) that must keep their size.
        tie: pairs of parameter names whose first axes must lose the same indices.
        rules: `ops.RULES`, or that extended by your own.
        baked: what to do where an integer stands in a forward (a literal, a closure) and would need another value after
            a cut: `freeze` what it counts and say so, or write the forward of that `submodule` again, on the copy,
            from its recording: a subclass of its class, same parameters, the integers as attributes.

    Returns:
        The groups, what is frozen and why, count equations, costs, and the attributes that follow a cut.

    Raises:
        UnknownName: a name in `freeze` or `tie` that fits no parameter.
        CoupleError: a rule contradicted the recording.
    """
    kernel, environments = _label_all(graph, rules or RULES)
    _apply_wishes(kernel, graph, tuple(freeze), tuple(tie))
    _freeze_unexecuted(kernel, graph)
    _freeze_opaque(kernel, graph, environments)
    opened: list[Rewrite] = []
    demands = _demands(graph)
    while True:
        lengths = _Lengths(graph, demands, environments, _solve(kernel, graph, demands, environments))
        said, links, stuck = _statements(lengths)
        full = [len(units) for units in lengths.solved.units_of_group]
        even = _even_equations(kernel, graph, lengths.solved)
        answer = solve(said, links, even, dict(graph.attributes), lengths.of, full)
        stuck += answer.stuck
        marks = _marked(kernel, lengths.solved)
        stuck += [(g, "no recorded run uses it", "") for g in _unused(marks, lengths.solved)]
        stuck += _unsatisfiable([*answer.equations, *even], full)
        if not stuck:
            return _assemble(graph, kernel, lengths, answer, even, marks, opened)
        baking = _baking(lengths, stuck) if baked == "submodule" else {}
        fresh = list({r.module: r for r in baking.values() if not r.problem and r not in opened}.values())
        if fresh:
            opened += fresh
            graph = _opened(graph, fresh)
            demands = _demands(graph)
            continue
        for g, reason, source in stuck:
            if (g, source) in baking and baking[g, source].problem:
                reason = (
                    f"{reason}, and {baking[g, source].module} cannot be written again: {baking[g, source].problem}"
                )
            atoms = np.flatnonzero(lengths.solved.group_of_atom() == g).astype(np.int32)
            kernel.facts.frozen.append((atoms, f"{reason} ({source})" if source else reason, (-1, -1)))


# -- labels ----------------------------------------------------------------------------------------------------------


def _label_all(graph: Graph, rules: Mapping[str, Rule]) -> tuple[Kernel, list[list[Label | None]]]:
    kernel = Kernel()
    environments = []
    applied = _Applied(kernel) if len(graph.runs) > 1 else None
    for r, run in enumerate(graph.runs):
        env: list[Label | None] = [None] * len(run.values)
        for i, value in enumerate(run.values):
            if value.param is not None and value.dtype in _FLOATS:
                env[i] = kernel.source(value.param, value.shape, name=value.name)
            elif i in run.inputs:
                env[i] = Label(value.shape)
        for n, node in enumerate(run.nodes):
            kernel.site = (r, n)
            _label_outputs(kernel, run, node, env, rules, applied)
        kernel.site = (r, len(run.nodes))
        for i in run.outputs:
            label = env[i]
            if label is not None:
                kernel.freeze_label(label, "it is an output of the model")
        environments.append(env)
    kernel.site = (-1, -1)
    return kernel, environments


class _Applied:
    """What rules gave for the operations of earlier runs: in another mode most are the same, on the same labels."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.found: dict[Any, tuple[Operation, list[Label | None], list[Statistic], list[Product]]] = {}

    def results(self, operation: Operation, rule: Callable[[], list[Label | None]]) -> list[Label | None]:
        """Of an operation, by its rule where it has not met these labels yet."""
        facts, site, key = self.kernel.facts, self.kernel.site, _key(operation)
        if key in self.found:
            _, results, statistics, products = self.found[key]
            facts.statistics += [dataclasses.replace(s, site=site) for s in statistics]
            facts.products += [dataclasses.replace(p, site=site) for p in products]
            return results
        n_atoms, n_statistics, n_products = facts.n_atoms, len(facts.statistics), len(facts.products)
        results = rule()
        if facts.n_atoms == n_atoms:  # else they are values whose size is free, each one its own
            # with the operation the labels in it stay alive, and so no other slot has the id of one of theirs
            self.found[key] = operation, results, facts.statistics[n_statistics:], facts.products[n_products:]
        return results


def _key(item: Any) -> Any:
    """What a rule is given, to be looked up: labels by the identity of their slots, numbers by type and value."""
    if isinstance(item, Label):
        return Label, item.shape, tuple(map(id, item.slots)), item.names, item.zero
    if isinstance(item, tuple):
        return tuple(map(_key, item))
    if isinstance(item, Operation):
        named = tuple((name, _key(value)) for name, value in item.kwargs.items())
        return item.op, item.shapes, item.dtypes, _key(item.args), named
    return item if isinstance(item, str) else (type(item), item)


def _label_outputs(
    kernel: Kernel, run: Run, node: Node, env: list[Label | None], rules: Mapping[str, Rule], applied: _Applied | None
) -> None:
    def label_of(item: Any) -> Any:
        if isinstance(item, Ref):
            if env[item.value] is None:  # read before any operation made it: a constant of the model
                env[item.value] = Label(run.values[item.value].shape, (), frozenset())
            return env[item.value]
        if isinstance(item, tuple):
            return tuple(label_of(i) for i in item)
        return item

    operation = Operation(
        op=node.op,
        args=label_of(node.args),
        kwargs={k: label_of(v) for k, v in node.kwargs.items()},
        shapes=tuple(None if o is None else run.values[o].shape for o in node.outputs),
        dtypes=tuple(None if o is None else run.values[o].dtype for o in node.outputs),
    )

    def by_rule() -> list[Label | None]:
        return _apply_rule(kernel, node, operation, rules)

    results = by_rule() if applied is None else applied.results(operation, by_rule)
    for out, label in zip(node.outputs, results, strict=True):
        if out is not None and (run.values[out].param is None or node.writes):
            env[out] = label


def _apply_rule(kernel: Kernel, node: Node, operation: Operation, rules: Mapping[str, Rule]) -> list[Label | None]:
    """The label of each output."""
    shapes, labels = operation.shapes, operation.labels
    key = rule_key(node.op)
    rule = rules.get(key) or (RULES["add"] if is_pointwise(node.op) else None)
    given: Sequence[Label | None]
    if rule is None:
        for argument in labels:
            kernel.freeze_label(argument, f"no rule for {node.op}")
        given = [bare(s) for s in shapes]
    else:
        try:
            result = rule(kernel, operation)
        except (IndexError, ValueError, RuntimeError, AssertionError, TypeError, KeyError) as error:
            raise CoupleError(
                f"the rule for {node.op} failed: {type(error).__name__}: {error}",
                where=f"{node.module} ({node.source})",
                got=node,
                todo="please report it with the model",
            ) from error
        given = [result] if isinstance(result, Label) else list(result)
    names = _names_of(labels)
    zero = keeps_zeros(key, operation, labels)
    made: list[Label | None] = []
    for found, shape in zip([*given, *[None] * len(shapes)], shapes, strict=False):
        label = found if found is not None else bare(shape)
        if shape is not None and (label is None or label.shape != shape):
            raise CoupleError(
                f"the rule for {node.op} gave a label of the wrong shape",
                where=f"{node.module} ({node.source})",
                expected=shape,
                got=None if label is None else label.shape,
            )
        made.append(None if label is None else Label(label.shape, label.slots, names, zero))
    return made


def _names_of(labels: Sequence[Label]) -> frozenset[str] | None:
    names: frozenset[str] = frozenset()
    for label in labels:
        if label.names is None:
            return None
        names |= label.names
    return names


def _apply_wishes(kernel: Kernel, graph: Graph, freeze: tuple[str, ...], tie: tuple[tuple[str, str], ...]) -> None:
    canonical = {p.name: p for p in graph.parameters}
    for pattern in freeze:
        hit = [p for n, p in canonical.items() if fnmatch.fnmatch(n, pattern) or n.startswith(pattern + ".")]
        if not hit:
            raise UnknownName("no parameter or module of that name to freeze", where=pattern, got=sorted(canonical)[:8])
        for p in hit:
            if p.dtype in _FLOATS:
                kernel.freeze_label(kernel.source(p.canonical, p.shape, name=p.name), "frozen by request")
    for pair in tie:
        for name in pair:
            if name not in canonical:
                raise UnknownName("no parameter of that name to tie", where=name, got=sorted(canonical)[:8])
        a, b = (kernel.axis(canonical[n].canonical, canonical[n].shape, 0).reshape(-1) for n in pair)
        if len(a) != len(b):
            raise CoupleError("tied axes must have one length", where=" and ".join(pair), got=(len(a), len(b)))
        kernel.unify(a, b)


def _freeze_opaque(kernel: Kernel, graph: Graph, environments: list[list[Label | None]]) -> None:
    """Torch's own attention function reads sizes that no one can see: heads stay where it cannot be swapped."""
    for r, run in enumerate(graph.runs):
        for call in run.calls:
            if call.function != "multi_head_attention_forward":
                continue
            for value in _refs((call.args, tuple(call.kwargs.values()))):
                label = environments[r][value]
                if label is not None and label.names:
                    kernel.freeze_label(label, "torch.nn.functional.multi_head_attention_forward fixes its sizes")


def _freeze_unexecuted(kernel: Kernel, graph: Graph) -> None:
    """A parameter that no run touched may couple to anything of its size: whatever has that size stays.

    Buffers are exempt: one that no run reads is a copy kept for later (an original frequency), not a branch not taken.
    """
    shapes = {p.name: p.shape for p in graph.parameters if p.dtype in _FLOATS and p.kind == "parameter"}
    for name in graph.unexecuted:
        if name not in shapes:
            continue
        kernel.freeze_label(kernel.source(name, shapes[name], name=name), "no recorded run executes it")
        lengths = {n for n in shapes[name] if n > 1}
        for (key, _), (base, n) in list(kernel.facts.axes.items()):
            if n in lengths and not key.startswith("~"):
                kernel.freeze(
                    torch.arange(base, base + n, dtype=INT), f"{name}, which no recorded run executes, may depend on it"
                )


# -- solving ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Solved:
    """Classes, units and groups.

    Attributes:
        classes: [atoms] -> class.  unit_of_class: class -> global unit, -1 where frozen or without a parameter.
        group_of_unit, local: [units] -> group, number within the group.  units_of_group: [group] -> global units.
        entities: (param, axis, first atom, length) of every parameter axis.
        reason: class -> index of `Facts.frozen`, their number where it is in none.
    """

    classes: np.ndarray
    unit_of_class: np.ndarray
    group_of_unit: np.ndarray
    local: np.ndarray
    units_of_group: list[np.ndarray]
    entities: list[tuple[str, int, int, int]]
    reason: np.ndarray
    extents: dict[bytes, Extent] = field(default_factory=dict)  # many axes lose the same
    lines: dict[tuple[Any, ...], np.ndarray | None] = field(default_factory=dict)  # many values have the same labels

    def units(self, slot: Tensor) -> np.ndarray:
        """The global unit of every entry of a slot, -1 where it cannot go."""
        units: np.ndarray = self.unit_of_class[self.classes[slot.numpy()]]
        return units

    def along(self, slot: Tensor, axis: int) -> np.ndarray | None:
        """[length of the axis]: the unit whose removal shortens the axis there; None where nothing can."""
        if slot.shape[axis] == 1:
            return None
        key = (slot.data_ptr(), slot.shape, slot.stride(), axis)
        if key not in self.lines:
            self.lines[key] = self._line(slot, axis)
        return self.lines[key]

    def _line(self, slot: Tensor, axis: int) -> np.ndarray | None:
        if slot.shape[axis] == slot.numel():
            line = self.units(slot).reshape(-1)
            return line if (line >= 0).any() else None
        units = np.moveaxis(self.units(slot), axis, 0).reshape(slot.shape[axis], -1)
        if (units == units[:, :1]).all():
            line = units[:, 0]
        elif (units != units[:1]).any():
            # rows with units of their own, in equal numbers (kept so by an equation): the first speaks for all
            constant = (units == units[:1]).all(axis=0)
            line = np.full(len(units), -1) if constant.any() else units[:, 0]
        else:
            return None
        return line if (line >= 0).any() else None

    def label_along(self, label: Label, axis: int) -> np.ndarray | None:
        """The same for a label: the one slot that varies along the axis."""
        axis %= label.rank
        for slot in label.slots:
            if axis in support(slot):
                return self.along(slot, axis)
        return None

    def group_of_atom(self) -> np.ndarray:
        """[atoms] -> group, -1 where none."""
        units = self.unit_of_class[self.classes]
        return np.where(units >= 0, self.group_of_unit[np.maximum(units, 0)] if len(self.group_of_unit) else -1, -1)

    def extent(self, units: np.ndarray | None, length: int) -> Extent:
        """A length as a function of kept counts."""
        return Extent(length) if units is None else self.extent_of_rows(units)

    def groups_of(self, units: np.ndarray) -> list[int]:
        """The groups of these units, ascending; -1 stands for none."""
        found: list[int] = np.flatnonzero(np.bincount(self.group_of_unit[units[units >= 0]])).tolist()
        return found

    def extent_of_rows(self, units: np.ndarray) -> Extent:
        """The number of surviving entries, each entry standing for its unit."""
        key = units.tobytes()
        if key not in self.extents:
            self.extents[key] = self._counted(units)
        return self.extents[key]

    def _counted(self, units: np.ndarray) -> Extent:
        inside = units[units >= 0]
        counts = np.bincount(self.group_of_unit[inside], minlength=len(self.units_of_group))
        entries = np.bincount(inside, minlength=len(self.group_of_unit))
        terms = []
        for g in np.flatnonzero(counts).tolist():
            each, rest = divmod(int(counts[g]), len(self.units_of_group[g]))
            assert not rest and (entries[self.units_of_group[g]] == each).all(), (
                "units of one group must shorten an axis alike: this is a bug of secateur, please report it"
            )
            terms.append((g, each))
        return Extent(int((units < 0).sum()), tuple(terms))


def _solve(kernel: Kernel, graph: Graph, demands: Sequence[_Demand], environments: list[list[Label | None]]) -> _Solved:
    facts = kernel.facts
    classes = _components(facts.n_atoms, facts.edges)
    classes = _resolve_grids(kernel, classes)
    n_classes = int(classes.max()) + 1
    reason = np.full(n_classes, len(facts.frozen))  # the first that was found
    for i in reversed(range(len(facts.frozen))):
        reason[classes[facts.frozen[i][0]]] = i
    frozen = reason < len(facts.frozen)
    frozen[classes[0]] = True
    entities = [
        (key, axis, base, n) for (key, axis), (base, n) in facts.axes.items() if (key, axis) not in facts.virtual
    ]
    signature, real = _signatures(classes, n_classes, entities)
    alive = real & ~frozen
    unit_of_class = np.full(n_classes, -1)
    unit_of_class[alive] = np.arange(int(alive.sum()))
    solved = _Solved(
        classes=classes,
        unit_of_class=unit_of_class,
        group_of_unit=np.zeros(int(alive.sum()), int),
        local=np.zeros(int(alive.sum()), int),
        units_of_group=[],
        entities=entities,
        reason=reason,
    )
    lines = _lines_that_matter(kernel, _Lengths(graph, demands, environments, solved))
    signature = _refine(signature[alive], lines)
    _form_groups(solved, signature, classes, alive)
    return solved


def _components(n: int, edges: Sequence[np.ndarray]) -> np.ndarray:
    e = np.concatenate(edges) if edges else np.zeros((0, 2), np.int32)
    links = coo_matrix((np.ones(len(e), np.int8), (e[:, 0], e[:, 1])), shape=(n, n))
    labels: np.ndarray = connected_components(links, directed=False)[1]
    return labels


def _resolve_grids(kernel: Kernel, classes: np.ndarray) -> np.ndarray:
    """Labels that still vary over two axes of a value: whole rows or whole columns go, whichever leaves more units."""
    todo = {(s.data_ptr(), tuple(s.shape), tuple(s.stride())): s for s in kernel.facts.grids}
    for _ in range(8):
        changed = False
        for slot in todo.values():
            grid = classes[slot.numpy()]
            axes = sorted(support(slot))
            if any(_is_line(grid, axis) for axis in axes):
                continue
            best = max(axes, key=lambda axis: (_rows_left(grid, axis), -axis))
            known = len(kernel.facts.edges)
            kernel.collapse(slot, [a for a in axes if a != best])
            # what goes together already is one node: the classes are those of all edges, and so are their numbers
            joined = _components(int(classes.max()) + 1, [classes[edges] for edges in kernel.facts.edges[known:]])
            classes = joined[classes]
            changed = True
        if not changed:
            break
        kernel.facts.edges[:] = [np.concatenate(kernel.facts.edges)]
    return classes


def _is_line(grid: np.ndarray, axis: int) -> bool:
    rows = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
    return bool((rows == rows[:, :1]).all())


def _rows_left(grid: np.ndarray, axis: int) -> int:
    """Number of classes if every row along `axis` becomes one class."""
    rows = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
    names, flat = np.unique(rows, return_inverse=True)
    flat = flat.reshape(rows.shape) + len(rows)
    n = len(rows) + len(names)
    row = np.repeat(np.arange(len(rows)), rows.shape[1])
    links = coo_matrix((np.ones(row.size, np.int8), (row, flat.reshape(-1))), shape=(n, n))
    return int(connected_components(links, directed=False)[0])


def _word(number: np.ndarray, count: np.ndarray) -> np.ndarray:
    """What (number, count) adds to a running 64-bit signature; order does not matter."""
    word: np.ndarray = (number.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ (
        count.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    )
    word ^= word >> np.uint64(29)
    word *= np.uint64(0xBF58476D1CE4E5B9)
    word ^= word >> np.uint64(32)
    return word


def _signatures(
    classes: np.ndarray, n_classes: int, entities: Sequence[tuple[str, int, int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Per class: a signature of how many indices of which parameter axes it holds, and whether it holds any."""
    signature = np.zeros(n_classes, np.uint64)
    real = np.zeros(n_classes, bool)
    if entities:
        atoms = np.concatenate([np.arange(base, base + n) for _, _, base, n in entities])
        number = np.repeat(np.arange(len(entities)), [n for _, _, _, n in entities])
        pairs, counts = np.unique(number * n_classes + classes[atoms], return_counts=True)
        number, names = np.divmod(pairs, n_classes)
        with np.errstate(over="ignore"):
            np.add.at(signature, names, _word(number, counts))
        real[names] = True
    return signature, real


def _refine(signature: np.ndarray, lines: Iterable[np.ndarray]) -> np.ndarray:
    """Units that shorten some axis, or some part of it, by different amounts are not interchangeable."""
    with np.errstate(over="ignore"):
        for number, units in enumerate({line.tobytes(): line for line in lines}.values()):
            counts = np.bincount(units[units >= 0], minlength=len(signature))
            there = np.flatnonzero(counts)
            signature[there] += _word(np.array(1_000_003 + number), counts[there])
    return signature


def _lines_that_matter(kernel: Kernel, lengths: _Lengths) -> Iterable[np.ndarray]:
    """Every axis whose length a cost, an equation or an integer of the forward depends on."""
    labelled = [(p.label, axis) for p in kernel.facts.products for axis in range(p.label.rank)]
    labelled += [(part, axis) for parts, axis, _, _ in kernel.facts.even for part in parts]
    labelled += [(label, axis) for label, axis, *_ in kernel.facts.aligned]
    for label, axis in labelled:
        units = lengths.solved.label_along(label, axis)
        if units is not None:
            yield units
    for demand in lengths.demands:
        for need in demand.needs:
            units = lengths.units(demand.run, need.value, need.axis)
            if units is not None and need.argument is not None:
                counted, whole = _counted(units, need)
                if whole:
                    yield counted
    for r, run in enumerate(lengths.graph.runs):
        said: list[Expression] = [size for d in lengths.demands if d.run == r for pair in d.equal for size in pair]
        said += [*run.escapes, *(e for c in run.comparisons for e in (c.left, c.right))]
        said += [i.origin for call in run.calls for i in _integers((call.args, tuple(call.kwargs.values())))]
        for size in {s for e in said for s in sizes(e)}:
            units = lengths.units(r, size.value, size.axis)
            if units is not None:
                yield units


def _counted(units: np.ndarray, need: Requirement) -> tuple[np.ndarray, bool]:
    """The entries that a requirement counts, and whether they can be counted at all."""
    if not need.rows:
        return units[need.start : need.stop], True
    assert need.argument is not None
    rows = units.reshape(number(need.argument), -1)
    return rows[:, 0], bool((rows == rows[:, :1]).all())


def _integers(item: Any) -> list[Integer]:
    if isinstance(item, Integer):
        return [item]
    if isinstance(item, tuple):
        return [i for part in item for i in _integers(part)]
    return []


def _form_groups(solved: _Solved, signature: np.ndarray, classes: np.ndarray, alive: np.ndarray) -> None:
    first = np.full(len(signature), len(classes))
    atoms = np.arange(len(classes))
    units = solved.unit_of_class[classes]
    inside = units >= 0
    # virtual atoms come in the order of the forward too; the first atom of any kind orders units and groups
    first[units[inside][::-1]] = atoms[inside][::-1]
    order = np.argsort(first, kind="stable")
    _, appears, number = np.unique(signature[order], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(appears))[number]  # [units in order] -> group, by its first unit
    # global units are numbered group by group
    ordered = np.argsort(rank, kind="stable")
    renumber = np.full(len(signature) + 1, -1)
    renumber[order[ordered]] = np.arange(len(order))
    counts = np.bincount(rank)
    starts = np.cumsum(counts) - counts
    solved.units_of_group = [np.arange(a, a + n) for a, n in zip(starts.tolist(), counts.tolist(), strict=True)]
    solved.group_of_unit[:] = rank[ordered]
    solved.local[:] = np.arange(len(order)) - starts[rank[ordered]]
    solved.unit_of_class = renumber[solved.unit_of_class]
    solved.lines = {key: None if line is None else renumber[line] for key, line in solved.lines.items()}


# -- statements about integers ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Demand:
    """What one call says about lengths.

    Attributes:
        needs: what its integers count.  equal: axes that are of one length.
    """

    run: int
    call: Call
    needs: tuple[Requirement, ...]
    equal: tuple[tuple[Size, Size], ...]


def _demands(graph: Graph) -> list[_Demand]:
    return [
        _Demand(r, call, needs, equal)
        for r, run in enumerate(graph.runs)
        for call in run.calls
        for needs in [tuple(requirements(call, run.values.__getitem__))]
        for equal in [tuple(equal_lengths(call, run.values.__getitem__))]
        if needs or equal
    ]


@dataclass(slots=True)
class _Lengths:
    """Lengths of recorded values as functions of kept counts. Values of all runs are numbered through."""

    graph: Graph
    demands: Sequence[_Demand]
    environments: list[list[Label | None]]
    solved: _Solved

    def first(self, run: int) -> int:
        """The number of the first value of a run."""
        return sum(len(r.values) for r in self.graph.runs[:run])

    def units(self, run: int, value: int, axis: int) -> np.ndarray | None:
        """The unit behind each index of an axis, None where nothing on it can go."""
        label = self.environments[run][value]
        return None if label is None or not label.rank else self.solved.label_along(label, axis)

    def of(self, size: Size) -> Linear:
        """The length of an axis of a value (numbered through all runs)."""
        run, value = 0, size.value
        while value >= len(self.graph.runs[run].values):
            value -= len(self.graph.runs[run].values)
            run += 1
        shape = self.graph.runs[run].values[value].shape
        return of_extent(self.solved.extent(self.units(run, value, size.axis), shape[size.axis]))


def _shifted(e: Expression, offset: int) -> Expression:
    if isinstance(e, Size):
        return Size(e.value + offset, e.axis)
    if isinstance(e, Op):
        return Op(e.operator, _shifted(e.left, offset), _shifted(e.right, offset))
    return e


def _statements(lengths: _Lengths) -> tuple[list[Statement], list[Link], list[tuple[int, str, str]]]:
    """What the forward says about integers, and groups that an integer holds fast."""
    graph, solved = lengths.graph, lengths.solved
    said: list[Statement] = []
    links: list[Link] = []
    stuck: list[tuple[int, str, str]] = []
    for demand in lengths.demands:
        r, call = demand.run, demand.call
        run, offset = graph.runs[r], lengths.first(r)
        for need in demand.needs:
            units = lengths.units(r, need.value, need.axis)
            if need.argument is None:
                if units is not None:
                    why = f"every other entry is taken in {call.function}"
                    stuck += [(g, why, call.source) for g in solved.groups_of(units)]
                continue
            length = run.values[need.value].shape[need.axis]
            said.append(
                Statement(
                    expression=_shifted(_origin(need.argument), offset),
                    length=_needed(solved, units, length, need),
                    reason=f"an integer of {call.function} is fixed in the forward",
                    source=call.source,
                )
            )
        for here, there in demand.equal:
            left, right = _shifted(here, offset), _shifted(there, offset)
            reason = f"equal lengths in {call.function}"
            links.append(Link(left=left, right=right, reason=reason, source=call.source))
    for r, run in enumerate(graph.runs):
        offset = lengths.first(r)
        for c in run.comparisons:
            left, right = _shifted(c.left, offset), _shifted(c.right, offset)
            links.append(
                Link(left=left, right=right, reason="two integers are compared in the forward", source=c.source)
            )
    return said, links, stuck


def _baking(lengths: _Lengths, stuck: Sequence[tuple[int, str, str]]) -> dict[tuple[int, str], Rewrite]:
    """(group, source) -> the module in whose forward an integer holds the group fast."""
    programs = {rewrite.module: rewrite for rewrite in lengths.graph.rewrites}
    wanted = {(g, source) for g, _, source in stuck}
    sources = {source for _, source in wanted}
    found: dict[tuple[int, str], Rewrite] = {}
    for r, run in enumerate(lengths.graph.runs):
        axes: list[tuple[str, str, Size]] = []
        for demand in lengths.demands:
            call = demand.call
            if demand.run == r and call.source in sources and call.module in programs:
                axes += [(call.module, call.source, Size(need.value, need.axis)) for need in demand.needs]
        for call in run.calls:
            if call.source in sources and call.module in programs:
                integers = _integers((call.args, tuple(call.kwargs.values())))
                axes += [(call.module, call.source, s) for i in integers for s in sizes(i.origin)]
        for c in run.comparisons:
            if c.source in sources and c.module in programs:
                axes += [(c.module, c.source, s) for e in (c.left, c.right) for s in sizes(e)]
        for module, source, size in axes:
            units = lengths.units(r, size.value, size.axis)
            for g in () if units is None else lengths.solved.groups_of(units):
                if (g, source) in wanted:
                    found.setdefault((g, source), programs[module])
    return found


def _opened(graph: Graph, rewrites: Sequence[Rewrite]) -> Graph:
    """The graph with the integers that stand in these modules as attributes; what they compared is decided."""
    programs = {rewrite.module: rewrite for rewrite in rewrites}
    runs = []
    for run in graph.runs:
        calls = []
        for call in run.calls:
            rewrite = programs.get(call.module)
            if rewrite is not None and call.step >= 0:
                step = rewrite.programs[run.mode].steps[call.step]
                place = _Opener(call.module, offsets(rewrite)[run.mode])
                call = dataclasses.replace(
                    call,
                    args=place.item(call.args, step.args),
                    kwargs={k: place.item(v, step.kwargs[k]) for k, v in call.kwargs.items()},
                )
            calls.append(call)
        lost = {number for number, module in run.lost if module in programs}
        runs.append(
            dataclasses.replace(
                run,
                calls=tuple(calls),
                comparisons=tuple(c for c in run.comparisons if c.module not in programs),
                escapes=tuple(0 if number in lost else e for number, e in enumerate(run.escapes)),
            )
        )
    attributes = (*graph.attributes, *baked_attributes(rewrites).items())
    return dataclasses.replace(graph, runs=tuple(runs), attributes=attributes)


@dataclass(frozen=True, slots=True)
class _Opener:
    """Walks through the arguments of a call and of its step at the same time."""

    module: str
    first: int

    def item(self, recorded: Any, noted: Any) -> Any:
        """The recorded argument, with what was baked as attributes."""
        if isinstance(noted, Baked):
            return Integer(number(recorded), Attribute(self.module, "baked", self.first + noted.position))
        if isinstance(noted, Arithmetic) and isinstance(recorded, Integer):
            return Integer(recorded.value, self.expression(recorded.origin, noted))
        if isinstance(noted, Slice):
            parts = zip(recorded[1:], (noted.start, noted.stop, noted.step), strict=True)
            return ("slice", *(self.item(a, b) for a, b in parts))
        if isinstance(recorded, tuple) and isinstance(noted, tuple | Listed):
            items = noted.items if isinstance(noted, Listed) else noted
            return tuple(self.item(a, b) for a, b in zip(recorded, items, strict=True))
        return recorded

    def expression(self, recorded: Expression, noted: Any) -> Expression:
        """The same inside an expression."""
        if isinstance(noted, Baked):
            return Attribute(self.module, "baked", self.first + noted.position)
        if isinstance(noted, Arithmetic) and isinstance(recorded, Op):
            left, right = self.expression(recorded.left, noted.left), self.expression(recorded.right, noted.right)
            return Op(recorded.operator, left, right)
        return recorded


def _origin(argument: int | Integer) -> Expression:
    return argument.origin if isinstance(argument, Integer) else argument


def _needed(solved: _Solved, units: np.ndarray | None, length: int, need: Requirement) -> Linear:
    """What the integer must be, as a function of kept counts."""
    assert need.argument is not None
    if units is None:
        return of_extent(Extent(number(need.argument)))
    entries, countable = _counted(units, need)
    if not countable:
        return of_extent(Extent(number(need.argument)))
    return scale(of_extent(solved.extent_of_rows(entries)), Fraction(need.sign))


def _unused(marks: _Marks, solved: _Solved) -> list[int]:
    """Groups that no operation reads or writes: entries of a table beyond the recorded length, for example."""
    used = np.flatnonzero(marks.reads | marks.writes)
    groups = solved.group_of_atom()[used]
    return sorted(set(range(len(solved.units_of_group))) - set(groups[groups >= 0].tolist()))


def _unsatisfiable(equations: Sequence[Equation], full: Sequence[int]) -> list[tuple[int, str, str]]:
    """Groups of equations that only the dense counts satisfy (an integer literal, a closure, a comparison)."""
    return [(eq.terms[0][0], eq.reason, eq.source) for eq in equations if len(eq.terms) == 1 and not eq.modulus] + [
        (g, eq.reason, eq.source)
        for eq in equations
        if len(eq.terms) > 1 and len({c > 0 for _, c in eq.terms}) == 1 and not eq.modulus
        for g, _ in eq.terms
    ]


# -- the result ------------------------------------------------------------------------------------------------------


def _assemble(
    graph: Graph,
    kernel: Kernel,
    lengths: _Lengths,
    settings: Solution,
    even: Sequence[Equation],
    marks: _Marks,
    opened: Sequence[Rewrite],
) -> Groups:
    solved = lengths.solved
    escapes = _escapes(graph, lengths, settings)
    counting = [(s, _varying(solved, s.slot, s.axes)) for s in kernel.facts.statistics]
    inexact: dict[int, str] = {}
    for statistic, units in counting:
        for g in solved.groups_of(units):
            inexact.setdefault(g, statistic.reason)
    for escape in escapes:
        for g, _ in escape.extent.terms:
            inexact.setdefault(g, "the forward computes a number from its size (a square root, a quotient)")
    groups = _groups(graph, kernel, solved, marks, inexact)
    sites = _sites(graph, lengths, {s.site for s, units in counting if len(units)})
    return Groups(
        groups=groups,
        frozen=_frozen(graph, kernel, solved),
        equations=tuple(dict.fromkeys((*settings.equations, *even))),
        costs=(*_macs(graph, kernel, solved), *_params(graph, solved)),
        settings=settings.settings,
        sites=sites,
        swaps=graph.swaps,
        notes=graph.notes,
        structure=graph.structure,
        escapes=escapes,
        outlines=tuple(_outline(run, {s.op for s in sites if s.run == r}) for r, run in enumerate(graph.runs)),
        rewrites=tuple(opened),
        examples=graph.examples,
    )


def _even_equations(kernel: Kernel, graph: Graph, solved: _Solved) -> list[Equation]:
    made = []
    for parts, axis, reason, site in kernel.facts.even:
        lines = [of_extent(solved.extent(solved.label_along(p, axis), p.shape[axis])) for p in parts]
        for other in lines[1:]:
            difference = add(lines[0], other, -1)
            if not difference.fixed:
                made.append(to_equation(difference, reason, _source(graph, site)))
    for label, axis, multiple, reason, site in kernel.facts.aligned:
        extent = solved.extent(solved.label_along(label, axis), label.shape[axis])
        terms = tuple((g, m % multiple) for g, m in extent.terms if m % multiple)
        if terms:
            fixed = extent.fixed % multiple
            made.append(
                Equation(terms=terms, constant=fixed, modulus=multiple, reason=reason, source=_source(graph, site))
            )
    return made


def _source(graph: Graph, site: tuple[int, int]) -> str:
    run, node = site
    if run < 0 or node >= len(graph.runs[run].nodes):
        return ""
    return graph.runs[run].nodes[node].source


def _node(graph: Graph, site: tuple[int, int]) -> str:
    run, node = site
    if run < 0 or node >= len(graph.runs[run].nodes):
        return ""
    n = graph.runs[run].nodes[node]
    return f"{n.op} in {n.module}" if n.module else n.op


def _groups(
    graph: Graph, kernel: Kernel, solved: _Solved, marks: _Marks, inexact: Mapping[int, str]
) -> tuple[Group, ...]:
    n_groups = len(solved.units_of_group)
    members: list[list[Member]] = [[] for _ in range(n_groups)]
    same: dict[bytes, list[tuple[int, np.ndarray, tuple[int, ...]]]] = {}  # thousands of members share a few mappings
    for key, axis, base, n in solved.entities:
        units = solved.unit_of_class[solved.classes[base : base + n]]
        parts = same.get(units.tobytes())
        if parts is None:
            parts = same[units.tobytes()] = _owners(solved, units)
        for g, mine, owner in parts:
            read = bool(marks.reads[base : base + n][mine].any())
            written = bool(marks.writes[base : base + n][mine].any())
            role: Role = "both" if read and written else "read" if read else "write" if written else "scale"
            members[g].append(
                Member(
                    param=key,
                    axis=axis,
                    units=owner,
                    role=role,
                    readers=tuple(sorted(marks.readers.get((key, axis), ()))) if read else (),
                )
            )
    least: dict[int, int] = {}
    for slot, n in kernel.facts.least:
        for g in solved.groups_of(solved.units(slot)):
            least[g] = max(least.get(g, 1), n)
    names = _unique([_name(m) for m in members])
    ranks = {p.name: len(p.shape) for p in graph.parameters}
    return tuple(
        Group(
            index=g,
            name=names[g],
            kind=_kind(ranks, members[g], len(solved.units_of_group[g])),
            n_units=len(solved.units_of_group[g]),
            members=tuple(members[g]),
            exact=g not in inexact,
            inexact_because=inexact.get(g, ""),
            gated=g not in marks.ungated and any(m.role in ("read", "both") for m in members[g]),
            module=_name(members[g]).rpartition(".")[0] if members[g] else "",
            least=least.get(g, 1),
        )
        for g in range(n_groups)
    )


def _owners(solved: _Solved, units: np.ndarray) -> list[tuple[int, np.ndarray, tuple[int, ...]]]:
    """(group, where its units stand, the number of each within the group or -1) for all groups of an axis."""
    found = []
    for g in solved.groups_of(units):
        mine = (units >= 0) & (solved.group_of_unit[units] == g)
        found.append((g, mine, tuple(np.where(mine, solved.local[units], -1).tolist())))
    return found


def _varying(solved: _Solved, slot: Tensor, axes: Sequence[int]) -> np.ndarray:
    """Units whose number of entries along `axes` can change, once or more: those on lines where the unit varies."""
    units = solved.units(slot)
    if len(axes) == 1 and slot.shape[axes[0]] == slot.numel():
        line = units.reshape(-1)
        return line[line >= 0] if (line != line[0]).any() else line[:0]
    varies = np.zeros(units.shape, bool)
    for axis in axes:
        first = np.take(units, [0], axis)
        varies |= (units != first).any(axis=axis, keepdims=True)
    found: np.ndarray = units[varies & (units >= 0)]
    return found


@dataclass(frozen=True, slots=True)
class _Marks:
    """What the operations do with atoms.

    Attributes:
        reads, writes: [atoms]: a contraction sums over it; a contraction or a bias makes it.
        readers: (param, axis) -> the names under which the parameter is read.
        ungated: groups whose units are contracted with each other (query with key): no one set of columns reads them.
    """

    reads: np.ndarray
    writes: np.ndarray
    readers: dict[tuple[str, int], set[str]]
    ungated: set[int]


def _marked(kernel: Kernel, solved: _Solved) -> _Marks:
    reads = np.zeros(kernel.facts.n_atoms, bool)
    writes = np.zeros(kernel.facts.n_atoms, bool)
    readers: dict[tuple[str, int], set[str]] = {}
    ungated: set[int] = set()
    bases = np.array([base for _, _, base, _ in solved.entities])
    for reading in kernel.facts.readings:
        wanted = _varying(solved, reading.slot, reading.axes)
        if not reading.gated:
            ungated |= set(solved.groups_of(wanted))
        if not reading.gated or not len(wanted):
            continue
        atoms = reading.slot.numpy().reshape(-1)
        units = solved.unit_of_class[solved.classes[atoms]]
        chosen = np.zeros(len(solved.group_of_unit) + 1, bool)  # the last one stands for -1
        chosen[wanted] = True
        atoms = atoms[(atoms != 0) & chosen[units]]
        reads[atoms] = True
        for e in np.flatnonzero(np.bincount(np.searchsorted(bases, atoms, side="right"))).tolist():
            key, axis, base, n = solved.entities[e - 1]
            if e and ((atoms >= base) & (atoms < base + n)).any():
                readers.setdefault((key, axis), set()).update(reading.names)
    for slot in kernel.facts.writings:
        writes[slot.numpy().reshape(-1)] = True
    writes[0] = False
    return _Marks(reads, writes, readers, ungated)


def _name(members: Sequence[Member]) -> str:
    for role in ("write", "both", "read", "scale"):
        for m in members:
            if m.role == role:
                return m.param
    return members[0].param if members else ""


def _unique(names: Sequence[str]) -> list[str]:
    """Parameter names without a trailing `.weight`; repeated ones are numbered."""
    short = [n.removesuffix(".weight") for n in names]
    seen: dict[str, int] = {}
    result = []
    for n in short:
        seen[n] = seen.get(n, 0) + 1
        result.append(n if short.count(n) == 1 else f"{n}#{seen[n]}")
    return result


def _kind(ranks: Mapping[str, int], members: Sequence[Member], n_units: int) -> Kind:
    written = [m for m in members if m.role in ("write", "both") and ranks[m.param] > 1]
    if any("weight_hh" in m.param for m in members):
        return "hidden"
    if len({m.param for m in written}) > 1 and all(ranks[m.param] == 2 for m in written):
        per_unit = max(((len(m.units) - m.units.count(-1)) // n_units for m in written), default=1)
        reads = [m for m in members if m.role == "read"]
        if per_unit > 1:
            return "head"
        return "residual" if len({m.param for m in reads}) > 1 else "neuron"
    if any(ranks[m.param] > 2 for m in written):
        return "channel"
    per_unit = max(((len(m.units) - m.units.count(-1)) // n_units for m in written), default=1)
    return "head" if per_unit > 1 else "neuron"


def _frozen(graph: Graph, kernel: Kernel, solved: _Solved) -> tuple[Frozen, ...]:
    made = []
    why = [*((reason, site) for _, reason, site in kernel.facts.frozen), ("it faces something of fixed size", (-1, -1))]
    for key, axis, base, n in solved.entities:
        classes = solved.classes[base : base + n]
        stuck = classes[solved.unit_of_class[classes] < 0]
        if not len(stuck):
            continue
        reasons: dict[tuple[str, tuple[int, int]], int] = {}
        for i, count in collections.Counter(solved.reason[stuck].tolist()).items():
            reasons[why[i]] = reasons.get(why[i], 0) + count
        for (reason, site), count in reasons.items():
            made.append(
                Frozen(
                    param=key,
                    axis=axis,
                    count=count,
                    reason=reason,
                    node=_node(graph, site),
                    source=_source(graph, site),
                )
            )
    return tuple(made)


def _macs(graph: Graph, kernel: Kernel, solved: _Solved) -> list[CostTerm]:
    """Multiply-accumulates of the first recorded run."""
    terms = []
    for product in kernel.facts.products:
        run, n = product.site
        if run != 0:
            continue
        node = graph.runs[0].nodes[n]
        coefficient, extents = product.multiplier, []
        for axis, length in enumerate(product.label.shape):
            extent = solved.extent(solved.label_along(product.label, axis), length)
            if extent.terms:
                extents.append(extent)
            else:
                coefficient *= length
        terms.append(
            CostTerm(
                what="macs",
                where=node.module,
                op=rule_key(node.op),
                coefficient=coefficient,
                extents=tuple(extents),
            )
        )
    return terms


def _params(graph: Graph, solved: _Solved) -> list[CostTerm]:
    axes = {(key, axis): (base, n) for key, axis, base, n in solved.entities}
    terms = []
    for p in graph.parameters:
        if p.name != p.canonical:
            continue
        coefficient, extents = 1, []
        for axis, length in enumerate(p.shape):
            where = axes.get((p.name, axis))
            extent = Extent(length)
            if where is not None:
                units = solved.unit_of_class[solved.classes[where[0] : where[0] + where[1]]]
                extent = solved.extent(units if (units >= 0).any() else None, length)
            if extent.terms:
                extents.append(extent)
            else:
                coefficient *= length
        terms.append(
            CostTerm(
                what="params" if p.kind == "parameter" else "buffers",
                where=p.name,
                op=p.kind,
                coefficient=coefficient,
                extents=tuple(extents),
                bytes_per=_BYTES.get(p.dtype, 1),
            )
        )
    return terms


def _sites(graph: Graph, lengths: _Lengths, counting: Collection[tuple[int, int]]) -> tuple[Site, ...]:
    """Operations whose result depends on how many entries survive, with the unit of every index."""
    made = []
    for r, n in sorted(counting):
        node = graph.runs[r].nodes[n]

        def axes(value: int, r: int = r) -> tuple[tuple[int, ...] | None, ...]:
            shape = graph.runs[r].values[value].shape
            lines = [lengths.units(r, value, d) for d in range(len(shape))]
            return tuple(None if line is None else tuple(line.tolist()) for line in lines)

        made.append(
            Site(
                run=r,
                op=node.op,
                occurrence=sum(1 for other in graph.runs[r].nodes[:n] if other.op == node.op),
                inputs=tuple(axes(v) for v in _refs((node.args, tuple(node.kwargs.values())))),
                outputs=tuple(axes(o) for o in node.outputs if o is not None),
            )
        )
    return tuple(made)


def _outline(run: Run, ops: set[str]) -> Outline:
    counts = {op: sum(1 for n in run.nodes if n.op == op) for op in sorted(ops)}
    return Outline(mode=run.mode, example=run.example, counts=counts)


def _refs(item: Any) -> list[int]:
    if isinstance(item, Ref):
        return [item.value]
    if isinstance(item, tuple):
        return [v for part in item for v in _refs(part)]
    return []


def _escapes(graph: Graph, lengths: _Lengths, answer: Solution) -> tuple[Escape, ...]:
    made, attributes = [], dict(graph.attributes)
    for r, run in enumerate(graph.runs):
        for position, expression in enumerate(run.escapes):
            value = linear(_shifted(expression, lengths.first(r)), answer.known, attributes, lengths.of)
            if value is not None and not value.fixed:
                made.append(Escape(run=r, position=position, extent=to_extent(value)))
    return tuple(made)
