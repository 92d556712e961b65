"""How often is a certificate wrong, how much can it prove, and what does it cost?

    python benchmarks/certificate.py             # everything simulated: about ten minutes on one core
    python benchmarks/certificate.py --quick     # a few cells, 500 runs: does it run?
    python benchmarks/certificate.py --real      # trained networks as well (CIFAR needs SECATEUR_DATA)
    python benchmarks/certificate.py --json      # the results as JSON on the last line as well

Validity: independent draws from populations whose drop *is* the margin, or worse; whoever names such a candidate is
wrong. At least 2,000 runs per cell; the bar is delta + 3.9 standard errors (0.069 at 5 %, 2,000 runs), so that one
right cell in 20,000 would fail it. The inner tests are the library's own functions on arrays of runs; what is
looped here and not there is only the draw. Some cells call `certify` itself, models and loaders included.

Index conventions: r run, n unit, k candidate on the path.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import _betting, _exact
from secateur._certify import certify, explain
from secateur.certifiers import betting, exact
from secateur.schema.certificate import Drops
from secateur.schema.task import Task

Floats = NDArray[np.float64]
ALPHA, DELTA = 0.01, 0.05
# Memory for one block of simulated sequences: runs are drawn in parts of about so many numbers.
BLOCK = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One simulated situation and how often the certificate was wrong in it."""

    kind: str
    test: str
    n: int
    drop: float
    discordance: float
    runs: int
    wrong: int
    detail: str = ""

    @property
    def rate(self) -> float:
        """Share of runs with a false certificate."""
        return self.wrong / self.runs

    @property
    def bar(self) -> float:
        """Delta + 3.9 standard errors."""
        return DELTA + 3.9 * math.sqrt(DELTA * (1 - DELTA) / self.runs)


# ------------------------------------------------------------------------------------------- draws
def trinomial(rng: np.random.Generator, runs: int, n: int, drop: float, discordance: float) -> Floats:
    """[r, n]: 1 = lost with probability (discordance + drop) / 2, -1 = gained, 0 = no difference."""
    u = rng.random((runs, n), dtype=np.float32)
    lost, gained = (discordance + drop) / 2, (discordance - drop) / 2
    return (u < lost).astype(np.float64) - (u > 1 - gained)


