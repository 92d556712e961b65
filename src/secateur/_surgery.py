"""Receipts: computed from kept units, applied to a copy of a model, composed. Nothing here ever changes its input.

`cut`, `scan`, gradual pruning and `load` all remove weights through this one file.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn

from secateur._rewrite import baked_attributes, rewrite_forward
from secateur._units import extent_value
from secateur.errors import CutError, InputError, ReceiptMismatch
from secateur.ops.modules import make_ready, read_attribute, refresh, write_attribute
from secateur.schema.groups import Groups
from secateur.schema.receipt import Change, Receipt


def tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """(name, canonical name, tensor) of every parameter and buffer, under every name it has."""
    canonical: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, canonical.setdefault(id(parameter), name), parameter
    for name, buffer in model.named_buffers(remove_duplicate=False):
        yield name, canonical.setdefault(id(buffer), name), buffer


def fingerprint_structure(model: nn.Module) -> str:
    """SHA-256 of the class name and the names, tying, shapes and dtypes of all parameters and buffers."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, canonical, tensor in tensors(model):
        digest.update(f"|{name}={canonical}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
    return digest.hexdigest()


def fingerprint_weights(model: nn.Module) -> str:
    """SHA-256 of the structure and of every value."""
    digest = hashlib.sha256(fingerprint_structure(model).encode())
    for name, canonical, tensor in tensors(model):
        if name == canonical:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def package_version() -> str:
    """Version of the installed package, `unknown` in a bare source tree."""
    try:
        return version("secateur")
    except PackageNotFoundError:
        return "unknown"


def receipt_for(model: nn.Module, groups: Groups, kept: Sequence[Sequence[int]]) -> Receipt:
    """What a cut that keeps `kept` takes where. Pure computation; `model` is only read.

    Args:
        kept: [G]: the kept units of each group.

    Raises:
        ReceiptMismatch: the groups were made for another model.
        InputError: a unit that does not exist, or a group without a kept unit.
        CutError: kept counts that violate a count equation.
    """
    structure = fingerprint_structure(model)
    if structure != groups.structure:
        raise ReceiptMismatch(
            "these groups were made for another model",
            expected=groups.structure[:12],
            got=structure[:12],
            todo="trace and couple this model, then plan again",
        )
    kept_sets = _check_kept(groups, kept)
    counts = [len(s) for s in kept_sets]
    _check_equations(groups, counts)
    shapes = {name: tuple(t.shape) for name, _, t in tensors(model)}
    lines: dict[tuple[str, int], set[int]] = {}
    for group, keep in zip(groups.groups, kept_sets, strict=True):
        if len(keep) == group.n_units:
            continue
        for member in group.members:
            gone = {i for i, u in enumerate(member.units) if u >= 0 and u not in keep}
            lines.setdefault((member.param, member.axis), set()).update(gone)
    indices: dict[str, list[tuple[int, ...] | None]] = {}
    for (param, axis), gone in sorted(lines.items()):
        shape = shapes[param]
        indices.setdefault(param, [None] * len(shape))[axis] = tuple(i for i in range(shape[axis]) if i not in gone)
    changes = []
    baked = baked_attributes(groups.rewrites)
    for setting in groups.settings:
        at = setting.attribute
        old = baked[at] if at in baked else read_attribute(model, at)
        new = extent_value(setting.extent, counts)
        if new != old:
            changes.append(Change(attribute=setting.attribute, old=old, new=new))
    return Receipt(
        kept={k: tuple(v) for k, v in indices.items()},
        shapes=shapes,
        changes=tuple(changes),
        swaps=tuple(
            (path, key)
            for path, key in groups.swaps
            if any(n.startswith(path + ".") for n in indices) or any(c.attribute.module == path for c in changes)
        ),
        structure=structure,
        version=package_version(),
        rewrites=groups.rewrites,
    )


def _check_kept(groups: Groups, kept: Sequence[Sequence[int]]) -> list[set[int]]:
    if len(kept) != len(groups.groups):
        raise InputError("one list of kept units per group", expected=len(groups.groups), got=len(kept))
    sets = []
    for group, units in zip(groups.groups, kept, strict=True):
        keep = set(units)
        if len(keep) < group.least or len(keep) != len(units) or not keep <= set(range(group.n_units)):
            raise InputError(
                "kept units must be distinct, enough, and of this group",
                where=group.name,
                expected=f"at least {group.least} of the units from 0 to {group.n_units - 1}",
                got=list(units)[:10],
            )
        sets.append(keep)
    return sets


def _check_equations(groups: Groups, counts: Sequence[int]) -> None:
    for eq in groups.equations:
        total = eq.constant + sum(c * counts[g] for g, c in eq.terms)
        if (total % eq.modulus) if eq.modulus else total:
            names = ", ".join(
                f"{groups.groups[g].name}: {counts[g]} of {groups.groups[g].n_units}" for g, _ in eq.terms
            )
            raise CutError(
                f"the kept counts violate a count equation ({eq.reason})",
                where=eq.source,
                got=names,
                todo="let sc.plan() choose the counts; it respects every equation",
            )


def check_shapes(model: nn.Module, receipt: Receipt) -> None:
    """Refuse a model that the receipt was not made for.

    Raises:
        ReceiptMismatch: names or shapes differ.
    """
    found = {name: tuple(t.shape) for name, _, t in tensors(model)}
    if found == dict(receipt.shapes):
        return
    missing = sorted(set(receipt.shapes) - set(found))
    surplus = sorted(set(found) - set(receipt.shapes))
    other = [n for n in found if n in receipt.shapes and found[n] != receipt.shapes[n]]
    where = (missing or surplus or other)[0]
    raise ReceiptMismatch(
        "this receipt belongs to another model",
        where=where,
        expected=receipt.shapes.get(where, "no such parameter"),
        got=found.get(where, "no such parameter"),
        todo="pass a fresh dense model, built exactly as the one that was pruned",
    )


def apply(model: nn.Module, receipt: Receipt) -> nn.Module:
    """The cut model: a physically smaller deep copy of the same class.

    dtype, device, requires_grad, tied weights, hooks and training flags are kept; gradients of cut parameters are not.

    Raises:
        ReceiptMismatch: the receipt belongs to another model.
    """
    check_shapes(model, receipt)
    small = copy.deepcopy(model)
    modules = dict(small.named_modules())
    for path, key in receipt.swaps:
        make_ready(modules[path], key)
    for rewrite in receipt.rewrites:
        rewrite_forward(modules[rewrite.module], rewrite)
    replaced: dict[int, Tensor] = {}
    names = list(tensors(small))
    for _, canonical, tensor in names:
        if canonical in receipt.kept and id(tensor) not in replaced:
            replaced[id(tensor)] = _slice(tensor, receipt.kept[canonical])
    slots = [(m, leaf) for m in modules.values() for leaf in (*m._parameters, *m._buffers)]
    for module, leaf in slots:
        table = module._parameters if leaf in module._parameters else module._buffers
        tensor = table[leaf]
        if tensor is not None and id(tensor) in replaced:
            table[leaf] = replaced[id(tensor)]
    for change in receipt.changes:
        write_attribute(small, change.attribute, change.new)
    for module in modules.values():
        refresh(module)
    return small


def _slice(tensor: Tensor, kept: Sequence[Sequence[int] | None]) -> Tensor:
    data = tensor.detach()
    for axis, indices in enumerate(kept):
        if indices is not None:
            data = data.index_select(axis, torch.tensor(indices, dtype=torch.long, device=data.device))
    data = data.clone(memory_format=torch.contiguous_format)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=tensor.requires_grad)
    return data


