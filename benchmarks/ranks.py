"""Do the scores of a ResNet-20 rank its channels as leave-one-out on other images does?

Every channel inside the blocks (336) is taken away alone on 5,000 images of CIFAR-10; scores come from 5,000 others,
and the other way round. Training images and test images are measured apart: the network has seen the former.

    SECATEUR_DATA=... make bench-ranks                                     an hour on one core, a third of it with four
    SECATEUR_DATA=... make bench-ranks ARGS="--split train --parts 4"      four times 5,000 images, twelve directions
    SECATEUR_DATA=... make bench-ranks ARGS="--images 250 --split test"    to see that it runs

Printed per criterion are means over all directions, from one part of the images to another, with the least and the
largest: rank correlation; slope of the measured increase over the score; the same slope over the units that were not
measured once `sc.calibrate` has scaled the scores by 32 others; what the quarter of the units that is ranked lowest
costs, over the cheapest quarter of the measurement itself (which knows its own noise), and over the quarter that
leave-one-out on the images of the scores would take. First the ceiling, and that leave-one-out itself.

Index conventions: u channel, n image.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor

import secateur as sc
from cifar import Block, Images, ResNet20, data_folder, read, trained
from secateur._curves import spearman
from secateur._score import compare, evenly, slope_of

ROOT = Path(__file__).resolve().parent.parent
BATCH = 250
CALIBRATED_BY = 32
CRITERIA = (
    sc.criteria.obd(),
    sc.criteria.obd(curvature="calibrated"),
    sc.criteria.obd(curvature="combined"),
    sc.criteria.obd(first="plain"),
    sc.criteria.fisher(),
    sc.criteria.mean_absolute_taylor(),
    sc.criteria.taylor(),
    sc.criteria.absolute_taylor(),
    sc.criteria.magnitude(),
    sc.criteria.random(),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One criterion, scored on one part of the images and judged on another."""

    split: str
    scored_on: int
    judged_on: int
    criterion: str
    ceiling: float
    rank: float
    slope: float
    slope_calibrated: float | None
    lowest: float
    lowest_over_other: float


def blocks_of(model: ResNet20) -> list[tuple[str, Block]]:
    """The nine blocks with their names."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, Block)]


def leave_one_out(model: ResNet20, images: Images) -> Tensor:
    """Increase of every image's loss without each channel, [u, n].

    What comes before a channel is computed once; the second convolution of its block is linear, so that the share of
    one channel is subtracted; only what follows is computed again.
    """
    blocks = [block for _, block in blocks_of(model)]

    def rest(x: Tensor, first: int) -> Tensor:
        for block in blocks[first:]:
            x = block(x)
        return model.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]

    parts = []
    with torch.no_grad():
        for x, y in images:
            x = F.relu(model.bn1(model.conv1(x)))
            base = F.cross_entropy(rest(x, 0), y, reduction="none")
            rises = []
            for number, block in enumerate(blocks):
                inner = F.relu(block.bn1(block.conv1(x)))
                whole, norm = block.conv2(inner), block.bn2
                assert norm.running_var is not None
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                out = block.bn2(whole) + block.shortcut(x)
                for c in range(inner.shape[1]):
                    share = F.conv2d(inner[:, c : c + 1], block.conv2.weight[:, c : c + 1], None, 1, 1)
                    without = F.relu(out - share * scale.view(1, -1, 1, 1))
                    rises.append(F.cross_entropy(rest(without, number + 1), y, reduction="none") - base)
                x = F.relu(out)
            parts.append(torch.stack(rises))
    return torch.cat(parts, 1)


def ceiling(rises: Tensor) -> float:
    """The root of the measurement's reliability: mean of 20 splits into halves, with Spearman-Brown."""
    found = []
    for seed in range(20):
        order = torch.randperm(rises.shape[1], generator=torch.Generator().manual_seed(seed))
        halves = [rises[:, part].mean(1).tolist() for part in order.chunk(2)]
        r = spearman(*halves) or 0.0
        found.append(2 * r / (1 + r))
    return math.sqrt(max(sum(found) / len(found), 0.0))


def judged(
    split: str, scored_on: int, judged_on: int, scores: Sequence[tuple[str, Tensor]], rises: Tensor, other: Tensor
) -> list[Row]:
    """Every criterion beside the increases of the losses on images that it has not seen."""
    measured, quarter, top = rises.mean(1).double(), len(rises) // 4, ceiling(rises)
    cheapest = float(measured.sort().values[:quarter].sum())
    by_other = float(measured[other.mean(1).argsort()[:quarter]].sum())
    rows = []
    for name, values in scores:
        order = values.argsort()
        spread = order[evenly(len(order), CALIBRATED_BY)]
        left = torch.ones(len(order), dtype=torch.bool).index_fill(0, spread, False)
        factor = float(measured[spread].sum() / values[spread].sum())
        lowest = float(measured[order[:quarter]].sum())
        rows.append(
            Row(
                split=split,
                scored_on=scored_on,
                judged_on=judged_on,
                criterion=name,
                ceiling=top,
                rank=spearman(values.tolist(), measured.tolist()) or 0.0,
                slope=slope_of(values.tolist(), measured.tolist()) or 0.0,
                slope_calibrated=slope_of((factor * values[left]).tolist(), measured[left].tolist())
                if factor > 0
                else None,
                lowest=lowest / cheapest,
                lowest_over_other=lowest / by_other,
            )
        )
    return rows


