# ruff: noqa: E402  the number of threads is fixed before torch is imported
"""Is every model cut as the user's own class, exactly and without a hint, and how does that compare with Torch-Pruning?

Every model runs in a process of its own, with a limit on time and memory and one thread: record, couple, remove a
random, uneven fraction (0 to 0.8) of every group under the count equations, cut, verify against the masked oracle.
Before its clock starts, each tool has pruned one small network: what a process pays once is not the model's.

    make bench-zoo                                   everything, half an hour on one core
    make bench-zoo ARGS="--set nasty --set nn"       some sets: nasty, nn, transformers, torchvision, timm
    make bench-zoo ARGS="--only 'vit*' --peer"       some models, Torch-Pruning beside
    make bench-zoo ARGS="--set timm --every 3 --peer"    each third of them
    make bench-zoo ARGS="--resume"                   go on where the last run stopped
    make bench-zoo ARGS="--again"                    those that did not go well, once more
    make bench-zoo ARGS="--show --markdown benchmarks/zoo.md"    nothing is run: write the committed table

Results are appended to a file of JSON lines as they come; a later line about the same model replaces an earlier one.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import argparse
import collections
import dataclasses
import datetime
import fnmatch
import importlib.metadata
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import zoo_models
from zoo_models import Entry
from zoo_run import ROOT, Key, alone, append, code, read, warm_up
from zoo_trial import Trial, ours, said

OURS, PEER = "secateur", "torch-pruning"


def main(arguments: list[str] | None = None) -> int:
    """Runs the zoo and prints the tables; returns 1 where a cut was wrong."""
    args = _arguments(arguments)
    torch.set_num_threads(1)
    warm_up(peer=args.peer or args.peer_only)
    results = read(args.out)
    tools = (OURS, PEER) if args.peer else (PEER,) if args.peer_only else (OURS,)
    for name in [] if args.show else args.set or zoo_models.SETS:
        for entry in zoo_models.entries(name)[:: args.every]:
            if not any(fnmatch.fnmatch(entry.name, p) for p in args.only or ["*"]):
                continue
            for tool in tools:
                key = (tool, name, entry.name, args.seed)
                before = results.get(key)
                if before is not None and (before["outcome"] == "ok" if args.again else args.resume):
                    continue
                if before is None and args.again and not args.resume:
                    continue
                row = run_one(key, entry, seconds=args.timeout, memory=args.memory)
                results[key] = row
                append(args.out, row)
                print(line(row), flush=True)
    chosen = [r for r in results.values() if not args.set or r["set"] in args.set]
    chosen = [r for r in chosen if r["seed"] == args.seed]
    print(summary(chosen))
    if args.markdown:
        args.markdown.write_text(markdown(chosen))
    if args.json:
        print(json.dumps(chosen))
    return int(any(r["outcome"] == "mismatch" and r["tool"] == OURS for r in chosen))


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--set", action="append", choices=zoo_models.SETS, help="may be given several times; default: all"
    )
    parser.add_argument("--only", action="append", help="models whose name fits this pattern")
    parser.add_argument("--every", type=int, default=1, help="each how-manieth model of a set")
    parser.add_argument("--seed", type=int, default=0, help="of weights, ratios and choices")
    parser.add_argument("--peer", action="store_true", help="Torch-Pruning as well")
    parser.add_argument("--peer-only", action="store_true", help="only Torch-Pruning")
    parser.add_argument("--timeout", type=float, default=120.0, help="CPU seconds per model and tool")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB of address space per model")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "zoo.jsonl", help="JSON lines, appended")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has already")
    parser.add_argument("--again", action="store_true", help="of what the file has, only what did not go well")
    parser.add_argument("--show", action="store_true", help="run nothing, show what the file has")
    parser.add_argument("--markdown", type=Path, help="write the table of all models there")
    parser.add_argument("--json", action="store_true", help="the results as JSON on the last line")
    return parser.parse_args(arguments)


# ------------------------------------------------------------------------------------------- one model, one process
def run_one(key: Key, entry: Entry, *, seconds: float, memory: float) -> dict[str, Any]:
    """One trial in a process of its own."""
    tool, name, model, seed = key
    started = time.perf_counter()
    end = alone(lambda: _trial(tool, entry, seed), seconds=seconds, memory=memory)
    row = end.value if end.how == "done" else dataclasses.asdict(Trial(outcome=end.how, message=end.message))
    head = {
        "tool": tool,
        "set": name,
        "model": model,
        "seed": seed,
        "code": code(),
        "wall": time.perf_counter() - started,
    }
    return head | row


def _trial(tool: str, entry: Entry, seed: int) -> dict[str, Any]:
    try:
        if tool == OURS:
            trial = ours(entry, seed)
        else:
            from zoo_peer import peer

            trial = peer(entry, seed)
    except (ImportError, SyntaxError) as error:
        trial = Trial(outcome="error", message=said(error))
    return dataclasses.asdict(trial) | {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


# ------------------------------------------------------------------------------------------- tables
def line(row: dict[str, Any]) -> str:
    """One result on one line."""
    text = f"{row['set']:12s} {row['model']:36s} {row['tool'][:8]:8s} {row['outcome']:8s} {row['wall']:6.1f} s"
    if row["error"] is not None:
        text += f"  removed {row['removed']:.3f}  reach {row['reach']:.3f} of {row['allowed']:.3f}"
        text += f"  error {row['error']:.0e} of {row['tolerance']:.0e}  distance {row['distance']:.2f}"
    elif row["removed"]:
        text += f"  removed {row['removed']:.3f}"
    if row["outcome"] != "ok":
        text += "  " + " ".join(row["message"].split())[:160]
    return text


def seconds_of(row: dict[str, Any]) -> float:
    """Record + couple + plan + cut; for the peer: build the graph + prune."""
    return sum(v for k, v in row["seconds"].items() if k != "verify")


def summary(rows: Iterable[dict[str, Any]]) -> str:
    """Outcomes and seconds per set and tool."""
    rows = list(rows)
    outcomes = ("ok", "frozen", "mismatch", "error", "timeout", "memory", "unbuilt")
    lines = [
        "| set | tool | models | " + " | ".join(outcomes) + " | within 5 points | median s | sum s |",
        "|---" * (len(outcomes) + 6) + "|",
    ]
    for name in zoo_models.SETS:
        for tool in (OURS, PEER):
            mine = [r for r in rows if r["set"] == name and r["tool"] == tool]
            if not mine:
                continue
            n = collections.Counter(r["outcome"] for r in mine)
            good = [r for r in mine if r["outcome"] == "ok"]
            near = [r for r in good if r.get("reach") is not None and r["reach"] >= r["allowed"] - 0.05]
            times = [seconds_of(r) for r in good]
            lines.append(
                f"| {name} | {tool} | {len(mine)} | "
                + " | ".join(str(n[o]) for o in outcomes)
                + f" | {len(near) if tool == OURS else '–'} | "
                + (f"{statistics.median(times):.2f} | {sum(times):.0f} |" if times else "– | – |")
            )
    both = _both(rows)
    if both:
        a, b = zip(*[(seconds_of(x), seconds_of(y)) for x, y in both], strict=True)
        lines.append("")
        lines.append(
            f"Models that both cut: {len(both)}. Median seconds {statistics.median(a):.2f} and "
            f"{statistics.median(b):.2f}; sum {sum(a):.0f} and {sum(b):.0f} (ratio {sum(a) / max(sum(b), 1e-9):.2f})."
        )
    return "\n".join(lines)


def _both(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    table = {(r["tool"], r["set"], r["model"]): r for r in rows if r["outcome"] == "ok"}
    return [(r, table[PEER, s, m]) for (t, s, m), r in table.items() if t == OURS and (PEER, s, m) in table]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The committed page: summary, then every model."""
    versions = ", ".join(
        f"{p} {importlib.metadata.version(p)}"
        for p in ("torch", "torchvision", "timm", "transformers", "torch-pruning")
    )
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    peers = {(r["set"], r["model"]): r for r in rows if r["tool"] == PEER}
    out = [
        "# The zoo",
        "",
        f"`make bench-zoo`, {today}: Python {sys.version.split()[0]}, {versions}. One thread.",
        "",
        "`removed`: fraction of the parameters that is gone at random ratios of 0 to 0.8 per group. `reach`: what goes",
        "when every group loses 40 %, as near as equations let it; `allowed`: the same if no integer of the forward",
        "asked for anything. `error`: of the cut model against the masked oracle, relative; `distance`: to the dense",
        "model. CPU seconds: record + couple + plan + cut, without the verification. Torch-Pruning: its outcome, what",
        "it removed, its seconds.",
        "",
        summary(rows),
    ]
    for name in zoo_models.SETS:
        mine = sorted((r for r in rows if r["set"] == name and r["tool"] == OURS), key=lambda r: r["model"])
        if not mine:
            continue
        out += ["", f"## {name}", ""]
        out.append(
            "| model | M params | outcome | groups | removed | reach | allowed | error | distance | s | verify s "
            "| Torch-Pruning | s |"
        )
        out.append("|---" * 13 + "|")
        for r in mine:
            p = peers.get((name, r["model"]))
            other = "–" if p is None else f"{p['outcome']} {p['removed']:.2f}" if p["outcome"] == "ok" else p["outcome"]
            out.append(
                f"| {r['model']} | {r['params'] / 1e6:.2f} | {r['outcome']} | {r['groups']} | {r['removed']:.3f} | "
                f"{_number(r.get('reach'), '.3f')} | {_number(r['allowed'], '.3f')} | "
                f"{_number(r['error'], '.0e')} | {_number(r['distance'], '.2f')} | "
                f"{seconds_of(r):.2f} | {_number(r['seconds'].get('verify'), '.1f')} | {other} | "
                f"{'–' if p is None or p['outcome'] != 'ok' else format(seconds_of(p), '.2f')} |"
            )
    return "\n".join(out) + "\n"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main())
