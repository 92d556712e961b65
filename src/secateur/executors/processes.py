"""Processes: several on this machine, forked, so that model and data are shared and nothing has to be pickled."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch

from secateur.errors import InputError, SecateurError


@dataclass(frozen=True, slots=True)
class Processes:
    """Runs the work in `n` forked processes with one torch thread each; results come as they are ready.

    The results are bit for bit those of `serial` with one torch thread: work items share nothing. The items of a
    worker that was killed are done again, by a fresh one, up to `retries` times. CPU only: CUDA does not survive
    a fork, and says so.

    Only where processes can be forked (Linux, macOS).
    """

    n: int
    retries: int = 3
    name: str = "processes"

    def __post_init__(self) -> None:
        """Refuses what cannot work."""
        if self.n < 1:
            raise InputError("at least one process is needed", where="processes(n)", expected="1 or more", got=self.n)
        if "fork" not in multiprocessing.get_all_start_methods():
            raise InputError("processes cannot be forked on this system", todo="use executors.serial()")

    def __call__(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """(index of the item, result), in the order in which they are ready.

        Raises:
            InputError: Ray runs in this process: its threads hold locks for which forked processes wait forever; or the
                work lies on a GPU.
            SecateurError: workers were killed again and again (out of memory?). Errors of the work as they are.
        """
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            raise InputError(
                "processes cannot be forked beside a Ray that runs in this one: they may wait forever",
                where="executors.processes",
                todo="call ray.shutdown() first, or use executors.ray()",
            )
        left = dict(enumerate(items))
        for _ in range(self.retries + 1):
            if not left:
                return
            try:
                for index, result in _run(work, left, min(self.n, len(left))):
                    del left[index]
                    yield index, result
            except BrokenProcessPool:
                continue
            except RuntimeError as error:
                if "CUDA in forked subprocess" not in str(error):
                    raise
                raise InputError(
                    "a model or data on a GPU cannot be used in forked processes",
                    where="executors.processes",
                    got=error,
                    todo="leave the executor out: one process keeps a GPU busy; or move the model to the CPU",
                ) from error
        if left:
            raise SecateurError(
                "worker processes were killed again and again",
                where=f"{len(left)} work items left",
                got=f"{self.retries + 1} attempts",
                todo="look for the system's out-of-memory messages; use fewer processes or smaller batches",
            )


def _run(work: Callable[[Any], Any], items: dict[int, Any], n: int) -> Iterator[tuple[int, Any]]:
    # With a fork the initializer's arguments are inherited, not pickled: tasks are full of closures.
    pool = ProcessPoolExecutor(n, multiprocessing.get_context("fork"), initializer=_start, initargs=(work,))
    try:
        with warnings.catch_warnings():
            # Python warns of forks beside threads. The children use neither those threads nor their locks: torch
            # runs on one thread there.
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            futures: dict[Future[Any], int] = {pool.submit(_call, item): index for index, item in items.items()}
        waiting = set(futures)
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            broken = None
            for future in ready:
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    broken = error  # what others finished is handed over first
                else:
                    yield futures[future], result
            if broken is not None:
                raise broken
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """What a forked process was given; only ever set there."""

    work: Callable[[Any], Any]


def _start(work: Callable[[Any], Any]) -> None:
    # OpenMP's threads do not exist in a forked child; one thread means none are asked for.
    torch.set_num_threads(1)
    _Worker.work = work
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """A parent that was killed cannot end its workers; they would wait for work forever."""
    parent.join()
    os._exit(1)


def _call(item: Any) -> Any:
    return _Worker.work(item)


def processes(n: int, *, retries: int = 3) -> Processes:
    """`n` forked processes with one torch thread each."""
    return Processes(n=n, retries=retries)
