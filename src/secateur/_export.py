"""save, load, export: how a pruned model leaves the process and comes back. Nothing here pickles or unpickles."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur import _store, _surgery
from secateur._evaluate import mode
from secateur.errors import FileCorrupt, InputError, ReceiptMismatch
from secateur.ops.modules import refresh
from secateur.schema import from_json, to_json
from secateur.schema.certificate import Certificate
from secateur.schema.members import Exporter
from secateur.schema.plan import Plan
from secateur.schema.receipt import Receipt

TENSORS, RECEIPT, CERTIFICATE, PLAN = "model.safetensors", "receipt.json", "certificate.json", "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """The content of `receipt.json`: what the other files must be, and what was taken from the dense model.

    Attributes:
        receipt: None where the model was saved uncut.
        structure: fingerprint of the dense model that `load` asks for.
        aliases: further names of a tensor -> the name under which it is stored (tied weights).
        sizes, hashes: file name -> bytes and SHA-256.
        version: of secateur.
    """

    receipt: Receipt | None
    structure: str
    aliases: dict[str, str]
    sizes: dict[str, int]
    hashes: dict[str, str]
    version: str


class Loaded(NamedTuple):
    """What a folder holds beside the tensors."""

    saved: Saved
    certificate: Certificate | None
    plan: Plan | None


def save(
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    receipt: Receipt | None = None,
    certificate: Certificate | None = None,
    plan: Plan | None = None,
) -> Path:
    """Write `model.safetensors`, `receipt.json` and, where given, `certificate.json` and `plan.json` into a folder.

    Every parameter and buffer is stored, non-persistent buffers too, so that `load` can fill a model on the meta
    device; tied tensors are stored once. Each file is replaced in one step, `receipt.json` last: it holds the sizes
    and hashes of the others, so that a torn set is refused and never read as a whole one. A certificate or plan of an
    earlier save in the same folder is removed.

    Args:
        model: cut or dense; only read.
        out: the folder; made if needed.
        receipt: of the cut that made `model`; None = not cut.

    Returns:
        The folder.

    Raises:
        ReceiptMismatch: the receipt does not lead to a model of these shapes.
        InputError: tensors without data (meta), or state that is no tensor (`get_extra_state`).
    """
    folder = Path(out)
    _check_plain(model)
    names = [(n, c, t) for n, c, t in _surgery.tensors(model)]
    structure = _surgery.fingerprint_structure(model)
    if receipt is not None:
        structure = receipt.structure
        _check_result(names, receipt)
    earlier = _files_of_earlier_save(folder)
    _store.save_tensors(folder / TENSORS, {name: tensor for name, canonical, tensor in names if name == canonical})
    beside = {CERTIFICATE: certificate, PLAN: plan}
    for file, noun in beside.items():
        if noun is not None:
            _store.write_json(folder / file, to_json(noun))
        elif file in earlier:
            (folder / file).unlink(missing_ok=True)
    files = [TENSORS, *(f for f, noun in beside.items() if noun is not None)]
    saved = Saved(
        receipt=receipt,
        structure=structure,
        aliases={name: canonical for name, canonical, _ in names if name != canonical},
        sizes={f: (folder / f).stat().st_size for f in files},
        hashes={f: _sha256(folder / f) for f in files},
        version=_surgery.package_version(),
    )
    _store.write_json(folder / RECEIPT, to_json(saved))
    return folder


def load(out: str | os.PathLike[str], *, model: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """The model that `save` wrote: the same class as `model`, with the saved sizes and values.

    Sizes and hashes of all files are checked before anything else. The passed model is not changed.

    Args:
        out: the folder.
        model: a fresh dense model, built exactly as the one that was pruned; may be on the meta device. Non-persistent
            buffers may be smaller than they were then, or not there yet: models make them when they meet an input.
        device: where the tensors go; None = where those of `model` are (the CPU for meta tensors).

    Raises:
        FileCorrupt: a file is missing, truncated, or was changed.
        ReceiptMismatch: `model` is not of the kind that was pruned.
    """
    folder = Path(out)
    saved = contents(folder).saved
    stored = _store.load_tensors(folder / TENSORS)
    model = _as_used(model, stored, saved.receipt)
    found = _surgery.fingerprint_structure(model)
    if saved.receipt is not None:
        _surgery.check_shapes(model, saved.receipt)
    if found != saved.structure:
        raise ReceiptMismatch(
            "this folder holds another kind of model",
            where=str(folder),
            expected=f"a dense model with the structure {saved.structure[:12]}",
            got=f"{type(model).__name__}, {found[:12]}",
            todo="pass a fresh dense model: class, arguments, tied weights and dtypes of the one that was pruned",
        )
    small = copy.deepcopy(model) if saved.receipt is None else _surgery.apply(model, saved.receipt)
    _fill(small, stored, device, folder)
    return small


def _as_used(model: nn.Module, stored: Mapping[str, Tensor], receipt: Receipt | None) -> nn.Module:
    """A model whose non-persistent buffers are as large as they were when it was pruned; their values are stored.

    Many models make such a buffer, or make it larger, when they first meet an input: a fresh one has not yet.
    """
    shapes = {name: tuple(t.shape) for name, t in stored.items()} if receipt is None else receipt.shapes
    made: dict[tuple[str, str], Tensor] = {}
    for path, module in model.named_modules():
        for leaf in module._non_persistent_buffers_set:
            name, old = f"{path}.{leaf}" if path else leaf, module._buffers.get(leaf)
            if name in stored and name in shapes and (old is None or tuple(old.shape) != shapes[name]):
                made[path, leaf] = (stored[name] if old is None else old).new_empty(shapes[name])
    if not made:
        return model
    used = _surgery.duplicate(model, _surgery.borrow(model))
    for (path, leaf), buffer in made.items():
        used.get_submodule(path)._buffers[leaf] = buffer
    return used


def contents(out: str | os.PathLike[str]) -> Loaded:
    """What a folder holds beside the tensors, after the sizes and hashes of all its files were checked.

    Raises:
        FileCorrupt: a file is missing, truncated, or was changed.
    """
    folder = Path(out)
    saved = from_json(Saved, _store.read_json(folder / RECEIPT))
    for file, size in saved.sizes.items():
        path = folder / file
        if not path.is_file():
            raise FileCorrupt("a file is missing", where=str(path), todo="save the model again")
        if path.stat().st_size != size:
            raise FileCorrupt(
                "a file has another size than when it was saved",
                where=str(path),
                expected=f"{size} bytes",
                got=f"{path.stat().st_size} bytes",
                todo="copy the whole folder again, or save the model again",
            )
        if (got := _sha256(path)) != saved.hashes[file]:
            raise FileCorrupt(
                "a file was changed after it was saved",
                where=str(path),
                expected=saved.hashes[file],
                got=got,
                todo="copy the whole folder again, or save the model again",
            )
    certificate = plan = None
    if CERTIFICATE in saved.sizes:
        certificate = from_json(Certificate, _store.read_json(folder / CERTIFICATE))
    if PLAN in saved.sizes:
        plan = from_json(Plan, _store.read_json(folder / PLAN))
    return Loaded(saved, certificate, plan)


def export(
    model: nn.Module, example_inputs: Any, path: str | os.PathLike[str], *, exporter: Exporter
) -> Mapping[str, Any]:
    """Write a model in a foreign format and check it there.

    The file appears under `path` only after the check; a failure leaves what was there.

    Args:
        model: exported in eval mode; its modes are restored.
        example_inputs: a tensor, a tuple of arguments, a dict of keyword arguments; of a list the first counts.
        exporter: `exporters.onnx()`, `exporters.torch_export()`.

    Returns:
        What the exporter says: at least `path`, `format`, `batches` (sizes checked) and `error` (largest, relative).

    Raises:
        ExportMismatch: the exported model computes something else.
        NotInstalled: the format needs a package that is missing.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The file must bear its final name from the start: large models are written as several that name each other.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder, mode(model):
        told = exporter(model, example_inputs, str(Path(folder) / target.name))
        for file in Path(folder).iterdir():
            shutil.move(file, target.parent / file.name)
    return {**told, "path": str(target)}


