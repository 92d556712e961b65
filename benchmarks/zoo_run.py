"""How the models of the zoo are run: each in a process of its own with limits, results as lines of JSON."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 10  # a process that waits instead of computing is given up after so many times its CPU seconds
Key = tuple[str, str, str, int]

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a process ended: `done` with what it returned, or why it did not."""

    how: Literal["done", "timeout", "memory"]
    value: Any = None
    message: str = ""


def alone(work: Callable[[], Any], *, seconds: float, memory: float, patience: float = PATIENCE) -> End:
    """Run `work` in a forked process: libraries are loaded once, whatever it does stays there.

    Args:
        work: what it returns comes back; its own errors are its own business, but for `MemoryError`.
        seconds: of CPU time: the limit does not depend on what else the machine does.
        memory: GiB of address space.
        patience: it may last so many times its CPU seconds.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, work, seconds, memory, os.getpid()))
    process.start()
    sender.close()
    end = End(how="timeout", message="it computes no more")
    try:
        if receiver.poll(patience * seconds):
            end = receiver.recv()
            process.join(10)
    except EOFError:
        process.join(10)
        late = process.exitcode == -signal.SIGXCPU
        end = (
            End(how="timeout", message=f"more than {seconds:.0f} s of CPU time")
            if late
            else End(how="memory", message=f"the process died ({memory:.0f} GiB), exit code {process.exitcode}")
        )
    finally:
        process.kill()
        process.join()
        receiver.close()
    return end


def _child(sender: Connection, work: Callable[[], Any], seconds: float, memory: float, parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody is left behind
    if os.getppid() != parent:
        os._exit(1)
    _limit(resource.RLIMIT_AS, int(memory * 2**30))
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds), grace=5)
    _limit(resource.RLIMIT_CORE, 0)
    warnings.filterwarnings("ignore")
    try:
        end = End(how="done", value=work())
    except MemoryError as error:
        end = End(how="memory", message=f"MemoryError: {error}")
    sender.send(end)
    sender.close()
    os._exit(0)  # nothing of the model is worth tidying up


def _limit(what: int, value: int, grace: int = 0) -> None:
    """Set a limit, within those of the process that started this one."""
    _, most = resource.getrlimit(what)
    hard = value + grace if most == resource.RLIM_INFINITY else min(value + grace, most)
    resource.setrlimit(what, (min(value, hard), hard))


def warm_up(*, peer: bool = False) -> None:
    """Import everything that Secateur imports, but not Secateur: every model meets the code as it is then."""
    sys.path[:0] = [p for p in (str(ROOT / "src"), str(ROOT / "tests")) if p not in sys.path]
    importlib.import_module("secateur._couple")
    importlib.import_module("torch._dynamo")  # torch imports it at the first dispatch mode
    # beside a torch of another build, torchvision's compiled library does not load
    importlib.import_module("helpers.compiled_ops").ensure_torchvision()
    importlib.import_module("helpers.detection_ops").enable_detection()
    if peer:
        importlib.import_module("torch_pruning")
    for name in [n for n in sys.modules if n.split(".")[0] == "secateur"]:
        del sys.modules[name]


def code() -> str:
    """Short hash of the engine."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src" / "secateur").rglob("*.py")):
        if path.name in ENGINE or path.parent.name == "ops":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


ENGINE = (
    "_trace.py",
    "_training.py",
    "_couple.py",
    "_lengths.py",
    "_replay.py",
    "_surgery.py",
    "_cut.py",
    "_counts.py",
    "_units.py",
)


def read(path: Path) -> dict[Key, dict[str, Any]]:
    """The last line about each model."""
    rows: dict[Key, dict[str, Any]] = {}
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                row = json.loads(text)
            except json.JSONDecodeError:  # a line cut short when a run was stopped
                continue
            rows[row["tool"], row["set"], row["model"], row["seed"]] = row
    return rows


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