def blocks(runs: int, n: int) -> Iterator[int]:
    """Runs in parts that fit the memory."""
    size = max(1, BLOCK // n)
    while runs > 0:
        yield min(size, runs)
        runs -= size


def bet(drops: Floats, margin: float = ALPHA, population: int | None = None) -> NDArray[np.int64]:
    """[r]: units used until certified, 0 = never; looked at after every unit: the most that stopping at will can do."""
    n = drops.shape[-1]
    stakes = _betting.bets(drops, None, margin=margin, level=DELTA, planned=n)
    wealth = _betting.log_wealth(drops, None, stakes, margin, population=population)
    hit = wealth >= math.log(1 / DELTA)
    return np.asarray(np.where(hit.any(-1), hit.argmax(-1) + 1, 0))


def exactly(losses: NDArray[np.int64], gains: NDArray[np.int64], n: int, level: float = DELTA) -> NDArray[np.bool_]:
    """[...]: certified by the exact test, from counts."""
    return np.asarray(losses <= _exact.region(n, ALPHA, level).most[gains])


# ------------------------------------------------------------------------------------------- validity
def single(rng: np.random.Generator, runs: int, quick: bool) -> Iterator[Cell]:
    """One candidate: the exact test at n, and the betting test stopped whenever it likes."""
    sizes = (200, 2000) if quick else (200, 500, 1000, 2000, 5000, 10000)
    for n in sizes:
        for discordance in (0.01, 0.02, 0.05, 0.1, 0.2):
            for drop in (ALPHA, 1.5 * ALPHA) if discordance > ALPHA else (ALPHA,):
                more = 10 * runs  # counts are cheap
                lost, gained = (discordance + drop) / 2, (discordance - drop) / 2
                draws = rng.multinomial(n, [lost, gained, 1 - lost - gained], size=more)
                wrong = int(exactly(draws[:, 0], draws[:, 1], n).sum())
                yield Cell(kind="one", test="exact", n=n, drop=drop, discordance=discordance, runs=more, wrong=wrong)
                wrong = sum(
                    int((bet(trinomial(rng, part, n, drop, discordance)) > 0).sum()) for part in blocks(runs, n)
                )
                yield Cell(
                    kind="one, any stop",
                    test="betting",
                    n=n,
                    drop=drop,
                    discordance=discordance,
                    runs=runs,
                    wrong=wrong,
                )


def grouped(rng: np.random.Generator, runs: int, quick: bool) -> Iterator[Cell]:
    """Groups of 5 or 20 examples that share their fate to four fifths; units are group means."""
    for n in (1000,) if quick else (200, 1000, 5000, 10000):
        for size in (5, 20):
            units = n // size
            for discordance in (0.02, 0.1, 0.2):
                wrong = naive = 0
                for part in blocks(runs, n):
                    common = trinomial(rng, part, units, ALPHA, discordance)[:, :, None]
                    own = trinomial(rng, part, n, ALPHA, discordance).reshape(part, units, size)
                    drops = np.where(rng.random((part, units, size)) < 0.8, common, own)
                    wrong += int((bet(drops.mean(-1)) > 0).sum())
                    flat = drops.reshape(part, -1)
                    naive += int(exactly((flat == 1).sum(-1), (flat == -1).sum(-1), n).sum())
                detail = f"groups of {size}; if they were ignored: {naive / runs:.3f}"
                yield Cell(
                    kind="groups",
                    test="betting",
                    n=n,
                    drop=ALPHA,
                    discordance=discordance,
                    runs=runs,
                    wrong=wrong,
                    detail=detail,
                )


def paths(rng: np.random.Generator, runs: int, quick: bool) -> Iterator[Cell]:
    """Paths of candidates on the same data; wrong = any certified candidate has a drop of alpha or more."""
    shapes: dict[str, Callable[[int], Floats]] = {
        "all at alpha": lambda k: np.full(k, ALPHA),
        "slowly up to 1.5 alpha": lambda k: np.linspace(0, 1.5 * ALPHA, k) if k > 1 else np.full(1, ALPHA),
        "good and bad in turn": lambda k: np.where(np.arange(k) % 2 == 0, 0.0, ALPHA),
    }
    for n, lengths in ((2000, (5,)),) if quick else ((1000, (1, 5, 20)), (5000, (1, 5)), (2500, (20,))):
        for length in lengths:
            for shape, drops_of in shapes.items():
                for discordance in (0.02, 0.1):
                    true = drops_of(length)
                    counts = {"exact": 0, "betting": 0}
                    for part in blocks(runs, n * length):
                        # One uniform per example, shared along the path as similar models share their mistakes, each
                        # candidate with a tenth of its own.
                        u = rng.random((part, 1, n))
                        u = np.where(rng.random((part, length, n)) < 0.1, rng.random((part, length, n)), u)
                        lost = ((discordance + true) / 2)[None, :, None]
                        gained = ((discordance - true) / 2)[None, :, None]
                        drops = (u < lost).astype(np.float64) - (u > 1 - gained)
                        passed = {
                            "exact": exactly((drops == 1).sum(-1), (drops == -1).sum(-1), n),
                            "betting": bet(drops) > 0,
                        }
                        for name, ok in passed.items():
                            reached = np.cumprod(ok, axis=1).astype(bool)
                            counts[name] += int((reached & (true >= ALPHA)[None]).any(1).sum())
                    for name, wrong in counts.items():
                        yield Cell(
                            kind=f"path of {length}",
                            test=name,
                            n=n,
                            drop=float(true.max()),
                            discordance=discordance,
                            runs=runs,
                            wrong=wrong,
                            detail=shape,
                        )


def populations(rng: np.random.Generator, runs: int, quick: bool) -> Iterator[Cell]:
    """A finite population whose drop is just at alpha, in random order, stopped at will (but before its end)."""
    for n in (1000,) if quick else (200, 1000, 5000):
        for discordance in (0.02, 0.1):
            lost = round(n * (discordance + ALPHA) / 2)
            gained = lost - math.ceil(n * ALPHA)
            if gained < 0:
                continue
            base = np.zeros(n)
            base[:lost], base[lost : lost + gained] = 1, -1
            wrong = 0
            for part in blocks(runs, n):
                order = rng.permuted(np.broadcast_to(base, (part, n)), axis=1)
                wrong += int((bet(order, population=n) > 0).sum())
            yield Cell(
                kind="population", test="betting", n=n, drop=ALPHA, discordance=discordance, runs=runs, wrong=wrong
            )


def fractions(rng: np.random.Generator, runs: int, quick: bool) -> Iterator[Cell]:
    """Drops in [-1, 1] of other shapes: many small ones (clipped losses), and rare total ones."""
    for n in (1000,) if quick else (200, 2000, 10000):
        for shape in ("many small", "skewed to loss", "skewed to gain"):
            wrong = 0
            for part in blocks(runs, n):
                u = rng.random((part, n))
                drops = {
                    "many small": 0.1 * (u - 0.5) + ALPHA,
                    "skewed to loss": np.where(u < 0.02, 1.0, (ALPHA - 0.02) / 0.98),
                    "skewed to gain": np.where(u < 0.02, -1.0, (ALPHA + 0.02) / 0.98),
                }[shape]
                wrong += int((bet(drops) > 0).sum())
            yield Cell(
                kind="fractions", test="betting", n=n, drop=ALPHA, discordance=1.0, runs=runs, wrong=wrong, detail=shape
            )


def series(rng: np.random.Generator, runs: int, quick: bool) -> Iterator[Cell]:
    """Try again after a failure, on fresh data, at delta / (k (k + 1)), up to ten times: wrong if any try certifies."""
    for n in (500,) if quick else (500, 5000):
        for discordance in (0.02, 0.1):
            lost, gained = (discordance + ALPHA) / 2, (discordance - ALPHA) / 2
            ever, careless = np.zeros(runs, dtype=bool), np.zeros(runs, dtype=bool)
            for k in range(1, 11):
                draws = rng.multinomial(n, [lost, gained, 1 - lost - gained], size=runs)
                ever |= exactly(draws[:, 0], draws[:, 1], n, DELTA / (k * (k + 1)))
                careless |= exactly(draws[:, 0], draws[:, 1], n)
            yield Cell(
                kind="ten tries",
                test="exact",
                n=n,
                drop=ALPHA,
                discordance=discordance,
                runs=runs,
                wrong=int(ever.sum()),
                detail=f"at the full delta each time: {careless.mean():.3f}",
            )


# The whole verb, models and loaders included


class Answers(nn.Module):
    """A model that is right on example i if and only if `right[i]` is 1."""

    def __init__(self, right: Tensor) -> None:
        super().__init__()
        self.right = nn.Parameter(right.float())

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1] example numbers -> [n, 2] logits."""
        score = self.right[x[:, 0].long()]
        return torch.stack([score, 1 - score], dim=1)


def answers_task(groups: Callable[[Any], Sequence[object]] | None = None) -> Task:
    """Classification of (numbers, labels), all labels 0."""
    return Task(
        forward=lambda model, batch: model(batch[0]),
        losses=lambda out, batch: F.cross_entropy(out, batch[1], reduction="none"),
        correct=lambda out, batch: (out.argmax(1) == batch[1]).double(),
        groups=groups,
        name="answers",
    )


def numbered(n: int, batch_size: int = 250) -> list[tuple[Tensor, Tensor]]:
    """Batches of example numbers and labels."""
    x, y = torch.arange(n)[:, None].float(), torch.zeros(n, dtype=torch.long)
    return [(x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, n, batch_size)]


def whole_verb(rng: np.random.Generator, runs: int, quick: bool) -> Iterator[Cell]:
    """`certify` on models whose answers are drawn: a path of three, all losing the margin; single or in groups."""
    n, margin, discordance, trials = 300, 0.05, 0.15, 50 if quick else runs
    modes: dict[str, dict[str, Any]] = {
        "exact": {"test": exact()},
        "betting, stops early": {"test": betting(), "random_order": True},
        "betting, order unknown": {"test": betting()},
        "groups of five": {},
    }
    for name, options in modes.items():
        wrong, size = 0, 5 if name.startswith("groups") else 1
        groups = None if size == 1 else lambda batch: (batch[0][:, 0].long() // 5).tolist()
        for run in range(trials):
            u = rng.random((1, n // size)).repeat(size, axis=1)
            u = np.where(rng.random((3, n)) < 0.2, rng.random((3, n)), u)
            lost, gained = (discordance + margin) / 2, (discordance - margin) / 2
            # Half of the examples can be lost, the other half gained.
            dense = np.where(rng.random(n // size) < 0.5, 1.0, 0.0).repeat(size)
            p_lost, p_gained = 2 * lost, 2 * gained
            pruned = np.where(dense == 1, u >= p_lost, u < p_gained).astype(float)
            made = certify(
                Answers(torch.tensor(dense)),
                [Answers(torch.tensor(p)) for p in pruned],
                numbered(n, n // 2),
                answers_task(groups),
                max_drop=margin,
                seed=run,
                **options,
            )
            wrong += made.certified is not None
        yield Cell(
            kind="certify()",
            test=name,
            n=n,
            drop=margin,
            discordance=discordance,
            runs=trials,
            wrong=wrong,
            detail="path of 3, margin 5 points",
        )


# ------------------------------------------------------------------------------------------- power and cost
def power_table(quick: bool) -> list[dict[str, float]]:
    """Exact power of the exact test, and the examples it needs for a power of 0.8 and 0.95."""
    rows = []
    for discordance in (0.02,) if quick else (0.02, 0.03, 0.05, 0.1):
        for drop in (0.0,) if quick else (0.0, 0.001, 0.002, 0.003, 0.005):
            row = {"drop": drop, "discordance": discordance}
            for n in (1000, 2000) if quick else (1000, 2000, 5000, 10000, 20000):
                row[f"n={n}"] = _exact.power(_exact.region(n, ALPHA, DELTA), drop, discordance)
            losses, gains = (discordance + drop) / 2, (discordance - drop) / 2
            row["need 0.80"] = _exact.required(losses, gains, ALPHA, DELTA, 0.8)
            row["need 0.95"] = _exact.required(losses, gains, ALPHA, DELTA, 0.95)
            rows.append(row)
    return rows


def betting_table(rng: np.random.Generator, runs: int, quick: bool) -> list[dict[str, float]]:
    """Power of the betting test by simulation, and the mean number of examples it looks at."""
    rows = []
    for discordance in (0.02,) if quick else (0.02, 0.05, 0.1):
        for drop in (0.0,) if quick else (0.0, 0.002, 0.005):
            for n in (2000,) if quick else (2000, 5000, 10000):
                used = np.concatenate([bet(trinomial(rng, part, n, drop, discordance)) for part in blocks(runs, n)])
                certified = used > 0
                rows.append(
                    {
                        "drop": drop,
                        "discordance": discordance,
                        "n": n,
                        "power": float(certified.mean()),
                        "exact": _exact.power(_exact.region(n, ALPHA, DELTA), drop, discordance),
                        "mean examples": float(np.where(certified, used, n).mean()),
                    }
                )
    return rows


def timings() -> dict[str, float]:
    """CPU seconds for one region at n = 10,000, for a test after it, and for the limit."""
    _exact.region.cache_clear()
    start = time.process_time()
    _exact.region(10_000, ALPHA, DELTA)
    build = time.process_time() - start
    values = np.zeros(10_000)
    values[:90], values[90:190] = 1, -1
    drops = Drops(values=values, planned=10_000)
    spent = {}
    for name, test in (("exact", exact()), ("betting", betting())):
        start = time.process_time()
        for _ in range(10):
            test(drops, margin=ALPHA, level=DELTA)
        spent[name] = (time.process_time() - start) / 10
    start = time.process_time()
    _exact.upper_limit(10_000, 90, 100, DELTA)
    limit = time.process_time() - start
    return {"region": build, "exact test": spent["exact"], "betting test": spent["betting"], "exact limit": limit}


# ------------------------------------------------------------------------------------------- trained networks
@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What 200 random splits of one large labelled set showed for one path of trained networks."""

    name: str
    test: str
    n_held_out: int
    n_rest: int
    margin: float
    splits: int
    certified: int
    wrong_on_rest: int
    wrong_on_all: int
    candidates: str
    mean_index: float


