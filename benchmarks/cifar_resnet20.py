"""How much of a trained network of others is left after a cut, beside Torch-Pruning on the same model and data?

ResNet-20 on CIFAR-10 (JPEG), whose shortcuts pad channels with zeros. For each fraction of the MACs that is to be
kept: accuracy on the 10,000 test images with nothing but batch norm recalibrated, then after two epochs of training;
MACs, parameters and measured latency. Scores and batch norm statistics come from training images; the test images
are only looked at to print a number. Both tools get the same images, the same budget, and the same recovery.

    make bench-cifar                 needs SECATEUR_DATA, see benchmarks/README.md (also for the last results)
    make bench-cifar ARGS="--quick"  a subset of the data and one budget, to see that it runs
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from cifar import Block, Images, ResNet20, data_folder, read, trained

EXAMPLE = torch.zeros(2, 3, 32, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Training images with augmentation, training images for scores and statistics, test images."""

    train: Images
    search: Images
    test: Images


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. Accuracies in [0, 1]; latencies in seconds per batch, (median, low, high)."""

    method: str
    budget: float
    macs: int
    params: int
    recalibrated: float
    finetuned: float | None
    latency_1: tuple[float, float, float]
    latency_256: tuple[float, float, float]
    seconds_to_cut: float
    note: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a subset of the data, and only half of the MACs")
    parser.add_argument("--budgets", type=float, nargs="+", help="fractions of the MACs to keep")
    parser.add_argument("--epochs", type=int, default=2, help="of the training after the cut; 0 = none")
    parser.add_argument("--lr", type=float, default=0.02, help="its peak learning rate")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="results as JSON on the last line")
    args = parser.parse_args(arguments)
    folder = data_folder()
    if isinstance(folder, str):
        print(f"skipped: {folder}")
        return 0
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    budgets = args.budgets or ([0.5] if args.quick else [0.67, 0.5, 0.33])
    splits = split(folder, quick=args.quick)
    repeats = 20 if args.quick else 100
    rows = list(
        compare(trained(folder), splits, budgets, epochs=args.epochs, lr=args.lr, seed=args.seed, repeats=repeats)
    )
    print(table(rows, threads=args.threads))
    if args.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
    return 0


def compare(
    dense: ResNet20, splits: Splits, budgets: list[float], *, epochs: int, lr: float, seed: int, repeats: int
) -> Iterator[Row]:
    """The rows, dense first, then for each budget one per method."""
    say(f"dense: {accuracy(dense, splits.test):.2%} of {len(splits.test.labels)} test images")
    task = sc.tasks.classification()
    recalibrate = sc.recoveries.recalibrate()
    finetune = sc.recoveries.finetune(epochs=epochs, lr=lr, optimizer="sgd", weight_decay=5e-4) if epochs else None
    for position, budget in enumerate(budgets):
        cuts: dict[str, tuple[nn.Module, float, str]] = {}
        for method, cutter in METHODS.items():
            started = time.perf_counter()
            model, note = cutter(dense, splits, budget)
            cuts[method] = (model, time.perf_counter() - started, note)
            say(f"{budget:.2f} {method}: cut to {macs(model) / macs(dense):.3f} of the MACs {note}")
        pruned = {method: model for method, (model, _, _) in cuts.items()}
        latencies = side_by_side({"dense": dense, **pruned}, repeats=repeats)
        if position == 0:
            yield Row(
                method="dense",
                budget=1.0,
                macs=macs(dense),
                params=params(dense),
                recalibrated=accuracy(dense, splits.test),
                finetuned=None,
                latency_1=latencies["dense", 1],
                latency_256=latencies["dense", 256],
                seconds_to_cut=0.0,
            )
        for method, (model, seconds, note) in cuts.items():
            statistics = sc.recover(model, splits.search, task, recovery=recalibrate, seed=seed)
            shot = accuracy(statistics, splits.test)
            say(f"{budget:.2f} {method}: {shot:.2%} after recalibration")
            tuned = None
            if finetune is not None:
                retrained = sc.recover(statistics, splits.train, task, recovery=finetune, seed=seed)
                tuned = accuracy(retrained, splits.test)
                say(f"{budget:.2f} {method}: {tuned:.2%} after {epochs} epochs")
            yield Row(
                method=method,
                budget=budget,
                macs=macs(model),
                params=params(model),
                recalibrated=shot,
                finetuned=tuned,
                latency_1=latencies[method, 1],
                latency_256=latencies[method, 256],
                seconds_to_cut=seconds,
                note=note,
            )


# ------------------------------------------------------------------------------------------- the two tools
def secateur(dense: ResNet20, splits: Splits, budget: float) -> tuple[nn.Module, str]:
    """One cut by second-order scores on the search images; nothing about the model is told."""
    groups = sc.couple(sc.trace(dense, (EXAMPLE,)))
    scores = sc.score(dense, groups, splits.search, sc.tasks.classification(), criterion=sc.criteria.obd())
    plan = sc.plan(groups, scores, sc.Budget(macs=budget), allocator=sc.allocators.greedy())
    small, _ = sc.cut(dense, groups, plan, example_inputs=(EXAMPLE,))
    return small, ""


def secateur_in_steps(dense: ResNet20, splits: Splits, budget: float) -> tuple[nn.Module, str]:
    """Five cuts, scored anew before each, batch norm recalibrated after each; nothing is trained in between."""
    result = sc.prune(
        dense,
        (EXAMPLE,),
        data=sc.Data(train=splits.search, search=splits.search),
        task=sc.tasks.classification(),
        budget=sc.Budget(macs=budget),
        steps=5,
        recovery=sc.recoveries.recalibrate(),
    )
    return result.model, ""


def torch_pruning_default(dense: ResNet20, splits: Splits, budget: float) -> tuple[nn.Module, str]:
    """As its README shows: all layers but the classifier, group Taylor importance, global ranking."""
    return torch_pruning(dense, splits.search, budget, importance="Taylor", keep="classifier"), ""


def torch_pruning_best(dense: ResNet20, splits: Splits, budget: float) -> tuple[nn.Module, str]:
    """The best of its settings on the search images after recalibration, told by hand which layers to leave alone."""
    best: tuple[float, nn.Module, str] | None = None
    task, recovery = sc.tasks.classification(), sc.recoveries.recalibrate()
    for importance in IMPORTANCES:
        for keep in ("classifier", "stream"):
            for scope in (True, False):
                model = torch_pruning(
                    dense, splits.search, budget, importance=importance, keep=keep, global_pruning=scope
                )
                quality = accuracy(sc.recover(model, splits.search, task, recovery=recovery), splits.search)
                note = f"({importance}, {'global' if scope else 'local'}, {keep} left alone)"
                say(f"  Torch-Pruning {note}: {quality:.2%} of the search images")
                if best is None or quality > best[0]:
                    best = (quality, model, note)
    assert best is not None
    return best[1], best[2]


METHODS: dict[str, Callable[[ResNet20, Splits, float], tuple[nn.Module, str]]] = {
    "Secateur, one cut": secateur,
    "Secateur, five steps": secateur_in_steps,
    "Torch-Pruning, default": torch_pruning_default,
    "Torch-Pruning, best": torch_pruning_best,
}
IMPORTANCES = ("L1", "L2", "Taylor", "Taylor summed")


def torch_pruning(
    dense: ResNet20,
    search: Images,
    budget: float,
    *,
    importance: str,
    keep: str,
    global_pruning: bool = True,
) -> ResNet20:
    """Steps of half a percent of the channels until the budget is met, its own recipe for a budget in MACs.

    Args:
        importance: one of `IMPORTANCES`.
        keep: "classifier", or "stream": also the convolutions that write to the residual stream, whose padded
            shortcuts Torch-Pruning takes for operations that leave channel numbers as they are.
    """
    import torch_pruning as tp

    model = copy.deepcopy(dense)
    makers: dict[str, Callable[[], Any]] = {
        "L1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "L2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "Taylor": tp.importance.GroupTaylorImportance,
        "Taylor summed": lambda: tp.importance.GroupTaylorImportance(normalizer=None, group_reduction="sum"),
    }
    ignored: list[nn.Module] = [model.linear]
    if keep == "stream":
        ignored += [model.conv1, *(block.conv2 for block in model.modules() if isinstance(block, Block))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its notes on parameters that it does not prune
        pruner = tp.pruner.BasePruner(
            model,
            EXAMPLE,
            importance=makers[importance](),
            global_pruning=global_pruning,
            pruning_ratio=1.0,
            max_pruning_ratio=0.95,
            iterative_steps=200,
            ignored_layers=ignored,
        )
        if importance.startswith("Taylor"):
            for images, labels in search:
                (F.cross_entropy(model(images), labels, reduction="sum") / len(search.labels)).backward()
        allowed = budget * macs(dense)
        while macs(model) > allowed and pruner.current_step < pruner.iterative_steps:
            pruner.step()
    model.zero_grad()
    return model


# ------------------------------------------------------------------------------------------- measuring
def split(folder: Path, *, quick: bool) -> Splits:
    """All training images to train on, the last 5,000 of them for scores and statistics, and the test images."""
    say("decoding the images")
    pixels, labels = read(folder, "train", 6000 if quick else None)
    test_pixels, test_labels = read(folder, "test", 2000 if quick else None)
    n_search = 1000 if quick else 5000
    return Splits(
        train=Images(pixels=pixels, labels=labels, batch_size=128, augment=True),
        search=Images(pixels=pixels[-n_search:], labels=labels[-n_search:], batch_size=250),
        test=Images(pixels=test_pixels, labels=test_labels, batch_size=500),
    )


def accuracy(model: nn.Module, images: Images) -> float:
    """Fraction of the images that `model` in eval mode classifies rightly."""
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(pixels).argmax(1) == labels).sum()) for pixels, labels in images)
    return right / len(images.labels)


def macs(model: nn.Module) -> int:
    """Multiply-accumulates for one image: half of what torch's own counter calls flops."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(EXAMPLE[:1])
    return int(counter.get_total_flops()) // 2


