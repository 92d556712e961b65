"""recover: win back quality after a cut, on a copy of the model; and the seeding that makes it repeatable."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from secateur import _surgery
from secateur._evaluate import Progress, check_batches
from secateur.errors import NonFinite, ReceiptMismatch
from secateur.schema.groups import Groups
from secateur.schema.members import Recovery
from secateur.schema.receipt import Receipt
from secateur.schema.task import Batches, Task


def recover(
    model: nn.Module,
    batches: Batches,
    task: Task,
    *,
    recovery: Recovery,
    teacher: nn.Module | None = None,
    groups: Groups | None = None,
    receipt: Receipt | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> nn.Module:
    """A copy of `model`, retrained or recalibrated by `recovery`.

    `model` and `teacher` stay as they are, and so do the global random states. The copy has the training flags of
    `model` and no gradients.

    Args:
        batches: training data, can be iterated again.
        teacher: the dense model, for recoveries that learn from it.
        groups, receipt: of the cut that made `model` from `teacher`; if given, they are checked to fit.
        seed: the same seed, model and data give the same bits on the same machine (see `seeded`).

    Raises:
        ReceiptMismatch: `receipt` leads from `teacher` to something else than `model`, or is of other groups.
        NonFinite: a parameter or buffer is NaN or infinite afterwards.
        whatever the recovery refuses.
    """
    check_batches(batches)
    if receipt is not None:
        _check_receipt(model, receipt, teacher, groups)
    flags = {name: module.training for name, module in model.named_modules()}
    trained = copy.deepcopy(model)
    with seeded(seed, batches):
        trained = recovery(trained, batches, task, teacher=teacher, seed=seed, progress=progress)
    for name, module in trained.named_modules():
        module.training = flags.get(name, module.training)
    for parameter in trained.parameters():
        parameter.grad = None
    for name, _, tensor in _surgery.tensors(trained):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFinite(
                f"{recovery.name} left a tensor that is not finite",
                where=name,
                todo="lower the learning rate, or clip the gradient",
            )
    return trained


def _check_receipt(model: nn.Module, receipt: Receipt, teacher: nn.Module | None, groups: Groups | None) -> None:
    if teacher is not None:
        _surgery.check_shapes(teacher, receipt)
    if groups is not None and groups.structure != receipt.structure:
        raise ReceiptMismatch(
            "groups and receipt belong to different models",
            expected=receipt.structure[:12],
            got=groups.structure[:12],
            todo="pass the groups of the dense model, or leave them out",
        )
    found = {name: tuple(t.shape) for name, _, t in _surgery.tensors(model)}
    for name, shape in receipt.shapes.items():
        axes = receipt.kept.get(name, (None,) * len(shape))
        after = tuple(n if kept is None else len(kept) for n, kept in zip(shape, axes, strict=True))
        # Only canonical names are listed in `kept`; another name of a tied tensor follows it.
        if name in receipt.kept and found.get(name) != after:
            raise ReceiptMismatch(
                "this receipt does not lead to this model",
                where=name,
                expected=after,
                got=found.get(name, "no such parameter"),
                todo="pass the receipt that cut() returned beside the model",
            )


def derive(seed: int, *keys: int | str) -> int:
    """A seed of 63 bits for one purpose, from the seed of the run: near keys give unrelated streams."""
    return int.from_bytes(hashlib.sha256(repr((seed, *keys)).encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, *data: Batches | None) -> Iterator[None]:
    """All sources of randomness start from `seed` inside, and go on as before afterwards.

    Seeded are torch's global generators (CPU, and CUDA where in use), Python's `random` and numpy's global state,
    which augmentations draw from, and the generators that the `DataLoader`s among `data` and their samplers own.
    Worker processes are seeded from these by torch. Two things are out of reach: state that a dataset keeps in
    itself, and the random states inside `persistent_workers`.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    owned = [(g, g.get_state()) for g in _generators(data)]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (the user's code draws from it)
    with torch.random.fork_rng(devices=devices):
        try:
            # Not torch.manual_seed: it also leaves a seed behind for a CUDA that is not in use yet.
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            for index, (generator, _) in enumerate(owned):
                generator.manual_seed(derive(seed, "loader", index))
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            for generator, state in owned:
                generator.set_state(state)


def _generators(data: tuple[Batches | None, ...]) -> list[torch.Generator]:
    found: dict[int, torch.Generator] = {}
    for batches in data:
        if not isinstance(batches, DataLoader):
            continue
        samplers: list[object] = [batches.sampler]
        if isinstance(batches.batch_sampler, BatchSampler):
            samplers.append(batches.batch_sampler.sampler)
        random_ones = [
            s.generator for s in samplers if isinstance(s, RandomSampler | SubsetRandomSampler | WeightedRandomSampler)
        ]
        for generator in (batches.generator, *random_ones):
            if isinstance(generator, torch.Generator):
                found[id(generator)] = generator
    return list(found.values())
