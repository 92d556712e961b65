"""Unit-first views of parameter-shaped tensors: the only place that knows which axis belongs to which unit.

Index conventions: g group, u unit of a group, p element of a unit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.schema.groups import Extent, Group, Groups, Member


def offsets(groups: Groups) -> tuple[int, ...]:
    """The first global unit of each group, and the number of units in all at the end: [G + 1]."""
    return tuple(itertools.accumulate((g.n_units for g in groups.groups), initial=0))


def extent_value(extent: Extent, counts: Sequence[int]) -> int:
    """The length of an extent for kept counts [G]."""
    return (extent.fixed + sum(m * counts[g] for g, m in extent.terms)) // extent.divisor


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """Run the model on one item of example inputs: a tensor, a tuple of arguments, or a mapping of keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(inputs)


def _select(group: Group, tensors: Mapping[str, Tensor], roles: Collection[str] | None) -> dict[str, list[Member]]:
    chosen: dict[str, list[Member]] = {}
    for member in group.members:
        if member.param in tensors and (roles is None or member.role in roles):
            chosen.setdefault(member.param, []).append(member)
    return chosen


def _pairs(members: Sequence[Member], shape: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """(unit, flat element) of every element of a unit; an element that two axes claim for one unit counts once."""
    flat = torch.arange(shape.numel(), device=device).view(shape)
    units, elements = [], []
    for member in members:
        owner = torch.tensor(member.units, device=device)
        view = [-1 if axis == member.axis else 1 for axis in range(len(shape))]
        owner = owner.view(view).expand(shape)
        inside = owner >= 0
        units.append(owner[inside])
        elements.append(flat[inside])
    unit, element = torch.cat(units), torch.cat(elements)
    if len(members) > 1:
        key = torch.unique(unit * shape.numel() + element)
        return key // shape.numel(), key % shape.numel()
    return unit, element


def unit_sums(groups: Groups, tensors: Mapping[str, Tensor], roles: Collection[str] | None = None) -> list[Tensor]:
    """Sum of the elements of each unit, per group.

    Args:
        tensors: canonical parameter name -> tensor of the parameter's shape (for example w * g).
        roles: only members with one of these roles; None = all.

    Returns:
        [G] tensors [U]; an element on which two axes of one unit meet is counted once.
    """
    sums = []
    for group in groups.groups:
        chosen = _select(group, tensors, roles)
        total: Tensor | None = None
        for name, members in chosen.items():
            tensor = tensors[name]
            if total is None:
                total = torch.zeros(group.n_units, dtype=tensor.dtype, device=tensor.device)
            if len(members) == 1:
                total = total + _axis_sum(tensor, members[0], group.n_units)
            else:
                unit, element = _pairs(members, tensor.shape, tensor.device)
                total = total.index_add(0, unit, tensor.reshape(-1)[element])
        sums.append(total if total is not None else torch.zeros(group.n_units))
    return sums


def _axis_sum(tensor: Tensor, member: Member, n_units: int) -> Tensor:
    others = [axis for axis in range(tensor.dim()) if axis != member.axis]
    line = tensor.sum(dim=others) if others else tensor
    owner = torch.tensor(member.units, device=tensor.device)
    inside = owner >= 0
    return torch.zeros(n_units, dtype=tensor.dtype, device=tensor.device).index_add(0, owner[inside], line[inside])


def _even(members: Sequence[Member], n_units: int) -> Tensor | None:
    """The indices along the axis of the first member, unit by unit, if every unit has the same number of them."""
    owner = torch.tensor(members[0].units)
    sizes = torch.bincount(owner[owner >= 0], minlength=n_units)
    if not n_units or not sizes.min() or (sizes != sizes[0]).any():
        return None
    return torch.argsort(owner, stable=True)[int((owner < 0).sum()) :]


def matrix(groups: Groups, g: int, tensors: Mapping[str, Tensor], roles: Collection[str] | None = None) -> Tensor:
    """All elements of each unit of group g as rows.

    Returns:
        [U, P]; rows are padded with zeros where units differ in size.
    """
    group = groups.groups[g]
    columns = []
    for name, members in _select(group, tensors, roles).items():
        tensor = tensors[name]
        even = _even(members, group.n_units) if len(members) == 1 else None
        if even is not None:
            axis = members[0].axis
            rows = tensor.index_select(axis, even.to(tensor.device)).unflatten(axis, (group.n_units, -1))
            columns.append(rows.movedim(axis, 0).flatten(1))
            continue
        unit, element = _pairs(members, tensor.shape, tensor.device)
        order = torch.argsort(unit, stable=True)
        unit, element = unit[order], element[order]
        sizes = torch.bincount(unit, minlength=group.n_units)
        start = torch.cumsum(sizes, 0) - sizes
        position = torch.arange(len(unit), device=unit.device) - start[unit]
        block = torch.zeros(group.n_units, int(sizes.max()), dtype=tensor.dtype, device=tensor.device)
        columns.append(block.index_put((unit, position), tensor.reshape(-1)[element]))
    if not columns:
        return torch.zeros(group.n_units, 0)
    return torch.cat(columns, dim=1)
