"""From `Groups` to the words and shapes of a page about a model: its modules, what can go together, what cannot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from secateur import _cost, _counts
from secateur._report._format import percent, quantity, size
from secateur._report._page import frozen_rows
from secateur.schema.groups import Group, Groups

# the map: user units of the drawing; what is narrower than `_LEAST` cannot be seen
_WIDTH, _ROW, _LEVELS, _LEAST, _LETTER = 1000.0, 30, 6, 0.6, 6.6
_FROZEN, _FREE = (0xDF, 0xE3, 0xE8), (0x0B, 0x7A, 0x75)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the outline: a module, or a group under the module that writes it."""

    depth: int
    name: str
    group: Group | None = None


@dataclass(slots=True)
class _Node:
    groups: list[Group] = field(default_factory=list)
    children: dict[str, _Node] = field(default_factory=dict)


def outline(groups: Sequence[Group]) -> list[Row]:
    """The groups in the tree of modules; a chain of modules with nothing between them is one line."""
    root = _Node()
    for group in groups:
        node, parts = root, group.module.split(".") if group.module else []
        for n in range(1, len(parts) + 1):
            node = node.children.setdefault(".".join(parts[:n]), _Node())
        node.groups.append(group)
    return list(_lines(root, "", 0))


def _lines(node: _Node, name: str, depth: int) -> Iterator[Row]:
    while not node.groups and len(node.children) == 1:
        ((name, node),) = node.children.items()
    # a module that writes one group and holds nothing else is named by the group
    if name and (node.children or len(node.groups) > 1):
        yield Row(depth=depth, name=name)
        depth += 1
    for group in node.groups:
        yield Row(depth=depth, name=group.name, group=group)
    for path, child in node.children.items():
        yield from _lines(child, path, depth)


def groups_page(groups: Groups, model: str) -> dict[str, Any]:
    """Everything that the template of the groups names."""
    dense, parts = _cost.cost(groups.costs, _cost.full_counts(groups)), _cost.carried(groups)
    units = sum(g.n_units for g in groups.groups)
    elements = _elements(groups)
    free = sum(n * share for n, share in elements.values())
    asked = {g.index: [i for i, e in enumerate(groups.equations, 1) if _has(e.terms, g)] for g in groups.groups}
    rows = []
    for row in outline(groups.groups):
        g = row.group
        if g is None:
            rows.append({"indent": row.depth, "name": row.name, "group": None})
            continue
        part = parts[g.index]
        content = {
            "kind": g.kind.replace("_", " "),
            "units": g.n_units,
            "params": _share(part.params, dense.params),
            "macs": _share(part.macs, dense.macs),
            "exact": "yes" if g.exact else f"no: {g.inexact_because}",
            "equations": ", ".join(str(i) for i in asked[g.index]),
            "members": [
                f"{m.param}, axis {m.axis}: {sum(u >= 0 for u in m.units)} of {len(m.units)}, {m.role}"
                for m in g.members
            ],
        }
        rows.append({"indent": row.depth, "name": row.name, "group": content})
    cards = (
        ("Parameters", quantity(dense.params), f"{size(dense.memory)} with buffers"),
        ("MACs, example inputs", quantity(dense.macs), "multiply-accumulates of one forward"),
        ("Units", str(units), f"in {len(groups.groups)} groups, {sum(not g.exact for g in groups.groups)} inexact"),
        ("In units that can go", percent(float(free) / max(dense.params, 1)), "of the parameters"),
        ("Count equations", str(len(groups.equations)), "solved exactly when a plan is made"),
    )
    names = [g.name for g in groups.groups]
    return {
        "title": f"{model}: what can be removed",
        "subtitle": "Found by running the model once and following every number: no hints, nothing was changed.",
        "cards": [{"label": a, "value": b, "detail": c} for a, b, c in cards],
        "map": _map(elements),
        "rows": rows,
        "equations": [(i, _counts.relation(e, names), e.reason, e.source) for i, e in enumerate(groups.equations, 1)],
        "frozen": frozen_rows(groups.frozen),
        "notes": groups.notes,
    }


def _has(terms: Sequence[tuple[int, int]], group: Group) -> bool:
    return any(g == group.index for g, _ in terms)


def _share(part: int, whole: int) -> dict[str, str]:
    share = part / whole if whole else 0.0
    return {"number": quantity(part), "percent": percent(share), "width": f"{100 * min(share, 1.0):.2f}"}


def _elements(groups: Groups) -> dict[str, tuple[int, Fraction]]:
    """Parameter -> its elements, and the share of them that belong to a unit on at least one axis."""
    owned: dict[tuple[str, int], list[bool]] = {}
    for group in groups.groups:
        for m in group.members:
            line = owned.setdefault((m.param, m.axis), [False] * len(m.units))
            owned[m.param, m.axis] = [a or u >= 0 for a, u in zip(line, m.units, strict=True)]
    stays: dict[str, Fraction] = {}
    for (param, _), line in owned.items():
        stays[param] = stays.get(param, Fraction(1)) * Fraction(line.count(False), len(line))
    full = _cost.full_counts(groups)
    sizes = {t.where: _cost.cost([t], full).params for t in groups.costs if t.what == "params"}
    return {name: (n, 1 - stays.get(name, Fraction(1))) for name, n in sizes.items()}


def _map(elements: dict[str, tuple[int, Fraction]]) -> dict[str, Any]:
    """The tree of modules as nested bars: as wide as their parameters, as green as the share that can go."""
    bars: list[dict[str, Any]] = []

    def draw(items: dict[str, tuple[int, Fraction]], prefix: str, left: float, scale: float, level: int) -> None:
        whole = sum(n for n, _ in items.values())
        free = float(sum(n * share for n, share in items.values())) / max(whole, 1)
        width = whole * scale
        if width < _LEAST:
            return
        bars.append(_bar(prefix, whole, free, left, level * _ROW, width))
        if level + 1 >= _LEVELS:
            return
        # a child is a module or a parameter: the next part of the dotted name
        start = len(prefix) + 1 if prefix else 0
        children: dict[str, dict[str, tuple[int, Fraction]]] = {}
        for name, value in items.items():
            if name != prefix:
                children.setdefault(prefix + "." * bool(prefix) + name[start:].split(".")[0], {})[name] = value
        for child, inside in children.items():
            draw(inside, child, left, scale, level + 1)
            left += sum(n for n, _ in inside.values()) * scale

    total = sum(n for n, _ in elements.values())
    if total:
        draw(elements, "", 0.0, _WIDTH / total, 0)
    rows = max((bar["row"] for bar in bars), default=0) + 1
    return {"bars": bars, "width": _WIDTH, "height": rows * _ROW}


def _bar(name: str, n: int, free: float, left: float, top: float, width: float) -> dict[str, Any]:
    label = name.rpartition(".")[2] or "all parameters"
    colour = "".join(f"{round(a + (b - a) * free):02x}" for a, b in zip(_FROZEN, _FREE, strict=True))
    return {
        "x": f"{left:.2f}",
        "y": f"{top:.1f}",
        "row": round(top / _ROW),
        "w": f"{max(width - 1, 0.4):.2f}",
        "h": _ROW - 2,
        "colour": f"#{colour}",
        "dark": free > 0.5,
        "label": label if len(label) * _LETTER + 8 < width else "",
        "told": f"{name or 'all'}: {quantity(n)} parameters, {percent(free)} of them in units that can go",
    }