def params(model: nn.Module) -> int:
    """Elements of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def side_by_side(models: dict[str, nn.Module], *, repeats: int) -> dict[tuple[str, int], tuple[float, float, float]]:
    """(median, low, high) seconds of one forward pass, for each model and batch size, from interleaved runs."""
    inputs = {batch: (torch.randn(batch, 3, 32, 32),) for batch in (1, 256)}
    return {(t.label, t.batch): (t.median, t.low, t.high) for t in sc.measure(models, inputs, repeats=repeats)}


def table(rows: list[Row], *, threads: int) -> str:
    """The rows as a Markdown table."""
    dense = rows[0]

    def times(row: Row, name: Literal["latency_1", "latency_256"]) -> str:
        median, low, high = row.latency_1 if name == "latency_1" else row.latency_256
        return f"{1e3 * median:.2f} [{1e3 * low:.2f}, {1e3 * high:.2f}]"

    lines = [
        "| method | MACs | parameters | test accuracy, recalibrated | after training | ms, batch 1 | ms, batch 256 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        tuned = "" if row.finetuned is None else f"{row.finetuned:.2%}"
        lines.append(
            f"| {row.method if row is dense else f'{row.budget:.2f}: {row.method}'} "
            f"| {row.macs / 1e6:.1f} M ({row.macs / dense.macs:.1%}) | {row.params / 1e3:.1f} k "
            f"| {row.recalibrated:.2%} | {tuned} | {times(row, 'latency_1')} | {times(row, 'latency_256')} |"
        )
    notes = [f"{row.budget:.2f}: {row.method} {row.note}" for row in rows if row.note]
    caption = f"Latency: median and 95 % interval of interleaved runs, {threads} threads, torch {torch.__version__}."
    return "\n".join([*lines, "", caption, *notes])


def say(text: str) -> None:
    """Progress goes to stderr, results to stdout."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