def random_splits(
    name: str, dense: NDArray[Any], pruned: NDArray[Any], *, n_held_out: int, margin: float, splits: int, seed: int
) -> Iterator[Split]:
    """Certify on a random part, look at the drop on the rest, and on everything.

    Args:
        dense: [n] in {0, 1}: right or wrong.  pruned: [k, n]: the path, dense to sparse.
    """
    n = len(dense)
    differences = (dense[None] - pruned).astype(np.float64)
    true = differences.mean(1)
    for test in ("exact", "betting"):
        rng = np.random.default_rng(seed)
        last, rest_drop, wrong_all = [], [], 0
        for _ in range(splits):
            order = rng.permutation(n)
            part, rest = differences[:, order[:n_held_out]], differences[:, order[n_held_out:]]
            if test == "exact":
                most = _exact.region(n_held_out, margin, DELTA).most
                ok = (part == 1).sum(1) <= most[(part == -1).sum(1)]
            else:
                # As the verb does after a full pass: the observed drop has to be within the margin, too.
                ok = (bet(part, margin) > 0) & (part.mean(1) <= margin)
            count = int(np.cumprod(ok).sum())
            last.append(count)
            if count:
                rest_drop.append(bool((rest.mean(1)[:count] > margin).any()))
                wrong_all += bool((true[:count] > margin).any())
        yield Split(
            name=name,
            test=test,
            n_held_out=n_held_out,
            n_rest=n - n_held_out,
            margin=margin,
            splits=splits,
            certified=len(rest_drop),
            wrong_on_rest=sum(rest_drop),
            wrong_on_all=wrong_all,
            candidates=" ".join(f"{100 * d:.2f}" for d in true),
            mean_index=float(np.mean(last)),
        )