def _files_of_earlier_save(folder: Path) -> set[str]:
    """Only these may be removed: a certificate that some other run left here is not ours to delete."""
    if not (folder / RECEIPT).exists():
        return set()
    try:
        return set(from_json(Saved, _store.read_json(folder / RECEIPT)).sizes)
    except FileCorrupt:  # it is about to be replaced
        return set()


def _check_plain(model: nn.Module) -> None:
    for name, _, tensor in _surgery.tensors(model):
        if tensor.is_meta:
            raise InputError("a tensor without data cannot be saved", where=name, got="meta device")
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise InputError(
                "a module keeps state that is no tensor; it could only be pickled",
                where=path or type(module).__name__,
                got="get_extra_state",
                todo="keep that state in a buffer, or save it yourself",
            )


def _check_result(names: list[tuple[str, str, Tensor]], receipt: Receipt) -> None:
    found = {name: tuple(tensor.shape) for name, _, tensor in names}
    if set(found) != set(receipt.shapes):
        other = sorted(set(found) ^ set(receipt.shapes))[0]
        raise ReceiptMismatch(
            "this receipt belongs to another model", where=other, todo="pass the receipt of this model"
        )
    for name, canonical, tensor in names:
        dense = receipt.shapes[name]
        axes = receipt.kept.get(canonical, (None,) * len(dense))
        after = tuple(n if a is None else len(a) for n, a in zip(dense, axes, strict=True))
        if tuple(tensor.shape) != after:
            raise ReceiptMismatch(
                "the receipt does not lead to this model",
                where=name,
                expected=after,
                got=tuple(tensor.shape),
                todo="pass the receipt that `cut` or `prune` returned together with this model",
            )


def _fill(small: nn.Module, stored: dict[str, Tensor], device: torch.device | str | None, folder: Path) -> None:
    """Put the stored tensors into a model, in place; tied ones become one object again."""
    wanted = {c: t for _, c, t in _surgery.tensors(small)}
    if set(wanted) != set(stored):
        other = sorted(set(wanted) ^ set(stored))[0]
        raise ReceiptMismatch("the stored tensors are not those of this model", where=f"{folder / TENSORS}: {other}")
    made: dict[str, Tensor] = {}
    for name, tensor in wanted.items():
        if tuple(tensor.shape) != tuple(stored[name].shape):
            raise ReceiptMismatch(
                "a stored tensor has another shape than the model",
                where=f"{folder / TENSORS}: {name}",
                expected=tuple(tensor.shape),
                got=tuple(stored[name].shape),
            )
        where = device or ("cpu" if tensor.is_meta else tensor.device)
        data = stored[name].to(where)
        is_parameter = isinstance(tensor, nn.Parameter)
        made[name] = nn.Parameter(data, requires_grad=tensor.requires_grad) if is_parameter else data
    for name, canonical, _ in list(_surgery.tensors(small)):
        path, _, leaf = name.rpartition(".")
        setattr(small.get_submodule(path), leaf, made[canonical])
    for path, module in small.named_modules():
        refresh(module)
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                raise InputError(
                    "a plain tensor attribute was left without data: it is neither parameter nor buffer",
                    where=f"{path}.{key}" if path else key,
                    todo="register it as a buffer (persistent or not), or build the model off the meta device",
                )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
