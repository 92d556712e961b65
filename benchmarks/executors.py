"""How much faster do two workers scan than one, and are the results the same?

A scan of a ResNet-20 on random images (weights and pixels do not matter to the clock), long enough to take `--minutes`
serially: first here, one point after the other, then in two forked processes, then on Ray. One torch thread everywhere.
What it takes to start the workers is measured first, with nothing to do, and reported apart. All curves must be equal.

    make bench-executors                        five minutes of serial work: about ten in all, on two idle cores
    make bench-executors ARGS="--minutes 0.2"   to see that it runs
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import secateur as sc
from cifar import ResNet20
from secateur._scan import REMOVED
from secateur.schema.members import Executor

GOAL = 1.7
BATCH = 100
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One executor: seconds to start it and of the scan, and how many times as fast as serial without the start."""

    executor: str
    startup: float
    seconds: float
    ratio: float


def images(n: int) -> list[Batch]:
    """Noise with labels, always the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, 32, 32, generator=generator)
    y = torch.randint(0, 10, (n,), generator=generator)
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


Run = Callable[[Sequence[Batch], Executor, Sequence[float]], sc.Curves]


def scanner() -> Run:
    """The scan as a function of the images, the executor and the fractions."""
    torch.manual_seed(0)
    model, task = ResNet20().eval(), sc.tasks.classification()
    groups = sc.couple(sc.trace(model, torch.zeros(2, 3, 32, 32)))
    scores = sc.score(model, groups, images(BATCH), task, criterion=sc.criteria.magnitude())

    def run(batches: Sequence[Batch], executor: Executor, removed: Sequence[float]) -> sc.Curves:
        return sc.scan(model, groups, scores, batches, task, executor=executor, removed=removed)

    return run


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds by the clock on the wall, and what came back."""
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def long_enough(run: Run, seconds: float) -> list[Batch]:
    """As many images as a serial scan needs for `seconds`, from the difference of two short ones of one fraction."""
    here = sc.executors.serial()
    short, longer = (timed(lambda n=n: run(images(n), here, (0.5,)))[0] for n in (BATCH, 3 * BATCH))  # type: ignore[misc]
    per_batch = max((longer - short) / 2, 1e-3) * len(REMOVED)
    return images(BATCH * max(2, round(seconds / per_batch)))


def measure(minutes: float, names: Sequence[str]) -> list[Row]:
    """Serial first, then the others on the same images.

    Raises:
        AssertionError: an executor whose curves differ.
    """
    run, here = scanner(), sc.executors.serial()
    batches = long_enough(run, 60 * minutes)
    print(f"{sum(len(y) for _, y in batches)} images; load before: {os.getloadavg()[0]:.1f}")
    seconds, expected = timed(lambda: run(batches, here, REMOVED))
    rows = [Row(executor="serial", startup=0.0, seconds=seconds, ratio=1.0)]
    for name in names:
        executor: Executor = sc.executors.ray(2) if name == "ray" else sc.executors.processes(2)
        startup, _ = timed(lambda: list(executor(abs, range(2))))  # noqa: B023 (called at once)
        took, found = timed(lambda: run(batches, executor, REMOVED))  # noqa: B023
        assert found == expected, f"the curves of {name} differ from those of serial"
        rows.append(Row(executor=f"{name}(2)", startup=startup, seconds=took, ratio=seconds / took))
    print(f"load after: {os.getloadavg()[0]:.1f}")
    return rows


def main() -> int:
    """Prints a table; with --json, one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of serial work")
    parser.add_argument("--executor", action="append", choices=("processes", "ray"), help="repeatable; default: both")
    parser.add_argument("--json", action="store_true", help="the rows as JSON on the last line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.minutes, options.executor or ("processes", "ray"))
    print(f"{'executor':14}{'start-up, s':>12}{'scan, s':>10}{'ratio':>8}{'with start-up':>15}")
    for row in rows:
        whole = rows[0].seconds / (row.startup + row.seconds)
        print(f"{row.executor:14}{row.startup:12.1f}{row.seconds:10.1f}{row.ratio:8.2f}{whole:15.2f}")
    print(f"equal curves: yes. Goal: {GOAL} on two idle cores and at least five minutes of serial work.")
    if options.json:
        print(json.dumps({"minutes": options.minutes, "cores": os.cpu_count(), "rows": [asdict(row) for row in rows]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
