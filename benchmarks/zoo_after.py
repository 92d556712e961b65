# ruff: noqa: E402  the number of threads is fixed before torch is imported
"""What can a model still do after a cut?

Every third model of each set of the zoo, and llama, gpt2 and t5, is cut at random uneven ratios, and must then be

    reload      saved, and loaded into a fresh dense model (other weights) in a process that never saw it: equal bits
    deepcopy    copied, with nothing shared
    train step  trained: finite loss, gradients for the same parameters as the dense model has
    compile     captured by dynamo and run by torch.compile with the backend aot_eager (no machine code is generated)
    onnx        exported with a free batch axis and run by onnxruntime at three batch sizes
    generate    (language models) asked for text: with a cache the tokens and logits that come without

What fails is tried with the dense model as well: if that cannot do it either, the reason lies upstream, and is named.

    make bench-zoo-after                                     everything, some hours on one core
    make bench-zoo-after ARGS="--set nn --only 'LSTM*'"      some sets, some models
    make bench-zoo-after ARGS="--every 1"                    all models, not each third
    make bench-zoo-after ARGS="--every 1 --baked"            those of which baked="submodule" writes a forward again
    make bench-zoo-after ARGS="--resume"                     go on where the last run stopped; --again: what failed
    make bench-zoo-after ARGS="--show --markdown benchmarks/zoo_after.md"    nothing is run: write the committed table
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import argparse
import collections
import contextlib
import datetime
import fnmatch
import functools
import importlib.metadata
import io
import json
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zoo_models
from zoo_checks import CHECKS, Check, leave, returned
from zoo_models import Entry
from zoo_run import ROOT, End, alone, append, code, read, warm_up
from zoo_trial import count, prepare, random_plan, said

TOOL, BAKED = "after", "after, forwards written again"
RELOAD = "reload"
COLUMNS = (RELOAD, *(name for name, _ in CHECKS))
ALWAYS = {"transformers": ("llama", "gpt2", "t5")}
OTHER_SEED = 1_000_003  # of the fresh model, whose weights must not matter
# ok; the dense model cannot either; only the cut one cannot; too long; too large; not for this model
OK, DENSE, LOST, TIMEOUT, MEMORY, NONE = "ok", "dense too", "LOST", "timeout", "memory", ""
Outcome = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Runs the checks and prints the tables; returns 1 where a cut model cannot do what the dense one can."""
    args = _arguments(arguments)
    torch.set_num_threads(1)
    if not args.show:
        warm_up()
        _warm_up_exporters()
    results = read(args.out)
    tool = BAKED if args.baked else TOOL
    for name in [] if args.show else args.set or zoo_models.SETS:
        for entry in chosen(name, args.every):
            key = (tool, name, entry.name, args.seed)
            before = results.get(key)
            if not any(fnmatch.fnmatch(entry.name, p) for p in args.only or ["*"]):
                continue
            if before is not None and (args.resume or (args.again and before["outcome"] == OK)):
                continue
            if before is None and args.again and not args.resume:
                continue
            started = time.perf_counter()
            found = after(entry, args.seed, baked=args.baked, seconds=args.timeout, memory=args.memory)
            head = {"tool": tool, "set": name, "model": entry.name, "seed": args.seed, "code": code()}
            results[key] = head | {"wall": time.perf_counter() - started} | found
            append(args.out, results[key])
            print(line(results[key]), flush=True)
    rows = [r for r in results.values() if (r["tool"], r["seed"]) == (tool, args.seed)]
    rows = [r for r in rows if not args.set or r["set"] in args.set]
    print(summary(rows))
    if args.markdown:
        args.markdown.write_text(markdown(rows))
    if args.json:
        print(json.dumps(rows))
    return int(any(r["outcome"] == LOST for r in rows))


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--set", action="append", choices=zoo_models.SETS, help="several times; default: all")
    parser.add_argument("--only", action="append", help="models whose name fits this pattern")
    parser.add_argument("--every", type=int, default=3, help="each how-manieth model of a set")
    parser.add_argument("--seed", type=int, default=0, help="of weights, ratios and choices")
    parser.add_argument(
        "--baked", action="store_true", help="with forwards written again, and only models that have any"
    )
    parser.add_argument("--timeout", type=float, default=120.0, help="CPU seconds per cut and per check")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB of address space per process")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "zoo_after.jsonl", help="JSON lines, appended")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has already")
    parser.add_argument("--again", action="store_true", help="of what the file has, only what did not go well")
    parser.add_argument("--show", action="store_true", help="run nothing, show what the file has")
    parser.add_argument("--markdown", type=Path, help="write the table of all models there")
    parser.add_argument("--json", action="store_true", help="the results as JSON on the last line")
    return parser.parse_args(arguments)


