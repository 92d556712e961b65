"""CIFAR-10 as JPEG files in a Parquet table, and the ResNet-20 that was trained on it. No benchmark by itself.

Index conventions: n image, c channel, y x position.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
DATA = "cifar10/{split}.parquet"
WEIGHTS = "cifar10-resnets/resnet20.safetensors"


# ------------------------------------------------------------------------------------------- the model
class PadShortcut(nn.Module):
    """Option A of He et al. 2015 (arXiv 1512.03385, section 4.2): every other position, new channels all zero.

    Without parameters. The zero channels are half in front and half behind, as in the published weights.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.front = (channels_out - channels_in) // 2
        self.behind = channels_out - channels_in - self.front

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, y, x] -> [n, front + c + behind, y / 2, x / 2]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.front, self.behind))


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut without parameters."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        same = stride == 1 and channels_in == channels_out
        self.shortcut: nn.Module = nn.Sequential() if same else PadShortcut(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, y, x] -> [n, c', y / stride, x / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return F.relu(out)


class ResNet20(nn.Module):
    """ResNet-20 for 32x32 images: 16, 32, 64 channels, three blocks each (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, 32, 32] -> [n, n_classes]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean(dim=(2, 3)))


# ------------------------------------------------------------------------------------------- the data
@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Batches of (normalised images, labels); can be iterated again, which draws a new order where it augments.

    Attributes:
        pixels: [n, 3, 32, 32], uint8.  labels: [n].  batch_size: images per batch.
        augment: shuffle, mirror at random, and shift by up to four pixels, from torch's global generator.
    """

    pixels: Tensor
    labels: Tensor
    batch_size: int = 256
    augment: bool = False

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.labels)
        order = torch.randperm(n) if self.augment else torch.arange(n)
        for index in order.split(self.batch_size):
            pixels = self.pixels[index]
            yield normalise(_augmented(pixels) if self.augment else pixels), self.labels[index]


def normalise(pixels: Tensor) -> Tensor:
    """uint8 pixels [n, c, y, x] -> float32, as the published weights expect them."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def _augmented(pixels: Tensor) -> Tensor:
    n, _, height, width = pixels.shape
    padded = F.pad(pixels, (4, 4, 4, 4))
    rows = torch.randint(0, 9, (n, 1)) + torch.arange(height)
    columns = torch.randint(0, 9, (n, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns, columns.flip(1))
    return padded[torch.arange(n).view(n, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1), rows[:, None, :, None],
                  columns[:, None, None, :]]  # fmt: skip


def read(folder: Path, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """(pixels [n, 3, 32, 32] uint8, labels [n] int64) of the first `limit` images of a split."""
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(folder / DATA.format(split=split))
    table = table.slice(0, limit) if limit is not None else table
    decoded = [np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in table["image"].to_pylist()]
    pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor(table["label"].to_pylist(), dtype=torch.int64)


def trained(folder: Path) -> ResNet20:
    """The network with its published weights, in eval mode."""
    from safetensors.torch import load_file

    model = ResNet20()
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()


def data_folder() -> Path | str:
    """The folder that SECATEUR_DATA names, or the reason why there is none (see benchmarks/README.md)."""
    named = os.environ.get("SECATEUR_DATA")
    if not named:
        return "SECATEUR_DATA is not set; it names the folder that benchmarks/README.md describes"
    missing = [
        name
        for name in (DATA.format(split="train"), DATA.format(split="test"), WEIGHTS)
        if not (Path(named) / name).is_file()
    ]
    if missing:
        return f"SECATEUR_DATA={named} lacks {', '.join(missing)}; see benchmarks/README.md"
    return Path(named)
