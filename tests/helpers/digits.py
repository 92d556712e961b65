"""A small convolutional network on scikit-learn's digits, trained in two seconds, for tests of whole runs."""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from torch import nn

from secateur.schema.task import Data, Task


class Tiny(nn.Module):
    """Two convolutions with batch norm, a residual sum, and a head."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(2 * width)
        self.back = nn.Conv2d(2 * width, width, 1)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        x = x + self.back(F.relu(self.inner_norm(self.inner(x))))
        return self.head(F.avg_pool2d(x, 2).flatten(1))


TASK = Task(
    forward=lambda model, batch: model(batch[0]),
    losses=lambda out, batch: F.cross_entropy(out, batch[1], reduction="none"),
    correct=lambda out, batch: (out.argmax(-1) == batch[1]).double(),
    name="digits",
)


def _batches() -> Data:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    parts = [
        list(zip(x[a:b].split(64), y[a:b].split(64), strict=True)) for a, b in ((0, 800), (800, 1200), (1200, 1797))
    ]
    return Data(train=parts[0], search=parts[1], held_out=parts[2])


DATA = _batches()


@functools.cache
def _trained() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tiny()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(8):
            for x, y in DATA.train:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def dense_model() -> nn.Module:
    """A fresh copy of the trained network, in eval mode."""
    return copy.deepcopy(_trained())


def accuracy(model: nn.Module, batches) -> float:
    """Written out, so that it owes nothing to the library."""
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(-1) == y).sum()) for x, y in batches)
    return right / sum(len(y) for _, y in batches)