def real(names: Sequence[str], splits: int, seed: int) -> Iterator[Split]:
    """Paths made by the library from trained networks: see `certificate_paths.py`."""
    import certificate_paths

    for path in certificate_paths.paths(names, seed=seed):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(path.dense))[: path.n_held_out])
        made = path.certify(chosen)
        differences = (path.dense - path.pruned)[:, chosen]
        for tested, row in zip(made.tested, differences, strict=False):
            # Merged copies aside, the verb finds what the arrays say.
            gap = abs((tested.losses or 0) - (row == 1).sum()) + abs((tested.gains or 0) - (row == -1).sum())
            assert gap <= 2 * made.held_out.n_duplicates, (path.name, tested.name, gap)
        print(f"{path.name}: {explain(made)}", flush=True)
        for margin in path.margins:
            yield from random_splits(
                path.name, path.dense, path.pruned, n_held_out=path.n_held_out, margin=margin, splits=splits, seed=seed
            )


# ------------------------------------------------------------------------------------------- output
def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; exit code 1 if a cell is over its bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few cells, few runs")
    parser.add_argument("--real", action="store_true", help="trained networks as well")
    parser.add_argument("--only-real", action="store_true", help="trained networks only")
    parser.add_argument("--paths", nargs="+", default=["cnn", "lstm", "transformer", "cifar"], help="for --real")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--json", action="store_true", help="the results as JSON on the last line")
    parser.add_argument("--runs", type=int, default=None, help="runs per cell (default 2,000; quick 500)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    runs, quick = options.runs or (500 if options.quick else 2000), bool(options.quick)
    rng = np.random.default_rng(options.seed)
    print(f"python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, seed {options.seed}")
    found: dict[str, Any] = {}
    bad: list[Cell] = []
    if not options.only_real:
        cells: list[Cell] = []
        for family in (single, grouped, paths, populations, fractions, series, whole_verb):
            start = time.perf_counter()
            made = list(family(rng, runs, quick))
            worst = max(made, key=lambda c: c.rate / c.bar)
            print(
                f"{family.__name__:12s} {len(made):3d} cells, {time.perf_counter() - start:6.1f} s, worst rate "
                f"{worst.rate:.4f} (bar {worst.bar:.4f}): {worst.kind}, {worst.test}, n {worst.n}, "
                f"drop {worst.drop:g}, discordance {worst.discordance:g} {worst.detail}",
                flush=True,
            )
            cells += made
        bad = [c for c in cells if c.rate > c.bar]
        print(f"\n{len(cells)} cells, {len(bad)} over their bar of delta + 3.9 standard errors")
        for c in cells:
            print(
                f"  {c.kind:14s} {c.test:34s} n {c.n:6d}  drop {c.drop:.3f}  discordance {c.discordance:.2f}  "
                f"{c.wrong:5d} / {c.runs:6d} = {c.rate:.4f}  {c.detail}"
            )
        powers = power_table(quick)
        print(f"\nExact test, power at alpha {ALPHA}, delta {DELTA}")
        for row in powers:
            print(
                "  "
                + "  ".join(
                    f"{k} {v:g}" if v >= 1 or k in ("drop", "discordance") else f"{k} {v:.3f}" for k, v in row.items()
                )
            )
        stops = betting_table(rng, min(runs, 1000), quick)
        print("\nBetting test: power, the exact test's at the same n, mean examples looked at")
        for row in stops:
            print("  " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()))
        spent = timings()
        print("\nCPU seconds at n = 10,000: " + ", ".join(f"{k} {v:.4f}" for k, v in spent.items()))
        found |= {"cells": [asdict(c) for c in cells], "power": powers, "betting": stops, "seconds": spent}
    wrong_splits: list[Split] = []
    if options.real or options.only_real:
        made_splits = []
        for split in real(options.paths, 200, options.seed):
            print(
                f"{split.name}: {split.test}, {split.splits} splits, {split.n_held_out} held out of "
                f"{split.n_held_out + split.n_rest}, margin {split.margin:g}: certified {split.certified}, "
                f"exceeded on the rest {split.wrong_on_rest}, on everything {split.wrong_on_all}; mean candidates "
                f"certified {split.mean_index:.2f} of drops (points) {split.candidates}",
                flush=True,
            )
            made_splits.append(split)
        limit = DELTA + 3.9 * math.sqrt(DELTA * (1 - DELTA) / 200)
        wrong_splits = [
            s for s in made_splits if s.wrong_on_rest > limit * s.splits or s.wrong_on_all > limit * s.splits
        ]
        found["splits"] = [asdict(s) for s in made_splits]
    if options.json:
        print(json.dumps(found))
    return 1 if bad or wrong_splits else 0


if __name__ == "__main__":
    sys.exit(main())
