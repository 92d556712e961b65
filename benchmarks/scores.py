"""Which criterion predicts what the network loses when a unit goes, and at what price?

For each network: every criterion of the table on one part of the data; on another part, units are taken away one at a
time, spread over all groups. Printed per criterion: rank correlation over all units and the mean of those
inside the groups; the slope of the measured loss over the score (1 = calibrated; nats only); what the quarter of the
units that it ranks lowest costs, over the cheapest quarter there is; processor time over that of a plain forward and
backward pass over the same batches. First the ceiling: the rank correlation that perfect scores would reach, given the
noise of the measurement.

    make bench-scores                              the three networks of the demo, trained here
    SECATEUR_DATA=... make bench-scores            and a ResNet-20, an LSTM and a Llama (benchmarks/README.md)
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
from digits import demo_network
from language import LLAMA, STORIES, WIKITEXT, TiedLSTM, llama, missing, train, wikitext
from secateur._score import compare
from secateur.cli import demo
from secateur.criteria import CRITERIA
from secateur.schema.comparison import Comparison
from secateur.schema.members import Criterion
from secateur.schema.task import Batches, Task

NETWORKS = ["cnn", "lstm", "transformer", "resnet20", "lstm_lm", "llama"]


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
    task: Task
    scoring: Batches
    measuring: Batches


def digits(arch: str, *, quick: bool) -> Case:
    """A network of the demo, trained as the demo does; scores from its search images, measured on the held-out ones."""
    model, data = demo_network(arch, quick=quick)
    assert data.held_out is not None
    batch: Any = next(iter(data.search))
    return Case(
        name=arch,
        model=model,
        example=batch[0][:2],
        task=sc.tasks.classification(),
        scoring=data.search,
        measuring=data.held_out,
    )


def resnet20(folder: Path, n: int) -> Case:
    """The published ResNet-20: scores from the first n test images, measured on the next n."""
    pixels, labels = read(folder, "test", limit=2 * n)
    parts = [Images(pixels=pixels[k : k + n], labels=labels[k : k + n], batch_size=250) for k in (0, n)]
    return Case(
        name="resnet20",
        model=trained(folder),
        example=torch.zeros(2, 3, 32, 32),
        task=sc.tasks.classification(),
        scoring=parts[0],
        measuring=parts[1],
    )


def lstm_lm(folder: Path, n: int, *, quick: bool) -> Case:
    """A tied LSTM that learns WikiText-2 here; scores from n pieces of the validation text, measured on n others."""
    torch.manual_seed(0)
    texts = wikitext(folder)
    model = TiedLSTM(n_words=2000)
    train(model, texts["train"][:2000] if quick else texts["train"], epochs=1 if quick else 2, lr=4e-3)
    return _language("lstm_lm", model.eval(), texts["valid"], texts["test"], n)


def llama_lm(folder: Path, n: int) -> Case:
    """The Llama of 260,000 parameters on stories that it has not seen; scores from n pieces, measured on n others."""
    model, pieces = llama(folder)
    return _language("llama", model, pieces[:n], pieces[n:], n)


def _language(name: str, model: nn.Module, scoring: torch.Tensor, measuring: torch.Tensor, n: int) -> Case:
    return Case(
        name=name,
        model=model,
        example=scoring[:2],
        task=sc.tasks.language_modeling(),
        scoring=scoring[:n].split(50),
        measuring=measuring[:n].split(50),
    )


def members() -> list[Criterion]:
    """Every criterion with its defaults, and the options that are a choice of their own."""
    made = [make() for make in CRITERIA.values()]
    return [
        *made,
        sc.criteria.magnitude(p=1),
        sc.criteria.obd(curvature="empirical"),
        sc.criteria.obd(curvature="sampled"),
        sc.criteria.obd(first="plain"),
        sc.criteria.obd(curvature="combined"),
        sc.criteria.obd(curvature="calibrated"),
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
    task = case.task
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


def make(name: str, args: argparse.Namespace) -> Case | str:
    """One of NETWORKS, or the reason why its data is not there."""
    if name in demo.RECIPES:
        return digits(name, quick=args.quick)
    folder = data_folder()
    if isinstance(folder, str):
        return folder
    if name == "resnet20":
        return resnet20(folder, args.images)
    if name == "lstm_lm":
        lacking = missing(folder, *(WIKITEXT.format(split=s) for s in ("train", "valid", "test")))
        return lacking or lstm_lm(folder, args.pieces, quick=args.quick)
    return missing(folder, LLAMA, STORIES) or llama_lm(folder, args.pieces)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--units", type=int, default=128, help="units taken away per network")
    parser.add_argument("--images", type=int, default=2000, help="of CIFAR-10, for scores and again for measuring")
    parser.add_argument("--pieces", type=int, default=1000, help="of text, for scores and again for measuring")
    parser.add_argument("--quick", action="store_true", help="two epochs of training only")
    parser.add_argument("--json", action="store_true", help="the results as JSON on the last line")
    args = parser.parse_args()
    everything: list[Row] = []
    for name in args.networks:
        case = make(name, args)
        if isinstance(case, str):
            print(f"\n{name} left out: {case}", file=sys.stderr)
            continue
        rows, found = measure(case, args.units)
        show(rows, found)
        everything += rows
    if args.json:
        print(json.dumps([dataclasses.asdict(r) for r in everything]))


if __name__ == "__main__":
    main()
