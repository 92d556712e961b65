"""Ray: processes of a Ray cluster, on this machine or on several; the work is carried over by cloudpickle."""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from secateur.errors import InputError, NotInstalled, SecateurError

LOOPBACK = "127.0.0.1"
STORE_BYTES = 256 * 2**20  # room for everything but the work itself


@dataclass(frozen=True, slots=True)
class Ray:
    """Runs the work in `n` processes of Ray with one torch thread each; results come as they are ready.

    A Ray that is running (`ray.init()` was called) is used as it is, and left so. Otherwise one is started that
    listens on this machine alone, behind a random token, without dashboard and usage statistics, and is gone when the
    work is done. Model, data and task are pickled once and read once by every process, functions without a name
    included. CPU only.

    The results are bit for bit those of `serial` with one torch thread on the same machine. The item of a worker that
    was killed is done again by a fresh one, up to `retries` times each.
    """

    n: int
    retries: int = 3
    name: str = "ray"

    def __post_init__(self) -> None:
        """Refuses what cannot work."""
        if self.n < 1:
            raise InputError("at least one process is needed", where="ray(n)", expected="1 or more", got=self.n)

    def __call__(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """(index of the item, result), in the order in which they are ready.

        Raises:
            NotInstalled: Ray is missing.  InputError: the work cannot be pickled; the running Ray is too small.
            SecateurError: a worker was killed again and again. Errors of the work as they are.
        """
        left = list(enumerate(items))
        if not left:
            return
        ray = _package()
        try:
            payload = ray.cloudpickle.dumps(work)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise InputError(
                "the model, the data or the task cannot be sent to another process",
                where="ray(n)",
                got=error,
                todo="use executors.processes(n), where nothing has to be pickled",
            ) from error
        with _running(ray, self.n, len(payload)):
            yield from _run(ray, payload, left, min(self.n, len(left)), self.retries)


class _Worker:
    """Lives in a process of Ray; holds the work, unpickled with the first item so that its errors are the work's."""

    def __init__(self, payload: bytes, path: list[str]) -> None:
        torch.set_num_threads(1)
        sys.path += [p for p in path if p not in sys.path]  # modules are pickled by their names
        self._payload = payload
        self._work: Callable[[Any], Any] | None = None

    def do(self, item: Any) -> Any:
        if self._work is None:
            self._work = pickle.loads(self._payload)
        return self._work(item)


def _run(ray: Any, payload: bytes, items: list[tuple[int, Any]], n: int, retries: int) -> Iterator[tuple[int, Any]]:
    held, todo = ray.put(payload), iter(items)
    # Ray itself starts a killed worker again, and gives it the item that it had.
    make = ray.remote(num_cpus=1, max_restarts=retries, max_task_retries=retries)(_Worker)
    workers = [make.remote(held, sys.path) for _ in range(n)]
    busy = {worker.do.remote(item): (worker, index) for worker, (index, item) in zip(workers, todo, strict=False)}
    try:
        while busy:
            (ready,), _ = ray.wait(list(busy), num_returns=1)
            worker, index = busy.pop(ready)
            try:
                result = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error  # what went wrong there, as it is; below it, where
            except ray.exceptions.RayActorError as error:
                raise SecateurError(
                    "a worker of Ray was killed again and again",
                    where=f"item {index} of {len(items)}",
                    got=f"{retries + 1} attempts",
                    todo="look for the system's out-of-memory messages; use fewer processes or smaller batches",
                ) from error
            if (following := next(todo, None)) is not None:
                busy[worker.do.remote(following[1])] = worker, following[0]
            yield index, result
    finally:
        for worker in workers:
            ray.kill(worker)


@contextmanager
def _running(ray: Any, n: int, n_bytes: int) -> Iterator[None]:
    """The Ray that is running, or one of our own that is shut down again and leaves no file behind."""
    if ray.is_initialized():
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if cpus < n:
            raise InputError(
                "the running Ray has too few CPUs: the work would wait forever",
                where="ray(n)",
                expected=f"at most {cpus}",
                got=n,
                todo="ask for fewer, or shut it down (ray.shutdown()) to have one started",
            )
        yield
        return
    if (address := ray.util.get_node_ip_address()) != LOOPBACK:
        raise InputError(
            "a Ray that is started here would listen beyond this machine",
            where="ray(n)",
            expected=LOOPBACK,
            got=address,
            todo="call ray.init() yourself if that is meant, or do not import ray before this executor runs",
        )
    folder = tempfile.mkdtemp(prefix="secateur-ray-")
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            "local",
            num_cpus=n,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=STORE_BYTES + n_bytes,
            _temp_dir=folder,
        )
        yield
    finally:
        ray.shutdown()
        if in_main_thread:
            signal.signal(signal.SIGTERM, on_termination)  # Ray puts its own there
        shutil.rmtree(folder, ignore_errors=True)


def _package() -> Any:
    """Ray. It reads its settings when it is imported, and its token once in a process: they stay as set here."""
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on any system: loopback only
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home folder
    try:
        import ray
    except ImportError as error:
        raise NotInstalled("Ray is not installed", got=error, todo="pip install 'secateur[ray]'") from None
    return ray


def ray(n: int, *, retries: int = 3) -> Ray:
    """`n` processes of Ray with one torch thread each."""
    return Ray(n=n, retries=retries)
