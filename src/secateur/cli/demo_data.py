"""Real data for the demo: the 1,797 handwritten digits of scikit-learn, 8 x 8 pixels, embedded in that package."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset

from secateur.errors import NotInstalled
from secateur.schema.task import Data

N_HELD_OUT, N_SEARCH, BATCH = 600, 301, 64


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images [1797, 1, 8, 8] in [0, 1] and labels [1797].

    Raises:
        NotInstalled: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise NotInstalled(
            "the digits come with scikit-learn", got=error, todo="pip install 'secateur[demo]'"
        ) from None
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    return images, torch.tensor(found.target)


def splits(*, n_train: int | None = None) -> Data:
    """896 images to train on, 301 to choose with, 600 held out; always the same ones.

    Args:
        n_train: fewer training images, for tests.
    """
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    held_out, search, train = (
        TensorDataset(images[part], labels[part])
        for part in (
            slice(0, N_HELD_OUT),
            slice(N_HELD_OUT, N_HELD_OUT + N_SEARCH),
            slice(N_HELD_OUT + N_SEARCH, None if n_train is None else N_HELD_OUT + N_SEARCH + n_train),
        )
    )
    return Data(
        train=DataLoader(train, BATCH, shuffle=True),
        search=DataLoader(search, 256),
        held_out=DataLoader(held_out, 256),
    )