def _warm_up_exporters() -> None:
    """What dynamo and the exporter import at first use is imported here, once for all processes."""
    model, x = nn.Linear(2, 2), torch.ones(2, 2)
    with _quiet(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.compile(model, backend="aot_eager")(x)
        torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    torch._dynamo.reset()


def chosen(name: str, every: int) -> list[Entry]:
    """Every so many of a set, and those that must not be missing."""
    return [e for i, e in enumerate(zoo_models.entries(name)) if i % every == 0 or e.name in ALWAYS.get(name, ())]


# ------------------------------------------------------------------------------------------- one model
def after(entry: Entry, seed: int, *, baked: bool, seconds: float, memory: float) -> dict[str, Any]:
    """Cut a model and try everything with it; what it cannot do, the dense one tries.

    Args:
        baked: forwards in which integers stand are written again; models without any are not cut.

    Returns:
        `outcome`: ok; LOST where anything is; uncut, with a message; else what kept the checks from being made.
        `checks`: name -> outcome, message, and the dense model's message.
    """
    limits = functools.partial(alone, seconds=seconds, memory=memory)
    with tempfile.TemporaryDirectory(prefix="zoo-after-") as name:
        folder = Path(name)
        # the process of the model waits for those of its checks
        end = limits(lambda: _cut_and_check(entry, seed, folder, limits, baked), patience=10 * 2 * len(CHECKS))
        if end.how != "done":
            return {"outcome": end.how, "message": end.message, "checks": {}}
        row: dict[str, Any] = end.value
        if not row["checks"]:
            return row
        # forked from here, where no model has ever been built
        row["checks"] = {RELOAD: _reload(entry, seed, folder, limits, row["checks"].pop(RELOAD))} | row["checks"]
    outcomes = {c["outcome"] for c in row["checks"].values()}
    return row | {"outcome": next((o for o in (LOST, TIMEOUT, MEMORY) if o in outcomes), OK)}


def _cut_and_check(entry: Entry, seed: int, folder: Path, limits: Callable[..., End], baked: bool) -> dict[str, Any]:
    from secateur._couple import couple
    from secateur._cut import cut
    from secateur._trace import trace
    from secateur.errors import SecateurError

    try:
        model, inputs = prepare(entry, seed)
    except Exception as error:  # noqa: BLE001  whatever the library raises: the model does not run here
        return {"outcome": "unbuilt", "message": said(error), "checks": {}}
    try:
        groups = couple(trace(model, inputs), baked="submodule" if baked else "freeze")
        if baked and not groups.rewrites:
            return {"outcome": "nothing baked", "message": "", "checks": {}}
        small, receipt = cut(model, groups, random_plan(groups, seed), verify=False)
    except SecateurError as error:  # zoo.py is about these
        return {"outcome": "uncut", "message": said(error), "checks": {}}
    checks = {RELOAD: _tell(limits(lambda: _said(lambda: _left(folder, small, receipt, inputs))))}
    for name, check in CHECKS:
        checks[name] = _tried(check, small, model, inputs, limits)
    return {"removed": 1 - count(small) / max(count(model), 1), "message": "", "checks": checks}


def _tried(check: Check, small: nn.Module, model: nn.Module, inputs: Any, limits: Callable[..., End]) -> Outcome:
    found = _tell(limits(lambda: _said(lambda: check(small, model, inputs))))
    if found["outcome"] in (OK, NONE):
        return found
    return _beside(found, _tell(limits(lambda: _said(lambda: check(model, model, inputs)))))


def _reload(entry: Entry, seed: int, folder: Path, limits: Callable[..., End], left: Outcome) -> Outcome:
    def load() -> str:
        torch.manual_seed(seed + OTHER_SEED)
        return returned(folder, entry.build().eval())

    def leave_dense() -> str:
        model, inputs = prepare(entry, seed)
        return _left(folder, model, None, inputs)

    found = left if left["outcome"] != OK else _tell(limits(lambda: _said(load)))
    if found["outcome"] == OK:
        return found
    dense = _tell(limits(lambda: _said(leave_dense)))
    return _beside(found, dense if dense["outcome"] != OK else _tell(limits(lambda: _said(load))))


def _left(folder: Path, model: nn.Module, receipt: Any, inputs: Any) -> str:
    leave(folder, model, receipt, inputs)
    return "saved"


def _said(work: Callable[[], str]) -> tuple[str, str]:
    """(outcome, message) of a check, whatever it raises; what libraries print on the way is not ours to show."""
    try:
        with _quiet():
            told = work()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  exporters and compilers raise what they like
        root = _root(error)
        return LOST, said(error)[:600] + (f" <- {said(root)[:600]}" if root is not error else "")
    return (OK if told else NONE), told


def _root(error: BaseException) -> BaseException:
    """What was raised first."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _tell(end: End) -> Outcome:
    outcome, message = end.value if end.how == "done" else (end.how, end.message)
    return {"outcome": outcome, "message": message}


def _beside(found: Outcome, dense: Outcome) -> Outcome:
    """What the cut model could not do, judged by what the dense one can."""
    if dense["outcome"] == OK:
        return found
    return {"outcome": DENSE, "message": found["message"], "dense": f"{dense['outcome']}: {dense['message']}"}


# ------------------------------------------------------------------------------------------- tables
def line(row: dict[str, Any]) -> str:
    """One model on one line, and one more for what is lost."""
    text = f"{row['set']:12s} {row['model']:36s} {row['outcome']:8s} {row['wall']:6.1f} s"
    if row["checks"]:
        text += f"  removed {row['removed']:.2f}  " + "  ".join(
            f"{n}: {c['outcome']}" for n, c in row["checks"].items() if c["outcome"]
        )
    else:
        text += f"  {' '.join(row['message'].split())[:200]}"
    for name, check in row["checks"].items():
        if check["outcome"] not in (OK, NONE):
            text += f"\n    {name}: {' '.join(check['message'].split())[:300]}"
    return text


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Per set and check: how many can, of how many could be asked; what the dense models cannot either."""
    lines = ["| set | models | cut | " + " | ".join(COLUMNS) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for name in (*zoo_models.SETS, "all"):
        mine = [r for r in rows if name in (r["set"], "all")]
        tried = [r for r in mine if r["checks"]]
        if not mine:
            continue
        cells = []
        for column in COLUMNS:
            n = collections.Counter(r["checks"][column]["outcome"] for r in tried)
            text = f"{n[OK]} of {sum(n.values()) - n[NONE]}"
            others = [f"{n[o]} {o}" for o in (DENSE, LOST, TIMEOUT, MEMORY) if n[o]]
            cells.append(f"{text} ({', '.join(others)})" if others else text)
        lines.append(f"| {name} | {len(mine)} | {len(tried)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The committed page: summary, reasons, then every model."""
    packages = ("torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    out = [
        "# What a model can do after a cut",
        "",
        f"`make bench-zoo-after`, {today}: Python {sys.version.split()[0]}, {versions}. One thread.",
        "",
        f"{len(rows)} models, each third of the zoo, cut at random ratios of 0 to 0.8 per group. What is asked",
        f"stands at the head of `zoo_after.py`. `{OK}` or a number (relative error against the cut model): it can.",
        f"`{DENSE}`: neither it nor the dense model can; how the dense model fails stands below the table.",
        f"`{LOST}`: only the dense model can.",
        "",
        summary(rows),
    ]
    for name in zoo_models.SETS:
        mine = sorted((r for r in rows if r["set"] == name), key=lambda r: str(r["model"]))
        if not mine:
            continue
        out += ["", f"## {name}", "", "| model | removed | " + " | ".join(COLUMNS) + " |"]
        out.append("|---" * (2 + len(COLUMNS)) + "|")
        for r in mine:
            if not r["checks"]:
                out.append(f"| {r['model']} | {r['outcome']} |" + " |" * len(COLUMNS))
                continue
            cells = (r["checks"][c] for c in COLUMNS)
            told = (c["message"] if c["outcome"] == OK else c["outcome"] or "–" for c in cells)
            out.append(f"| {r['model']} | {r['removed']:.2f} | " + " | ".join(told) + " |")
        reasons = [
            f"- `{r['model']}`, {n}, {c['outcome']}: {_one_line(c.get('dense', c['message']))}"
            for r in mine
            for n, c in r["checks"].items()
            if c["outcome"] not in (OK, NONE)
        ]
        reasons += [f"- `{r['model']}`, {r['outcome']}: {_one_line(r['message'])}" for r in mine if not r["checks"]]
        out += ["", *reasons] if reasons else []
    return "\n".join(out) + "\n"


def _one_line(text: str) -> str:
    plain = re.sub(r"\x1b\[[\d;]*m|/\S*/(?=model\.onnx)", "", text.replace("`", "'").replace(str(ROOT), ""))
    return " ".join(plain.split())[:240]


if __name__ == "__main__":
    sys.exit(main())
