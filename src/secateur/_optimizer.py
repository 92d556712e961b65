"""carry_optimizer: an optimizer's moments, cut along with the weights."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.schema.receipt import Receipt


def carry_optimizer(
    optimizer: torch.optim.Optimizer,
    small: nn.Module,
    receipt: Receipt,
    *,
    model: nn.Module | None = None,
    earlier: Receipt | None = None,
) -> torch.optim.Optimizer:
    """An optimizer for `small` that goes on where `optimizer` was: same settings, moments cut like the weights.

    Hooks and learning-rate schedulers stay with the old one; make a new scheduler for the new optimizer.

    Args:
        optimizer: of the model before the cut; it stays as it is.
        small, receipt: what `cut` returned.
        model: the model before the cut. Not needed if the optimizer was built from `model.parameters()` or
            `model.named_parameters()`.
        earlier: the receipt that `cut` was given, if any: then `receipt` speaks of the original dense model,
            and `optimizer` of the model that `earlier` led to.

    Raises:
        InputError: its parameters cannot be told by name, or its state cannot be cut (a state tensor that has
            neither the shape of its parameter nor a single element; an optimizer that keeps state elsewhere).
    """
    before = _shapes_after(receipt.shapes, earlier)
    names = _names_of(optimizer, small, before, model)
    own = dict(small.named_parameters())
    carried = copy.copy(optimizer)  # as pickle does it: defaults, state and groups; hooks are set up anew
    for attribute, value in vars(optimizer).items():
        # Hooks belong to the old one, and so does a `step` that a learning-rate scheduler has wrapped.
        if attribute in vars(carried) or attribute.startswith("_optimizer_") or callable(value):
            continue
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise InputError(
                f"{type(optimizer).__name__} keeps state outside of `optimizer.state`",
                where=attribute,
                got=type(value).__name__,
                todo="make a new optimizer for the small model",
            )
        vars(carried)[attribute] = value
    carried.state = defaultdict(dict)
    carried.param_groups = []
    for group in optimizer.param_groups:
        settings = {k: copy.copy(v) for k, v in group.items() if k != "params"}
        carried.param_groups.append({**settings, "params": [own[names[id(p)]] for p in group["params"]]})
    for parameter, entries in optimizer.state.items():
        name = names[id(parameter)]
        lines = _lines(name, receipt, earlier)
        carried.state[own[name]] = {k: _cut_entry(v, parameter, lines, f"{name}: {k}") for k, v in entries.items()}
    return carried


def _shapes_after(shapes: Mapping[str, tuple[int, ...]], receipt: Receipt | None) -> dict[str, tuple[int, ...]]:
    if receipt is None:
        return dict(shapes)
    made = {}
    for name, shape in shapes.items():
        axes = receipt.kept.get(name, (None,) * len(shape))
        made[name] = tuple(n if cut_to is None else len(cut_to) for n, cut_to in zip(shape, axes, strict=True))
    return made


def _names_of(
    optimizer: torch.optim.Optimizer,
    small: nn.Module,
    before: Mapping[str, tuple[int, ...]],
    model: nn.Module | None,
) -> dict[int, str]:
    """The name of each parameter of the optimizer, by its id."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    given = [name for group in optimizer.param_groups for name in group.get("param_names", ())]
    own = [name for name, _ in small.named_parameters()]
    if model is not None:
        known = {id(p): name for name, p in model.named_parameters()}
        names = [known.get(id(p), "") for p in parameters]
    else:
        # In the order of the model, as everybody writes it; the shapes must agree, or the names are asked for.
        names = given if len(given) == len(parameters) else own
    fits = len(names) == len(parameters) and all(
        name in own and before.get(name) == tuple(p.shape) for name, p in zip(names, parameters, strict=True)
    )
    if not fits:
        raise InputError(
            "the parameters of the optimizer cannot be told by name",
            expected=f"{len(own)} parameters, with the shapes before the cut",
            got=f"{len(parameters)} parameters",
            todo="pass model= the model that the optimizer was made for, and earlier= if it was cut before",
        )
    return {id(p): name for p, name in zip(parameters, names, strict=True)}


def _lines(name: str, receipt: Receipt, earlier: Receipt | None) -> list[list[int] | None]:
    """For each axis, the positions that survive, in indices of the model before the last cut; None = all."""
    axes = receipt.kept.get(name, (None,) * len(receipt.shapes[name]))
    first = (None,) * len(axes) if earlier is None else earlier.kept.get(name, (None,) * len(axes))
    lines: list[list[int] | None] = []
    for now, then in zip(axes, first, strict=True):
        if now is None or then is None:
            lines.append(None if now is None else list(now))
        else:
            place = {index: position for position, index in enumerate(then)}
            lines.append([place[index] for index in now])
    return lines


def _cut_entry(value: Any, parameter: Tensor, lines: Sequence[list[int] | None], where: str) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if value.shape == parameter.shape:
        for axis, line in enumerate(lines):
            if line is not None:
                value = value.index_select(axis, torch.tensor(line, dtype=torch.long, device=value.device))
        return value.clone()
    if value.numel() == 1:  # a step counter
        return value.clone()
    raise InputError(
        "a state of the optimizer has not the shape of its parameter, and cannot be cut with it",
        where=where,
        expected=list(parameter.shape),
        got=list(value.shape),
        todo="make a new optimizer for the small model",
    )
