"""Paths of trained and pruned networks, with every answer to a large labelled set. No benchmark by itself.

Digits (scikit-learn, 1,797 images): CNN, LSTM, transformer trained on 597 images, answers to the other 1,200.
CIFAR-10 (SECATEUR_DATA, see README.md): the published ResNet-20, answers to 6,000 test images.
Each path is made by the library: scores, greedy plan for a fraction of the MACs, cut, recovery; dense to sparse.

Index conventions: n example, k candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import cifar
import secateur as sc
from secateur.cli.demo import RECIPES
from secateur.cli.demo_data import digits
from secateur.schema.members import Recovery

TASK = sc.tasks.classification()


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One path of networks.

    Attributes:
        dense: [n] 1 = right.  pruned: [k, n].
        model, candidates, images, labels: so that `certify` itself can be asked.
        n_held_out: examples to certify with.  margins: allowed drops.
    """

    name: str
    dense: NDArray[np.int64]
    pruned: NDArray[np.int64]
    model: nn.Module
    candidates: tuple[nn.Module, ...]
    images: Tensor
    labels: Tensor
    n_held_out: int
    margins: tuple[float, ...]

    def certify(self, chosen: NDArray[np.int64]) -> sc.Certificate:
        """The certificate on some of the examples, for the last margin."""
        index = torch.from_numpy(chosen)
        held_out = list(zip(self.images[index].split(250), self.labels[index].split(250), strict=True))
        # Scanned digits may come twice, and CIFAR has a few near and exact copies: each counts once if it does.
        return sc.certify(self.model, self.candidates, held_out, TASK, max_drop=self.margins[-1], duplicates="merge")


def paths(names: Sequence[str], *, seed: int, n_search: int = 1500, n_labelled: int = 6000) -> Iterator[Path]:
    """The paths named; CIFAR only where its data is."""
    for arch in RECIPES:
        if arch in names:
            yield digits_path(arch, seed)
    if "cifar" not in names:
        return
    folder = cifar.data_folder()
    if isinstance(folder, str):
        print(f"CIFAR skipped: {folder}")
        return
    pixels, labels = cifar.read(folder, "train", n_search)
    search = list(zip(cifar.normalise(pixels).split(250), labels.split(250), strict=True))
    test_pixels, test_labels = cifar.read(folder, "test", n_labelled)
    yield prune_path(
        "CIFAR-10 ResNet-20",
        cifar.trained(folder),
        search,
        search,
        (cifar.normalise(test_pixels), test_labels),
        kept=(0.98, 0.96, 0.94, 0.92, 0.9),
        recovery=sc.recoveries.recalibrate(),
        n_held_out=n_labelled // 3,
        margins=(0.01, 0.02, 0.03),
    )


def digits_path(arch: str, seed: int) -> Path:
    """One of the demo's networks, trained here on 597 digits."""
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order], labels[order]
    train = list(zip(images[:597].split(64), labels[:597].split(64), strict=True))
    recipe = RECIPES[arch]
    torch.manual_seed(seed)
    untrained = recipe.make()
    trained = sc.recover(
        untrained, train, TASK, recovery=sc.recoveries.finetune(epochs=recipe.epochs, lr=recipe.lr), seed=seed
    )
    return prune_path(
        f"digits {arch}",
        trained.eval(),
        train,
        train,
        (images[597:], labels[597:]),
        kept=(0.9, 0.7, 0.5, 0.35, 0.25, 0.15),
        recovery=sc.recoveries.finetune(epochs=recipe.recover_epochs, lr=recipe.recover_lr),
        n_held_out=400,
        margins=(0.01, 0.02, 0.03),
    )


def prune_path(
    name: str,
    model: nn.Module,
    search: Sequence[tuple[Tensor, Tensor]],
    train: Sequence[tuple[Tensor, Tensor]],
    labelled: tuple[Tensor, Tensor],
    *,
    kept: tuple[float, ...],
    recovery: Recovery,
    n_held_out: int,
    margins: tuple[float, ...],
) -> Path:
    """Cut to each fraction of the MACs in one step, and recover."""
    example = (search[0][0][:2],)
    groups = sc.couple(sc.trace(model, example))
    scores = sc.score(model, groups, search, TASK, criterion=sc.criteria.obd())
    candidates = []
    for fraction in kept:
        plan = sc.plan(groups, scores, sc.Budget(macs=fraction), allocator=sc.allocators.greedy())
        small, receipt = sc.cut(model, groups, plan, example_inputs=example)
        candidates.append(
            sc.recover(small, train, TASK, groups=groups, receipt=receipt, teacher=model, recovery=recovery)
        )
    images, labels = labelled
    data = list(zip(images.split(500), labels.split(500), strict=True))

    def answers(judged: nn.Module) -> NDArray[np.int64]:
        found = sc.evaluate(judged, data, TASK).correct
        assert found is not None
        return np.asarray(found.numpy(), dtype=np.int64)

    return Path(
        name=name,
        dense=answers(model),
        pruned=np.stack([answers(c) for c in candidates]),
        model=model,
        candidates=tuple(candidates),
        images=images,
        labels=labels,
        n_held_out=n_held_out,
        margins=margins,
    )
