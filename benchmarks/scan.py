"""How much less does a scan cost than the loop that everybody writes, and are its plans and intervals as good?

The loop: for every group and fraction, cut, then evaluate all search images, one point after the other. The scan: what
a cut does not change is shared (`memory`), and a point stops when it is known well enough (`precision`). Both meet the
same images, the loop right after the scan on the same part of them, so that a busy machine slows both; times are
processor seconds of one thread. Then, on images that nobody has seen: the loss of the plans at half the MACs, and how
often the 95 % intervals of the points cover what these images say.

    SECATEUR_DATA=... make bench-scan                   ResNet-20 and the three networks of the demo; see README.md
    make bench-scan ARGS="--networks cnn --quick"       to see that it runs
    make bench-scan ARGS="--json"                       the results as JSON on the last line as well

Index conventions: k point (a group and a fraction), n image, c chunk.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

import secateur as sc
from cifar import Images, data_folder, read, trained
from digits import demo_network
from secateur import _curves, _scan
from secateur.schema.curves import Curves, Point
from secateur.schema.precision import Precision
from secateur.schema.task import Batches

TENTH = 0.1
N_AGAIN = 20  # plans from images drawn again
Z = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A trained network, images to choose with, and images that nobody has seen: for plans, and some for intervals."""

    name: str
    model: nn.Module
    example: torch.Tensor
    search: Batches
    fresh: Batches
    unseen: Batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was found about one network; times in processor seconds, losses in nats.

    Attributes:
        n_points, n_search, n_fresh: groups times fractions; images.
        naive, reuse, fast: seconds of the loop; of the scan that shares; of the scan that also stops.
        speedup_reuse, speedup: of these two over the loop, machine load taken out.
        bound: what sharing could give at most: 1 / mean share of the work that lies behind the cut.
        images: mean number of images per point where points stop.  stopping: the factor that this saves by itself.
        apart: largest difference between the losses of loop and scan, of one image.
        coverage, coverage_fast: share of points whose interval covers the fresh value, in many splits of all images.
        coverage_here: the same in this very split, of the scan that shares, and of the one that also stops.
        plan_naive, plan_fast: loss on fresh images; behind: their paired difference, error: its standard error.
        plan_again: mean and standard deviation of that loss, of plans from the loop on as many images drawn again with
            replacement: how well the loop itself knows its plan.
        plan_tenth: mean loss of plans from the loop on a random tenth; tenth_worst: the worst of them.
    """

    network: str
    n_points: int
    n_search: int
    n_fresh: int
    naive: float
    reuse: float
    fast: float
    speedup_reuse: float
    bound: float
    speedup: float
    stopping: float
    images: float
    apart: float
    coverage: float
    coverage_fast: float
    coverage_here: tuple[float, float]
    plan_dense: float
    plan_naive: float
    plan_fast: float
    behind: float
    error: float
    plan_again: tuple[float, float]
    plan_tenth: float
    tenth_worst: float


# Networks and images


def resnet20(folder: Path, n_unseen: int, *, quick: bool) -> Case:
    """The published ResNet-20; the images are all of those that it was trained on, hence of one kind."""
    pixels, labels = read(folder, "train")
    n_search, n_fresh = (500, 500) if quick else (5000, 10000)

    def images(start: int, stop: int | None) -> Images:
        return Images(pixels=pixels[start:stop], labels=labels[start:stop], batch_size=250)

    return Case(
        name="resnet20",
        model=trained(folder),
        example=torch.zeros(2, 3, 32, 32),
        search=images(-n_search, None),
        fresh=images(0, n_fresh),
        unseen=images(0, min(n_unseen, n_fresh)),
    )


def digits(arch: str, *, quick: bool) -> Case:
    """A network of the demo, trained as the demo does."""
    model, data = demo_network(arch, quick=quick)
    assert data.held_out is not None
    batch: Any = next(iter(data.search))
    search, fresh = list(data.search), list(data.held_out)
    return Case(name=arch, model=model, example=batch[0][:2], search=search, fresh=fresh, unseen=fresh)


# The loop, beside the scan


def losses_of(model: nn.Module, batches: Iterable[Any]) -> NDArray[np.float64]:
    """[n]: the loop's own evaluation."""
    with torch.no_grad():
        parts = [F.cross_entropy(model(x), y, reduction="none") for x, y in batches]
    return torch.cat(parts).double().numpy()


