# ruff: noqa: E402  the number of threads is fixed before torch is imported
"""On a GPU: are the groups of a model those found on the CPU, and is its cut equal to the masked oracle there?

Kernels of a GPU are other operations than those of a CPU, and where nothing is known about one all that it touches is
frozen. Every model is recorded and coupled on both, and cut and verified on the GPU.

    make bench-zoo-cuda ARGS="--every 3 --workers 8"    each third model of all sets; needs a GPU
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import argparse
import collections
import copy
import importlib
import json
import multiprocessing
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

import zoo_models
from zoo_run import ROOT
from zoo_trial import prepare, random_plan, run, said

GPU = "cuda"


def there(item: Any) -> Any:
    """Inputs on the GPU."""
    from secateur._replay import map_tensors

    return map_tensors(item, lambda t: t.to(GPU))


def units(groups: Any) -> set[Any]:
    """What goes together. A fused kernel may read its operands in another order, and names follow that."""

    def one(group: Any) -> tuple[Any, ...]:
        members = frozenset((m.param, m.axis, m.units) for m in group.members)
        return group.kind, group.inexact_because, group.gated, group.least, members

    return {one(group) for group in groups}


def shown(unit: Any) -> str:
    """Kind, properties, and which axes."""
    return f"{unit[:4]} {sorted(member[:2] for member in unit[4])}"


def trial(set_name: str, name: str, seed: int) -> dict[str, Any]:
    """What happened to one model: `ok`, `other groups`, `mismatch`, `error`, or `unmovable`: it does not run there."""
    from secateur._couple import couple
    from secateur._cut import cut
    from secateur._trace import trace
    from secateur.errors import CutMismatch, NothingToCut

    row: dict[str, Any] = {"set": set_name, "model": name}
    entry = next(entry for entry in zoo_models.entries(set_name) if entry.name == name)
    try:
        model, inputs = prepare(entry, seed)
    except Exception as error:  # noqa: BLE001  the model itself does not run here
        return row | {"outcome": "unbuilt", "message": said(error)}
    try:
        moved, given = copy.deepcopy(model).to(GPU), there(inputs)
        run(moved, given)
    except Exception as error:  # noqa: BLE001  it makes tensors of its own on the CPU, for example
        return row | {"outcome": "unmovable", "message": said(error)}
    try:
        expected = couple(trace(model, inputs))
    except Exception as error:  # noqa: BLE001  not of the GPU's making
        return row | {"outcome": "error on the CPU", "message": said(error)}
    try:
        found = couple(trace(moved, given))
        here, gpu = units(expected.groups), units(found.groups)
        same = here == gpu and len(found.equations) == len(expected.equations)
        _, receipt = cut(moved, found, random_plan(found, seed))
    except NothingToCut as error:
        return row | {"outcome": "ok" if same else "other groups", "message": said(error)}
    except CutMismatch as error:
        return row | {"outcome": "mismatch", "message": said(error)}
    except Exception as error:  # noqa: BLE001  a fault of ours, to be counted and not to stop the run
        return row | {"outcome": "error", "message": said(error)}
    row["error"] = receipt.verification.error if receipt.verification is not None else None
    if not same:
        told = [f"only on the CPU: {shown(g)}" for g in here - gpu] + [
            f"only on the GPU: {shown(g)}" for g in gpu - here
        ]
        told += sorted({f.reason for f in found.frozen} - {f.reason for f in expected.frozen})
        return row | {"outcome": "other groups", "message": "; ".join(told)[:2000]}
    return row | {"outcome": "ok"}


def start() -> None:
    """In a worker."""
    sys.path[:0] = [p for p in (str(ROOT / "src"), str(ROOT / "tests")) if p not in sys.path]
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    importlib.import_module("helpers.compiled_ops").ensure_torchvision()
    torch.zeros(1, device=GPU)


def main() -> int:
    """Prints what differs, and a count; returns 1 where a cut was wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", choices=zoo_models.SETS, help="repeatable; default: all")
    parser.add_argument("--every", type=int, default=1, help="each n-th model")
    parser.add_argument("--workers", type=int, default=4, help="processes")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop then; what is left is told")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "zoo_cuda.jsonl", help="a line a model")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no GPU", file=sys.stderr)
        return 2
    start()
    began, counts = time.monotonic(), collections.Counter[str]()
    work = [(name, entry.name, 0) for name in options.set or zoo_models.SETS for entry in zoo_models.entries(name)]
    work = work[:: options.every]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {len(work)} models", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, start) as pool, options.out.open("w") as file:
        futures = [pool.submit(trial, *item) for item in work]
        try:
            for future in as_completed(futures, timeout=options.seconds):
                row = future.result()
                counts[row["outcome"]] += 1
                file.write(json.dumps(row) + "\n")
                file.flush()
                if row["outcome"] != "ok":
                    print(row["set"], row["model"], row["outcome"], row.get("message", "")[:160], flush=True)
        except TimeoutError:
            counts["not run"] = len(work) - counts.total()
            for process in list(pool._processes.values()):
                process.kill()
    print(dict(counts), f"{time.monotonic() - began:.0f} s")
    return int(any(counts[bad] for bad in ("mismatch", "error", "other groups")))


if __name__ == "__main__":
    sys.exit(main())
