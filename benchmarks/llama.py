"""Does Secateur reach language models: how long does it take, and in how much memory?

Two questions. A model of the shape of Llama-7B on the meta device, which has no weights: seconds of record and couple,
and the peak memory of the process. A random Llama of half a billion parameters in memory: seconds until it is
cut to 60 % of every group and the cut is verified. Each runs in a process of its own, on one thread.

    make bench-llama
    make bench-llama ARGS="--quick"      two layers and a narrow model instead, to see that it runs
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 8
KEPT = 0.6


def model_of(*, meta: bool, quick: bool) -> nn.Module:
    """The default configuration of Llama (7B), or one of half a billion parameters; random weights."""
    # beside a torch of another build, torchvision's compiled library does not load, and transformers asks for it
    sys.path[:0] = [str(ROOT / "tests")]
    importlib.import_module("helpers.compiled_ops").ensure_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    size: dict[str, Any] = {"attn_implementation": "sdpa", "use_cache": False}
    if not meta:
        size |= {"hidden_size": 1280, "intermediate_size": 3456, "num_hidden_layers": 21, "num_attention_heads": 20}
    if quick:
        size |= {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**size))
    return model.eval()


def measure(*, meta: bool, quick: bool) -> dict[str, Any]:
    """Seconds of each stage, wall clock and processor, and the peak memory of this process in GiB."""
    from secateur._counts import project, system_of
    from secateur._couple import couple
    from secateur._cut import cut
    from secateur._trace import trace
    from secateur.schema.plan import Plan

    torch.set_num_threads(1)
    model = model_of(meta=meta, quick=quick)
    inputs = {"input_ids": torch.arange(TOKENS).view(1, TOKENS)}
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "seconds": {}, "processor": {}}
    wall, processor = time.perf_counter(), time.process_time()

    def lap(name: str) -> None:
        nonlocal wall, processor
        found["seconds"][name] = round(time.perf_counter() - wall, 2)
        found["processor"][name] = round(time.process_time() - processor, 2)
        wall, processor = time.perf_counter(), time.process_time()

    graph = trace(model, inputs)
    lap("record")
    groups = couple(graph)
    lap("couple")
    found["groups"], found["units"] = len(groups.groups), sum(g.n_units for g in groups.groups)
    if not meta:
        counts = project(system_of(groups), [g.n_units * KEPT for g in groups.groups])
        plan = Plan(
            kept=tuple(tuple(range(k)) for k in counts),
            names=tuple(g.name for g in groups.groups),
            n_units=tuple(g.n_units for g in groups.groups),
        )
        small, receipt = cut(model, groups, plan)
        lap("cut and verify")
        assert receipt.verification is not None
        found["removed"] = round(1 - sum(p.numel() for p in small.parameters()) / found["parameters"], 4)
        checked = receipt.verification
        found["error"], found["tolerance"], found["distance"] = checked.error, checked.tolerance, checked.distance
    found["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs both, each in a process of its own, and prints what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--json", action="store_true", help="the results as JSON on the last line")
    parser.add_argument("--only", choices=("meta", "memory"), help="one of the two, in this very process")
    args = parser.parse_args(arguments)
    if args.only:
        print(json.dumps(measure(meta=args.only == "meta", quick=args.quick)))
        return 0
    results: dict[str, Any] = {}
    for which in ("meta", "memory"):
        command = [sys.executable, __file__, "--only", which, *(["--quick"] if args.quick else [])]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results[which] = json.loads(done.stdout.splitlines()[-1])
        r = results[which]
        stages = ", ".join(f"{k} {v} s (processor {r['processor'][k]} s)" for k, v in r["seconds"].items())
        print(f"{which}: {r['parameters'] / 1e9:.2f} G parameters, {stages}; peak {r['peak_gib']} GiB")
    if args.json:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