@dataclass(slots=True, kw_only=True)
class Beside:
    """An executor: each piece of the scan's work here, and right after it the same for the loop.

    Attributes:
        every: the loop does every so many-th piece of each point, and its time for the others is taken from these;
            0 = it does nothing.
        losses: point -> [c] losses of the scan.  seconds: (point, chunk) -> of the loop.
        cutting: point -> seconds of the loop's cut.  outside: seconds of all that is not the scan's.
        apart: largest difference between the losses of loop and scan.
        shares: of the dense forward that lies before the cut, one per point and batch.
        precision: as the scan understands it.
    """

    every: int
    losses: dict[Any, list[NDArray[np.float64]]] = field(default_factory=dict)
    seconds: dict[Any, float] = field(default_factory=dict)
    cutting: dict[Any, float] = field(default_factory=dict)
    outside: float = 0.0
    apart: float = 0.0
    shares: list[float] = field(default_factory=list)
    precision: Precision | None = None
    name: str = "beside"

    def __call__(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """As every executor; it takes the work apart, for the losses of single images."""
        setup, shared = work.args  # type: ignore[attr-defined]
        prefixes = shared.prefixes()
        self.precision = setup.precision
        for index, job in enumerate(items):
            point, c = job.target.counts, len(job.before)
            ((chunk, pruned, in_full),) = _scan.evaluated(setup, prefixes, job)
            done = _scan.Measured([_scan._sums(setup, chunk, pruned)], in_full)
            start = time.process_time()
            self.losses.setdefault(point, []).append(pruned.losses.numpy())
            if self.every and (list(self.losses).index(point) + c) % self.every == 0:
                self._loop(setup, point, c, prefixes)
            self.shares += [share_before(prefix, _scan._family(setup, point)) for prefix in prefixes]
            self.outside += time.process_time() - start
            yield index, done

    def _loop(self, setup: Any, point: Any, c: int, prefixes: Sequence[Any]) -> None:
        start = time.process_time()
        small = _scan._cut(setup, point)
        cut = time.process_time()
        found = losses_of(small, [prefix.batch for prefix in prefixes])
        self.seconds[point, c] = time.process_time() - cut
        self.cutting[point] = cut - start
        self.apart = max(self.apart, float(np.abs(found - self.losses[point][c]).max()))

    def loop(self, n_images: int) -> float:
        """Seconds of the loop over so many images per point."""
        spent, images = dict.fromkeys(self.cutting, 0.0), dict.fromkeys(self.cutting, 0)
        for (point, c), seconds in self.seconds.items():
            spent[point] += seconds
            images[point] += len(self.losses[point][c])
        return sum(self.cutting[p] + n_images * spent[p] / images[p] for p in spent)


def share_before(prefix: Any, family: Any) -> float:
    """Share of the dense model's time that lies before a family of cuts parts from it."""
    if prefix.recording is None:
        return 0.0
    seconds = [step.seconds for step in prefix.recording.steps]
    return float(sum(seconds[: prefix.parts.get(family, 0)]) / sum(seconds))


# Plans and intervals


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ground:
    """What all measurements of a network share."""

    case: Case
    groups: Any
    scores: Any

    def plan(self, curves: Curves) -> Any:
        """Half of the MACs."""
        budget = sc.Budget(macs=0.5)
        return sc.plan(self.groups, self.scores, budget, allocator=sc.allocators.greedy(), curves=curves)

    def fresh(self, plan: Any) -> NDArray[np.float64]:
        """[n]: losses of what a plan leaves, on images that nobody has seen; nothing retrained."""
        small, _ = sc.cut(self.case.model, self.groups, plan, verify=False)
        return losses_of(small, self.case.fresh)


def curves_of(like: Curves, increases: NDArray[np.float64], index: NDArray[np.int64]) -> Curves:
    """The curves that the loop would draw from some of the images.

    Args:
        like: curves of the same points.  increases: [k, n], of the loss.  index: of the images.
    """
    keys = list(dict.fromkeys((p.group, p.removed, p.n_removed, p.also) for p in like.points))
    points = []
    for (group, removed, n_removed, also), increase in zip(keys, increases, strict=True):
        d = increase[index]
        n = len(d)
        points.append(
            Point(
                group=group, removed=removed, n_removed=n_removed, also=also, fold=0, n=n, weight=float(n),
                weight_sq=float(n), loss=float(d.sum()), loss_sq=float((d * d).sum()), drop=None, drop_sq=None,
                base_loss=0.0, base_correct=None,
            )
        )  # fmt: skip
    return dataclasses.replace(like, points=tuple(points), n_folds=1)


def means(curves: Curves) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[k] mean increases of the loss, and their standard errors."""
    by_point: dict[Any, list[Point]] = {}
    for point in curves.points:
        by_point.setdefault((point.group, point.removed), []).append(point)
    pairs = [_curves.mean_and_error(points) for points in by_point.values()]
    return np.array([m for m, _ in pairs]), np.array([e for _, e in pairs])


def covered(mean: NDArray[np.float64], error: NDArray[np.float64], fresh: NDArray[np.float64]) -> float:
    """Share of points whose interval covers the fresh value, whose own error is allowed for.

    Args:
        mean, error: [k].  fresh: [k, n] increases on other images.
    """
    own = fresh.std(1, ddof=1) / math.sqrt(fresh.shape[1])
    return float((np.abs(mean - fresh.mean(1)) <= Z * np.hypot(error, own)).mean())


def stopped(increases: NDArray[np.float64], ends: Sequence[int], precision: Precision) -> tuple[float, float]:
    """(mean, error) of one point whose images come in this order, under the scan's own rule. Images: [n]."""
    for end in ends:
        d = increases[:end]
        sums = {"n": end, "weight": end, "weight_sq": end, "loss": float(d.sum()), "loss_sq": float((d * d).sum())}
        if end == ends[-1] or _scan._known(precision, [sums], len(increases)):  # type: ignore[list-item]
            break
    return float(d.mean()), float(d.std(ddof=1)) / math.sqrt(end)


def coverage(
    search: NDArray[np.float64], fresh: NDArray[np.float64], ends: Sequence[int], precision: Precision, n_splits: int
) -> tuple[float, float]:
    """Mean coverage in random splits of all images into as many to search with and as many fresh ones.

    In a single split all points meet the same images, and are covered or missed together.

    Args:
        search, fresh: [k, n].

    Returns:
        Of intervals from all search images, and of those from points that stop.
    """
    everything, generator = np.concatenate([search, fresh], 1), np.random.default_rng(0)
    whole, stops = [], []
    for _ in range(n_splits):
        mixed = everything[:, generator.permutation(everything.shape[1])]
        mine, other = mixed[:, : search.shape[1]], mixed[:, search.shape[1] :]
        whole.append(covered(mine.mean(1), mine.std(1, ddof=1) / math.sqrt(mine.shape[1]), other))
        mean, error = zip(*(stopped(point, ends, precision) for point in mine), strict=True)
        stops.append(covered(np.array(mean), np.array(error), other))
    return float(np.mean(whole)), float(np.mean(stops))


# One network


def measure(
    case: Case,
    *,
    precision: Precision,
    memory: str,
    every: int,
    n_splits: int,
    n_tenths: int,
    keep: Path | None,
) -> Result:
    """Everything about one network."""
    task = sc.tasks.classification()
    groups = sc.couple(sc.trace(case.model, case.example))
    scores = sc.score(case.model, groups, case.search, task, criterion=sc.criteria.obd())
    ground = Ground(case=case, groups=groups, scores=scores)

    def scan(batches: Batches, beside: Beside, how: Precision | None) -> tuple[Curves, float]:
        start = time.process_time()
        curves = sc.scan(case.model, groups, scores, batches, task, memory=memory, precision=how, executor=beside)
        return curves, time.process_time() - start - beside.outside

    say(f"{case.name}: the loop beside the scan that shares")
    shared, stopping, unseen = Beside(every=every), Beside(every=every), Beside(every=0)
    whole, reuse = scan(case.search, shared, None)
    points = [
        counts for by_fraction in _scan.targets(groups, _scan.REMOVED).values() for counts in by_fraction.values()
    ]
    n = sum(len(part) for part in shared.losses[points[0]])
    naive = shared.loop(n)
    say(f"{case.name}: loop {naive:.1f} s, scan that shares {reuse:.1f} s; now points stop")
    quick, fast = scan(case.search, stopping, precision)
    # The loop has done some of the work twice; what differs is the load of the machine.
    both = [key for key in stopping.seconds if key in shared.seconds]
    load = sum(stopping.seconds[key] for key in both) / sum(shared.seconds[key] for key in both)
    say(f"{case.name}: scan that stops {fast:.1f} s, at {load:.2f} of the load; now the images that nobody has seen")
    scan(case.unseen, unseen, None)

    dense, dense_fresh = losses_of(case.model, case.search), losses_of(case.model, case.fresh)
    search = np.stack([np.concatenate(shared.losses[k]) for k in points]) - dense
    fresh = np.stack([np.concatenate(unseen.losses[k]) for k in points]) - dense_fresh[: n_images(unseen, points[0])]
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        np.savez(keep / f"{case.name}.npz", search=search, fresh=fresh)
    generator = np.random.default_rng(0)
    plans = ground.plan(curves_of(whole, search, np.arange(n))), ground.plan(quick)
    say(f"{case.name}: plans keep {[len(k) for k in plans[0].kept]} and {[len(k) for k in plans[1].kept]}")

    def loss_of_plan_from(index: NDArray[np.int64]) -> float:
        return float(ground.fresh(ground.plan(curves_of(whole, search, index))).mean())

    tenths = [loss_of_plan_from(generator.permutation(n)[: int(TENTH * n)]) for _ in range(n_tenths)]
    again = [loss_of_plan_from(generator.integers(0, n, n)) for _ in range(N_AGAIN)]
    losses = ground.fresh(plans[0])
    difference = ground.fresh(plans[1]) - losses
    ends = np.cumsum([len(part) for part in shared.losses[points[0]]]).tolist()
    assert stopping.precision is not None
    whole_coverage, quick_coverage = coverage(search, fresh, ends, stopping.precision, n_splits)
    used = [n_images(stopping, k) for k in points]
    return Result(
        network=case.name,
        n_points=len(points),
        n_search=n,
        n_fresh=len(losses),
        naive=naive,
        reuse=reuse,
        fast=fast,
        speedup_reuse=naive / reuse,
        bound=1 / (1 - float(np.mean(shared.shares))),
        stopping=n / float(np.mean(used)),
        speedup=naive * load / fast,
        images=float(np.mean(used)),
        apart=max(shared.apart, stopping.apart),
        coverage=whole_coverage,
        coverage_fast=quick_coverage,
        coverage_here=(covered(*means(whole), fresh), covered(*means(quick), fresh)),
        plan_dense=float(dense_fresh.mean()),
        plan_naive=float(losses.mean()),
        plan_fast=float(losses.mean() + difference.mean()),
        behind=float(difference.mean()),
        error=float(difference.std(ddof=1) / math.sqrt(len(difference))),
        plan_again=(float(np.mean(again)), float(np.std(again, ddof=1))),
        plan_tenth=float(np.mean(tenths)),
        tenth_worst=float(np.max(tenths)),
    )


def n_images(beside: Beside, point: Any) -> int:
    """Images that a point was measured on."""
    return sum(len(part) for part in beside.losses[point])


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def show(r: Result) -> None:
    """One network."""
    print(f"\n{r.network}: {r.n_points} points, {r.n_search} search images, {r.n_fresh} fresh ones")
    print(f"  loop                   {r.naive:9.1f} s")
    print(f"  + sharing              {r.reuse:9.1f} s   {r.speedup_reuse:5.2f} times faster (at most {r.bound:.2f})")
    print(f"  + stopping             {r.fast:9.1f} s   {r.speedup:5.2f} times faster; {r.images:.0f} images per point")
    print(f"  stopping alone saves a factor of {r.stopping:.2f}; losses of the two differ by {r.apart:.1e} at most")
    print(f"  95 % intervals cover {r.coverage:.1%} of the points, {r.coverage_fast:.1%} where points stop")
    print(f"  (in this split {r.coverage_here[0]:.1%} and {r.coverage_here[1]:.1%})")
    print(f"  loss of the plans at half the MACs on fresh images (dense {r.plan_dense:.4f}):")
    print(f"    loop {r.plan_naive:.4f}, scan {r.plan_fast:.4f}, difference {r.behind:+.4f} +- {r.error:.4f}")
    print(
        f"    loop on images drawn again {r.plan_again[0]:.4f} +- {r.plan_again[1]:.4f} (standard deviation of plans)"
    )
    print(f"    loop on a tenth of the images {r.plan_tenth:.4f}, the worst one {r.tenth_worst:.4f}")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["resnet20", "cnn", "lstm", "transformer"])
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--absolute", type=float, default=0.02, help="standard error that is good enough, nats")
    parser.add_argument("--relative", type=float, default=0.1, help="the same, as a fraction of the increase")
    parser.add_argument("--ceiling", type=float, default=0.25, help="increase beyond which no plan cuts, nats")
    parser.add_argument("--every", type=int, default=1, help="the loop does every so many-th piece of its work")
    parser.add_argument("--unseen", type=int, default=10000, help="fresh images for the intervals; plans meet 10,000")
    parser.add_argument("--keep", type=Path, help="folder for the losses of single images (differences to dense)")
    parser.add_argument("--quick", action="store_true", help="fewer images, shorter training, fewer splits")
    parser.add_argument("--json", action="store_true", help="the results as JSON on the last line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    precision = Precision(absolute=args.absolute, relative=args.relative, ceiling=args.ceiling)
    results = []
    for name in args.networks:
        if name == "resnet20":
            folder = data_folder()
            if isinstance(folder, str):
                print(f"\nresnet20 left out: {folder}", file=sys.stderr)
                continue
            case = resnet20(folder, args.unseen, quick=args.quick)
        else:
            case = digits(name, quick=args.quick)
        n_splits, n_tenths = (10, 2) if args.quick else (100, 5)
        results.append(
            measure(
                case,
                precision=precision,
                memory=args.memory,
                every=args.every,
                n_splits=n_splits,
                n_tenths=n_tenths,
                keep=args.keep,
            )
        )
        show(results[-1])
    if args.json:
        print(json.dumps([dataclasses.asdict(r) for r in results]))


if __name__ == "__main__":
    main()
