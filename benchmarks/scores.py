"""Which criterion predicts what the network loses when a unit goes, and at what price?

For each network: every criterion of the table on one part of the data; on another part, units are taken away one at a
time, spread over all groups. Printed per criterion: rank correlation over all units and the mean of those
inside the groups; the slope of the measured loss over the score (1 = calibrated; nats only); what the quarter of the
units that it ranks lowest costs, over the cheapest quarter there is; processor time over that of a plain forward and
backward pass over the same batches. First the ceiling: the rank correlation that perfect scores would reach, given the
noise of the measurement.

    make bench-scores                              the three networks of the demo, trained here
    SECATEUR_DATA=... make bench-scores            and a ResNet-20 on CIFAR-10 (benchmarks/README.md)
    make bench-scores ARGS="--units 16 --quick"    to see that it runs
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from cifar import Images, data_folder, read, trained
from secateur._score import compare
from secateur.cli import demo, demo_data
from secateur.criteria import CRITERIA
from secateur.schema.comparison import Comparison
from secateur.schema.members import Criterion
from secateur.schema.task import Batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One criterion on one network."""

    network: str
    criterion: str
    overall: float | None
    within: float | None
    slope: float | None
    cost: float
    price: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A trained network with two disjoint parts of the data."""

    name: str
    model: nn.Module
    example: torch.Tensor
    scoring: Batches
    measuring: Batches


def digits(arch: str, *, quick: bool) -> Case:
    """A network of the demo, trained as the demo does; scores from its search images, measured on the held-out ones."""
    torch.manual_seed(0)
    recipe, data = demo.RECIPES[arch], demo_data.splits()
    model = recipe.make()
    demo.train(model, data, epochs=2 if quick else recipe.epochs, lr=recipe.lr)
    assert data.held_out is not None
    batch: Any = next(iter(data.search))
    return Case(name=arch, model=model.eval(), example=batch[0][:2], scoring=data.search, measuring=data.held_out)


def resnet20(folder: Path, n: int) -> Case:
    """The published ResNet-20: scores from the first n test images, measured on the next n."""
    pixels, labels = read(folder, "test", limit=2 * n)
    parts = [Images(pixels=pixels[k : k + n], labels=labels[k : k + n], batch_size=250) for k in (0, n)]
    return Case(
        name="resnet20", model=trained(folder), example=torch.zeros(2, 3, 32, 32), scoring=parts[0], measuring=parts[1]
    )


def members() -> list[Criterion]:
    """Every criterion with its defaults, and the options that are a choice of their own."""
    made = [make() for make in CRITERIA.values()]
    return [
        *made,
        sc.criteria.magnitude(p=1),
        sc.criteria.obd(curvature="empirical"),
        sc.criteria.obd(curvature="sampled"),
        sc.criteria.obd(shrink=True),
    ]


def processor_seconds(work: Callable[[], object]) -> float:
    """Of the faster of two runs: other programs run on the machine too."""
    times = []
    for _ in range(2):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def measure(case: Case, n_units: int) -> tuple[list[Row], Comparison]:
    """All criteria on one network."""
    task = sc.tasks.classification()
    groups = sc.couple(sc.trace(case.model, case.example))

    def plain() -> None:
        for batch in case.scoring:
            case.model.zero_grad()
            task.losses(task.forward(case.model, batch), batch).mean().backward()

    base = processor_seconds(plain)
    case.model.zero_grad()
    scores, prices = [], {}
    for criterion in members():
        try:
            scores.append(sc.score(case.model, groups, case.scoring, task, criterion=criterion))
        except sc.errors.MissingStatistic as reason:
            print(f"  {criterion.name}: {reason.what}")
            continue

        def again(criterion: Criterion = criterion) -> None:
            sc.score(case.model, groups, case.scoring, task, criterion=criterion)

        prices[criterion.name] = processor_seconds(again) / base
    found = compare(case.model, groups, case.measuring, task, scores, n_units=n_units)
    rows = []
    for s in scores:
        mine = [a for a in found.agreements if a.criterion == s.criterion]
        inside = [a.spearman for a in mine if a.group and a.spearman is not None and a.n >= 5]
        overall = next(a for a in mine if a.group == "")
        rows.append(
            Row(
                network=case.name,
                criterion=s.criterion,
                overall=overall.spearman,
                within=sum(inside) / len(inside) if inside else None,
                slope=overall.slope,
                cost=overall.cost / found.cheapest,
                price=prices[s.criterion],
            )
        )
    return sorted(rows, key=lambda r: -(r.overall or -1.0)), found


def show(rows: list[Row], found: Comparison) -> None:
    """One table."""
    ceiling = "unknown" if found.ceiling is None else f"{found.ceiling:.2f}"
    print(
        f"\n{rows[0].network}: {len(found.units)} units in {len(found.names)} groups, measured on {found.n_examples} "
        f"examples; ceiling {ceiling}; the cheapest quarter costs {found.cheapest:.5f} nats each"
    )
    print(f"{'criterion':22s} {'overall':>8s} {'within':>8s} {'slope':>8s} {'cost':>8s} {'price':>8s}")
    for r in rows:
        numbers = [r.overall, r.within, r.slope, r.cost, r.price]
        print(f"{r.criterion:22s} " + " ".join("       -" if v is None else f"{v:8.2f}" for v in numbers))


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["cnn", "lstm", "transformer", "resnet20"])
    parser.add_argument("--units", type=int, default=128, help="units taken away per network")
    parser.add_argument("--images", type=int, default=2000, help="of CIFAR-10, for scores and again for measuring")
    parser.add_argument("--quick", action="store_true", help="two epochs of training only")
    parser.add_argument("--json", action="store_true", help="the results as JSON on the last line")
    args = parser.parse_args()
    everything: list[Row] = []
    for name in args.networks:
        if name == "resnet20":
            folder = data_folder()
            if isinstance(folder, str):
                print(f"\nresnet20 left out: {folder}", file=sys.stderr)
                continue
            case = resnet20(folder, args.images)
        else:
            case = digits(name, quick=args.quick)
        rows, found = measure(case, args.units)
        show(rows, found)
        everything += rows
    if args.json:
        print(json.dumps([dataclasses.asdict(r) for r in everything]))


if __name__ == "__main__":
    main()
