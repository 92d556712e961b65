"""Receipts: computed from kept units, applied to a copy of a model, composed. Nothing here ever changes its input.

`cut`, `scan`, gradual pruning and `load` all remove weights through this one file.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import hashlib
import types
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from secateur._rewrite import baked_attributes, rewrite_forward
from secateur._units import extent_value
from secateur.errors import CutError, InputError, ReceiptMismatch
from secateur.ops.modules import make_ready, read_attribute, refresh, write_attribute
from secateur.schema.groups import Groups
from secateur.schema.receipt import Change, Receipt

T = TypeVar("T")

# copied by copy.deepcopy as they are
_ATOMS = frozenset((type(None), bool, int, float, str, type, types.FunctionType, torch.dtype))
_CONTAINERS = frozenset((dict, collections.OrderedDict, set, list))


def duplicate(model: T, instead: Mapping[int, Tensor] | None = None) -> T:
    """copy.deepcopy(model), several times as fast on modules, which hold little but empty dicts and plain values.

    Args:
        instead: what takes the place of a tensor, by its id; it is not copied.
    """
    memo: dict[int, Any] = dict(instead or {})
    return _duplicate(model, memo)  # type: ignore[no-any-return]


def borrow(model: nn.Module) -> dict[int, Tensor]:
    """For `duplicate`: tensors of their own on the memory of the model's parameters and buffers, by the id of those."""
    return {id(tensor): _alias(tensor) for _, _, tensor in tensors(model) if type(tensor) in (Tensor, nn.Parameter)}


def _alias(tensor: Tensor) -> Tensor:
    alias = tensor.detach()
    if isinstance(tensor, nn.Parameter):
        alias = nn.Parameter(alias, requires_grad=tensor.requires_grad)
    vars(alias).update(vars(tensor))
    return alias


def _duplicate(item: Any, memo: dict[int, Any]) -> Any:
    kind: type = type(item)
    if kind in _ATOMS:
        return item
    found = memo.get(id(item))
    if found is not None:
        return found
    if kind is dict or kind is collections.OrderedDict:
        made = memo[id(item)] = kind()
        for key, value in item.items():
            key = key if type(key) in _ATOMS else _duplicate(key, memo)
            made[key] = value if type(value) in _ATOMS else _duplicate(value, memo)
        return made
    if isinstance(item, nn.Module) and _is_plain(kind):
        made = memo[id(item)] = object.__new__(kind)
        state = item.__getstate__()
        # as deepcopy does: while what a class of its own may have made for this lives, no other object has its id
        memo.setdefault(id(memo), []).append(state)
        copied = {}
        for name, value in state.items():
            part = type(value)
            if part in _ATOMS:
                copied[name] = value
            elif part not in _CONTAINERS or value or id(value) in memo:
                copied[name] = _duplicate(value, memo)
            else:  # most of what a module holds: dicts of hooks that nobody has registered
                copied[name] = memo[id(value)] = part()
        made.__setstate__(copied)
        return made
    if kind is tuple and all(type(part) in _ATOMS for part in item):
        return item
    return copy.deepcopy(item, memo)


@functools.cache
def _is_plain(kind: type) -> bool:
    """Whether a class leaves it to its state how it is copied."""
    own = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getnewargs_ex__", "__getnewargs__", "__new__")
    bases = [vars(base) for base in kind.__mro__ if base not in (nn.Module, object)]
    return not any(base.get("__slots__") or any(name in base for name in own) for base in bases)


def tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """(name, canonical name, tensor) of every parameter and buffer, under every name it has."""
    canonical: dict[int, str] = {}
    modules = _prefixed(model)
    for prefix, module in modules:
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + leaf, canonical.setdefault(id(parameter), prefix + leaf), parameter
    for prefix, module in modules:
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                yield prefix + leaf, canonical.setdefault(id(buffer), prefix + leaf), buffer


def _prefixed(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """`named_modules(remove_duplicate=False)`, in its order; its generators hand every module up through all levels."""
    found: list[tuple[str, nn.Module]] = []
    waiting = [("", model)]
    while waiting:
        prefix, module = waiting.pop()
        found.append((prefix, module))
        inside = [(f"{prefix}{name}.", child) for name, child in module._modules.items() if child is not None]
        waiting += reversed(inside)
    return found


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


@functools.cache  # finding it takes as long as a small cut
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
    lines: dict[tuple[str, int], frozenset[int]] = {}
    for group, keep in zip(groups.groups, kept_sets, strict=True):
        if len(keep) == group.n_units:
            continue
        gone_in = functools.cache(functools.partial(_gone, keep))  # members share a few mappings
        for member in group.members:
            line = (member.param, member.axis)
            gone = gone_in(member.units)
            lines[line] = lines[line] | gone if line in lines else gone
    survivors = functools.cache(_survivors)
    indices: dict[str, list[tuple[int, ...] | None]] = {}
    for (param, axis), gone in sorted(lines.items(), key=lambda item: item[0]):
        shape = shapes[param]
        indices.setdefault(param, [None] * len(shape))[axis] = survivors(shape[axis], gone)
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


def _gone(keep: set[int], units: tuple[int, ...]) -> frozenset[int]:
    return frozenset(i for i, u in enumerate(units) if u >= 0 and u not in keep)


def _survivors(length: int, gone: frozenset[int]) -> tuple[int, ...]:
    return tuple(i for i in range(length) if i not in gone)


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
    index = functools.cache(functools.partial(torch.tensor, dtype=torch.long))  # many axes lose the same
    small = duplicate(
        model,
        {
            id(tensor): _slice(tensor, [None if k is None else index(k) for k in receipt.kept[name]])
            for name, canonical, tensor in tensors(model)
            if name == canonical and name in receipt.kept
        },
    )
    modules = dict(small.named_modules())
    for path, key in receipt.swaps:
        make_ready(modules[path], key)
    for rewrite in receipt.rewrites:
        rewrite_forward(modules[rewrite.module], rewrite)
    for change in receipt.changes:
        write_attribute(small, change.attribute, change.new)
    for module in modules.values():
        refresh(module)
    _forget(list(modules.values()))
    return small


def _forget(modules: Sequence[nn.Module]) -> None:
    """Have modules forget what they forget when their mode is set (LeViT: biases by position), as in the recording.

    It was made of weights that are gone; the modes stay as they are.
    """
    flags = [module.training for module in modules]
    for module in modules:
        if type(module).train is not nn.Module.train:
            module.train(module.training)
    for module, flag in zip(modules, flags, strict=True):
        module.training = flag


def _slice(tensor: Tensor, kept: Sequence[Tensor | None]) -> Tensor:
    data = tensor.detach()
    for axis, index in enumerate(kept):
        if index is not None:
            data = data.index_select(axis, index.to(data.device))
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
