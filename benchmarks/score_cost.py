"""What do scores cost, beside one forward and backward pass over the same batches, and in how much memory?

For each network: processor time of `score` for the first-order criteria together (signed, absolute, squared and mean
absolute Taylor, SNIP), and for Taylor, Fisher, obd, Wanda and the activation statistics together, over that of a plain
forward and backward pass over the same batches in eval mode. All three take turns in one process on one thread, and
medians are compared. Then the peak memory of a fresh process that scores n examples, and of one that scores 2n: what
a process holds before it scores is in both.

    make bench-score-cost                              the three networks of the demo, with random weights
    SECATEUR_DATA=... make bench-score-cost            and a ResNet-20 and a small Llama (benchmarks/README.md)
    make bench-score-cost ARGS="--rounds 1 --json"     to see that it runs
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from cifar import Images, data_folder, read, trained
from secateur.cli import demo, demo_data
from secateur.schema.groups import Groups
from secateur.schema.members import Criterion
from secateur.schema.task import Batches, Task

NETWORKS = ("cnn", "lstm", "transformer", "resnet20", "llama")
FIRST_ORDER_MOST, ALL_MOST, GROWTH_MOST = 1.3, 2.0, 0.05
C = sc.criteria
FIRST_ORDER: tuple[Criterion, ...] = (
    *(C.taylor(), C.absolute_taylor(), C.squared_taylor(), C.mean_absolute_taylor(), C.snip()),
)
ALL: tuple[Criterion, ...] = (
    *(C.taylor(), C.fisher(), C.obd(), C.wanda(), C.mean_activation(), C.apoz(), C.fluctuation()),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network in eval mode with its groups and data."""

    name: str
    model: nn.Module
    groups: Groups
    batches: Batches
    task: Task


@dataclass(frozen=True, slots=True)
class Repeated:
    """The same batches several times over: more data that takes no more memory by itself."""

    batches: list[Any]
    times: int

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.times):
            yield from self.batches


def digits(arch: str) -> Case:
    """A network of the demo on the 1,197 images that the demo does not hold out, in batches of 128."""
    torch.manual_seed(0)
    images, labels = demo_data.digits()
    batches = [(images[i : i + 128], labels[i : i + 128]) for i in range(demo_data.N_HELD_OUT, len(images), 128)]
    return _case(arch, demo.RECIPES[arch].make(), images[:2], batches, sc.tasks.classification())


def resnet20(folder: Path, n: int = 1024) -> Case:
    """The published ResNet-20 on n test images, in batches of 128."""
    pixels, labels = read(folder, "test", limit=n)
    batches = list(Images(pixels=pixels, labels=labels, batch_size=128))
    return _case("resnet20", trained(folder), torch.zeros(2, 3, 32, 32), batches, sc.tasks.classification())


def llama(folder: Path, n: int = 128, length: int = 128) -> Case:
    """A trained language model of 260,032 parameters on n stretches of text of `length` tokens, in batches of 16."""
    # Its import needs torchvision's operators, which are not there with every build.
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    importlib.import_module("helpers.compiled_ops").ensure_torchvision()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "stories260K-hf")
    tokenizer = AutoTokenizer.from_pretrained(folder / "stories260K-hf")
    text = (folder / "tinystories" / "moe_val.txt").read_text()[: 8 * n * length]
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"][: n * length]).view(n, length)
    batches = [{"input_ids": part} for part in ids.split(16)]
    return _case("llama", model, {"input_ids": ids[:2, :16]}, batches, sc.tasks.language_modeling())


def _case(name: str, model: nn.Module, example: Any, batches: list[Any], task: Task) -> Case:
    groups = sc.couple(sc.trace(model.eval(), example))
    return Case(name=name, model=model, groups=groups, batches=batches, task=task)


def case(name: str) -> Case | str:
    """The case of that name, or the reason why it cannot be had."""
    if name in demo.RECIPES:
        return digits(name)
    folder = data_folder()
    if isinstance(folder, str):
        return folder
    return resnet20(folder) if name == "resnet20" else llama(folder)


def plain(c: Case) -> None:
    """One forward and backward pass over the batches."""
    for batch in c.batches:
        c.model.zero_grad()
        c.task.losses(c.task.forward(c.model, batch), batch).mean().backward()


def scored(c: Case, criteria: tuple[Criterion, ...]) -> None:
    """The scores of several criteria."""
    sc.score(c.model, c.groups, c.batches, c.task, criterion=criteria)


def ratios(c: Case, rounds: int) -> tuple[float, float, float]:
    """(first order over plain, all over plain, seconds of plain); one warming round goes before."""
    works: tuple[Callable[[], None], ...] = (
        lambda: plain(c),
        lambda: scored(c, FIRST_ORDER),
        lambda: scored(c, ALL),
    )
    times: list[list[float]] = [[], [], []]
    for turn, (work, line) in itertools.product(range(rounds + 1), zip(works, times, strict=True)):
        start = time.process_time()
        work()
        if turn > 0:
            line.append(time.process_time() - start)
    base, first, everything = map(statistics.median, times)
    return first / base, everything / base, base


def peak(name: str, times: int) -> int:
    """Peak memory, bytes, of a fresh process that scores all criteria on the data `times` over."""
    command = [sys.executable, __file__, "--peak", name, str(times)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(found.stdout.splitlines()[-1])


def peak_here(name: str, times: int) -> int:
    """As `peak`, in this process."""
    c = case(name)
    assert isinstance(c, Case), c
    batches = Repeated(list(c.batches), times)
    sc.score(c.model, c.groups, batches, c.task, criterion=ALL)
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says includes what the process was forked from
        return next(int(v.split()[1]) * 1024 for v in status.read_text().splitlines() if v.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    """See the module's docstring; 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--rounds", type=int, default=7, help="measured runs of each kind")
    parser.add_argument("--json", action="store_true", help="the results as JSON on the last line")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "TIMES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        print(peak_here(args.peak[0], int(args.peak[1])))
        return 0
    rows = []
    print("network       plain, s  first order    all     peak n  peak 2n   growth")
    for name in args.networks:
        c = case(name)
        if isinstance(c, str):
            print(f"{name} left out: {c}", file=sys.stderr)
            continue
        first, everything, seconds = ratios(c, args.rounds)
        one, two = peak(name, 1), peak(name, 2)
        growth = two / one - 1
        rows.append(
            {
                "network": name,
                "plain_s": seconds,
                "first_order": first,
                "all": everything,
                "peak_bytes": one,
                "peak_bytes_twice_the_data": two,
                "growth": growth,
            }
        )
        print(
            f"{name:12s} {seconds:9.2f} {first:12.2f} {everything:6.2f} {one / 2**20:6.0f} MiB {two / 2**20:4.0f} MiB "
            f"{growth:+8.1%}",
            flush=True,
        )
    good = all(
        r["first_order"] <= FIRST_ORDER_MOST and r["all"] <= ALL_MOST and r["growth"] <= GROWTH_MOST for r in rows
    )
    print(
        f"Bounds: first order {FIRST_ORDER_MOST}, all {ALL_MOST}, growth {GROWTH_MOST:.0%}: "
        f"{'kept' if good else 'missed'}."
    )
    if args.json:
        print(json.dumps({"kept": good, "rows": rows}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