def check(
    model: ResNet20, groups: sc.Groups, images: Images, scores: sc.Scores, names: list[str], rises: Tensor
) -> None:
    """What is measured here is what `sc.compare` measures.

    Raises:
        AssertionError: it is not.
    """
    few = Images(pixels=images.pixels[:BATCH], labels=images.labels[:BATCH], batch_size=BATCH)
    made = compare(model, groups, few, sc.tasks.classification(), [scores], n_units=20)
    starts = {group.index: names.index(group.name) for group in groups.groups if group.name in names}
    sizes = [block.conv1.out_channels for _, block in blocks_of(model)]
    for (g, u), expected in zip(made.units, made.measured, strict=True):
        if g in starts:
            found = float(rises[sum(sizes[: starts[g]]) + u, :BATCH].mean())
            assert abs(found - expected) < 1e-4, (g, u, found, expected)


def measure(split: str, parts: int, n: int, folder: Path, kept: Path) -> list[Row]:
    """All directions between so many parts of n images of a split."""
    model = trained(folder)
    groups = sc.couple(sc.trace(model, torch.zeros(2, 3, 32, 32)))
    names = [f"{name}.conv1" for name, _ in blocks_of(model)]
    index = {group.name: group.index for group in groups.groups}
    pixels, labels = read(folder, split, parts * n)
    each = [Images(pixels=p, labels=y, batch_size=BATCH) for p, y in zip(pixels.split(n), labels.split(n), strict=True)]
    rises, scores = [], []
    for number, images in enumerate(each):
        file = kept / f"{split}_{n}_{number}.pt"
        if not file.exists():
            start = time.perf_counter()
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(leave_one_out(model, images), file)
            print(f"{split} images, part {number}: {time.perf_counter() - start:.0f} s", flush=True)
        rises.append(torch.load(file))
        made = sc.score(model, groups, images, sc.tasks.classification(), criterion=CRITERIA)
        scores.append(
            [(s.criterion, torch.tensor([v for name in names for v in s.values[index[name]]]).double()) for s in made]
        )
        check(model, groups, images, made[0], names, rises[-1])
    rows = []
    for a, b in itertools.permutations(range(len(each)), 2):
        itself = [("leave-one-out itself", rises[a].mean(1).double())]
        rows += judged(split, a, b, itself + scores[a], rises[b], rises[a])
    return rows


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, least and largest; a dash for none."""
    if not values:
        return "-"
    return f"{mean(values):.{digits}f} {min(values):.{digits}f}-{max(values):.{digits}f}"


def main() -> int:
    """Prints a table; with --json, one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", action="append", choices=("train", "test"), help="repeatable; default: both")
    parser.add_argument("--images", type=int, default=5000, help="in each part")
    parser.add_argument("--parts", type=int, default=2, help="of the images of a split; each is a quarter of an hour")
    parser.add_argument("--keep", type=Path, default=ROOT / "build" / "ranks", help="what was measured is kept here")
    parser.add_argument("--json", action="store_true", help="the rows as JSON on the last line")
    options = parser.parse_args()
    folder = data_folder()
    if isinstance(folder, str):
        print(f"not run: {folder}")
        return 0
    rows = [
        r
        for s in options.split or ("train", "test")
        for r in measure(s, options.parts, options.images, folder, options.keep)
    ]
    print(f"{'split':6}{'criterion':24}{'ceiling':>8}  {'rank':16}{'slope':>6}  {'scaled':16}{'lowest':16}{'other':>6}")
    for split, criterion in dict.fromkeys((r.split, r.criterion) for r in rows):
        mine = [r for r in rows if (r.split, r.criterion) == (split, criterion)]
        scaled = [r.slope_calibrated for r in mine if r.slope_calibrated is not None]
        print(
            f"{split:6}{criterion:24}{mean(r.ceiling for r in mine):8.3f}  {spread([r.rank for r in mine], 3):16}"
            f"{mean(r.slope for r in mine):6.2f}  {spread(scaled, 2):16}{spread([r.lowest for r in mine], 2):16}"
            f"{mean(r.lowest_over_other for r in mine):6.2f}"
        )
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