def compose(first: Receipt, then: Receipt) -> Receipt:
    """The receipt of doing `first` and then `then`, in indices of the model that `first` was made for.

    Raises:
        ReceiptMismatch: `then` was not made for the model that `first` produces.
    """
    for name, shape in first.shapes.items():
        cut = first.kept.get(name)
        after = tuple(n if cut is None or cut[a] is None else len(cut[a] or ()) for a, n in enumerate(shape))
        if name in first.kept and then.shapes.get(name) != after:
            raise ReceiptMismatch(
                "the second receipt is not for the model that the first one made",
                where=name,
                expected=after,
                got=then.shapes.get(name),
            )
    kept = dict(first.kept)
    for name, axes in then.kept.items():
        earlier = first.kept.get(name, (None,) * len(axes))
        kept[name] = tuple(_chain(a, b) for a, b in zip(earlier, axes, strict=True))
    changes = {c.attribute: c for c in first.changes}
    for change in then.changes:
        before = changes.get(change.attribute)
        changes[change.attribute] = dataclasses.replace(change, old=before.old) if before else change
    swaps = tuple(dict.fromkeys((*first.swaps, *then.swaps)))
    return Receipt(
        kept=kept,
        shapes=first.shapes,
        changes=tuple(changes.values()),
        swaps=swaps,
        structure=first.structure,
        verification=then.verification,
        version=then.version,
        rewrites=(*first.rewrites, *then.rewrites),
    )


def _chain(first: tuple[int, ...] | None, then: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if first is None or then is None:
        return first if then is None else then
    return tuple(first[i] for i in then)
